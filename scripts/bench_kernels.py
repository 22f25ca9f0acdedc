# SPDX-License-Identifier: GPL-2.0-or-later
"""Cold and warm times for every kernel that Debian 12 and 13 publish: a table, and all figures as JSON.

For each kernel: the first build with nothing prepared but the downloads, a build with the kernel prepared and the
object never seen, the bare compiler on that object, and the boot test. Each build has a patch that was never seen, made
from that kernel's own source.
"""

from __future__ import annotations

import difflib
import json
import secrets
import sys
import tempfile
from pathlib import Path
from statistics import median

import bench
import click

from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.store import remove_tree
from elivepatch.job import InputFile, Job
from elivepatch.kernel.release import Release
from elivepatch.progress import Progress, to_terminal
from elivepatch.protocol.models import BuildRequest
from elivepatch.server import settings as server_settings
from elivepatch.workshop import Workshop

SOURCE = "fs/proc/meminfo.c"
OLD = "VmallocChunk"
KERNELS = (
    ("bookworm", "6.1", "-cloud-amd64"),
    ("bookworm", "6.1", "-amd64"),
    ("trixie", "6.12", "-cloud-amd64"),
    ("trixie", "6.12", "-amd64"),
    ("trixie", "6.12", "-rt-amd64"),
    ("trixie", "7.3", "-cloud-amd64"),
)


def newest(workshop: Workshop, suite: str, series: str, flavour: str, progress: Progress) -> Release:
    """The newest kernel of a flavour; ``-amd64`` is the plain one."""
    sources = workshop.kernel_sources(workshop.roots.ensure(suite, progress))
    offered = [one for source in sources for one in source.offered(progress)]
    plain = flavour == "-amd64"
    fitting = [
        one
        for one in offered
        if one.series == series
        and one.text.endswith(flavour)
        and not (plain and one.text.endswith(("-cloud-amd64", "-rt-amd64")))
    ]
    return max(fitting)


def renaming_patch(tree: Path, name: str | None = None) -> bytes:
    """A patch for a kernel's own source that gives a line of /proc/meminfo another name, one never seen by default."""
    before = (tree / SOURCE).read_text().splitlines(keepends=True)
    after = [line.replace(OLD, name or f"Vm{secrets.token_hex(5)}") for line in before]
    return "".join(difflib.unified_diff(before, after, f"a/{SOURCE}", f"b/{SOURCE}")).encode()


class OneKernel(bench.Bench):
    """The measurements of `bench`, with a patch for the kernel's own source."""

    source: Path = Path()

    def job(self, release: str, *, verify: bool = False) -> Job:
        name = f"Vm{secrets.token_hex(5)}"
        patch = renaming_patch(self.source, name)
        check = f"#!/bin/sh\ngrep -q '^{name}:' /proc/meminfo\n".encode() if verify else None
        return Job(BuildRequest(kernel=release, verify=verify), (InputFile("bench.patch", patch),), check=check)


def measure(real: Workshop, release: Release, runs: int, progress: Progress) -> dict[str, object]:
    """The figures of one kernel, in seconds and megabytes."""
    scratch = Path(tempfile.mkdtemp(prefix=".bench.", dir=real.cache))
    scratch.chmod(0o755)
    one = OneKernel(real, scratch, runs, progress)
    try:
        one.shared_cache()
        with bench.prepared_kernel(str(release), real, progress) as kernel:  # for its downloads, too
            one.source = kernel.source
            cold = one.command(str(release))
            entry = one.workshop.kernels.store.entries()[-1]
            with bench.prepared_kernel(str(release), one.workshop, progress) as fresh:
                warm, bare = _warm(one, fresh)
            timings = one.build(str(release), verify=True)[1].timings
    finally:
        remove_tree(scratch)
    return {
        "kernel": str(release),
        "cold": round(cold, 1),
        "warm": round(median(warm), 2),
        "bare": round(median(bare), 2),
        "boot_test": round(timings.verify, 1) if timings is not None and timings.verify is not None else None,
        "prepared_mb": round(entry.size / 1024**2),
    }


def _warm(one: OneKernel, kernel: PreparedKernel) -> tuple[list[float], list[float]]:
    line, place = one.saved_command(kernel)
    warm: list[float] = []
    bare: list[float] = []
    for _ in range(one.runs):
        bare.append(one.replay(kernel, line, place))
        one.forget(kernel)
        warm.append(one.command(kernel.release))
    return warm, bare


@click.command()
@click.option("--json", "target", type=click.Path(path_type=Path), metavar="FILE", help="Where to write all figures.")
@click.option("--runs", type=click.IntRange(1, 100), default=5, show_default=True, help="Runs that a median is of.")
@click.option("--only", metavar="TEXT", default="", help="Only kernels with this in their series and flavour.")
def main(target: Path | None, runs: int, only: str) -> None:
    """Measure cold and warm builds for every kernel that Debian publishes."""
    progress = Progress(to_terminal(sys.stderr))
    real = server_settings.load().workshop
    real.cache.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for suite, series, flavour in KERNELS:
        if only not in f"{series}{flavour}":
            continue
        release = newest(real, suite, series, flavour, progress)
        progress.step(f"== {release}")
        rows.append(measure(real, release, runs, progress))
    click.echo("| kernel | cold, s | warm, s | bare compiler, s | warm against bare | boot test, s | prepared, MB |")
    click.echo("|---|---|---|---|---|---|---|")
    for row in rows:
        ratio = float(str(row["warm"])) / float(str(row["bare"]))
        click.echo(
            f"| {row['kernel']} | {row['cold']} | {row['warm']} | {row['bare']} | {ratio:.1f} | {row['boot_test']} "
            f"| {row['prepared_mb']} |"
        )
    if target is not None:
        target.write_text(json.dumps({"object": SOURCE, "runs": runs, "kernels": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
