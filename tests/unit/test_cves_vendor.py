# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel has beyond its version: changelogs, and patches that name their commits."""

from __future__ import annotations

from pathlib import Path

from cve_support import Entry, write_feed
from elivepatch.cves.feed import open_feed
from elivepatch.cves.index import Index, OpenCve
from elivepatch.cves.vendor import VendorFixes, named_commits, read_changelog
from elivepatch.cves.versions import parse_version
from elivepatch.progress import Progress

A, B, C, D = "a" * 40, "b" * 40, "c" * 40, "d" * 40
CHANGELOG = """\
linux (6.1.170-3) bookworm-security; urgency=high

  * Revert "fs: a fix that was taken back"
  * [x86,arm64] net: Fix the host lookup
    that triggers a bug (Closes: #1130000)
  * ksmbd: check the length (CVE-2026-1001, CVE-2026-1002)

 -- Somebody <somebody@example.org>  Mon, 04 May 2026 11:29:58 +0100

linux (6.1.170-1) bookworm; urgency=medium

  * New upstream stable update:
    https://www.kernel.org/pub/linux/kernel/v6.x/ChangeLog-6.1.169
    - net: an item of upstream (CVE-2026-1003)
    - net: a longer item of
      upstream

  [ Somebody Else ]
  * fs: a fix that was taken back
  * mm: Fix a leak

 -- Somebody <somebody@example.org>  Fri, 01 May 2026 11:29:58 +0100
"""


def test_a_changelog_names_what_the_distributor_fixed_himself() -> None:
    said = read_changelog(CHANGELOG)
    assert said.cves == {"CVE-2026-1001": "6.1.170-3", "CVE-2026-1002": "6.1.170-3"}
    assert said.subjects["net: Fix the host lookup that triggers a bug"] == "6.1.170-3"
    assert said.subjects["mm: Fix a leak"] == "6.1.170-1"
    assert said.subjects["ksmbd: check the length"] == "6.1.170-3"


def test_what_was_taken_back_and_what_upstream_did_does_not_count() -> None:
    said = read_changelog(CHANGELOG)
    assert "fs: a fix that was taken back" not in said.subjects
    assert not any(subject.startswith("net: a") for subject in said.subjects)
    assert "CVE-2026-1003" not in said.cves


def test_patches_name_the_commits_they_were_made_from() -> None:
    patches = [
        ("1.patch", f"From: x\n\ncommit {A} upstream.\n\nA fix.\n---\ndiff --git a/x b/x\n".encode()),
        ("2.patch", f"[ Upstream commit {B} ]\n\n--- a/x\n+++ b/x\n".encode()),
        (
            "3.patch",
            f"From {C} Mon Sep 17 00:00:00 2001\n(cherry picked from commit {D})\n\ndiff --git a/x b/x\n".encode(),
        ),
        (
            "4.patch",
            f"fixes commit {'e' * 40} which was wrong\n\ndiff --git a/x b/x\n+commit {'f' * 40} upstream\n".encode(),
        ),
    ]
    assert named_commits(patches) == {A: "1.patch", B: "2.patch", C: "3.patch", D: "3.patch"}


def _open(tmp_path: Path, dyads: list[str], title: str = "a fault") -> tuple[OpenCve, Index]:
    index = Index(tmp_path / "index.sqlite")
    feed = write_feed(tmp_path / "feed", {"CVE-2026-1001": Entry(dyads, title)})
    index.update(open_feed(str(feed), tmp_path), Progress())
    (found,) = index.affecting(parse_version("6.1.170"))
    return found, index


def test_a_fix_counts_by_its_commit_of_the_branch_or_of_mainline(tmp_path: Path) -> None:
    cve, index = _open(tmp_path, [f"5.0:{D}:6.1.175:{A}", f"5.0:{D}:7.1:{B}"])
    assert VendorFixes(commits={A: "x.patch"}).reason(cve, index) == "fixed by x.patch"
    assert VendorFixes(commits={B: "y.patch"}).reason(cve, index) == "fixed by y.patch"
    assert VendorFixes(commits={C: "z.patch"}).reason(cve, index) is None


