# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds against the bare compiler, and what they take: the figures of docs/benchmark.md.

    bench.py [--kernel RELEASE] [--json FILE] [--quick]

All is measured in one run, in turns, so that what else the machine does meets all alike; raw times are kept. It
works in a cache of its own that shares downloads and build roots with the real one. It states, it never asserts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import click
import httpx2
from bench_figures import MIB, Figure, Taken, shown, watched

from elivepatch import pipeline, process
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.store import remove_tree
from elivepatch.errors import ElivepatchError, InternalError
from elivepatch.job import InputFile, Job
from elivepatch.progress import Progress, to_terminal
from elivepatch.protocol.models import BuildRequest, BuildStatus, Report
from elivepatch.server import settings as server_settings
from elivepatch.server.proof_command import prepared_kernel
from elivepatch.vm import machine
from elivepatch.workshop import Workshop

OBJECT = "fs/proc/meminfo.o"
#: A patch that gives a line of /proc/meminfo another name; each build gets a name of its own, of the same length.
PATCH = Path(__file__).resolve().parent.parent / "tests/data/livepatches/string.patch"
NAME = "VMALLOCCHUNK"
BASE = "/elivepatch/api/v2"
SERVER = Path(sys.executable).with_name("elivepatch-server")


@dataclass
class Bench:
    """One run: where it works, and what it has found."""

    real: Workshop
    scratch: Path
    runs: int
    progress: Progress
    figures: list[Figure] = field(default_factory=list[Figure])
    phases: dict[str, dict[str, list[float]]] = field(default_factory=dict[str, dict[str, list[float]]])

    @property
    def cache(self) -> Path:
        return self.scratch / "cache"

    @property
    def workshop(self) -> Workshop:
        return Workshop(self.cache, self.real.parallel, self.real.kernels_limit_bytes)

    def add(self, *figures: Figure) -> None:
        self.figures += figures
        for figure in figures:
            self.progress.step(f"{figure.name}: {shown(figure.result, figure.unit)} {figure.verdict}")

    def shared_cache(self) -> None:
        """A cache with the downloads, lists and roots of the real one and nothing prepared."""
        self.cache.mkdir()
        for name in ("packages", "apt", "roots"):
            (self.cache / name).symlink_to(self.real.cache / name, target_is_directory=True)

    def job(self, release: str, *, verify: bool = False) -> Job:
        """A job with a patch that was never seen."""
        name = f"Vm{secrets.token_hex(5)}"
        check = f"#!/bin/sh\ngrep -q '^{name}:' /proc/meminfo\n".encode() if verify else None
        patches = (InputFile("bench.patch", PATCH.read_bytes().replace(NAME.encode(), name.encode())),)
        return Job(BuildRequest(kernel=release, verify=verify), patches, check=check)

    @contextlib.contextmanager
    def directory(self, name: str) -> Generator[Path]:
        place = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=self.scratch))
        place.chmod(0o755)
        try:
            yield place
        finally:
            remove_tree(place)

    # -- builds

    def build(self, release: str, *, verify: bool = False) -> tuple[float, Report]:
        """A build in this process; its seconds and its report."""
        job = self.job(release, verify=verify)
        with self.directory("build") as output:
            began = time.monotonic()
            report = pipeline.build(job, self.workshop, output, Progress())
            seconds = time.monotonic() - began
        if report.status is not BuildStatus.DONE:
            raise InternalError(f"The build of the benchmark ended {report.status}: {report.message}")
        return seconds, report

    def command(self, release: str, taken: Taken | None = None) -> float:
        """A build as the whole command: its seconds; ``taken`` is filled with what it takes, if it is given."""
        with self.directory("command") as place:
            patch, temporary = place / "bench.patch", place / "tmp"
            patch.write_bytes(self.job(release).patches[0].data)
            temporary.mkdir()
            temporary.chmod(0o755)
            words = [SERVER, "build", "--kernel", release, "--patch", patch, "--no-verify", "-o", place / "out.ko"]
            env = {"ELIVEPATCH_CACHE": str(self.cache), "TMPDIR": str(temporary)}
            with watched(temporary, taken) if taken is not None else contextlib.nullcontext():
                return process.run(words, env=env, timeout=1800).seconds

    def forget(self, kernel: PreparedKernel) -> None:
        """Have the kernel without the object that builds keep with it (`build.compiler`), as if it was never asked."""
        remove_tree(kernel.path / "objects" / hashlib.sha256(OBJECT.encode()).hexdigest()[:32])

    # -- measurements

    def cold(self, release: str) -> None:
        """The first build for a kernel, all downloads present."""
        self.progress.step("cold build: nothing prepared")
        taken = Taken()
        self.add(Figure("cold build, no boot test", "s", [self.command(release, taken)], 90.0))
        self.add(*taken.figures("cold build"))
        entry = self.workshop.kernels.store.entries()[-1]
        self.add(Figure("prepared kernel beside the shared source, disk", "MB", [entry.size / MIB], 200.0))

    def warm(self, kernel: PreparedKernel) -> None:
        """Builds for a prepared kernel against the compiler alone, in turns."""
        self.build(kernel.release)  # what the first build of a kernel does for all is no part of it
        line, place = self.saved_command(kernel)
        raw: dict[str, list[float]] = {name: [] for name in ("bare", "new", "kept", "new command", "kept command")}
        for number in range(self.runs):
            self.progress.step(f"warm builds and the bare compiler, turn {number + 1} of {self.runs}")
            raw["bare"].append(self.replay(kernel, line, place))
            self.forget(kernel)
            for name in ("new", "kept"):
                seconds, report = self.build(kernel.release)
                raw[name].append(seconds)
                self.note_phases(name, report)
            self.forget(kernel)
            for name in ("new command", "kept command"):
                raw[name].append(self.command(kernel.release))
        remove_tree(place)
        titles = {
            "new": "warm build, object never seen",
            "kept": "warm build, original of the object kept",
            "new command": "the same as a command, object never seen",
            "kept command": "the same as a command, original kept",
        }
        self.add(Figure("bare replay of the compiler", "s", raw["bare"]))
        for name, title in titles.items():
            ratio = median(raw[name]) / median(raw["bare"])
            ratios = [build / bare for build, bare in zip(raw[name], raw["bare"], strict=True)]
            self.add(
                Figure(title, "s", raw[name], 5.0), Figure(f"{title}, against bare", "x", ratios, 4.0, value=ratio)
            )
        self.forget(kernel)
        taken = Taken()
        self.command(kernel.release, taken)  # apart, since watching takes time as well
        self.add(*taken.figures("warm build"))

    def note_phases(self, name: str, report: Report) -> None:
        for phase, seconds in (report.timings.model_dump(exclude_none=True) if report.timings else {}).items():
            self.phases.setdefault(name, {}).setdefault(phase, []).append(seconds)

    def saved_command(self, kernel: PreparedKernel) -> tuple[str, Path]:
        """The command line that kbuild saved for the object, and the working directory where it can run again."""
        place = Path(tempfile.mkdtemp(prefix="bare.", dir=self.scratch))
        place.chmod(0o755)
        with kernel.sandbox(place) as sandbox:
            kernel.kbuild.objects(sandbox, [OBJECT])
        saved = (place / "upper" / OBJECT).with_name(f".{Path(OBJECT).name}.cmd").read_text().splitlines()[0]
        # as make reads it (make-cmd in scripts/Kbuild.include)
        return saved.partition(" := ")[2].replace("$(pound)", "#").replace("$$", "$"), place

    def replay(self, kernel: PreparedKernel, line: str, place: Path) -> float:
        """Seconds that the saved command takes in the same sandbox on the same tree."""
        (place / "upper" / OBJECT).unlink()
        with kernel.sandbox(place) as sandbox:
            began = time.monotonic()
            sandbox.run(["sh", "-e", "-c", line], env=kernel.environment)
            seconds = time.monotonic() - began
        if not (place / "upper" / OBJECT).exists():
            raise InternalError(f"The saved command made no object: {line[:500]}")
        return seconds

    def boot_tests(self, release: str) -> None:
        """The boot test alone, with a check script."""
        raw: list[float] = []
        for number in range(min(3, self.runs)):
            self.progress.step(f"boot test, turn {number + 1} of {min(3, self.runs)}")
            timings = self.build(release, verify=True)[1].timings
            if timings is None or timings.verify is None:
                raise InternalError("The build of the benchmark had no boot test.")
            raw.append(timings.verify)
        self.add(Figure("boot test", "s", raw, 15.0))

    def server(self, release: str) -> None:
        """A second request that is the same as one that was built."""
        self.progress.step("a running server: the same request again")
        job = self.job(release)
        files = [
            ("request", ("request", job.request.model_dump_json(exclude_none=True).encode(), "application/json")),
            ("patch", ("bench.patch", job.patches[0].data, "text/x-diff")),
        ]
        with self.directory("server") as place, serving(place, self.cache) as url, httpx2.Client(timeout=60) as client:
            build = client.post(f"{url}/builds", files=files)
            build.raise_for_status()
            location = build.json()["id"]
            deadline = time.monotonic() + 300
            while (status := client.get(f"{url}/builds/{location}").json()["status"]) != "done":
                if status in {"refused", "failed", "cancelled"} or time.monotonic() > deadline:
                    raise InternalError(f"The build of the server ended {status}.")
                time.sleep(0.05)
            raw: list[float] = []
            for _ in range(5 * self.runs):
                began = time.monotonic()
                answer = client.post(f"{url}/builds", files=files)
                raw.append((time.monotonic() - began) * 1000)
                if answer.status_code != 200 or answer.json()["id"] != location:
                    raise InternalError(f"The same request was not answered with the same build: {answer.status_code}")
        self.add(
            Figure("identical request to a server, answered", "ms", raw, 50.0),
            Figure("identical request to a server, slowest of all", "ms", raw, value=max(raw)),
        )


