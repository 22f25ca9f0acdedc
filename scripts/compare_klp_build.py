# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel's own scripts/livepatch/klp-build takes for a patch, next to what elivepatch takes for the same.

    compare_klp_build.py [--source debian:7.3] [--runs N] [--json FILE]

klp-build builds the whole kernel twice, so this is done on a small configuration (klp-build.config) that ends within
the hour. One tree is built as a host builds its kernel; then the same patches go through both: a first one with
nothing kept, and others after it, in turns. klp-build works in that tree (its fastest way: no layers, no limits), with
``--short-circuit=patched`` for every patch but the first. elivepatch gets the configuration, the image and
Module.symvers that the build left, as whoever built a kernel gives them. It states, it never asserts.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import bench
import click

from elivepatch import process
from elivepatch.build import unpack
from elivepatch.build.store import remove_tree
from elivepatch.errors import InternalError, InvalidInputError
from elivepatch.progress import Progress, to_terminal
from elivepatch.protocol.models import Report
from elivepatch.server import settings as server_settings
from elivepatch.sources.linux_source import debian_tree
from elivepatch.sources.reference import DebianReference, parse_reference
from elivepatch.sources.trees import SourceTree
from elivepatch.toolchains.roots import SPECS, Root, RootSpec
from elivepatch.toolchains.sandbox import JOB, Limits, Sandbox, give_to_sandbox
from elivepatch.workshop import Workshop

CONFIG = Path(__file__).with_suffix("").with_name("klp-build.config")
SUITE = "trixie"
#: The root of elivepatch's own builds, and what klp-build needs beside it.
ROOT = "klp-build-trixie"
TOOLS = ("gawk", "patchutils")
PATCH = Path(__file__).resolve().parent.parent / "tests/data/livepatches/klp/string.patch"
LINUX = JOB / "linux"
_PR_SET_CHILD_SUBREAPER = 36
#: What klp-build prints at the start of each of its steps, and the stage that we count the step to.
STEPS = {
    "Validating patch(es)": "start",
    "Building original kernel": "original build",
    "Copying original object files": "original build",
    "Fixing patch(es)": "patched build",
    "Building patched kernel": "patched build",
    "Copying patched object files": "patched build",
    "Generating original checksums": "diff",
    "Generating patched checksums": "diff",
    "Diffing objects": "diff",
    "Building patch module": "module",
}
_LIMITS = Limits(
    memory_bytes=12 * 1024**3,
    total_memory_bytes=16 * 1024**3,
    file_bytes=8 * 1024**3,
    processes=1024,
    seconds=4 * 3600.0,
)
_CONFIGURE = "make allnoconfig KCONFIG_ALLCONFIG=$JOB/klp-build.config"
_BUILD = "make -j$JOBS vmlinux modules"


@dataclass(frozen=True)
class Run:
    """One program: wall and processor seconds of it and all that it started, and how busy the machine was before."""

    seconds: float
    processor: float
    load: float
    stages: dict[str, float] = field(default_factory=dict[str, float])


def measured(call: Callable[[], dict[str, float]]) -> Run:
    """Run a call that starts programs and gives its stages."""
    load, before, began = os.getloadavg()[0], _processor(), time.monotonic()
    stages = call()
    seconds = time.monotonic() - began
    return Run(round(seconds, 2), round(_processor() - before, 2), load, {k: round(v, 2) for k, v in stages.items()})


