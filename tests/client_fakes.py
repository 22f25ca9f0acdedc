# SPDX-License-Identifier: GPL-2.0-or-later
"""A host made of files, with a kernel that behaves as a real one does towards livepatches."""

from __future__ import annotations

import errno
import os
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path

from elf_builder import ALLOC, EXEC, FILE, NOTE, Part, Sym, elf, note
from elivepatch.client.host import Host
from elivepatch.kernel.module_file import read_module

RELEASE = "6.12.117+deb13-cloud-amd64"
BUILD_ID = bytes(range(20)).hex()
BOOT_ID = "11111111-2222-3333-4444-555555555555"
VERSION = (
    f"Linux version {RELEASE} (debian-kernel@lists.debian.org) (x86_64-linux-gnu-gcc-14 (Debian 14.2.0-19) 14.2.0, "
    "GNU ld (GNU Binutils for Debian) 2.44) #1 SMP PREEMPT_DYNAMIC Debian 6.12.117-1 (2026-10-01)"
)
CONFIG = b"#\n# Linux/x86 6.12.117 Kernel Configuration\n#\nCONFIG_LIVEPATCH=y\n# CONFIG_FOO is not set\n"
NAME = "livepatch_meminfo"
FUNCTIONS = (("vmlinux", "meminfo_proc_show"), ("af_packet", "packet_seq_show"))


