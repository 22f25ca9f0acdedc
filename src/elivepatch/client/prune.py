# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeping the journal short: old entries of which nothing is left go, and the modules and patches that only they named.

What the journal decides must not change with that: which livepatch is loaded when the host comes up, and which is
guarded. So an entry goes only when its story has ended and the kernel holds nothing of it, and never before an older
one whose return it stands in the way of.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from elivepatch.client.journal import Entry, Journal
from elivepatch.client.state import StateDirectory, sync_directory

#: Last steps behind which nothing comes: the others are on their way, in force, or wait for the next boot.
FINISHED = frozenset({"present", "undone", "reverted", "replaced", "failed"})


def superfluous(entries: Sequence[Entry], held: Collection[str], keep: int) -> list[Entry]:
    """The entries that may go, oldest first; ``entries`` are settled, and in the order of the journal.

    ``held`` are the modules that the kernel holds, in force or not; of the finished entries the last ``keep`` stay.
    """
    finished = [entry for entry in entries if entry.last and entry.last.step in FINISHED]
    old = {entry.id for entry in finished[: max(len(finished) - keep, 0)]}
    found: list[Entry] = []
    modules: set[str] = set()
    kernels: set[tuple[str, str | None]] = set()
    for entry in entries:
        name = entry.module.name if entry.module else ""
        kernel = (entry.release, entry.build_id)
        # the youngest entry of a name speaks for it; one that was in force keeps older ones of its kernel out
        speaks = entry.touched_kernel and name in modules
        shadows = entry.at("loaded") is not None and kernel in kernels
        if entry.id in old and name not in held and not speaks and not shadows:
            found.append(entry)
        elif entry.touched_kernel:
            modules.add(name)
            kernels.add(kernel)
    return found


def prune(state: StateDirectory, held: Collection[str], keep: int) -> int:
    """Remove what is superfluous, and gives how many entries that was; the lock must be held, the journal settled.

    With ``keep`` 0 nothing is removed, and neither where an entry cannot be read: nobody knows what it names. What
    cannot be removed stays, for the next time; so does what a kill in between leaves behind.
    """
    journal = Journal(state)
    entries, problems = journal.entries()
    if not keep or problems or not state.journal.exists():
        return 0
    gone: set[str] = set()
    with contextlib.suppress(OSError):
        for entry in superfluous(entries, held, keep):
            journal.begin(entry).path.unlink()
            gone.add(entry.id)
    with contextlib.suppress(OSError):
        if gone:
            sync_directory(state.journal)  # before what they named: an entry never names what is no more
        for path in _unnamed(state, [entry for entry in entries if entry.id not in gone]):
            path.unlink()
    return len(gone)


def _unnamed(state: StateDirectory, entries: Sequence[Entry]) -> Iterator[Path]:
    """The modules and patches in the store that no entry names."""
    modules = {(entry.release, f"{entry.module.name}.ko") for entry in entries if entry.module}
    paths = [Path(entry.module.path) for entry in entries if entry.module and entry.module.path]
    modules |= {(path.parent.name, path.name) for path in paths}  # its last parts: the directory may have been moved
    for path in state.path.glob("modules/*/*.ko"):
        if (path.parent.name, path.name) not in modules:
            yield path
    patches = {patch.sha256 for entry in entries for patch in entry.patches}
    for path in state.patches.glob("[0-9a-f]*"):
        if path.name not in patches:
            yield path
