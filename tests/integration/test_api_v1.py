# SPDX-License-Identifier: GPL-2.0-or-later
"""The protocol of the first version on a real server: every row of its tables; only the builds themselves are short."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import uuid
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from server_support import ServerProcess, get, patch, post, serving, wait

from classic_client import BOUNDARY, UUID, Answer, ClassicClient, exchange, form, get_files, part, send_livepatch
from elivepatch.protocol import limits

pytestmark = pytest.mark.integration

CONFIG = b"#\n# Linux/x86 6.12.1 Kernel Configuration\n#\nCONFIG_64BIT=y\n"
BASE = "/elivepatch/api"
NOT_THESE = b'{"message":"These are not the         patches you are looking for"}\n'
NO_MODULE = b'{"message":"These are not the             patches you are looking for"}\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("classic") / "data", v1="true", v1_waiting="4", jobs="4") as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> ClassicClient:
    return ClassicClient(server.port, str(uuid.uuid4()))


def module_of(main: bytes) -> bytes:
    return hashlib.sha256(main).digest() * 4096  # as `server_runner.module_of`


def builds(server: ServerProcess) -> list[dict[str, object]]:
    found: list[dict[str, object]] = get(server, "/builds?limit=100").json()["builds"]
    return found


def inputs(server: ServerProcess, build_id: str) -> list[tuple[str, str]]:
    """The files that a build was made from: what they are and their names for people."""
    stored = json.loads((server.data / "builds" / build_id / "request.json").read_text())
    return [(file["role"], file["name"]) for file in stored["files"]]


# -- what clients in the field do


def test_the_original_requests_get_a_module(client: ClassicClient) -> None:
    main = patch("original")
    answer = client.post("6.12.1", main, CONFIG)
    assert answer.status == 201
    assert answer.body == f'{{"get_config": {{"KernelVersion": null, "UUID": "{client.uuid}"}}}}\n'.encode()
    assert answer.headers["content-type"] == "application/json"
    module = client.fetch("6.12.1")
    assert (module.status, module.headers["content-type"]) == (200, "application/octet-stream")
    assert module.body == module_of(main)


def test_the_request_is_held_until_the_build_has_ended(server: ServerProcess, client: ClassicClient) -> None:
    with ThreadPoolExecutor() as pool:
        began = time.monotonic()
        held = pool.submit(client.post, "6.12.1-1.5", patch("held"), CONFIG)
        time.sleep(1.0)
        assert not held.done()
        early = client.fetch("6.12.1-1.5")
        assert (early.status, early.body) == (403, NO_MODULE)
        assert get(server, "/health").status_code == 200  # others are served meanwhile
        assert held.result().status == 201
        assert time.monotonic() - began > 3
    assert client.fetch("6.12.1-1.5").status == 200


def test_a_build_is_that_of_the_current_api(server: ServerProcess, client: ClassicClient) -> None:
    main = patch("shared")
    asked = post(server, "kernel.org-0.1", main)  # another kernel: another build
    wait(server, asked.json()["id"])
    before = len(builds(server))
    other = ClassicClient(server.port, str(uuid.uuid4()))
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(one.post, "6.12.1-0.3", main, CONFIG) for one in (client, other)]
    assert [one.result().status for one in asked] == [201, 201]
    assert len(builds(server)) == before + 1
    assert client.fetch("x").body == other.fetch("x").body == module_of(main)
    request = json.dumps({"kernel": "6.12.1-0.3"}).encode()
    parts = [("request", ("r", request)), ("patch", ("p", main)), ("config", ("c", CONFIG))]
    current = httpx2.post(f"{server.url}/builds", files=parts, timeout=30)
    assert (current.status_code, len(builds(server))) == (200, before + 1)


@pytest.mark.parametrize(("token", "status", "code"), [("do-refuse", 422, "no-functional-change"), ("do-lie", 500, "")])
def test_a_build_that_gives_no_module_says_why_in_json(
    client: ClassicClient, token: str, status: int, code: str
) -> None:
    answer = client.post("6.12.1", patch(token), CONFIG)
    assert answer.status == status
    assert answer.json()["message"]
    assert code in str(answer.json()["code"])
    assert client.fetch("6.12.1").body == NO_MODULE


def test_a_kernel_that_is_not_available(client: ClassicClient) -> None:
    answer = client.post("6.12.1", patch("do-nokernel"), CONFIG)
    assert (answer.status, answer.body) == (403, b'{"message":"gentoo-sources not available"}\n')


def test_a_dropped_connection_loses_nothing(client: ClassicClient) -> None:
    with pytest.raises(TimeoutError):
        client.post("6.12.1-0.8", patch("dropped"), CONFIG, timeout=0.5)
    deadline = time.monotonic() + 30
    while (answer := client.fetch("6.12.1")).status != 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert answer.body == module_of(patch("dropped"))


def test_the_same_request_again_is_answered_again(client: ClassicClient) -> None:
    for _ in range(2):
        assert client.post("6.12.1", patch("again"), CONFIG).status == 201


# -- the tables of the protocol


@pytest.mark.parametrize("path", ["/", "/v1.0/agent"])
def test_the_agent(server: ServerProcess, path: str) -> None:
    url = f"http://127.0.0.1:{server.port}{BASE}{path}"
    agent = b'{"agent": [{"module": "elivepatch", "version": "0.01"}]}\n'
    assert httpx2.get(url).content == agent
    posted = httpx2.post(url, json={"module": "x", "version": "9"})
    assert (posted.status_code, posted.content) == (201, b'{"agent": {"module": "x", "version": "9"}}\n')
    assert httpx2.get(url).content == agent  # nothing that anybody posts is kept
    for body, name in (({"version": "9"}, "module"), ({"module": "x"}, "version")):
        missing = httpx2.post(url, json=body)
        assert missing.status_code == 400
        assert missing.json() == {"message": {name: "No task title provided"}}
    assert httpx2.put(url).status_code == 405


def test_wrong_verbs(server: ServerProcess) -> None:
    url = f"http://127.0.0.1:{server.port}{BASE}/v1.0"
    wrong = httpx2.get(f"{url}/get_files")
    assert (wrong.status_code, wrong.content) == (403, NOT_THESE)
    wrong = httpx2.post(f"{url}/send_livepatch")
    assert (wrong.status_code, wrong.content) == (403, NOT_THESE)
    for path in ("get_files", "send_livepatch"):
        for method in ("DELETE", "PROPFIND", "X"):
            wrong = httpx2.request(method, f"{url}/{path}")
            assert wrong.status_code == 405
            assert wrong.content == b'{"message": "The method is not allowed for the requested URL."}\n'
            assert wrong.headers["content-type"] == "application/json"


def test_where_the_uuid_of_the_second_request_may_stand(server: ServerProcess, client: ClassicClient) -> None:
    assert client.post("6.12.1", patch("places"), CONFIG).status == 201
    url = f"http://127.0.0.1:{server.port}{BASE}/v1.0/send_livepatch"
    for answer in (
        httpx2.get(url, params={"UUID": client.uuid}),
        httpx2.get(url, headers={"UUID": client.uuid.upper()}),
        httpx2.request("GET", url, json={"UUID": client.uuid}),
    ):
        assert (answer.status_code, answer.content) == (200, module_of(patch("places")))
    unsaid = httpx2.get(url)
    assert unsaid.status_code == 415
    assert unsaid.json()["message"].startswith("Did not attempt to load JSON data")
    assert httpx2.get(url, params={"UUID": str(uuid.uuid4())}).content == NO_MODULE


# -- what the patches of a request mean


def test_earlier_patches_of_a_published_kernel_go_into_the_new_livepatch(
    server: ServerProcess, client: ClassicClient
) -> None:
    release = "6.12.1+deb13-cloud-amd64"
    assert client.post(release, patch("new"), CONFIG, [patch("first"), patch("second")]).status == 201
    build = next(one for one in builds(server) if one["kernel"] == release)
    assert inputs(server, str(build["id"])) == [
        ("patch", "00000.patch"),
        ("patch", "00001.patch"),
        ("patch", "main.patch"),
        ("config", "config"),
    ]


def test_of_another_kernel_the_patches_before_the_first_known_livepatch_are_its_own(
    server: ServerProcess, client: ClassicClient
) -> None:
    def asked(main: bytes, earlier: Sequence[bytes]) -> list[tuple[str, str]]:
        one = ClassicClient(server.port, str(uuid.uuid4()))
        assert one.post("5.1.6", main, CONFIG, earlier).status == 201
        assert one.fetch("5.1.6").status == 200
        newest = builds(server)[0]
        assert newest["kernel"] == "gentoo:gentoo-sources-5.1.6"
        return inputs(server, str(newest["id"]))[:-1]

    own, first, second = patch("own"), patch("live-1"), patch("live-2")
    assert asked(first, [own]) == [("patch", "main.patch"), ("base_patch", "00000.patch")]
    # the second time the client sends its first livepatch too, and behind the kernel's own
    assert asked(second, [own, first]) == [
        ("patch", "00001.patch"),
        ("patch", "main.patch"),
        ("base_patch", "00000.patch"),
    ]


def test_a_patch_that_is_asked_for_again_is_not_applied_twice(server: ServerProcess, client: ClassicClient) -> None:
    main = patch("twice")
    assert client.post("6.12.1+a", main, CONFIG, [main, patch("one"), patch("one")]).status == 201
    newest = builds(server)[0]
    assert inputs(server, str(newest["id"]))[:2] == [("patch", "00000.patch"), ("patch", "main.patch")]


# -- attacks on the first server


def test_it_is_off_unless_it_is_asked_for(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as running:
        client = ClassicClient(running.port)
        for answer in (client.post("6.12.1", patch("off"), CONFIG), client.fetch("6.12.1")):
            assert (answer.status, answer.json()["code"]) == (404, "not-found")
        assert builds(running) == []


@pytest.mark.parametrize(
    "filename",
    ["../../../../../../tmp/elivepatch-was-here", "/tmp/elivepatch-was-here", "..", "", "a\\..\\b", "x" * 999],
)
def test_names_of_files_mean_nothing(server: ServerProcess, client: ClassicClient, filename: str) -> None:
    main = patch(f"name-{hashlib.sha256(filename.encode()).hexdigest()[:8]}")
    before = set(server.data.parent.rglob("*was-here*"))
    body = b"".join(
        part(name, filename, data) for name, data in (("patch", patch("e")), ("main_patch", main), ("config", CONFIG))
    )
    answer = exchange(
        server.port, get_files(client.host, "6.12.1+n", body + f"--{BOUNDARY}--\r\n".encode(), client.uuid)
    )
    assert answer.status == 201, answer.body
    assert not Path("/tmp/elivepatch-was-here").exists()
    assert set(server.data.parent.rglob("*was-here*")) == before
    newest = builds(server)[0]
    assert inputs(server, str(newest["id"])) == [
        ("patch", "00000.patch"),
        ("patch", "main.patch"),
        ("config", "config"),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "57773c4c",
        "../../../../etc/passwd",
        "zzzzzzzz-65e2-4ed1-9daa-345737a9b05f",
        "57773c4c_65e2-4ed1-9daa-345737a9b05f",
        "\xe9" * 8 + "-65e2-4ed1-9daa-345737a9b05f",
        UUID + "0",
        UUID + " x",
        "0" * 4000,
    ],
)
def test_what_is_no_uuid_is_none(server: ServerProcess, client: ClassicClient, wrong: str) -> None:
    before = len(builds(server))
    answer = exchange(server.port, get_files(client.host, "6.12.1", form(patch("uuid"), CONFIG), wrong))
    assert (answer.status, answer.json()["code"]) == (400, "bad-request")
    assert len(builds(server)) == before
    answer = exchange(server.port, send_livepatch(client.host, "6.12.1", wrong))
    assert (answer.status, answer.json()["code"]) == (400, "bad-request")


def test_a_uuid_with_a_line_end_is_none(client: ClassicClient) -> None:
    answer = exchange(client.port, send_livepatch(client.host, "6.12.1", UUID + "\n"))
    assert (answer.status, answer.json()["code"]) == (400, "bad-request")


@pytest.mark.parametrize(
    "version",
    [
        "",
        "../../../etc",
        "/etc/passwd",
        "6.12.1/../../x",
        "6.12.1;id",
        "$(id)",
        "dir:/etc",
        "git:https://example.org/linux.git#master",
        "kernel.org:6.12.1",
        "6",
        "6.12.1 -x",
        "9" * 5000,
        "6.12.1\xe9",
    ],
)
def test_what_is_no_version_is_none(server: ServerProcess, client: ClassicClient, version: str) -> None:
    before = len(builds(server))
    answer = client.post(version, patch("version"), CONFIG)
    assert (answer.status, answer.json()["code"]) == (422, "invalid-input")
    assert len(builds(server)) == before


def test_a_session_of_another_is_not_taken_over(server: ServerProcess, client: ClassicClient) -> None:
    assert client.post("6.12.1", patch("mine"), CONFIG).status == 201
    thief = ClassicClient(server.port, client.uuid)
    taken = thief.post("6.12.1", patch("theirs"), CONFIG)
    assert (taken.status, taken.json()["code"]) == (409, "session-taken")
    assert client.fetch("6.12.1").body == module_of(patch("mine"))


def test_at_the_same_moment_one_uuid_is_one_request(server: ServerProcess, client: ClassicClient) -> None:
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(client.post, "6.12.1-0.4", patch(f"at-once-{n}"), CONFIG) for n in range(3)]
    answers = [one.result() for one in asked]
    statuses = sorted(answer.status for answer in answers)
    assert statuses == [201, 409, 409]
    won = next(n for n, answer in enumerate(answers) if answer.status == 201)
    assert client.fetch("6.12.1").body == module_of(patch(f"at-once-{won}"))


def test_more_than_the_limit_are_told_to_come_back(server: ServerProcess) -> None:
    def ask(number: int) -> Answer:
        one = ClassicClient(server.port, str(uuid.uuid4()))
        return one.post("6.12.1-0.7", patch(f"many-{number}"), CONFIG)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    assert sorted({answer.status for answer in answers}) == [201, 503]
    assert 4 <= sum(answer.status == 201 for answer in answers) < 12
    for busy in (answer for answer in answers if answer.status == 503):
        assert (busy.json()["code"], busy.headers["retry-after"]) == ("busy", "60")
    assert ask(99).status == 201  # and then there is room again


def test_what_is_too_large_is_stopped_on_the_way(server: ServerProcess, client: ClassicClient) -> None:
    before = len(builds(server))
    for body, status in (
        (form(bytes(limits.PATCH_BYTES + 1), CONFIG), 413),
        (form(patch("x"), b"#" * (limits.CONFIG_BYTES + 1)), 413),
        (form(patch("x"), CONFIG, [patch(str(n)) for n in range(limits.PATCHES + 1)]), 413),
        (form(patch("x"), CONFIG, [bytes(limits.PATCH_BYTES)] * 5), 413),
    ):
        answer = exchange(server.port, get_files(client.host, "6.12.1", body, client.uuid))
        assert (answer.status, answer.json()["code"]) == (status, "input-too-large")
    answer = exchange(server.port, send_livepatch(client.host, "6.12.1", "0" * 10_000))
    assert (answer.status, answer.json()["code"]) == (413, "input-too-large")
    assert len(builds(server)) == before


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (form(b"", CONFIG), "main_patch"),
        (form(patch("x"), b""), "config"),
        (form(b"no patch", CONFIG), ""),
        (form(patch("x"), b"rm -rf /\n"), "Line 1"),
        (form(patch("x"), b"\xff\xfe"), "neither text"),
        (form(patch("x"), CONFIG, [b"no patch"]), ""),
        (part("main_patch", "a", patch("x")) + form(patch("y"), CONFIG), "main_patch"),
        (part("other", "a", b"") + form(patch("y"), CONFIG), "other"),
        (form(patch("../../x"), CONFIG).replace(b"a/fs/proc/meminfo.c", b"a/../../etc/passwd"), ""),
    ],
)
def test_what_cannot_be_built_is_refused_at_once(
    server: ServerProcess, client: ClassicClient, body: bytes, said: str
) -> None:
    before = len(builds(server))
    answer = exchange(server.port, get_files(client.host, "6.12.1+z", body, client.uuid))
    assert answer.status == 422, answer.body
    assert said in str(answer.json()["message"])
    assert len(builds(server)) == before


def test_nothing_is_written_in_tmp(server: ServerProcess, client: ClassicClient) -> None:
    assert client.post("6.12.1", patch("tmp"), CONFIG).status == 201
    assert not Path(f"/tmp/elivepatch-{client.uuid}").exists()


def test_a_session_ends(tmp_path: Path) -> None:
    with serving(tmp_path / "data", v1="true", v1_session_seconds="1") as running:
        client = ClassicClient(running.port)
        assert client.post("6.12.1", patch("ends"), CONFIG).status == 201
        assert client.fetch("6.12.1").status == 200
        time.sleep(1.5)
        assert client.fetch("6.12.1").body == NO_MODULE


def test_a_request_is_not_held_for_ever(tmp_path: Path) -> None:
    with serving(tmp_path / "data", v1="true", v1_wait_seconds="0.5") as running:
        client = ClassicClient(running.port)
        answer = client.post("6.12.1-1", patch("ever"), CONFIG)
        assert (answer.status, answer.json()["code"]) == (503, "unavailable")
        while client.fetch("6.12.1").status != 200:
            time.sleep(0.1)


def test_a_server_that_is_told_to_end_lets_go(tmp_path: Path) -> None:
    with serving(tmp_path / "data", v1="true") as running:
        client = ClassicClient(running.port)
        ended: list[object] = []

        def ask() -> None:
            try:
                ended.append(client.post("6.12.1-30", patch("end"), CONFIG))
            except (OSError, EOFError) as error:
                ended.append(error)
            except Exception as error:  # http.client's own
                ended.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(1)
        began = time.monotonic()
        running.kill(15)
        thread.join(20)
        assert time.monotonic() - began < 10
        assert len(ended) == 1
