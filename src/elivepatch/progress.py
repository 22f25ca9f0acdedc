# SPDX-License-Identifier: GPL-2.0-or-later
"""What a long job tells while it runs: a stream of small events, the same on a terminal, in a log and over HTTP."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

Kind = Literal["phase", "step", "log", "done"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened.

    ``phase`` is a state of the life of a build (preparing, building, verifying, signing). ``time`` is seconds since
    the epoch. ``fraction`` is how much of the step is done, 0 to 1, where that is known.
    """

    kind: Kind
    message: str
    phase: str = ""
    time: float = 0.0
    fraction: float | None = None

    def as_json(self) -> str:
        """The event on one line; fields that do not apply are absent."""
        return json.dumps({k: v for k, v in asdict(self).items() if v is not None}, ensure_ascii=False)

    @staticmethod
    def from_json(line: str) -> Event:
        """An event that `as_json` wrote."""
        data: dict[str, Any] = json.loads(line)  # Any: checked by the constructor's field names
        return Event(**data)


Sink = Callable[[Event], None]


class Progress:
    """The place where a job tells what it does, and where the time of its parts is measured.

    Safe to use from several threads. ``timings`` maps the names given to `timed` to wall seconds.
    """

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks
        self._phase = ""
        self._lock = threading.Lock()
        self.timings: dict[str, float] = {}

    def _tell(self, kind: Kind, message: str, fraction: float | None = None) -> None:
        event = Event(kind=kind, message=message, phase=self._phase, time=time.time(), fraction=fraction)
        with self._lock:
            for sink in self._sinks:
                sink(event)

    def phase(self, name: str, message: str | None = None) -> None:
        """Enter a state of the life of a build."""
        self._phase = name
        self._tell("phase", message or name)

    def step(self, message: str, fraction: float | None = None) -> None:
        """Tell what is being done now, and how far it is."""
        self._tell("step", message, fraction)

    def log(self, line: str) -> None:
        """Pass on a line of a program's output."""
        self._tell("log", line)

    def done(self, message: str) -> None:
        """Tell that the job has ended."""
        self._tell("done", message)

    @contextlib.contextmanager
    def timed(self, name: str) -> Generator[None]:
        """Add the wall time of the block to the timing of that name."""
        began = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self.timings[name] = self.timings.get(name, 0.0) + time.monotonic() - began


def printable(text: str) -> str:
    """The text without control characters, so that what programs say cannot play with a terminal; lines stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def to_terminal(stream: TextIO, *, verbose: bool = False) -> Sink:
    """A sink that writes plain lines: phases and steps, and with ``verbose`` the output of programs too."""
    began = time.monotonic()

    def sink(event: Event) -> None:
        if event.kind == "log" and not verbose:
            return
        fraction = f" {event.fraction:4.0%}" if event.fraction is not None else ""
        print(f"[{time.monotonic() - began:6.1f} s] {printable(event.message)}{fraction}", file=stream, flush=True)

    return sink


def to_file(path: Path) -> Sink:
    """A sink that appends each event as a line of JSON and gets it to the file at once."""
    stream = path.open("a", encoding="utf-8", buffering=1)

    def sink(event: Event) -> None:
        stream.write(event.as_json() + "\n")

    return sink
