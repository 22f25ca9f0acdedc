# SPDX-License-Identifier: GPL-2.0-or-later
"""What a request contains beside the patches that are named: those of the livepatches that are in force here.

A livepatch replaces all earlier ones when its transition ends (``replace`` in struct klp_patch, see
Documentation/livepatch/cumulative-patches.rst). So the next one must contain what is in force, or its effects are lost.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from elivepatch.client.inputs import InputFile
from elivepatch.client.journal import Entry, Input, Journal
from elivepatch.client.outcome import ContainedPatch, DroppedLivepatch
from elivepatch.client.state import StateDirectory, require_trusted, write_whole
from elivepatch.errors import HostError
from elivepatch.kernel.running import Livepatch, RunningKernel, livepatches
from elivepatch.protocol import limits

#: Steps at which an interrupted client may have left a livepatch that is in force all the same.
_INTERRUPTED = {"loading", "forcing", "undoing", "reverting"}
#: How many functions of a livepatch are named in words; the outcome as JSON has them all.
_NAMED = 10


@dataclass(frozen=True)
class Active:
    """A livepatch in force that this client loaded in this boot."""

    entry: Entry
    held: Livepatch

    @property
    def name(self) -> str:
        """Its name in the kernel."""
        return self.held.name

    def module_data(self) -> bytes:
        """Its module as it lies on this host. Raises HostError where that is missing or damaged."""
        module = self.entry.module
        if module and module.path:
            with contextlib.suppress(OSError), Path(module.path).open("rb") as stream:
                data = stream.read(limits.MODULE_BYTES + 1)
                if hashlib.sha256(data).hexdigest() == module.sha256:
                    return data
        raise HostError(
            f"All that was named is in force in {self.name}, whose module is missing or damaged on this host.",
            hint="Leave -o out, or ask the server for what you name, and no more, with --drop-earlier.",
        )


@dataclass(frozen=True)
class PlannedPatch:
    """A patch of the module; ``livepatch`` is the one in force that it comes from. ``data`` is None if not sent."""

    name: str
    sha256: str
    data: bytes | None = field(repr=False)
    livepatch: str | None = None

    @classmethod
    def of(cls, file: InputFile, livepatch: str | None = None) -> PlannedPatch:
        """A file to send."""
        return cls(file.name, file.sha256, file.data, livepatch)


@dataclass(frozen=True)
class Plan:
    """What is sent, in order, and what becomes of the livepatches in force.

    ``already`` are named patches that a livepatch in force contains; ``present`` is that livepatch where nothing else
    was named, and then there is nothing to send. ``cves`` are the vulnerabilities that livepatches in force fix.
    """

    patches: tuple[PlannedPatch, ...] = ()
    already: tuple[InputFile, ...] = ()
    replaces: tuple[str, ...] = ()
    dropped: tuple[DroppedLivepatch, ...] = ()
    present: Active | None = None
    #: What the livepatches in force close, and the overlays that their patches came from, as far as they go on.
    cves: tuple[str, ...] = ()
    overlays: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[InputFile, ...]:
        """The patches as they are sent."""
        return tuple(InputFile(patch.name, patch.data) for patch in self.patches if patch.data is not None)

    def lines(self) -> list[str]:
        """What the module contains beside what is new, in words."""
        words = [f"already contained: {file.name}" for file in self.already]
        earlier: dict[str, list[str]] = {}
        for patch in self.patches if self.present is None else ():
            if patch.livepatch:
                earlier.setdefault(patch.livepatch, []).append(patch.name)
        words += [f"contains the earlier livepatch {name}: {', '.join(files)}" for name, files in earlier.items()]
        return words

    def losses(self) -> list[str]:
        """What will be lost, in words."""
        found: list[str] = []
        for lost in self.dropped:
            what = f"the effects of {', '.join(lost.patches)}" if lost.patches else "its effects"
            patched = "; ".join(lost.functions[:_NAMED])
            if len(lost.functions) > _NAMED:
                patched += f"; and {len(lost.functions) - _NAMED} more"
            found.append(f"the earlier livepatch {lost.name} is dropped: {what} end. It patches {patched}.")
        return found

    def contained(self) -> tuple[ContainedPatch, ...]:
        """The patches as the outcome shows them."""
        return tuple(
            ContainedPatch(name=patch.name, sha256=patch.sha256, livepatch=patch.livepatch) for patch in self.patches
        )

    def journalled(self) -> tuple[Input, ...]:
        """The patches as the journal keeps them."""
        return tuple(Input(name=patch.name, sha256=patch.sha256, livepatch=patch.livepatch) for patch in self.patches)

    def check_still_holds(self, root: Path) -> None:
        """Check that the same livepatches are in force as when the plan was made. Raises HostError."""
        now = {patch.name for patch in livepatches(root) if patch.enabled or patch.transition}
        changed = now ^ set(self.replaces) if not self.dropped else now - set(self.replaces)
        if changed:
            raise HostError(
                f"Livepatches were loaded or reverted while this one was built: {', '.join(sorted(changed))}.",
                hint="It was not loaded, for it would bring back or end what changed meanwhile. Ask again.",
            )


def make_plan(named: Sequence[InputFile], kernel: RunningKernel, state: StateDirectory, *, drop: bool) -> Plan:
    """Plan a request for the running kernel; ``drop`` leaves out what is in force.

    Raises HostError where a livepatch is in force whose patches are not known here.
    """
    new = tuple(named)
    moving = next((patch.name for patch in kernel.livepatches if patch.transition), None)
    if moving:
        raise HostError(
            f"The livepatch {moving} is in transition.", hint="Wait until that has finished ('elivepatch status')."
        )
    replaces = tuple(patch.name for patch in _enabled(kernel))
    if not replaces:
        return Plan(tuple(PlannedPatch.of(file) for file in new))
    if drop:
        return Plan(
            tuple(PlannedPatch.of(file) for file in new), replaces=replaces, dropped=_dropped(kernel, state, new)
        )
    active = _all_known(kernel, state)
    contained = {patch.sha256: one for one in active for patch in one.entry.patches}
    already = tuple(file for file in new if file.sha256 in contained)
    missing = [file for file in new if file.sha256 not in contained]
    present = contained[new[-1].sha256] if new and not missing else None
    patches: dict[str, PlannedPatch] = {}
    at_hand = {file.sha256: file for file in named}
    for one in active:
        for wanted in one.entry.patches:
            origin = wanted.livepatch or one.name
            if present:
                patches.setdefault(wanted.sha256, PlannedPatch(wanted.name, wanted.sha256, None, origin))
            elif wanted.sha256 not in patches:
                file = at_hand.get(wanted.sha256) or _stored(wanted, one, state)
                patches[wanted.sha256] = PlannedPatch(wanted.name, wanted.sha256, file.data, origin)
    return Plan(
        (*patches.values(), *(PlannedPatch.of(file) for file in missing)),
        already=already,
        replaces=replaces,
        present=present,
        cves=tuple(cve for one in active for cve in one.entry.cves),
        overlays=tuple(name for one in active for name in one.entry.overlays),
    )


def keep_patches(files: Sequence[InputFile], state: StateDirectory) -> None:
    """Put patches into the store, so that later requests can contain them. Raises HostError and DiskFullError."""
    state.prepare(state.patches)
    for file in files:
        write_whole(state.patches / file.sha256, file.data)


def record_replaced(
    names: Sequence[str],
    by: str,
    kernel: RunningKernel,
    state: StateDirectory,
    root: Path,
    *,
    detail: str | None = None,
) -> tuple[str, ...]:
    """Write into the journal which of the livepatches have ended, replaced by ``by``; gives their names."""
    held = {patch.name for patch in livepatches(root) if patch.enabled or patch.transition}
    journal = Journal(state)
    gone = tuple(name for name in names if name not in held)
    for name in gone:
        entry = journal.latest_of(name, kernel)
        last = entry.last if entry else None
        if entry and last and last.boot_id == kernel.boot_id and last.step in {"loaded", *_INTERRUPTED}:
            journal.begin(entry).step("replaced", boot_id=kernel.boot_id, detail=detail, replaced_by=by)
    return gone


# -- what is in force


def _all_known(kernel: RunningKernel, state: StateDirectory) -> list[Active]:
    """The livepatches in force, in the order of their loads. Raises HostError where one is not this client's."""
    journal = _journal(state)
    found: list[Active] = []
    for held in _enabled(kernel):
        entry = journal.latest_of(held.name, kernel)
        reason = _not_ours(held, entry, kernel)
        if reason or entry is None:
            raise HostError(
                f"The livepatch {held.name} is in force and {reason}. The new one would replace it, and its effects "
                "would be lost, for its patches are not known.",
                hint=f"Nothing was sent. Revert it first with 'elivepatch revert {held.name}', or let its effects go "
                "with --drop-earlier.",
            )
        found.append(Active(entry, held))
    return sorted(found, key=lambda one: one.entry.number)


