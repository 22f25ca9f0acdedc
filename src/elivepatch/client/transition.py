# SPDX-License-Identifier: GPL-2.0-or-later
"""Watching and steering the transition of a livepatch, in which the tasks of the kernel move from old code to new.

See Documentation/livepatch/livepatch.rst, "Consistency model". Since Linux 5.1 the kernel itself wakes the tasks that
are behind, every 15 s and without their noticing (klp_send_signals); before that it does so when 1 is written to
``signal``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from elivepatch.client.host import Host
from elivepatch.client.load_errors import LOG_HINT
from elivepatch.client.tasks import Task, tasks_behind
from elivepatch.errors import HostError, TransitionTimeoutError
from elivepatch.kernel.running import livepatch

#: Seconds between two looks at a transition, between two lines about one that takes long, and between two nudges.
POLL = 0.1
_TELL_EVERY = 5.0
_NUDGE_EVERY = 5.0
#: Seconds in which a transition is over once it was ended by force.
_FORCED_WITHIN = 60.0
_TASKS_NAMED = 8
_TASKS_TOLD = 3


@dataclass(frozen=True)
class Transition:
    """The transition of the livepatch ``name``; ``tell`` gets a line for the person now and then."""

    name: str
    host: Host
    tell: Callable[[str], None]

    @property
    def _place(self) -> Path:
        return self.host.root / "sys/kernel/livepatch" / self.name

    def settled(self, *, enabled: bool, timeout: float) -> bool:
        """Whether the livepatch comes to the state within ``timeout`` seconds; one that is gone is disabled.

        Raises HostError where it is gone and should not be.
        """
        clock = self.host.clock
        deadline = clock.now() + timeout
        next_word = clock.now() + _TELL_EVERY
        next_nudge = clock.now() + _NUDGE_EVERY
        while True:
            patch = livepatch(self.name, self.host.root)
            if patch is None and enabled:
                raise HostError(f"The kernel does not hold the livepatch {self.name} (any more).", hint=LOG_HINT)
            if patch is None or (not patch.transition and patch.enabled == enabled):
                return True
            if clock.now() >= deadline:
                return False
            if clock.now() >= next_word:
                tasks = self.holders(patching=patch.enabled)
                self.tell(f"transition: {count(tasks)} still to move{_briefly(tasks)}")
                next_word = clock.now() + _TELL_EVERY
            if clock.now() >= next_nudge:
                self._nudge()
                next_nudge = clock.now() + _NUDGE_EVERY
            clock.sleep(POLL)

    def require(self, *, enabled: bool, timeout: float) -> None:
        """Wait until the livepatch has come to the state. Raises TransitionTimeoutError, which names the holders.

        Their stacks are told as lines.
        """
        if self.settled(enabled=enabled, timeout=timeout):
            return
        tasks = self.holders(patching=enabled)
        self._tell_stacks(tasks)
        what = "The transition of" if enabled else "The transition back of"
        held = f"Held by {count(tasks)}: {named(tasks)}." if tasks else "No task can be seen to hold it."
        raise TransitionTimeoutError(
            f"{what} {self.name} did not finish within {timeout:.0f} s. {held}",
            hint="These tasks sleep in a patched function or never leave the kernel. Let them go on (or restart them) "
            "and try again, or allow more time with --timeout.",
        )

    def switch(self, *, on: bool) -> None:
        """Enable or disable the livepatch, which turns a transition round that is under way. Raises HostError."""
        try:
            self.host.calls.switch(self._place / "enabled", on=on)
        except FileNotFoundError:
            return  # gone meanwhile: the transition had just ended
        except OSError as error:
            patch = livepatch(self.name, self.host.root)
            if patch is None or patch.enabled == on:
                return  # it had just come to that state by itself, which the kernel answers with EINVAL
            raise HostError(
                f"The kernel does not {'enable' if on else 'disable'} {self.name}: {error.strerror}.", hint=LOG_HINT
            ) from error

    def force(self) -> None:
        """End the transition although tasks are still in the old code. Raises HostError."""
        try:
            self.host.calls.switch(self._place / "force", on=True)
        except OSError as error:
            if not self.settled(enabled=True, timeout=0):  # it may have ended by itself just now
                raise HostError(
                    f"The kernel does not end the transition of {self.name} by force: {error.strerror}.", hint=LOG_HINT
                ) from error
        if not self.settled(enabled=True, timeout=_FORCED_WITHIN):
            raise HostError(f"The transition of {self.name} goes on, although it was to be forced.", hint=LOG_HINT)

    def holders(self, *, patching: bool) -> list[Task]:
        """The tasks that the transition waits for."""
        patch = livepatch(self.name, self.host.root)
        functions = frozenset(one.function for one in patch.functions) if patch else frozenset[str]()
        return tasks_behind(self.host.root, patching=patching, functions=functions, module=self.name)

    def _nudge(self) -> None:
        signal = self._place / "signal"
        if signal.exists():  # Linux before 5.1
            with contextlib.suppress(OSError):
                self.host.calls.switch(signal, on=True)

    def _tell_stacks(self, tasks: list[Task]) -> None:
        for task in tasks[:_TASKS_NAMED]:
            if task.stack:
                self.tell(f"stack of {task.pid} ({task.name}):")
                for line in task.stack:
                    self.tell(f"  {line}")


def named(tasks: list[Task]) -> str:
    """The tasks by name, the first of them where they are many."""
    more = f" and {len(tasks) - _TASKS_NAMED} more" if len(tasks) > _TASKS_NAMED else ""
    return (", ".join(str(task) for task in tasks[:_TASKS_NAMED]) or "no task that can be seen") + more


def count(tasks: list[Task]) -> str:
    """How many, in words."""
    return "1 task" if len(tasks) == 1 else f"{len(tasks)} tasks"


def _briefly(tasks: list[Task]) -> str:
    if not tasks:
        return ""
    more = ", …" if len(tasks) > _TASKS_TOLD else ""
    return f": {', '.join(str(task) for task in tasks[:_TASKS_TOLD])}{more}"
