# SPDX-License-Identifier: GPL-2.0-or-later
"""What is patched on this host: the kernel's word and the journal's, side by side, and where they disagree."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from elivepatch.client.entries import crash_suspect, latest_entries, replaced_unsaid
from elivepatch.client.host import Host
from elivepatch.client.journal import Entry, Journal
from elivepatch.client.state import StateDirectory
from elivepatch.kernel.running import Livepatch, RunningKernel, running_kernel, taint_flags
from elivepatch.protocol.models import Model

#: Exit statuses of 'elivepatch status': somebody should look (of 'boot' too), and wait a moment.
ATTENTION = 7
UNDER_WAY = 8
#: Steps that are on the way to somewhere: nobody stays there unless interrupted.
_UNDER_WAY = {"loading": "loaded", "forcing": "loaded", "undoing": "undone", "reverting": "reverted"}


class FunctionState(Model):
    """A function that a livepatch replaces; ``patched`` is absent where the kernel does not tell."""

    object: str
    function: str
    patched: bool | None = None


class LivepatchState(Model):
    """A livepatch that the kernel holds. ``since`` is seconds since the epoch; what the journal knows may be absent.

    ``patches`` are all that it contains, ``replaced`` the earlier livepatches that it took the place of, ``cves`` those
    that the patches or their overlays name, ``overlays`` those that patches came from. ``forced`` says that its
    transition was ended by force, ``survived`` that the host ran on for long enough after the load (setting
    crash_guard), ``unproven`` that it was loaded without a report.
    """

    name: str
    enabled: bool
    transition: bool
    functions: tuple[FunctionState, ...]
    since: float | None = None
    patches: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    base_patches: tuple[str, ...] = ()
    cves: tuple[str, ...] = ()
    overlays: tuple[str, ...] = ()
    proof: str | None = None
    verified: bool | None = None
    unproven: bool | None = None
    forced: bool | None = None
    survived: bool | None = None
    build: str | None = None
    url: str | None = None
    path: str | None = None


class AbsentLivepatch(Model):
    """A livepatch for this kernel that was in force, or nearly, when the host went down, and that it does not hold now.

    ``state``: guarded (not to be loaded when the host comes up, until somebody allows it), or expected (to be loaded by
    'elivepatch boot'). ``since`` is seconds since the epoch.
    """

    name: str
    state: Literal["guarded", "expected"]
    reason: str
    since: float | None = None
    patches: tuple[str, ...] = ()
    cves: tuple[str, ...] = ()


class HostStatus(Model):
    """A host. ``disagreements`` are between kernel and journal, ``problems`` keep them from being seen.

    ``absent`` are livepatches that the kernel might be expected to hold, ``exit_status`` that of 'elivepatch status'.
    ``busy`` is the process that is changing the kernel at this moment; disagreements are then only natural, and absent.
    """

    release: str
    build_id: str | None = None
    taint: int | None = None
    taint_letters: str = ""
    busy: str | None = None
    livepatches: tuple[LivepatchState, ...] = ()
    absent: tuple[AbsentLivepatch, ...] = ()
    disagreements: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    exit_status: int = 0


def host_status(host: Host, state_dir: Path, *, guard: float = 600) -> HostStatus:
    """Join what the kernel and the journal say; ``guard`` is the setting crash_guard."""
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
    latest = latest_entries(entries, kernel)
    known = readable and not busy
    found = HostStatus(
        release=kernel.release,
        build_id=kernel.build_id,
        taint=kernel.taint,
        taint_letters="".join(letter for letter, _ in taint_flags(kernel.taint or 0)),
        livepatches=tuple(joined(patch, latest.get(patch.name)) for patch in kernel.livepatches),
        absent=tuple(absent_livepatches(kernel, entries, guard)) if known else (),
        busy=busy,
        disagreements=tuple(disagreements(kernel, latest, replaced_unsaid(entries, kernel))) if known else (),
        problems=tuple(problems),
    )
    return found.model_copy(update={"exit_status": _exit_status(found)})


def _exit_status(status: HostStatus) -> int:
    if status.busy or any(patch.transition for patch in status.livepatches):
        return UNDER_WAY
    return ATTENTION if status.absent or status.disagreements or status.problems else 0


def absent_livepatches(kernel: RunningKernel, entries: Sequence[Entry], guard: float) -> Iterator[AbsentLivepatch]:
    """The livepatches that the running kernel might be expected to hold, the youngest first."""
    held = {patch.name for patch in kernel.livepatches}
    shadowed = False
    latest = latest_entries(entries, kernel)
    for entry in reversed(entries):
        name = entry.module.name if entry.module else ""
        last = entry.last
        if last is None or not entry.is_for(kernel) or latest.get(name) is not entry or name in held or entry.unproven:
            shadowed = shadowed or (name in held and not entry.unproven)
            continue
        suspect = crash_suspect(entry, kernel, guard)
        reason = last.detail if last.step == "guarded" else suspect
        expected = last.step == "allowed" or (last.step == "loaded" and last.boot_id != kernel.boot_id)
        if not shadowed and (reason or expected):
            yield AbsentLivepatch(
                name=name,
                state="guarded" if reason else "expected",
                reason=reason or last.detail or "it was in force when the host went down",
                since=entry.when("loading"),
                patches=tuple(file.name for file in entry.patches),
                cves=entry.cves,
            )
        shadowed = shadowed or entry.at("loaded") is not None


def joined(patch: Livepatch, entry: Entry | None) -> LivepatchState:
    """A livepatch as the kernel shows it, with what the journal knows of it."""
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
            "cves": entry.cves,
            "overlays": entry.overlays,
            "forced": entry.forced or None,
            "survived": entry.survived or None,
            "proof": entry.proof,
            "verified": entry.verified,
            "unproven": entry.unproven or None,
            "build": entry.build,
            "url": entry.url,
            "path": entry.module.path if entry.module else None,
        }
    )


def disagreements(kernel: RunningKernel, latest: dict[str, Entry], replaced: Mapping[str, str]) -> Iterator[str]:
    """Where kernel and journal say different things, in words; ``replaced`` is `entries.replaced_unsaid`."""
    held = {patch.name: patch for patch in kernel.livepatches}
    for name, patch in held.items():
        entry = latest.get(name)
        if entry is None:
            yield f"The kernel holds {name}, which the journal does not know: it was not loaded by elivepatch."
        elif not patch.enabled and not patch.transition:
            yield f"{name} is loaded but disabled."
        elif patch.transition:
            yield f"{name} is in transition {'to' if patch.enabled else 'back from'} the patched code."
        elif entry.last and (entry.last.boot_id != kernel.boot_id or entry.last.step in {"guarded", "allowed"}):
            yield f"The kernel holds {name}, which elivepatch did not load in this boot."
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
            yield f"The host went down while {name} was {last.step}, at {local_time(last.time)}."
        elif last.step == "loaded" and here and name not in held and name not in replaced:
            yield f"The journal says that {name} was loaded at {local_time(last.time)}; the kernel does not hold it."
        elif last.step in _WORDS and here and name in held:
            yield f"The journal says that {name} {_WORDS[last.step]} at {local_time(last.time)}; the kernel holds it."


_WORDS = {
    "reverted": "was reverted",
    "replaced": "was replaced",
    "undone": "was undone",
    "failed": "could not be loaded or reverted",
}


def local_time(when: float | None) -> str:
    """A moment (seconds since the epoch) for a person."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)) if when else "a time that is not known"