def put(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def host_tree(root: Path) -> Path:
    """The files of a host that runs Debian 13's cloud kernel."""
    notes = struct.pack("<III", 4, 20, 3) + b"GNU\0" + bytes.fromhex(BUILD_ID)
    (root / "sys/kernel/livepatch").mkdir(parents=True)
    return put(
        root,
        {
            "proc/sys/kernel/osrelease": RELEASE + "\n",
            "proc/version": VERSION + "\n",
            "proc/sys/kernel/arch": "x86_64\n",
            "proc/sys/kernel/tainted": "0\n",
            "proc/sys/kernel/random/boot_id": BOOT_ID + "\n",
            "sys/kernel/notes": notes,
            "sys/module/module/parameters/sig_enforce": "N\n",
            "etc/os-release": 'ID=debian\nVERSION_ID="13"\n',
            f"boot/config-{RELEASE}": CONFIG,
        },
    )


def built_kernel(root: Path, build_id: str = BUILD_ID, place: str = "usr/src/linux") -> Path:
    """The build directory of the running kernel, or of one with another build ID."""
    parts = [
        Part(".text", b"\x90" * 4096, ALLOC | EXEC, address=0xFFFFFFFF81000000),
        Part(".notes", note(b"GNU\0", 3, bytes.fromhex(build_id)), ALLOC, NOTE, address=0xFFFFFFFF81001000),
    ]
    symbols = [Sym("main.c", FILE, section=0xFFF1), Sym("start_kernel", value=0xFFFFFFFF81000000, size=16)]
    data = elf(parts, symbols)
    vmlinux = data[:16] + struct.pack("<H", 2) + data[18:]  # e_type is ET_EXEC
    put(root, {f"{place}/vmlinux": vmlinux, f"{place}/.config": CONFIG, f"{place}/init/main.c": ""})
    return root / place


def elf_module(
    fields: dict[str, str] | None = None, *, wide: bool = True, order: str = "<", machine: int = 62, kind: int = 1
) -> bytes:
    """The bytes of a module file with nothing in it but modinfo."""
    fields = fields or {"name": NAME, "livepatch": "Y", "vermagic": f"{RELEASE} SMP preempt mod_unload modversions "}
    info = b"".join(f"{key}={value}".encode() + b"\0" for key, value in fields.items())
    names = b"\0.modinfo\0.shstrtab\0"
    start = 64 if wide else 52
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    header = struct.pack(
        order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"),
        *(kind, machine, 1, 0, 0, start + len(info) + len(names), 0, start, 0, 0, 64 if wide else 40, 3, 2),
    )

    def section(name: int, type_: int, offset: int, size: int) -> bytes:
        return struct.pack(
            order + ("IIQQQQIIQQ" if wide else "IIIIIIIIII"), name, type_, 0, 0, offset, size, 0, 0, 1, 0
        )

    rows = section(0, 0, 0, 0) + section(1, 1, start, len(info)) + section(10, 3, start + len(info), len(names))
    return ident + header + info + names + rows


@dataclass
class FakeKernel:
    """A kernel whose time passes when the client sleeps.

    A transition takes ``seconds``; with ``stuck`` the one to the patched state never ends, with ``stuck_back`` the one
    back neither. ``refuse`` is an errno for every load. ``busy`` is how often an unload is answered with EAGAIN.
    With ``replace`` a livepatch ends all others when its transition does, and the kernel lets go of them ``lingers``
    later; until then the functions of theirs that it does not have are with it too (klp_add_nops).
    """

    root: Path
    seconds: float = 1.0
    stuck: bool = False
    stuck_back: bool = False
    refuse: int | None = None
    busy: int = 1
    replace: bool = True
    lingers: float = 0.3
    functions: tuple[tuple[str, str], ...] = FUNCTIONS
    taint: int = 1 << 12 | 1 << 13 | 1 << 15
    comm: bytes = b"cat\n"
    interrupt_at: float | None = None
    time: float = 1000.0
    log: list[str] = field(default_factory=list[str])
    targets: dict[str, bool] = field(default_factory=dict[str, bool])
    ends: dict[str, float] = field(default_factory=dict[str, float])
    leaves: dict[str, float] = field(default_factory=dict[str, float])
    own: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict[str, tuple[tuple[str, str], ...]])

    # -- the system calls

    def load(self, descriptor: int, parameters: str = "") -> None:
        data = b""
        while chunk := os.read(descriptor, 65536):
            data += chunk
        name = read_module(data).name or ""
        self.log.append(f"load {name} {parameters}".rstrip())
        if self.refuse is not None:
            raise OSError(self.refuse, os.strerror(self.refuse))
        if name in self.targets or (self.root / "sys/module" / name).exists():
            raise OSError(errno.EEXIST, "exists")
        self.add(name)

    def unload(self, name: str) -> None:
        self.log.append(f"unload {name}")
        if not (self.root / "sys/module" / name).exists():
            raise OSError(errno.ENOENT, "no module")
        if name in self.targets:
            raise OSError(errno.EBUSY, "in use")
        if self.busy:
            self.busy -= 1
            raise OSError(errno.EAGAIN, "again")
        shutil.rmtree(self.root / "sys/module" / name)

    def switch(self, path: Path, *, on: bool) -> None:
        name = path.parent.name
        if path.name != "enabled":
            self.log.append(f"{path.name} {name}")
            if path.name == "force":
                self._tasks("-1")
                self._finish(name)
            return
        self.log.append(f"{'enable' if on else 'disable'} {name}")
        if name not in self.targets:
            raise FileNotFoundError(errno.ENOENT, "no livepatch")
        if self.targets[name] == on:
            raise OSError(errno.EINVAL, "already in that state")
        others = [p for p in self.targets if p != name and self.moving(p)]
        if others:
            raise OSError(errno.EBUSY, "another transition")
        self.targets[name] = on
        self.ends[name] = self.time + self.seconds
        path.write_text("1\n" if on else "0\n")
        (path.parent / "transition").write_text("1\n")
        self._tasks("0" if on else "1")

    def moving(self, name: str) -> bool:
        return (self.root / "sys/kernel/livepatch" / name / "transition").read_text().strip() == "1"

    # -- the clock

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        self._tick()
        if self.interrupt_at is not None and self.time >= self.interrupt_at:
            self.interrupt_at = None
            raise KeyboardInterrupt

    # -- within

    def add(self, name: str, *, moved: bool = False) -> None:
        """Put a livepatch in, in transition or already through it."""
        place = f"sys/kernel/livepatch/{name}"
        put(
            self.root,
            {
                f"{place}/enabled": "1\n",
                f"{place}/transition": "0\n" if moved else "1\n",
                f"sys/module/{name}/taint": "OEK\n",
                "proc/sys/kernel/tainted": f"{int((self.root / 'proc/sys/kernel/tainted').read_text()) | self.taint}\n",
            },
        )
        self.own[name] = self.functions
        others = [name for name in self.targets if self.replace and not moved]
        for klp_object, function in (*self.functions, *(f for other in others for f in self.own[other])):
            (self.root / place / klp_object / f"{function},1").mkdir(parents=True, exist_ok=True)
            put(self.root, {f"{place}/{klp_object}/patched": "1\n"})
        self.targets[name] = True
        self.ends[name] = self.time + self.seconds
        if not moved:
            self._tasks("0")

    def vanish(self, name: str) -> None:
        """Take a livepatch out at once, as a reboot or another client does."""
        if self.targets.pop(name, None) is not None:
            shutil.rmtree(self.root / "sys/kernel/livepatch" / name)
            shutil.rmtree(self.root / "sys/module" / name)

    def _tasks(self, state: str) -> None:
        for pid, comm in ((41, b"kworker/0:1\n"), (1234, self.comm)):
            put(
                self.root,
                {
                    f"proc/{pid}/task/{pid}/patch_state": state + "\n",
                    f"proc/{pid}/task/{pid}/comm": comm,
                    f"proc/{pid}/task/{pid}/stack": "[<0>] meminfo_proc_show+0x12/0x34\n[<0>] seq_read+0x1/0x2\n",
                },
            )

    def _tick(self) -> None:
        for name, target in list(self.targets.items()):
            place = self.root / "sys/kernel/livepatch" / name
            if not self.moving(name) or self.time < self.ends[name] or (self.stuck if target else self.stuck_back):
                continue
            self._tasks("-1")
            if target:
                self._finish(name)
            else:
                del self.targets[name]
                shutil.rmtree(place)
        for name, when in list(self.leaves.items()):
            if self.time >= when:
                del self.targets[name], self.leaves[name]
                shutil.rmtree(self.root / "sys/kernel/livepatch" / name)

    def _finish(self, name: str) -> None:
        place = self.root / "sys/kernel/livepatch" / name
        if self.replace:
            for path in list(place.glob("*/*,1")):
                if (path.parent.name, path.name[:-2]) not in self.own[name]:
                    path.rmdir()
            for other in self.targets:
                if other != name:
                    (self.root / "sys/kernel/livepatch" / other / "enabled").write_text("0\n")
                    self.leaves[other] = self.time + self.lingers
        (place / "transition").write_text("0\n")


def fake_host(tmp_path: Path, kernel: FakeKernel | None = None, *, user: int | None = None) -> tuple[Host, FakeKernel]:
    root = tmp_path / "root"
    if not root.exists():
        host_tree(root)
    kernel = kernel or FakeKernel(root)
    return Host(root=root, calls=kernel, clock=kernel, user=os.geteuid() if user is None else user), kernel
