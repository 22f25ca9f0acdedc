# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests: a kernel and an initramfs, started in QEMU and given up after a time limit.

The first serial port of a guest is the kernel's console and goes to a file. The second one belongs to what runs in
the guest: its output is handed on line by line. What a guest runs is not trusted, so QEMU gets no default devices, no
user configuration, and a system call filter.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from elivepatch import process
from elivepatch.errors import InternalError

Accelerator = Literal["kvm", "tcg"]

QEMU = "qemu-system-x86_64"
_QEMU_HINT = "Install QEMU for x86-64 (Debian: qemu-system-x86)."
#: Bytes that a guest may write on its console before it is ended: far more than any kernel log that is still read.
CONSOLE_LIMIT = 32 * 1024 * 1024
#: Seconds the probe may take; it needs a few hundredths.
_PROBE_TIMEOUT = 10.0
#: Seconds in which a kernel must come up with KVM; it needs two.
_PROBE_BOOT_TIMEOUT = 20.0
_DEBUG_EXIT_PORT = 0xF4
_PROBE_VALUE = 0x2A
#: Changes with each start of the machine (random(4)).
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


#: The address under which a guest with a network reaches the server.
GUEST_SERVER = "10.0.2.100"


@dataclass(frozen=True)
class GuestKernel:
    """A kernel to boot: its release, its bzImage, and its module directory (as ``/usr/lib/modules/RELEASE``)."""

    release: str
    vmlinuz: Path
    modules: Path


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a guest is made of.

    ``initrd`` is one file; several cpio archives can lie in it one after the other. ``disks`` are raw images, whose
    changes are thrown away. ``server_port`` is the one port of this machine's loopback that the guest reaches, as
    `GUEST_SERVER` and the same port; without it the guest has no network. ``relay`` is the command (a shell-like
    line) that connects its standard input and output with that port.
    """

    vmlinuz: Path
    initrd: Path
    console: Path
    command_line: Sequence[str] = ()
    memory_mib: int = 512
    cores: int = 2
    disks: Sequence[Path] = ()
    server_port: int | None = None
    relay: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a guest ended: what it wrote on its second serial port, and whether it had to be given up."""

    output: str
    timed_out: bool
    seconds: float
    accelerator: Accelerator
    complaint: str


def _probe_firmware() -> bytes:
    """A firmware of 64 KiB whose only instructions make QEMU exit with a status of our choice.

    The CPU starts 16 bytes below the end of the firmware (Intel SDM, volume 3, "First Instruction Executed").
    """
    instructions = bytes((0xB0, _PROBE_VALUE, 0xE6, _DEBUG_EXIT_PORT, 0xF4))  # mov al; out port, al; hlt
    return bytes(0x10000 - 16) + instructions.ljust(16, b"\xf4")


def executes(accelerator: Accelerator) -> bool:
    """Whether a virtual CPU of this accelerator executes anything: a VM is started, and must say so itself."""
    with tempfile.TemporaryDirectory(prefix="elivepatch-probe-") as name:
        firmware = Path(name) / "firmware"
        firmware.write_bytes(_probe_firmware())
        argv = [QEMU, *_base(accelerator), "-m", "16", "-bios", firmware, "-display", "none", "-monitor", "none"]
        argv += ["-serial", "none", "-device", f"isa-debug-exit,iobase={_DEBUG_EXIT_PORT:#x},iosize=1"]
        try:
            done = process.run(argv, timeout=_PROBE_TIMEOUT, check=False)
        except process.ProgramError:
            return False
    return done.returncode == (_PROBE_VALUE << 1 | 1)  # what QEMU's isa-debug-exit makes of the value


def boots(accelerator: Accelerator, vmlinuz: Path, *, timeout: float = _PROBE_BOOT_TIMEOUT) -> bool:
    """Whether a kernel comes up with this accelerator, all the way to where it misses its root file system."""
    with tempfile.TemporaryDirectory(prefix="elivepatch-probe-") as name:
        console = Path(name) / "console"
        initrd = Path(name) / "initrd"
        initrd.touch()
        machine = Machine(vmlinuz=vmlinuz, initrd=initrd, console=console, command_line=("quiet",), memory_mib=256)
        try:
            _start(machine, accelerator, timeout=timeout, sink=None)
        except (_AcceleratorBrokenError, process.ProgramError):
            return False
        return console.exists() and b"not syncing: VFS" in console.read_bytes()


_kvm_works: bool | None = None


def accelerator(vmlinuz: Path, shared: Path | None = None) -> Accelerator:
    """KVM where a VM really runs with it, software emulation otherwise; found out once per process.

    The device node of KVM can be there and open, and virtual CPUs can even start, where a kernel does not come up
    (KVM inside a VM that emulates it in part): so a kernel is booted, up to its first panic. ``shared`` is a directory
    in which the answer is kept for other processes until this machine restarts.
    """
    global _kvm_works  # the answer cannot change while we run, except when KVM gives up in `run`
    if _kvm_works is None:
        process.find_program(QEMU, hint=_QEMU_HINT)
        _kvm_works = os.access("/dev/kvm", os.R_OK | os.W_OK) and _try_kvm(vmlinuz, shared)
    return "kvm" if _kvm_works else "tcg"


def _try_kvm(vmlinuz: Path, shared: Path | None) -> bool:
    note = shared / f"kvm-{_BOOT_ID.read_text(encoding='ascii').strip()}" if shared else None
    if note and note.exists():
        return note.read_text(encoding="ascii") == "works"
    began = time.monotonic()
    works = executes("kvm") and boots("kvm", vmlinuz)
    certain = works or time.monotonic() - began < _PROBE_BOOT_TIMEOUT  # a timeout may be the load of the moment
    if note and certain:
        _remember(note, works)
    return works


