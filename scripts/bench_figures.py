# SPDX-License-Identifier: GPL-2.0-or-later
"""What bench.py measures with: figures and their goals, and a watch over memory and disk."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from elivepatch.build.store import disk_usage

MIB = 1024**2


@dataclass(frozen=True)
class Figure:
    """A measured figure: the median of ``raw`` in ``unit``, or ``value`` where it is made of several; its goal, if it
    has one, is an upper limit."""

    name: str
    unit: str
    raw: Sequence[float]
    goal: float | None = None
    value: float | None = None

    @property
    def result(self) -> float:
        return median(self.raw) if self.value is None else self.value

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        return "met" if self.result <= self.goal else "missed"

    def as_data(self) -> dict[str, object]:
        goal = {} if self.goal is None else {"goal": self.goal, "met": self.verdict == "met"}
        raw = [round(one, 4) for one in self.raw]
        return {"name": self.name, "value": round(self.result, 4), "unit": self.unit, "raw": raw, **goal}


def shown(value: float, unit: str) -> str:
    digits = {"s": 2, "x": 2, "ms": 1}.get(unit, 0)
    return f"{value:.{digits}f} {unit}"


@dataclass
class Taken:
    """The most that a build took at any one time, in bytes: by its largest process, all of them, and on disk."""

    process: int = 0
    together: int = 0
    disk: int = 0

    def figures(self, what: str) -> list[Figure]:
        return [
            Figure(f"{what}, memory of its largest process", "MB", [self.process / MIB], 2048.0),
            Figure(f"{what}, memory of its processes together", "MB", [self.together / MIB], 2048.0),
            Figure(f"{what}, disk of the job at its peak", "MB", [self.disk / MIB], 100.0),
        ]


@contextlib.contextmanager
def watched(directory: Path, taken: Taken) -> Generator[None]:
    """Look thirty times a second at what lies below a directory and at the processes that descend from this one.

    What processes in a sandbox took is not in the usage that the system adds up for their parents, so they are watched.
    """
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.033):
            taken.disk = max(taken.disk, disk_usage(directory))
            resident = memory_of_descendants(os.getpid())
            taken.process = max(taken.process, *(peak for _, peak in resident), 0)
            taken.together = max(taken.together, sum(now for now, _ in resident))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def memory_of_descendants(pid: int) -> list[tuple[int, int]]:
    """Resident memory in bytes, now and at its peak, of each process that descends from one (proc_pid_status(5))."""
    parents: dict[int, tuple[int, int, int]] = {}
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            facts = dict(re.findall(r"^(PPid|VmRSS|VmHWM):\s*(\d+)", path.read_text(errors="replace"), re.MULTILINE))
            peak = int(facts.get("VmHWM", 0)) * 1024
            parents[int(path.parent.name)] = (int(facts["PPid"]), int(facts.get("VmRSS", 0)) * 1024, peak)
    family: set[int] = set()
    following = {pid}
    while following:
        family |= following
        following = {one for one, (parent, _, _) in parents.items() if parent in family and one not in family}
    return [parents[one][1:] for one in family - {pid} if one in parents]
