# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal: what the client asked for, loaded and reverted on this host, one file for each livepatch.

A step is on the disk before it is taken. So after a crash the last step says what was going on, and the boot ID in it
whether that was in this boot: ``loading`` from an earlier boot without ``loaded`` behind it means that the host went
down while the module was being loaded. Nothing is decided by the time of day, which can jump: entries have a number,
and steps the time since the host came up.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from elivepatch.client.state import StateDirectory, read_regular, write_whole
from elivepatch.errors import ElivepatchError, HostError
from elivepatch.protocol.models import ChangedFunction

if TYPE_CHECKING:
    from elivepatch.kernel.running import RunningKernel

StepName = Literal[
    "requested",  # the build is about to be asked for
    "received",  # the module is checked and about to be put into the store
    "loading",  # the kernel is about to be given the module
    "loaded",  # the transition has finished
    "present",  # nothing was to be done: the kernel holds this very module already
    "forcing",  # the transition is about to be ended by force, as somebody asked for
    "undoing",  # the load failed, or did not finish in time, and is about to be undone
    "undone",  # the kernel is as it was before
    "reverting",  # the livepatch is about to be disabled and unloaded
    "reverted",  # it is gone
    "replaced",  # a later livepatch that replaces it is in force, and the kernel has let go of it
    "guarded",  # the host went down during the load or soon after it: not to be loaded when the host comes up
    "allowed",  # to be loaded when the host comes up: somebody allowed it again, or that has failed once
    "failed",  # it ended here; detail says why
]
_ENTRY_BYTES = 4 * 1024 * 1024
#: Steps that are kept of an entry, of the first and of the last: each start of the host adds some.
_FIRST_STEPS, _LAST_STEPS = 8, 192
#: Characters that are kept of why a step was taken: it can come from a server.
_DETAIL = 4000


class _Model(BaseModel):
    # unknown fields are passed over: a newer client may have written more, and status must still work
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class Step(_Model):
    """A step: when, in which boot (its random boot_id), and what there is to say.

    ``time`` is seconds since the epoch, for people; ``uptime`` is seconds that the host had run since it came up.
    """

    step: StepName
    time: float
    uptime: float | None = None
    boot_id: str | None = None
    detail: str | None = None


class Input(_Model):
    """A file that was sent. ``name`` is for people; ``livepatch`` is the earlier livepatch that it came from."""

    name: str
    sha256: str
    livepatch: str | None = None


class StoredModule(_Model):
    """The module that came back. ``path`` is where it lies on this host."""

    name: str
    sha256: str
    size: int
    path: str | None = None


class Entry(_Model):
    """All there is to know about one livepatch of this host.

    ``survived`` says that the host ran on for long enough after the last load, ``stopped`` at which uptime (seconds) it
    began to go down in an orderly way with the livepatch in force; both begin anew with each load.
    """

    format: Literal[1] = 1
    id: str
    number: int = Field(default=0, description="orders the entries: renewed with each load")
    release: str
    build_id: str | None = None
    url: str | None = None
    build: str | None = Field(default=None, description="id of the build at the server")
    key: str | None = None
    patches: tuple[Input, ...] = ()
    base_patches: tuple[Input, ...] = ()
    source: str | None = Field(default=None, description="the source of the kernel, where the request named one")
    replaces: tuple[str, ...] = Field(default=(), description="livepatches that end when this one is in force")
    replaced_by: str | None = None
    module: StoredModule | None = None
    proof: str | None = None
    verified: bool | None = None
    unproven: bool = Field(default=False, description="loaded without a report: for one boot, never at the next")
    parameters: str = Field(default="", description="what the module was given, in the form that the kernel parses")
    changed: tuple[ChangedFunction, ...] = ()
    cves: tuple[str, ...] = Field(default=(), description="those that the patches, or their overlays, name")
    overlays: tuple[str, ...] = Field(default=(), description="those that patches came from")
    forced: bool = Field(default=False, description="whether the transition was ended by force")
    survived: bool = False
    stopped: float | None = None
    transition_seconds: float | None = None
    taint_before: int | None = None
    taint_after: int | None = None
    steps: tuple[Step, ...] = ()

    @property
    def last(self) -> Step | None:
        """The last step that was taken or begun."""
        return self.steps[-1] if self.steps else None

    @property
    def brought_back(self) -> bool:
        """Whether its last load was to bring back what had been in force in an earlier boot."""
        names = [taken.step for taken in self.steps]
        at = len(names) - names[::-1].index("loading") - 1 if "loading" in names else 0
        return at > 0 and names[at - 1] in {"loaded", "allowed"}

    @property
    def touched_kernel(self) -> bool:
        """Whether the kernel was, or may have been, changed."""
        return any(taken.step in {"loading", "reverting"} for taken in self.steps)

    def is_for(self, kernel: RunningKernel) -> bool:
        """Whether it is about this very build of a kernel."""
        return (self.release, self.build_id) == (kernel.release, kernel.build_id)

    def at(self, step: StepName) -> Step | None:
        """A step as it was last written."""
        return next((taken for taken in reversed(self.steps) if taken.step == step), None)

    def when(self, step: StepName) -> float | None:
        """When a step was last written, in seconds since the epoch."""
        taken = self.at(step)
        return taken.time if taken else None


