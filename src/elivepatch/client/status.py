# SPDX-License-Identifier: GPL-2.0-or-later
"""What is patched on this host: the kernel's word and the journal's, side by side, and where they disagree."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from elivepatch.client.acceptance import MODULE_NAME, kernel_name
from elivepatch.client.host import Host
from elivepatch.client.journal import Entry, Journal, StoredModule, new_id
from elivepatch.client.loader import Loader, LoaderStep
from elivepatch.client.output import Output
from elivepatch.client.plan import replaced_unsaid
from elivepatch.client.settings import Settings
from elivepatch.client.state import StateDirectory
from elivepatch.errors import ElivepatchError, HostError, InvalidInputError
from elivepatch.kernel.running import Livepatch, RunningKernel, running_kernel, taint_flags
from elivepatch.protocol.models import Model

#: Steps that are on the way to somewhere: nobody stays there unless interrupted.
_UNDER_WAY = {"loading": "loaded", "undoing": "undone", "reverting": "reverted"}


class FunctionState(Model):
    """A function that a livepatch replaces; ``patched`` is absent where the kernel does not tell."""

    object: str
    function: str
    patched: bool | None = None


class LivepatchState(Model):
    """A livepatch that the kernel holds. ``since`` is seconds since the epoch; what the journal knows may be absent.

    ``patches`` are all that it contains, ``replaced`` the earlier livepatches that it took the place of.
    """

    name: str
    enabled: bool
    transition: bool
    functions: tuple[FunctionState, ...]
    since: float | None = None
    patches: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    base_patches: tuple[str, ...] = ()
    proof: str | None = None
    verified: bool | None = None
    build: str | None = None
    url: str | None = None
    path: str | None = None


class HostStatus(Model):
    """A host. ``disagreements`` are between kernel and journal, ``problems`` keep them from being seen.

    ``busy`` is the process that is changing the kernel at this moment; disagreements are then only natural, and absent.
    """

    release: str
    build_id: str | None = None
    taint: int | None = None
    taint_letters: str = ""
    busy: str | None = None
    livepatches: tuple[LivepatchState, ...] = ()
    disagreements: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def host_status(host: Host, state_dir: Path) -> HostStatus:
    """Join what the kernel and the journal say."""
    kernel = running_kernel(host.root)
    problems: list[str] = []
    entries: list[Entry] = []
    readable = True
    state = StateDirectory(state_dir, host.user)
    busy = state.holder()
    try:
        entries, problems = Journal(state).entries()
    except PermissionError:
        readable = False
        problems.append(f"The journal below {state_dir} may not be read: run this as root.")
    latest = _latest(entries)
    return HostStatus(
        release=kernel.release,
        build_id=kernel.build_id,
        taint=kernel.taint,
        taint_letters="".join(letter for letter, _ in taint_flags(kernel.taint or 0)),
        livepatches=tuple(_joined(patch, latest.get(patch.name)) for patch in kernel.livepatches),
        busy=busy,
        disagreements=tuple(disagreements(kernel, latest, replaced_unsaid(entries, kernel)))
        if readable and not busy
        else (),
        problems=tuple(problems),
    )


def _latest(entries: Sequence[Entry]) -> dict[str, Entry]:
    """The youngest entry of each module that was given to a kernel or taken from it."""
    return {e.module.name: e for e in entries if e.module and e.touched_kernel}


def _joined(patch: Livepatch, entry: Entry | None) -> LivepatchState:
    patched = dict(patch.patched)
    functions = tuple(
        FunctionState(object=f.object, function=f.function, patched=patched.get(f.object)) for f in patch.functions
    )
    known = LivepatchState(name=patch.name, enabled=patch.enabled, transition=patch.transition, functions=functions)
    if entry is None:
        return known
    return known.model_copy(
        update={
            "since": entry.when("loaded"),
            "patches": tuple(file.name for file in entry.patches),
            "replaced": entry.replaces,
            "base_patches": tuple(file.name for file in entry.base_patches),
            "proof": entry.proof,
            "verified": entry.verified,
            "build": entry.build,
            "url": entry.url,
            "path": entry.module.path if entry.module else None,
        }
    )


def disagreements(kernel: RunningKernel, latest: dict[str, Entry], replaced: Mapping[str, str]) -> Iterator[str]:
    """Where kernel and journal say different things, in words; ``replaced`` is `plan.replaced_unsaid`."""
    held = {patch.name: patch for patch in kernel.livepatches}
    for name, patch in held.items():
        entry = latest.get(name)
        if entry is None:
            yield f"The kernel holds {name}, which the journal does not know: it was not loaded by elivepatch."
        elif not patch.enabled and not patch.transition:
            yield f"{name} is loaded but disabled."
        elif patch.transition:
            yield f"{name} is in transition {'to' if patch.enabled else 'back from'} the patched code."
    for name, entry in latest.items():
        last = entry.last
        if last is None:
            continue
        here = last.boot_id == kernel.boot_id
        target = _UNDER_WAY.get(last.step)
        if target and here:
            yield (
                f"{name} was interrupted while {last.step} and is not known to be {target}; "
                f"the kernel {'holds' if name in held else 'does not hold'} it."
            )
        elif target:
            yield f"The host went down while {name} was {last.step}, at {_at(last.time)}."
        elif last.step == "loaded" and here and name not in held and name not in replaced:
            yield f"The journal says that {name} was loaded at {_at(last.time)}; the kernel does not hold it."
        elif last.step in _WORDS and here and name in held:
            yield f"The journal says that {name} {_WORDS[last.step]} at {_at(last.time)}; the kernel holds it."


_WORDS = {
    "reverted": "was reverted",
    "replaced": "was replaced",
    "undone": "was undone",
    "failed": "could not be loaded or reverted",
}


def _at(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


def status_lines(status: HostStatus) -> Iterator[str]:
    """The status as lines for a person."""
    yield f"kernel {status.release}, build ID {status.build_id or 'unknown'}, taint {status.taint_letters or 'none'}"
    if status.busy:
        yield f"process {status.busy} is changing the kernel at this moment"
    if not status.livepatches:
        yield "no livepatch is loaded"
    for patch in status.livepatches:
        state = "in transition" if patch.transition else "enabled" if patch.enabled else "disabled"
        yield f"{patch.name}: {state}" + (f" since {_at(patch.since)}" if patch.since else "")
        if patch.patches:
            base = f", on top of {', '.join(patch.base_patches)}" if patch.base_patches else ""
            yield f"  from {', '.join(patch.patches)}{base}"
        if patch.replaced:
            yield f"  replaced {', '.join(patch.replaced)}"
        if patch.proof:
            yield f"  proof {patch.proof}, {'tried' if patch.verified else 'not tried'} in a VM"
        for function in patch.functions:
            waiting = " (not loaded)" if function.patched is False else ""
            yield f"  {function.object}: {function.function}{waiting}"
    for text in status.disagreements:
        yield f"note: {text}"
    for text in status.problems:
        yield f"problem: {text}"


class Reverted(Model):
    """A livepatch that was taken out. ``seconds`` is how long that took.

    ``patches`` are all whose effects ended, ``replaced`` the livepatches that it had replaced: they do not come back.
    """

    status: Literal["reverted"] = "reverted"
    exit_status: Literal[0] = 0
    name: str
    seconds: float
    patches: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()


def revert(name: str, settings: Settings, host: Host, output: Output) -> Reverted:
    """Take a livepatch out of the kernel: the original code is in force again.

    Raises InvalidInputError for what is no name, and what `Loader.revert` raises.
    """
    module = kernel_name(name)
    if not MODULE_NAME.fullmatch(module):
        raise InvalidInputError(f"{name!r} cannot be the name of a livepatch.", hint="'elivepatch status' names them.")
    if host.user != 0:
        raise HostError("Reverting a livepatch needs root.", hint="Run this with sudo.")
    kernel = running_kernel(host.root)
    state = StateDirectory(settings.state_dir, host.user)
    with state.locked():
        journal = Journal(state)
        entry = journal.latest_of(module) or Entry(
            id=new_id(), release=kernel.release, module=StoredModule(name=module, sha256="", size=0)
        )
        record = journal.begin(entry)

        def step(taken: LoaderStep) -> None:
            record.step(taken, boot_id=kernel.boot_id)

        loader = Loader(host, settings.transition_timeout, output.line, step)
        began = len(entry.steps)
        if entry.replaces:
            output.line(f"the original code comes back, and nothing that {module} had replaced")
        try:
            with output.working("the kernel's tasks move back to the original code"):
                seconds = loader.revert(module)
        except ElivepatchError as error:
            if len(record.entry.steps) > began:
                turned_round = record.entry.steps[-1].step == "undone"
                record.step("loaded" if turned_round else "failed", boot_id=kernel.boot_id, detail=error.message)
            raise
        record.step("reverted", boot_id=kernel.boot_id)
    return Reverted(
        name=module,
        seconds=round(seconds, 3),
        patches=tuple(file.name for file in entry.patches),
        replaced=entry.replaces,
    )
