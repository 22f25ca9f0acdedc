# SPDX-License-Identifier: GPL-2.0-or-later
"""What others could change or take away under the client: links, locks, certificates, devices in place of files."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import threading
from pathlib import Path

import pytest

from client_fakes import RELEASE
from client_machine import FIRST, SECOND, HostMachine
from elivepatch.client.address import trust
from elivepatch.client.host import Host
from elivepatch.client.journal import Journal
from elivepatch.client.settings import load_settings
from elivepatch.client.state import LockedError, StateDirectory, check_output, require_trusted
from elivepatch.errors import InvalidInputError, InvalidSettingError

STRANGER = 12345


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostMachine:
    return HostMachine(tmp_path, monkeypatch)


@pytest.fixture
def loaded(machine: HostMachine) -> HostMachine:
    assert machine.load(FIRST).exit_code == 0
    return machine


@pytest.fixture
def open_directory(tmp_path: Path) -> Path:
    """A directory like /tmp."""
    place = tmp_path / "open"
    place.mkdir()
    place.chmod(0o1777)
    return place


# -- links


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a path belong to a stranger, which only root could do in earnest."""
    lstat = Path.lstat

    def told(place: Path) -> os.stat_result:
        status = lstat(place)
        return os.stat_result((*status[:4], STRANGER, *status[5:10])) if place == path else status

    monkeypatch.setattr(Path, "lstat", told)


