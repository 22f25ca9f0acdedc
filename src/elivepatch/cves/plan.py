# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be done about the vulnerabilities of a kernel: the scan, the trial of each fix, and all together."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from elivepatch.cves.fixes import Fix, FixSource, GitFixes
from elivepatch.cves.in_force import InForce
from elivepatch.cves.index import Index, OpenCve
from elivepatch.cves.kernel import upstream_version, vendor_fixes
from elivepatch.cves.reach import Contents
from elivepatch.cves.scan import FilesOf, scan
from elivepatch.cves.trials import Bench, Trial
from elivepatch.cves.versions import KernelVersion
from elivepatch.errors import UnavailableError
from elivepatch.job import Job, wanted_kernel
from elivepatch.progress import Progress
from elivepatch.protocol.cves import CveEntry, CvePlan, CveScan, CveState, CveWish, FixTrial, PlannedPatch
from elivepatch.protocol.models import Report
from elivepatch.selection import hold_kernel
from elivepatch.workshop import Workshop

#: Outcomes of a fix with which its vulnerability is closed.
_GOOD = {"works", "contained", "in-force"}


@dataclass(frozen=True)
class Planner:
    """Makes plans. ``source`` None: nothing is tried, the plan is the scan. ``joint`` False: not all fixes together."""

    index: Index
    source: FixSource | None
    workshop: Workshop
    joint: bool = True

    def plan(self, job: Job, work: Path, progress: Progress) -> CvePlan:
        """The plan for the kernel of a job, whose patches are those in force; trials are made below ``work``.

        Raises what preparing a kernel does, and UnavailableError without an index.
        """
        wish = job.request.cves or CveWish()
        for name in wish.only:
            self.index.get(name)  # one that is not known is an error, not an empty plan
        progress.phase("preparing", f"preparing {job.request.kernel}")
        with ExitStack() as held:
            wanted = wanted_kernel(job)
            if job.request.image is not None and job.image is None:
                image = held.enter_context(self.workshop.images.use(job.request.image))
                wanted = replace(wanted, image=image)
            kernel, _ = held.enter_context(hold_kernel(wanted, self.workshop, progress))
            version = upstream_version(kernel)
            progress.step(f"which vulnerabilities {kernel.release} has, made from {version}")
            vendor = vendor_fixes(kernel, wanted, self.workshop, progress)
            contents = Contents(kernel)
            files_of = self._files_of(version)

            def look(closed: Collection[str]) -> CveScan:
                return scan(
                    self.index,
                    version,
                    vendor=vendor,
                    contents=contents,
                    loaded=wish.loaded,
                    closed=closed,
                    files_of=files_of,
                )

            found = look(wish.closed)
            bench = None
            if self.source is not None:
                bench = Bench(kernel, version, job, self.source, self.workshop, work, progress)
            if lacking := _lacking(found, InForce.of(job.patches), bench):
                found = _noted(look(set(wish.closed) - lacking), lacking)
            chosen = _chosen(found.cves, wish)
            if self.source is None and wish.fixes:
                return CvePlan(scan=found, problem="This server has no place that fixes come from (stable_git).")
            if bench is None or not wish.fixes or not chosen:
                return CvePlan(scan=found)
            progress.phase("building", f"trying the fixes of {len(chosen)} vulnerabilities")
            return self._tried(found, chosen, bench)

    def _files_of(self, version: KernelVersion) -> FilesOf | None:
        """How to learn the files of the branch's own fixes; None where there is no mirror to ask."""
        source = self.source
        if not isinstance(source, GitFixes) or not source.history.repository.mirror.exists():
            return None
        commits = [fix.fixed_commit for cve in self.index.affecting(version) for fix in cve.fixes if fix.fixed_commit]
        known = source.history.files(commits)

        def files(cve: OpenCve) -> Sequence[str]:
            mine = [known.get(fix.fixed_commit or "") for fix in cve.fixes]
            return tuple(dict.fromkeys(file for names in mine if names for file in names))

        return files

    def _tried(self, found: CveScan, chosen: Sequence[CveEntry], bench: Bench) -> CvePlan:
        wanted: dict[str, list[str]] = {}
        for entry in chosen:
            for commit in _fixing(entry):
                wanted.setdefault(commit, []).append(entry.id)
        trials = bench.try_all(wanted)
        problem: str | None = None
        while True:
            good = [entry for entry in chosen if _works(entry, trials)]
            bench.keep_only({commit for entry in good for commit in _commits(entry, trials)})
            before = set(bench.dropped)
            try:
                if self.joint:
                    bench.together()
            except UnavailableError as error:
                problem = f"All patches together could not be tried: {error.message}"
            for commit in bench.dropped.keys() - before:
                _refuse(trials, commit, bench.dropped[commit])
            if not bench.dropped.keys() - before:
                break
        outcomes = {entry.id: _outcome(entry, trials) for entry in chosen}
        works = {name for name, (state, trial) in outcomes.items() if state == "affected" and trial.state == "works"}
        planned: list[PlannedPatch] = []
        for fix in bench.accepted:
            mine = [cve for cve in wanted.get(fix.commit, ()) if cve in works]
            planned.append(_planned(fix, mine, {patch.name for patch in planned}))
        digests = {one.commit: one.sha256 for one in planned}
        entries = [
            _with_trial(entry, outcomes[entry.id], trials, digests) if entry.id in outcomes else entry
            for entry in found.cves
        ]
        counts = dict(Counter(entry.state for entry in entries))
        return CvePlan(
            scan=found.model_copy(update={"cves": tuple(entries), "counts": counts}),
            patches=tuple(planned),
            problem=problem,
            incomplete=problem is not None or any(trial.passing for trial in trials.values()),
        )


