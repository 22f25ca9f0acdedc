# SPDX-License-Identifier: GPL-2.0-or-later
"""The main job, whole: a guest with a stock Debian kernel gets a livepatch from a server on this machine and loads it.

Nothing in it is prepared for the occasion but what any server keeps: build root, packages, the prepared kernel.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path

import click
import demo_host

from elivepatch.errors import ElivepatchError, InternalError
from elivepatch.kernel.release import Release, parse_release
from elivepatch.progress import Event, Progress, to_terminal
from elivepatch.server import settings as server_settings
from elivepatch.workshop import Workshop

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
"""


def show_guest(event: Event) -> None:
    """What the guest's script writes, line by line."""
    click.echo(f"  guest | {event.message}" if event.kind == "log" else f"          {event.message}", err=True)


def run(release: Release | None, progress: Progress) -> str:
    """Run the demonstration; gives its summary. Raises InternalError where something is not as it should be."""
    began = time.monotonic()
    settings = server_settings.load()
    workshop = Workshop(settings.cache, settings.parallel, settings.kernels_limit_bytes)
    files = demo_host.find_kernel(workshop, release, progress)
    root = workshop.roots.get(files.toolchain)
    patch = (demo_host.PROJECT / "tests/data/livepatches/string.patch").read_text()
    with workshop.kernels.prepared(files, root, lambda: None, progress) as (kernel, _):
        progress.step(f"kernel {kernel.release} is prepared")
        host = demo_host.guest_host(workshop, kernel, files, progress)
        set_up = time.monotonic() - began
        progress.step(f"set-up done after {set_up:.0f} s; starting the server and the guest")
        with tempfile.TemporaryDirectory(prefix="elivepatch-demo-") as scratch:
            work = Path(scratch)
            work.chmod(0o755)
            with demo_host.server(workshop, work) as server:
                ended = demo_host.run_on(
                    host, SCRIPT.replace("%PATCH%", patch), server.port, work, Progress(show_guest)
                )
            if ended.status != 0:
                console = (work / "console.log").read_text(errors="replace")[-2000:]
                log = server.log.read_text(errors="replace")[-2000:]
                raise InternalError(f"The guest's script ended with {ended.status}.\n{console}\n{log}")
    seen = re.findall(r"^(vmallocchunk):", ended.output, re.MULTILINE | re.IGNORECASE)
    if seen != ["VmallocChunk", "VMALLOCCHUNK", "VmallocChunk"]:
        raise InternalError(f"/proc/meminfo showed {seen} instead of the change and its undoing.")
    total = time.monotonic() - began
    return (
        f"demo: {' → '.join(seen)} on {kernel.release}: built, proven, tried, loaded and reverted; "
        f"{total:.0f} s in all, {set_up:.0f} s of them set-up"
    )


@click.command()
@click.option("--kernel", "release", help="Release to show it on; default: the newest 6.12 cloud kernel of Debian 13.")
@click.option("-d", "--debug", is_flag=True, help="Show the output of the programs that run.")
def main(release: str | None, debug: bool) -> None:
    """Show elivepatch at work in a guest."""
    progress = Progress(to_terminal(sys.stderr, verbose=debug or "ELIVEPATCH_DEBUG" in os.environ))
    try:
        summary = run(parse_release(release) if release else None, progress)
    except ElivepatchError as error:
        click.echo(f"demo: {error.message}", err=True)
        if error.hint:
            click.echo(error.hint, err=True)
        sys.exit(error.exit_status)
    click.echo(summary)


if __name__ == "__main__":
    main()
