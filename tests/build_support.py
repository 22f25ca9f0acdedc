# SPDX-License-Identifier: GPL-2.0-or-later
"""Patches made from the source of the kernel under test, and builds of them without a VM."""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from elivepatch import pipeline
from elivepatch.build.prepared import PreparedKernel
from elivepatch.job import InputFile, Job
from elivepatch.progress import Event, Progress
from elivepatch.protocol.models import BuildRequest, Report
from elivepatch.workshop import Workshop

LIVEPATCHES = Path(__file__).parent / "data/livepatches"
#: Those with macros that only kpatch's tools know, for kernels up to 6.18.
KPATCH_MACROS = Path(__file__).parent / "data/kpatch-macros"
#: Those with macros of the kernel itself, for 6.19 and later.
KLP_MACROS = Path(__file__).parent / "data/klp-macros"
ENOSPC = 28
ENGINES = ("kpatch", "klp")


def livepatch_file(name: str, engine: str) -> Path:
    """A file of the livepatches: the one for the kernels of an engine, if it needs one of its own."""
    own = LIVEPATCHES / engine / name
    return own if own.exists() else LIVEPATCHES / name


def livepatch_names() -> list[str]:
    """The livepatches that there are for every engine."""
    return sorted(path.stem for path in LIVEPATCHES.glob("*.patch"))


def diff(file: str, old: str, new: str, *, context: int = 3) -> bytes:
    """A unified diff of one file; an empty ``old`` is a file that is new."""
    lines = difflib.unified_diff(
        old.splitlines(keepends=True),
        new.splitlines(keepends=True),
        f"a/{file}" if old else "/dev/null",
        f"b/{file}",
        n=context,
    )
    return "".join(lines).encode()


def change(source: Path, file: str, *replacements: tuple[str, str]) -> bytes:
    """A patch that replaces texts of a file of the kernel, each of which must stand there."""
    old = new = (source / file).read_text()
    for before, after in replacements:
        assert before in new, f"{file} of this kernel does not hold {before!r}: choose another place"
        new = new.replace(before, after, 1)
    return diff(file, old, new)


@dataclass(frozen=True)
class Built:
    """A build that has ended, and what it told."""

    report: Report
    directory: Path
    events: Sequence[Event] = field(repr=False)

    @property
    def module(self) -> bytes:
        assert self.report.module is not None, self.report.message
        return (self.directory / f"{self.report.module.name}.ko").read_bytes()

    @property
    def rules(self) -> set[str]:
        return {finding.rule for finding in self.report.diagnosis}

    @property
    def told(self) -> str:
        """All that the report says in words."""
        texts = [self.report.message or "", self.report.hint or ""]
        texts += [f"{finding.message} {finding.hint or ''}" for finding in self.report.diagnosis]
        return "\n".join(texts)


class Builder:
    """Builds for one kernel, through `pipeline.build`, without a boot test."""

    def __init__(self, workshop: Workshop, kernel: PreparedKernel, directory: Path) -> None:
        self.workshop = workshop
        self.kernel = kernel
        self._directory = directory
        self._numbers = itertools.count()

    @property
    def source(self) -> Path:
        return self.kernel.source

    def change(self, file: str, *replacements: tuple[str, str]) -> bytes:
        return change(self.source, file, *replacements)

    def __call__(
        self, *patches: bytes, config: bytes | None = None, build_id: str | None = None, output: Path | None = None
    ) -> Built:
        request = BuildRequest(kernel=self.kernel.release, build_id=build_id, verify=False)
        files = tuple(InputFile(f"{number}.patch", data) for number, data in enumerate(patches, start=1))
        directory = output or self._directory / f"build-{next(self._numbers)}"
        events: list[Event] = []
        report = pipeline.build(Job(request, files, config=config), self.workshop, directory, Progress(events.append))
        left = [path.name for path in directory.iterdir() if path.name.startswith(".")]
        assert not left, f"the build left its working directory behind: {left}"
        return Built(report, directory, events)


def mounts() -> set[str]:
    """What is mounted here."""
    return set(Path("/proc/self/mountinfo").read_text().splitlines())


def processes_with(marks: Iterable[str]) -> list[str]:
    """The command lines of all processes that hold one of the marks."""
    wanted = list(marks)
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # it has ended
            if any(mark in line for mark in wanted):
                found.append(f"{entry.name} {line}")
    return found
