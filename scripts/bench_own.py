# SPDX-License-Identifier: GPL-2.0-or-later
"""Cold and warm times for kernels of one's own: with the image that their build left, and with nothing but the source.

A kernel is built once as its owner builds it, from a source package of Debian's and a small configuration (that of
`compare_klp_build`). Then livepatches of it are made with nothing prepared but the downloads, and with the kernel
prepared and the object never seen: with the image and Module.symvers that the owner's build left, and without them,
where the server builds the kernel in full, once. It states, it never asserts.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import bench
import bench_kernels
import click
import compare_klp_build as compare

from elivepatch.build.store import remove_tree
from elivepatch.errors import InvalidInputError
from elivepatch.progress import Progress, to_terminal
from elivepatch.server import settings as server_settings
from elivepatch.sources.linux_source import debian_tree
from elivepatch.sources.reference import DebianReference, parse_reference
from elivepatch.workshop import Workshop

SOURCES = ("debian:6.12", "debian:7.3")


def measure(named: str, real: Workshop, runs: int, progress: Progress) -> list[dict[str, Any]]:
    """The figures of one source, in seconds: a row with the image given, and one without."""
    reference = parse_reference(named)
    if not isinstance(reference, DebianReference):
        raise InvalidInputError(f"{named} is not a source of Debian.", hint="Name one as debian:6.12.")
    root = real.roots.ensure(compare.SUITE, progress)
    tree = debian_tree(reference, real.kernel_sources(root), progress)
    scratch = Path(tempfile.mkdtemp(prefix=".own.", dir=real.cache))
    scratch.chmod(0o755)
    rows: list[dict[str, Any]] = []
    try:
        progress.step(f"== {tree.origin}: its owner builds the kernel")
        owner = compare.Upstream(tree, root, scratch, real.parallel, progress)
        known = owner.build(compare.CONFIG.read_bytes())
        for image in (True, False):
            progress.step(f"== {tree.origin}: {'with its image' if image else 'with nothing but its source'}")
            ours = compare.Ours(tree, owner, real, scratch, progress)
            cold, report = ours.build(1, bench_kernels.renaming_patch(owner.linux), image=image)
            warm: list[float] = []
            for number in range(2, runs + 2):
                ours.forget()
                warm.append(ours.build(number, bench_kernels.renaming_patch(owner.linux), image=image)[0].seconds)
            rows.append(
                {
                    "source": tree.origin,
                    "given": "image" if image else "source",
                    "cold": round(cold.seconds, 1),
                    "warm": round(median(warm), 2),
                    "owners_build": round(known["host_build"]["seconds"], 1),
                    "proof": report.proof.level if report.proof is not None else None,
                }
            )
    finally:
        remove_tree(scratch)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table of docs/benchmark.md."""
    lines = ["| source | given | cold, s | warm, s | its owner's build, s |", "|---|---|---|---|---|"]
    return lines + [
        f"| {row['source']} | {row['given']} | {row['cold']} | {row['warm']} | {row['owners_build']} |" for row in rows
    ]


@click.command()
@click.option("--source", "sources", metavar="DEBIAN", multiple=True, default=SOURCES, show_default=True)
@click.option("--json", "target", type=click.Path(path_type=Path), metavar="FILE", help="Where to write all figures.")
@click.option(
    "--runs", type=click.IntRange(1, 20), default=3, show_default=True, help="Warm builds that a median is of."
)
def main(sources: tuple[str, ...], target: Path | None, runs: int) -> None:
    """Measure cold and warm builds for kernels that nobody publishes."""
    progress = Progress(to_terminal(sys.stderr))
    compare.adopt_orphans()
    real = server_settings.load().workshop
    real.cache.mkdir(parents=True, exist_ok=True)
    rows = [row for named in sources for row in measure(named, real, runs, progress)]
    for line in table(rows):
        click.echo(line)
    if target is not None:
        target.write_text(json.dumps({"machine": bench.machine_facts(), "kernels": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
