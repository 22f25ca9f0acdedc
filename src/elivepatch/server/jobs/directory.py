# SPDX-License-Identifier: GPL-2.0-or-later
"""The directory of a build: all that its process gets, tells and leaves, and whether it lives.

    request.json     the request and the list of its input files; ``input-N`` are the files, by index
    workshop.json    where and how large the build may be; written anew at each start
    lock             held (flock) by the build's process as long as it lives; its content is ``PID STARTTIME``
    events.jsonl     one event a line; the number of the line, counted from 1, is the id of the event
    runner.log       what the process wrote to its output: for the operator, never served
    reserve          disk kept free for saying how the build ended when the disk is full
    output/          where the build puts what it makes
    module.ko        the module of a build that is done
    report.json      how the build ended, written last and at once

Everything that must be known after a restart of the server, or after the sudden end of either process, is here.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter

from elivepatch.build.store import remove_tree
from elivepatch.errors import InternalError
from elivepatch.job import InputFile, Job
from elivepatch.protocol.models import BuildRequest, Report
from elivepatch.server.artifacts import sync_directory, write_atomically
from elivepatch.workshop import Workshop

_Role = Literal["patch", "base_patch", "config", "check", "symbols"]


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _StoredFile(_Stored):
    role: _Role
    name: str
    file: str
    sha256: str


class _StoredJob(_Stored):
    key: str
    request: BuildRequest
    files: tuple[_StoredFile, ...]


_WORKSHOP = TypeAdapter(Workshop)


@dataclass(frozen=True)
class Worker:
    """A process, named so that no later process with its pid is taken for it.

    ``started`` is the start time in clock ticks since boot, field 22 of /proc/PID/stat (proc(5)).
    """

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether this very process still exists."""
        return process_start(self.pid) == self.started


