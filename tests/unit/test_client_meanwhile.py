# SPDX-License-Identifier: GPL-2.0-or-later
"""What other programs, tasks and clocks of the host do meanwhile, and what the client makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from client_fakes import put
from client_machine import FIRST, SECOND, HostMachine
from elivepatch.client.tasks import tasks_behind


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostMachine:
    return HostMachine(tmp_path, monkeypatch)


# -- tasks


def test_a_task_may_call_itself_anything(tmp_path: Path) -> None:
    task = "proc/7/task/7"
    put(tmp_path, {f"{task}/patch_state": "0", f"{task}/comm": b"a\xff\nit is \x1b[1mover\n"})
    assert [str(found) for found in tasks_behind(tmp_path, patching=True)] == ["7 (a\ufffd\ufffdit is \ufffd[1mover)"]


def test_what_a_task_calls_itself_keeps_no_load_from_being_undone(machine: HostMachine) -> None:
    machine.kernel.stuck = True
    machine.kernel.comm = b"\xff\xfe\n"
    result = machine.load(FIRST)
    assert result.exit_code == 4
    assert "did not finish within 20 s" in result.stderr
    assert "\ufffd" in result.stderr
    assert machine.held() == []


# -- other tools


def test_one_that_somebody_took_out_after_the_next_was_undone_is_missed(machine: HostMachine) -> None:
    assert machine.load(FIRST).exit_code == 0
    machine.kernel.stuck = True
    assert machine.load(SECOND, patches=(FIRST, SECOND)).exit_code == 4
    machine.kernel.vanish(FIRST)  # kpatch unload
    status = machine.status()
    assert status["exit_status"] == 7
    assert "the kernel does not hold it" in status["disagreements"][0]
    assert machine.run("repair").exit_code == 7
    assert machine.steps(FIRST)[-1] == "loaded"
    machine.restart(orderly=True)
    machine.kernel.stuck = False
    assert machine.run("boot").exit_code == 0
    assert machine.held() == [FIRST]


def test_one_that_was_loaded_again_after_it_had_been_replaced_is_missed(machine: HostMachine) -> None:
    for name in (FIRST, SECOND):
        assert machine.load(name, patches=(FIRST, SECOND)).exit_code == 0
    assert machine.run("revert").exit_code == 0
    assert machine.load(FIRST).exit_code == 0
    machine.kernel.vanish(FIRST)
    status = machine.status()
    assert status["exit_status"] == 7
    assert machine.run("repair").exit_code == 7
    assert machine.steps(FIRST)[-1] == "loaded"
