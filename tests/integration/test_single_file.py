# SPDX-License-Identifier: GPL-2.0-or-later
"""The client as a single file, on clean hosts that have Debian's python3 and nothing else of what it needs."""

from __future__ import annotations

import json
import shutil
import stat
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import single_file

from clean_host import CleanHost, clean_host
from client_fakes import NAME, RELEASE, elf_module
from client_rig import PATCH
from client_server import Server, serving
from elivepatch import process
from elivepatch.progress import Progress
from elivepatch.version import installed_version
from elivepatch.workshop import Workshop

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

PROGRAM = "/usr/local/sbin/elivepatch"


@pytest.fixture(scope="module")
def made(workshop: Workshop, progress: Progress, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("single-file")
    return single_file.make_single_file(output, workshop.cache / "roots", workshop.mirror, progress)


@pytest.fixture(params=list(single_file.SUITES))
def host(
    request: pytest.FixtureRequest, made: Path, workshop: Workshop, progress: Progress, tmp_path: Path
) -> Iterator[CleanHost]:
    with clean_host(request.param, ["python3"], tmp_path, workshop, progress, name="bare") as bare:
        place = bare.root / PROGRAM.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made, place)
        yield bare


def test_it_runs_with_nothing_but_python_and_leaves_nothing_behind(host: CleanHost) -> None:
    before = host.files()
    assert host.run(PROGRAM, "--version") == f"elivepatch {installed_version()}\n"
    assert "Exit status" in host.run(PROGRAM, "--help")
    status = host.completed(PROGRAM, "status", "--json")
    assert status.returncode == 0, status.stderr
    assert json.loads(status.stdout)["release"] == process.run(["uname", "-r"]).stdout.strip()
    boot = host.completed(PROGRAM, "boot")
    assert (boot.returncode, "nothing is to be loaded" in boot.stdout) == (0, True)
    assert "_elivepatch" in host.run(PROGRAM, "completion", "bash")
    assert host.files() == before


def test_a_request_on_a_host_gets_its_module(host: CleanHost) -> None:
    (host.root / "root/fix.patch").write_text(PATCH)
    with serving(Server(elf_module())) as server:
        words = ["-p", "/root/fix.patch", "-a", RELEASE, "-u", server.url, "-o", "/root/out.ko", "--json"]
        done = host.completed(PROGRAM, *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["module"]["name"] == NAME
    assert (host.root / "root/out.ko").read_bytes() == server.module
    (refused,) = [json.loads(host.completed(PROGRAM, *words).stdout)]
    assert refused["exit_status"] == 6  # the server is gone: what it says has come through all of the HTTP client


def test_overlays_are_read(host: CleanHost) -> None:
    host.run(PROGRAM, "overlay", "init", "/root/overlay", "--title", "Ours")
    done = host.completed(PROGRAM, "overlay", "lint", "/root/overlay", "--json")
    assert done.returncode == 0, done.stdout + done.stderr


def test_another_python_is_told_what_it_needs(made: Path, tmp_path: Path) -> None:
    changed = tmp_path / "elivepatch.pyz"
    tag = f"py{sys.version_info[0]}{sys.version_info[1]}"
    with zipfile.ZipFile(made) as archive, zipfile.ZipFile(changed, "w") as copy:
        for member in archive.infolist():
            if not member.filename.startswith(f"{tag}/"):
                copy.writestr(member, archive.read(member))
    done = process.run([sys.executable, "-I", changed, "--version"], check=False)
    assert done.returncode == 6
    assert "holds nothing for this Python" in done.stderr
    assert "3.11, 3.12, 3.13 or 3.14" in done.stderr


def test_a_version_without_byte_code_runs_from_source(made: Path, tmp_path: Path) -> None:
    """As 3.12 and 3.14 do, for which there is no interpreter here."""
    changed = tmp_path / "elivepatch.pyz"
    with zipfile.ZipFile(made) as archive, zipfile.ZipFile(changed, "w") as copy:
        for member in archive.infolist():
            if not member.filename.endswith(".pyc"):
                copy.writestr(member, archive.read(member))
    done = process.run([sys.executable, "-I", changed, "status"], check=False)
    assert done.stdout.startswith("kernel "), done.stderr


def test_what_is_in_it(made: Path) -> None:
    assert stat.S_IMODE(made.stat().st_mode) == 0o755
    with zipfile.ZipFile(made) as archive:
        names = archive.namelist()
    for python in single_file.PYTHONS:
        tag = "py" + python.replace(".", "")
        suffix = f"cpython-{tag[2:]}-x86_64-linux-gnu.so"
        assert [name for name in names if name.startswith(tag) and name.endswith(".so")] == [
            f"{tag}/pydantic_core/_pydantic_core.{suffix}"
        ]
    assert not [name for name in names if "/server/" in name or "pygments" in name]
    unit = (made.parent / "single-file/systemd/elivepatch.service").read_text()
    assert f"ExecStart={PROGRAM} boot\n" in unit
    assert (
        f"exec {PROGRAM} mark shutdown" in (made.parent / "single-file/systemd/elivepatch-shutdown.service").read_text()
    )
    assert f":-{PROGRAM}}}" in (made.parent / "single-file/openrc/elivepatch").read_text()
