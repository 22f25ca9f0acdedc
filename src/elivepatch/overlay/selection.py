# SPDX-License-Identifier: GPL-2.0-or-later
"""Which entries of an overlay are for a kernel, and in which order they are applied. No file is read here."""

from __future__ import annotations

import graphlib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from elivepatch.overlay.findings import OverlayRejectedError, listed
from elivepatch.overlay.kernels import Fit, KernelIdentity
from elivepatch.overlay.model import Entry, Overlay

#: Why an entry that another one requires is not to be had.
_WHY_NOT = {Fit.NO: "is not for this kernel", Fit.UNDECIDED: "is undecided"}


@dataclass(frozen=True)
class LeftOut:
    """An entry that is not applied, and why."""

    entry: Entry
    reason: str


@dataclass(frozen=True)
class Selection:
    """What an overlay has for a kernel.

    ``chosen`` are the entries to apply, in their order. ``replaced`` have an entry that takes their place, ``blocked``
    need one that cannot be had, and of ``undecided`` it cannot be told whether they are for the kernel. ``successors``
    maps the replaced to what stands in their place.
    """

    chosen: tuple[Entry, ...] = ()
    replaced: tuple[LeftOut, ...] = ()
    blocked: tuple[LeftOut, ...] = ()
    undecided: tuple[LeftOut, ...] = ()
    successors: Mapping[str, str] = field(default_factory=dict[str, str])


def select(overlay: Overlay, kernel: KernelIdentity) -> Selection:
    """Choose and order. The entries must be free of cycles and refer to each other only, as lint finds them."""
    fits = {entry.id: entry.fit(kernel) for entry in overlay.entries}
    entries = {entry.id: entry for entry in overlay.entries}
    able = {name: entry for name, entry in entries.items() if fits[name] is Fit.YES}
    blocked: dict[str, LeftOut] = {}
    while found := _missing(able, fits, entries):  # what one that is left out was needed for is left out too
        blocked.update(found)
        able = {name: entry for name, entry in able.items() if name not in found}
    successors = {name: by for name, entry in entries.items() if (by := _successor(entry, able, entries)) is not None}
    replaced = {name: by for name, by in successors.items() if name in able}
    remaining = [entry for entry in able.values() if entry.id not in replaced]
    return Selection(
        chosen=ordered(remaining, successors),
        replaced=tuple(LeftOut(able[name], f"replaced by {by}") for name, by in replaced.items()),
        blocked=tuple(blocked.values()),
        undecided=tuple(
            LeftOut(entry, _why_undecided(entry, kernel))
            for entry in overlay.entries
            if fits[entry.id] is Fit.UNDECIDED
        ),
        successors=successors,
    )


def _missing(able: Mapping[str, Entry], fits: Mapping[str, Fit], entries: Mapping[str, Entry]) -> dict[str, LeftOut]:
    found: dict[str, LeftOut] = {}
    for entry in able.values():
        for name in entry.requires:
            needed = entries.get(name)
            if name in able or (needed is not None and _successor(needed, able, entries) is not None):
                continue
            reason = _WHY_NOT.get(fits.get(name, Fit.YES), "cannot be applied")
            found[entry.id] = LeftOut(entry, f"requires {name}, which {reason}")
    return found


def _successor(entry: Entry, able: Mapping[str, Entry], entries: Mapping[str, Entry]) -> str | None:
    """The last of those that replace an entry one after the other, of those that can be applied."""
    last: str | None = None
    seen: set[str] = set()
    name = entry.replaced_by
    while name is not None and name not in seen:
        seen.add(name)
        if name in able:
            last = name
        following = entries.get(name)
        name = following.replaced_by if following else None
    return last


def _why_undecided(entry: Entry, kernel: KernelIdentity) -> str:
    if any(one.fit(kernel) is Fit.YES for one in entry.kernels):
        return f"the distribution of {kernel.release} is not known"
    return f"the upstream version of {kernel.release} is not known"


def ordered(entries: Sequence[Entry], replaced: Mapping[str, str] | None = None) -> tuple[Entry, ...]:
    """Entries so that each comes behind those it requires, and those it comes after; else in the order of the file.

    ``replaced`` maps what is not among them to what stands in its place. Raises OverlayRejectedError where that makes a
    cycle.
    """
    position = {entry.id: number for number, entry in enumerate(entries)}
    before: dict[str, set[str]] = {}
    behind: dict[str, list[str]] = {}
    for entry in entries:
        names = {(replaced or {}).get(name, name) for name in (*entry.requires, *entry.after)}
        before[entry.id] = {name for name in names if name in position and name != entry.id}
        for name in before[entry.id]:
            behind.setdefault(name, []).append(entry.id)
    ready = [number for name, number in position.items() if not before[name]]  # a heap: numbers rise
    found: list[Entry] = []
    while ready:
        entry = entries[heapq.heappop(ready)]
        found.append(entry)
        for name in behind.get(entry.id, ()):
            before[name].discard(entry.id)
            if not before[name]:
                heapq.heappush(ready, position[name])
    if len(found) < len(entries):
        rest = sorted(name for name in position if before[name])
        raise OverlayRejectedError(f"These entries cannot be put in an order, each is to come first: {listed(rest)}.")
    return tuple(found)


def with_required(entry: Entry, selection: Selection) -> tuple[Entry, ...]:
    """An entry behind all that it requires, of those that are chosen: what is needed to try it alone."""
    known = {one.id: one for one in selection.chosen}
    wanted: set[str] = set()
    todo = [entry]
    while todo:
        one = todo.pop()
        if one.id not in wanted:
            wanted.add(one.id)
            names = [selection.successors.get(name, name) for name in one.requires]
            todo += [known[name] for name in names if name in known]
    return tuple(one for one in selection.chosen if one.id in wanted)


def find_cycle(edges: Mapping[str, Sequence[str]]) -> tuple[str, ...] | None:
    """A cycle of a graph, from a node back to it; None where there is none."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        cycle: list[str] = error.args[1]  # as its documentation says; each is before the next
        return tuple(reversed(cycle))
    return None
