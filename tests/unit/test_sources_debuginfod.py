# SPDX-License-Identifier: GPL-2.0-or-later
"""debuginfod servers that have it, that do not, that fail, and that give what was not asked for."""

from __future__ import annotations

import struct
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from elf_builder import ALLOC, EXEC, NOBITS, NOTE, Part, Sym, elf, note
from elivepatch.errors import (
    DownloadFailedError,
    InvalidInputError,
    InvalidSettingError,
    SourceRejectedError,
)
from elivepatch.progress import Progress
from elivepatch.sources import download
from elivepatch.sources.debuginfod import Debuginfod

RAW_ID = bytes(range(20))
BUILD_ID = RAW_ID.hex()


def vmlinux(
    build_id: bytes = RAW_ID, *, dwarf: bool = True, symbols: bool = True, code: bool = True, kind: int = 2
) -> bytes:
    parts = [
        Part(".text", b"\x90" * 64, ALLOC | EXEC, 1 if code else NOBITS, address=0x1000),
        Part(".notes", note(b"Xen\0", 18, b"1") + note(b"GNU\0", 3, build_id), ALLOC, NOTE),
        Part(".debug_info" if dwarf else ".comment", b"dwarf", 0),
    ]
    data = elf(parts, [Sym("start_kernel", value=0x1000)])
    if not symbols:
        data = data.replace(b".symtab\0", b".symbol\0")
    return data[:16] + struct.pack("<H", kind) + data[18:]


@contextmanager
def server(answers: Mapping[str, bytes | int]) -> Generator[tuple[str, list[str]]]:
    """A server that answers paths below /buildid/ID with content or a status, and notes what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.removeprefix(f"/buildid/{BUILD_ID}/")
            asked.append(path)
            answer = answers.get(path, 404)
            body = answer if isinstance(answer, bytes) else b"no"
            self.send_response(200 if isinstance(answer, bytes) else answer)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}", asked
        finally:
            listening.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "WAITS", (0.0, 0.0))


def test_an_image_is_found_once_and_kept(tmp_path: Path) -> None:
    with server({"debuginfo": vmlinux()}) as (url, asked):
        client = Debuginfod([f"{url}/"], tmp_path)
        found = client.vmlinux(BUILD_ID, Progress())
        assert found is not None
        assert found.path.read_bytes() == vmlinux()
        assert (found.build_id, found.server, found.dwarf, found.symbols) == (BUILD_ID, url, True, True)
        assert client.vmlinux(BUILD_ID, Progress()) == found
    assert asked == ["debuginfo"]


@pytest.mark.parametrize(("dwarf", "symbols"), [(True, False), (False, True)])
def test_dwarf_or_a_symbol_table_is_enough(tmp_path: Path, dwarf: bool, symbols: bool) -> None:
    with server({"debuginfo": vmlinux(dwarf=dwarf, symbols=symbols)}) as (url, _):
        found = Debuginfod([url], tmp_path).vmlinux(BUILD_ID, Progress())
    assert found is not None
    assert (found.dwarf, found.symbols) == (dwarf, symbols)


def test_no_server_has_it(tmp_path: Path) -> None:
    with server({}) as (one, asked), server({}) as (two, _):
        assert Debuginfod([one, two], tmp_path).vmlinux(BUILD_ID, Progress()) is None
        assert Debuginfod([one, two], tmp_path).section(BUILD_ID, ".BTF", Progress()) is None
    assert asked == ["debuginfo", "executable", "section/.BTF"]
    assert Debuginfod([], tmp_path).vmlinux(BUILD_ID, Progress()) is None


def test_the_next_server_is_asked(tmp_path: Path) -> None:
    with (
        server({}) as (none, _),
        server({"debuginfo": 500}) as (broken, _),
        server({"debuginfo": vmlinux(b"\xab" * 20)}) as (wrong, _),
        server({"debuginfo": vmlinux()}) as (good, _),
    ):
        found = Debuginfod([none, broken, wrong, good], tmp_path).vmlinux(BUILD_ID, Progress())
    assert found is not None
    assert found.server == good
    assert found.path.read_bytes() == vmlinux()


def test_what_was_stripped_off_is_no_image_and_the_executable_is_asked_for(tmp_path: Path) -> None:
    with server({"debuginfo": vmlinux(code=False), "executable": vmlinux(dwarf=False)}) as (url, asked):
        found = Debuginfod([url], tmp_path).vmlinux(BUILD_ID, Progress())
    assert found is not None
    assert (found.path.name, found.dwarf) == ("executable", False)
    assert asked == ["debuginfo", "executable"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<html>Sign in</html>", "is not an ELF file"),
        (vmlinux()[:-64], "cut off"),
        (vmlinux(b"\xab" * 20), "has the build ID " + "ab" * 20),
        (elf([Part(".text", b"\x90", ALLOC | EXEC)]), "has the build ID none"),
        (vmlinux(kind=3), "is not an image"),
        (vmlinux(code=False), "holds no code"),
        (vmlinux(dwarf=False, symbols=False), "neither"),
    ],
)
def test_what_was_not_asked_for_is_rejected_and_not_kept(tmp_path: Path, content: bytes, message: str) -> None:
    with server({"debuginfo": content}) as (url, _):
        with pytest.raises(SourceRejectedError, match=message) as caught:
            Debuginfod([url], tmp_path).vmlinux(BUILD_ID, Progress())
        assert url in caught.value.message
    assert not list(tmp_path.rglob("debuginfo"))


@pytest.mark.parametrize("status", [400, 403, 500, 503])
def test_a_server_that_fails_may_have_it(tmp_path: Path, status: int) -> None:
    with (
        server({}) as (none, _),
        server({"debuginfo": status}) as (broken, _),
        pytest.raises(DownloadFailedError, match=str(status)),
    ):
        Debuginfod([none, broken], tmp_path).vmlinux(BUILD_ID, Progress())


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with server({}) as (gone, _):
        pass
    with pytest.raises(DownloadFailedError, match=gone):
        Debuginfod([gone], tmp_path).vmlinux(BUILD_ID, Progress())


def test_a_section(tmp_path: Path) -> None:
    with server({"section/.BTF": b"types"}) as (url, _):
        assert Debuginfod([url], tmp_path).section(BUILD_ID, ".BTF", Progress()) == b"types"


@pytest.mark.parametrize("build_id", ["", "abc", "AB" * 20, "../../etc", "00" * 40, "0x" + "ab" * 20, "ab" * 20 + "\n"])
def test_what_is_no_build_id(tmp_path: Path, build_id: str) -> None:
    with pytest.raises(InvalidInputError):
        Debuginfod(["http://127.0.0.1:9"], tmp_path).vmlinux(build_id, Progress())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "../.text", "a/b", ".text\n", "a" * 65])
def test_what_is_no_section(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError):
        Debuginfod(["http://127.0.0.1:9"], tmp_path).section(BUILD_ID, name, Progress())


@pytest.mark.parametrize("address", ["debuginfod.example", "file:///srv", "http://", "http://host/a b"])
def test_what_is_no_server(tmp_path: Path, address: str) -> None:
    with pytest.raises(InvalidSettingError):
        Debuginfod([address], tmp_path)
