# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel of two files on which fixes are tried: everything but the build itself is real."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from elivepatch.build.prepared import PreparedKernel
from elivepatch.cves.fixes import Fix, make_fix
from elivepatch.cves.trials import Bench, BuildFunction
from elivepatch.cves.versions import KernelVersion, parse_version
from elivepatch.errors import UnavailableError
from elivepatch.job import Job
from elivepatch.progress import Progress
from elivepatch.protocol.models import BuildRequest, BuildStatus, Report
from elivepatch.toolchains.roots import Root
from elivepatch.workshop import Workshop

LINES = [f"int v{number} = {number};" for number in range(40)]


def source(lines: Sequence[str]) -> str:
    body = "\n".join(f"\t{line.replace('int ', 'use(').replace(' = ', ', ').replace(';', ');')}" for line in lines)
    return f"void use(int, int);\nvoid function(void)\n{{\n{body}\n}}\n".replace("v", "0")


def change(path: str, old: str, new: str, commit: str, subject: str = "a fix") -> Fix:
    diff = "".join(
        difflib.unified_diff(old.splitlines(keepends=True), new.splitlines(keepends=True), f"a/{path}", f"b/{path}")
    )
    return make_fix(commit, subject, f"diff --git a/{path} b/{path}\n{diff}".encode())


@dataclass
class Branch:
    """A branch as a list of fixes, the oldest first."""

    fixes: list[Fix]
    brings: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    history: bool = True

    def update(self, progress: Progress) -> None:
        del progress

    def get(self, commit: str, progress: Progress) -> Fix:
        del progress
        for fix in self.fixes:
            if fix.commit == commit:
                return fix
        raise UnavailableError(f"The commit {commit[:12]} is not here.")

    def order(self, version: KernelVersion, commits: Sequence[str]) -> list[str]:
        del version
        known = [fix.commit for fix in self.fixes if fix.commit in commits]
        return [*known, *(commit for commit in commits if commit not in known)]

    def before(self, version: KernelVersion, commit: str, files: Sequence[str]) -> list[str] | None:
        del version
        if not self.history:
            return None
        commits = [fix.commit for fix in self.fixes]
        earlier = self.fixes[: commits.index(commit)]
        return [fix.commit for fix in earlier if set(fix.files) & set(files)]

    def introducing(self, version: KernelVersion, commit: str, names: Sequence[str]) -> list[str]:
        del version, commit
        return [one for name in names for one in self.brings.get(name, [])]


@dataclass
class Machine:
    """Builds everything but what it is told not to; keeps what it was asked for."""

    refuses: dict[str, Report] = field(default_factory=dict[str, Report])
    together: set[frozenset[str]] = field(default_factory=set[frozenset[str]])
    asked: list[tuple[str, ...]] = field(default_factory=list[tuple[str, ...]])

    def build(self, job: Job, workshop: Workshop, place: Path, progress: Progress) -> Report:
        del workshop, place, progress
        names = tuple(file.name.removesuffix(".patch") for file in job.patches)
        self.asked.append(names)
        for name, report in self.refuses.items():
            if name in names and name == names[-1]:
                return report
        if any(pair <= set(names) for pair in self.together):
            return refused("cannot-livepatch", "these two do not go together")
        return Report(status=BuildStatus.DONE, key="k", exit_status=0)


def refused(code: str, message: str) -> Report:
    return Report(status=BuildStatus.REFUSED, key="k", exit_status=3, error=code, message=message)


def ends_with(*reports: Report) -> BuildFunction:
    """Builds that end so, one after the other; the last of them for ever."""
    left = list(reports)

    def build(job: Job, workshop: Workshop, place: Path, progress: Progress) -> Report:
        del job, workshop, place, progress
        return left.pop(0) if len(left) > 1 else left[0]

    return build


def name(letter: str) -> str:
    return letter * 40


BASE = source(LINES)


def edited(*numbers: int) -> str:
    return source([line.replace("= ", "= 1") if at in numbers else line for at, line in enumerate(LINES)])


def make_bench(tmp_path: Path) -> Bench:
    """A bench of a kernel of two files, whose builds all succeed."""
    tree = tmp_path / "source"
    for path in ("kernel/a.c", "kernel/b.c"):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(BASE)
    work = tmp_path / "work"
    work.mkdir()
    kernel = PreparedKernel(
        path=tmp_path,
        source=tree,
        root=Root("trixie", tmp_path, "d" * 64, 0, 0.0, None),
        release="6.1.170",
        origin="test",
        build_id="",
        config_sha256="",
        compiler="",
        variables={},
        environment={},
        sizes={},
    )
    job = Job(BuildRequest(kernel="6.1.170"), ())
    machine = Machine()
    return Bench(
        kernel, parse_version("6.1.170"), job, Branch([]), Workshop(tmp_path / "cache"), work, Progress(), machine.build
    )