def _processor() -> float:
    """Processor seconds of all that was started and has ended.

    The sandbox does not wait for what it starts, so that the orphans come to us (`adopt_orphans`) and are waited for.
    """
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def adopt_orphans() -> None:
    """Become the parent of what loses its own below us (prctl(2))."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise InternalError("This system does not give us the orphans of our programs.")


def patch(number: int) -> bytes:
    """A patch that was never seen: it gives a line of /proc/meminfo a name of its own, of the same length."""
    name = f"Vm{secrets.token_hex(3)}{number:04d}"
    return PATCH.read_bytes().replace(bench.NAME.encode(), name.encode())


class Upstream:
    """A kernel tree in a directory of its own, where it is built, and where klp-build works."""

    def __init__(self, tree: SourceTree, root: Root, scratch: Path, jobs: int, progress: Progress) -> None:
        self.job = scratch / "job"
        self.linux = self.job / "linux"
        self._sandbox = Sandbox(root.path, job=self.job, limits=_LIMITS)
        self._jobs = jobs
        self._progress = progress
        if self.linux.exists():
            return  # what --keep has left
        self.job.mkdir()
        self.linux.mkdir()
        tree.fetch(progress)
        tree.compose(self.linux, progress)
        unpack.own(self.linux)
        for path in (self.job, self.linux):
            give_to_sandbox(path)

    def _run(self, argv: Sequence[str], sink: Callable[[str], None]) -> None:
        # not Sandbox.run(): what it counts five times a second would be charged to the program
        env = {"JOB": str(JOB), "JOBS": str(self._jobs)}
        words = [*self._sandbox.prefix(cwd=LINUX, env=env), *argv]
        process.run(words, timeout=_LIMITS.seconds, sink=sink, shown=argv)

    def build(self, configuration: bytes) -> Mapping[str, Any]:
        """The whole kernel, as its host builds it, and how large it is; what an image is made of is kept in ``job``."""
        told = self.job / "host.json"
        if told.exists():
            return json.loads(told.read_text())
        (self.job / CONFIG.name).write_bytes(configuration)
        self._run(["sh", "-euc", _CONFIGURE], self._progress.log)
        asked, have = (text.decode().splitlines() for text in (configuration, (self.linux / ".config").read_bytes()))
        if lacking := [line for line in asked if line.startswith("CONFIG_") and line not in have]:
            raise InternalError(f"The kernel was not configured as {CONFIG.name} says: {', '.join(lacking)}")

        def call() -> dict[str, float]:
            self._run(["sh", "-euc", _BUILD], self._progress.log)
            return {}

        run = measured(call)
        for name in (".config", "vmlinux", "Module.symvers"):
            (self.job / name.lstrip(".")).write_bytes((self.linux / name).read_bytes())
        options = re.findall(r"^CONFIG_\w+=", (self.job / "config").read_text(), re.MULTILINE)
        size = {"options": len(options), "compiled": self._compiled()}
        told.write_text(json.dumps({"configuration": size, "host_build": asdict(run)}))
        return json.loads(told.read_text())

    def _compiled(self) -> int:
        """How many files the compiler made an object of, host tools left out."""
        found = 0
        for directory, names, files in os.walk(self.linux):
            if Path(directory) == self.linux:
                names[:] = [name for name in names if name not in {"scripts", "tools", "klp-tmp"}]
            saved = (Path(directory) / name for name in files if name.startswith(".") and name.endswith(".o.cmd"))
            found += sum(b"\nsource_" in path.read_bytes() for path in saved)
        return found

    def klp_build(self, number: int, data: bytes) -> tuple[Run, list[str]]:
        """klp-build for one patch, and the functions that it calls changed; from the second on, the original stays."""
        file = self.job / f"{number}.patch"
        file.write_bytes(data)
        words = ["scripts/livepatch/klp-build", f"--jobs={self._jobs}", "--keep-tmp"]
        words += ["--short-circuit=patched"] if number > 1 else []
        words += [f"--output={JOB}/livepatch-{number}.ko", str(JOB / file.name)]
        marks: list[tuple[float, str]] = []

        def sink(line: str) -> None:
            stage = next((STEPS[step] for step in STEPS if line.startswith(step)), None)
            if stage is not None:
                marks.append((time.monotonic(), stage))
                self._progress.step(f"klp-build: {line}")
            self._progress.log(line)

        def call() -> dict[str, float]:
            marks.append((time.monotonic(), "start"))
            self._run(words, sink)
            marks.append((time.monotonic(), "end"))
            stages: dict[str, float] = {}
            for (began, stage), (ended, _) in pairwise(marks):
                stages[stage] = stages.get(stage, 0.0) + ended - began
            return stages

        run = measured(call)
        if not (self.job / f"livepatch-{number}.ko").exists():
            raise InternalError("klp-build ended without a module.")
        if unseen := set(STEPS.values()) - set(run.stages) - ({"original build"} if number > 1 else set()):
            raise InternalError(f"klp-build of this kernel names its steps otherwise: no {', '.join(sorted(unseen))}.")
        log = (self.linux / "klp-tmp/4-diff/diff.log").read_text()
        return run, sorted(set(re.findall(r"changed function: (\S+)", log)))


class Ours:
    """elivepatch as a command, with a cache that holds nothing but downloads and build roots."""

    def __init__(self, tree: SourceTree, upstream: Upstream, real: Workshop, scratch: Path, progress: Progress) -> None:
        self._bench = bench.Bench(real, scratch, 1, progress)
        if self._bench.cache.exists():
            remove_tree(self._bench.cache)  # of a kept directory: the first build is a cold one
        self._bench.shared_cache()
        self._tree, self._inputs, self._scratch = tree, upstream.job, scratch

    def build(self, number: int, data: bytes, *, image: bool = True) -> tuple[Run, Report]:
        """A build with the image of the host's build, or without it: then the kernel is built, the first time."""
        file, inputs = self._scratch / f"{number}.patch", self._inputs
        file.write_bytes(data)
        words = [bench.SERVER, "build", "--kernel", self._tree.origin, "--config", inputs / "config", "--patch", file]
        if image:
            words += ["--vmlinux", inputs / "vmlinux", "--symvers", inputs / "Module.symvers"]
        words += ["--proof", "exact" if image else "none", "--no-verify", "--json", "-o", self._scratch / "out.ko"]
        reports: list[Report] = []

        def call() -> dict[str, float]:
            env = {"ELIVEPATCH_CACHE": str(self._bench.cache)}
            report = Report.model_validate_json(process.run(words, env=env, timeout=3600).stdout)
            reports.append(report)
            return report.timings.model_dump(exclude_none=True) if report.timings else {}

        return measured(call), reports[0]

    def forget(self) -> None:
        """Have no object kept: as if the kernel was prepared, and this object never asked for."""
        for objects in (self._bench.cache / "kernels/prepared").glob("*/objects"):
            remove_tree(objects)


