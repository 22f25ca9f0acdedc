# SPDX-License-Identifier: GPL-2.0-or-later
"""The main job, whole: a guest with a stock Debian kernel gets a livepatch from a server on this machine and loads it.

Nothing in it is prepared for the occasion but what any server keeps: build root, packages, the prepared kernel.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

import click
import demo_guest
import httpx2

from elivepatch import process
from elivepatch.errors import ElivepatchError, InternalError, KernelUnavailableError
from elivepatch.kernel.release import Release, parse_release
from elivepatch.pipeline import Workshop
from elivepatch.progress import Event, Progress, to_terminal
from elivepatch.server import settings as server_settings
from elivepatch.sources.provider import KernelFiles
from elivepatch.vm.machine import GuestKernel

PROJECT = Path(__file__).resolve().parent.parent
SUITE = "trixie"
SCRIPT = """\
set -eu
export TERM=dumb
say() { echo; echo "--- $*"; }
run() { echo "\\$ $*"; "$@"; }
cd /root
cat > meminfo.patch <<'PATCH'
%PATCH%PATCH
say "the host runs $(uname -r)"
run grep -i vmallocchunk /proc/meminfo
say "the client asks for the patch, and loads what it gets"
run elivepatch -u "$SERVER" -p meminfo.patch
say "the patched kernel"
run grep -i vmallocchunk /proc/meminfo
run elivepatch status
say "reverted"
name=$(ls /sys/kernel/livepatch)
run elivepatch revert "$name"
run grep -i vmallocchunk /proc/meminfo
run elivepatch status
"""


def newest(releases: list[Release]) -> Release:
    """The newest 6.12 kernel of the cloud flavour."""
    found = [r for r in releases if r.series == "6.12" and r.text.endswith("-cloud-amd64")]
    if not found:
        raise KernelUnavailableError(f"No 6.12 cloud kernel is offered; offered are {', '.join(map(str, releases))}.")
    return max(found)


def unpack_images(files: KernelFiles, target: Path) -> None:
    """Unpack the packages that hold the kernel's configuration and modules."""
    for package in files.images:
        process.run(["dpkg-deb", "--extract", files.path(package), target], timeout=300)


def free_port() -> int:
    """A TCP port of the loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, server: process.Running, log: Path, seconds: float = 60.0) -> None:
    """Wait until the server answers; raises InternalError with its log where it does not."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if httpx2.get(url, timeout=2).status_code == 200:
                return
        except httpx2.HTTPError:
            time.sleep(0.2)
        if server.poll() is not None:
            break
    raise InternalError(f"The server does not answer:\n{log.read_text(errors='replace')[-3000:]}")


def show_guest(event: Event) -> None:
    """What the guest's script writes, line by line."""
    click.echo(f"  guest | {event.message}" if event.kind == "log" else f"          {event.message}", err=True)


def run(release_name: str | None, progress: Progress) -> str:
    """Run the demonstration; gives its summary. Raises InternalError where something is not as it should be."""
    began = time.monotonic()
    settings = server_settings.load()
    workshop = Workshop(settings.cache, settings.parallel, settings.kernels_limit_bytes)
    root = workshop.roots.ensure(SUITE, progress)
    source = workshop.source(root)
    release = parse_release(release_name) if release_name else newest(source.offered(progress))
    files = source.find(release, progress)
    if files is None:
        raise KernelUnavailableError(f"{release} is not offered.")
    with workshop.kernels.prepared(files, root, lambda: source.download(files, progress), progress) as (kernel, _):
        progress.step(f"kernel {release} is prepared")
    with tempfile.TemporaryDirectory(prefix="elivepatch-demo-") as scratch:
        work = Path(scratch)
        work.chmod(0o755)
        packages = work / "packages"
        source.download(files, progress)
        unpack_images(files, packages)
        image = demo_guest.make_image(workshop.cache / "guests", SUITE, str(release), packages, PROJECT, progress)
        shutil.rmtree(packages)
        set_up = time.monotonic() - began
        progress.step(f"set-up done after {set_up:.0f} s; starting the server")
        port, log = free_port(), work / "server.log"
        argv = [Path(sys.executable).parent / "elivepatch-server", "serve", "--port", str(port)]
        env = {"ELIVEPATCH_CACHE": str(workshop.cache), "ELIVEPATCH_DATA": str(work / "data")}
        with process.started(argv, log=log, env=env) as server:
            wait_for(f"http://127.0.0.1:{port}/elivepatch/api/v2/health", server, log)
            guest = GuestKernel(str(release), kernel.vmlinuz, kernel.modules_directory)
            patch = (PROJECT / "tests/data/livepatches/string.patch").read_text()
            place = work / "guest"
            place.mkdir()
            ended = demo_guest.run_guest(
                *(image, guest, SCRIPT.replace("%PATCH%", patch), port, place, 300.0, Progress(show_guest)),
                busybox=root.busybox,
            )
        if ended.status != 0:
            tail = ended.console.read_text(errors="replace")[-2000:] if ended.console.exists() else ""
            server_log = log.read_text(errors="replace")[-2000:]
            raise InternalError(f"The guest's script ended with {ended.status}.\n{tail}\n{server_log}")
    seen = re.findall(r"^(vmallocchunk):", ended.output, re.MULTILINE | re.IGNORECASE)
    if seen != ["VmallocChunk", "VMALLOCCHUNK", "VmallocChunk"]:
        raise InternalError(f"/proc/meminfo showed {seen} instead of the change and its undoing.")
    total = time.monotonic() - began
    return (
        f"demo: {' → '.join(seen)} on {release}: built, proven, tried, loaded and reverted; "
        f"{total:.0f} s in all, {set_up:.0f} s of them set-up"
    )


@click.command()
@click.option("--kernel", "release", help="Release to show it on; default: the newest 6.12 cloud kernel of Debian 13.")
@click.option("-d", "--debug", is_flag=True, help="Show the output of the programs that run.")
def main(release: str | None, debug: bool) -> None:
    """Show elivepatch at work in a guest."""
    progress = Progress(to_terminal(sys.stderr, verbose=debug or "ELIVEPATCH_DEBUG" in os.environ))
    try:
        summary = run(release, progress)
    except ElivepatchError as error:
        click.echo(f"demo: {error.message}", err=True)
        if error.hint:
            click.echo(error.hint, err=True)
        sys.exit(error.exit_status)
    click.echo(summary)


if __name__ == "__main__":
    main()
