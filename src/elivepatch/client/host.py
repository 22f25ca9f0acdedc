# SPDX-License-Identifier: GPL-2.0-or-later
"""The host as the client sees it: its file systems, its clock, and what changes its kernel."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from elivepatch.errors import UnavailableError

#: finit_module and delete_module by machine, from the syscall tables of the kernel: C libraries wrap one or none.
_CALLS = {
    "x86_64": (313, 176),
    "i686": (350, 129),
    "ppc64le": (353, 129),
    "ppc64": (353, 129),
    "s390x": (344, 129),
    "arm": (379, 129),
    # asm-generic/unistd.h
    "aarch64": (273, 106),
    "riscv64": (273, 106),
    "loongarch64": (273, 106),
}


class ModuleCalls(Protocol):
    """What changes a kernel: modules in and out, and the switch of a livepatch. All raise OSError with its errno."""

    def load(self, descriptor: int, parameters: str = "") -> None:
        """Load the module file that is open for reading (finit_module(2)); returns when its init has ended.

        ``parameters`` are those of the module, in the form that the kernel parses.
        """
        ...

    def unload(self, name: str) -> None:
        """Remove a module without waiting (delete_module(2))."""
        ...

    def switch(self, path: Path, *, on: bool) -> None:
        """Write 1 or 0 to a file of sysfs; the kernel has acted when the call returns."""
        ...


class Clock(Protocol):
    """How time passes, in seconds; tests have their own."""

    def now(self) -> float:
        """Seconds since some moment; never goes back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class KernelCalls:
    """The real system calls."""

    def load(self, descriptor: int, parameters: str = "") -> None:
        """See `ModuleCalls`."""
        self._call(0, descriptor, parameters.encode(), 0)

    def unload(self, name: str) -> None:
        """See `ModuleCalls`."""
        self._call(1, name.encode(), os.O_NONBLOCK)

    def switch(self, path: Path, *, on: bool) -> None:
        """See `ModuleCalls`."""
        with path.open("w") as stream:
            stream.write("1" if on else "0")

    def _call(self, which: int, *arguments: int | bytes) -> None:
        machine = call_table(platform.machine(), struct.calcsize("P"))
        numbers = _CALLS.get(machine)
        if numbers is None:
            raise UnavailableError(
                f"Loading modules is not known for a {machine}.",
                hint="Fetch the module with --no-load -o FILE and load it with insmod.",
            )
        libc = ctypes.CDLL(None, use_errno=True)
        words = [ctypes.c_long(word) if isinstance(word, int) else ctypes.c_char_p(word) for word in arguments]
        if libc.syscall(ctypes.c_long(numbers[which]), *words) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def call_table(machine: str, word_bytes: int) -> str:
    """Whose system calls a program has: a 32-bit one on a 64-bit kernel those of the small machine."""
    if word_bytes == 8:
        return machine
    if machine.startswith("arm"):
        return "arm"
    return {"x86_64": "i686", "i386": "i686", "i586": "i686", "aarch64": "arm"}.get(machine, f"32-bit {machine}")


class SystemClock:
    """The real clock."""

    def now(self) -> float:
        """See `Clock`."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """See `Clock`."""
        time.sleep(seconds)


@dataclass(frozen=True)
class Host:
    """A host: everything of it is reached through here, so that a test can put another in its place.

    ``signal`` sends a signal to a process, by their numbers.
    """

    root: Path = Path("/")
    calls: ModuleCalls = field(default_factory=KernelCalls)
    clock: Clock = field(default_factory=SystemClock)
    user: int = field(default_factory=os.geteuid)
    signal: Callable[[int, int], None] = os.kill
