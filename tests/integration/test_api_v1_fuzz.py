# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests that no client of the first version would send: each is answered, in JSON, and leaves the server well."""

from __future__ import annotations

import contextlib
import http.client
import json
import string
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_support import ServerProcess, get, patch, serving

from classic_client import BOUNDARY, UUID, Answer, exchange, form, get_files, part, send_livepatch

pytestmark = pytest.mark.integration

CONFIG = b"CONFIG_64BIT=y\n"
GOOD = patch("fuzzed")
HOST = "127.0.0.1"
#: What a header's value can be at all; the rest the HTTP library refuses before anybody else sees it.
HEADER = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=80)
VERSIONS = st.one_of(st.just("6.12.1"), HEADER, st.text(string.digits + ".-+~_/:a", max_size=20))
UUIDS = st.one_of(st.just(UUID), st.uuids().map(str), HEADER)
PATCHES = st.one_of(st.just(GOOD), st.binary(max_size=300), st.binary(max_size=60).map(lambda data: GOOD + data))
NAMES = st.sampled_from(["patch", "main_patch", "config", "request", "PATCH", "", 'a"b', "..\\x"])
PARTS = st.lists(st.tuples(NAMES, st.text(string.printable[:95], max_size=40), PATCHES), max_size=6)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    place = tmp_path_factory.mktemp("fuzz")
    with serving(place / "data", v1="true", v1_sessions="5", v1_waiting="3", upload_seconds="2") as running:
        before = sorted(path.name for path in place.iterdir())
        yield running
        assert sorted(path.name for path in place.iterdir()) == before
        assert get(running, "/health").json()["status"] == "ok"
        assert "Traceback" not in running.log()


def check(answer: Answer) -> None:
    """An answer of ours to a request that HTTP allows."""
    assert answer.status in {201, 400, 403, 408, 409, 413, 415, 422}, answer
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()
    assert answer.body.endswith(b"\n")


@FUZZ
@given(VERSIONS, UUIDS, PATCHES, st.one_of(st.just(CONFIG), st.binary(max_size=200)), st.lists(PATCHES, max_size=3))
def test_any_content(
    server: ServerProcess, version: str, uuid: str, main: bytes, config: bytes, earlier: list[bytes]
) -> None:
    check(exchange(server.port, get_files(HOST, version, form(main, config, earlier), uuid)))


@FUZZ
@given(PARTS)
def test_any_parts(server: ServerProcess, parts: list[tuple[str, str, bytes]]) -> None:
    body = b"".join(part(*one) for one in parts) + f"--{BOUNDARY}--\r\n".encode()
    check(exchange(server.port, get_files(HOST, "6.12.1", body)))


@FUZZ
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 40), st.binary(max_size=20)), min_size=1, max_size=4))
def test_any_damage_of_the_form(server: ServerProcess, damages: list[tuple[int, int, bytes]]) -> None:
    body = form(GOOD, CONFIG, [GOOD])
    for at, removed, added in damages:
        at %= len(body)
        body = body[:at] + added + body[at + removed :]
    check(exchange(server.port, get_files(HOST, "6.12.1", body)))


@settings(FUZZ, max_examples=60)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_any_damage_of_the_head(server: ServerProcess, at: int, added: bytes) -> None:
    data = get_files(HOST, "6.12.1", form(b"", CONFIG))
    at %= data.index(b"\r\n\r\n")
    # what is no HTTP the library answers with 400, or by closing; where a length is too long, nobody waits for the end
    with contextlib.suppress(http.client.HTTPException, ConnectionError, TimeoutError):
        answer = exchange(server.port, data[:at] + added + data[at + len(added) :], timeout=3)
        assert 400 <= answer.status < 500


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=40) | st.just(UUID),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["UUID", "module", "x"]), inner),
    max_leaves=6,
)


@FUZZ
@given(st.one_of(JSON.map(lambda value: json.dumps(value).encode()), st.binary(max_size=200)))
def test_any_second_request(server: ServerProcess, body: bytes) -> None:
    head, _, old = send_livepatch(HOST, "6.12.1").partition(b"\r\n\r\n")
    head = head.replace(b"Content-Length: %d" % len(old), b"Content-Length: %d" % len(body))
    answer = exchange(server.port, head + b"\r\n\r\n" + body)
    assert answer.status in {200, 400, 403}
    if answer.status != 200:
        check(answer)


@FUZZ
@given(st.sampled_from(["", "v1.0/agent", "v1.0/get_files", "v1.0/send_livepatch"]), st.binary(max_size=100), HEADER)
def test_any_method_and_media_type(server: ServerProcess, path: str, body: bytes, kind: str) -> None:
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        head = f"{method} /elivepatch/api/{path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n"
        answer = exchange(server.port, f"{head}Content-Type: {kind}\r\n\r\n".encode("latin-1") + body)
        assert answer.status in {200, 201, 400, 403, 405, 415}
        assert json.loads(answer.body)
