# SPDX-License-Identifier: GPL-2.0-or-later
"""Which plans for vulnerabilities count as the answer to a request that comes again."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from cve_support import Entry, write_feed
from elivepatch.cves.feed import open_feed
from elivepatch.cves.fixes import GitFixes
from elivepatch.cves.plan import Planner
from elivepatch.job import Job
from elivepatch.progress import Progress
from elivepatch.protocol.cves import CvePlan, CveScan, CveWish
from elivepatch.protocol.models import BuildRequest, BuildStatus, Report
from elivepatch.server.artifacts import ArtifactStore
from elivepatch.server.cve_commands import cve
from elivepatch.server.database import Database
from elivepatch.server.service import Service
from elivepatch.server.settings import load

JOB = Job(BuildRequest(kernel="6.1.0-47-cloud-amd64", cves=CveWish()), ())
SCAN = CveScan(data_date="2026-08-21", source="x", version="6.1", affected=0, fixed_in_branch=0, counts={}, cves=())


@pytest.fixture
def service(tmp_path: Path) -> Generator[Service]:
    settings = load(data=tmp_path / "data", cache=tmp_path / "cache")
    feed = write_feed(tmp_path / "feed", {"CVE-2026-1000": Entry(["5.0:0:7.1:0"])})
    settings.cve_index.update(open_feed(str(feed), tmp_path), Progress())
    database = Database(f"sqlite:///{tmp_path}/db.sqlite")
    database.migrate()
    engine = SimpleNamespace(wake=lambda: None)
    yield Service(settings, database, ArtifactStore(tmp_path / "artifacts"), engine)  # pyright: ignore[reportArgumentType]
    database.close()


@pytest.mark.parametrize(
    ("incomplete", "seconds", "again"), [(False, 3600, False), (True, 1, False), (True, 3600, True)]
)
def test_a_plan_of_which_something_could_not_be_tried_is_made_again(
    service: Service, *, incomplete: bool, seconds: int, again: bool
) -> None:
    first = service.submit(JOB)
    report = Report(
        status=BuildStatus.DONE, key=first.key, exit_status=0, cves=CvePlan(scan=SCAN, incomplete=incomplete)
    )
    service.database._update(  # pyright: ignore[reportPrivateUsage]
        first.id,
        [BuildStatus.QUEUED],
        status=BuildStatus.DONE.value,
        finished=time.time() - seconds,
        report=report.dump(),
    )
    second = service.submit(JOB)
    assert (second.id != first.id) == again
    if again:
        assert second.state is BuildStatus.QUEUED
        assert "asked for again" in (service.get(first.id).report or {})["message"]


def test_a_scan_of_a_kernel_asks_the_mirror_as_a_plan_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, CveWish | None]] = []

    def plan(self: Planner, job: Job, work: Path, progress: Progress) -> CvePlan:
        del work, progress
        asked.append((self.source, job.request.cves))
        return CvePlan(scan=SCAN)

    monkeypatch.setattr(Planner, "plan", plan)
    monkeypatch.setenv("ELIVEPATCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ELIVEPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ELIVEPATCH_STABLE_GIT", "https://git.example.org/stable")
    modules = tmp_path / "modules"
    modules.write_text("xfs 1 0 - Live 0x0\n")
    done = CliRunner().invoke(cve, ["scan", "--kernel", "6.1.0-47-cloud-amd64", "--loaded", str(modules), "--json"])
    assert (done.exit_code, json.loads(done.stdout)["data_date"]) == (0, "2026-08-21"), done.output
    ((source, wish),) = asked
    assert isinstance(source, GitFixes)
    assert wish == CveWish(loaded=("xfs",), fixes=False)
