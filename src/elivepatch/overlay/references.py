# SPDX-License-Identifier: GPL-2.0-or-later
"""How the entries of an overlay refer to each other: only to what there is, and in no circle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from elivepatch.overlay.findings import Findings, listed, shown
from elivepatch.overlay.model import Entry
from elivepatch.overlay.selection import find_cycle


class Named(Protocol):
    """An id of an entry that another one names under a key, with its line."""

    @property
    def key(self) -> str:
        """The key."""
        ...

    @property
    def id(self) -> str:
        """The id."""
        ...

    @property
    def line(self) -> int:
        """The line, from 1."""
        ...


def check_references(entries: Sequence[Entry], references: Mapping[str, Sequence[Named]], findings: Findings) -> None:
    """Find references to nothing, to oneself, and circles."""
    known = {entry.id: entry for entry in entries}
    for name, named in references.items():
        for one in named:
            if one.id not in known:
                message = f"'{one.key}' names {shown(one.id)}, and there is no such patch."
                findings.add("unknown-entry", one.line, message, "Name the id of a patch of this overlay.")
            elif one.id == name:
                findings.add("cycle", one.line, f"'{one.key}' names the patch itself.", "Remove it.")
    order = {
        entry.id: [one for one in (*entry.requires, *entry.after) if one in known and one != entry.id]
        for entry in entries
    }
    successors = {
        entry.id: [entry.replaced_by] if entry.replaced_by in known and entry.replaced_by != entry.id else []
        for entry in entries
    }
    for edges, words in ((order, "wait for each other"), (successors, "replace each other")):
        cycle = find_cycle(edges)
        if cycle is not None:
            line = known[cycle[0]].line
            findings.add("cycle", line, f"These patches {words}: {listed(cycle)}.", "Remove one of the references.")
            return
    _check_replaced(entries, order, successors, findings)


def _check_replaced(
    entries: Sequence[Entry],
    order: Mapping[str, Sequence[str]],
    successors: Mapping[str, Sequence[str]],
    findings: Findings,
) -> None:
    """Find the circles that there are once each patch is replaced by what takes its place: no kernel has all of them.

    The circle of one is a patch that requires what it replaces.
    """

    def last(name: str) -> str:
        while following := successors.get(name):
            name = following[0]
        return name

    lines = {entry.id: entry.line for entry in entries}
    left = {name: [last(one) for one in names] for name, names in order.items() if not successors[name]}
    hint = "Where all of them are for a kernel, the rest cannot be put in an order: remove one of the references."
    for name, names in left.items():
        if name in names:
            message = f"{shown(name)} waits for a patch that it takes the place of."
            findings.add("cycle", lines[name], message, hint, severity="warning")
    cycle = find_cycle({name: [one for one in names if one != name] for name, names in left.items()})
    if cycle is not None:
        message = f"These patches wait for each other, once what is replaced is left out: {listed(cycle)}."
        findings.add("cycle", lines[cycle[0]], message, hint, severity="warning")
