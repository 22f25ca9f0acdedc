# SPDX-License-Identifier: GPL-2.0-or-later
"""``revert --dry-run``: what reverting would do. Kernel and journal are looked at, and nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from elivepatch.client.entries import latest_entries
from elivepatch.client.journal import Entry, Journal
from elivepatch.client.revert import WAITING, Reverting
from elivepatch.client.settle import Repair, repairs
from elivepatch.client.state import LockedError, StateDirectory
from elivepatch.errors import HostError
from elivepatch.kernel.running import Livepatch, RunningKernel, livepatch, running_kernel
from elivepatch.protocol.models import Model

#: What a livepatch is before the revert, and what would be done with it.
State = Literal["in-force", "in-transition", "disabled", "left-over", "waiting", "replaced", "being-loaded"]
_WOULD: dict[State, str] = {
    "in-force": "would be disabled and unloaded: the original code comes back",
    "in-transition": "is in transition, which would be turned round; then its module would be unloaded",
    "disabled": "is disabled already; its module would be unloaded",
    "left-over": "patches nothing any more; its module would be unloaded",
    "waiting": "is not in the kernel; it would not be loaded at boot any more",
    "replaced": "was replaced before; nothing would be done",
    "being-loaded": "is being loaded by another elivepatch, which would be told to undo that",
}


class WouldRevert(Model):
    """A livepatch that would be reverted, and what it is before that.

    ``functions`` would be the original ones again, ``patches`` are all whose effects would end, ``replaced`` the
    livepatches that it had replaced: they would not come back. ``stays``: its module cannot be unloaded, as its
    transition was ended by force.
    """

    name: str
    state: State
    functions: tuple[str, ...] = ()
    patches: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    stays: bool = False


class DryRevert(Model):
    """What reverting would do, in order. ``first`` is what would be made good in the journal before, in words."""

    status: Literal["dry-run"] = "dry-run"
    exit_status: Literal[0] = 0
    first: tuple[str, ...] = ()
    would: tuple[WouldRevert, ...]


class RevertingDry(Reverting):
    """Tells what `Reverting` would do on a host."""

    def tell(self, name: str | None, *, everything: bool) -> DryRevert:
        """Look at a livepatch, or at all that the kernel holds.

        Raises what `Reverting` raises before it changes anything.
        """
        self.require_root()
        state = StateDirectory(self.settings.state_dir, self.host.user)
        kernel = running_kernel(self.host.root)
        entries, _ = Journal(state).entries()
        module = None if everything else self.module_of(name)
        loading = self._being_loaded(module, state)
        if loading:
            return DryRevert(would=loading)
        latest = latest_entries(entries, kernel)
        names = [module] if module else self.last_first(entries)
        return DryRevert(
            first=tuple(_words(repair) for repair in repairs(entries, kernel)),
            would=tuple(self._would(one, latest.get(one), kernel) for one in names),
        )

    def _being_loaded(self, module: str | None, state: StateDirectory) -> tuple[WouldRevert, ...]:
        """What another client is loading at this moment. Raises LockedError where it is at work on something else."""
        holder = state.holder()
        if holder is None:
            return ()
        loading = self.being_loaded(state)
        if not (module in loading if module else loading):
            raise LockedError(
                f"Another elivepatch (process {holder}) is changing this kernel.",
                hint="Wait until it has ended, then try again.",
            )
        return tuple(WouldRevert(name=one, state="being-loaded") for one in ([module] if module else loading))

    def _would(self, name: str, entry: Entry | None, kernel: RunningKernel) -> WouldRevert:
        held = livepatch(name, self.host.root)
        last = entry.last.step if entry and entry.last else None
        if held:
            state: State = "in-transition" if held.transition else "in-force" if held.enabled else "disabled"
        elif self._left_over(name):
            state = "left-over"
        elif last in WAITING:
            state = "waiting"
        elif last == "replaced":
            state = "replaced"
        else:
            loaded = ", ".join(patch.name for patch in kernel.livepatches) or "none"
            raise HostError(f"There is no livepatch {name} in this kernel.", hint=f"Loaded: {loaded}.")
        return WouldRevert(
            name=name,
            state=state,
            functions=_functions(held),
            patches=tuple(file.name for file in entry.patches) if entry else (),
            replaced=entry.replaces if entry else (),
            stays=bool(entry and entry.forced),
        )


def _functions(held: Livepatch | None) -> tuple[str, ...]:
    return tuple(f"{function.object}: {function.function}" for function in held.functions) if held else ()


def _words(repair: Repair) -> str:
    name = repair.entry.module.name if repair.entry.module else f"the request {repair.entry.id}"
    return f"{name} would be {repair.step}: {repair.detail}"


def dry_revert_lines(told: DryRevert) -> Sequence[str]:
    """What would be done, in words."""
    lines = [f"journal: {text}" for text in told.first]
    for one in told.would:
        lines.append(f"{one.name} {_WOULD[one.state]}")
        lines += [f"  {function}" for function in one.functions]
        if one.stays:
            lines.append("  its module stays until the next boot, because its transition was forced")
        if one.patches:
            lines.append(f"  without {', '.join(one.patches)}")
        if one.replaced:
            lines.append(f"  what it had replaced stays gone: {', '.join(one.replaced)}")
    if not told.would:
        lines.append("no livepatch is loaded: there is nothing to revert")
    return [*lines, "dry run: nothing was changed"]