def changed(report: Report) -> list[str]:
    return sorted({change.function for change in report.changed if change.kind == "changed"})


def compare(upstream: Upstream, ours: Ours, runs: int, progress: Progress) -> Generator[dict[str, object]]:
    """Both for one patch after the other; gives all results so far after each."""
    klp: list[Run] = []
    mine: dict[str, list[Run]] = {"cold": [], "never seen": [], "kept": []}
    for number in range(1, runs + 2):
        progress.step(f"patch {number} of {runs + 1}: klp-build")
        data = patch(number)
        run, functions = upstream.klp_build(number, data)
        klp.append(run)
        progress.step(f"patch {number} of {runs + 1}: elivepatch")
        if number > 1:
            ours.forget()
        # the second one finds the original that the first one left
        for kind, text in (("cold" if number == 1 else "never seen", data), ("kept", patch(number))):
            run, report = ours.build(number, text)
            mine[kind].append(run)
            if report.proof is None or report.proof.level != "exact" or changed(report) != functions:
                raise InternalError(f"The two differ: klp-build changes {functions}, elivepatch {changed(report)}.")
        first, later = klp[:1], klp[1:]
        rows = [("the first patch, nothing kept", first, mine["cold"])]
        rows.append(("another patch, object never seen", later, mine["never seen"]))
        rows.append(("another patch to the object", later, mine["kept"][1:]))
        yield {
            "functions": functions,
            "klp_build": {"first": asdict(klp[0]), "later": [asdict(run) for run in later]},
            "elivepatch": {kind: [asdict(run) for run in each] for kind, each in mine.items()},
            "table": [_row(*row) for row in rows if row[1]],
        }


