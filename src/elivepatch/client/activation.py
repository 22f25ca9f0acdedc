# SPDX-License-Identifier: GPL-2.0-or-later
"""Putting a stored module in force, with every step in the journal before it is taken: for a request, and at boot."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from elivepatch.client.acceptance import AcceptedModule
from elivepatch.client.host import Host
from elivepatch.client.journal import Entry, Journal, Record, StepName
from elivepatch.client.loader import Loaded, Loader, LoaderStep
from elivepatch.client.output import Output
from elivepatch.client.plan import record_replaced
from elivepatch.client.settings import Settings
from elivepatch.client.state import StateDirectory
from elivepatch.errors import ElivepatchError, HostError, UnfinishedError
from elivepatch.kernel.running import RunningKernel, livepatch, taint_flags

#: What there is to say where force is asked for, before anything is loaded.
FORCE_WARNING = (
    "--force: a transition that does not finish in time is ended by force. Tasks may then run old and new code side by "
    "side, which the consistency model is there to prevent, and the module can never be unloaded."
)


@dataclass(frozen=True)
class Activated:
    """A livepatch that is in force now. ``taint`` holds the letters that came with it and that it does not explain."""

    transition_seconds: float
    replaced: tuple[str, ...]
    forced: bool
    taint: str | None


@dataclass(frozen=True)
class Activation:
    """Loads modules into the running kernel. ``warn`` takes what the person should know."""

    host: Host
    settings: Settings
    state: StateDirectory
    kernel: RunningKernel
    output: Output
    warn: Callable[[str], None]

    def run(
        self,
        record: Record,
        module: AcceptedModule,
        path: Path,
        sha256: str,
        *,
        replaces: Iterable[str],
        beside: bool = False,
        force: bool = False,
    ) -> Activated:
        """Load the module that lies at ``path``; the lock must be held.

        ``replaces`` are the livepatches that it is to take the place of, or to be ``beside``. Raises what `Loader.load`
        raises.
        """

        def step(name: LoaderStep) -> None:
            try:
                record.step(name, boot_id=self.kernel.boot_id)
            except ElivepatchError as error:
                if name not in {"undoing", "undone"}:
                    raise
                self.warn(f"the journal could not be written: {error.message}")  # undoing is what counts

        loader = Loader(self.host, self.settings.transition_timeout, self.output.line, step)
        self.output.line(f"loading {module.name}")
        ended = tuple(name for name in replaces if livepatch(name, self.host.root))
        self._clear_away(module.name, loader)
        try:
            with self.output.working("the kernel's tasks move to the patched code"):
                loaded = loader.load(
                    path,
                    sha256,
                    module.file,
                    module.functions,
                    replaces=frozenset() if beside else frozenset(ended),
                    beside=beside,
                    parameters=record.entry.parameters,
                    through_kpatch=self.settings.kpatch,
                    force=force,
                )
        except BaseException:
            undone = f"{module.name} replaced it and was then undone: the original code is in force"
            self._record_replaced(ended, module.name, detail=undone)
            raise
        if loaded.forced:
            self.warn(f"the transition of {module.name} was ended by force; its module can never be unloaded.")
        try:
            replaced = self._in_force(record, loaded, ended, loader)
        except KeyboardInterrupt:  # nothing that was replaced would come back
            self.output.line(f"{module.name} is in force already; it stays")
            replaced = self._in_force(record, loaded, ended, loader)
        if beside and replaced:  # kernels before 6.11 do not tell that before it is too late
            self.warn(f"{module.name} has replaced {', '.join(replaced)}, though it was to be loaded beside them.")
        flags = taint_flags(loaded.new_taint)
        if flags:
            self.warn(f"the kernel has a new taint: {'; '.join(meaning for _, meaning in flags)}. See dmesg.")
        letters = "".join(letter for letter, _ in flags) or None
        return Activated(round(loaded.transition_seconds, 3), replaced, loaded.forced, letters)

    def _in_force(self, record: Record, loaded: Loaded, ended: tuple[str, ...], loader: Loader) -> tuple[str, ...]:
        """Write down that it is in force, and clear away what it replaced; gives what that is."""
        if last_step(record.entry) != "loaded":
            self._record_loaded(record, loaded)
        replaced = self._record_replaced(ended, loaded.name)
        for name in replaced:
            if loaded.forced:  # klp_force_transition() pins every module that was in force
                self._note_forced(name)
                continue
            left = loader.unload_replaced(name)
            self.output.line(f"{name} is replaced and unloaded" if left is None else f"note: {left}")
        return replaced

    def _record_loaded(self, record: Record, loaded: Loaded) -> None:
        try:
            record.step(
                "loaded",
                boot_id=self.kernel.boot_id,
                transition_seconds=round(loaded.transition_seconds, 3),
                taint_before=loaded.taint_before,
                taint_after=loaded.taint_after,
                forced=loaded.forced,
            )
        except ElivepatchError as error:
            raise UnfinishedError(
                f"{loaded.name} is in force, and the journal could not be told: {error.message}",
                hint=f"{error.hint or ''} Then run 'elivepatch repair', which makes that good.".strip(),
            ) from error

    def _note_forced(self, name: str) -> None:
        journal = Journal(self.state)
        entry = journal.latest_of(name, self.kernel)
        if entry:
            with contextlib.suppress(ElivepatchError):  # to unload it is tried in vain then, and no more
                journal.begin(entry).note(forced=True)
        self.output.line(f"note: {name} is replaced; its module stays until the next boot, because of the force")

    def _clear_away(self, name: str, loader: Loader) -> None:
        """Unload what a crash or a busy kernel left of an earlier load of this module."""
        known = Journal(self.state).latest_of(name, self.kernel)
        if known and livepatch(name, self.host.root) is None and loader.left_over(name):
            loader.unload_replaced(name)

    def _record_replaced(self, names: tuple[str, ...], by: str, *, detail: str | None = None) -> tuple[str, ...]:
        """Write down what has ended; that this cannot be written changes nothing about the load."""
        try:
            return record_replaced(names, by, self.kernel, self.state, self.host.root, detail=detail)
        except ElivepatchError as error:
            self.warn(
                f"the journal could not be told what {by} replaced: {error.message} The next run makes that good."
            )
            return tuple(name for name in names if livepatch(name, self.host.root) is None)


def last_step(entry: Entry | None) -> StepName | None:
    """The name of an entry's last step."""
    return entry.last.step if entry and entry.last else None


def is_present(
    name: str, sha256: str, kernel: RunningKernel, state: StateDirectory, host: Host, *, parameters: str = ""
) -> bool:
    """Whether the kernel holds this very module. Raises HostError where it holds another of that name."""
    held = livepatch(name, host.root)
    if held is None:
        return False
    entry = Journal(state).latest_of(name, kernel)
    ours = entry and entry.module and (entry.module.sha256, entry.parameters) == (sha256, parameters) and entry.last
    if ours and ours.step == "loaded" and ours.boot_id == kernel.boot_id and held.enabled and not held.transition:
        return True
    raise HostError(
        f"The kernel already holds a livepatch named {name}, and it is not known to be this one.",
        hint=f"See 'elivepatch status'; revert it first with 'elivepatch revert {name}'.",
    )
