# SPDX-License-Identifier: GPL-2.0-or-later
"""Load a livepatch, watch its transition, take it back: the kernel's interface and nothing else.

The kernel shows a livepatch as /sys/kernel/livepatch/NAME (Documentation/ABI/testing/sysfs-kernel-livepatch):
``transition`` is 1 while tasks move, writing 0 to ``enabled`` disables it, and does so in mid-transition too, which
turns the transition round. Nothing is written to ``force`` unless somebody asked for that.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from elivepatch import process
from elivepatch.client.host import Host
from elivepatch.client.load_errors import LOG_HINT, SIGNATURE_HINT, load_error
from elivepatch.client.transition import POLL, Transition, named
from elivepatch.errors import HostError, ModuleRejectedError, TransitionTimeoutError, UnfinishedError
from elivepatch.kernel.module_file import ModuleFile
from elivepatch.kernel.running import Livepatch, livepatch, livepatches, module_policy, taint

#: Seconds that the kernel may take, after a transition, to let go of a module that patches nothing any more.
_UNLOAD_WAIT = 15.0


@dataclass(frozen=True)
class Loaded:
    """A livepatch that is in place. Times in seconds; ``new_taint`` holds bits beyond a livepatch's own (O, E, K).

    ``forced`` says that its transition was ended by force.
    """

    name: str
    transition_seconds: float
    taint_before: int | None
    taint_after: int | None
    forced: bool = False

    @property
    def new_taint(self) -> int:
        """Taint bits that came with the load and that a livepatch does not explain."""
        expected = 1 << 12 | 1 << 13 | 1 << 15
        return (self.taint_after or 0) & ~(self.taint_before or 0) & ~expected


class ModuleStaysError(UnfinishedError):
    """The livepatch is disabled, and the kernel does not let go of its module."""


LoaderStep = Literal["loading", "forcing", "undoing", "undone", "reverting"]


def _no_word(message: str) -> None:
    del message


def _no_step(step: LoaderStep) -> None:
    del step


@dataclass(frozen=True)
class Loader:
    """Loads and reverts livepatches on one host.

    ``timeout`` is how long (seconds) a transition may take. ``tell`` gets a line for the person now and then.
    ``record`` is called with ``loading``, ``forcing``, ``undoing`` or ``reverting`` before that is done, so that the
    journal is ahead of the kernel, and with ``undone`` once the kernel is as it was.
    """

    host: Host
    timeout: float = 120.0
    tell: Callable[[str], None] = _no_word
    record: Callable[[LoaderStep], None] = _no_step

    def check_policy(self, module: ModuleFile) -> None:
        """Check that the kernel would let the module in. Raises HostError with what would be needed."""
        policy = module_policy(self.host.root)
        if policy.loading_disabled:
            raise HostError(
                "This kernel loads no more modules: kernel.modules_disabled is set.",
                hint="Only a reboot takes that back.",
            )
        if policy.signature_needed and not module.signed:
            why = "module.sig_enforce" if policy.signature_enforced else f"lockdown ({policy.lockdown})"
            raise HostError(
                f"This kernel takes only signed modules, because of {why}, and {module.name} is not signed.",
                hint=SIGNATURE_HINT,
            )

    def load(
        self,
        path: Path,
        sha256: str,
        module: ModuleFile,
        functions: frozenset[tuple[str, str]] | None,
        *,
        replaces: frozenset[str] = frozenset(),
        beside: bool = False,
        parameters: str = "",
        through_kpatch: bool = False,
        force: bool = False,
    ) -> Loaded:
        """Load the module file and wait until its transition has finished.

        ``functions`` are the (object, function) that it must replace (None where nobody said), ``replaces`` the
        livepatches that must have ended with the transition; their modules stay (`unload_replaced`). One that is
        loaded ``beside`` those in force must not be of the kind that replaces them. ``parameters`` go to the module.
        With ``force`` a transition that does not finish in time is ended by force. Whatever else goes wrong after the
        kernel took the module is undone, and as long as the transition had not finished, what it would have replaced
        stays in force. Raises HostError where the kernel refuses it, ModuleRejectedError where it is not what it should
        be, TransitionTimeoutError, naming the tasks, where the transition did not finish, UnfinishedError where it
        could not be undone.
        """
        name = module.name or ""
        self.check_policy(module)
        before = livepatches(self.host.root)
        moving = next((patch.name for patch in before if patch.transition), None)
        if moving:
            raise HostError(f"The livepatch {moving} is in transition.", hint="Wait until that has finished.")
        if livepatch(name, self.host.root) or (self.host.root / "sys/module" / name).exists():
            raise HostError(f"A module named {name} is already loaded.", hint=load_error(errno.EEXIST)[1])
        taint_before = taint(self.host.root)
        with _verified(path, sha256) as descriptor:
            self.record("loading")
            began = self.host.clock.now()
            taken = through_kpatch  # it may fail half way
            try:
                if through_kpatch:
                    self._kpatch_load(path)
                else:
                    self._insert(name, descriptor, parameters)
                taken = True
                # as early as can be: what it replaces can come back until the transition has finished. Until then the
                # functions of those that it does not patch itself are with it, to lead back to the original code
                led_back = frozenset((f.object, f.function) for patch in before for f in patch.functions)
                held = livepatch(name, self.host.root)
                if held:
                    self._check_functions(name, functions, besides=led_back)
                if held and held.replace and beside:
                    raise ModuleRejectedError(
                        f"{name} replaces all livepatches in force, and was to be loaded beside them.",
                        hint="It was undone. To let their effects end, load it with --drop-earlier.",
                    )
                forced = self._finish(name, force=force)
                seconds = self.host.clock.now() - began
                self._check_functions(name, functions)
                self.await_replaced(name, replaces)
            except BaseException as error:
                if taken or not isinstance(error, HostError):
                    self._undo(name, before, error)
                else:  # whatever bears its name now is not ours
                    self.record("undone")
                if isinstance(error, TransitionTimeoutError):
                    kept = " and ".join(patch.name for patch in before if patch.enabled)
                    undone = f"It was undone; {kept} stays in force." if kept else "It was undone."
                    raise TransitionTimeoutError(f"{error.message} {undone}", hint=error.hint) from error
                raise
        return Loaded(name, seconds, taint_before, taint(self.host.root), forced)

    def revert(self, name: str) -> float:
        """Disable a livepatch, wait, unload its module; gives the seconds that took.

        Raises HostError where there is no such livepatch or its module stays, TransitionTimeoutError where the
        transition back did not finish: a livepatch that was wholly in force is then in force again, one that was in
        transition is left on its way back.
        """
        patch = livepatch(name, self.host.root)
        if patch is None and not self.left_over(name):
            loaded = ", ".join(p.name for p in livepatches(self.host.root)) or "none"
            raise HostError(f"There is no livepatch {name} in this kernel.", hint=f"Loaded: {loaded}.")
        self.record("reverting")
        began = self.host.clock.now()
        transition = self._transition(name)
        try:
            if patch and patch.enabled:
                transition.switch(on=False)
            transition.require(enabled=False, timeout=self.timeout)
        except TransitionTimeoutError as error:
            if patch is None or patch.transition or not patch.enabled:
                raise TransitionTimeoutError(f"{error.message} It goes on by itself.", hint=error.hint) from error
            self.record("undoing")
            transition.switch(on=True)
            if not transition.settled(enabled=True, timeout=self.timeout):
                raise TransitionTimeoutError(
                    f"{error.message} Turning it round has not finished either.",
                    hint="Look at it with 'elivepatch status'; both are safe to wait for.",
                ) from error
            self.record("undone")
            raise TransitionTimeoutError(f"{error.message} It is in force again.", hint=error.hint) from error
        self._unload(name)
        return self.host.clock.now() - began

    def await_replaced(self, name: str, replaces: frozenset[str]) -> None:
        """Wait until the kernel has let go of what was replaced, which it does behind the end of the transition.

        klp_complete_transition() disables it before the transition counts as finished, so that one which is still
        enabled then was not replaced at all: that raises ModuleRejectedError.
        """
        deadline = self.host.clock.now() + _UNLOAD_WAIT
        try:
            while left := [patch for patch in livepatches(self.host.root) if patch.name in replaces]:
                enabled = [patch.name for patch in left if patch.enabled]
                if enabled and self.host.clock.now() >= deadline - _UNLOAD_WAIT + 1:
                    raise ModuleRejectedError(
                        f"{name} does not replace {' and '.join(enabled)}: both are in force.",
                        hint="It was undone. Livepatches of this project replace all earlier ones; ask the server's "
                        "administrator.",
                    )
                if self.host.clock.now() >= deadline:
                    self.tell(f"the kernel has not let go of {' and '.join(p.name for p in left)} yet, and will")
                    return
                self.host.clock.sleep(POLL)
        except KeyboardInterrupt:
            # the transition is over, and nothing that was replaced would come back
            self.tell(f"{name} is in force already; it stays")

    def left_over(self, name: str) -> bool:
        """Whether the module of a livepatch that is disabled is still there (its taint flags hold K)."""
        try:
            return "K" in (self.host.root / "sys/module" / name / "taint").read_text()
        except OSError:
            return False

    def unload_replaced(self, name: str) -> str | None:
        """Unload the module of a livepatch that was replaced; gives what there is to say where it stays."""
        try:
            self._unload(name)
        except HostError as error:
            return f"{error.message} {error.hint}"
        except KeyboardInterrupt:
            return f"{name} is replaced; its module stays, for it was interrupted while unloading: rmmod {name}"
        return None

    # -- steps

    def _finish(self, name: str, *, force: bool) -> bool:
        """Wait until the transition has finished; gives whether that took force. Raises TransitionTimeoutError."""
        transition = self._transition(name)
        try:
            transition.require(enabled=True, timeout=self.timeout)
        except TransitionTimeoutError as error:
            if not force:
                raise
            self.record("forcing")
            self.tell(f"{error.message} It is ended by force, as --force says.")
            transition.force()
            return True
        return False

    def _insert(self, name: str, descriptor: int, parameters: str) -> None:
        try:
            self.host.calls.load(descriptor, parameters)
        except OSError as error:
            number = error.errno or 0
            message, hint = load_error(number, self.host.root)
            raise HostError(
                f"The kernel refused {name}: {message} ({errno.errorcode.get(number, number)}).", hint=hint
            ) from error

    def _kpatch_load(self, path: Path) -> None:
        program = process.find_program("kpatch", hint="Install kpatch, or leave --kpatch out: it is not needed.")
        try:
            process.run([program, "load", path], timeout=self.timeout + 120, sink=self.tell)
        except process.ProgramError as error:
            raise HostError(f"kpatch did not load the module:\n{error.message}", hint=LOG_HINT) from error

    def _transition(self, name: str) -> Transition:
        return Transition(name, self.host, self.tell)

    def _check_functions(
        self,
        name: str,
        functions: frozenset[tuple[str, str]] | None,
        *,
        besides: frozenset[tuple[str, str]] = frozenset(),
    ) -> None:
        if functions is None:
            return
        patch = livepatch(name, self.host.root)
        shown = frozenset((f.object, f.function) for f in patch.functions) if patch else frozenset[tuple[str, str]]()
        if functions - shown or shown - functions - besides:
            missing, more = _listed(functions - shown), _listed(shown - functions - besides)
            raise ModuleRejectedError(
                f"{name} does not patch what the server said (missing: {missing}; besides: {more}).",
                hint="It was undone. Do not load it by other means; ask the server's administrator.",
            )

    def _undo(self, name: str, before: tuple[Livepatch, ...], error: BaseException) -> None:
        """Bring the kernel back to where it was; what cannot be undone is added to the error's own message."""
        there = livepatch(name, self.host.root) is not None or (self.host.root / "sys/module" / name).exists()
        if there:
            with contextlib.suppress(KeyboardInterrupt):  # who is impatient before it has begun means just this
                self.record("undoing")
        try:
            if there:
                self._take_out(name)
            after = livepatches(self.host.root)
            if [(p.name, p.enabled) for p in after] != [(p.name, p.enabled) for p in before]:
                raise HostError(
                    f"Before the load there were {_states(before)}, now there are {_states(after)}.", hint=LOG_HINT
                )
        except (HostError, KeyboardInterrupt) as left:
            began = str(error) or f"The load of {name} was interrupted."
            why = left.message if isinstance(left, HostError) else "it was interrupted while it was undone."
            raise UnfinishedError(
                f"{began} Undoing it did not succeed: {why}",
                hint="Look with 'elivepatch status', and once nothing moves any more use 'elivepatch repair', which "
                "undoes it. A livepatch that was replaced does not come back: ask for its patches again.",
            ) from error
        self.record("undone")

    def _take_out(self, name: str) -> None:
        """Disable and unload what was loaded just now. Raises HostError."""
        transition = self._transition(name)
        self.tell(f"undoing the load of {name}")
        patch = livepatch(name, self.host.root)
        if patch and patch.enabled:
            transition.switch(on=False)
        # not less than a transition without hindrance takes, however short the one there was to be
        if not transition.settled(enabled=False, timeout=max(self.timeout, _UNLOAD_WAIT)):
            raise HostError(
                f"The transition back has not finished. Held by: {named(transition.holders(patching=False))}.",
                hint="It goes on by itself.",
            )
        self._unload(name)

    def _unload(self, name: str) -> None:
        clock = self.host.clock
        deadline = clock.now() + _UNLOAD_WAIT
        while True:
            try:
                self.host.calls.unload(name)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return
                if error.errno not in {errno.EAGAIN, errno.EBUSY} or clock.now() >= deadline:
                    raise ModuleStaysError(
                        f"{name} is disabled, but its module stays: {error.strerror}.",
                        hint=f"It patches nothing any more. Try again later: rmmod {name}",
                    ) from error
                clock.sleep(POLL)
            else:
                return


@contextlib.contextmanager
def _verified(path: Path, sha256: str) -> Generator[int]:
    """A descriptor of the module file whose content is what was checked; the kernel reads from the same one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(
            f"{path} cannot be read: {error.strerror}.", hint="Something changed it: ask for the module again."
        ) from error
    try:
        digest = hashlib.sha256()
        while chunk := os.read(descriptor, 1 << 20):
            digest.update(chunk)
        if digest.hexdigest() != sha256:
            raise ModuleRejectedError(
                f"{path} is not the module that was checked.", hint="Somebody changed it. Ask for the module again."
            )
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _listed(functions: frozenset[tuple[str, str]]) -> str:
    return ", ".join(f"{klp_object}:{function}" for klp_object, function in sorted(functions)) or "none"


def _states(patches: tuple[Livepatch, ...]) -> str:
    return ", ".join(f"{p.name} ({'enabled' if p.enabled else 'disabled'})" for p in patches) or "no livepatches"