def _journal(state: StateDirectory) -> Journal:
    """The journal, if nobody else could have written it."""
    try:
        if state.path.exists():
            require_trusted(state.path, state.user)
        journal = Journal(state)
        journal.entries()
    except PermissionError as error:
        raise HostError(
            f"Livepatches are in force, and the journal below {state.path} may not be read.",
            hint="Run this as root, so that the new livepatch can contain them, or leave them out with --drop-earlier.",
        ) from error
    return journal


def _not_ours(held: Livepatch, entry: Entry | None, kernel: RunningKernel) -> str | None:
    """Why a livepatch is not the one that the journal knows by its name."""
    last = entry.last if entry else None
    if entry is None or last is None:
        return "was not loaded by elivepatch"
    if kernel.boot_id is None or last.boot_id != kernel.boot_id:
        return "was not loaded by elivepatch in this boot"
    if entry.release != kernel.release or entry.build_id != kernel.build_id:
        return "is in the journal for another kernel"
    shown = {(function.object, function.function) for function in held.functions}
    known = {
        (function.object.replace("-", "_"), function.function)
        for function in entry.changed
        if function.kind == "changed"
    }
    if not entry.patches:
        return "was loaded without its patches being named"
    if last.step == "loaded" or (last.step in _INTERRUPTED and shown == known):
        return None
    return f"the journal ends with '{last.step}' for it"