@pytest.mark.parametrize("below", ["", "sub"])
def test_a_link_that_belongs_to_somebody_else_is_not_trusted(
    tmp_path: Path, open_directory: Path, below: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real/sub").mkdir(parents=True)
    link = open_directory / "link"
    link.symlink_to(tmp_path / "real")
    require_trusted(link / below, os.geteuid())
    give_away(link, monkeypatch)
    with pytest.raises(InvalidSettingError, match=f"{link} belongs to user {STRANGER}"):
        require_trusted(link / below, os.geteuid())


def test_a_link_on_the_way_of_a_link_is_looked_at_too(
    tmp_path: Path, open_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (open_directory / "second").symlink_to(tmp_path / "real")
    (tmp_path / "first").symlink_to("open/second")
    require_trusted(tmp_path / "first", os.geteuid())
    give_away(open_directory / "second", monkeypatch)
    with pytest.raises(InvalidSettingError, match="second belongs to user"):
        require_trusted(tmp_path / "first", os.geteuid())


def test_a_link_in_a_directory_that_all_can_write_to_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "free").mkdir()
    (tmp_path / "free/link").symlink_to(tmp_path / "real")
    require_trusted(tmp_path / "free/link", os.geteuid())
    (tmp_path / "free").chmod(0o777)
    with pytest.raises(InvalidSettingError, match="free can be written to by others"):
        require_trusted(tmp_path / "free/link", os.geteuid())


def test_links_that_lead_in_a_circle_are_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(InvalidSettingError, match="cannot be looked at"):
        require_trusted(tmp_path / "one", os.geteuid())


def test_certificates_that_others_can_write_are_not_trusted(tmp_path: Path) -> None:
    certificates = tmp_path / "ca.pem"
    certificates.write_bytes(Path(_certificates()).read_bytes())
    trust(certificates)
    certificates.chmod(0o666)
    with pytest.raises(InvalidSettingError, match="can be written to by others"):
        trust(certificates)


def _certificates() -> str:
    import certifi

    return certifi.where()


def test_certificates_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ca.pem")
    with pytest.raises(InvalidSettingError, match="cannot be read: not a file"):
        trust(tmp_path / "ca.pem")


# -- what this user may not look at


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that only root may look into, for whoever runs the tests."""
    place = tmp_path / "closed"
    place.mkdir()
    (place / "file").write_text("")

    def guarded(name: str) -> None:
        method = getattr(Path, name)

        def told(path: Path, *arguments: object, **named: object) -> object:
            if path.is_relative_to(place) and path != place:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return method(path, *arguments, **named)

        monkeypatch.setattr(Path, name, told)

    for name in ("stat", "lstat", "open", "iterdir"):
        guarded(name)
    return place


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["status", "--prometheus", "FILE"], 2),
        (["facts", "-o", "FILE"], 2),
        (["-c", "FILE", "status"], 2),
        (["--no-load", "-o", "x.ko", "-p", "FIRST", "-k", "FILE"], 2),
        (["--no-load", "-o", "x.ko", "-p", "FIRST", "--base-patch", "FILE"], 2),
        (["overlay", "list", "FILE"], 4),
    ],
)
def test_what_may_not_be_looked_at_is_named(machine: HostMachine, closed: Path, words: list[str], status: int) -> None:
    place = {"FILE": str(closed / "file"), "FIRST": str(machine.tmp / f"{FIRST}.patch")}
    result = machine.run(*(place.get(word, word) for word in words))
    assert result.exit_code == status
    assert f"{closed / 'file'}" in result.stderr
    assert "Permission denied" in result.stderr


def test_a_sys_that_only_root_may_look_into(machine: HostMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    iterdir = Path.iterdir

    def told(path: Path) -> object:
        if path.name == "livepatch":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", told)
    result = machine.run("status")
    assert result.exit_code == 4
    assert "sys/kernel/livepatch may not be used: Permission denied" in result.stderr
    assert "sudo" in result.stderr


@pytest.mark.parametrize("kind", ["closed", "dangling"])
def test_settings_that_are_there_are_never_passed_over(tmp_path: Path, closed: Path, kind: str) -> None:
    default = closed / "file"
    if kind == "dangling":
        default = tmp_path / "client.toml"
        default.symlink_to(tmp_path / "nothing")
    with pytest.raises(InvalidSettingError, match="cannot be read"):
        load_settings(file=None, environment={}, flags={}, default_file=default)
    assert load_settings(file=None, environment={}, flags={}, default_file=tmp_path / "none").url


# -- outputs


@pytest.mark.parametrize("kind", ["fifo", "device", "link to a device", "link to a file"])
def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "device":
        place = Path("/dev/null")
    else:
        (tmp_path / "file").write_text("")
        place.symlink_to("/dev/null" if kind == "link to a device" else tmp_path / "file")
    with pytest.raises(InvalidInputError, match="cannot be written"):
        check_output(place)
    check_output(tmp_path / "new")


def test_metrics_do_not_take_the_place_of_a_pipe(machine: HostMachine) -> None:
    fifo = machine.tmp / "fifo"
    os.mkfifo(fifo)
    result = machine.run("status", "--prometheus", fifo)
    assert result.exit_code == 2
    assert stat.S_ISFIFO(fifo.lstat().st_mode)


# -- the lock


def test_a_lock_that_was_taken_away_while_it_was_waited_for_is_none(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state", os.geteuid())
    first = state.locked()
    first.__enter__()
    has_it, end = threading.Event(), threading.Event()

    def second() -> None:
        with state.locked(patience=10):
            has_it.set()
            end.wait(10)

    waiting = threading.Thread(target=second)
    waiting.start()
    end.wait(0.3)
    (state.path / "lock").unlink()  # 'uninstall' does that
    first.__exit__(None, None, None)
    try:
        assert has_it.wait(10)
        with pytest.raises(LockedError), state.locked(patience=0.1):
            pass
    finally:
        end.set()
        waiting.join()


def test_a_lock_that_nobody_holds_names_nobody(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state", os.geteuid())
    with state.locked():
        assert state.holder() == str(os.getpid())
    assert (state.path / "lock").read_bytes() == b""  # whoever had that number next could be sent a signal


# -- uninstall


def test_uninstall_removes_the_record_of_closed_cves_too(loaded: HostMachine) -> None:
    assert loaded.run("-l").exit_code == 0
    assert loaded.run("uninstall", "--yes").exit_code == 0
    assert not loaded.state.exists()


def test_uninstall_takes_no_journal_away_from_a_load_that_came_in_between(
    loaded: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another(path: Path, user: int) -> None:
        monkeypatch.setattr("elivepatch.client.uninstall.require_trusted", require_trusted)
        assert loaded.load(SECOND).exit_code == 0
        require_trusted(path, user)

    monkeypatch.setattr("elivepatch.client.uninstall.require_trusted", another)
    result = loaded.run("uninstall", "--yes")
    assert result.exit_code == 4
    assert f"{SECOND} was loaded meanwhile" in result.stderr
    assert loaded.agreed() == [SECOND]
    assert loaded.run("uninstall", "--yes").exit_code == 0
    assert not loaded.state.exists()


def test_uninstall_says_what_it_could_not_remove(loaded: HostMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.rmtree

    def rmtree(path: Path) -> None:
        if path.is_relative_to(loaded.state):
            raise OSError(errno.EROFS, "Read-only file system")
        real(path)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    result = loaded.run("uninstall", "--yes", "--json")
    assert result.exit_code == 4
    assert "Read-only file system" in json.loads(result.stdout)["error"]["message"]


def test_what_uninstall_would_do_needs_root_where_the_journal_does(
    loaded: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entries(_self: Journal) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    loaded.host = Host(loaded.host.root, loaded.host.calls, loaded.host.clock, 1000)
    monkeypatch.setattr(Journal, "entries", entries)
    result = loaded.run("uninstall")
    assert result.exit_code == 4
    assert "Run this with sudo" in result.stderr


# -- what lies in the state directory


def test_a_fifo_in_the_journal_keeps_nobody_waiting(loaded: HostMachine) -> None:
    os.mkfifo(loaded.state / "journal/00000000T000000Z-000000-00000000.json")
    result = loaded.run("status")
    assert result.exit_code == 7
    assert "00000000.json cannot be read" in result.stdout
    assert FIRST in result.stdout


def test_a_journal_that_is_no_directory_is_a_problem_and_no_crash(machine: HostMachine) -> None:
    machine.state.mkdir(mode=0o700)
    (machine.state / "journal").write_text("")
    result = machine.run("status")
    assert result.exit_code == 7
    assert "problem: " in result.stdout
    assert machine.load(FIRST).exit_code == 4
    assert machine.held() == []


def test_a_new_directory_is_on_the_disk_before_what_lies_in_it(
    machine: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    assert machine.load(FIRST).exit_code == 0
    state = machine.state
    for parent in (state.parent, state, state / "modules", state / "modules" / RELEASE):
        assert str(parent) in synced
    assert synced.index(str(state)) < synced.index(str(state / "journal"))
