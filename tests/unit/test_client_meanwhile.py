# SPDX-License-Identifier: GPL-2.0-or-later
"""What other programs, tasks and clocks of the host do meanwhile, and what the client makes of it."""

from __future__ import annotations

import configparser
import json
import os
import stat
from pathlib import Path

import pytest

from client_fakes import RELEASE, put
from client_machine import FIRST, SECOND, HostMachine
from elivepatch.client.classic import read_defaults
from elivepatch.client.history import boots_in_order
from elivepatch.client.host import call_table
from elivepatch.client.journal import Entry, Step
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


# -- other kernels, other versions


def test_info_is_about_the_load_on_this_kernel(machine: HostMachine) -> None:
    assert machine.load(FIRST).exit_code == 0
    entry = machine.entry(FIRST)
    earlier = tuple(step.model_copy(update={"boot_id": "another"}) for step in entry.steps)
    other_kernel = {"release": "6.1.0-other", "proof": "layout", "steps": earlier}
    for number, changes in enumerate((other_kernel, {"steps": entry.steps[:1]})):
        other = entry.model_copy(update={"id": f"other{number}", "number": entry.number + 1 + number, **changes})
        machine.journal.begin(other.model_copy(update={"patches": ()})).note()
    told = json.loads(machine.run("info", FIRST, "--json").stdout)
    assert [patch["name"] for patch in machine.status()["livepatches"]] == [FIRST]
    assert told["held"]["patches"] == [f"{FIRST}.patch"]
    assert told["held"]["proof"] == "exact"


@pytest.mark.parametrize(("field", "value"), [("format", 2), ("step", "paused")])
def test_a_journal_of_a_newer_version_is_told_as_that(machine: HostMachine, field: str, value: object) -> None:
    assert machine.load(FIRST).exit_code == 0
    (path,) = (machine.state / "journal").glob("*.json")
    data = json.loads(path.read_text())
    (data if field == "format" else data["steps"][-1])[field] = value
    path.write_text(json.dumps(data))
    status = machine.status()
    assert status["exit_status"] == 7
    assert "a newer elivepatch may have written it" in status["problems"][0]
    result = machine.run("uninstall", "--yes")
    assert result.exit_code == 4
    assert f"{FIRST} may be of this client" in result.stderr
    assert path.exists()
    assert machine.run("uninstall", "--yes", "--keep-loaded").exit_code == 0
    assert machine.held() == [FIRST]


# -- clocks


def test_the_history_is_in_order_whatever_the_clock_said(machine: HostMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1.8e9

    def uptime() -> float:
        machine.uptime += 0.25
        return machine.uptime

    monkeypatch.setattr("elivepatch.client.journal.uptime", uptime)
    monkeypatch.setattr("elivepatch.client.journal.time.time", lambda: clock + machine.uptime)
    assert machine.load(FIRST).exit_code == 0
    machine.restart(orderly=True)
    clock = 0.0  # a host without a battery
    assert machine.run("boot").exit_code == 0
    machine.uptime += 100
    clock = 1.9e9  # ... whose clock is set right by and by
    assert machine.load(SECOND, patches=(FIRST, SECOND)).exit_code == 0
    machine.uptime += 1
    clock = 1.7e9  # ... and put back
    assert machine.run("revert").exit_code == 0
    steps = json.loads(machine.run("history", "--json").stdout)["steps"]
    assert [(step["name"][10:], step["step"]) for step in steps] == [
        *(("first", step) for step in ("received", "loading", "loaded", "loading", "loaded")),
        *(("second", step) for step in ("received", "loading", "loaded")),
        ("first", "replaced"),
        *(("second", step) for step in ("reverting", "reverted")),
    ]


def booted(name: str, *boots: str) -> Entry:
    steps = tuple(Step(step="loading", time=5 - at, uptime=1, boot_id=boot) for at, boot in enumerate(boots))
    return Entry(id=name, release=RELEASE, steps=steps)


def test_boots_follow_each_other_as_the_journal_says() -> None:
    many = [str(number) for number in range(3000)]
    assert list(boots_in_order([booted("a", *many)])) == many
    assert list(boots_in_order([booted("a", "1", "2"), booted("b", "2", "3"), Entry(id="c", release=RELEASE)])) == [
        *"123"
    ]
    assert set(boots_in_order([booted("a", "1", "2"), booted("b", "2", "1")])) == {"1", "2"}  # not one after the other


# -- what surrounds the program


def test_metrics_can_be_read_whatever_the_umask(machine: HostMachine) -> None:
    before = os.umask(0o077)
    try:
        assert machine.run("status", "--prometheus", machine.tmp / "elivepatch.prom").exit_code == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((machine.tmp / "elivepatch.prom").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("machine_", "word", "table"),
    [
        ("x86_64", 8, "x86_64"),
        ("x86_64", 4, "i686"),
        ("aarch64", 8, "aarch64"),
        ("aarch64", 4, "arm"),
        ("armv7l", 4, "arm"),
        ("s390x", 4, "32-bit s390x"),
    ],
)
def test_a_small_program_on_a_large_kernel_has_calls_of_its_own(machine_: str, word: int, table: str) -> None:
    assert call_table(machine_, word) == table


def test_a_classic_file_whose_section_is_not_quite_that(tmp_path: Path) -> None:
    with pytest.raises(configparser.Error, match="Defaults"):
        read_defaults("[Defaults] # see [manual]\nurl = http://x\n")


def test_where_the_journal_lies_does_not_depend_on_where_somebody_stands(machine: HostMachine) -> None:
    result = machine.run("status", ELIVEPATCH_STATE_DIR="here")
    assert result.exit_code == 2
    assert "begins with /" in result.stderr
