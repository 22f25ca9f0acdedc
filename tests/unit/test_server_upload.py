# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading a form: whatever the bytes and however they are cut, the end is a build or an error of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from elivepatch.errors import ElivepatchError, InputTooLargeError, InvalidInputError
from elivepatch.job import InputFile, Job
from elivepatch.protocol import limits
from elivepatch.server.serve_command import _loopback  # pyright: ignore[reportPrivateUsage]
from elivepatch.server.upload import read_job

BOUNDARY = "----b0undary"


def part(name: str, data: bytes, filename: str | None = None, more: str = "") -> bytes:
    file = f'; filename="{filename}"' if filename is not None else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n{more}\r\n'
    return head.encode() + data + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
WHOLE = (
    part("request", b'{"kernel": "6.12.1", "verify": false}')
    + part("patch", b"--- a\r\n\r\n--x\r\n", "../../a.patch")
    + part("patch", b"", "")
    + part("base_patch", b"base", "b")
    + part("config", bytes(range(256)))
    + part("check", b"\r\n", "c", "Content-Type: multipart/form-data\r\nExpires: 0\r\n")
    + END
)
JOB = {
    "patches": (InputFile("a.patch", b"--- a\r\n\r\n--x\r\n"), InputFile("patch-2", b"")),
    "base_patches": (InputFile("b", b"base"),),
    "config": bytes(range(256)),
    "check": b"\r\n",
}


def read(pieces: Sequence[bytes], content_type: str = f'multipart/form-data; boundary="{BOUNDARY}"') -> Job:
    """What the server reads of a body that arrives in these pieces."""
    messages: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    waiting = iter(messages)

    async def receive() -> Message:
        return next(waiting)

    async def go() -> Job:
        scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", content_type.encode())]}
        return await read_job(Request(scope, receive), slots=asyncio.Semaphore(1), seconds=10)

    return asyncio.run(go())


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(ends)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(WHOLE)), max_size=40))
def test_a_form_is_read_however_it_is_cut(places: list[int]) -> None:
    job = read(cut(WHOLE, places))
    assert job.request.kernel == "6.12.1"
    assert {name: getattr(job, name) for name in JOB} == JOB


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 12), st.binary(max_size=12)), min_size=1, max_size=4),
    st.lists(st.integers(0, len(WHOLE)), max_size=4),
)
def test_a_damaged_form_is_read_or_refused(damages: list[tuple[int, int, bytes]], places: list[int]) -> None:
    data = WHOLE
    for at, removed, added in damages:
        data = data[:at] + added + data[at + removed :]
    try:
        assert isinstance(read(cut(data, places)), Job)
    except ElivepatchError as error:
        assert 400 <= error.http_status < 500
        assert error.hint


@given(st.text(max_size=60))
@settings(max_examples=80, deadline=None)
def test_any_content_type_is_read_or_refused(text: str) -> None:
    try:
        read([WHOLE], text.encode("utf-8", "ignore").decode("latin-1"))
    except InvalidInputError as error:
        assert error.http_status in (400, 415)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("patch", limits.PATCH_BYTES),
        ("base_patch", limits.PATCH_BYTES),
        ("config", limits.CONFIG_BYTES),
        ("check", limits.CHECK_BYTES),
    ],
)
def test_the_limit_of_a_part_is_exact(name: str, size: int) -> None:
    start = part("request", b'{"kernel": "x"}') + (part("patch", b"p") if name != "patch" else b"")
    assert read([start + part(name, bytes(size)) + END])
    with pytest.raises(InputTooLargeError, match=f"'{name}'"):
        read([start + part(name, bytes(size + 1)) + END])


def test_the_limit_of_all_holds_before_the_end() -> None:
    pieces = [part("request", b'{"kernel": "x"}')] + [part("patch", bytes(limits.PATCH_BYTES))] * 20
    with pytest.raises(InputTooLargeError, match=str(limits.REQUEST_BYTES)):
        read(pieces)


@pytest.mark.parametrize(("host", "loopback"), [("127.0.0.1", True), ("::1", True), ("0.0.0.0", False), ("::", False)])
def test_what_is_warned_of(host: str, loopback: bool) -> None:
    assert _loopback(host) is loopback
