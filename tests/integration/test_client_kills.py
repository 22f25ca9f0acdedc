# SPDX-License-Identifier: GPL-2.0-or-later
"""The client killed, and its host cut off, at every single effect that it has on disk and kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from client_machine import FIRST, SECOND, HostMachine, KilledError

pytestmark = [pytest.mark.integration, pytest.mark.slow]

Work = Callable[[HostMachine], object]


def load(machine: HostMachine) -> None:
    machine.load(FIRST)


def second(machine: HostMachine) -> None:
    machine.load(SECOND, patches=(FIRST, SECOND))


def revert(machine: HostMachine) -> None:
    machine.run("revert", "--all")


def stuck(machine: HostMachine) -> None:
    machine.kernel.stuck = True
    machine.load(FIRST, "--timeout", "1")


def stuck_back(machine: HostMachine) -> None:
    machine.kernel.stuck_back = True
    machine.run("revert", "--all", "--timeout", "1")


def boot(machine: HostMachine) -> None:
    machine.run("boot", ELIVEPATCH_CRASH_GUARD="0")


def restarted(machine: HostMachine) -> None:
    machine.load(FIRST)
    machine.restart(orderly=True)


def nothing(_machine: HostMachine) -> None:
    pass


#: What is done before, and what is done when the client is killed.
WORKS: list[tuple[Work, Work]] = [
    (nothing, load),
    (nothing, stuck),
    (load, second),
    (load, revert),
    (load, stuck_back),
    (restarted, boot),
]
IDS = [work.__name__ for _, work in WORKS]


def killed(tmp: Path, monkeypatch: pytest.MonkeyPatch, before: Work, work: Work, at: int | None) -> HostMachine:
    """A host on which the work was done, up to the effect ``at``."""
    tmp.mkdir()
    machine = HostMachine(tmp, monkeypatch)
    before(machine)
    with monkeypatch.context() as patch:
        machine.monkeypatch = patch
        machine.kill_at = at
        machine.count_effects()
        with contextlib.suppress(KilledError):
            work(machine)
    machine.monkeypatch = monkeypatch
    machine.kernel.stuck = machine.kernel.stuck_back = False
    return machine


def all_moments(tmp: Path, monkeypatch: pytest.MonkeyPatch, before: Work, work: Work) -> range:
    whole = killed(tmp / "whole", monkeypatch, before, work, None)
    assert whole.effects > 10
    return range(1, whole.effects + 1)


def finished(machine: HostMachine) -> set[str]:
    """The livepatches whose last load had ended, as the journal says at this moment."""
    entries, problems = machine.journal.entries()
    assert problems == []
    found: set[str] = set()
    for entry in entries:
        names = ["loading", *(step.step for step in entry.steps)]
        if entry.module and "loaded" in names[len(names) - names[::-1].index("loading") :]:
            found.add(entry.module.name)
    return found


@pytest.mark.parametrize(("before", "work"), WORKS, ids=IDS)
def test_the_next_run_makes_good_what_a_killed_client_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: Work, work: Work
) -> None:
    for at in all_moments(tmp_path, monkeypatch, before, work):
        machine = killed(tmp_path / str(at), monkeypatch, before, work, at)
        result = machine.run("repair", ELIVEPATCH_CRASH_GUARD="0")
        assert result.exit_code in {0, 7}, f"killed at {at}: {result.output}"
        in_force = machine.agreed()
        assert len(in_force) <= 1
        assert machine.run("revert", "--all").exit_code == 0
        assert machine.agreed() == []
        assert not list(machine.host.root.glob("sys/module/livepatch_*")), f"killed at {at}"


@pytest.mark.parametrize(("before", "work"), WORKS, ids=IDS)
def test_after_a_power_cut_nothing_is_loaded_that_was_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: Work, work: Work
) -> None:
    for at in all_moments(tmp_path, monkeypatch, before, work):
        machine = killed(tmp_path / str(at), monkeypatch, before, work, at)
        may_be = finished(machine)
        machine.restart()
        machine.run("boot", ELIVEPATCH_CRASH_GUARD="0")
        in_force = machine.agreed()
        assert set(in_force) <= may_be, f"cut at {at}"
        assert len(in_force) <= 1


@pytest.mark.parametrize(("before", "work"), WORKS, ids=IDS)
def test_with_the_guard_a_power_cut_soon_after_a_load_loads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: Work, work: Work
) -> None:
    for at in all_moments(tmp_path, monkeypatch, before, work)[::3]:
        machine = killed(tmp_path / str(at), monkeypatch, before, work, at)
        stopped = any(entry.stopped is not None for entry in machine.journal.entries()[0])
        machine.restart()
        machine.run("boot")
        assert machine.agreed() == ([FIRST] if stopped else []), f"cut at {at}"