def _stored(wanted: Input, one: Active, state: StateDirectory) -> InputFile:
    """A patch from the store. Raises HostError where it is not there as it was sent."""
    path = state.patches / wanted.sha256
    reason = "is missing"
    with contextlib.suppress(OSError), path.open("rb") as stream:
        data = stream.read(limits.PATCH_BYTES + 1)
        if hashlib.sha256(data).hexdigest() == wanted.sha256:
            return InputFile(wanted.name, data)
        reason = "is damaged"
    raise HostError(
        f"The livepatch {one.name} is in force and must go on in the new one, but its patch {wanted.name} ({path}) "
        f"{reason}.",
        hint=f"Nothing was sent. Name the same file again with -p (SHA-256 {wanted.sha256}), or revert first with "
        f"'elivepatch revert {one.name}', or let its effects go with --drop-earlier.",
    )


def _dropped(kernel: RunningKernel, state: StateDirectory, new: Sequence[InputFile]) -> tuple[DroppedLivepatch, ...]:
    """What is in force and not in the new patches; what the journal does not tell is left empty."""
    journal: Journal | None = None
    with contextlib.suppress(HostError):
        journal = _journal(state)
    kept = {file.sha256 for file in new}
    found: list[DroppedLivepatch] = []
    for held in _enabled(kernel):
        entry = journal.latest_of(held.name, kernel) if journal else None
        ours = entry is not None and _not_ours(held, entry, kernel) is None
        patches = entry.patches if entry and ours else ()
        lost = tuple(patch.name for patch in patches if patch.sha256 not in kept)
        if lost or not patches:
            functions = tuple(f"{function.object}: {function.function}" for function in held.functions)
            found.append(DroppedLivepatch(name=held.name, patches=lost, functions=functions))
    return tuple(found)


def _enabled(kernel: RunningKernel) -> list[Livepatch]:
    """Those that have effects: one that is disabled is about to go."""
    return [patch for patch in kernel.livepatches if patch.enabled]
