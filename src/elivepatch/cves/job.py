# SPDX-License-Identifier: GPL-2.0-or-later
"""What a job of the server is: a build, or a plan for the vulnerabilities of a kernel."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from elivepatch import pipeline
from elivepatch.build.store import remove_tree
from elivepatch.cves.fixes import FixSource, open_fixes
from elivepatch.cves.index import Index
from elivepatch.cves.plan import Planner
from elivepatch.errors import ElivepatchError, UnavailableError
from elivepatch.job import Job, request_key
from elivepatch.progress import Progress
from elivepatch.protocol.models import BuildStatus, Report, Timings
from elivepatch.workshop import Workshop


def make(job: Job, workshop: Workshop, output: Path, progress: Progress) -> Report:
    """Make what a job asks for. Whatever the end, the report says it; see `pipeline.build`."""
    if job.request.cves is None:
        return pipeline.build(job, workshop, output, progress)
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix=".plan.", dir=output))
    work.chmod(0o755)
    key = request_key(job, workshop)
    try:
        plan = _planner(workshop).plan(job, work, progress)
    except ElivepatchError as error:
        return pipeline.report_of(error).model_copy(update={"key": key})
    finally:
        remove_tree(work)
    report = Report(
        status=BuildStatus.DONE,
        key=key,
        exit_status=0,
        cves=plan,
        timings=Timings(total=round(time.monotonic() - began, 3)),
    )
    progress.done(f"{BuildStatus.DONE}: {plan.scan.affected} vulnerabilities, {len(plan.patches)} patches")
    return report


def _planner(workshop: Workshop) -> Planner:
    if workshop.cves.index is None:
        raise UnavailableError("This server has no CVE data.", hint="Set 'cve_feed' in its settings.")
    source: FixSource | None = None
    if workshop.cves.stable_git or workshop.cves.stable_http:
        source = open_fixes(workshop.cves.stable_git, workshop.cves.stable_http, workshop.cache)
    return Planner(Index(workshop.cves.index), source, workshop)