def _row(what: str, theirs: Sequence[Run], ours: Sequence[Run]) -> dict[str, object]:
    """Medians of wall and processor seconds, klp-build's first, and what they are to each other."""
    wall = [median(run.seconds for run in runs) for runs in (theirs, ours)]
    processor = [median(run.processor for run in runs) for runs in (theirs, ours)]
    return {
        "what": what,
        "wall": [round(seconds, 1) for seconds in wall],
        "wall_ratio": round(wall[0] / wall[1], 1),
        "processor": [round(seconds, 1) for seconds in processor],
        "processor_ratio": round(processor[0] / processor[1], 1),
    }


def show(result: Mapping[str, Any]) -> None:  # as JSON has it
    """The tables of docs/benchmark.md."""
    size, host = result["configuration"], result["host_build"]
    click.echo(
        f"\n{result['source']}: {size['options']} options, {size['compiled']} compiled files; its build as a host took "
        f"{host['seconds']:.0f} s\n"
    )
    click.echo("| | klp-build, s | elivepatch, s | times | processor: klp-build, s | elivepatch, s | times |")
    click.echo("|---|---|---|---|---|---|---|")
    for row in result["table"]:
        cells = [row["what"], *row["wall"], row["wall_ratio"], *row["processor"], row["processor_ratio"]]
        click.echo(f"| {' | '.join(map(str, cells))} |")
    klp, mine = result["klp_build"], result["elivepatch"]
    stages = {"klp-build, first": klp["first"], "elivepatch, first": mine["cold"][0]}
    if klp["later"]:
        stages |= {"klp-build, later": klp["later"][-1], "elivepatch, never seen": mine["never seen"][-1]}
        stages["elivepatch, kept"] = mine["kept"][-1]
    for name, run in stages.items():
        parts = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in run["stages"].items())
        click.echo(f"stages of {name} (load before: {run['load']:.1f}), s: {parts}")


@click.command()
@click.option("--source", "named", metavar="DEBIAN", default="debian:7.3", show_default=True, help="Kernel source.")
@click.option("--json", "target", type=click.Path(path_type=Path), metavar="FILE", help="Where to write all figures.")
@click.option("--runs", type=click.IntRange(1, 20), default=3, show_default=True, help="Patches after the first one.")
@click.option("--keep", is_flag=True, help="Leave the tree and the cache of the comparison where they are.")
@click.option(
    "--tree",
    "kept",
    type=click.Path(path_type=Path, exists=True),
    metavar="DIR",
    help="Such a directory, to go on with.",
)
def main(named: str, target: Path | None, runs: int, keep: bool, kept: Path | None) -> None:
    """Compare the kernel's klp-build with elivepatch."""
    progress = Progress(to_terminal(sys.stderr))
    adopt_orphans()
    reference = parse_reference(named)
    if not isinstance(reference, DebianReference):
        raise InvalidInputError(f"{named} is not a source of Debian.", hint="Name one as debian:7.3.")
    real = server_settings.load().workshop
    real.cache.mkdir(parents=True, exist_ok=True)
    real.roots.ensure(SUITE, progress)
    spec = SPECS[SUITE]
    more = {ROOT: RootSpec(spec.suite, (*spec.packages, *TOOLS))}
    root = replace(real, more_roots=more).roots.ensure(ROOT, progress)
    tree = debian_tree(reference, real.kernel_sources(real.roots.get(SUITE)), progress)
    scratch = kept or Path(tempfile.mkdtemp(prefix=".compare.", dir=real.cache))
    scratch.chmod(0o755)
    try:
        progress.step(f"the kernel of a host from {tree.origin}, in {scratch}")
        upstream = Upstream(tree, root, scratch, real.parallel, progress)
        known = {"source": tree.origin, "machine": bench.machine_facts(), "jobs": real.parallel}
        known |= upstream.build(CONFIG.read_bytes())
        for result in compare(upstream, Ours(tree, upstream, real, scratch, progress), runs, progress):
            show(known | result)
            if target is not None:
                target.write_text(json.dumps(known | result, indent=2) + "\n")
    finally:
        if not keep and kept is None:
            remove_tree(scratch)


if __name__ == "__main__":
    main()
