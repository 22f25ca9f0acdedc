# SPDX-License-Identifier: GPL-2.0-or-later
"""Making good what a crash, a kill or a power cut left unfinished: journal and kernel agree afterwards.

Whoever holds the lock settles first. What was under way in this boot is finished or undone, by what the kernel holds;
what was under way when the host went down is written down as that. A livepatch whose load did not end before the host
went down, or with which it went down soon, is guarded: it is not loaded again when the host comes up, until somebody
allows it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from elivepatch.client.entries import crash_suspect, replaced_unsaid, speaking
from elivepatch.client.host import Host
from elivepatch.client.journal import Entry, Journal, StepName, uptime
from elivepatch.client.loader import Loader, ModuleStaysError
from elivepatch.client.output import Output
from elivepatch.client.plan import record_replaced
from elivepatch.client.prune import prune
from elivepatch.client.settings import Settings
from elivepatch.client.state import StateDirectory
from elivepatch.client.transition import Transition
from elivepatch.errors import HostError, ModuleRejectedError, TransitionTimeoutError
from elivepatch.kernel.running import Livepatch, RunningKernel, livepatch, running_kernel

#: Steps after which a livepatch is in force no more.
_ENDED = {"replaced", "reverted", "undone", "failed", "allowed"}
_FOUND = "the client was interrupted; the kernel has the livepatch in force"
_AGAIN = "its load was undone when the host came up, which is tried again"


@dataclass(frozen=True)
class Repair:
    """What an entry needs: something to be done, and the step that says how it ended."""

    entry: Entry
    action: Literal["write", "remove", "keep"]
    step: StepName
    detail: str
    by: str | None = None


def repairs(entries: Sequence[Entry], kernel: RunningKernel) -> Iterator[Repair]:
    """What there is to make good; ``entries`` are in the order of the journal."""
    latest = speaking(entries)
    held = {patch.name: patch for patch in kernel.livepatches}
    for entry in entries:
        last = entry.last
        if last is None:
            continue
        here = last.boot_id == kernel.boot_id and kernel.boot_id is not None
        name = entry.module.name if entry.module else ""
        if last.step in {"requested", "received"} and not here:
            yield Repair(entry, "write", "failed", "the host went down before the module was loaded")
        elif not entry.touched_kernel or entry.module is None:
            continue
        elif entry.id not in latest:
            if last.step == "loaded":
                yield Repair(entry, "write", "replaced", "it was loaded again later", name)
        else:
            repair = _here(entry, held.get(name)) if here else _earlier(entry)
            yield from [repair] if repair else []
    yield from _displaced(entries, latest, kernel)


def _turning(entry: Entry) -> bool:
    """Whether the last step belongs to a revert that did not succeed and was taken back."""
    names = [step.step for step in entry.steps]
    return names[-2:] == ["reverting", "undoing"] or names[-3:] == ["reverting", "undoing", "undone"]


def _here(entry: Entry, held: Livepatch | None) -> Repair | None:
    """What was under way in this boot."""
    step = entry.last.step if entry.last else None
    if step == "reverting":
        return Repair(entry, "remove", "reverted", "the client was interrupted while reverting; that was finished")
    if _turning(entry):
        if held and held.enabled:
            return Repair(entry, "keep", "loaded", "the revert did not finish in time, and the client was interrupted")
        return Repair(entry, "remove", "reverted", "the client was interrupted while reverting; that was finished")
    if step in {"loading", "forcing"} and held and held.enabled and not held.transition and _same(entry, held):
        return Repair(entry, "write", "loaded", _FOUND)
    if step in {"loading", "forcing", "undoing"}:
        ended: StepName = "allowed" if entry.brought_back else "undone"
        return Repair(entry, "remove", ended, "the client was interrupted before the load had ended")
    if step == "undone" and entry.brought_back:
        return Repair(entry, "write", "allowed", _AGAIN)
    before = entry.steps[-2].step if len(entry.steps) > 1 else None
    if step == "failed" and before in {"undoing", "reverting"} and held:
        ended = "undone" if before == "undoing" else "reverted"
        return Repair(entry, "remove", ended, "what had not come to its end then was finished")
    told = before == "loaded" or (before in {"loading", "forcing"} and held and (entry.unproven or _same(entry, held)))
    if step == "failed" and told and held and held.enabled and not held.transition:
        return Repair(entry, "write", "loaded", _FOUND)
    return None


def _same(entry: Entry, held: Livepatch) -> bool:
    shown = {(function.object, function.function) for function in held.functions}
    return shown == {(f.object.replace("-", "_"), f.function) for f in entry.changed if f.kind == "changed"}


def _earlier(entry: Entry) -> Repair | None:
    """What was under way, or in force, when the host went down."""
    step = entry.last.step if entry.last else None
    if entry.unproven and step in {"loading", "forcing", "loaded"}:
        return Repair(entry, "write", "reverted", "the host went down, and without a report it is not loaded again")
    if step in {"loading", "forcing"}:
        return Repair(entry, "write", "guarded", "the host went down while it was being loaded")
    if step == "reverting" or (step == "undoing" and _turning(entry)):
        return Repair(entry, "write", "reverted", "the host went down while it was being reverted")
    if step == "undoing":
        ended: StepName = "guarded" if entry.brought_back else "undone"
        return Repair(entry, "write", ended, "the host went down while the load was being undone")
    if step == "undone" and entry.brought_back:
        return Repair(entry, "write", "allowed", _AGAIN)
    return None


def _displaced(entries: Sequence[Entry], latest: set[str], kernel: RunningKernel) -> Iterator[Repair]:
    """Livepatches that a later one of the same kernel took the place of, though nobody came to write that down."""
    ended = replaced_unsaid(entries, kernel)
    newest: dict[tuple[str, str | None], str] = {}
    for entry in reversed(entries):
        name = entry.module.name if entry.module else ""
        place = (entry.release, entry.build_id)
        last = entry.last
        if entry.id not in latest or last is None or entry.at("loaded") is None or entry.unproven:
            continue
        if last.step == "loaded" and last.boot_id == kernel.boot_id and name in ended:
            yield Repair(entry, "write", "replaced", "a later livepatch took its place", ended[name])
        elif place in newest and last.step == "loaded" and last.boot_id != kernel.boot_id:
            yield Repair(entry, "write", "replaced", "a later livepatch took its place", newest[place])
        newest.setdefault(place, name)


@dataclass(frozen=True)
class Settling:
    """Settles one host; the lock must be held."""

    host: Host
    settings: Settings
    state: StateDirectory
    output: Output

    def run(self, kernel: RunningKernel) -> bool:
        """Make good what there is to make good; gives whether that was anything. Never raises for one entry alone."""
        journal = Journal(self.state)
        self._sweep()
        done = False
        entries, _ = journal.entries()
        for repair in list(repairs(entries, kernel)):
            done = True
            self._carry_out(repair, journal, kernel)
        entries, _ = journal.entries()
        self._unload_left_over(entries, kernel)
        for entry in entries:
            why = crash_suspect(entry, kernel, self.settings.crash_guard)
            if why:
                done = True
                self._write(Repair(entry, "write", "guarded", why), journal, kernel)
            self._note_survival(entry, journal, kernel)
        self._prune(journal)
        return done

    def note_shutdown(self, kernel: RunningKernel) -> None:
        """Write down that the host begins to go down in an orderly way with what is in force now."""
        journal = Journal(self.state)
        for entry in journal.entries()[0]:
            if _in_force_here(entry, kernel):
                journal.begin(entry).note(stopped=round(uptime(), 3))

    def _prune(self, journal: Journal) -> None:
        """Remove old entries, once journal and kernel agree."""
        kernel = running_kernel(self.host.root)
        entries, _ = journal.entries()
        if any(True for _ in repairs(entries, kernel)):
            return
        held = {patch.name for patch in kernel.livepatches}
        held |= {
            e.module.name for e in entries if e.module and (self.host.root / "sys/module" / e.module.name).exists()
        }
        gone = prune(self.state, held, self.settings.journal_entries)
        if gone:
            self.output.line(f"journal: {gone} old {'entry is' if gone == 1 else 'entries are'} removed")

    def _unload_left_over(self, entries: Sequence[Entry], kernel: RunningKernel) -> None:
        """Unload modules of livepatches that ended in this boot: they patch nothing any more."""
        latest = speaking(entries)
        for entry in entries:
            name = entry.module.name if entry.module else ""
            last = entry.last
            ended = last is not None and last.step in _ENDED and last.boot_id == kernel.boot_id and not entry.forced
            if (
                entry.id in latest
                and ended
                and livepatch(name, self.host.root) is None
                and self._loader().left_over(name)
            ):
                left = self._loader().unload_replaced(name)
                self.output.line(f"the module {name} is unloaded" if left is None else f"note: {left}")

    def _note_survival(self, entry: Entry, journal: Journal, kernel: RunningKernel) -> None:
        if not _in_force_here(entry, kernel):
            return
        loaded = entry.at("loaded")
        if not entry.survived and loaded and loaded.uptime is not None:
            if uptime() - loaded.uptime >= self.settings.crash_guard:
                journal.begin(entry).note(survived=True, stopped=None)
            elif entry.stopped is not None:  # it did not go down then
                journal.begin(entry).note(stopped=None)

    def _carry_out(self, repair: Repair, journal: Journal, kernel: RunningKernel) -> None:
        name = repair.entry.module.name if repair.entry.module else ""
        try:
            if repair.action == "remove":
                self._remove(name)
            elif repair.action == "keep":
                self._keep(name)
            if repair.step == "loaded":
                repair = self._replacing(repair, name)
        except HostError as error:
            self.output.warn(f"{name} could not be set right: {error.message} {error.hint or ''}".rstrip())
            return
        self._write(repair, journal, kernel)
        if repair.step == "loaded":
            record_replaced(repair.entry.replaces, name, kernel, self.state, self.host.root)

    def _replacing(self, repair: Repair, name: str) -> Repair:
        """Wait for the end of what it replaced; one that replaces nothing is undone, as it would have been."""
        try:
            self._loader().await_replaced(name, frozenset(repair.entry.replaces))
        except ModuleRejectedError as error:
            self._remove(name)
            return replace(repair, step="undone", detail=error.message)
        return repair

    def _loader(self) -> Loader:
        return Loader(self.host, self.settings.transition_timeout, self.output.line)

    def _remove(self, name: str) -> None:
        if livepatch(name, self.host.root) or (self.host.root / "sys/module" / name).exists():
            with contextlib.suppress(ModuleStaysError):
                self._loader().revert(name)

    def _keep(self, name: str) -> None:
        transition = Transition(name, self.host, self.output.line)
        if not transition.settled(enabled=True, timeout=self.settings.transition_timeout):
            raise TransitionTimeoutError(f"The transition of {name} has not finished.", hint="It goes on by itself.")

    def _write(self, repair: Repair, journal: Journal, kernel: RunningKernel) -> None:
        changes = {"replaced_by": repair.by} if repair.by else {}
        journal.begin(repair.entry).step(repair.step, boot_id=kernel.boot_id, detail=repair.detail, **changes)
        name = repair.entry.module.name if repair.entry.module else f"the request {repair.entry.id}"
        self.output.line(f"journal: {name} is {repair.step}: {repair.detail}")

    def _sweep(self) -> None:
        """Remove files that were being written when the host went down; those of this boot may be somebody's."""
        began = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        for directory in (self.state.path, self.state.journal, self.state.patches, *_below(self.state.path)):
            for path in directory.glob(".*.new"):
                with contextlib.suppress(OSError):
                    if path.lstat().st_mtime < began:
                        path.unlink()


def _below(path: Path) -> list[Path]:
    return [place for place in (path / "modules").glob("*") if place.is_dir()]


def _in_force_here(entry: Entry, kernel: RunningKernel) -> bool:
    last = entry.last
    return last is not None and last.step == "loaded" and kernel.boot_id is not None and last.boot_id == kernel.boot_id
