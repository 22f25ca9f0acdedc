# SPDX-License-Identifier: GPL-2.0-or-later
"""What the journal tells: the history of a host, and all that is known of one module."""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from pydantic import Field

from elivepatch.client.acceptance import MODULE_NAME, kernel_name
from elivepatch.client.entries import latest_entries
from elivepatch.client.host import Host
from elivepatch.client.inputs import read_file
from elivepatch.client.journal import Entry, Journal, Step
from elivepatch.client.state import StateDirectory
from elivepatch.client.status import LivepatchState, joined, local_time
from elivepatch.errors import HostError, NotFoundError
from elivepatch.kernel.module_file import read_module
from elivepatch.kernel.running import livepatch, running_kernel
from elivepatch.protocol import limits
from elivepatch.protocol.models import Model


class HistoryStep(Model):
    """A step of the journal. ``time`` is seconds since the epoch; ``name`` is absent until a module had come."""

    time: float
    step: str
    name: str | None = None
    patches: tuple[str, ...] = ()
    kernel: str
    detail: str | None = None
    entry: str


class History(Model):
    """The steps in the order in which they were taken, and which files of the journal cannot be read."""

    steps: tuple[HistoryStep, ...]
    problems: tuple[str, ...] = ()


class ModuleInfo(Model):
    """All that is known of a module.

    ``fields`` are its modinfo, ``held`` is what the kernel says, ``entries`` are those of the journal.
    ``intact`` says whether the file is the one that was checked; absent where that is not known.
    """

    name: str
    path: str | None = None
    size: int | None = None
    sha256: str | None = None
    intact: bool | None = None
    signed: bool | None = None
    fields: dict[str, str] = Field(default_factory=dict)
    held: LivepatchState | None = None
    entries: tuple[Entry, ...] = ()


def told_history(state: StateDirectory, name: str | None) -> History:
    """The history of the host, or that of one livepatch. Raises HostError where it may not be read."""
    entries, problems = _entries(state)
    module = kernel_name(name) if name else None
    boots = boots_in_order(entries)
    steps = [
        (_moment(step, boots), _history_step(entry, number))
        for entry in entries
        if module is None or (entry.module and entry.module.name == module)
        for number, step in enumerate(entry.steps)
    ]
    steps.sort(key=lambda row: row[0])
    return History(steps=tuple(step for _, step in steps), problems=tuple(problems))


def _moment(step: Step, boots: dict[str, int]) -> tuple[int, float]:
    """When a step was taken: in which boot, and how long after the host had come up."""
    return boots[step.boot_id or ""], step.time if step.uptime is None else step.uptime


def boots_in_order(entries: Sequence[Entry]) -> dict[str, int]:
    """The boots that a journal tells of, by their ids, numbered as they came; ``entries`` are in its order.

    The time of day may have been wrong in any of them, so it decides only where nothing else does: the steps of one
    entry follow each other, and so do the loads (or requests) that gave the entries their numbers.
    """
    first: dict[str, float] = {}
    for step in (step for entry in entries for step in entry.steps):
        boot = step.boot_id or ""
        first[boot] = min(step.time, first.get(boot, step.time))
    sorter = TopologicalSorter[str](dict.fromkeys(first, ()))
    numbered = [(entry.at("loading") or entry.steps[0]).boot_id or "" for entry in entries if entry.steps]
    for chain in (numbered, *([step.boot_id or "" for step in entry.steps] for entry in entries)):
        for earlier, later in itertools.pairwise(chain):
            if earlier != later:
                sorter.add(later, earlier)
    try:
        sorter.prepare()
    except CycleError:  # two boots before each other: the journal was changed by hand, or the boots are not known
        return {boot: at for at, boot in enumerate(sorted(first, key=lambda boot: first[boot]))}
    found: dict[str, int] = {}
    ready: list[tuple[float, str]] = []
    while sorter.is_active():
        for boot in sorter.get_ready():
            heapq.heappush(ready, (first[boot], boot))
        _, boot = heapq.heappop(ready)
        found[boot] = len(found)
        sorter.done(boot)
    return found


def _history_step(entry: Entry, number: int) -> HistoryStep:
    step = entry.steps[number]
    return HistoryStep(
        time=step.time,
        step=step.step,
        name=entry.module.name if entry.module else None,
        patches=tuple(patch.name for patch in entry.patches),
        kernel=entry.release,
        detail=step.detail,
        entry=entry.id,
    )


def history_lines(history: History) -> Iterator[str]:
    """The history as lines for a person."""
    for step in history.steps:
        what = step.name or "(no module yet)"
        patches = f" ({', '.join(step.patches)})" if step.patches else ""
        yield f"{local_time(step.time)}  {step.step:<9}  {what}{patches}" + (f": {step.detail}" if step.detail else "")
    if not history.steps:
        yield "nothing has happened yet"
    for text in history.problems:
        yield f"problem: {text}"


