# SPDX-License-Identifier: GPL-2.0-or-later
"""What overlays have, and what becomes of it on a kernel: as data and as lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from elivepatch.client.overlays import OpenOverlay
from elivepatch.errors import ElivepatchError
from elivepatch.overlay.kernels import Fit, KernelIdentity
from elivepatch.overlay.model import Entry
from elivepatch.overlay.selection import LeftOut, Selection, select
from elivepatch.protocol.models import Model

State = Literal["listed", "chosen", "replaced", "blocked", "undecided", "other-kernel"]


class EntryState(Model):
    """An entry of an overlay, and what becomes of it on the kernel; ``listed`` where none was asked for."""

    id: str
    state: State
    title: str | None = None
    reason: str | None = None
    kernels: tuple[str, ...] = ()
    cves: tuple[str, ...] = ()
    patch: str | None = None
    commit: str | None = None
    licence: str | None = None
    author: str | None = None
    tested_with: tuple[str, ...] = ()


class OverlayState(Model):
    """An overlay. ``commit``, ``synced`` (seconds since the epoch) and ``signer`` are absent for a directory.

    ``problem`` says why it cannot be used: what it has is not known then.
    """

    name: str
    commit: str | None = None
    synced: float | None = None
    signer: str | None = None
    problem: str | None = None
    patches: tuple[EntryState, ...] = ()


class OverlayList(Model):
    """What overlays have. ``patches`` of each are in the order of application where a kernel was asked for."""

    kernel: str | None = None
    overlays: tuple[OverlayState, ...] = ()


def overlay_list(
    overlays: Sequence[OpenOverlay], kernel: KernelIdentity | None, unusable: Mapping[str, ElivepatchError]
) -> OverlayList:
    """All that overlays have, with what becomes of it on a kernel; ``unusable`` are those that could not be opened."""
    opened = [_overlay(one, kernel) for one in overlays]
    rest = [OverlayState(name=name, problem=error.message) for name, error in unusable.items()]
    return OverlayList(kernel=kernel.release if kernel else None, overlays=(*opened, *rest))


def _overlay(one: OpenOverlay, kernel: KernelIdentity | None) -> OverlayState:
    if kernel is None:
        entries = tuple(_entry(entry, "listed") for entry in one.overlay.entries)
    else:
        entries = tuple(_states(select(one.overlay, kernel), one.overlay.entries, kernel))
    state = one.state
    return OverlayState(
        name=one.name,
        commit=state.commit if state else None,
        synced=state.synced if state else None,
        signer=state.signer if state else None,
        patches=entries,
    )


def _states(selection: Selection, entries: Sequence[Entry], kernel: KernelIdentity) -> Iterator[EntryState]:
    told: set[str] = set()
    for entry in selection.chosen:
        told.add(entry.id)
        yield _entry(entry, "chosen")
    groups: tuple[tuple[State, Sequence[LeftOut]], ...] = (
        ("replaced", selection.replaced),
        ("blocked", selection.blocked),
        ("undecided", selection.undecided),
    )
    for state, left_out in groups:
        for one in left_out:
            told.add(one.entry.id)
            yield _entry(one.entry, state, one.reason)
    for entry in entries:
        if entry.id not in told:
            yield _entry(entry, "other-kernel", _why_not(entry, kernel))


def _why_not(entry: Entry, kernel: KernelIdentity) -> str:
    """What an entry is for that the kernel is not."""
    if all(one.fit(kernel) is Fit.NO for one in entry.kernels):
        return f"for {', '.join(one.text for one in entry.kernels)}"
    return f"for {', '.join(map(str, entry.distributions))}"


def _entry(entry: Entry, state: State, reason: str | None = None) -> EntryState:
    return EntryState(
        id=entry.id,
        state=state,
        title=entry.title,
        reason=reason,
        kernels=tuple(one.text for one in entry.kernels),
        cves=entry.cves,
        patch=entry.path,
        commit=entry.commit.id if entry.commit else None,
        licence=entry.licence,
        author=entry.author,
        tested_with=entry.tested_with,
    )


def list_lines(found: OverlayList) -> Iterator[str]:
    """The list for a person."""
    for overlay in found.overlays:
        if overlay.problem:
            yield f"{overlay.name}: {overlay.problem}"
            continue
        where = f" at {overlay.commit[:12]}" if overlay.commit else ""
        signed = f", signed by {overlay.signer}" if overlay.signer else ""
        yield f"{overlay.name}{where}{signed}: {len(overlay.patches)} patches"
        for entry in overlay.patches:
            what = f"{entry.title or ''}{' (' if entry.cves else ''}{', '.join(entry.cves)}{')' if entry.cves else ''}"
            state = "" if entry.state == "listed" else f"{entry.state:<12}  "
            why = f": {entry.reason}" if entry.reason else ""
            yield f"  {state}{entry.id}{why}  {what.strip()}".rstrip()