class Journal:
    """The files of the journal."""

    def __init__(self, state: StateDirectory) -> None:
        self.state = state

    def entries(self) -> tuple[list[Entry], list[str]]:
        """All entries, oldest first, and what is wrong with the files that cannot be read.

        Raises PermissionError where the journal belongs to another user.
        """
        found: list[Entry] = []
        problems: list[str] = []
        try:
            paths = sorted(self.state.journal.iterdir())
        except FileNotFoundError:
            return found, problems
        except PermissionError:
            raise
        except OSError as error:
            return found, [f"{self.state.journal} cannot be read: {error.strerror}"]
        for path in paths:
            if path.name.startswith(".") or path.suffix != ".json":
                continue
            try:
                found.append(Entry.model_validate_json(read_regular(path, _ENTRY_BYTES)))
            except PermissionError:
                raise
            except FileNotFoundError:  # removed at this moment, as it was old
                continue
            except ValidationError as error:
                problems.append(f"{path} cannot be read: {_unreadable(error)}")
            except OSError as error:
                problems.append(f"{path} cannot be read: {error.strerror}")
        found.sort(key=lambda entry: (entry.number, entry.steps[0].time if entry.steps else 0, entry.id))
        return found, problems

    def begin(self, entry: Entry) -> Record:
        """A record that writes the entry with each step."""
        return Record(self, entry)

    def next_number(self) -> int:
        """The number of an entry that comes after all others."""
        return max((entry.number for entry in self.entries()[0]), default=0) + 1

    def latest_of(self, module: str, kernel: RunningKernel | None = None) -> Entry | None:
        """The youngest entry of a module that was given to the kernel or taken from it.

        Where there are some for ``kernel`` it is the youngest of these.
        """
        entries, _ = self.entries()
        known = [e for e in reversed(entries) if e.module and e.module.name == module and e.touched_kernel]
        return next((e for e in known if kernel and e.is_for(kernel)), known[0] if known else None)


def _unreadable(error: ValidationError) -> str:
    """What is wrong with a file of the journal."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    newer = first["loc"][:1] == ("format",) or first["loc"][2:] == ("step",)
    hint = "; a newer elivepatch may have written it: use that one again" if newer else ""
    return f"{place + ': ' if place else ''}{first['msg']}{hint}"


class Record:
    """An entry being written. Every change is on the disk when the call returns."""

    def __init__(self, journal: Journal, entry: Entry) -> None:
        if not re.fullmatch(r"[0-9A-Za-z-]{1,64}", entry.id):
            raise ValueError(f"not an id of an entry: {entry.id!r}")
        self._journal = journal
        self._state = journal.state
        self.entry = entry

    @property
    def path(self) -> Path:
        """The file of the entry."""
        return self._state.journal / f"{self.entry.id}.json"

    def step(self, step: StepName, *, boot_id: str | None, detail: str | None = None, **changes: object) -> None:
        """Write a step, and what became known since the last one (fields of the entry)."""
        if step == "loading" or not self.entry.steps:
            changes = {"number": self._journal.next_number(), **changes}
        if step == "loading":
            changes = {"survived": False, "stopped": None, "forced": False, "replaced_by": None, **changes}
        if detail and len(detail) > _DETAIL:
            detail = detail[:_DETAIL] + " …"
        taken = Step(step=step, time=time.time(), uptime=round(uptime(), 3), boot_id=boot_id, detail=detail)
        steps = (*self.entry.steps, taken)
        if len(steps) > _FIRST_STEPS + _LAST_STEPS:
            steps = (*steps[:_FIRST_STEPS], *steps[-_LAST_STEPS:])
        self.note(steps=steps, **changes)

    def fail(self, detail: str, *, boot_id: str | None) -> None:
        """Write that it ended here, if that can be written: there is an error on its way that says more.

        What is in force has not failed, whatever came behind that.
        """
        if self.entry.last and self.entry.last.step == "loaded":
            return
        with contextlib.suppress(ElivepatchError):
            self.step("failed", boot_id=boot_id, detail=detail)

    def note(self, **changes: object) -> None:
        """Write what became known (fields of the entry) without a step."""
        entry = self.entry.model_copy(update=changes)
        data = (entry.model_dump_json(exclude_none=True, indent=1) + "\n").encode()
        if len(data) > _ENTRY_BYTES:  # it could not be read again
            raise HostError(
                f"An entry of the journal would have {len(data)} bytes; the limit is {_ENTRY_BYTES}.",
                hint="Nothing is begun that could not be written down. Ask for fewer patches at once.",
            )
        self._state.prepare(self._state.journal)
        write_whole(self.path, data)
        self.entry = entry


def uptime() -> float:
    """Seconds that the host has run since it came up; while it sleeps, a livepatch shows nothing of itself."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def new_id() -> str:
    """An id for an entry; ids sort by the time they were made."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(seconds))}-{nanoseconds // 1000:06d}-{secrets.token_hex(4)}"
