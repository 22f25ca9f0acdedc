# SPDX-License-Identifier: GPL-2.0-or-later
"""A host that can be restarted, and cut off from its power: what the client keeps lies on a disk that stays.

The root file system is that of the demonstration, and new with each start; the client's directory is an ext4 file
system of its own on a second disk. A guest is ended like a machine whose power goes: QEMU is killed, so that what the
guest had not brought to the disk is lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import demo_host

from elivepatch import process
from elivepatch.build.prepared import PreparedKernel
from elivepatch.kernel.release import Release
from elivepatch.progress import Progress
from elivepatch.vm import initramfs, machine
from elivepatch.vm.machine import GuestKernel
from elivepatch.vm.modules import ModuleDirectory
from elivepatch.workshop import Workshop

_MEMORY_MIB = 640
_STATE = "/var/lib/elivepatch-client"

_INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
stty -F /dev/ttyS1 raw
exec </dev/null >/dev/ttyS1 2>&1
while read -r module; do insmod "/modules/$module.ko"; done </modules/order
mkdir -p /root
mount -t ext4 /dev/vda /root || poweroff -f
mount -t tmpfs -o mode=755 tmpfs /root/run
mount -t tmpfs -o mode=1777 tmpfs /root/tmp
mkdir -p /root/run/guest /root/var/lib/elivepatch-client
cp -r /bin/busybox /files /payload /second /root/run/guest
mount -t ext4 -o "$(cat /options)" /dev/vdb /root/var/lib/elivepatch-client || echo "no state disk"
sh /prepare
for directory in proc sys dev; do mount --move "/$directory" "/root/$directory"; done
exec switch_root /root $(cat /start)
"""
#: What is the first process of the host, where it is no init system.
_NO_INIT = "/run/guest/busybox sh /run/guest/second"

_SECOND = r"""
exec </dev/null >/dev/ttyS1 2>&1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
cd /run/guest/files
/bin/sh /run/guest/payload
status=$?
echo
echo "@NONCE status $status"
"""
_OFF = """
umount /var/lib/elivepatch-client
/run/guest/busybox poweroff -f
"""

_PRELUDE = """\
mark() { echo "=== $1"; }
held() { ls /sys/kernel/livepatch; }
"""


@dataclass(frozen=True)
class Ended:
    """How a run ended: what was written, the script's exit status (None where it did not end), the kernel's log."""

    output: str
    status: int | None
    console: str

    @property
    def sections(self) -> dict[str, str]:
        """What was written, by the marks of the script."""
        parts = re.split(r"^=== ([\w-]+)$", self.output, flags=re.MULTILINE)
        return dict(zip(parts[1::2], parts[2::2], strict=True))


