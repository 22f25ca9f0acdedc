# SPDX-License-Identifier: GPL-2.0-or-later
"""A build server made of scripts: it speaks API v2 over real HTTP on loopback, and misbehaves as it is told."""

from __future__ import annotations

import email
import email.policy
import hashlib
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from client_fakes import BUILD_ID, FUNCTIONS, NAME, RELEASE, elf_module

BASE = "/elivepatch/api/v2"
KEY = "ab" * 32


def done_report(module: bytes, **changes: Any) -> dict[str, Any]:
    """The report of a build that is done; None takes a field out."""
    data: dict[str, Any] = {
        "status": "done",
        "key": KEY,
        "exit_status": 0,
        "kernel": {"release": RELEASE, "build_id": BUILD_ID},
        "module": {"name": NAME, "sha256": hashlib.sha256(module).hexdigest(), "size": len(module)},
        "changed": [
            *({"object": o, "function": f, "kind": "changed"} for o, f in FUNCTIONS),
            {"object": "vmlinux", "function": "helper", "kind": "new"},
        ],
        "proof": {"level": "exact", "functions": []},
        "verification": {"booted": True, "loaded": True, "reverted": True},
    }
    data.update(changes)
    return {key: value for key, value in data.items() if value is not None}


@dataclass
class Seen:
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def parts(self) -> list[tuple[str, str | None, bytes]]:
        """Name, file name and content of each part of a form."""
        message = email.message_from_bytes(
            f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode() + self.body, policy=email.policy.HTTP
        )
        found: list[tuple[str, str | None, bytes]] = []
        for part in message.iter_parts():
            name = part["content-disposition"].params["name"]
            content = part.get_payload(decode=True)
            assert isinstance(content, bytes)
            found.append((name, part.get_filename(), content))
        return found


@dataclass
class Server:
    """What the server is to do, and what it saw.

    ``events`` are sent one by one; ``break_after`` says, for each connection in turn, after how many of them it is cut.
    ``module_bytes`` says, for each download in turn, how many bytes are sent before it is cut. ``problem`` answers the
    request for a build, ``down`` is how many requests for the build are answered with 502. ``images`` are the digests
    of those that it has, ``kernels`` what it has prepared, ``image_problems`` answer the images that are sent, in turn.
    ``reports`` are those of the builds in turn, before ``report``.
    """

    module: bytes = field(default_factory=elf_module)
    report: dict[str, Any] | None = None
    status: str = "done"
    events: list[dict[str, Any]] = field(
        default_factory=lambda: [
            {"kind": "phase", "message": "preparing", "phase": "preparing", "time": 1.0},
            {"kind": "step", "message": "compile fs/proc/meminfo.o", "phase": "building", "time": 2.0, "fraction": 0.5},
            {"kind": "log", "message": "CC fs/proc/meminfo.o", "phase": "building", "time": 3.0},
            {"kind": "done", "message": "The build is done.", "phase": "done", "time": 4.0},
        ]
    )
    break_after: list[int] = field(default_factory=list[int])
    module_bytes: list[int] = field(default_factory=list[int])
    problem: tuple[int, dict[str, Any] | bytes] | None = None
    redirect: str | None = None
    images: set[str] = field(default_factory=set[str])
    kernels: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    image_problems: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    reports: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    down: int = 0
    seen: list[Seen] = field(default_factory=list[Seen])
    told: int = 0
    url: str = ""

    def build(self) -> dict[str, Any]:
        ended = self.told >= len(self.events)
        data: dict[str, Any] = {
            "id": "b-1",
            "key": KEY,
            "status": self.status if ended else "building",
            "kernel": RELEASE,
            "created": 1.0,
        }
        if ended:
            number = len(self.paths("POST")) - 1
            report = self.reports[number] if number < len(self.reports) else None
            data["report"] = report or self.report or done_report(self.module)
            data["status"] = data["report"]["status"] if report else data["status"]
        return data

    def paths(self, method: str) -> list[str]:
        return [seen.path.removeprefix(BASE) for seen in self.seen if seen.method == method]


class ServerHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 the base class calls it so
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self._note(body)
        if self.script.redirect:
            self._answer(307, b"", {"Location": self.script.redirect})
        elif self.script.problem:
            status, problem = self.script.problem
            if isinstance(problem, bytes):
                self._answer(status, problem, {"Content-Type": "text/html"})
            else:
                self._answer(status, json.dumps(problem).encode(), {"Content-Type": "application/problem+json"})
        elif (image := self._named_image()) and image not in self.script.images:
            self._problem(404, "not-found", "The image is not here.")
        else:
            self._json(202, {**self.script.build(), "status": "queued"}, {"Location": f"{BASE}/builds/b-1"})

    def do_GET(self) -> None:
        self._note(b"")
        if self.path == f"{BASE}/builds/b-1":
            if self.script.down:
                self.script.down -= 1
                self._answer(502, b"<html>bad gateway", {"Content-Type": "text/html"})
            else:
                self._json(200, self.script.build(), {})
        elif self.path == f"{BASE}/builds/b-1/events":
            self._events()
        elif self.path == f"{BASE}/builds/b-1/module":
            self._module()
        elif self.path == f"{BASE}/kernels":
            self._json(200, {"kernels": self.script.kernels}, {})
        elif self.path.startswith(f"{BASE}/images/"):
            if self._digest() in self.script.images:
                self._answer(204, b"", {})
            else:
                self._problem(404, "not-found", "The image is not here.")
        else:
            self._answer(404, b"", {})

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self._note(body)
        if self.script.image_problems:
            status, code = self.script.image_problems.pop(0)
            self._problem(status, code, "The image is not taken.")
        elif hashlib.sha256(body).hexdigest() != self._digest():
            self._problem(422, "invalid-input", "It has another digest.")
        else:
            self.script.images.add(self._digest())
            self._answer(204, b"", {})

    def _digest(self) -> str:
        return self.path.rpartition("/")[2]

    def _named_image(self) -> str | None:
        image: str | None = json.loads(self.script.seen[-1].parts()[0][2]).get("image")
        return image

    def _problem(self, status: int, code: str, detail: str) -> None:
        data = {"type": "about:blank", "title": detail, "status": status, "code": code, "detail": detail, "hint": "Hm."}
        self._answer(status, json.dumps(data).encode(), {"Content-Type": "application/problem+json"})

    def _note(self, body: bytes) -> None:
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.script.seen.append(Seen(self.command, self.path, headers, body))

    def _json(self, status: int, data: dict[str, Any], headers: dict[str, str]) -> None:
        self._answer(status, json.dumps(data).encode(), {"Content-Type": "application/json", **headers})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status != 204:
            self.wfile.write(body)

    def _events(self) -> None:
        after = int(self.headers.get("last-event-id", "0"))
        cut = self.script.break_after.pop(0) if self.script.break_after else None
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._chunk(b": hello\n\n")
        for count, (number, event) in enumerate(list(enumerate(self.script.events, 1))[after:]):
            if count == cut:
                self._chunk(b"id: 999\ndata: {half")  # an event that is not whole must not count
                self.close_connection = True
                return
            self._chunk(f"id: {number}\r\nevent: {event['kind']}\r\ndata: {json.dumps(event)}\r\n\r\n".encode())
            self.script.told = max(self.script.told, number)
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _module(self) -> None:
        data = self.script.module
        count = self.script.module_bytes.pop(0) if self.script.module_bytes else len(data)
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:count])
        if count < len(data):
            self.close_connection = True


@contextmanager
def serving(script: Server) -> Generator[Server]:
    """Run the server on a free port; ``script.url`` is its address."""
    handler = type("Handler", (ServerHandler,), {"script": script})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
