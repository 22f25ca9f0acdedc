# SPDX-License-Identifier: GPL-2.0-or-later
"""A server on this machine and a host that asks it: what the demonstration and the tests have in common."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import demo_guest
import httpx2
from guest_image import PACKAGES, make_image

from elivepatch import process
from elivepatch.build.prepared import PreparedKernel
from elivepatch.errors import InternalError, KernelUnavailableError
from elivepatch.kernel.release import Release
from elivepatch.progress import Progress
from elivepatch.sources.provider import KernelFiles
from elivepatch.vm.machine import GuestKernel
from elivepatch.workshop import Workshop, newest_kernel

PROJECT = Path(__file__).resolve().parent.parent
SUITE = "trixie"


@dataclass(frozen=True)
class GuestHost:
    """A host with a stock kernel, and the kernel as the server has prepared it."""

    image: Path
    kernel: GuestKernel
    busybox: Path


@dataclass(frozen=True)
class Server:
    """A server that runs on a port of the loopback."""

    port: int
    log: Path

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"


def find_kernel(workshop: Workshop, release: Release | None, progress: Progress) -> KernelFiles:
    """The packages of a release, or of the newest; they are on disk afterwards."""
    root = workshop.roots.ensure(SUITE, progress)
    source = workshop.source(root)
    wanted = release or newest_kernel(workshop, progress)
    files = source.find(wanted, progress)
    if files is None:
        raise KernelUnavailableError(f"{wanted} is not offered.")
    source.download(files, progress)
    return files


def guest_host(
    workshop: Workshop,
    kernel: PreparedKernel,
    files: KernelFiles,
    progress: Progress,
    more_packages: Sequence[str] = (),
    *,
    suite: str = SUITE,
) -> GuestHost:
    """A host of a Debian release that runs the stock kernel, has the client, and ``more_packages`` than it needs."""
    with tempfile.TemporaryDirectory(prefix="elivepatch-host-") as scratch:
        for package in files.images:
            process.run(["dpkg-deb", "--extract", files.path(package), scratch], timeout=300)
        guests = workshop.cache / "guests"
        packages = (*PACKAGES, *more_packages)
        image = make_image(guests, suite, kernel.release, Path(scratch), PROJECT, progress, packages)
    return GuestHost(image, GuestKernel(kernel.release, kernel.vmlinuz, kernel.modules_directory), kernel.root.busybox)


def free_port() -> int:
    """A TCP port of the loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(workshop: Workshop, work: Path, *flags: str, **settings: str) -> Generator[Server]:
    """A server with a database of its own below ``work``, on a free port; ended when the block is left.

    ``flags`` are more words for ``elivepatch-server serve``, ``settings`` settings by their names, in small letters.
    """
    running = Server(free_port(), work / "server.log")
    argv = [Path(sys.executable).parent / "elivepatch-server", "serve", "--port", str(running.port), *flags]
    env = {"ELIVEPATCH_CACHE": str(workshop.cache), "ELIVEPATCH_DATA": str(work / "data")}
    env |= {f"ELIVEPATCH_{name.upper()}": value for name, value in settings.items()}
    with process.started(argv, log=running.log, env=env) as program:
        _wait_for(f"{running.url}/elivepatch/api/v2/health", program, running.log)
        yield running


def _wait_for(url: str, program: process.Running, log: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and program.poll() is None:
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(url, timeout=2).status_code in {200, 503}:
                return
        time.sleep(0.2)
    raise InternalError(f"The server does not answer:\n{log.read_text(errors='replace')[-3000:]}")


def run_on(
    host: GuestHost, script: str, port: int, work: Path, progress: Progress, timeout: float = 600.0
) -> demo_guest.GuestRun:
    """Run a script on the host; ``$SERVER`` is the server's address there."""
    place = Path(tempfile.mkdtemp(prefix="guest-", dir=work))
    try:
        return demo_guest.run_guest(
            host.image, host.kernel, script, port, place, timeout, progress, busybox=host.busybox
        )
    finally:
        console = next(iter(place.glob("*console*")), None)
        if console is not None:
            shutil.copyfile(console, work / "console.log")
