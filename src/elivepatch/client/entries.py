# SPDX-License-Identifier: GPL-2.0-or-later
"""What the entries of the journal mean for the kernel that runs now. Nothing is read or written here."""

from __future__ import annotations

from collections.abc import Sequence

from elivepatch.client.journal import Entry
from elivepatch.kernel.running import RunningKernel


def latest_entries(entries: Sequence[Entry], kernel: RunningKernel) -> dict[str, Entry]:
    """The youngest entry of each module that was given to a kernel or taken from it, by its name.

    The same name may stand for a module of each of several kernels: those for ``kernel`` come first.
    """
    known = [e for e in entries if e.module and e.touched_kernel]
    known.sort(key=lambda e: e.is_for(kernel) or (e.last is not None and e.last.boot_id == kernel.boot_id))  # stable
    return {e.module.name: e for e in known if e.module}


def speaking(entries: Sequence[Entry]) -> set[str]:
    """The ids of the youngest entries of each module on each kernel: what came before them has ended."""
    found = {(e.module.name, e.release, e.build_id): e.id for e in entries if e.module and e.touched_kernel}
    return set(found.values())


def crash_suspect(entry: Entry, kernel: RunningKernel, guard: float) -> str | None:
    """Why a livepatch of an earlier boot must not be loaded again by itself; None where nothing speaks against it.

    ``guard`` is how long (seconds) a host must stay up after a load.
    """
    last = entry.last
    if not guard or last is None or last.step != "loaded" or last.boot_id == kernel.boot_id:
        return None
    if entry.survived or entry.stopped is not None:
        return None
    return f"the host went down, and not in an orderly way, before it was known to run {guard:.0f} s with it"


def replaced_unsaid(entries: Sequence[Entry], kernel: RunningKernel) -> dict[str, str]:
    """Livepatches that ended in this boot by being replaced, though a crash kept that out of the journal, and by what.

    The journal says before a load what it will replace, and only afterwards that it was replaced. One that was loaded
    later than that, or whose successor was undone, has gone in another way: somebody else took it out.
    """
    held = {patch.name for patch in kernel.livepatches}
    numbers = {name: entry.number for name, entry in latest_entries(entries, kernel).items()}
    found: dict[str, str] = {}
    for entry in entries:
        here = entry.last is not None and entry.last.boot_id == kernel.boot_id
        if here and entry.module and entry.touched_kernel and not _taken_back(entry):
            found.update(
                {
                    name: entry.module.name
                    for name in entry.replaces
                    if name not in held and entry.number > numbers.get(name, 0)
                }
            )
    return found


def _taken_back(entry: Entry) -> bool:
    """Whether its last load was undone before it was in force."""
    names = [taken.step for taken in entry.steps]
    since = names[len(names) - names[::-1].index("loading") :] if "loading" in names else []
    return "undone" in since and "loaded" not in since
