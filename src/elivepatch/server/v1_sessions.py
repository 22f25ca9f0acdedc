# SPDX-License-Identifier: GPL-2.0-or-later
"""What the server remembers of clients of the first version: their sessions, and the patches they have in force.

A session is the UUID that such a client makes for one run; it is all that the client has to fetch its module by. It is
kept in memory: a client that hears nothing of its build any more has ended, and its next run makes another one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from elivepatch.errors import BusyError, InvalidInputError

#: Patches that are remembered; of more, those that were used least recently are forgotten.
REMEMBERED = 10_000


class SessionTakenError(InvalidInputError):
    """The session is another request's."""

    code = "session-taken"
    http_status = 409


@dataclass
class _Session:
    digest: str
    used: float
    waiting: int = 0
    build: str | None = None
    patch: str | None = None


@dataclass
class Sessions:
    """The sessions there are: at most ``limit``, each for ``seconds`` after it was last used.

    Not for several threads: the event loop is the only one that calls it.
    """

    limit: int
    seconds: float
    clock: Callable[[], float] = time.monotonic
    _found: dict[str, _Session] = field(default_factory=dict[str, _Session])

    def __len__(self) -> int:
        return len(self._found)

    def enter(self, uuid: str, digest: str) -> None:
        """Begin to wait in a session; ``digest`` is that of what was sent.

        The same request again waits along. Raises SessionTakenError where the session is another request's, and
        BusyError where there are as many as may be and all of them wait.
        """
        self._forget()
        session = self._found.get(uuid)
        if session is None:
            if len(self._found) >= self.limit:
                self._make_room()
            session = self._found[uuid] = _Session(digest, self.clock())
        elif session.digest != digest:
            raise SessionTakenError(
                "This UUID belongs to another request.",
                hint="Each run makes a UUID of its own; send it with a new one.",
            )
        session.waiting += 1
        session.used = self.clock()

    def leave(self, uuid: str) -> None:
        """End waiting. A session in which there never was a build is gone when nobody waits in it."""
        session = self._found[uuid]
        session.waiting -= 1
        session.used = self.clock()
        if not session.waiting and session.build is None:
            del self._found[uuid]

    def name_build(self, uuid: str, build: str, patch: str) -> None:
        """Say which build a session is about, and what the memory calls its patch."""
        session = self._found[uuid]
        session.build, session.patch = build, patch

    def build(self, uuid: str) -> tuple[str, str] | None:
        """The build of a session and its patch, if they are known."""
        self._forget()
        session = self._found.get(uuid)
        if session is None or session.build is None or session.patch is None:
            return None
        session.used = self.clock()
        return session.build, session.patch

    def _forget(self) -> None:
        since = self.clock() - self.seconds
        for uuid in [one for one, session in self._found.items() if session.used < since and not session.waiting]:
            del self._found[uuid]

    def _make_room(self) -> None:
        idle = [one for one, session in self._found.items() if not session.waiting]
        if not idle:
            raise BusyError("There are as many sessions as this server keeps.")
        del self._found[min(idle, key=lambda one: self._found[one].used)]


class PatchMemory:
    """Which patches were handed out as livepatches to clients of the first version: empty files, by name.

    Such a client sends the patches that its kernel was built with, and behind them those of its livepatches, under one
    name. Which of them are livepatches is only known to the server that made these. What was a livepatch of one kernel
    can have been built into another of that version, so a kernel is known by its configuration too (its digest).
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @staticmethod
    def name(kernel: str, config: str, patch: bytes) -> str:
        """What a patch for a kernel is called here: a digest, in hex."""
        return hashlib.sha256(f"{kernel}\0{config}\0".encode() + patch).hexdigest()

    def knows(self, kernel: str, config: str, patch: bytes) -> bool:
        """Whether that patch was handed out as a livepatch for that kernel."""
        path = self._directory / self.name(kernel, config, patch)
        with contextlib.suppress(OSError):
            os.utime(path)
            return True
        return False

    def add(self, name: str) -> None:
        """Remember a patch. Raises OSError where that cannot be written."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self._directory / name).touch(mode=0o600)
        used: list[tuple[float, Path]] = []
        for path in self._directory.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another request has just forgotten it
                used.append((path.stat().st_mtime, path))
        for _, path in sorted(used)[: max(0, len(used) - REMEMBERED)]:
            path.unlink(missing_ok=True)
