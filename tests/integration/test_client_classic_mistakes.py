# SPDX-License-Identifier: GPL-2.0-or-later
"""What the first client did wrong cannot happen: a test for each mistake that the protocol file lists of it."""

from __future__ import annotations

import errno
import hashlib
import json
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from client_fakes import BUILD_ID, CONFIG, RELEASE, elf_module, fake_host, put
from client_rig import PATCH, Rig
from client_server import Server, serving

pytestmark = pytest.mark.integration

OTHER = PATCH.replace("+b", "+c")


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Rig]:
    """A host whose current directory and /tmp are empty, and must stay so."""
    host, kernel = fake_host(tmp_path, user=0)
    for name in ("cwd", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with serving(Server()) as server:
        rig = Rig(server, host, kernel, tmp_path)
        yield rig
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == []


def sent(rig: Rig, number: int = -1) -> dict[str, list[tuple[str | None, bytes]]]:
    """The parts of a request, by name."""
    found: dict[str, list[tuple[str | None, bytes]]] = {}
    posts = [seen for seen in rig.server.seen if seen.method == "POST"]
    for name, file, data in posts[number].parts():
        found.setdefault(name, []).append((file, data))
    return found


def test_a_module_that_lies_about_is_not_loaded_after_a_failed_build(rig: Rig) -> None:
    planted = plant(rig)
    rig.server.status = "failed"
    rig.server.report = {"status": "failed", "key": "ab" * 32, "exit_status": 6, "error": "unavailable", "message": "x"}
    result = rig.run()
    assert result.exit_code == 6
    assert rig.kernel.log == []
    assert planted.read_bytes() == elf_module() + b"planted"


def plant(rig: Rig) -> Path:
    planted = rig.tmp / "cwd/myfile.ko"
    planted.write_bytes(elf_module() + b"planted")
    put(rig.host.root, {"tmp/elivepatch/elivepatch_0/elivepatch.ko": planted.read_bytes()})
    return planted


def test_nothing_is_written_into_the_current_directory(rig: Rig) -> None:
    assert rig.run().exit_code == 0
    assert list((rig.tmp / "cwd").iterdir()) == []


@pytest.mark.parametrize("status", [201, 302, 403, 404, 500, 502])
def test_what_the_server_answers_is_looked_at(rig: Rig, status: int) -> None:
    rig.server.problem = (status, b"<html>a proxy's page</html>")
    result = rig.run()
    assert result.exit_code in {2, 6}
    assert rig.kernel.log == []
    assert "hint: " in result.stderr


def test_without_a_server_nothing_is_fetched_and_nothing_loaded(rig: Rig) -> None:
    plant(rig)
    result = rig.run("-u", "http://127.0.0.1:9")
    assert result.exit_code == 6
    assert "127.0.0.1:9" in result.stderr
    assert rig.kernel.log == []


def test_a_failed_load_is_said_and_not_taken_for_done(rig: Rig) -> None:
    rig.kernel.refuse = errno.ENOEXEC
    assert rig.run().exit_code == 4
    assert rig.steps()[-1] != "loaded"
    # the next request does not build on the patch that was not loaded
    rig.kernel.refuse = None
    (rig.tmp / "second.patch").write_text(OTHER)
    assert rig.run("-p", rig.tmp / "second.patch", "-u", rig.server.url, patch=False).exit_code == 0
    assert sent(rig)["patch"] == [("second.patch", OTHER.encode())]
    assert "base_patch" not in sent(rig)


def test_what_others_put_into_tmp_is_not_read(rig: Rig) -> None:
    for place in (rig.tmp / "tmp", rig.host.root / "tmp"):
        put(place, {"elivepatch/elivepatch_0/elivepatch.patch": OTHER})
        put(place, {"patches_cve/1.patch": OTHER, "kernel_cve/.git/config": "x"})
    assert rig.run().exit_code == 0
    assert [data for _, data in sent(rig)["patch"]] == [PATCH.encode()]
    for path in (rig.tmp / "tmp").iterdir():  # as it was put there, and nothing beside it
        assert path.name in {"elivepatch", "patches_cve", "kernel_cve"}
        for inner in sorted(path.rglob("*"), reverse=True):
            inner.rmdir() if inner.is_dir() else inner.unlink()
        path.rmdir()


def test_state_that_others_can_write_is_not_trusted(rig: Rig) -> None:
    rig.state.mkdir(mode=0o700)
    rig.state.chmod(0o777)
    result = rig.run()
    assert result.exit_code != 0
    assert str(rig.state) in result.stderr
    assert rig.kernel.log == []


def gentoo(rig: Rig) -> Path:
    """Make the host one with a Gentoo kernel; gives the directory of its users' patches."""
    package = "var/db/pkg/sys-kernel/gentoo-sources-6.12.117"
    put(
        rig.host.root,
        {
            f"{package}/INHERITED": "kernel-2",
            f"{package}/SLOT": "6.12.117",
            "etc/os-release": "ID=gentoo\n",
            f"usr/src/linux-{RELEASE}/Makefile": "",
        },
    )
    return rig.host.root / "etc/portage/patches/sys-kernel"


def test_patches_of_portage_are_found_as_portage_finds_them(rig: Rig) -> None:
    place = gentoo(rig)
    for release in ("6.12.117-gentoo",):
        put(rig.host.root, {"proc/sys/kernel/osrelease": release + "\n", f"boot/config-{release}": CONFIG})
    put(
        place,
        {
            "gentoo-sources/b.patch": PATCH,
            "gentoo-sources/a.diff": OTHER,
            "gentoo-sources/cancelled.patch": PATCH,
            "gentoo-sources/sub/directory.patch": PATCH,  # a directory inside does not hide the rest
            "gentoo-sources-6.12.117/cancelled.patch": "",
            "gentoo-sources-6.12.117-r0/c.patch": PATCH,
            "gentoo-sources:6.12.117/d.patch": PATCH,
        },
    )
    result = rig.run("--no-load", "--no-image")
    assert "b.patch (portage, sys-kernel/gentoo-sources-6.12.117)" in result.stderr
    names = [name for name, _ in sent(rig)["base_patch"]]
    assert names == ["a.diff", "b.patch", "c.patch", "d.patch"]


@pytest.mark.parametrize(("variable", "moved"), [("PORTAGE_CONFIGROOT", "etc"), ("ROOT", "var")])
def test_the_variables_of_portage_are_honoured(rig: Rig, variable: str, moved: str) -> None:
    place = gentoo(rig)
    release = "6.12.117-gentoo"
    put(rig.host.root, {"proc/sys/kernel/osrelease": release + "\n", f"boot/config-{release}": CONFIG})
    put(place, {"gentoo-sources/a.patch": PATCH})
    before = rig.run("--no-load", "--no-image")
    assert "base patch: a.patch" in before.stderr
    (rig.host.root / "elsewhere").mkdir()
    source = "etc/portage" if moved == "etc" else "var/db"
    (rig.host.root / "elsewhere" / source).parent.mkdir(parents=True)
    (rig.host.root / source).rename(rig.host.root / "elsewhere" / source)
    assert "base patch" not in rig.run("--no-load", "--no-image").stderr
    after = rig.run("--no-load", "--no-image", env={variable: "/elsewhere"})
    assert "base patch: a.patch" in after.stderr


def test_a_small_configuration_is_sent_whole(rig: Rig) -> None:
    assert len(CONFIG) < 8192
    assert rig.run().exit_code == 0
    assert sent(rig)["config"] == [("config", CONFIG)]


def test_an_earlier_patch_of_any_name_is_sent_with_the_next(rig: Rig) -> None:
    first = put(rig.tmp, {"first.diff": PATCH, "second": OTHER})
    assert rig.run("-p", first / "first.diff", "-u", rig.server.url, patch=False).exit_code == 0
    rig.server.module = elf_module({"name": "livepatch_two", "livepatch": "Y", "vermagic": f"{RELEASE} SMP "})
    rig.run("-p", first / "second", "-u", rig.server.url, patch=False)
    assert sent(rig)["patch"] == [("first.diff", PATCH.encode()), ("second", OTHER.encode())]


def test_the_version_is_the_hosts_own(rig: Rig) -> None:
    assert rig.run().exit_code == 0
    request = json.loads(sent(rig)["request"][0][1])
    assert (request["kernel"], request["build_id"]) == (RELEASE, BUILD_ID)
    assert rig.run("-a", "6.12.117", "--drop-earlier").exit_code == 0
    request = json.loads(sent(rig)["request"][0][1])
    assert (request["kernel"], request["build_id"]) == (RELEASE, BUILD_ID)


def test_clearing_the_record_fetches_and_loads_nothing(rig: Rig) -> None:
    result = rig.run("-l", patch=False)
    assert result.exit_code == 0
    assert "with caution" in result.stderr
    assert rig.server.seen == []
    assert list((rig.tmp / "cwd").iterdir()) == []
    assert {path.name for path in rig.state.iterdir()} == {"lock", "cves-cleared"}


def test_what_is_told_is_told_without_any_flag_and_without_colours(rig: Rig) -> None:
    result = rig.run(env={"NO_COLOR": "", "TERM": "xterm-256color"})
    assert "server: preparing" in result.stderr
    assert "\x1b" not in result.output


def test_a_file_of_settings_does_not_take_the_configuration_away(rig: Rig) -> None:
    file = rig.tmp / "elivepatch.conf"
    file.write_text(f"[Defaults]\nurl = {rig.server.url}\npatch = {rig.tmp / 'meminfo.patch'}\n")
    (rig.tmp / "meminfo.patch").write_text(PATCH)
    assert rig.run("-c", file, patch=False).exit_code == 0
    assert sent(rig)["config"] == [("config", CONFIG)]


def test_a_module_has_a_name_and_a_digest_of_its_own(rig: Rig) -> None:
    assert rig.run("--json").exit_code == 0
    stored = rig.journal()[-1]["module"]
    assert stored["name"] != "elivepatch_main"
    assert stored["sha256"] == hashlib.sha256(rig.server.module).hexdigest()