@dataclass
class RestartingHost:
    """A host; ``files`` lie in the directory in which scripts run.

    With ``init`` that program is its first process, which runs /run/guest/second and then ends by itself; what it takes
    for that ``prepare`` does, a script that is run when the root file system is at /root.
    """

    image: Path
    kernel: GuestKernel
    busybox: Path
    work: Path
    shared: Path
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    init: str = ""
    prepare: str = ""

    def __post_init__(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        self.disk = self.work / "state.ext4"
        self.format(32)

    def format(self, mebibytes: int) -> None:
        """Make the disk of the client's directory anew."""
        self.disk.unlink(missing_ok=True)
        argv = ["mke2fs", "-q", "-t", "ext4", "-b", "1024", "-m", "0", "-E", "root_owner=0:0", self.disk]
        process.run([*argv, f"{mebibytes}M"])

    def run(
        self, script: str, *, kernel: GuestKernel | None = None, options: str = "rw", timeout: float = 400
    ) -> Ended:
        """Start the host, run a script as root, and let it go down by itself; it must have ended."""
        ended = self._start(script, kernel or self.kernel, options, timeout)
        assert ended.status is not None, f"the guest did not end as it should:\n{ended.output}\n{ended.console[-3000:]}"
        return ended

    def crash(self, script: str, *, timeout: float = 400) -> Ended:
        """Start the host and run a script in the course of which the kernel goes down."""
        ended = self._start(script, self.kernel, "rw", timeout)
        assert ended.status is None, f"the guest ended as if nothing had happened:\n{ended.output}"
        return ended

    def cut(self, script: str, mark: str, seconds: float, *, timeout: float = 400) -> Ended:
        """Start the host and run a script; take the power away ``seconds`` after it has written the mark."""
        return self._start(script, self.kernel, "rw", timeout, cut=(f"=== {mark}", seconds))

    def _start(
        self,
        script: str,
        kernel: GuestKernel,
        options: str,
        timeout: float,
        cut: tuple[str, float] | None = None,
    ) -> Ended:
        nonce = secrets.token_hex(8)
        initrd = initramfs.write(
            self.work / "initrd", initramfs.base(self.busybox).archive(), self._own_part(kernel, script, options, nonce)
        )
        guest = machine.Machine(
            vmlinuz=kernel.vmlinuz,
            initrd=initrd,
            console=self.work / "console",
            command_line=("quiet",),
            memory_mib=_MEMORY_MIB,
            disks=(self.image,),
        )
        guest.console.unlink(missing_ok=True)
        argv = machine.arguments(guest, machine.accelerator(kernel.vmlinuz, self.shared))
        argv += ["-drive", f"file={self.disk},format=raw,if=none,id=state", "-device", "virtio-blk-pci,drive=state"]
        log = self.work / "output"
        log.unlink(missing_ok=True)
        running = process.launch(argv, log=log, die_with_us=True)
        try:
            self._watch(running, log, time.monotonic() + timeout, cut)
        finally:
            process.end_group(running.pid)
            running.wait(10)
        output = log.read_text(errors="replace").replace("\r", "")
        found = re.search(rf"^@{nonce} status (\d+)$", output, re.MULTILINE)
        output = "\n".join(line for line in output.splitlines() if nonce not in line)
        console = guest.console.read_text(errors="replace") if guest.console.exists() else ""
        return Ended(output, int(found[1]) if found else None, console)

    def _watch(self, running: process.Running, log: Path, deadline: float, cut: tuple[str, float] | None) -> None:
        """Wait for the end of the guest, or for the moment at which it is to be ended."""
        at = None
        while running.poll() is None and time.monotonic() < deadline:
            if cut and at is None and cut[0] in log.read_text(errors="replace").replace("\r", "").splitlines():
                at = time.monotonic() + cut[1]
            if at is not None and time.monotonic() >= at:
                return
            time.sleep(0.02)

    def _own_part(self, kernel: GuestKernel, script: str, options: str, nonce: str) -> bytes:
        tree = initramfs.Tree()
        drivers = ModuleDirectory(kernel.modules).load_order(["virtio_pci", "virtio_blk", "ext4"])  # 6.1 has the bus so
        tree.file("/modules/order", "".join(f"{driver.name}\n" for driver in drivers).encode())
        for driver in drivers:
            tree.file(f"/modules/{driver.name}.ko", driver.elf)
        tree.file("/init", _INIT.encode(), 0o755)
        tree.file("/options", options.encode())
        second = _SECOND if self.init else _SECOND + _OFF
        tree.file("/second", second.replace("NONCE", nonce).encode())
        tree.file("/start", (self.init or _NO_INIT).encode())
        tree.file("/prepare", self.prepare.encode())
        tree.file("/payload", (_PRELUDE + script).encode())
        tree.directory("/files")
        for name, data in self.files.items():
            tree.file(f"/files/{name}", data)
        return tree.archive()


@contextlib.contextmanager
def kept_host(
    workshop: Workshop, kernel: PreparedKernel, release: Release, progress: Progress, *packages: str
) -> Generator[demo_host.GuestHost]:
    """A host with more packages, kept as `held_image` does."""
    files = demo_host.find_kernel(workshop, release, progress)
    with held_image(demo_host.guest_host(workshop, kernel, files, progress, packages)) as host:
        yield host


@contextlib.contextmanager
def held_image(host: demo_host.GuestHost) -> Generator[demo_host.GuestHost]:
    """A host whose image stays for as long as it is used, whatever others make meanwhile."""
    held = host.image.with_name(f".held-{os.getpid()}-{host.image.name}")
    held.hardlink_to(host.image)
    try:
        yield dataclasses.replace(host, image=held)
    finally:
        held.unlink()


def crafted_report(
    module: bytes, name: str, release: str, build_id: str, functions: Sequence[tuple[str, str]]
) -> bytes:
    """The report of a build for a module that was made by hand, as a server would give it."""
    data: dict[str, Any] = {
        "status": "done",
        "key": hashlib.sha256(name.encode()).hexdigest(),
        "kernel": {"release": release, "build_id": build_id, "image": "published"},
        "module": {"name": name, "sha256": hashlib.sha256(module).hexdigest(), "size": len(module)},
        "changed": [{"object": o, "function": f, "kind": "changed"} for o, f in functions],
        "proof": {"level": "exact", "functions": []},
        "verification": {"booted": True, "loaded": True, "reverted": True},
    }
    return json.dumps(data).encode()
