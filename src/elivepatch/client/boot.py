# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens when the host has come up: the livepatch that was in force is loaded again, and nothing else.

Nobody is asked anything: module, digest and functions are those that were checked when it was loaded first. What was in
force for another kernel (another build ID) stays on the disk, and so does what the crash guard holds back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from elivepatch.client.acceptance import AcceptedModule, accept_stored, check_can_load, kernel_name
from elivepatch.client.activation import Activation
from elivepatch.client.entries import latest_entries
from elivepatch.client.host import Host
from elivepatch.client.journal import Entry, Journal, Record
from elivepatch.client.output import Output
from elivepatch.client.settings import Settings
from elivepatch.client.settle import Settling
from elivepatch.client.state import LockedError, StateDirectory, read_regular, require_trusted
from elivepatch.client.status import ATTENTION
from elivepatch.errors import ElivepatchError, HostError, InvalidInputError, ModuleRejectedError
from elivepatch.kernel.running import RunningKernel, livepatch, running_kernel
from elivepatch.protocol import limits
from elivepatch.protocol.models import Model


class Booted(Model):
    """How it went: loaded, present (the kernel held it already), nothing (to be loaded for this kernel), or guarded.

    ``reason`` says why it is guarded. ``exit_status`` is 7 then, and where the journal cannot be read: somebody should
    look, and to try again is of no use (the units of packaging/ go by that).
    """

    status: Literal["loaded", "present", "nothing", "guarded"]
    exit_status: int = 0
    kernel: str
    name: str | None = None
    reason: str | None = None
    transition_seconds: float | None = None
    warnings: tuple[str, ...] = ()


class Allowed(Model):
    """A livepatch that may be loaded again."""

    status: Literal["allowed"] = "allowed"
    exit_status: Literal[0] = 0
    name: str


def candidate(entries: Sequence[Entry], kernel: RunningKernel) -> tuple[Entry | None, Entry | None]:
    """What is to be loaded for the running kernel, and what the crash guard holds back; journals are settled before.

    A livepatch that a later one took the place of is neither, even where the later one is held back.
    """
    latest = latest_entries(entries, kernel)
    guarded = None
    proven = (entry for entry in latest.values() if not entry.unproven)
    for entry in sorted(proven, key=lambda one: one.number, reverse=True):
        step = entry.last.step if entry.last else None
        if not entry.is_for(kernel) or kernel.build_id is None:
            continue
        if step in {"loaded", "allowed"}:
            return entry, guarded
        if step == "guarded":
            guarded = guarded or entry
        if entry.at("loaded"):
            break
    return None, guarded