def _remember(note: Path, works: bool) -> None:
    note.parent.mkdir(parents=True, exist_ok=True)
    for old in note.parent.glob("kvm-*"):
        old.unlink(missing_ok=True)
    note.write_text("works" if works else "does not work", encoding="ascii")


def _base(accelerator: Accelerator) -> list[str]:
    # Emulated CPUs take turns in one thread: in threads of their own, one can run into the int3 of a jump label that
    # another is just patching ("Oops: int3" in code that is sound), and a livepatch patches a lot of code.
    emulated = ["-accel", "tcg,thread=single", "-cpu", "max"]
    how = ["-accel", "kvm", "-cpu", "host"] if accelerator == "kvm" else emulated
    return ["-nodefaults", "-no-user-config", "-no-reboot", "-machine", "pc", *how]


def _quoted(value: Path | str) -> str:
    """A value inside a QEMU option, where a comma ends it unless doubled."""
    return str(value).replace(",", ",,")


def arguments(machine: Machine, accelerator: Accelerator) -> list[str | Path]:
    """The command that starts the guest. The guest's second serial port is the command's standard output."""
    line = ("console=ttyS0", "panic=-1", *machine.command_line)
    argv: list[str | Path] = [QEMU, *_base(accelerator)]
    if machine.relay is None:
        argv += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    else:
        # QEMU starts the relay in a session of its own, and its filter takes setsid for one of the calls that
        # elevate privileges (softmmu/qemu-seccomp.c); so it is the kernel that keeps them from rising
        argv = ["setpriv", "--no-new-privs", "--", *argv]
        argv += ["-sandbox", "on,obsolete=deny,elevateprivileges=allow,spawn=allow,resourcecontrol=deny"]
    argv += ["-m", str(machine.memory_mib), "-smp", str(min(max(machine.cores, 1), 2))]
    argv += ["-display", "none", "-monitor", "none"]
    argv += ["-serial", f"file:{machine.console}"]
    argv += ["-chardev", "stdio,id=guest,signal=off", "-serial", "chardev:guest"]
    argv += ["-kernel", machine.vmlinuz, "-initrd", machine.initrd, "-append", " ".join(line)]
    for number, disk in enumerate(machine.disks):
        argv += ["-drive", f"file={_quoted(disk)},format=raw,if=none,id=disk{number},snapshot=on"]
        argv += ["-device", f"virtio-blk-pci,drive=disk{number}"]
    if machine.server_port is not None and machine.relay is not None:
        forward = f"tcp:{GUEST_SERVER}:{machine.server_port}-cmd:{_quoted(machine.relay)}"
        argv += ["-netdev", f"user,id=net,restrict=on,guestfwd={forward}"]
        argv += ["-device", "virtio-net-pci,netdev=net,romfile="]
    return argv


class _ConsoleFloodedError(Exception):
    """The guest does nothing but write; it is given up like one that takes too long."""


class _AcceleratorBrokenError(Exception):
    """KVM itself gave up on the guest. QEMU would leave it standing still until its time limit."""


def _start(
    machine: Machine, accelerator: Accelerator, *, timeout: float, sink: process.LineSink | None
) -> process.Completed:
    broken = False

    def take(line: str) -> None:
        nonlocal broken
        broken = broken or (accelerator == "kvm" and line.startswith("KVM internal error"))
        if sink:
            sink(line)

    def guard() -> None:
        if broken:
            raise _AcceleratorBrokenError
        with contextlib.suppress(FileNotFoundError):
            if machine.console.stat().st_size > CONSOLE_LIMIT:
                raise _ConsoleFloodedError

    argv = arguments(machine, accelerator)
    return process.run(argv, timeout=timeout, check=False, sink=take, guard=guard)


def run(
    machine: Machine, *, timeout: float, sink: process.LineSink | None = None, shared: Path | None = None
) -> Outcome:
    """Run a guest until it powers off, restarts or panics, at most ``timeout`` wall seconds.

    ``sink`` gets each line of the second serial port as it comes; for ``shared`` see `accelerator`. Raises
    ToolUnavailableError where QEMU is not installed, and InternalError where it does not start the guest at all.
    """
    global _kvm_works  # see `accelerator`
    if "," in str(machine.console):
        raise InternalError(f"QEMU cannot write to a file with a comma in its name: {machine.console}")
    chosen = accelerator(machine.vmlinuz, shared)
    machine.console.unlink(missing_ok=True)
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line)
        if sink:
            sink(line)

    try:
        done = _start(machine, chosen, timeout=timeout, sink=take)
    except _AcceleratorBrokenError:
        _kvm_works = False
        return run(machine, timeout=timeout, sink=sink, shared=shared)
    except process.ProgramError as error:
        ended = error.completed
        return Outcome(ended.stdout, True, ended.seconds, chosen, ended.stderr)
    except _ConsoleFloodedError:
        return Outcome("\n".join(lines), True, timeout, chosen, "The guest did nothing but write on its console.")
    if done.returncode != 0 and not (machine.console.exists() and machine.console.stat().st_size):
        raise InternalError(f"QEMU did not start the guest: {done.stderr.strip() or done.returncode}")
    return Outcome(done.stdout, False, done.seconds, chosen, done.stderr)


def require_qemu() -> None:
    """Raise ToolUnavailableError, with what to install, where guests cannot be run at all."""
    process.find_program(QEMU, hint=f"{_QEMU_HINT} Or build without the boot test (--no-verify).")
