# SPDX-License-Identifier: GPL-2.0-or-later
"""Taking livepatches out of the kernel: the original code is in force again."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal

from elivepatch.client.acceptance import MODULE_NAME, kernel_name
from elivepatch.client.activation import last_step
from elivepatch.client.entries import latest_entries
from elivepatch.client.host import Host
from elivepatch.client.journal import Entry, Journal, StepName, StoredModule, new_id
from elivepatch.client.loader import Loader, LoaderStep, ModuleStaysError
from elivepatch.client.output import Output
from elivepatch.client.settings import Settings
from elivepatch.client.settle import Settling
from elivepatch.client.state import LockedError, StateDirectory, UnwritableError
from elivepatch.errors import DiskFullError, ElivepatchError, HostError, InvalidInputError, UnfinishedError
from elivepatch.kernel.running import RunningKernel, livepatch, livepatches, running_kernel
from elivepatch.protocol.models import Model

#: Seconds that another client may take, beside its transition back, to undo what it is loading.
_UNDO_PATIENCE = 30.0
#: Last steps of livepatches that are not in the kernel and would be, or could be, loaded at boot.
WAITING = {"loaded", "guarded", "allowed"}
#: What keeps the journal from being written, and a livepatch, which may be the reason, not in the kernel.
_UNTOLD = (DiskFullError, UnwritableError)


class Reverted(Model):
    """A livepatch that was taken out. ``seconds`` is how long that took.

    ``patches`` are all whose effects ended, ``replaced`` the livepatches that it had replaced: they do not come back.
    ``note`` is what there is to say beside that.
    """

    status: Literal["reverted"] = "reverted"
    exit_status: Literal[0] = 0
    name: str
    seconds: float
    patches: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    note: str | None = None


class NotReverted(Model):
    """A livepatch that could not be taken out, and why; ``code`` is that of the error."""

    name: str
    code: str
    message: str
    hint: str | None = None


class RevertedAll(Model):
    """The livepatches that were taken out, in order, and those that were not; ``exit_status`` is the first one's."""

    status: Literal["reverted", "left-unfinished"] = "reverted"
    exit_status: int = 0
    reverted: tuple[Reverted, ...]
    failed: tuple[NotReverted, ...] = ()