@dataclass(frozen=True)
class Boot:
    """The work of 'elivepatch boot', 'allow' and 'mark' on one host."""

    settings: Settings
    host: Host
    output: Output
    warnings: list[str]

    def run(self) -> Booted:
        """Load what was in force for the running kernel.

        Raises HostError, and ModuleRejectedError where the module on the disk is not the one that was checked.
        """
        self._require_root("Loading livepatches needs root.")
        state = StateDirectory(self.settings.state_dir, self.host.user)
        kernel = running_kernel(self.host.root)
        if not state.path.exists():
            return Booted(status="nothing", kernel=kernel.release)
        with state.locked(patience=10):
            Settling(self.host, self.settings, state, self.output).run(kernel)
            entries, problems = Journal(state).entries()
            for text in problems:
                self._warn(text)
            entry, guarded = candidate(entries, kernel)
            if guarded and guarded.module:
                self._warn(f"{guarded.module.name} is not loaded: {_reason(guarded)}.")
            if entry is None:
                return self._nothing(kernel, guarded, unknown=bool(problems))
            return self._load(entry, state, running_kernel(self.host.root))

    def allow(self, name: str) -> Allowed:
        """Let a livepatch that is guarded be loaded again when the host comes up. Raises HostError."""
        self._require_root("Allowing a livepatch needs root.")
        module = kernel_name(name)
        state = StateDirectory(self.settings.state_dir, self.host.user)
        kernel = running_kernel(self.host.root)
        with state.locked():
            Settling(self.host, self.settings, state, self.output).run(kernel)
            journal = Journal(state)
            entry = journal.latest_of(module, kernel)
            if entry is None or entry.last is None:
                raise InvalidInputError(
                    f"The journal does not know a livepatch {name!r}.", hint="'elivepatch status' names those guarded."
                )
            if entry.last.step not in {"guarded", "allowed"}:
                raise HostError(
                    f"{module} is not guarded: its last step is '{entry.last.step}'.",
                    hint="There is nothing to allow; 'elivepatch status' shows what is loaded.",
                )
            journal.begin(entry).step("allowed", boot_id=kernel.boot_id)
        return Allowed(name=module)

    def mark(self, *, shutdown: bool) -> None:
        """Write down that the host is up, or that it begins to go down in an orderly way. Raises HostError.

        Whoever holds the lock has just written that the host is up; one that keeps it is no failure of this.
        """
        self._require_root("The journal belongs to root.")
        state = StateDirectory(self.settings.state_dir, self.host.user)
        if not state.path.exists():
            return
        with contextlib.suppress(*() if shutdown else (LockedError,)), state.locked(patience=10):
            settling = Settling(self.host, self.settings, state, self.output)
            kernel = running_kernel(self.host.root)
            if shutdown:  # the init system may not wait until all is settled
                settling.note_shutdown(kernel)
            settling.run(kernel)
            if shutdown:
                settling.note_shutdown(kernel)

    # -- below

    def _load(self, entry: Entry, state: StateDirectory, kernel: RunningKernel) -> Booted:
        stored = entry.module
        if stored is None or stored.path is None:
            raise HostError(f"The journal ({entry.id}) names no module to load.", hint="Ask for its patches again.")
        here = entry.last is not None and entry.last.step == "loaded" and entry.last.boot_id == kernel.boot_id
        held = livepatch(stored.name, self.host.root)
        if here or held:
            if held and held.enabled and not held.transition and here:
                return Booted(status="present", kernel=kernel.release, name=stored.name)
            raise HostError(
                f"Journal and kernel disagree about {stored.name}; nothing was loaded.",
                hint=f"See 'elivepatch status'; 'elivepatch revert {stored.name}' sets them right.",
            )
        for text in check_can_load(kernel, self.host.user):
            self._warn(text)
        if kernel.livepatches:
            names = ", ".join(patch.name for patch in kernel.livepatches)
            raise HostError(
                f"{stored.name} would replace {names}, which the kernel holds already.",
                hint="It was not loaded. Revert that first, then run 'elivepatch boot' again.",
            )
        module = self._read(entry, Path(stored.path), state, kernel)
        record = Journal(state).begin(entry)
        activation = Activation(self.host, self.settings, state, kernel, self.output, self._warn)
        try:
            done = activation.run(record, module, Path(stored.path), stored.sha256, replaces=())
        except (ElivepatchError, KeyboardInterrupt) as error:
            self._keep_for_later(record, error, kernel)
            raise
        return Booted(
            status="loaded",
            kernel=kernel.release,
            name=module.name,
            transition_seconds=done.transition_seconds,
            warnings=tuple(self.warnings),
        )

    def _keep_for_later(self, record: Record, error: BaseException, kernel: RunningKernel) -> None:
        """It protects, so it is not given up: the next boot tries again, and until then status tells of it."""
        name = record.entry.module.name if record.entry.module else ""
        if livepatch(name, self.host.root):
            return  # in force, or on its way out: whoever settles next sees to that
        why = error.message if isinstance(error, ElivepatchError) else "it was interrupted"
        try:
            detail = f"it could not be loaded when the host came up: {why}"
            record.step("allowed", boot_id=kernel.boot_id, detail=detail)
        except ElivepatchError as unwritten:
            self._warn(f"the journal could not be written: {unwritten.message}")  # settling makes that good

    def _read(self, entry: Entry, path: Path, state: StateDirectory, kernel: RunningKernel) -> AcceptedModule:
        """The module of an entry as it lies on the disk. Raises HostError and ModuleRejectedError."""
        expected = state.modules(entry.release)
        if path.parent != expected:
            raise ModuleRejectedError(
                f"The journal says that the module lies in {path.parent}, not in {expected}.",
                hint="It was not loaded. If state_dir was moved, ask for the patches again.",
            )
        require_trusted(expected, self.host.user)
        try:
            data = read_regular(path, limits.MODULE_BYTES + 1)
        except OSError as error:
            raise HostError(
                f"The module {path} cannot be read: {error.strerror}.", hint="Ask for its patches again."
            ) from error
        return accept_stored(data, entry, kernel)

    def _nothing(self, kernel: RunningKernel, guarded: Entry | None, *, unknown: bool) -> Booted:
        if guarded is None or guarded.module is None:
            # what cannot be read may have been what is to be loaded
            status = ATTENTION if unknown else 0
            return Booted(status="nothing", exit_status=status, kernel=kernel.release, warnings=tuple(self.warnings))
        return Booted(
            status="guarded",
            exit_status=ATTENTION,
            kernel=kernel.release,
            name=guarded.module.name,
            reason=_reason(guarded),
            warnings=tuple(self.warnings),
        )

    def _require_root(self, message: str) -> None:
        if self.host.user != 0:
            raise HostError(message, hint="Run this with sudo.")

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.output.warn(text)


def _reason(entry: Entry) -> str:
    return (entry.last.detail if entry.last else None) or "the crash guard holds it back"


def boot_line(done: Booted) -> str:
    """How it went, in words."""
    if done.status == "loaded":
        return f"{done.name} is loaded again, its transition took {done.transition_seconds or 0:.1f} s"
    if done.status == "present":
        return f"{done.name} is already loaded"
    if done.status == "guarded":
        return f"{done.name} is not loaded; to allow it again: elivepatch allow {done.name}"
    return f"nothing is to be loaded for {done.kernel}"
