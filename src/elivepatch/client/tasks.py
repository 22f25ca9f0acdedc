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
    """A task that has not moved yet. ``stack`` is its kernel stack, innermost first; empty where it may not be read.

    ``at`` is the frame of the stack that holds it there, or else the innermost one.
    """

    pid: int
    name: str
    stack: tuple[str, ...]
    at: str | None = None

    def __str__(self) -> str:
        where = f" in {self.at}" if self.at else ""
        return f"{self.pid} ({self.name}){where}"


def tasks_behind(
    root: Path, *, patching: bool, functions: frozenset[str] = frozenset(), module: str | None = None
) -> list[Task]:
    """The tasks that a transition waits for: to the patched state, or (``patching`` false) back from it.

    ``functions`` are those that are replaced, ``module`` is the livepatch that has their new code: a frame in either of
    them is what keeps a task from moving (klp_check_stack() in kernel/livepatch/transition.c).
    /proc/PID/task/TID/patch_state is -1 outside a transition, 0 unpatched, 1 patched.
    """
    behind = "0" if patching else "1"
    found: list[Task] = []
    for place in _task_directories(root):
        with contextlib.suppress(OSError):  # tasks come and go, and some may not be looked at
            if (place / "patch_state").read_text().strip() == behind:
                stack = _stack(place)
                holding = (frame for frame in stack if _symbol(frame) in functions or frame.endswith(f" [{module}]"))
                at = next(holding, stack[0] if stack else None)
                found.append(Task(int(place.name), _name(place), stack, at))
    return found


def _task_directories(root: Path) -> Iterator[Path]:
    for process in sorted(_numbered(root / "proc"), key=lambda path: int(path.name)):
        with contextlib.suppress(OSError):
            yield from sorted(_numbered(process / "task"), key=lambda path: int(path.name))


def _numbered(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.name.isdecimal()]


def _name(place: Path) -> str:
    """What a task calls itself: any bytes, as its owner likes (prctl(2), PR_SET_NAME)."""
    name = (place / "comm").read_bytes().decode(errors="replace").strip()
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name)


def _symbol(frame: str) -> str:
    return frame.partition("+")[0]


def _stack(place: Path) -> tuple[str, ...]:
    try:
        lines = (place / "stack").read_text().splitlines()
    except OSError:
        return ()
    # "[<0>] function+0x12/0x34 [module]"
    return tuple(line.partition("] ")[2].strip() for line in lines[:_STACK_LINES] if "] " in line)
