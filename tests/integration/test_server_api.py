# SPDX-License-Identifier: GPL-2.0-or-later
"""The API of a real server on a loopback port; only the builds themselves are short."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from server_support import (
    BASE,
    ServerProcess,
    events_of,
    form,
    get,
    patch,
    post,
    serving,
    wait,
    wait_for_status,
    worker_of,
)

from elivepatch.protocol import limits
from elivepatch.server.jobs.directory import JobDirectory

pytestmark = pytest.mark.integration

BINARY = b"diff --git a/fs/x.c b/fs/x.c\nindex 1..2 100644\nGIT binary patch\nliteral 1\nIcmZPo000000\n\n"
SYMLINK = (
    b"diff --git a/fs/x.c b/fs/x.c\nnew file mode 120000\n--- /dev/null\n+++ b/fs/x.c\n"
    b"@@ -0,0 +1 @@\n+/etc/shadow\n\\ No newline at end of file\n"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("server") / "data", keepalive_seconds="0.3") as running:
        yield running


def problem(response: httpx2.Response, status: int, code: str) -> dict[str, object]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, object] = response.json()
    assert body["code"] == code
    assert body["status"] == status
    assert body["detail"]
    return body


def test_life_of_a_build(server: ServerProcess) -> None:
    asked = post(server, "short", patch("life"))
    assert asked.status_code == 202
    build_id = asked.json()["id"]
    assert asked.headers["location"] == f"{BASE}/builds/{build_id}"
    assert "report" not in asked.json()
    build = wait(server, build_id)
    assert build["status"] == "done"
    assert build["created"] <= build["started"] <= build["finished"]
    report = build["report"]
    assert "path" not in report["module"]
    module = get(server, f"/builds/{build_id}/module")
    assert module.status_code == 200
    assert hashlib.sha256(module.content).hexdigest() == report["module"]["sha256"]
    assert module.headers["content-type"] == "application/octet-stream"
    assert module.headers["content-disposition"] == 'attachment; filename="livepatch-short.ko"'
    assert module.headers["etag"] == f'"{report["module"]["sha256"]}"'
    assert module.headers["x-content-type-options"] == "nosniff"
    again = get(server, f"/builds/{build_id}/module", if_none_match=module.headers["etag"])
    assert (again.status_code, again.content) == (304, b"")
    log = get(server, f"/builds/{build_id}/log")
    assert log.headers["content-type"].startswith("text/plain")
    assert "== building ==" in log.text
    assert "step 4" in log.text
    directory = JobDirectory(server.data / "builds" / build_id)
    assert not directory.module.exists()
    assert not directory.output.exists()


def test_second_identical_request_is_fast(server: ServerProcess) -> None:
    build_id = post(server, "short", patch("fast")).json()["id"]
    wait(server, build_id)
    with httpx2.Client() as client:
        times: list[float] = []
        for _ in range(25):
            began = time.perf_counter()
            answer = client.post(f"{server.url}/builds", files=form("short", patch("fast")))
            times.append(time.perf_counter() - began)
            assert answer.status_code == 200
            assert answer.json()["id"] == build_id
            assert answer.json()["report"]["status"] == "done"
    # The best of them: what else the machine does is not the server's.
    assert min(times) < 0.05, times


def test_ten_hosts_share_one_build(server: ServerProcess) -> None:
    with ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(post, server, "short-0.3", patch("shared")) for _ in range(10)]
        answers = [answer.result() for answer in asked]
    assert {answer.status_code for answer in answers} <= {200, 202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    build_id = answers[0].json()["id"]
    assert wait(server, build_id)["status"] == "done"
    # and no directory is left of the nine that came second
    known = {path.name for path in (server.data / "builds").iterdir()}
    listed = httpx2.get(f"{server.url}/builds", params={"kernel": "short-0.3"}).json()["builds"]
    assert [build["id"] for build in listed] == [build_id]
    everything = httpx2.get(f"{server.url}/builds", params={"limit": 100}).json()["builds"]
    assert known == {build["id"] for build in everything}


def test_refused_is_answered_as_it_is(server: ServerProcess) -> None:
    build_id = post(server, "refuse", patch("refused")).json()["id"]
    build = wait(server, build_id)
    assert build["status"] == "refused"
    assert build["report"]["error"] == "no-functional-change"
    again = post(server, "refuse", patch("refused"))
    assert (again.status_code, again.json()["id"]) == (200, build_id)
    problem(get(server, f"/builds/{build_id}/module"), 409, "not-finished")


@pytest.mark.parametrize("behaviour", ["raise", "lie", "crash"])
def test_a_failed_build_says_so_and_does_not_block_the_next(server: ServerProcess, behaviour: str) -> None:
    build_id = post(server, behaviour, patch("failing")).json()["id"]
    build = wait(server, build_id)
    assert build["status"] == "failed"
    assert build["report"]["error"] == "internal-error"
    assert build["report"]["hint"]
    assert "secret" not in json.dumps(build)
    if behaviour == "crash":
        assert "died 2 times" in build["report"]["message"]
    problem(get(server, f"/builds/{build_id}/module"), 409, "not-finished")
    again = post(server, behaviour, patch("failing"))
    assert again.status_code == 202
    assert again.json()["id"] != build_id
    wait(server, again.json()["id"])


def test_events_are_told_live_and_end(server: ServerProcess) -> None:
    build_id = post(server, "short-0.5", patch("events")).json()["id"]
    began = time.monotonic()
    first = None
    text = ""
    with httpx2.stream("GET", f"{server.url}/builds/{build_id}/events", timeout=30) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for chunk in stream.iter_text():
            if first is None and "event:" in chunk:
                first = time.monotonic() - began
            text += chunk
    assert first is not None
    assert first < time.monotonic() - began - 0.5, "events came only at the end"
    events = events_of(text)
    assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
    assert [kind for _, kind, _ in events].count("done") == 1
    assert events[-1][1] == "done"
    assert events[-1][2]["phase"] == "done"
    assert [data["phase"] for _, kind, data in events if kind == "phase"] == ["preparing", "building", "verifying"]
    # a client that is told the end finds the end
    assert get(server, f"/builds/{build_id}").json()["status"] == "done"
    for after in (0, 1, 4, len(events) - 1):
        resumed = events_of(get(server, f"/builds/{build_id}/events", last_event_id=str(after)).text)
        assert resumed == events[after:]
    ended = get(server, f"/builds/{build_id}/events", last_event_id=str(len(events)))
    assert (ended.status_code, ended.content) == (204, b"")
    problem(get(server, f"/builds/{build_id}/events", last_event_id="x"), 422, "invalid-input")


def test_silence_is_kept_alive_and_a_lost_client_costs_nothing(server: ServerProcess) -> None:
    build_id = post(server, "short-3", patch("silence")).json()["id"]
    with httpx2.stream("GET", f"{server.url}/builds/{build_id}/events", timeout=30) as stream:
        text = ""
        chunks = stream.iter_text()
        while text.count(": still there") < 2:
            text += next(chunks)
        assert "elivepatch_event_streams 1.0" in get(server, "/metrics").text
    deadline = time.monotonic() + 5
    while "elivepatch_event_streams 0.0" not in get(server, "/metrics").text:
        assert time.monotonic() < deadline, "the stream of a client that is gone is still open"
        time.sleep(0.05)
    httpx2.delete(f"{server.url}/builds/{build_id}", timeout=30)


@pytest.mark.parametrize("behaviour", ["short-30", "child"])
def test_cancel(server: ServerProcess, behaviour: str) -> None:
    build_id = post(server, behaviour, patch("cancel")).json()["id"]
    wait_for_status(server, build_id, "preparing", "building")
    worker = worker_of(server, build_id)
    deadline = time.monotonic() + 20
    while behaviour == "child" and not _children(worker.pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = _children(worker.pid)
    answer = httpx2.delete(f"{server.url}/builds/{build_id}", timeout=30)
    assert answer.status_code == 200
    assert answer.json()["status"] == "cancelled"
    assert not worker.alive
    assert all(_gone(child) for child in children)
    problem(httpx2.delete(f"{server.url}/builds/{build_id}"), 409, "already-finished")
    problem(get(server, f"/builds/{build_id}/module"), 409, "not-finished")
    assert events_of(get(server, f"/builds/{build_id}/events").text)[-1][2]["phase"] == "cancelled"
    again = post(server, "short" if behaviour == "child" else behaviour, patch("cancel"))
    assert again.status_code == 202
    assert again.json()["id"] != build_id
    httpx2.delete(f"{server.url}/builds/{again.json()['id']}", timeout=30)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_a_waiting_build_is_cancelled_at_once(server: ServerProcess) -> None:
    running = [post(server, "short-30", patch(f"busy {n}")).json()["id"] for n in range(2)]
    waiting = post(server, "short", patch("waits")).json()["id"]
    for build_id in running:
        wait_for_status(server, build_id, "preparing")
    assert get(server, f"/builds/{waiting}").json()["status"] == "queued"
    health = get(server, "/health").json()
    assert (health["running"], health["queued"]) == (2, 1)
    assert httpx2.delete(f"{server.url}/builds/{waiting}").json()["status"] == "cancelled"
    for build_id in running:
        assert httpx2.delete(f"{server.url}/builds/{build_id}", timeout=30).json()["status"] == "cancelled"


def test_pages(server: ServerProcess) -> None:
    made = [post(server, "refuse-0.01", patch(f"page {n}")).json()["id"] for n in range(5)]
    for build_id in made:
        wait(server, build_id)
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        answer = httpx2.get(
            f"{server.url}/builds", params={"kernel": "refuse-0.01", "status": "refused", "limit": "2", **cursor}
        ).json()
        seen += [build["id"] for build in answer["builds"]]
        assert all("report" not in build for build in answer["builds"])
        if "next" not in answer:
            break
        cursor = {"cursor": answer["next"]}
    assert seen == made[::-1]


def test_health_metrics_kernels_and_description(server: ServerProcess) -> None:
    health = get(server, "/health")
    assert health.json()["status"] == "ok"
    assert 'elivepatch_builds{status="queued"} ' in get(server, "/metrics").text
    assert get(server, "/kernels").json() == {"kernels": []}
    description = httpx2.get(f"http://127.0.0.1:{server.port}/openapi.json").json()
    assert f"{BASE}/builds/{{build_id}}/module" in description["paths"]


# -- what is not accepted


def test_addresses_and_methods(server: ServerProcess) -> None:
    problem(get(server, "/nothing"), 404, "not-found")
    problem(get(server, "/builds/"), 404, "not-found")
    problem(get(server, "/builds/" + "0" * 32), 404, "not-found")
    problem(get(server, "/builds/..%2f..%2fetc/log"), 404, "not-found")
    refused = httpx2.put(f"{server.url}/builds")
    problem(refused, 405, "method-not-allowed")
    assert refused.headers["allow"] == "GET, POST"
    problem(httpx2.get(f"{server.url}/builds", params={"limit": "1000"}), 422, "invalid-input")
    problem(httpx2.get(f"{server.url}/builds", params={"cursor": "../1"}), 422, "invalid-input")


@pytest.mark.parametrize(
    ("parts", "status", "code"),
    [
        ([], 415, "unsupported-media-type"),
        ([("patch", ("p", patch("x"), "text/plain"))], 422, "invalid-input"),
        (form("short"), 422, "invalid-input"),
        (form("short", b"not a patch\n"), 422, "invalid-patch"),
        (form("short", b""), 422, "invalid-patch"),
        (form("short", patch("x").replace(b"\n", b"\r\n")), 422, "invalid-patch"),
        (form("short", patch("x").replace(b"fs/proc", b"../../etc")), 422, "invalid-patch"),
        (form("short", patch("x").replace(b"a/fs/proc", b"/etc").replace(b"b/fs/proc", b"/etc")), 422, "invalid-patch"),
        (form("short", BINARY), 422, "invalid-patch"),
        (form("short", SYMLINK), 422, "invalid-patch"),
        (form("--help", patch("x")), 422, "invalid-input"),
        (form("short", patch("x"), vmlinux=b"x"), 422, "not-offered"),
        (form("short", patch("x"), surprise=b"x"), 422, "invalid-input"),
        (form("short", patch("x"), config=b"x" * (limits.CONFIG_BYTES + 1)), 413, "input-too-large"),
        (form("short", patch("x"), check=b"x" * (limits.CHECK_BYTES + 1)), 413, "input-too-large"),
        (form("short", b"x" * (limits.PATCH_BYTES + 1)), 413, "input-too-large"),
        (form("short", *[patch(str(n)) for n in range(limits.PATCHES + 1)]), 413, "input-too-large"),
        ([*form("short", patch("x")), *form("short")], 422, "invalid-input"),
        ([("request", ("r", b"{}", "application/json")), *form("short", patch("x"))[1:]], 422, "invalid-input"),
        ([("request", ("r", b"{", "application/json")), *form("short", patch("x"))[1:]], 422, "invalid-input"),
    ],
)
def test_forms_that_are_refused(
    server: ServerProcess, parts: list[tuple[str, tuple[str, bytes, str]]], status: int, code: str
) -> None:
    before = {path.name for path in (server.data / "builds").iterdir()}
    body = problem(httpx2.post(f"{server.url}/builds", files=parts, timeout=30), status, code)
    if code == "invalid-patch":
        assert body["diagnosis"]
    assert {path.name for path in (server.data / "builds").iterdir()} == before


def test_a_hundred_megabytes_are_refused_quickly(server: ServerProcess) -> None:
    before = _memory(server.pid)
    began = time.monotonic()
    answer = httpx2.post(f"{server.url}/builds", files=form("short", bytes(100 * 1024 * 1024)), timeout=60)
    problem(answer, 413, "input-too-large")
    assert time.monotonic() - began < 5
    assert _memory(server.pid) - before < 40 * 1024 * 1024
    # and one who looks before sending all of it learns it at once
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(_head("Content-Length: 104857600"))
        assert b" 413 " in raw.recv(4096).split(b"\r\n", 1)[0]


def _memory(pid: int) -> int:
    """Peak resident memory in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _head(*headers: str) -> bytes:
    lines = [f"POST {BASE}/builds HTTP/1.1", "Host: x", "Content-Type: multipart/form-data; boundary=b", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def test_chunked_without_end_is_cut_at_the_limit(server: ServerProcess) -> None:
    piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    start = b'--b\r\nContent-Disposition: form-data; name="patch"; filename="p"\r\n\r\n'
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(_head("Transfer-Encoding: chunked"))
        raw.sendall(f"{len(start):x}\r\n".encode() + start + b"\r\n")
        sent = 0
        raw.setblocking(False)
        answer = b""
        deadline = time.monotonic() + 10
        while b"\r\n\r\n" not in answer and time.monotonic() < deadline:
            try:
                sent += raw.send(piece[sent % len(piece) :])  # what the last one left of its piece
            except BlockingIOError:
                time.sleep(0.001)
            try:
                answer += raw.recv(65536)
            except BlockingIOError:
                continue
        assert b" 413 " in answer.split(b"\r\n", 1)[0]
        assert sent < 64 * 1024 * 1024


@pytest.mark.parametrize(
    ("head", "body", "expected"),
    [
        (_head(), b"", b" 400 "),
        (_head("Content-Length: nonsense"), b"", b" 400 "),
        (_head("Content-Length: 4"), b"--b\r\nand much more that does not belong", b" 400 "),
        (_head("Transfer-Encoding: chunked"), b"zz\r\n", b" 400 "),
        (_head("Content-Length: 30000"), b"--b\r\nX: " + b"y" * 29992, b" 400 "),
        (_head("Content-Length: 12"), b"--c\r\nX: y\r\n\r\n", b" 400 "),
    ],
)
def test_broken_requests(server: ServerProcess, head: bytes, body: bytes, expected: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(head + body)
        assert expected in raw.recv(4096).split(b"\r\n", 1)[0]


def test_a_short_body_and_a_lost_client_leave_nothing(server: ServerProcess) -> None:
    before = {path.name for path in (server.data / "builds").iterdir()}
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(_head("Content-Length: 1000") + b"--b\r\n")
    assert get(server, "/health").status_code == 200
    assert {path.name for path in (server.data / "builds").iterdir()} == before


def test_a_slow_upload_ends(tmp_path: Path) -> None:
    with serving(tmp_path / "data", upload_seconds="0.5", uploads="1") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            raw.sendall(_head("Content-Length: 1000") + b"--b\r\n")
            time.sleep(0.2)
            # the only slot is taken: the next one is told to come back, not kept for ever
            answers: list[httpx2.Response] = []
            second = threading.Thread(target=lambda: answers.append(post(server, "short", patch("late"))))
            second.start()
            raw.settimeout(10)
            assert b" 408 " in raw.recv(4096).split(b"\r\n", 1)[0]
        second.join()
        assert answers[0].status_code in (202, 503)


def test_a_connection_that_says_nothing_whole_ends(tmp_path: Path) -> None:
    with serving(tmp_path / "data", upload_seconds="1") as server:
        silent, slow, second = (socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(3))
        with silent, slow, second:
            slow.sendall(b"GET / HTTP/1.1\r\n")
            second.sendall(b"GET /elivepatch/api/v2/health HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += second.recv(65536)
            assert b" 200 " in answer
            second.sendall(b"GET")  # what ends the wait for a next request must not begin one without end
            time.sleep(0.5)
            slow.sendall(b"Host: x\r\n")  # a byte now and then changes nothing
            began = time.monotonic()
            assert [line.recv(100) for line in (silent, slow, second)] == [b"", b"", b""]
            assert time.monotonic() - began < 5
        # whose request has arrived may take its time over the answer
        build = post(server, "short-3", patch("patient")).json()["id"]
        assert '"done"' in httpx2.get(f"{server.url}/builds/{build}/events", timeout=30).text


def test_limits_of_queue_and_streams(tmp_path: Path) -> None:
    with serving(tmp_path / "data", jobs="1", queue="2", streams="1") as server:
        first = post(server, "short-30", patch("0")).json()["id"]
        wait_for_status(server, first, "preparing")
        for number in (1, 2):
            assert post(server, "short", patch(str(number))).status_code == 202
        full = post(server, "short", patch("3"))
        problem(full, 503, "busy")
        assert full.headers["retry-after"]
        assert len(list((server.data / "builds").iterdir())) == 3
        with httpx2.stream("GET", f"{server.url}/builds/{first}/events", timeout=30) as stream:
            chunks = stream.iter_text()  # kept: a generator that is dropped closes the stream
            assert next(chunks)
            problem(get(server, f"/builds/{first}/events"), 503, "busy")
        httpx2.delete(f"{server.url}/builds/{first}", timeout=30)


def test_time_limit_of_a_build(tmp_path: Path) -> None:
    with serving(tmp_path / "data", build_seconds="0.7") as server:
        build = wait(server, post(server, "short-30", patch("long")).json()["id"])
        assert (build["status"], build["report"]["error"]) == ("failed", "resource-exhausted")
        assert "0.7 s" in build["report"]["message"] or "1 s" in build["report"]["message"]


def test_output_of_a_build_is_bounded(server: ServerProcess) -> None:
    build_id = post(server, "chatter-0.01", patch("much")).json()["id"]
    assert wait(server, build_id)["status"] == "done"
    events = server.data / "builds" / build_id / "events.jsonl"
    assert events.stat().st_size < 40 * 1024 * 1024
    assert "longer than is kept" in get(server, f"/builds/{build_id}/log").text


def test_a_removed_module_is_built_again(server: ServerProcess) -> None:
    build_id = post(server, "short", patch("removed")).json()["id"]
    digest = wait(server, build_id)["report"]["module"]["sha256"]
    artifact = server.data / "artifacts" / digest[:2] / digest
    artifact.write_bytes(artifact.read_bytes()[:1000])
    problem(get(server, f"/builds/{build_id}/module"), 500, "internal-error")
    artifact.unlink()
    problem(get(server, f"/builds/{build_id}/module"), 404, "not-found")
    again = post(server, "short", patch("removed"))
    assert again.status_code == 202
    assert wait(server, again.json()["id"])["report"]["module"]["sha256"] == digest
    assert get(server, f"/builds/{again.json()['id']}/module").status_code == 200


def test_old_directories_are_removed_and_the_build_stays(tmp_path: Path) -> None:
    with serving(tmp_path / "data", retention_days="0") as server:
        build_id = post(server, "short", patch("old")).json()["id"]
        wait(server, build_id)
        (server.data / "builds" / ("f" * 32)).mkdir()  # of a request that never came to be a build
        server.kill(signal.SIGTERM)
        server.start()
        deadline = time.monotonic() + 10
        while list((server.data / "builds").iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert get(server, f"/builds/{build_id}").json()["status"] == "done"
        assert get(server, f"/builds/{build_id}/module").status_code == 200
        problem(get(server, f"/builds/{build_id}/log"), 404, "not-found")
        assert [kind for _, kind, _ in events_of(get(server, f"/builds/{build_id}/events").text)] == ["done"]


def test_one_server_on_a_data_directory(server: ServerProcess) -> None:
    with pytest.raises(AssertionError, match="Another server works in"):
        ServerProcess(server.data).start()
    assert get(server, "/health").status_code == 200


def test_the_server_ends_when_told_although_streams_are_open(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as server:
        build_id = post(server, "short-30", patch("open")).json()["id"]
        worker = worker_of(server, build_id)
        with httpx2.stream("GET", f"{server.url}/builds/{build_id}/events", timeout=30) as stream:
            chunks = stream.iter_text()
            assert next(chunks)
            began = time.monotonic()
            assert server.kill(signal.SIGTERM) == 0
            assert time.monotonic() - began < 8
        assert worker.alive, "the build has to survive the server"
        os.killpg(worker.pid, signal.SIGKILL)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(words, check=True, capture_output=True)
    return cert, key


def test_https(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    with serving(tmp_path / "data", tls_certificate=str(cert), tls_key=str(key)) as server:
        trusting = ssl.create_default_context(cafile=str(cert))
        assert httpx2.get(f"{server.url}/health", verify=trusting).json()["status"] == "ok"
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{server.url}/health")


def test_https_with_a_certificate_of_the_servers_own(tmp_path: Path) -> None:
    with serving(tmp_path / "data", tls_certificate="adhoc") as server:
        (made,) = (tmp_path / "data/tls").glob("*.pem")
        assert str(made) in server.log()
        trusting = ssl.create_default_context(cafile=str(made))
        assert httpx2.get(f"{server.url}/health", verify=trusting).json()["status"] == "ok"
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{server.url}/health")


def refused(place: Path, cert: Path, key: Path) -> str:
    """What the server says to a certificate and a key that it does not take."""
    program = [sys.executable, "-c", "import sys; from elivepatch.server.cli import main; main()"]
    done = subprocess.run(
        [*program, "serve", "-P", "0", "--data", str(place / "data"), "-C", str(cert), "-K", str(key)],
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,  # without a terminal that it could ask on
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Serving on" not in done.stderr
    return done.stderr


def test_a_certificate_that_is_none(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    none = tmp_path / "none.pem"
    none.write_text("this is no certificate\n")
    assert "'tls_certificate' and 'tls_key' cannot be used" in refused(tmp_path, none, key)
    other = tmp_path / "other.key"
    subprocess.run(["openssl", "genrsa", "-out", other, "2048"], check=True, capture_output=True)
    assert "the key is that of the certificate" in refused(tmp_path, cert, other)


def test_a_key_with_a_passphrase_is_not_asked_for(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    locked = tmp_path / "locked.key"
    argv = ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked]
    subprocess.run(argv, check=True, capture_output=True)
    told = refused(tmp_path, cert, locked)
    assert "protected by a passphrase" in told
    assert "Enter PEM" not in told
