# SPDX-License-Identifier: GPL-2.0-or-later
"""A host to try the client on: a guest with a Debian root file system, a stock kernel and the client installed.

    demo_guest.py image --suite trixie --release R --package-root DIR --cache DIR
    demo_guest.py run --image FILE --release R --package-root DIR --busybox FILE --script FILE --port PORT --workdir DIR

For the image see guest_image.py. A guest changes a copy of it that goes with the guest, and reaches one port of this
machine and nothing else.
"""

from __future__ import annotations

import secrets
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import click
from guest_image import make_image

from elivepatch.errors import ElivepatchError
from elivepatch.progress import Progress, to_terminal
from elivepatch.vm import initramfs, machine
from elivepatch.vm.machine import GUEST_SERVER, GuestKernel
from elivepatch.vm.modules import ModuleDirectory

#: What the guest needs to see its disk and its network; the rest is built into the stock kernels. Kernels before 6.12
#: have the bus of these devices as a module too.
_DRIVERS = ("virtio_pci", "virtio_blk", "virtio_net")
_MEMORY_MIB = 1024
_HERE = Path(__file__).resolve().parent

_INIT = r"""#!/bin/busybox sh
# the initramfs of a demo guest: drivers, disk, network, then over to the disk
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
ip link set lo up
if test -d /sys/class/net/eth0; then
    ip address add 10.0.2.15/24 dev eth0
    ip link set eth0 up
fi
mount -t tmpfs -o mode=755 tmpfs /root/run
mount -t tmpfs -o mode=1777 tmpfs /root/tmp
mkdir /root/run/guest
cp /bin/busybox /payload /nonce /second /root/run/guest
for directory in proc sys dev; do mount --move "/$directory" "/root/$directory"; done
exec switch_root /root /run/guest/busybox sh /run/guest/second
"""

_SECOND = r"""# runs as the first process of the guest's own root file system
nonce=$(/run/guest/busybox cat /run/guest/nonce)
/run/guest/busybox rm /run/guest/nonce
exec </dev/null >/dev/ttyS1 2>&1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
echo "@$nonce payload"
/bin/sh /run/guest/payload # not busybox's own shell, which a bare 'sh' would be here
status=$?
echo
echo "@$nonce status $status"
sync
/run/guest/busybox poweroff -f
"""


@dataclass(frozen=True)
class GuestRun:
    """How a script in a guest ended: its exit status (None where it did not end) and what it wrote."""

    status: int | None
    output: str
    seconds: float
    console: Path


# -- the guest


def run_guest(
    image: Path,
    kernel: GuestKernel,
    script: str,
    server_port: int | None,
    workdir: Path,
    timeout: float,
    progress: Progress,
    *,
    busybox: Path,
) -> GuestRun:
    """Boot a guest from the image, run a shell script in it as root, and give back how that ended.

    In the script, ``$SERVER`` is the URL under which the guest reaches ``server_port`` of this machine's loopback; it
    reaches nothing else. What the script writes is passed on as it comes. ``busybox`` is a static busybox; ``timeout``
    is wall seconds for the whole guest.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    nonce = secrets.token_hex(16)
    initrd = initramfs.write(
        workdir / "guest.initrd", initramfs.base(busybox).archive(), _own_part(kernel, script, server_port, nonce)
    )
    relay = None
    if server_port is not None:
        relay = shlex.join([sys.executable, "-I", "-S", str(_HERE / "guest_relay.py"), str(server_port)])
    guest = machine.Machine(
        vmlinuz=kernel.vmlinuz,
        initrd=initrd,
        console=workdir / "guest-console.log",
        command_line=("quiet",),
        memory_mib=_MEMORY_MIB,
        disks=(image,),
        server_port=server_port,
        relay=relay,
    )
    mark = f"@{nonce} "

    def tell(line: str) -> None:
        if mark not in line:
            progress.log(line.rstrip("\r"))
        elif line.endswith("payload"):
            progress.step("the guest is up")

    progress.step(f"booting a guest with {kernel.release}")
    outcome = machine.run(guest, timeout=timeout, sink=tell, shared=image.parent)
    initrd.unlink()
    lines = outcome.output.replace("\r", "").splitlines()
    status = next((int(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{mark}status ")), None)
    return GuestRun(
        status=status,
        output="\n".join(line for line in lines if mark not in line),
        seconds=outcome.seconds,
        console=guest.console,
    )


def _own_part(kernel: GuestKernel, script: str, server_port: int | None, nonce: str) -> bytes:
    tree = initramfs.Tree()
    drivers = ModuleDirectory(kernel.modules).load_order(_DRIVERS)
    tree.file("/modules/order", "".join(f"{driver.name}\n" for driver in drivers).encode())
    for driver in drivers:
        tree.file(f"/modules/{driver.name}.ko", driver.elf)
    tree.file("/init", _INIT.encode(), 0o755)
    tree.file("/second", _SECOND.encode())
    tree.file("/nonce", nonce.encode(), 0o600)
    server = f"export SERVER=http://{GUEST_SERVER}:{server_port}\n" if server_port is not None else ""
    tree.file("/payload", (server + script).encode())
    return tree.archive()


def _kernel(release: str, package_root: Path) -> GuestKernel:
    return GuestKernel(
        release=release,
        vmlinuz=package_root / f"boot/vmlinuz-{release}",
        modules=package_root / f"usr/lib/modules/{release}",
    )


# -- by hand

_PATH = click.Path(path_type=Path)


@click.group(help="Make and run a guest to try the client on.")
def main() -> None:
    pass


@main.command("image", help="Make the image, or find the one that was made; prints its path.")
@click.option("--suite", required=True)
@click.option("--release", required=True)
@click.option("--package-root", type=_PATH, required=True)
@click.option("--cache", type=_PATH, required=True)
def image_command(suite: str, release: str, package_root: Path, cache: Path) -> None:
    progress = Progress(to_terminal(sys.stderr))
    print(make_image(cache, suite, release, package_root, _HERE.parent, progress))


@main.command("run", help="Run a script in a guest; ends with the script's exit status.")
@click.option("--image", type=_PATH, required=True)
@click.option("--release", required=True)
@click.option("--package-root", type=_PATH, required=True)
@click.option("--busybox", type=_PATH, default=Path("/usr/bin/busybox"), show_default=True)
@click.option("--script", type=click.File(), default="-", help="standard input unless given")
@click.option("--port", type=int, help="the one port of this machine that the guest reaches")
@click.option("--workdir", type=_PATH, required=True)
@click.option("--timeout", type=float, default=300.0, show_default=True, help="seconds")
def run_command(
    image: Path,
    release: str,
    package_root: Path,
    busybox: Path,
    script: TextIO,
    port: int | None,
    workdir: Path,
    timeout: float,
) -> None:
    progress = Progress(to_terminal(sys.stderr, verbose=True))
    kernel = _kernel(release, package_root)
    done = run_guest(image, kernel, script.read(), port, workdir, timeout, progress, busybox=busybox)
    if done.status is None:
        print(f"The guest did not end as it should; its kernel log: {done.console}", file=sys.stderr)
    sys.exit(1 if done.status is None else done.status)


if __name__ == "__main__":
    try:
        main()
    except ElivepatchError as error:
        print(f"{error.message}\n{error.hint or ''}".rstrip(), file=sys.stderr)
        sys.exit(error.exit_status)
