# SPDX-License-Identifier: GPL-2.0-or-later
"""The requests of the classic client as it sends them, byte for byte, and what it does with the answers.

The bytes are those that the protocol of the first version was written down from: python-requests and urllib3, with the
parts and headers of restful.py of that client.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

AGENT = "python-requests/2.22.0"
BOUNDARY = "0123456789abcdef0123456789abcdef"
UUID = "57773c4c-65e2-4ed1-9daa-345737a9b05f"


@dataclass(frozen=True)
class Answer:
    """An answer, as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        assert isinstance(found, dict)
        return found


def part(name: str, filename: str, data: bytes) -> bytes:
    head = (
        f"--{BOUNDARY}\r\n"
        f'Content-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'
        "Content-Type: multipart/form-data\r\n"
        "Expires: 0\r\n"
        "\r\n"
    )
    return head.encode() + data + b"\r\n"


def form(main: bytes, config: bytes, earlier: Sequence[bytes] = ()) -> bytes:
    """The body of get_files."""
    parts = [part("patch", f"{number:05}.patch", data) for number, data in enumerate(earlier)]
    parts += [part("main_patch", "main.patch", main), part("config", "config", config)]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def get_files(host: str, version: str, body: bytes, uuid: str = UUID) -> bytes:
    """The first request."""
    head = (
        "POST /elivepatch/api/v1.0/get_files HTTP/1.1\r\n"
        f"Host: {host}\r\n"
        f"User-Agent: {AGENT}\r\n"
        "Accept-Encoding: gzip, deflate\r\n"
        "Accept: */*\r\n"
        "Connection: keep-alive\r\n"
        f"KernelVersion: {version}\r\n"
        f"UUID: {uuid}\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        "\r\n"
    )
    return head.encode("latin-1") + body


def send_livepatch(host: str, version: str, uuid: str = UUID) -> bytes:
    """The second request."""
    body = json.dumps({"KernelVersion": version, "UUID": uuid}).encode()
    head = (
        "GET /elivepatch/api/v1.0/send_livepatch HTTP/1.1\r\n"
        f"Host: {host}\r\n"
        f"User-Agent: {AGENT}\r\n"
        "Accept-Encoding: gzip, deflate\r\n"
        "Accept: */*\r\n"
        "Connection: keep-alive\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Content-Type: application/json\r\n"
        "\r\n"
    )
    return head.encode() + body


def exchange(port: int, request: bytes, timeout: float = 60.0, server: str = "127.0.0.1") -> Answer:
    """Send the bytes, and read the one answer."""
    with socket.create_connection((server, port), timeout=timeout) as line:
        line.sendall(request)
        answer = http.client.HTTPResponse(line, method="HEAD" if request.startswith(b"HEAD") else None)
        answer.begin()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


@dataclass(frozen=True)
class ClassicClient:
    """A client of the first version, in one run of it."""

    port: int
    uuid: str = UUID
    server: str = "127.0.0.1"

    @property
    def host(self) -> str:
        return f"{self.server}:{self.port}"

    def post(
        self, version: str, main: bytes, config: bytes, earlier: Sequence[bytes] = (), timeout: float = 60.0
    ) -> Answer:
        body = form(main, config, earlier)
        return exchange(self.port, get_files(self.host, version, body, self.uuid), timeout, self.server)

    def fetch(self, version: str) -> Answer:
        return exchange(self.port, send_livepatch(self.host, version, self.uuid), server=self.server)