@dataclass(frozen=True)
class Reverting:
    """Reverts livepatches of one host."""

    settings: Settings
    host: Host
    output: Output

    def one(self, name: str | None) -> Reverted:
        """Revert the livepatch of that name, or the only one that there is.

        A load of it that is under way in another process is interrupted, which undoes it. Raises InvalidInputError for
        what is no name, and what `Loader.revert` raises.
        """
        module = self.module_of(name)
        with self._locked(module) as (state, interrupted):
            entry = Journal(state).latest_of(module, running_kernel(self.host.root))
            given_up = entry is not None and last_step(entry) in WAITING  # by 'boot', which would try again
            if interrupted and entry and not given_up and livepatch(module, self.host.root) is None:
                return _reverted(module, entry, 0, note="the load that was under way was undone")
            return self._revert(module, state)

    def all(self) -> RevertedAll:
        """Revert all livepatches that the kernel holds, the last one first; one that stays does not keep the others.

        Raises HostError where nothing can be begun.
        """
        done: list[Reverted] = []
        failed: list[NotReverted] = []
        exit_status = 0
        with self._locked(None) as (state, _):
            for name in self.last_first(Journal(state).entries()[0]):
                try:
                    done.append(self._revert(name, state))
                except ElivepatchError as error:
                    self.output.error(error)
                    failed.append(NotReverted(name=name, code=error.code, message=error.message, hint=error.hint))
                    exit_status = exit_status or error.exit_status
        status = "left-unfinished" if failed else "reverted"
        return RevertedAll(status=status, exit_status=exit_status, reverted=tuple(done), failed=tuple(failed))

    def last_first(self, entries: Sequence[Entry]) -> list[str]:
        """The livepatches that the kernel holds, the last one first."""
        latest = latest_entries(entries, running_kernel(self.host.root))
        names = [patch.name for patch in livepatches(self.host.root)]
        return sorted(names, key=lambda name: latest[name].number if name in latest else 0, reverse=True)

    def module_of(self, name: str | None) -> str:
        """The module that is meant: the one of that name, or the only one. Raises HostError and InvalidInputError."""
        if name is None:
            names = [patch.name for patch in livepatches(self.host.root)]
            if not names:
                raise HostError("There is no livepatch in this kernel.", hint="There is nothing to revert.")
            if len(names) > 1:
                raise InvalidInputError(
                    f"The kernel holds {', '.join(names)}.", hint="Name the one to revert, or revert them with --all."
                )
            return names[0]
        module = kernel_name(name)
        if not MODULE_NAME.fullmatch(module):
            raise InvalidInputError(
                f"{name!r} cannot be the name of a livepatch.", hint="'elivepatch status' names them."
            )
        return module

    def require_root(self) -> None:
        """Raises HostError for everybody else."""
        if self.host.user != 0:
            raise HostError("Reverting a livepatch needs root.", hint="Run this with sudo.")

    @contextlib.contextmanager
    def _locked(self, module: str | None) -> Generator[tuple[StateDirectory, bool]]:
        """The lock, with journal and kernel in agreement, and whether a load had to be interrupted for it.

        ``module`` is what is to be reverted, None for all.
        """
        self.require_root()
        state = StateDirectory(self.settings.state_dir, self.host.user)
        interrupted = False
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(state.locked(unwritable=True))
            except LockedError:
                interrupted = self._interrupt(module, state)
                if not interrupted:
                    raise
                patience = max(self.settings.transition_timeout, 15) + _UNDO_PATIENCE
                stack.enter_context(state.locked(patience, unwritable=True))
            try:
                Settling(self.host, self.settings, state, self.output).run(running_kernel(self.host.root))
            except _UNTOLD as error:
                self.output.warn(f"the journal could not be set right: {error.message}")
            yield state, interrupted

    def being_loaded(self, state: StateDirectory) -> list[str]:
        """The livepatches that, by the journal, somebody is loading in this boot."""
        boot_id = running_kernel(self.host.root).boot_id
        return [
            entry.module.name
            for entry in Journal(state).entries()[0]
            if entry.module and entry.last and entry.last.step == "loading" and entry.last.boot_id == boot_id
        ]

    def _interrupt(self, module: str | None, state: StateDirectory) -> bool:
        """Tell a client that is loading this livepatch to end; it undoes the load. Gives whether there is one."""
        loading = self.being_loaded(state)
        holder = state.holder()
        if not holder or not holder.isdecimal() or not (module in loading if module else loading):
            return False
        self.output.line(f"process {holder} is loading {module or ', '.join(loading)}: it is told to undo that")
        with contextlib.suppress(ProcessLookupError):
            self.host.signal(int(holder), signal.SIGTERM)
        return True

    def _revert(self, module: str, state: StateDirectory) -> Reverted:
        kernel = running_kernel(self.host.root)
        journal = Journal(state)
        entry = journal.latest_of(module, kernel)
        if entry and not entry.is_for(kernel) and livepatch(module, self.host.root):
            entry = None  # it bears the name of one that waits for another kernel
        waiting = last_step(entry) in WAITING
        # one that was disabled by hand has its module in the kernel still
        if entry and waiting and livepatch(module, self.host.root) is None and not self._left_over(module):
            return self._forget(module, entry, journal, kernel)
        gone = livepatch(module, self.host.root) is None and not (self.host.root / "sys/module" / module).exists()
        if gone and entry and entry.last and entry.last.step == "replaced":
            return _reverted(module, entry, 0, note="it was replaced before, and nothing is left of it")
        known = entry is not None
        entry = entry or Entry(id=new_id(), release=kernel.release, module=StoredModule(name=module, sha256="", size=0))
        record = journal.begin(entry)

        def step(taken: LoaderStep) -> None:
            tell(taken)

        def tell(taken: StepName, detail: str | None = None) -> None:
            try:
                record.step(taken, boot_id=kernel.boot_id, detail=detail)
            except _UNTOLD as error:
                self.output.warn(f"the journal could not be written: {error.message}")

        loader = Loader(self.host, self.settings.transition_timeout, self.output.line, step)
        began = len(entry.steps)
        if entry.replaces:
            self.output.line(f"the original code comes back, and nothing that {module} had replaced")
        note = None
        try:
            with self.output.working("the kernel's tasks move back to the original code"):
                seconds = loader.revert(module)
        except ModuleStaysError as error:
            if not entry.forced:
                tell("failed", error.message)
                raise
            seconds, note = 0.0, "its module stays until the next boot, because its transition was forced"
        except ElivepatchError as error:
            if len(record.entry.steps) > began:
                turned_round = record.entry.steps[-1].step == "undone"
                tell("loaded" if turned_round else "failed", error.message)
            raise
        try:
            record.step("reverted", boot_id=kernel.boot_id, detail=note)
        except _UNTOLD as error:
            if not known:  # nothing in the journal says that it is in force, or would have it loaded at boot
                self.output.warn(f"the journal could not be told: {error.message}")
                return _reverted(module, entry, seconds, note=note)
            first = "Make room" if isinstance(error, DiskFullError) else "Make that file system writable"
            raise UnfinishedError(
                f"{module} is reverted, and the journal could not be told: {error.message}",
                hint=f"{first}, then run 'elivepatch revert {module}' again, or "
                + ("'elivepatch status' goes on missing it." if entry.unproven else "it is loaded at the next boot."),
            ) from error
        return _reverted(module, entry, seconds, note=note)

    def _left_over(self, module: str) -> bool:
        return Loader(self.host, 0, self.output.line).left_over(module)

    def _forget(self, module: str, entry: Entry, journal: Journal, kernel: RunningKernel) -> Reverted:
        """Write down that a livepatch that the kernel does not hold is not to be loaded at boot either."""
        detail = "the kernel did not hold it; it will not be loaded at boot"
        journal.begin(entry).step("reverted", boot_id=kernel.boot_id, detail=detail)
        return _reverted(module, entry, 0, note=detail)


def _reverted(module: str, entry: Entry, seconds: float, *, note: str | None) -> Reverted:
    return Reverted(
        name=module,
        seconds=round(seconds, 3),
        patches=tuple(file.name for file in entry.patches),
        replaced=entry.replaces,
        note=note,
    )


def revert_lines(done: Sequence[Reverted]) -> list[str]:
    """What was reverted, in words."""
    lines: list[str] = []
    for one in done:
        text = f"{one.name} is reverted and unloaded, which took {one.seconds:.1f} s: the original code is in force"
        if one.note:
            text = f"{one.name} is reverted: {one.note}"
        elif one.replaced:
            text += f", without {', '.join(one.patches)}; what it had replaced ({', '.join(one.replaced)}) stays gone"
        lines.append(text)
    return lines or ["no livepatch is loaded: there is nothing to revert"]
