# SPDX-License-Identifier: GPL-2.0-or-later
"""Reverting, looking, clearing up: the commands for a host that has livepatches."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import pytest

from client_fakes import RELEASE, put
from client_machine import FIRST, SECOND, HostMachine
from elivepatch.client.host import Host
from elivepatch.client.metrics import metrics
from elivepatch.client.state import StateDirectory
from elivepatch.client.status import host_status


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostMachine:
    return HostMachine(tmp_path, monkeypatch)


@pytest.fixture
def loaded(machine: HostMachine) -> HostMachine:
    assert machine.load(FIRST).exit_code == 0
    return machine


# -- revert


def test_the_only_one_needs_no_name(loaded: HostMachine) -> None:
    result = loaded.run("revert")
    assert result.exit_code == 0, result.output
    assert f"{FIRST} is reverted and unloaded" in result.stdout
    assert loaded.agreed() == []
    result = loaded.run("revert")
    assert result.exit_code == 4
    assert "There is no livepatch in this kernel" in result.stderr


def test_of_several_one_is_named_or_all_are_meant(loaded: HostMachine) -> None:
    loaded.kernel.add("foreign", moved=True)
    result = loaded.run("revert")
    assert result.exit_code == 2
    assert f"The kernel holds foreign, {FIRST}." in result.stderr
    assert loaded.run("revert", FIRST, "--all").exit_code == 2
    result = loaded.run("revert", "--all", "--json")
    assert [one["name"] for one in json.loads(result.stdout)["reverted"]] == [FIRST, "foreign"]
    assert loaded.held() == []
    assert "nothing to revert" in loaded.run("revert", "--all").stdout


def test_a_transition_that_nobody_waits_for_is_turned_round(machine: HostMachine) -> None:
    machine.kernel.stuck = True
    machine.kernel.add("foreign")
    assert machine.run("status").exit_code == 8
    assert machine.run("revert", "foreign").exit_code == 0
    assert machine.held() == []


def test_a_load_under_way_is_told_to_undo_itself(loaded: HostMachine) -> None:
    entry = loaded.entry(FIRST)
    loaded.journal.begin(entry.model_copy(update={"steps": entry.steps[:2]})).note()
    told: list[tuple[int, int]] = []
    lock = StateDirectory(loaded.state, 0).locked()

    def interrupted(pid: int, number: int) -> None:
        told.append((pid, number))
        loaded.kernel.vanish(FIRST)
        loaded.journal.begin(loaded.entry(FIRST)).step("undone", boot_id=entry.steps[-1].boot_id)
        lock.__exit__(None, None, None)

    loaded.host = Host(loaded.host.root, loaded.host.calls, loaded.host.clock, 0, interrupted)
    lock.__enter__()
    assert loaded.run("status").exit_code == 8
    assert loaded.run("revert", "other").exit_code == 4
    assert told == []
    result = loaded.run("revert", FIRST)
    assert result.exit_code == 0, result.output
    assert told == [(os.getpid(), signal.SIGTERM)]
    assert "the load that was under way was undone" in result.stdout


def test_what_waits_for_the_next_boot_can_be_given_up(loaded: HostMachine) -> None:
    loaded.restart()
    loaded.run("boot")
    result = loaded.run("revert", FIRST)
    assert result.exit_code == 0, result.output
    assert "will not be loaded at boot" in result.stdout
    assert loaded.run("status").exit_code == 0
    assert loaded.run("allow", FIRST).exit_code == 4
    assert loaded.run("allow", "nobody").exit_code == 2


def test_a_forced_one_is_reverted_although_its_module_stays(machine: HostMachine) -> None:
    machine.kernel.stuck = True
    assert machine.load(FIRST, "--force").exit_code == 0
    machine.kernel.busy = 10_000
    result = machine.run("revert")
    assert result.exit_code == 0, result.output
    assert "its module stays until the next boot" in result.stdout


# -- looking


def test_history_tells_every_step(loaded: HostMachine) -> None:
    loaded.run("revert")
    lines = loaded.run("history").stdout.splitlines()
    assert [line.split()[2] for line in lines] == ["received", "loading", "loaded", "reverting", "reverted"]
    assert loaded.run("history", SECOND).stdout == "nothing has happened yet\n"
    data = json.loads(loaded.run("history", FIRST, "--json").stdout)
    assert data["steps"][0]["patches"] == [f"{FIRST}.patch"]


def test_info_knows_a_livepatch_by_name_and_by_file(loaded: HostMachine) -> None:
    by_name = json.loads(loaded.run("info", FIRST, "--json").stdout)
    assert by_name["intact"] is True
    assert by_name["held"]["enabled"] is True
    assert by_name["fields"]["livepatch"] == "Y"
    by_file = json.loads(loaded.run("info", str(loaded.tmp / f"{FIRST}.ko"), "--json").stdout)
    assert [entry["id"] for entry in by_file["entries"]] == [entry["id"] for entry in by_name["entries"]]
    (loaded.state / "modules" / RELEASE / f"{FIRST}.ko").write_bytes(b"other")
    assert "is not the one that was checked" in loaded.run("info", FIRST).stdout
    assert "not the one" not in loaded.run("info", str(loaded.tmp / f"{SECOND}.ko")).stdout
    for name in ("nobody", "../../etc/passwd", str(loaded.tmp / f"{FIRST}.patch")):
        assert loaded.run("info", name).exit_code in {2, 4}


def test_status_names_the_cves_and_ends_for_monitoring(loaded: HostMachine) -> None:
    result = loaded.run("status")
    assert result.exit_code == 0
    assert "for CVE-2026-12345" in result.stdout
    loaded.kernel.add("foreign", moved=True)
    assert loaded.run("status").exit_code == 7


def test_metrics_are_written_whole_and_readable_by_all(loaded: HostMachine) -> None:
    path = loaded.tmp / "elivepatch.prom"
    path.write_text("old")
    assert loaded.run("status", "--prometheus", path).exit_code == 0
    text = path.read_text()
    assert "elivepatch_status{" in text
    assert f'elivepatch_livepatch_enabled{{name="{FIRST}",proof="exact",cves="CVE-2026-12345"}} 1\n' in text
    assert path.stat().st_mode & 0o777 == 0o644
    assert loaded.run("status", "--prometheus", loaded.tmp / "none/x").exit_code == 2


def test_a_label_cannot_end_early(loaded: HostMachine) -> None:
    status = host_status(loaded.host, loaded.state)
    odd = status.model_copy(update={"release": 'a"b\\c\nd'})
    assert r'elivepatch_status{release="a\"b\\c\nd",build_id=' in "\n".join(metrics(odd, 1.0))


# -- trouble with the disk


@pytest.mark.parametrize("nth", range(1, 12))
def test_a_full_disk_is_told_and_leaves_no_half_of_anything(
    machine: HostMachine, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    fsync, seen = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal seen
        seen += 1
        if seen >= nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = machine.load(FIRST)
    if seen < nth:
        assert result.exit_code == 0
        return
    assert result.exit_code in {1, 4}, result.output
    assert "No space is left" in result.stderr
    assert "hint: " in result.stderr
    in_force = "is in force, and the journal could not be told" in result.stderr
    assert machine.held() == ([FIRST] if in_force else [])
    assert machine.run("repair").exit_code == 0
    assert machine.agreed() == ([FIRST] if in_force else [])


def test_a_full_disk_does_not_keep_a_load_from_being_undone(
    machine: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.kernel.stuck = True
    load = machine.kernel.load

    def full(_descriptor: int, parameters: str = "") -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def load_and_fill(descriptor: int, parameters: str = "") -> None:
        load(descriptor)
        patch.setattr(os, "fsync", full)

    machine.kernel.load = load_and_fill
    with monkeypatch.context() as patch:
        result = machine.load(FIRST)
    assert result.exit_code == 4
    assert "did not finish within 20 s" in result.stderr
    assert "the journal could not be written" in result.stderr
    assert machine.held() == []
    assert machine.run("repair").exit_code == 0
    assert machine.steps(FIRST)[-1] == "undone"


def test_a_file_system_that_is_read_only_loads_nothing(loaded: HostMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded.restart(orderly=True)
    real = os.open

    def read_only(path: str | Path, flags: int, *more: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(loaded.state)):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", read_only)
    for words in (["boot"], ["mark", "alive"], ["allow", FIRST], ["revert", FIRST]):
        result = loaded.run(*words)
        assert result.exit_code == 4
        assert "Read-only file system" in result.stderr
    assert loaded.load(SECOND).exit_code == 4
    assert loaded.run("status").exit_code == 7
    assert loaded.held() == []


# -- uninstall


def test_uninstall_reverts_and_removes_what_is_ours(loaded: HostMachine) -> None:
    loaded.kernel.add("foreign", moved=True)
    result = loaded.run("uninstall")
    assert result.exit_code == 2
    assert f"{FIRST}: would be reverted" in result.stderr
    assert loaded.held() == ["foreign", FIRST]
    (loaded.state / "mine.txt").write_text("not the client's")
    result = loaded.run("uninstall", "--yes", "--json")
    assert json.loads(result.stdout)["reverted"] == [FIRST]
    assert loaded.held() == ["foreign"]
    assert [path.name for path in loaded.state.iterdir()] == ["mine.txt"]
    (loaded.state / "mine.txt").unlink()
    assert loaded.run("uninstall", "--yes").exit_code == 0
    assert not loaded.state.exists()


def test_uninstall_removes_nothing_where_a_livepatch_stays(loaded: HostMachine) -> None:
    loaded.kernel.stuck_back = True
    assert loaded.run("uninstall", "--yes").exit_code == 4
    assert loaded.journal.entries()[0]
    assert loaded.run("uninstall", "--yes", "--keep-loaded").exit_code == 0
    assert loaded.held() == [FIRST]
    assert not loaded.state.exists()


def test_whoever_is_not_root_changes_nothing(loaded: HostMachine) -> None:
    loaded.host = Host(loaded.host.root, loaded.host.calls, loaded.host.clock, 1000)
    for words in (["boot"], ["mark", "alive"], ["allow", FIRST], ["revert"], ["repair"], ["uninstall", "--yes"]):
        result = loaded.run(*words)
        assert result.exit_code in {2, 4}, words
    put(loaded.host.root, {})
    assert loaded.held() == [FIRST]