def _lacking(found: CveScan, in_force: InForce, bench: Bench | None) -> set[str]:
    """What is called closed although a fix of it is neither in force nor in the source of the kernel."""
    return {
        name
        for name, missing in in_force.lacking(found.cves).items()
        if bench is None or not all(commit is not None and bench.has(commit) for commit in missing)
    }


def _noted(found: CveScan, lacking: Collection[str]) -> CveScan:
    """A scan that says of these why they are not closed any more."""
    said = "a livepatch in force has not all of its fixes"
    entries = tuple(
        entry.model_copy(update={"why": f"{said}; {entry.why}" if entry.why else said})
        if entry.id in lacking
        else entry
        for entry in found.cves
    )
    return found.model_copy(update={"cves": entries})


def _chosen(entries: Iterable[CveEntry], wish: CveWish) -> list[CveEntry]:
    """The vulnerabilities whose fixes are tried: affected, fixed in the branch, and asked for."""
    only = set(wish.only)
    return [
        entry
        for entry in entries
        if entry.state == "affected"
        and entry.fixes
        and (not only or entry.id in only)
        and (wish.min_score is None or entry.score is None or entry.score >= wish.min_score)
    ]


def _refuse(trials: dict[str, Trial], commit: str, report: Report) -> None:
    """Note that a fix does not go together with the others; so does none that needs it."""
    message = f"it does not go together with the others: {report.message}"
    for one, trial in trials.items():
        if one == commit or any(need.commit == commit for need in trial.needs):
            trials[one] = replace(trial, state="refused", message=message, diagnosis=report.diagnosis, needs=())


def _works(entry: CveEntry, trials: Mapping[str, Trial]) -> bool:
    return all(commit in trials and trials[commit].state in _GOOD for commit in _fixing(entry))


def _fixing(entry: CveEntry) -> list[str]:
    return [fix.commit for fix in entry.fixes if fix.commit is not None]


def _commits(entry: CveEntry, trials: Mapping[str, Trial]) -> Iterable[str]:
    """The commits that fix a vulnerability, and those that they need."""
    for commit in _fixing(entry):
        if commit in trials:
            yield from (need.commit for need in trials[commit].needs)
            yield commit


def _outcome(entry: CveEntry, trials: Mapping[str, Trial]) -> tuple[CveState, FixTrial]:
    """What came of a vulnerability: of all its fixes together."""
    mine = [trials[commit] for commit in _fixing(entry) if commit in trials]
    if len(mine) < len(entry.fixes):
        return "affected", FixTrial(state="unavailable", message="the feed names no commit for one of its fixes")
    if all(trial.state == "contained" for trial in mine):
        return "vendor-fixed", FixTrial(state="not-tried", message=mine[0].message)
    if all(trial.state in {"contained", "in-force"} for trial in mine):
        return "closed", FixTrial(state="not-tried", message="a livepatch in force has it already")
    bad = next((trial for trial in mine if trial.state not in _GOOD), None)
    if bad is not None:
        state = "refused" if bad.state == "refused" else "unavailable"
        return "affected", FixTrial(
            state=state, predicted=bad.predicted, message=bad.message, diagnosis=bad.diagnosis, needs=_ids(bad.needs)
        )
    needs = tuple(need for trial in mine for need in _ids(trial.needs))
    return "affected", FixTrial(state="works", predicted=all(trial.predicted for trial in mine), needs=needs)


def _ids(fixes: Sequence[Fix]) -> tuple[str, ...]:
    return tuple(fix.commit for fix in fixes)


def _with_trial(
    entry: CveEntry, outcome: tuple[CveState, FixTrial], trials: Mapping[str, Trial], digests: Mapping[str, str]
) -> CveEntry:
    state, trial = outcome
    if trial.state == "works":
        mine = dict.fromkeys(commit for commit in _commits(entry, trials) if commit in digests)
        ordered = [commit for commit in digests if commit in mine]
        trial = trial.model_copy(update={"patches": tuple(digests[commit] for commit in ordered)})
    why = trial.message if state in {"vendor-fixed", "closed"} else entry.why
    return entry.model_copy(update={"state": state, "why": why, "trial": trial})


def _planned(fix: Fix, cves: Sequence[str], taken: Collection[str]) -> PlannedPatch:
    """A patch as the plan has it; named after its first vulnerability, which may have other patches too."""
    data = fix.patch(cves)
    name = f"{cves[0] if cves else fix.commit[:12]}.patch"
    return PlannedPatch(
        name=name if name not in taken else f"{name.removesuffix('.patch')}-{fix.commit[:12]}.patch",
        sha256=hashlib.sha256(data).hexdigest(),
        commit=fix.commit,
        subject=fix.subject,
        text=data.decode(),
        cves=tuple(cves),
    )
