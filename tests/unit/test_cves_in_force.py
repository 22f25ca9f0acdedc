# SPDX-License-Identifier: GPL-2.0-or-later
"""What is recorded as closed stays closed only while the patches in force have all fixes that the data name."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cve_bench import BASE, Branch, Machine, change, edited, make_bench, name
from cve_support import Entry, write_feed
from elivepatch.build.prepared import PreparedKernel
from elivepatch.cves import plan as plan_module
from elivepatch.cves.feed import open_feed
from elivepatch.cves.fixes import Fix, FixSource
from elivepatch.cves.in_force import InForce
from elivepatch.cves.index import Index
from elivepatch.cves.plan import Planner
from elivepatch.cves.reach import FilePlace
from elivepatch.cves.trials import Bench
from elivepatch.cves.vendor import VendorFixes
from elivepatch.cves.versions import KernelVersion
from elivepatch.errors import DownloadFailedError
from elivepatch.job import InputFile
from elivepatch.progress import Progress
from elivepatch.protocol.cves import CvePlan, CveWish

NAME = "CVE-2026-1000"
FIRST = change("kernel/a.c", BASE, edited(3), name("a"))
SECOND = change("kernel/b.c", BASE, edited(3), name("b"))
OLD = [f"5.0:{name('d')}:6.1.175:{name('a')}"]
NEW = [*OLD, f"5.0:{name('d')}:6.1.177:{name('b')}"]


@dataclass
class Everywhere:
    """All files are in vmlinux."""

    kernel: PreparedKernel

    def place(self, file: str) -> FilePlace:
        return FilePlace(file, "contained", ("vmlinux",), "in vmlinux")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = make_bench(tmp_path)

    @contextlib.contextmanager
    def held(*_: object) -> Generator[tuple[PreparedKernel, None]]:
        yield bench.kernel, None

    def version_of(_: PreparedKernel) -> KernelVersion:
        return bench.version

    def no_vendor(*_: object) -> VendorFixes:
        return VendorFixes()

    def made(*words: object) -> Bench:
        kernel, version, job, source, workshop, work, progress = words
        return Bench(kernel, version, job, source, workshop, work, progress, Machine().build)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(plan_module, "hold_kernel", held)
    monkeypatch.setattr(plan_module, "upstream_version", version_of)
    monkeypatch.setattr(plan_module, "vendor_fixes", no_vendor)
    monkeypatch.setattr(plan_module, "Contents", Everywhere)
    monkeypatch.setattr(plan_module, "Bench", made)
    return bench


def planned(
    bench: Bench,
    dyads: Sequence[str],
    source: FixSource | None,
    patches: Sequence[InputFile] = (),
    *,
    closed: Sequence[str] = (NAME,),
    fixes: bool = True,
) -> CvePlan:
    index = Index(bench.work / "index.sqlite")
    feed = write_feed(bench.work / "feed", {NAME: Entry(dyads, files=("kernel/a.c",))})
    index.update(open_feed(str(feed), bench.work), Progress())
    wish = CveWish(closed=tuple(closed), fixes=fixes)
    job = replace(bench.job, request=bench.job.request.model_copy(update={"cves": wish}), patches=tuple(patches))
    return Planner(index, source, bench.workshop).plan(job, bench.work, Progress())


def state(found: CvePlan) -> str:
    (entry,) = found.scan.cves
    return entry.state


def patch(fix: Fix, *cves: str) -> InputFile:
    return InputFile("x.patch", fix.patch(cves))


def test_what_a_plan_closed_stays_closed(bench: Bench) -> None:
    found = planned(bench, OLD, Branch([FIRST, SECOND]), [patch(FIRST, NAME)])
    assert (state(found), found.patches) == ("closed", ())


def test_a_second_fix_of_the_same_name_opens_it_again_and_is_brought(bench: Bench) -> None:
    found = planned(bench, NEW, Branch([FIRST, SECOND]), [patch(FIRST, NAME)])
    (entry,) = found.scan.cves
    assert (entry.state, entry.trial and entry.trial.state) == ("affected", "works")
    assert entry.why == "a livepatch in force has not all of its fixes; kernel/a.c: in vmlinux"
    assert [one.commit for one in found.patches] == [name("b")]
    both = [patch(FIRST, NAME), InputFile("y.patch", found.patches[0].text.encode())]
    assert state(planned(bench, NEW, Branch([FIRST, SECOND]), both)) == "closed"


@pytest.mark.parametrize("source", [None, Branch([])])
def test_where_nothing_can_be_looked_up_it_is_open(bench: Bench, source: FixSource | None) -> None:
    assert state(planned(bench, NEW, source, [patch(FIRST, NAME)], fixes=False)) == "affected"


def test_a_fix_that_the_source_has_need_not_be_in_force(bench: Bench) -> None:
    (bench.kernel.source / "kernel/b.c").write_text(edited(3))
    found = planned(bench, NEW, Branch([FIRST, SECOND]), [patch(FIRST, NAME)], fixes=False)
    assert state(found) == "closed"


def test_what_people_closed_themselves_they_know(bench: Bench) -> None:
    mine = InputFile("CVE-2026-1000.patch", b"Fixes CVE-2026-1000\n\n" + FIRST.change)
    assert state(planned(bench, NEW, Branch([FIRST, SECOND]), [mine])) == "closed"


def test_a_commit_in_force_is_known_by_what_its_patch_says(bench: Bench) -> None:
    # what is on top of it keeps it from being taken back, by which it would be seen otherwise
    on_top = change("kernel/a.c", edited(3), edited(3).replace("13)", "113)"), name("c"))
    found = planned(bench, OLD, Branch([FIRST]), [patch(FIRST), patch(on_top)], closed=())
    assert state(found) == "closed"


def test_only_the_head_of_a_patch_counts() -> None:
    text = f"commit {name('a')}\nCVE: {NAME}\n\n--- a/x\n+++ b/x\n CVE: CVE-2026-2000\n".encode()
    assert InForce.of([InputFile("x", text)]) == InForce(frozenset({name("a")}), frozenset({NAME}))
    assert InForce.of([InputFile("x", b"about\n" + text)]) == InForce(frozenset(), frozenset())


class Down(Branch):
    """A place that cannot be reached."""

    def get(self, commit: str, progress: Progress) -> Fix:
        raise DownloadFailedError(f"{commit[:12]} cannot be had.")


def test_a_plan_says_whether_it_is_worth_asking_again(bench: Bench) -> None:
    assert planned(bench, OLD, Down([]), closed=()).incomplete
    assert not planned(bench, OLD, Branch([]), closed=()).incomplete
    assert not planned(bench, OLD, Branch([FIRST]), closed=()).incomplete