@contextlib.contextmanager
def serving(place: Path, cache: Path) -> Generator[str]:
    """A server on a free loopback port with data of its own; gives the address of its API."""
    env = {"ELIVEPATCH_DATA": str(place / "data"), "ELIVEPATCH_CACHE": str(cache), "ELIVEPATCH_PORT": "0"}
    log = place / "server.log"
    with process.started([SERVER, "serve"], log=log, env=env) as running:
        deadline = time.monotonic() + 30
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
            if running.poll() is not None or time.monotonic() > deadline:
                raise InternalError(f"The server did not come up:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield f"{found[0]}{BASE}"


def machine_facts() -> dict[str, object]:
    """What the figures depend on."""
    facts = dict(
        re.findall(r"^(model name|MemTotal)\s*:\s*(.+)$", _read("/proc/cpuinfo") + _read("/proc/meminfo"), re.M)
    )
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": facts.get("model name", "unknown"),
        "memory": facts.get("MemTotal", "unknown"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")


def show(bench: Bench, facts: dict[str, object], release: str) -> None:
    """The table."""
    click.echo(f"\n{release}; {facts['cores']} cores, {facts['processor']}, boot tests with {facts['accelerator']}")
    width = max(len(figure.name) for figure in bench.figures)
    click.echo(f"{'figure':{width}}  {'median':>10}  {'goal':>10}  verdict   from … to")
    for figure in bench.figures:
        goal = shown(figure.goal, figure.unit) if figure.goal is not None else ""
        span = f"{min(figure.raw):.2f} … {max(figure.raw):.2f}, {len(figure.raw)} runs" if len(figure.raw) > 1 else ""
        value = shown(figure.result, figure.unit)
        click.echo(f"{figure.name:{width}}  {value:>10}  {goal:>10}  {figure.verdict:8}  {span}".rstrip())
    for name, phases in bench.phases.items():
        parts = ", ".join(f"{phase} {median(raw):.2f}" for phase, raw in phases.items())
        click.echo(f"phases of a warm build ({'object never seen' if name == 'new' else 'original kept'}), s: {parts}")


@click.command()
@click.option("--kernel", "wanted", metavar="RELEASE", help="By default the newest 6.12 cloud kernel on offer.")
@click.option("--json", "target", type=click.Path(path_type=Path), metavar="FILE", help="Where to write all figures.")
@click.option("--runs", type=click.IntRange(1, 100), default=7, show_default=True, help="Runs that a median is of.")
@click.option("--quick", is_flag=True, help="Three runs, on the kernel that is prepared in the cache; no cold build.")
def main(wanted: str | None, target: Path | None, runs: int, quick: bool) -> None:
    """Measure builds against the bare compiler."""
    progress = Progress(to_terminal(sys.stderr))
    real = server_settings.load().workshop
    real.cache.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".bench.", dir=real.cache))
    scratch.chmod(0o755)
    bench = Bench(real, scratch, 3 if quick else runs, progress)
    try:
        bench.shared_cache()
        with prepared_kernel(wanted, real, progress) as kernel:  # for its downloads, too
            release = kernel.release
            facts = machine_facts() | {"accelerator": machine.accelerator(kernel.vmlinuz, real.cache / "guests")}
        if quick:
            (bench.cache / "kernels").symlink_to(real.cache / "kernels", target_is_directory=True)
        else:
            bench.cold(release)
        measure(bench, release)
    finally:
        remove_tree(scratch)
    show(bench, facts, release)
    if target is not None:
        data = {
            "kernel": release,
            "object": OBJECT,
            "machine": facts,
            "figures": [figure.as_data() for figure in bench.figures],
            "phases": bench.phases,
        }
        target.write_text(json.dumps(data, indent=2) + "\n")


def measure(bench: Bench, release: str) -> None:
    """What is measured on a prepared kernel."""
    with prepared_kernel(release, bench.workshop, bench.progress) as kernel:
        steps: Sequence[Callable[[], None]] = (
            lambda: bench.warm(kernel),
            lambda: bench.boot_tests(release),
            lambda: bench.server(release),
        )
        for step in steps:
            try:
                step()
            except ElivepatchError as error:  # the other figures are still worth having
                bench.progress.step(f"not measured: {error.message}")


if __name__ == "__main__":
    main()
