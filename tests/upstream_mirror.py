# SPDX-License-Identifier: GPL-2.0-or-later
"""A loopback mirror of files with the faults that mirrors have."""

from __future__ import annotations

import http.server
import re
import threading
import time
import urllib.parse
from pathlib import Path


class Mirror:
    """Hands out the files below a directory, with ranges, over HTTP/1.1.

    By the name of a file: ``cut`` is after how many bytes of each answer the connection breaks, ``replaced`` is sent
    instead, ``slow`` is seconds before each of its sixteen parts, ``status`` are the next answers instead (0: none),
    ``redirect`` is a location. ``plain`` are names for which ranges are not served, ``lengthless`` those whose length
    is not told. ``asked`` are the requests: path and Range.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cut: dict[str, int] = {}
        self.replaced: dict[str, bytes] = {}
        self.slow: dict[str, float] = {}
        self.status: dict[str, list[int]] = {}
        self.redirect: dict[str, str] = {}
        self.plain: set[str] = set()
        self.lengthless: set[str] = set()
        self.asked: list[tuple[str, str | None]] = []
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                mirror.asked.append((self.path, self.headers["Range"]))
                mirror.answer(self)

            def log_request(self, code: object = "-", size: object = "-") -> None:
                pass

            def log_error(self, format: str, *args: object) -> None:  # noqa: A002  # the name in the base class
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def ranges(self, name: str) -> list[str | None]:
        """The Range of each request for a file of that name."""
        return [range_ for path, range_ in self.asked if path.endswith(f"/{name}")]

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        path = self.directory / urllib.parse.unquote(handler.path).lstrip("/")
        name = path.name
        if name in self.redirect:
            self._head(handler, 302, {"Location": self.redirect[name], "Content-Length": "0"})
        elif self.status.get(name) and (status := self.status[name].pop(0)):
            self._head(handler, status, {"Content-Length": "0"})
        elif path.is_file() or name in self.replaced:
            data = self.replaced[name] if name in self.replaced else path.read_bytes()
            self._send(handler, name, data)
        else:
            self._head(handler, 404, {"Content-Length": "0"})

    @staticmethod
    def _head(handler: http.server.BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.end_headers()

    def _send(self, handler: http.server.BaseHTTPRequestHandler, name: str, data: bytes) -> None:
        tag = f'"{hash(data):x}"'
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")
        if name in self.plain or handler.headers["If-Range"] not in {None, tag}:
            wanted = None
        start = int(wanted[1]) if wanted else 0
        if wanted and start >= len(data):
            self._head(handler, 416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"})
            return
        headers = {"ETag": tag}
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if name in self.lengthless:
            handler.close_connection = True
        else:
            headers["Content-Length"] = str(len(data) - start)
        self._head(handler, 206 if wanted else 200, headers)
        body = data[start : start + self.cut.get(name, len(data))]
        step = len(body) // 16 + 1
        for at in range(0, len(body), step):
            time.sleep(self.slow.get(name, 0))
            try:
                handler.wfile.write(body[at : at + step])
            except OSError:  # the other side has gone
                handler.close_connection = True
                return
        if start + len(body) < len(data):
            handler.close_connection = True
