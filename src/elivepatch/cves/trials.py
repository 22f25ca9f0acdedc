# SPDX-License-Identifier: GPL-2.0-or-later
"""Which fixes can be livepatches of a kernel: each is tried by building it, on top of those before it that it needs.

Fixes are taken in the order of the branch. One whose files none of the fixes before it touched is built alone, else
with those. One that does not apply is tried with the commits of the branch that changed its files before it. What works
is kept, what does not is told with its reason and left out: a fix that fails never takes another with it.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from elivepatch import pipeline
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.store import remove_tree
from elivepatch.cves.fixes import Fix, FixSource, why_not
from elivepatch.cves.in_force import InForce
from elivepatch.cves.versions import KernelVersion
from elivepatch.errors import (
    BootTestFailedError,
    CancelledError,
    Diagnosis,
    DoesNotApplyError,
    DoesNotCompileError,
    DownloadFailedError,
    ElivepatchError,
    NothingToPatchError,
    UnavailableError,
)
from elivepatch.job import InputFile, Job, request_key
from elivepatch.patches import doctor
from elivepatch.patches.apply import apply_series
from elivepatch.patches.series import parse_series
from elivepatch.patches.tree import Tree
from elivepatch.process import run
from elivepatch.progress import Progress, Sink
from elivepatch.protocol.models import BuildStatus, Report
from elivepatch.workshop import Workshop

#: Commits that a fix may need before it.
_NEEDS = 8
#: A name as gcc writes it in its messages.
_QUOTED = re.compile(r"[\u2018']([A-Za-z_]\w{2,})[\u2019']")
BuildFunction = Callable[[Job, Workshop, Path, Progress], Report]


@dataclass(frozen=True)
class Trial:
    """What came of a fix.

    ``state``: ``works``, ``refused`` (no livepatch can be made of it), ``unavailable`` (it cannot be had, or does not
    apply), ``contained`` (the source of the kernel has it already). ``predicted`` is what the doctor said of it before
    anything was built. ``needs`` are commits that go before it. ``passing`` says that it may end
    otherwise another time.
    """

    state: str
    fix: Fix | None = None
    predicted: bool | None = None
    message: str | None = None
    diagnosis: tuple[Diagnosis, ...] = ()
    needs: tuple[Fix, ...] = ()
    passing: bool = False


@dataclass
class Bench:
    """Where fixes of one kernel are tried. ``job`` says for which kernel, and has the patches that are in force."""

    kernel: PreparedKernel
    version: KernelVersion
    job: Job
    source: FixSource
    workshop: Workshop
    work: Path
    progress: Progress
    build: BuildFunction = pipeline.build
    accepted: list[Fix] = field(default_factory=list[Fix])
    dropped: dict[str, Report] = field(default_factory=dict[str, Report])

    def try_all(self, wanted: Mapping[str, Sequence[str]]) -> dict[str, Trial]:
        """Try the fixes, which are commits with the vulnerabilities that they fix. Each has an outcome."""
        found: dict[str, Trial] = {}
        ordered = self.source.order(self.version, list(wanted))
        for number, commit in enumerate(ordered, start=1):
            name = ", ".join(wanted[commit])
            self.progress.step(f"fix {number} of {len(ordered)}: {name} ({commit[:12]})", number / len(ordered))
            found[commit] = self._try(commit)
            self.progress.step(f"{name}: {found[commit].state} {found[commit].message or ''}".rstrip())
        return found

    def _try(self, commit: str) -> Trial:
        try:
            fix = self.source.get(commit, self.progress)
        except CancelledError:
            raise
        except NothingToPatchError as error:
            return Trial("refused", message=why_not(error), diagnosis=error.as_diagnosis(), predicted=False)
        except ElivepatchError as error:
            return Trial("unavailable", message=why_not(error), passing=isinstance(error, DownloadFailedError))
        if any(known.commit == commit for known in self.accepted):
            return Trial("works", fix, predicted=True)
        if self._contained(fix):
            return Trial("contained", fix, message="the source of this kernel has it already")
        if commit in InForce.of(self.job.patches).commits or (self.job.patches and self._contained(fix, in_force=True)):
            return Trial("in-force", fix, message="a livepatch in force has it already")
        try:
            predicted, diagnosis = self._examine((fix,))
            needs: tuple[Fix, ...] = ()
        except DoesNotApplyError as error:
            needed = self._needs(fix)
            if needed is None:
                return Trial("unavailable", fix, message=why_not(error), diagnosis=error.as_diagnosis())
            needs = needed
            predicted, diagnosis = self._examine((*needs, fix))
        except CancelledError:
            raise
        except ElivepatchError as error:
            return Trial("refused", fix, predicted=False, message=why_not(error), diagnosis=error.as_diagnosis())
        report = self._build([*self._below((*needs, fix)), *needs, fix])
        if report.error == DoesNotCompileError.code and (more := self._lacking(fix, needs, report)):
            needs = (*more, *needs)
            report = self._build([*self._below((*needs, fix)), *needs, fix])
        if report.status is BuildStatus.FAILED:
            message = f"it could not be tried: {report.message}"
            return Trial("unavailable", fix, predicted, message, report.diagnosis, passing=True)
        if report.status is not BuildStatus.DONE:
            return Trial("refused", fix, predicted, report.message, report.diagnosis or diagnosis, needs)
        self.accepted += [*needs, fix]
        return Trial("works", fix, predicted, needs=needs)

    def has(self, commit: str) -> bool:
        """Whether the source of the kernel has a commit; False where that cannot be told."""
        try:
            return self._contained(self.source.get(commit, self.progress))
        except CancelledError:
            raise
        except ElivepatchError:
            return False

    @property
    def verify(self) -> bool:
        """Whether all of it together is tried in a VM, as the request says."""
        return self.job.request.verify

    # -- whether it applies

    def _below(self, fixes: Sequence[Fix]) -> list[Fix]:
        """The accepted fixes that these are on top of: all that share files with them, directly or not."""
        files = {file for fix in fixes for file in fix.files}
        below: list[Fix] = []
        for fix in reversed(self.accepted):
            if files & set(fix.files):
                below.insert(0, fix)
                files |= set(fix.files)
        return below

    def _inputs(self, fixes: Sequence[Fix]) -> list[tuple[str, bytes]]:
        return [(file.name, file.data) for file in self.job.patches] + [
            (f"{fix.commit[:12]}.patch", fix.patch(())) for fix in fixes
        ]

    def _examine(self, fixes: Sequence[Fix]) -> tuple[bool, tuple[Diagnosis, ...]]:
        """What the doctor says: whether it may be possible, and the findings. Raises DoesNotApplyError."""
        tree = Tree(self.kernel.source)
        inputs = self._inputs([*self._below(fixes), *fixes])
        series = parse_series(inputs, exists=tree.exists, patches_limit=len(inputs))
        with tempfile.TemporaryDirectory(prefix="examine.", dir=self.work) as scratch:
            applied = apply_series(series, self.kernel.source, Path(scratch))
            examination = doctor.examine(doctor.changes_of(applied))
        possible = bool(examination.code) and not any(one.severity == "error" for one in examination.findings)
        return possible, tuple(examination.findings)

    def _contained(self, fix: Fix, *, in_force: bool = False) -> bool:
        """Whether the source of the kernel has the change already: whether it can be taken back from there.

        With ``in_force`` it is the source with the patches that are in force.
        """
        with tempfile.TemporaryDirectory(prefix="contained.", dir=self.work) as scratch:
            place = Path(scratch)
            tree = Tree(self.kernel.source)
            if in_force:
                inputs = self._inputs(())
                series = parse_series(inputs, exists=tree.exists, patches_limit=len(inputs))
                place = apply_series(series, self.kernel.source, place).patched
            for file in fix.files:
                copy = place / file
                found = tree.read(file) if not copy.exists() else None
                if found is not None:
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(found.data)
            words = ("git", "apply", "--check", "--reverse", "-p1", "-")
            environment = {"GIT_CEILING_DIRECTORIES": str(self.work), "GIT_CONFIG_GLOBAL": "/dev/null"}
            if run(words, cwd=place, stdin=fix.change, check=False, env=environment).returncode != 0:
                return False
            # git finds places by their lines: what can still be applied elsewhere in the file is not there as a whole
            forward = [word for word in words if word != "--reverse"]
            return run(forward, cwd=place, stdin=fix.change, check=False, env=environment).returncode != 0

    def _needs(self, fix: Fix) -> tuple[Fix, ...] | None:
        """The commits of the branch that a fix needs to apply; None where these are not known, or too many."""
        commits = self.source.before(self.version, fix.commit, fix.files)
        if commits is None:
            return None
        have = {known.commit for known in self.accepted}
        earlier: list[Fix] = []
        for commit in commits:
            try:
                one = self.source.get(commit, self.progress)
            except CancelledError:
                raise
            except ElivepatchError:
                continue
            if commit not in have and not self._contained(one):
                earlier.append(one)
        # the latest ones first: most fixes need the one before them and no more
        for count in range(1, min(len(earlier), _NEEDS) + 1):
            needed = tuple(earlier[-count:])
            try:
                self._examine((*needed, fix))
            except CancelledError:
                raise
            except ElivepatchError:
                continue
            return needed
        return None

    def _lacking(self, fix: Fix, needs: Sequence[Fix], report: Report) -> tuple[Fix, ...]:
        """The commits that bring what the compiler misses, if with them the fix still applies."""
        said = "\n".join([report.message or "", *(finding.message for finding in report.diagnosis)])
        names = sorted(set(_QUOTED.findall(said)))[:_NEEDS]
        have = {known.commit for known in (*self.accepted, *needs)}
        commits = [one for one in self.source.introducing(self.version, fix.commit, names) if one not in have]
        if not commits or len(commits) > _NEEDS:
            return ()
        try:
            found = tuple(self.source.get(commit, self.progress) for commit in commits)
            self._examine((*found, *needs, fix))
        except CancelledError:
            raise
        except ElivepatchError:
            return ()
        return found

    # -- whether it can be built

    def _build(self, fixes: Sequence[Fix], *, verify: bool = False) -> Report:
        """Build fixes together on what is in force; the outcome of a build that was made before is remembered."""
        request = self.job.request.model_copy(update={"verify": verify, "cves": None})
        files = tuple(InputFile(name, data) for name, data in self._inputs(fixes))
        job = replace(self.job, request=request, patches=files)
        # the name of a kernel may mean another tree tomorrow
        identity = (self.kernel.build_id, self.kernel.config_sha256, str(self.kernel.source))
        key = hashlib.sha256("\n".join([request_key(job, self.workshop), *identity]).encode()).hexdigest()
        kept = self.workshop.cache / "cves/trials" / f"{key}.json"
        if (known := _read(kept)) is not None:
            return known
        place = Path(tempfile.mkdtemp(prefix="trial.", dir=self.work))
        place.chmod(0o755)
        try:
            report = self.build(job, self.workshop, place, Progress(_quietly(self.progress)))
        finally:
            remove_tree(place)
        if report.status is BuildStatus.CANCELLED:
            raise CancelledError(report.message)
        # a boot test can fail for what else the machine does: that is not remembered
        if report.status is BuildStatus.DONE or (
            report.status is BuildStatus.REFUSED and report.exit_status != BootTestFailedError.exit_status
        ):
            _keep(kept, report)
        return report

    def keep_only(self, commits: Collection[str]) -> None:
        """Take the fixes out that nobody needs, unless others are on top of them."""
        kept: list[Fix] = []
        for fix in self.accepted:
            if fix.commit in commits:
                try:
                    self._examine_on(kept, fix)
                except CancelledError:
                    raise
                except ElivepatchError:
                    return
                kept.append(fix)
        self.accepted = kept

    def together(self) -> Report | None:
        """Build all that was accepted together, and try it in a VM. What spoils it is taken out of ``accepted``."""
        while self.accepted:
            self.progress.step(f"all {len(self.accepted)} patches together")
            report = self._build(self.accepted, verify=self.verify)
            if report.exit_status == BootTestFailedError.exit_status:
                self.progress.step(f"once more, for it may be the machine: {report.message}")
                report = self._build(self.accepted, verify=self.verify)
            if report.status is BuildStatus.DONE:
                return report
            if report.status is not BuildStatus.REFUSED:
                raise UnavailableError(report.message, hint=report.hint, diagnosis=report.diagnosis)
            self.progress.step(f"they do not go together: {report.message}")
            suspect = self._suspect(report)
            self._drop(suspect if suspect is not None else self._first_bad(), report)
        return None

    def _suspect(self, report: Report) -> int | None:
        """The accepted fix that the findings are most likely about, if without it all is well.

        They name a file that it touches, or a module (as a boot test does that cannot load one).
        """
        errors = [finding for finding in report.diagnosis if finding.severity == "error"]
        files = {finding.file for finding in errors if finding.file}
        said = set(re.findall(r"\w+", " ".join([report.message or "", *(finding.message for finding in errors)])))
        places = {name: self.kernel.module_place(name) for name in self.kernel.modules if name in said}
        likely = [(_likeness(fix, files, places), at) for at, fix in enumerate(self.accepted)]
        (_, likeness), index = max(((bool(one), one), at) for one, at in likely)
        if not likeness or len(self.accepted) == 1:
            return None
        rest = [fix for at, fix in enumerate(self.accepted) if at != index]
        return index if self._build(rest, verify=self.verify).status is BuildStatus.DONE else None

    def _first_bad(self) -> int:
        """Which of the accepted fixes is the first with which they cannot be built any more."""
        good, bad = 0, len(self.accepted)
        while bad - good > 1:
            middle = (good + bad) // 2
            report = self._build(self.accepted[:middle], verify=self.verify)
            if report.status is BuildStatus.FAILED:
                raise UnavailableError(report.message, hint=report.hint, diagnosis=report.diagnosis)
            done = report.status is BuildStatus.DONE
            good, bad = (middle, bad) if done else (good, middle)
        return bad - 1

    def _drop(self, index: int, report: Report) -> None:
        gone = self.accepted.pop(index)
        self.progress.step(f"{gone.commit[:12]} does not go together with the others: {report.message}")
        self.dropped[gone.commit] = report
        # what was built on top of it may not apply any more
        kept: list[Fix] = []
        for fix in self.accepted:
            try:
                self._examine_on(kept, fix)
            except CancelledError:
                raise
            except ElivepatchError:
                self.dropped[fix.commit] = report
                continue
            kept.append(fix)
        self.accepted = kept

    def _examine_on(self, kept: list[Fix], fix: Fix) -> None:
        held, self.accepted = self.accepted, kept
        try:
            self._examine((fix,))
        finally:
            self.accepted = held


def _quietly(progress: Progress) -> Sink:
    """What a trial tells is for the log: the phases are those of the whole."""
    return lambda event: progress.log(event.message)


def _read(path: Path) -> Report | None:
    try:
        return Report.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _keep(path: Path, report: Report) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    aside.write_text(report.model_dump_json(exclude_none=True))
    aside.replace(path)


def _likeness(fix: Fix, files: Collection[str], places: Mapping[str, str]) -> int:
    """How much a fix looks like what is wrong: with those files, or with the modules that lie in those places."""
    score = 3 * len(set(files) & set(fix.files))
    for module, place in places.items():
        words = set(module.split("_"))
        near = [PurePosixPath(file) for file in fix.files if file.startswith(f"{place}/")]
        score += max((1 + len(words & set(re.split(r"[-_]", path.stem))) for path in near), default=0)
    return score