def process_start(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is none of that pid."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The name of the program may hold spaces and parentheses; it ends at the last one.
    return int(stat[stat.rindex(")") + 2 :].split()[19])


@dataclass(frozen=True)
class JobDirectory:
    """The directory of one build."""

    path: Path

    @property
    def events(self) -> Path:
        """What the build told."""
        return self.path / "events.jsonl"

    @property
    def log(self) -> Path:
        """The output of the build's process."""
        return self.path / "runner.log"

    @property
    def output(self) -> Path:
        """Where the build puts what it makes."""
        return self.path / "output"

    @property
    def module(self) -> Path:
        """The module of a build that is done."""
        return self.path / "module.ko"

    @property
    def reserve(self) -> Path:
        """Disk kept free for saying how the build ended."""
        return self.path / "reserve"

    @property
    def _report(self) -> Path:
        return self.path / "report.json"

    def create(self, job: Job, key: str) -> None:
        """Write the inputs, all of them to the disk. Raises OSError, with nothing left behind."""
        self.path.mkdir(parents=True, mode=0o711)
        try:
            for path in (self.events, self.log):
                path.touch(mode=0o600)
            stored: list[_StoredFile] = []
            for role, name, data in _inputs(job):
                file = f"input-{len(stored)}"
                write_atomically(self.path / file, data)
                stored.append(_StoredFile(role=role, name=name, file=file, sha256=hashlib.sha256(data).hexdigest()))
            content = _StoredJob(key=key, request=job.request, files=tuple(stored)).model_dump_json(exclude_none=True)
            write_atomically(self.path / "request.json", content.encode())
            sync_directory(self.path.parent)
        except BaseException:
            self.remove()
            raise

    def read_job(self) -> tuple[Job, str]:
        """The build that was asked for, and its key. Raises InternalError when it was altered."""
        try:
            stored = _StoredJob.model_validate_json((self.path / "request.json").read_bytes())
            found: dict[str, list[InputFile]] = {role: [] for role in get_args(_Role)}
            for index, entry in enumerate(stored.files):
                data = (self.path / f"input-{index}").read_bytes()
                if hashlib.sha256(data).hexdigest() != entry.sha256:
                    raise InternalError(f"An input of the build in '{self.path}' has changed on the disk.")
                found[entry.role].append(InputFile(entry.name, data))
        except (OSError, ValueError) as error:
            raise InternalError(f"The build in '{self.path}' cannot be read: {error}") from error
        job = Job(
            request=stored.request,
            patches=tuple(found["patch"]),
            base_patches=tuple(found["base_patch"]),
            config=found["config"][0].data if found["config"] else None,
            check=found["check"][0].data if found["check"] else None,
            symbols=found["symbols"][0].data if found["symbols"] else None,
        )
        return job, stored.key

    def write_workshop(self, workshop: Workshop) -> None:
        """Say where the build is made."""
        write_atomically(self.path / "workshop.json", _WORKSHOP.dump_json(workshop))

    def read_workshop(self) -> Workshop:
        """Where the build is made."""
        return _WORKSHOP.validate_json((self.path / "workshop.json").read_bytes())

    def prepare_attempt(self) -> None:
        """Clear away what an earlier attempt left, its events excepted: those were told."""
        self.remove_output()
        self._report.unlink(missing_ok=True)
        self.module.unlink(missing_ok=True)
        self.output.mkdir(mode=0o711)
        _end_last_line(self.events)

    def remove_output(self) -> None:
        """Free the disk of what the build made and kept in reserve."""
        if self.output.exists():
            remove_tree(self.output)
        self.reserve.unlink(missing_ok=True)

    def write_report(self, report: Report) -> None:
        """Say how the build ended."""
        write_atomically(self._report, report.dump_json().encode())

    def read_report(self) -> Report | None:
        """How the build ended, or None when nobody said so. Raises InternalError for one that cannot be read."""
        try:
            return Report.model_validate_json(self._report.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InternalError(f"The report in '{self.path}' cannot be read: {error}") from error

    def take_lock(self) -> int | None:
        """Take the lock of the build's process and return its descriptor; None when a process holds it.

        The one who starts the process takes the lock and lets the process inherit it, so that there is no moment in
        which a started process does not hold it.
        """
        handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.ftruncate(handle, 0)
        return handle

    def running(self) -> bool:
        """Whether a process of this build lives."""
        try:
            handle = os.open(self.path / "lock", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def worker(self) -> Worker | None:
        """The process that holds the lock, once it said who it is."""
        try:
            pid, started = (self.path / "lock").read_text(encoding="ascii").split()
            return Worker(int(pid), int(started))
        except (OSError, ValueError):
            return None

    def remove(self) -> None:
        """Remove the directory; nothing may run in it."""
        remove_tree(self.path)


def hold_lock(handle: int) -> None:
    """In the build's process: hold the inherited lock, and write down who holds it."""
    os.set_inheritable(handle, False)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ours already; fails where somebody passed a wrong one
    os.pwrite(handle, f"{os.getpid()} {process_start(os.getpid())}\n".encode("ascii"), 0)


def _inputs(job: Job) -> Generator[tuple[_Role, str, bytes]]:
    for file in job.patches:
        yield "patch", file.name, file.data
    for file in job.base_patches:
        yield "base_patch", file.name, file.data
    if job.config is not None:
        yield "config", "config", job.config
    if job.check is not None:
        yield "check", "check", job.check
    if job.symbols is not None:
        yield "symbols", "symbols", job.symbols


def _end_last_line(path: Path) -> None:
    """End the line that a process was writing when it died, so that the next line is a line of its own."""
    try:
        with path.open("r+b") as stream:
            if stream.seek(0, os.SEEK_END) == 0:
                return
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
    except FileNotFoundError:
        return


@dataclass
class EventReader:
    """Reads the lines of an events file as they come; ``line`` is how many were read."""

    path: Path
    offset: int = 0
    line: int = 0
    #: Bytes that one call reads at most.
    chunk: int = 256 * 1024

    def grown(self) -> bool:
        """Whether there is more to read."""
        try:
            return self.path.stat().st_size > self.offset
        except FileNotFoundError:
            return False

    def advance(self) -> bool:
        """Read on, only to count; whether there was anything."""
        before = self.offset
        self.read()
        return self.offset > before

    def read(self) -> list[tuple[int, dict[str, Any]]]:
        """The events that were added, each with its id; lines that are no event (torn by a kill) only count."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.offset)
                data = stream.read(self.chunk)
        except FileNotFoundError:
            return []
        whole = data.rfind(b"\n") + 1
        found: list[tuple[int, dict[str, Any]]] = []
        for raw in data[:whole].split(b"\n")[:-1]:
            self.line += 1
            event = parse_event(raw)
            if event is not None:
                found.append((self.line, event))
        # No line is that long (the runner cuts them); if one is, reading goes on behind it instead of never.
        self.offset += whole if whole or len(data) < self.chunk else len(data)
        return found


def parse_event(raw: bytes) -> dict[str, Any] | None:
    """The event of a line, or None when it is not one."""
    try:
        data: object = json.loads(raw)
    except ValueError:
        return None
    return data if isinstance(data, dict) and "kind" in data else None  # pyright: ignore[reportUnknownVariableType]


@contextmanager
def only_server(data: Path) -> Generator[None]:
    """Hold the data directory as the only server on it. Raises BlockingIOError when another one does."""
    handle = os.open(data / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
