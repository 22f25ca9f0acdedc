# SPDX-License-Identifier: GPL-2.0-or-later
"""Ends that come too early: interrupted at boot, interrupted twice, a disk that is full only behind the load."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from client_fakes import RELEASE, elf_module, put
from client_machine import FIRST, SECOND, HostMachine, KilledError
from client_server import done_report
from elivepatch.client.host import Host
from elivepatch.client.journal import Record
from elivepatch.client.state import StateDirectory


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
    assert loaded.run("boot").exit_code == 7
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


def _at_the_next_write(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Callable[[], None]:
    """Something that goes wrong with one write."""
    fsync = os.fsync

    def fails(_descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        raise error

    return lambda: monkeypatch.setattr(os, "fsync", fails)


def _full(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A disk that is full for one write."""
    return _at_the_next_write(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))


def _behind_the_step(monkeypatch: pytest.MonkeyPatch, wanted: str, then: Callable[[], None]) -> None:
    """Something that happens once, when a step has been written."""
    step = Record.step
    done: list[str] = []

    def and_then(self: Record, name: Any, **more: Any) -> None:  # Any: those of Record.step
        step(self, name, **more)
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


def test_an_interruption_while_the_journal_is_told_does_not_make_it_a_failure(
    machine: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    _behind_the_step(monkeypatch, "loading", _at_the_next_write(monkeypatch, KeyboardInterrupt()))
    result = machine.load(FIRST)
    assert result.exit_code == 0, result.output
    assert machine.steps(FIRST) == ["received", "loading", "loaded"]
    assert machine.agreed() == [FIRST]


def test_an_unproven_one_that_the_journal_was_not_told_of_is_made_good_too(
    machine: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    _behind_the_step(monkeypatch, "loading", _full(monkeypatch))
    result = machine.load_unproven(FIRST)
    assert result.exit_code == 4
    assert "'elivepatch repair', which makes that good" in result.stderr
    assert machine.run("repair").exit_code == 0
    assert machine.agreed() == [FIRST]


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


# -- the second look


def test_who_reverts_what_boot_is_loading_gives_it_up(loaded: HostMachine) -> None:
    loaded.restart(orderly=True)
    entry = loaded.entry(FIRST)
    boot_id = (loaded.host.root / "proc/sys/kernel/random/boot_id").read_text().strip()
    record = loaded.journal.begin(entry)
    record.step("loading", boot_id=boot_id)
    lock = StateDirectory(loaded.state, 0).locked()

    def interrupted(_pid: int, _number: int) -> None:  # what 'elivepatch boot' does then
        record.step("undone", boot_id=boot_id)
        record.step("allowed", boot_id=boot_id)
        lock.__exit__(None, None, None)

    loaded.host = Host(loaded.host.root, loaded.host.calls, loaded.host.clock, 0, interrupted)
    lock.__enter__()
    result = loaded.run("revert", FIRST)
    assert result.exit_code == 0, result.output
    assert loaded.steps(FIRST)[-1] == "reverted"
    loaded.restart(orderly=True)
    assert "nothing is to be loaded" in loaded.run("boot").stdout


def test_a_module_that_was_not_loaded_does_not_overwrite_one_that_waits_for_the_boot(machine: HostMachine) -> None:
    assert machine.load(FIRST).exit_code == 0
    machine.restart(orderly=True)
    original = (machine.tmp / f"{FIRST}.ko").read_bytes(), (machine.tmp / f"{FIRST}.json").read_text()
    module = elf_module({"name": FIRST, "livepatch": "Y", "vermagic": f"{RELEASE} SMP again "})
    report = done_report(module)
    report["module"]["name"] = FIRST
    (machine.tmp / f"{FIRST}.ko").write_bytes(module)
    (machine.tmp / f"{FIRST}.json").write_text(json.dumps(report))
    put(machine.host.root, {"sys/module/module/parameters/sig_enforce": "Y\n"})
    assert machine.load(FIRST).exit_code == 4  # the kernel does not take it
    put(machine.host.root, {"sys/module/module/parameters/sig_enforce": "N\n"})
    assert machine.run("boot").exit_code == 0
    assert machine.agreed() == [FIRST]
    assert (machine.state / "modules" / RELEASE / f"{FIRST}.ko").read_bytes() == original[0]
    assert machine.run("repair", ELIVEPATCH_JOURNAL_ENTRIES="1").exit_code == 0
    assert machine.run("info", FIRST).exit_code == 0


def test_a_journal_that_cannot_be_read_is_no_success_of_the_boot(loaded: HostMachine) -> None:
    loaded.restart(orderly=True)
    (path,) = (loaded.state / "journal").glob("*.json")
    path.write_text("")
    result = loaded.run("boot", "--json")
    assert result.exit_code == 7
    booted = json.loads(result.stdout)
    assert (booted["status"], booted["exit_status"]) == ("nothing", 7)
    assert any("cannot be read" in warning for warning in booted["warnings"])


def test_a_full_disk_does_not_keep_a_livepatch_in_the_kernel(
    loaded: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = loaded.run("revert", "--json")
    assert loaded.held() == []
    assert result.exit_code == 4
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "left-unfinished"
    assert f"{FIRST} is reverted, and the journal could not be told" in error["message"]
    assert f"elivepatch revert {FIRST}" in error["hint"]
    assert loaded.run("status").exit_code == 7
    assert loaded.run("revert", FIRST).exit_code == 0
    assert loaded.agreed() == []
    loaded.restart(orderly=True)
    assert "nothing is to be loaded" in loaded.run("boot").stdout


def test_a_lock_that_is_held_for_a_moment_does_not_cost_a_load(loaded: HostMachine) -> None:
    lock = StateDirectory(loaded.state, 0).locked()
    lock.__enter__()
    timer = threading.Timer(1.5, lambda: lock.__exit__(None, None, None))
    timer.start()
    try:
        result = loaded.load(SECOND, patches=(FIRST, SECOND))
    finally:
        timer.join()
    assert result.exit_code == 0, result.output


def test_one_that_replaces_nothing_is_undone_though_the_client_was_killed(
    loaded: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded.kernel.replace = False

    def killed(*_arguments: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("elivepatch.client.loader.Loader.await_replaced", killed)
        with pytest.raises(KilledError), monkeypatch.context() as also:
            also.setattr("elivepatch.client.loader.Loader._undo", killed)
            loaded.load(SECOND, patches=(FIRST, SECOND))
    assert loaded.held() == [FIRST, SECOND]
    loaded.run("repair")
    assert loaded.agreed() == [FIRST]
    assert loaded.steps(SECOND)[-1] == "undone"


# -- the terminal goes away


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_a_terminal_that_is_gone_does_not_keep_a_load_from_being_undone(
    machine: HostMachine, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    machine.kernel.stuck = True
    echo = click.echo

    def gone(text: str, *, err: bool = False) -> None:
        if err:
            raise OSError(number, os.strerror(number))
        echo(text, err=err)

    monkeypatch.setattr("elivepatch.client.output.click.echo", gone)
    result = machine.load(FIRST, "--json")
    assert result.exit_code == 4
    assert json.loads(result.stdout)["error"]["code"] == "transition-timeout"
    assert machine.held() == []
    assert machine.steps(FIRST)[-2:] == ["undone", "failed"]


def test_who_interrupts_as_the_undoing_begins_does_not_stop_it(
    machine: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.kernel.stuck = True
    _behind_the_step(monkeypatch, "undoing", _interrupt)
    result = machine.load(FIRST, "--json")
    assert result.exit_code == 4, result.output
    assert json.loads(result.stdout)["error"]["code"] == "transition-timeout"
    assert machine.agreed() == []


def test_a_read_only_file_system_does_not_keep_a_livepatch_in_the_kernel(
    loaded: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def read_only(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if str(path).startswith(str(loaded.state)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(path, flags, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        assert loaded.load(SECOND).exit_code == 4  # nothing else is begun there
        assert loaded.held() == [FIRST]
        result = loaded.run("revert", "--json")
    assert loaded.held() == []
    assert result.exit_code == 4
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "left-unfinished"
    assert "Read-only file system" in error["message"]
    assert error["hint"].startswith("Make that file system writable, then run")
    assert loaded.status()["exit_status"] == 7
    assert loaded.run("revert", FIRST).exit_code == 0
    assert loaded.agreed() == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("left", ["nothing", "an empty directory", "a journal"])
def test_where_there_is_no_lock_and_none_can_be_made_a_livepatch_is_reverted_all_the_same(
    machine: HostMachine, monkeypatch: pytest.MonkeyPatch, left: str, number: int
) -> None:
    if left == "a journal":
        assert machine.load(FIRST).exit_code == 0
        (machine.state / "lock").unlink()
    else:
        machine.kernel.add("foreign", moved=True)
        if left == "an empty directory":
            machine.state.mkdir(mode=0o700)
    opened, made = os.open, Path.mkdir

    def no_file(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if str(path).startswith(str(machine.state)) and flags & os.O_CREAT:
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, flags, *more, **named)

    def no_directory(path: Path, *more: Any, **named: Any) -> None:
        if path.is_relative_to(machine.state) and not path.exists():
            raise OSError(number, os.strerror(number), str(path))
        made(path, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", no_file)
        patch.setattr(Path, "mkdir", no_directory)
        assert machine.load(SECOND).exit_code != 0  # nothing is begun without the lock
        result = machine.run("revert")
    assert machine.held() == []
    if left == "a journal":
        assert result.exit_code == 4, result.output
        assert "is reverted, and the journal could not be told" in result.stderr
    else:
        assert result.exit_code == 0, result.output  # nothing that the journal says is untrue now
        assert "warning: the journal could not be told" in result.stderr


def test_one_that_stays_does_not_keep_the_others_in_the_kernel(
    loaded: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded.kernel.replace = False
    assert loaded.load_unproven(SECOND, "--beside").exit_code == 0
    unload = loaded.kernel.unload

    def stays(name: str) -> None:
        if name == SECOND:
            raise OSError(errno.EBUSY, "Device or resource busy")
        unload(name)

    with monkeypatch.context() as patch:
        patch.setattr(loaded.kernel, "unload", stays)
        result = loaded.run("revert", "--all", "--json")
    assert result.exit_code == 4
    outcome = json.loads(result.stdout)
    assert outcome["status"] == "left-unfinished"
    assert [one["name"] for one in outcome["reverted"]] == [FIRST]
    assert [(one["name"], one["code"]) for one in outcome["failed"]] == [(SECOND, "left-unfinished")]
    assert loaded.held() == []  # it is disabled all the same
    assert f"{SECOND} is disabled, but its module stays" in result.stderr
