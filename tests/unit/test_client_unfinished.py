# SPDX-License-Identifier: GPL-2.0-or-later
"""Ends that come too early: interrupted at boot, interrupted twice, a disk that is full only behind the load."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from client_machine import FIRST, SECOND, HostMachine, KilledError
from elivepatch.client.journal import Record


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostMachine:
    return HostMachine(tmp_path, monkeypatch)


@pytest.fixture
def loaded(machine: HostMachine) -> HostMachine:
    result = machine.load(FIRST)
    assert result.exit_code == 0, result.output
    return machine


# -- the load of the boot does not come to its end


def test_one_whose_load_at_boot_was_interrupted_is_not_forgotten(loaded: HostMachine) -> None:
    loaded.restart(orderly=True)
    loaded.kernel.interrupt_at = loaded.kernel.time + 0.5  # the init system's time is over, or the host goes down
    assert loaded.run("boot").exit_code == 130
    assert loaded.held() == []
    status = loaded.status()
    assert status["exit_status"] == 7
    assert [(one["name"], one["state"]) for one in status["absent"]] == [(FIRST, "expected")]
    loaded.restart(orderly=True)
    assert loaded.run("boot").exit_code == 0
    assert loaded.agreed() == [FIRST]


@pytest.mark.parametrize("stuck", [False, True])
def test_one_whose_load_at_boot_was_killed_is_not_forgotten(
    loaded: HostMachine, monkeypatch: pytest.MonkeyPatch, stuck: bool
) -> None:
    loaded.restart(orderly=True)
    loaded.kernel.stuck = stuck
    switch = loaded.kernel.switch

    def killed(*_arguments: object, **_named: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(loaded.kernel, "switch" if stuck else "sleep", killed)
        with pytest.raises(KilledError):
            loaded.run("boot")
    assert loaded.kernel.switch == switch
    assert loaded.held() == [FIRST]
    result = loaded.run("repair")
    assert result.exit_code == 7, result.output
    assert loaded.held() == []
    assert [(one["name"], one["state"]) for one in loaded.status()["absent"]] == [(FIRST, "expected")]
    loaded.kernel.stuck = False
    assert loaded.run("boot").exit_code == 0
    assert loaded.agreed() == [FIRST]


def test_one_with_which_the_host_went_down_while_its_load_at_boot_was_undone_is_guarded(
    loaded: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded.restart(orderly=True)
    loaded.kernel.stuck = True

    def down(_path: Path, *, on: bool) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(loaded.kernel, "switch", down)
        with pytest.raises(KilledError):
            loaded.run("boot")
    loaded.restart()
    assert loaded.run("boot").exit_code == 4
    assert [(one["name"], one["state"]) for one in loaded.status()["absent"]] == [(FIRST, "guarded")]


def test_one_that_boot_could_not_take_back_is_not_said_to_be_waiting(loaded: HostMachine) -> None:
    loaded.restart(orderly=True)
    loaded.kernel.stuck = loaded.kernel.stuck_back = True
    result = loaded.run("boot")
    assert result.exit_code == 4
    assert "Undoing it did not succeed" in result.stderr
    assert loaded.steps(FIRST)[-1] == "undoing"
    assert loaded.run("status").exit_code == 8
    loaded.kernel.stuck = loaded.kernel.stuck_back = False
    loaded.run("repair")
    assert loaded.held() == []
    assert loaded.steps(FIRST)[-1] == "allowed"
    assert loaded.run("boot").exit_code == 0
    assert loaded.agreed() == [FIRST]


# -- trouble behind the load


def _full(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A disk that is full for one write."""
    fsync = os.fsync

    def full(_descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        raise OSError(errno.ENOSPC, "No space left on device")

    return lambda: monkeypatch.setattr(os, "fsync", full)


def _behind_the_step(monkeypatch: pytest.MonkeyPatch, wanted: str, then: Callable[[], None]) -> None:
    """Something that happens once, when a step has been written."""
    step = Record.step
    done: list[str] = []

    def and_then(self: Record, name: str, **more: object) -> None:
        step(self, name, **more)  # type: ignore[arg-type]
        if name == wanted and not done:
            done.append(name)
            then()

    monkeypatch.setattr(Record, "step", and_then)


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_a_full_disk_behind_the_load_does_not_make_it_a_failure(
    loaded: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    _behind_the_step(monkeypatch, "loaded", _full(monkeypatch))
    result = loaded.load(SECOND, "--json", patches=(FIRST, SECOND))
    assert result.exit_code == 0, result.output
    outcome = json.loads(result.stdout)
    assert outcome["status"] == "loaded"
    assert any("the journal could not be told" in warning for warning in outcome["warnings"])
    assert loaded.steps(SECOND)[-1] == "loaded"
    loaded.run("repair")
    assert loaded.agreed() == [SECOND]
    assert loaded.steps(FIRST)[-1] == "replaced"


def test_an_interruption_behind_the_load_does_not_make_it_a_failure(
    loaded: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    _behind_the_step(monkeypatch, "loaded", _interrupt)
    result = loaded.load(SECOND, patches=(FIRST, SECOND))
    assert result.exit_code == 0, result.output
    assert "it stays" in result.stderr
    assert "was undone" not in result.stderr
    assert loaded.agreed() == [SECOND]


def test_a_full_disk_behind_the_load_of_an_unproven_one_is_a_warning(
    machine: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    _behind_the_step(monkeypatch, "loaded", _full(monkeypatch))
    result = machine.load_unproven(FIRST)
    assert result.exit_code == 0, result.output
    assert machine.steps(FIRST)[-1] == "loaded"
    assert machine.agreed() == [FIRST]


def test_a_journal_that_says_failed_of_what_was_loaded_is_made_good(loaded: HostMachine) -> None:
    entry = loaded.entry(FIRST)
    assert entry.last is not None
    loaded.journal.begin(entry).step("failed", boot_id=entry.last.boot_id, detail="as older versions wrote it")
    assert loaded.run("repair").exit_code == 0
    assert loaded.agreed() == [FIRST]


def test_what_is_in_force_and_not_in_the_journal_is_not_called_not_loaded(
    machine: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    _behind_the_step(monkeypatch, "loading", _full(monkeypatch))
    result = machine.load(FIRST, "--json")
    assert result.exit_code == 4
    assert machine.held() == [FIRST]
    assert json.loads(result.stdout)["error"]["code"] == "left-unfinished"
    assert machine.run("repair").exit_code == 0
    assert machine.agreed() == [FIRST]


# -- interrupted while it is undone


@pytest.fixture
def interrupted_twice(machine: HostMachine, monkeypatch: pytest.MonkeyPatch) -> HostMachine:
    machine.kernel.stuck_back = True
    sleep, times = machine.kernel.sleep, [0.5, 1.5]
    began = machine.kernel.time

    def interrupting(seconds: float) -> None:
        sleep(seconds)
        if times and machine.kernel.time >= began + times[0]:
            times.pop(0)
            raise KeyboardInterrupt

    monkeypatch.setattr(machine.kernel, "seconds", 5.0)
    monkeypatch.setattr(machine.kernel, "sleep", interrupting)
    return machine


def test_who_interrupts_the_undoing_too_is_not_told_that_it_was_undone(interrupted_twice: HostMachine) -> None:
    result = interrupted_twice.load(FIRST, "--json")
    assert interrupted_twice.held() == [FIRST]
    assert "A load under way was undone" not in result.stderr
    assert result.exit_code == 4
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "left-unfinished"
    assert "interrupted while it was undone" in error["message"]
    assert "elivepatch repair" in error["hint"]
    interrupted_twice.kernel.stuck_back = False
    interrupted_twice.run("repair")
    assert interrupted_twice.agreed() == []


def test_the_module_of_a_load_that_could_not_be_undone_does_not_stand_in_the_way_of_the_next(
    machine: HostMachine,
) -> None:
    machine.kernel.stuck = machine.kernel.stuck_back = True
    result = machine.load(FIRST, "--json")
    assert json.loads(result.stdout)["error"]["code"] == "left-unfinished"
    machine.kernel.stuck = machine.kernel.stuck_back = False
    machine.kernel.sleep(60)  # it has gone by itself, but for its module
    assert machine.held() == []
    result = machine.load(FIRST)
    assert result.exit_code == 0, result.output
    assert machine.agreed() == [FIRST]
