# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of a branch's own fixes, from a mirror; they count more than mainline's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from cve_support import Entry, write_feed
from elivepatch.cves.feed import open_feed
from elivepatch.cves.index import Index, OpenCve
from elivepatch.cves.reach import Contents, FilePlace
from elivepatch.cves.scan import scan
from elivepatch.cves.versions import parse_version
from elivepatch.progress import Progress
from elivepatch.sources.git import GitRepository
from elivepatch.sources.history import GitHistory
from overlay_git import Repository

A, B = "a" * 40, "b" * 40


@pytest.fixture
def upstream(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "upstream")
    made.path.mkdir()
    made.git("init", "-q", "-b", "main")
    return made


def history(upstream: Repository, cache: Path) -> GitHistory:
    repository = GitRepository(upstream.url, cache, whole=True, local=True)
    repository.bring_all(Progress())
    return GitHistory(repository)


def test_the_files_of_many_commits_are_told_at_once(upstream: Repository, tmp_path: Path) -> None:
    made: dict[str, tuple[str, ...]] = {}
    for names in (("a.c",), ("a.c", "b c.h"), ("a.c", "\1x"), ()):
        for name in names:
            (upstream.path / name).write_text(f"{len(made)}\n")
        made[upstream.commit()] = tuple(sorted(names))
    found = history(upstream, tmp_path / "cache").files([*made, B, "main", "--all"])
    assert {commit: tuple(sorted(names)) for commit, names in found.items()} == made


def test_of_no_commits_nothing_is_told(upstream: Repository, tmp_path: Path) -> None:
    upstream.commit()
    assert history(upstream, tmp_path / "cache").files(["main"]) == {}


class Kernel:
    """Of which ``built.c`` is in vmlinux, ``idle.c`` is not built, and no other file is there."""

    release = "6.1.170"

    @property
    def kernel(self) -> Kernel:
        return self

    def place(self, file: str) -> FilePlace:
        if file == "built.c":
            return FilePlace(file, "contained", ("vmlinux",), "in vmlinux")
        return FilePlace(file, "not-built" if file == "idle.c" else "unknown", why="so")


@pytest.mark.parametrize(
    ("mainline", "own", "state"),
    [
        ("idle.c", ("built.c",), "affected"),
        ("new.c", ("built.c",), "affected"),
        ("new.c", ("idle.c",), "not-built"),
        ("idle.c", ("new.c",), "undecided"),
        ("idle.c", (), "not-built"),
        ("built.c", ("idle.c",), "affected"),
    ],
)
def test_the_branchs_own_fix_counts_more(tmp_path: Path, mainline: str, own: Sequence[str], state: str) -> None:
    index = Index(tmp_path / "index.sqlite")
    feed = write_feed(tmp_path / "feed", {"CVE-2026-1000": Entry([f"5.0:0:6.1.175:{A}"], files=(mainline,))})
    index.update(open_feed(str(feed), tmp_path), Progress())

    def files_of(_cve: OpenCve) -> Sequence[str]:
        return own

    found = scan(index, parse_version("6.1.170"), contents=cast("Contents", Kernel()), files_of=files_of)
    assert [entry.state for entry in found.cves] == [state]
