# SPDX-License-Identifier: GPL-2.0-or-later
"""Which tasks hold a transition up (Documentation/livepatch/livepatch.rst, "Consistency model")."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_STACK_LINES = 12


@dataclass(frozen=True)
class Task:
    """A task that has not moved yet. ``stack`` is its kernel stack, innermost first; empty where it may not be read."""

    pid: int
    name: str
    stack: tuple[str, ...]

    def __str__(self) -> str:
        where = f" in {self.stack[0]}" if self.stack else ""
        return f"{self.pid} ({self.name}){where}"


def tasks_behind(root: Path, *, patching: bool) -> list[Task]:
    """The tasks that a transition waits for: to the patched state, or (``patching`` false) back from it.

    /proc/PID/task/TID/patch_state is -1 outside a transition, 0 unpatched, 1 patched.
    """
    behind = "0" if patching else "1"
    found: list[Task] = []
    for place in _task_directories(root):
        with contextlib.suppress(OSError):  # tasks come and go, and some may not be looked at
            if (place / "patch_state").read_text().strip() == behind:
                found.append(Task(int(place.name), (place / "comm").read_text().strip(), _stack(place)))
    return found


def _task_directories(root: Path) -> Iterator[Path]:
    for process in sorted(_numbered(root / "proc"), key=lambda path: int(path.name)):
        with contextlib.suppress(OSError):
            yield from sorted(_numbered(process / "task"), key=lambda path: int(path.name))


def _numbered(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.name.isdecimal()]


def _stack(place: Path) -> tuple[str, ...]:
    try:
        lines = (place / "stack").read_text().splitlines()
    except OSError:
        return ()
    # "[<0>] function+0x12/0x34 [module]"
    return tuple(line.partition("] ")[2].strip() for line in lines[:_STACK_LINES] if "] " in line)
