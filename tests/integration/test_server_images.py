# SPDX-License-Identifier: GPL-2.0-or-later
"""Images of hosts over HTTP: sent once, kept under their digest, and refused where they are not what they should be."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import lzma
import struct
from collections.abc import Generator
from pathlib import Path

import httpx2
import pytest
from server_support import BASE, ServerProcess, get, patch, serving

from elf_builder import ALLOC, EXEC, FILE, NOTE, Part, Sym, elf, note
from elivepatch.kernel.archive import write_end, write_member

pytestmark = pytest.mark.integration

RELEASE = "6.12.60-own"
BUILD_ID = bytes(range(20))


def vmlinux() -> bytes:
    parts = [
        Part(".text", b"\x90" * 4096, ALLOC | EXEC, address=0xFFFFFFFF81000000),
        Part(".notes", note(b"GNU\0", 3, BUILD_ID), ALLOC, NOTE, address=0xFFFFFFFF81001000),
    ]
    symbols = [Sym("main.c", FILE, section=0xFFF1), Sym("start_kernel", value=0xFFFFFFFF81000000, size=16)]
    data = elf(parts, symbols)
    return data[:16] + struct.pack("<H", 2) + data[18:]  # e_type is ET_EXEC


def archive(note_: str = "") -> bytes:
    facts = {
        "format": 1,
        "release": RELEASE,
        "build_id": BUILD_ID.hex(),
        "version": f"Linux version {RELEASE} (me@here{note_}) (gcc) #1 now",
        "build_directory": "/usr/src/linux",
        "source_directory": "/usr/src/linux",
    }
    members = {".config": b"CONFIG_LIVEPATCH=y\n", "facts.json": json.dumps(facts).encode(), "vmlinux": vmlinux()}
    out = io.BytesIO()
    for name, data in members.items():
        write_member(out.write, name, len(data), [data])
    write_end(out.write)
    return lzma.compress(out.getvalue(), preset=1)


@pytest.fixture
def server(tmp_path: Path) -> Generator[ServerProcess]:
    with serving(tmp_path / "data", cache=str(tmp_path / "cache")) as running:
        yield running


def put(server: ServerProcess, data: bytes, digest: str | None = None) -> httpx2.Response:
    return httpx2.put(f"{server.url}/images/{digest or hashlib.sha256(data).hexdigest()}", content=data, timeout=30)


def ask(server: ServerProcess, image: str) -> httpx2.Response:
    request = json.dumps({"kernel": "kernel.org:6.12.60", "image": image})
    files = {"request": (None, request, "application/json"), "patch": ("a.patch", patch("image"))}
    return httpx2.post(f"{server.url}/builds", files=files, timeout=30)


def test_an_image_is_sent_once_and_can_be_named(server: ServerProcess) -> None:
    data = archive()
    digest = hashlib.sha256(data).hexdigest()
    assert get(server, f"/images/{digest}").status_code == 404
    missing = ask(server, digest)
    assert (missing.status_code, missing.json()["code"]) == (404, "not-found")
    assert f"images/{digest}" in missing.json()["hint"]
    assert put(server, data).status_code == 204
    assert get(server, f"/images/{digest}").status_code == 204
    assert put(server, data).status_code == 204, "sent again, it is there"
    assert ask(server, digest).status_code == 202


@pytest.mark.parametrize("wrong", ["digest", "cut", "not an archive", "empty"])
def test_what_is_no_image_leaves_nothing(server: ServerProcess, tmp_path: Path, wrong: str) -> None:
    good = archive()
    data = {"digest": good, "cut": good[:-20], "not an archive": b"x" * 1000, "empty": b""}[wrong]
    answer = put(server, data, "0" * 64 if wrong == "digest" else None)
    assert answer.status_code == 422
    assert answer.json()["detail"]
    assert answer.json()["hint"]
    assert [path for path in (tmp_path / "cache/images").glob("*") if path.is_dir()] == []
    assert not list((server.data / "incoming").glob("*"))


def test_an_address_that_is_no_digest(server: ServerProcess) -> None:
    for address in ("ABC", "../x", "0" * 63, "0" * 65):
        assert put(server, b"x", address).status_code in {404, 405}
        assert get(server, f"/images/{address}").status_code in {404, 405}


def test_an_image_that_is_too_large_is_refused_before_it_arrives(server: ServerProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest("PUT", f"{BASE}/images/{'0' * 64}")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders(b"x")
    assert connection.getresponse().status == 413
    connection.close()
