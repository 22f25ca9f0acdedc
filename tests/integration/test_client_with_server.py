# SPDX-License-Identifier: GPL-2.0-or-later
"""The client's connection against the real server: both sides of API v2 in one test, with builds that are short."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from server_support import ServerProcess, patch, serving

from elivepatch.client.connection import Connection
from elivepatch.client.host import SystemClock
from elivepatch.client.inputs import Part
from elivepatch.errors import InvalidPatchError, NotFinishedError, NotFoundError
from elivepatch.progress import Event
from elivepatch.protocol.models import Build, BuildRequest, BuildStatus

pytestmark = pytest.mark.integration


@dataclass
class Line:
    """A connection, and what came over it."""

    connection: Connection
    events: list[Event] = field(default_factory=list[Event])
    words: list[str] = field(default_factory=list[str])

    def submit(self, kernel: str, token: str) -> str:
        return self.connection.submit(BuildRequest(kernel=kernel), [Part("patch", "a.patch", patch(token))])

    def follow(self, build_id: str) -> Build:
        return self.connection.follow(build_id, self.events.append, self.words.append, timeout=60)


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


@pytest.fixture
def server(tmp_path: Path, port: int) -> Generator[ServerProcess]:
    with serving(tmp_path / "data", port=str(port)) as running:
        yield running


@pytest.fixture
def line(server: ServerProcess) -> Generator[Line]:
    with Connection(f"http://127.0.0.1:{server.port}/", SystemClock()) as connection:
        yield Line(connection)


def test_a_build_is_followed_to_its_module(line: Line) -> None:
    build_id = line.submit("good-0.2", "one")
    build = line.follow(build_id)
    assert build.status is BuildStatus.DONE
    assert build.report is not None
    assert build.report.module is not None
    data = line.connection.module(build_id, build.report.module)
    assert hashlib.sha256(data).hexdigest() == build.report.module.sha256
    kinds = [event.kind for event in line.events]
    assert kinds[-1] == "done"
    assert "preparing" in [event.phase for event in line.events]
    assert line.words == []


def test_the_same_request_is_the_same_build(line: Line) -> None:
    first = line.submit("good", "two")
    line.follow(first)
    assert line.submit("good", "two") == first
    heard = len(line.events)
    assert line.follow(first).status is BuildStatus.DONE  # it has ended before the first event is asked for
    assert line.events[heard:] == line.events[:heard]


def test_a_refusal_comes_with_its_reason(line: Line) -> None:
    build = line.follow(line.submit("refuse", "three"))
    assert build.status is BuildStatus.REFUSED
    assert build.report is not None
    assert (build.report.exit_status, build.report.error) == (3, "no-functional-change")


def test_many_events_all_arrive_once(line: Line) -> None:
    build = line.follow(line.submit("chatter", "four"))
    assert build.status.final
    numbers = [int(event.message.split()[1]) for event in line.events if event.message.startswith("line ")]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 0


def test_the_server_is_killed_and_comes_back_while_a_build_is_followed(line: Line, server: ServerProcess) -> None:
    build_id = line.submit("good-4", "five")

    def restart() -> None:
        time.sleep(1.5)
        server.kill()
        time.sleep(1.5)
        server.start()

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        build = line.follow(build_id)
    finally:
        thread.join()
    assert build.status is BuildStatus.DONE
    assert any("Trying again" in word for word in line.words)
    assert [event.message for event in line.events].count("preparing") == 1
    assert [event.kind for event in line.events].count("done") == 1


def test_errors_are_those_of_the_server(line: Line) -> None:
    with pytest.raises(NotFoundError) as missing:
        line.connection.build("no-such-build")
    assert missing.value.message
    with pytest.raises(InvalidPatchError):
        line.connection.submit(BuildRequest(kernel="good"), [Part("patch", "a", b"")])
    build_id = line.submit("good-30", "six")
    said = line.follow(line.submit("good", "seven")).report
    assert said is not None
    assert said.module is not None
    with pytest.raises(NotFinishedError):
        line.connection.module(build_id, said.module)