def info(module: str, host: Host, state: StateDirectory) -> ModuleInfo:
    """What is known of a livepatch of this host by its name, or of a module file by its path.

    Raises NotFoundError, ModuleRejectedError for a file that is no module, and HostError.
    """
    if "/" in module or module.endswith(".ko"):
        return _of_file(Path(module), host, state)
    name = kernel_name(module)
    entries = _of(name, state) if MODULE_NAME.fullmatch(name) else ()
    held = livepatch(name, host.root) if MODULE_NAME.fullmatch(name) else None
    if not entries and held is None:
        raise NotFoundError(
            f"Neither the kernel nor the journal knows {module!r}.",
            hint="'elivepatch status' and 'elivepatch history' name what there is; a file is named with its path.",
        )
    latest = _speaking(name, entries, host)
    found = ModuleInfo(name=name, held=joined(held, latest) if held else None, entries=entries)
    stored = latest.module if latest else None
    if stored is None or stored.path is None or not Path(stored.path).is_file():
        return found.model_copy(update={"intact": False if stored and stored.path else None})
    return _with_file(found, Path(stored.path), stored.sha256)


def _of_file(path: Path, host: Host, state: StateDirectory) -> ModuleInfo:
    found = _with_file(ModuleInfo(name=""), path, None)
    entries = tuple(entry for entry in _of(found.name, state) if entry.module and entry.module.sha256 == found.sha256)
    held = livepatch(found.name, host.root) if MODULE_NAME.fullmatch(found.name) else None
    latest = _speaking(found.name, entries, host)
    return found.model_copy(update={"entries": entries, "held": joined(held, latest) if held else None})


def _with_file(found: ModuleInfo, path: Path, sha256: str | None) -> ModuleInfo:
    data = read_file(path, "module", limits.MODULE_BYTES).data
    digest = hashlib.sha256(data).hexdigest()
    known = {"path": str(path), "size": len(data), "sha256": digest}
    if sha256 and digest != sha256:
        return found.model_copy(update={**known, "intact": False})
    file = read_module(data)
    return found.model_copy(
        update={
            **known,
            "name": found.name or kernel_name(file.name or path.stem),
            "intact": True if sha256 else None,
            "signed": file.signed,
            "fields": dict(reversed(file.fields)),  # of a key that repeats, the first
        }
    )


def _speaking(name: str, entries: tuple[Entry, ...], host: Host) -> Entry | None:
    """The entry that a livepatch in the kernel is about: of several kernels and requests, as for 'status'."""
    loaded = latest_entries(entries, running_kernel(host.root)).get(name)
    return loaded or (entries[-1] if entries else None)


def _of(name: str, state: StateDirectory) -> tuple[Entry, ...]:
    return tuple(entry for entry in _entries(state)[0] if entry.module and entry.module.name == name)


def _entries(state: StateDirectory) -> tuple[list[Entry], list[str]]:
    try:
        return Journal(state).entries()
    except PermissionError as error:
        raise HostError(f"The journal below {state.path} may not be read.", hint="Run this as root.") from error


_FIELDS = ("vermagic", "livepatch", "depends", "license", "srcversion")


def info_lines(found: ModuleInfo) -> Iterator[str]:
    """All that is known of a module as lines for a person."""
    yield found.name
    if found.path:
        yield f"  file {found.path}, {found.size} bytes, SHA-256 {found.sha256}"
    if found.intact is False:
        yield "  its file is missing, or is not the one that was checked"
    if found.signed is not None:
        yield f"  {'signed' if found.signed else 'not signed'}"
    for key in _FIELDS:
        if found.fields.get(key):
            yield f"  {key}: {found.fields[key].strip()}"
    held = found.held
    yield f"  in the kernel: {('enabled' if held.enabled else 'disabled') if held else 'no'}"
    for entry in found.entries:
        yield from _entry_lines(entry)


def _entry_lines(entry: Entry) -> Iterator[str]:
    yield f"  for {entry.release}, build ID {entry.build_id or 'unknown'}, proof {entry.proof or 'none'}"
    for patch in entry.patches:
        yield f"    patch {patch.name}, SHA-256 {patch.sha256}"
    if entry.cves:
        yield f"    for {', '.join(entry.cves)}"
    if entry.overlays:
        yield f"    of {', '.join(entry.overlays)}"
    if entry.unproven:
        yield f"    loaded without a report{f', with {entry.parameters}' if entry.parameters else ''}"
    for function in entry.changed:
        yield f"    {function.object}: {function.function} ({function.kind})"
    for step in entry.steps:
        yield f"    {local_time(step.time)}  {step.step}" + (f": {step.detail}" if step.detail else "")