def status_lines(status: HostStatus) -> Iterator[str]:
    """The status as lines for a person."""
    yield f"kernel {status.release}, build ID {status.build_id or 'unknown'}, taint {status.taint_letters or 'none'}"
    if status.busy:
        yield f"process {status.busy} is changing the kernel at this moment"
    if not status.livepatches:
        yield "no livepatch is loaded"
    for patch in status.livepatches:
        state = "in transition" if patch.transition else "enabled" if patch.enabled else "disabled"
        yield f"{patch.name}: {state}" + (f" since {local_time(patch.since)}" if patch.since else "")
        if patch.patches:
            base = f", on top of {', '.join(patch.base_patches)}" if patch.base_patches else ""
            yield f"  from {', '.join(patch.patches)}{base}"
        if patch.overlays:
            yield f"  of the overlay{'s' if len(patch.overlays) > 1 else ''} {', '.join(patch.overlays)}"
        if patch.replaced:
            yield f"  replaced {', '.join(patch.replaced)}"
        if patch.cves:
            yield f"  for {', '.join(patch.cves)}"
        if patch.proof:
            yield f"  proof {patch.proof}, {'tried' if patch.verified else 'not tried'} in a VM"
        if patch.unproven:
            yield "  loaded without a report: nothing is proven, and it is not loaded again at boot"
        if patch.forced:
            yield "  its transition was ended by force: tasks may have met old and new code, and it cannot be unloaded"
        for function in patch.functions:
            waiting = " (not loaded)" if function.patched is False else ""
            yield f"  {function.object}: {function.function}{waiting}"
    for absent in status.absent:
        yield f"{absent.name}: not loaded, {absent.state} ({', '.join(absent.patches) or 'patches not known'})"
        yield f"  {absent.reason}; it was loaded at {local_time(absent.since)}"
        if absent.state == "guarded":
            yield f"  it is not loaded when the host comes up; to allow it again: elivepatch allow {absent.name}"
        else:
            yield "  'elivepatch boot' loads it"
    for text in status.disagreements:
        yield f"note: {text}"
    for text in status.problems:
        yield f"problem: {text}"
