# SPDX-License-Identifier: GPL-2.0-or-later
"""The boot test: a livepatch is loaded, looked at, reverted and unloaded on its kernel, in a guest."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from elivepatch import process
from elivepatch.errors import BootTestFailedError, InternalError
from elivepatch.progress import Progress
from elivepatch.protocol.models import Verification
from elivepatch.vm import boot_script, initramfs, machine
from elivepatch.vm.machine import GuestKernel
from elivepatch.vm.modules import LoadableModule, ModuleDirectory
from elivepatch.vm.stub import without_init
from elivepatch.vm.verdict import Ended, Expectation, Verdict, judge, parse_marks

__all__ = ["BootTestRejectedError", "GuestKernel", "Subject", "boot_test"]

#: The guest's kernel log, in the directory of the boot test.
LOG = "boot-test.log"
#: What the guest's /init told, and the output of the check script.
STEPS_LOG = "boot-test.steps"
TRANSITION_LIMIT = 30
_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")
#: Wall seconds for a guest, and those more for each module: without KVM a large one takes ten to load, and loads twice.
_TIMEOUT = 120.0
_TIMEOUT_PER_MODULE = 10.0
#: Megabytes that a guest has beside what its initramfs takes.
_MEMORY_MIB = 512


class BootTestRejectedError(BootTestFailedError):
    """The livepatch failed its boot test."""

    def __init__(self, verdict: Verdict) -> None:
        self.verification = verdict.verification
        first = verdict.diagnosis[0]
        super().__init__(
            f"The livepatch failed its boot test: {first.message}", hint=first.hint, diagnosis=verdict.diagnosis
        )


@dataclass(frozen=True)
class Subject:
    """A livepatch to try.

    ``name`` is its name below /sys/kernel/livepatch, ``objects`` the klp objects it patches (``vmlinux`` or module
    names with ``_``), ``functions`` the entries it must have (``OBJECT/FUNCTION`` or ``OBJECT/FUNCTION,SYMPOS``).
    ``only_callbacks`` says that it replaces no function. ``check`` is a script that must fail before the load, succeed
    after it and fail again after the revert.
    """

    module: Path
    name: str
    objects: tuple[str, ...]
    check: bytes | None = field(default=None, repr=False)
    functions: tuple[str, ...] = ()
    only_callbacks: bool = False


def boot_test(
    kernel: GuestKernel,
    subject: Subject,
    workdir: Path,
    progress: Progress,
    *,
    busybox: Path,
    timeout: float | None = None,
    transition_limit: int = TRANSITION_LIMIT,
    shared: Path | None = None,
) -> Verification:
    """Try a livepatch in a guest on its kernel; what the guest wrote stays in ``workdir``, an existing directory.

    ``busybox`` is a static busybox. ``timeout`` is wall seconds for the whole guest (without it two minutes, and some
    for each module and function), ``transition_limit`` seconds of the guest for one transition. ``shared`` is a
    directory where what all boot tests have in common is kept: part of the initramfs, and whether KVM works. Raises
    BootTestRejectedError, which carries all findings and the verification, where the livepatch fails;
    ToolUnavailableError without QEMU; NotFoundError for a klp object that the kernel has no module for.
    """
    if not _NAME.fullmatch(subject.name):
        raise InternalError(f"not a name of a livepatch: {subject.name!r}")
    machine.require_qemu()
    directory = ModuleDirectory(kernel.modules)
    modules: list[LoadableModule] = directory.load_order(name for name in subject.objects if name != "vmlinux")
    limit = _TIMEOUT + _TIMEOUT_PER_MODULE * len(modules) + 2 * len(subject.functions) if timeout is None else timeout
    trying = _Trying(kernel, subject, workdir, progress, busybox, limit, transition_limit, shared)
    progress.step(f"boot test on {kernel.release}")
    verdict = trying.run(modules, frozenset())
    stubs: frozenset[str] = frozenset()
    while lacking := set(verdict.deviceless) - stubs:
        added = directory.with_dependents(stubs | lacking, [module.name for module in modules]) - stubs
        stubs |= added
        modules = [replace(one, elf=without_init(one.elf)) if one.name in added else one for one in modules]
        progress.step(f"boot test: no device for {', '.join(sorted(lacking))}; once more without its init")
        verdict = trying.run(modules, stubs)
    if not verdict.passed:
        raise BootTestRejectedError(verdict)
    progress.step(f"boot test passed ({verdict.verification.accelerator})")
    return verdict.verification


@dataclass(frozen=True)
class _Trying:
    """One boot test, which may take several guests."""

    kernel: GuestKernel
    subject: Subject
    workdir: Path
    progress: Progress
    busybox: Path
    timeout: float
    transition_limit: int
    shared: Path | None

    def run(self, modules: Sequence[LoadableModule], stubs: frozenset[str]) -> Verdict:
        """Try it once; ``stubs`` are the names of the modules that do nothing."""
        nonce = secrets.token_hex(16)
        subject = self.subject
        revert_limit = round(boot_script.REVERT_LIMIT + boot_script.REVERT_LIMIT_PER_FUNCTION * len(subject.functions))
        settings = boot_script.settings(
            nonce=nonce, name=subject.name, transition_limit=self.transition_limit, revert_limit=revert_limit
        )
        initrd = initramfs.write(
            self.workdir / "boot-test.initrd",
            _shared_part(self.busybox, self.shared),
            _own_part(subject, settings, modules).archive(),
        )
        guest = machine.Machine(
            vmlinuz=self.kernel.vmlinuz,
            initrd=initrd,
            console=self.workdir / LOG,
            # no rate limit: each step is in the log; an oops ends the guest, its log says why
            command_line=("quiet", "printk.devkmsg=on", "oops=panic"),
            memory_mib=_MEMORY_MIB + 2 * initrd.stat().st_size // 2**20,
        )
        expected = Expectation(
            release=self.kernel.release,
            name=subject.name,
            objects=subject.objects,
            functions=subject.functions,
            only_callbacks=subject.only_callbacks,
            checked=subject.check is not None,
            check_crlf=b"\r\n" in (subject.check or b""),
            transition_limit=self.transition_limit,
            revert_limit=revert_limit,
            not_run=tuple(name for name in subject.objects if name in stubs),
        )
        verdict = _attempt(guest, expected, nonce, self.timeout, self.progress, self.shared)
        if verdict.starved:
            # a stall that is the livepatch's comes again, one of a machine under load does not
            self.progress.step("boot test: the guest's kernel stalled; once more")
            verdict = _attempt(guest, expected, nonce, self.timeout, self.progress, self.shared)
        initrd.unlink()
        return verdict


def _attempt(
    guest: machine.Machine,
    expected: Expectation,
    nonce: str,
    timeout: float,
    progress: Progress,
    shared: Path | None,
) -> Verdict:
    outcome = machine.run(guest, timeout=timeout, sink=_teller(progress, nonce), shared=shared)
    steps = guest.console.with_name(STEPS_LOG)
    steps.write_text(outcome.output.replace("\r", ""), encoding="utf-8")
    ended = Ended(
        console=_read(guest.console) + outcome.complaint,
        control=outcome.output,
        nonce=nonce,
        timed_out=outcome.timed_out,
        limit=timeout,
        accelerator=outcome.accelerator,
    )
    return judge(expected, ended)


def _read(console: Path) -> str:
    return console.read_text(encoding="utf-8", errors="replace") if console.exists() else ""


def _shared_part(busybox: Path, shared: Path | None) -> bytes:
    """What all boot tests have in common, kept under a name that says what it was made of."""
    if shared is None:
        return _make_shared_part(busybox)
    digest = hashlib.sha256(busybox.read_bytes() + boot_script.INIT.encode()).hexdigest()
    kept = shared / f"boot-test-{digest}.cpio"
    if not kept.exists():
        shared.mkdir(parents=True, exist_ok=True)
        aside = shared / f".{kept.name}.{os.getpid()}"
        aside.write_bytes(_make_shared_part(busybox))
        aside.replace(kept)
    return kept.read_bytes()


def _make_shared_part(busybox: Path) -> bytes:
    tree = initramfs.base(busybox)
    tree.file("/init", boot_script.INIT.encode(), 0o755)
    return tree.archive()


def _own_part(subject: Subject, settings: str, modules: Sequence[LoadableModule]) -> initramfs.Tree:
    tree = initramfs.Tree()
    tree.file("/settings", settings.encode(), 0o600)
    tree.file("/livepatch.ko", subject.module.read_bytes())
    names = [module.name for module in modules]
    tree.file("/modules/order", "".join(f"{name}\n" for name in names).encode())
    tree.file("/modules/reverse", "".join(f"{name}\n" for name in reversed(names)).encode())
    for module in modules:
        tree.file(f"/modules/{module.name}.ko", module.elf)
    if subject.check is not None:
        tree.file("/check", subject.check, 0o755)
    return tree


_TOLD = {
    ("load", "first", "0"): "livepatch loaded",
    ("transition", "first"): "transition ended",
    ("check", "after"): "checked with the livepatch",
    ("revert", "first", "0"): "livepatch reverted",
    ("unload", "first", "0"): "module unloaded",
    ("module-late",): "kernel module loaded after the livepatch",
    ("boot",): "guest booted",
}


def _teller(progress: Progress, nonce: str) -> process.LineSink:
    def tell(line: str) -> None:
        for words in parse_marks(line, nonce).lines:
            for beginning, message in _TOLD.items():
                if words[: len(beginning)] == beginning:
                    progress.step(f"boot test: {message}")

    return tell
