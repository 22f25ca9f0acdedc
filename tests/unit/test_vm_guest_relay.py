# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

RELAY = Path(__file__).parents[2] / "scripts/guest_relay.py"


@pytest.fixture
def listener() -> Generator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        yield server


@pytest.fixture
def guest(listener: socket.socket) -> Generator[socket.socket]:
    """The guest's end of a connection that a relay joins with the listener."""
    port = listener.getsockname()[1]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(20)
        with subprocess.Popen(
            [sys.executable, "-I", "-S", RELAY, str(port)], stdin=theirs.fileno(), stdout=theirs.fileno()
        ) as child:
            theirs.close()
            yield ours
            ours.close()
            assert child.wait(timeout=20) == 0


def read_all(side: socket.socket) -> bytes:
    data = b""
    while chunk := side.recv(65536):
        data += chunk
    return data


def test_both_ways_until_the_server_closes(listener: socket.socket, guest: socket.socket) -> None:
    guest.sendall(b"question")
    server, _ = listener.accept()
    with server:
        server.settimeout(20)
        assert server.recv(100) == b"question"
        server.sendall(b"answer" * 100_000)
    assert read_all(guest) == b"answer" * 100_000


def test_a_guest_that_has_asked_all_still_hears(listener: socket.socket, guest: socket.socket) -> None:
    guest.sendall(b"all")
    guest.shutdown(socket.SHUT_WR)
    server, _ = listener.accept()
    with server:
        server.settimeout(20)
        assert read_all(server) == b"all"
        server.sendall(b"answer")
    assert read_all(guest) == b"answer"
