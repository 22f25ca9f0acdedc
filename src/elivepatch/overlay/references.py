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
