# SPDX-License-Identifier: GPL-2.0-or-later
"""``revert --dry-run``: it says what a revert then does, and changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from client_machine import FIRST, SECOND, HostMachine
from elivepatch.client.host import Host
from elivepatch.client.state import StateDirectory


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostMachine:
    return HostMachine(tmp_path, monkeypatch)


def everything(machine: HostMachine) -> dict[str, tuple[int, bytes]]:
    """All files of host and state, with their times."""
    return {
        str(path): (path.lstat().st_mtime_ns, path.read_bytes()) for path in machine.tmp.rglob("*") if path.is_file()
    }


def told(machine: HostMachine, *arguments: str, status: int = 0) -> dict[str, Any]:
    before = everything(machine)
    result = machine.run("revert", "--dry-run", "--json", *arguments)
    assert result.exit_code == status, result.output
    assert everything(machine) == before
    assert machine.run("revert", "--dry-run", *arguments).exit_code == status
    assert everything(machine) == before
    data: dict[str, Any] = json.loads(result.stdout)
    return data


def test_what_is_in_force(machine: HostMachine) -> None:
    machine.load(FIRST)
    machine.load(SECOND, patches=(FIRST, SECOND))
    data = told(machine)
    (would,) = data["would"]
    assert data["status"] == "dry-run"
    assert (would["name"], would["state"], would["stays"]) == (SECOND, "in-force", False)
    assert would["patches"] == [f"{FIRST}.patch", f"{SECOND}.patch"]
    assert would["replaced"] == [FIRST]
    assert would["functions"]
    lines = machine.run("revert", "--dry-run").stdout.splitlines()
    assert lines[0] == f"{SECOND} would be disabled and unloaded: the original code comes back"
    assert lines[-1] == "dry run: nothing was changed"
    assert told(machine, FIRST)["would"][0]["state"] == "replaced"
    done = json.loads(machine.run("revert", "--json").stdout)
    assert (done["name"], done["patches"], done["replaced"]) == (would["name"], would["patches"], would["replaced"])


def test_all_in_the_order_in_which_they_would_go(machine: HostMachine) -> None:
    assert told(machine, "--all")["would"] == []
    machine.load(FIRST)
    machine.kernel.add("foreign", moved=True)
    assert [one["name"] for one in told(machine, "--all")["would"]] == [FIRST, "foreign"]
    done = json.loads(machine.run("revert", "--all", "--json").stdout)
    assert [one["name"] for one in done["reverted"]] == [FIRST, "foreign"]


def test_what_nobody_waits_for_and_what_waits_for_the_next_boot(machine: HostMachine) -> None:
    machine.kernel.stuck = True
    machine.kernel.add("foreign")
    assert told(machine)["would"][0]["state"] == "in-transition"
    machine.kernel.vanish("foreign")
    machine.kernel.stuck = False
    machine.load(FIRST)
    machine.restart(orderly=True)
    assert told(machine, FIRST)["would"][0]["state"] == "waiting"
    machine.run("boot")
    machine.kernel.vanish(FIRST)
    assert told(machine, FIRST)["would"][0]["state"] == "waiting"
    assert "will not be loaded at boot" in machine.run("revert", FIRST).stdout


def test_what_would_be_made_good_first(machine: HostMachine) -> None:
    machine.load(FIRST)
    entry = machine.entry(FIRST)
    machine.journal.begin(entry.model_copy(update={"steps": entry.steps[:2]})).note()
    data = told(machine, FIRST)
    assert data["first"] == [
        f"{FIRST} would be loaded: the client was interrupted; the kernel has the livepatch in force"
    ]
    assert data["would"][0]["state"] == "in-force"


def test_another_client_at_work(machine: HostMachine) -> None:
    machine.load(FIRST)
    entry = machine.entry(FIRST)
    machine.journal.begin(entry.model_copy(update={"steps": entry.steps[:2]})).note()
    with StateDirectory(machine.state, 0).locked():
        assert told(machine, FIRST)["would"] == [
            {"name": FIRST, "state": "being-loaded", "functions": [], "patches": [], "replaced": [], "stays": False}
        ]
        told(machine, "other", status=4)


def test_a_forced_one(machine: HostMachine) -> None:
    machine.kernel.stuck = True
    assert machine.load(FIRST, "--force").exit_code == 0
    assert told(machine)["would"][0]["stays"] is True


@pytest.mark.parametrize(("arguments", "status"), [((), 4), (("nobody",), 4), (("../x",), 2), (("x", "--all"), 2)])
def test_it_stops_where_a_revert_stops(machine: HostMachine, arguments: tuple[str, ...], status: int) -> None:
    machine.state.mkdir()
    for dry in ((), ("--dry-run",)):
        result = machine.run("revert", *dry, *arguments)
        assert result.exit_code == status, result.output
    machine.host = Host(machine.host.root, machine.host.calls, machine.host.clock, 1000)
    assert "needs root" in machine.run("revert", "--dry-run").stderr


def test_a_host_on_which_nothing_was_done_gets_no_state_directory(machine: HostMachine) -> None:
    machine.kernel.add("foreign", moved=True)
    assert told(machine)["would"][0]["name"] == "foreign"
    assert not machine.state.exists()