def test_of_several_fixes_all_are_needed(tmp_path: Path) -> None:
    cve, index = _open(tmp_path, [f"5.0:{D}:6.1.175:{A}", f"5.0:{D}:6.1.177:{B}", f"5.0:{D}:7.1:{C}"], "mm: Fix a leak")
    assert VendorFixes(commits={A: "x.patch"}).reason(cve, index) is None
    assert VendorFixes(commits={A: "x.patch", B: "y.patch"}).reason(cve, index) == "fixed by x.patch, y.patch"
    # nor is one subject enough for two fixes
    assert read_changelog(CHANGELOG).reason(cve, index) == "the changelog names it as fixed in 6.1.170-3"
    assert VendorFixes(subjects={"mm: Fix a leak": "1"}).reason(cve, index) is None


def test_a_part_of_the_fixes_that_names_the_only_commit_of_mainline_is_not_all_of_them(tmp_path: Path) -> None:
    cve, index = _open(tmp_path, [f"5.0:{D}:6.1.175:{A}", f"5.0:{D}:6.1.177:{B}", f"5.0:{D}:7.1:{C}"])
    # the backport A says 'commit C upstream', and B is not there
    assert VendorFixes(commits={C: "x.patch"}).reason(cve, index) is None
    assert VendorFixes(commits={C: "x.patch", A: "x.patch", B: "y.patch"}).reason(cve, index)


def test_what_has_a_part_that_nobody_fixed_is_not_fixed_by_the_rest(tmp_path: Path) -> None:
    cve, index = _open(tmp_path, [f"5.0:{D}:7.1:{B}", f"5.1:{A}:0:0"], "mm: Fix a leak")
    assert cve.endless
    assert VendorFixes(commits={B: "x.patch"}).reason(cve, index) is None
    assert VendorFixes(subjects={"mm: Fix a leak": "6.1.170-1"}).reason(cve, index) is None


def test_one_subject_is_not_enough_for_two_fixes_of_mainline(tmp_path: Path) -> None:
    cve, index = _open(tmp_path, [f"5.0:{D}:7.1:{B}", f"5.1:{A}:7.2:{C}"], "mm: Fix a leak")
    assert VendorFixes(subjects={"mm: Fix a leak": "6.1.170-1"}).reason(cve, index) is None


def test_a_subject_that_two_vulnerabilities_have_says_nothing_of_either(tmp_path: Path) -> None:
    index = Index(tmp_path / "index.sqlite")
    entry = Entry([f"5.0:{D}:6.1.175:{A}"], "mm: Fix a leak")
    other = Entry([f"5.0:{D}:6.1.176:{B}"], "mm: Fix a leak")
    feed = write_feed(tmp_path / "feed", {"CVE-2026-1001": entry, "CVE-2026-1002": other})
    index.update(open_feed(str(feed), tmp_path), Progress())
    vendor = VendorFixes(subjects={"mm: Fix a leak": "6.1.170-1"}, cves={"CVE-2026-1002": "6.1.170-1"})
    first, second = index.affecting(parse_version("6.1.170"))
    assert vendor.reason(first, index) is None
    assert vendor.reason(second, index)


def test_a_subject_names_a_fix(tmp_path: Path) -> None:
    cve, index = _open(tmp_path, [f"5.0:{D}:6.1.175:{A}"], "mm: Fix a leak")
    assert VendorFixes(subjects={"mm: Fix a leak": "6.1.170-1"}).reason(cve, index)
    assert VendorFixes(subjects={"mm: Fix another leak": "6.1.170-1"}).reason(cve, index) is None


def test_a_patch_that_takes_a_fix_back_is_no_fix() -> None:
    head = f'Subject: Revert "mm: Fix a leak"\n\nThis reverts commit {B} which is\ncommit {A} upstream.\n'
    revert = f"{head}\n--- a/x\n+++ b/x\n"
    fix = f"commit {A} upstream.\n\n--- a/x\n+++ b/x\n"
    assert named_commits([("revert.patch", revert.encode())]) == {}
    assert named_commits([("fix.patch", fix.encode()), ("revert.patch", revert.encode())]) == {}
