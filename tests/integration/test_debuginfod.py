# SPDX-License-Identifier: GPL-2.0-or-later
"""Images by their build ID, from the debuginfod server of elfutils."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

from elivepatch import process
from elivepatch.build.prepared import PreparedKernel
from elivepatch.errors import DownloadFailedError
from elivepatch.kernel.elf import ElfImage
from elivepatch.kernel.layout import from_vmlinux
from elivepatch.kernel.units import compile_units
from elivepatch.progress import Progress
from elivepatch.sources.debuginfod import Debuginfod

pytestmark = pytest.mark.integration

#: Stands for a vmlinux: code, symbols, DWARF and a build ID.
ASSEMBLY = """\
.text
.globl _start
.type _start, @function
_start: nop
  hlt
.size _start, . - _start
"""


@dataclass(frozen=True)
class Running:
    """A server, and the build ID of the small image that it has."""

    url: str
    image: Path
    build_id: str


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("small")
    (work / "start.S").write_text(ASSEMBLY)
    process.run(["as", "--gdwarf-5", "-o", "start.o", "start.S"], cwd=work)
    process.run(["ld", "-static", "--build-id", "-o", "vmlinux", "start.o"], cwd=work)
    return work / "vmlinux"


@pytest.fixture(scope="module")
def running(small: Path, kernel: PreparedKernel, tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    """debuginfod on a directory with the small image and that of a real kernel, which has no DWARF any more."""
    work = tmp_path_factory.mktemp("debuginfod")
    indexed = work / "indexed"
    indexed.mkdir()
    (indexed / "vmlinux-small").write_bytes(small.read_bytes())
    process.run(["cp", "--sparse=always", kernel.vmlinux, indexed / "vmlinux-real"])
    with ElfImage(small) as image:
        build_id = image.build_id()
    assert build_id is not None
    port = free_port()
    process.find_program("debuginfod", hint="Install debuginfod.")
    argv = ["debuginfod", "-v", f"--port={port}", "--database=:memory:", "--scan-file-dir", indexed]
    url = f"http://127.0.0.1:{port}"
    with process.started(argv, log=work / "log", cwd=work, env={"HOME": str(work)}) as server:
        for wanted in (f"{build_id}/debuginfo", f"{kernel.build_id}/executable"):
            deadline = time.monotonic() + 120
            while not has(f"{url}/buildid/{wanted}"):
                assert server.poll() is None, (work / "log").read_text()
                assert time.monotonic() < deadline, (work / "log").read_text()
                time.sleep(0.2)
        yield Running(url, small, build_id)


def has(url: str) -> bool:
    """Whether it answers; the content is not fetched (it takes GET only)."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=60) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except OSError:
        return False


def test_an_image_with_dwarf(running: Running, tmp_path: Path) -> None:
    found = Debuginfod([running.url], tmp_path).vmlinux(running.build_id, Progress())
    assert found is not None
    assert found.path.read_bytes() == running.image.read_bytes()
    assert (found.dwarf, found.symbols) == (True, True)
    assert compile_units(found.path) == ["start.S"]


def test_the_image_of_a_real_kernel(running: Running, kernel: PreparedKernel, tmp_path: Path) -> None:
    found = Debuginfod([running.url], tmp_path).vmlinux(kernel.build_id, Progress())
    assert found is not None
    assert found.symbols
    assert found.path.stat().st_size == kernel.vmlinux.stat().st_size
    assert from_vmlinux(found.path) == from_vmlinux(kernel.vmlinux)


def test_one_section_of_it(running: Running, tmp_path: Path) -> None:
    with ElfImage(running.image) as image:
        expected = image.data_of(".text")
    assert Debuginfod([running.url], tmp_path).section(running.build_id, ".text", Progress()) == expected


def test_what_it_does_not_have(running: Running, tmp_path: Path) -> None:
    client = Debuginfod([running.url], tmp_path)
    assert client.vmlinux("ab" * 20, Progress()) is None
    assert client.section(running.build_id, ".nothing", Progress()) is None


def test_a_server_that_is_gone_is_told(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(DownloadFailedError, match=url):
        Debuginfod([url], tmp_path).vmlinux("ab" * 20, Progress())
