# SPDX-License-Identifier: GPL-2.0-or-later
"""A real server on a loopback port, with builds that are short: everything is real but the build itself.

Run as a program, this file is that server; `server_runner` is the process of one of its builds.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import httpx2
from server_runner import key_of

from elivepatch.server.jobs.directory import JobDirectory, Worker
from elivepatch.server.serve_command import serve_settings
from elivepatch.server.settings import load

BASE = "/elivepatch/api/v2"
FINAL = {"done", "refused", "failed", "cancelled"}


def patch(token: str) -> bytes:
    """A patch that is one, different for each token."""
    return (
        f"--- a/fs/proc/meminfo.c\n+++ b/fs/proc/meminfo.c\n@@ -1,2 +1,2 @@\n /* first */\n-/* old */\n+/* {token} */\n"
    ).encode()


def short_runner(*extra: str) -> tuple[str, ...]:
    """The argv of the process of a short build."""
    return (sys.executable, str(Path(__file__).resolve().with_name("server_runner.py")), *extra)


class ServerProcess:
    """A server as a process of its own, on a free loopback port."""

    def __init__(self, data: Path, environment: Mapping[str, str] | None = None) -> None:
        self.data = data
        self._environment = dict(environment or {})
        self._log = data.parent / f"{data.name}.log"
        self._child: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.scheme = ""

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}{BASE}"

    def log(self) -> str:
        return self._log.read_text()

    def start(self) -> None:
        with self._log.open("ab") as log:
            log.write(b"---- start\n")
            log.flush()
            self._child = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve())],
                env={
                    **os.environ,
                    "ELIVEPATCH_DATA": str(self.data),
                    "ELIVEPATCH_CACHE": str(self.data / "cache"),
                    "ELIVEPATCH_PORT": "0",
                    "ELIVEPATCH_CANCEL_SECONDS": "2",
                    **self._environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            current = self.log().rsplit("---- start\n", 1)[-1]
            if found := re.search(r"Serving on (https?)://127\.0\.0\.1:(\d+)", current):
                self.scheme, self.port = found[1], int(found[2])
                return
            assert self._child.poll() is None, current
            time.sleep(0.02)
        raise AssertionError("The server did not come up:\n" + self.log())

    def kill(self, number: int = signal.SIGKILL) -> int:
        """End it by its id; its exit status."""
        assert self._child is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child.pid, number)
        return self._child.wait(30)

    def stop(self) -> None:
        """End it and what is left of its builds, by their ids."""
        if self._child is not None and self._child.poll() is None:
            self.kill(signal.SIGTERM)
        for path in (self.data / "builds").glob("*"):
            if (worker := JobDirectory(path).worker()) and JobDirectory(path).running():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(worker.pid, signal.SIGKILL)


@contextlib.contextmanager
def serving(data: Path, **environment: str) -> Generator[ServerProcess]:
    """A server that runs; environment is settings in lower case."""
    server = ServerProcess(data, {f"ELIVEPATCH_{name.upper()}": value for name, value in environment.items()})
    try:
        server.start()
        yield server
    finally:
        server.stop()


def form(kernel: str, *patches: bytes, **more: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    """The parts of a request."""
    parts = [("request", ("request", json.dumps({"kernel": kernel}).encode(), "application/json"))]
    parts += [("patch", (f"{n}.patch", data, "text/x-patch")) for n, data in enumerate(patches)]
    parts += [(name, (name, data, "application/octet-stream")) for name, data in more.items()]
    return parts


def post(server: ServerProcess, kernel: str, *patches: bytes, **more: bytes) -> httpx2.Response:
    return httpx2.post(f"{server.url}/builds", files=form(kernel, *patches, **more), timeout=30)


def get(server: ServerProcess, path: str, **headers: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.get(f"{server.url}{path}", headers=named, timeout=30)


def wait(server: ServerProcess, build_id: str, seconds: float = 60) -> dict[str, Any]:
    """The build once it has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        build: dict[str, Any] = get(server, f"/builds/{build_id}").json()
        if build["status"] in FINAL:
            return build
        time.sleep(0.05)
    raise AssertionError(f"Build {build_id} did not end within {seconds} s.\n{server.log()}")


def wait_for_status(server: ServerProcess, build_id: str, *statuses: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if get(server, f"/builds/{build_id}").json()["status"] in statuses:
            return
        time.sleep(0.02)
    raise AssertionError(f"Build {build_id} never was {statuses}.")


def worker_of(server: ServerProcess, build_id: str) -> Worker:
    """The process of a build, as soon as it has said who it is."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        directory = JobDirectory(server.data / "builds" / build_id)
        worker = directory.worker()
        if worker is not None and directory.running():
            return worker
        time.sleep(0.02)
    raise AssertionError(f"Build {build_id} never had a process.")


def events_of(text: str) -> list[tuple[int, str, dict[str, Any]]]:
    """The events of a stream that has ended."""
    found: list[tuple[int, str, dict[str, Any]]] = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


def _serve() -> None:
    logging.basicConfig(level=logging.INFO)
    limit = os.environ.get("TEST_FILE_BYTES")
    serve_settings(load(), runner=short_runner(*(["--file-bytes", limit] if limit else [])), key=key_of)


if __name__ == "__main__":
    _serve()
