# SPDX-License-Identifier: GPL-2.0-or-later
"""The index of the CVE data: what it says of kernels, and how it follows a feed."""

from __future__ import annotations

import errno
import io
import os
import resource
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cve_support import Entry, affected, write_feed
from elivepatch.cves.feed import DirectoryFeed, EntryFiles, Listing, open_feed
from elivepatch.cves.index import Index
from elivepatch.cves.versions import parse_version
from elivepatch.errors import DiskFullError, InvalidInputError, NotFoundError, SourceRejectedError, UnavailableError
from elivepatch.process import run
from elivepatch.progress import Progress

A, B, C = "a" * 40, "b" * 40, "c" * 40
#: As the data has them: a fault of long ago, one that only reached stable branches, two faults under one id, one that
#: no branch has fixed.
REAL = {
    "CVE-2026-46300": Entry([f"3.9:{A}:6.1.174:{B}", f"3.9:{A}:6.12.91:{C}", f"3.9:{A}:7.1:{C}"], score=7.8),
    "CVE-2024-26581": Entry([f"6.1.43:{A}:6.1.78:{B}", f"6.5:{A}:6.8:{C}", f"6.4.8:{A}:0:0"]),
    "CVE-2025-38585": Entry([f"4.12:{A}:4.18:{B}", f"5.8:{A}:6.12.42:{C}", f"5.8:{A}:6.17:{C}"]),
    "CVE-2023-52920": Entry([f"6.5:{A}:6.6.64:{A}", f"6.5:{A}:6.6.70:{B}", f"6.5:{A}:6.6.140:{C}", f"6.5:{A}:6.8:{A}"]),
    "CVE-2022-49344": Entry([f"2.6.32.70:{A}:2.6.32.71:{B}", f"4.4:{A}:0:0"]),
    "CVE-2021-47000": Entry([f"6.4.2:{A}:6.4.9:{B}"]),
}


def make(tmp_path: Path, entries: dict[str, Entry]) -> Index:
    index = Index(tmp_path / "index.sqlite")
    index.update(open_feed(str(write_feed(tmp_path / "feed", entries)), tmp_path), Progress())
    return index


def commit(top: Path) -> None:
    """Bring what a directory holds into the git repository there, which is made if need be."""
    environment = {"GIT_CONFIG_GLOBAL": "/dev/null"}
    for who in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{who}_NAME": "n", f"GIT_{who}_EMAIL": "e"}
    for words in (["init", "-q", "-b", "master"], ["add", "-A"], ["commit", "-q", "-m", "state"]):
        run(["git", *words], cwd=top, env=environment)


def names(index: Index, version: str) -> list[str]:
    return [cve.name for cve in index.affecting(parse_version(version))]


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("6.1.42", ["CVE-2022-49344", "CVE-2025-38585", "CVE-2026-46300"]),
        ("6.1.77", ["CVE-2022-49344", "CVE-2024-26581", "CVE-2025-38585", "CVE-2026-46300"]),
        ("6.1.78", ["CVE-2022-49344", "CVE-2025-38585", "CVE-2026-46300"]),
        ("6.1.174", ["CVE-2022-49344", "CVE-2025-38585"]),
        ("6.4.8", ["CVE-2021-47000", "CVE-2022-49344", "CVE-2024-26581", "CVE-2025-38585", "CVE-2026-46300"]),
        ("6.6.70", ["CVE-2022-49344", "CVE-2023-52920", "CVE-2024-26581", "CVE-2025-38585", "CVE-2026-46300"]),
        ("6.12.42", ["CVE-2022-49344", "CVE-2026-46300"]),
        ("7.1", ["CVE-2022-49344"]),
        ("3.8", []),
    ],
)
def test_a_version_has_what_came_before_it_and_was_not_fixed(tmp_path: Path, version: str, expected: list[str]) -> None:
    assert names(make(tmp_path, REAL), version) == expected
    assert sorted(expected) == sorted(name for name, entry in REAL.items() if affected(entry.dyads, version))


def test_all_fixes_of_the_branch_that_are_missing_are_needed(tmp_path: Path) -> None:
    found = {cve.name: cve for cve in make(tmp_path, REAL).affecting(parse_version("6.6.64"))}
    assert [str(fix.fixed) for fix in found["CVE-2023-52920"].fixes] == ["6.6.70", "6.6.140"]
    assert found["CVE-2026-46300"].fixes == ()
    assert [str(fix.fixed) for fix in found["CVE-2026-46300"].mainline] == ["7.1"]
    assert (found["CVE-2026-46300"].score, found["CVE-2026-46300"].files) == (7.8, ("kernel/fork.c",))


_MAINLINE = st.sampled_from(["2.6.20", "2.6.39", "3.9", "4.19", "5.10", "6.1", "6.4", "6.6", "7.0"])
_STABLE = st.sampled_from(["2.6.32.5", "5.10.7", "6.1.3", "6.1.9", "6.1.20", "6.4.2", "6.6.4", "6.6.30"])
_SIDE = st.one_of(st.just("0"), _MAINLINE, _STABLE)


def _line(since: str, fixed: str) -> str:
    return f"{since}:{A if since != '0' else 0}:{fixed}:{B if fixed != '0' else 0}"


_LINE = st.builds(_line, _SIDE, _SIDE)
_DYADS = st.lists(_LINE, min_size=1, max_size=5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(many=st.lists(_DYADS, min_size=1, max_size=8))
def test_the_rule_written_twice_says_the_same(tmp_path: Path, many: list[list[str]]) -> None:
    entries = {f"CVE-2026-{1000 + number}": Entry(dyads) for number, dyads in enumerate(many)}
    place = tmp_path / os.urandom(6).hex()
    index = make(place, entries)
    for version in ("5.10.7", "6.1", "6.1.3", "6.1.10", "6.4.5", "6.6.30", "7.0.1"):
        assert names(index, version) == [name for name, entry in entries.items() if affected(entry.dyads, version)]


def test_only_what_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make(tmp_path, REAL)
    feed = open_feed(str(tmp_path / "feed"), tmp_path)
    asked: list[str] = []
    read = DirectoryFeed.read

    def watched(self: DirectoryFeed, listing: Listing, names: Iterable[str]) -> Iterator[EntryFiles]:
        asked.extend(names)
        return read(self, listing, asked)

    monkeypatch.setattr(DirectoryFeed, "read", watched)
    index.update(feed, Progress())
    assert asked == []
    write_feed(tmp_path / "feed", {"CVE-2026-99999": Entry([f"5.0:{A}:6.1.5:{B}"], title="a new one")})
    (tmp_path / "feed/cve/published/2021/CVE-2021-47000.dyad").unlink()
    (tmp_path / "feed/cve/published/2021/CVE-2021-47000.json").unlink()
    state = index.update(feed, Progress())
    assert asked == ["CVE-2026-99999"]
    assert state.entries == len(REAL)
    assert "CVE-2026-99999" in names(index, "6.1.4")
    with pytest.raises(NotFoundError):
        index.get("CVE-2021-47000")


def test_an_entry_that_cannot_be_read_is_not_dropped(tmp_path: Path) -> None:
    write_feed(tmp_path / "feed", REAL)
    (tmp_path / "feed/cve/published/2026/CVE-2026-46300.dyad").write_text("nonsense\n")
    (tmp_path / "feed/cve/published/2024/CVE-2024-26581.json").write_bytes(b"{")
    index = make(tmp_path / "other", {"CVE-2026-1000": Entry([f"5.0:{A}:0:0"])})
    index.update(open_feed(str(tmp_path / "feed"), tmp_path), Progress())
    assert [name for name, _ in index.problems()] == ["CVE-2024-26581", "CVE-2026-46300"]
    assert "CVE-2024-26581" in names(index, "6.1.77")  # its versions are known, though its record is not
    assert index.state().entries == len(REAL)
    assert index.get("CVE-2024-26581").dyads
    with pytest.raises(UnavailableError, match=r"CVE-2026-46300 .* cannot be read"):  # not one that no kernel has
        index.get("CVE-2026-46300")


def test_directory_archive_and_git_say_the_same(tmp_path: Path) -> None:
    top = write_feed(tmp_path / "feed", REAL)
    rejected = top / "cve/rejected/2024"
    rejected.mkdir(parents=True)
    (rejected / "CVE-2024-00001.dyad").write_text(f"3.0:{A}:0:0\n")
    archive = tmp_path / "feed.tar.xz"
    with tarfile.open(archive, "w:xz") as made:
        made.add(top / "cve", "vulns-master/cve")
    commit(top)
    found: list[list[list[str]]] = []
    for place in (str(top), str(archive), f"file://{top}#master"):
        index = Index(tmp_path / f"{len(found)}.sqlite")
        state = index.update(open_feed(place, tmp_path / "cache"), Progress())
        assert (state.entries, len(state.date)) == (len(REAL), 10)
        found.append([names(index, version) for version in ("6.1.77", "6.4.8", "6.12.42")])
    assert found[0] == found[1] == found[2]


def test_git_brings_what_is_new(tmp_path: Path) -> None:
    top = write_feed(tmp_path / "feed", REAL)
    commit(top)
    index = Index(tmp_path / "index.sqlite")
    feed = open_feed(f"file://{top}#master", tmp_path / "cache")
    first = index.update(feed, Progress())
    write_feed(top, {"CVE-2026-99999": Entry([f"5.0:{A}:6.1.5:{B}"])})
    commit(top)
    second = index.update(feed, Progress())
    assert (second.entries, first.identity != second.identity) == (first.entries + 1, True)
    assert "CVE-2026-99999" in names(index, "6.1.4")
    assert index.update(feed, Progress()) == second  # nothing is new


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    top = write_feed(tmp_path / "feed", REAL)
    record = top / "cve/published/2026/CVE-2026-46300.json"
    record.unlink()
    os.mkfifo(record)  # nobody writes to it: opening it would wait for ever
    assert Index(tmp_path / "index.sqlite").update(open_feed(str(top), tmp_path), Progress()).entries == len(REAL)


def test_an_index_that_cannot_be_written_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make(tmp_path, REAL)
    more = write_feed(tmp_path / "more", {f"CVE-2026-{n}": Entry([f"5.0:{A}:6.1.5:{B}"]) for n in range(1000, 1500)})
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (index.path.stat().st_size + 4096, kept[1]))
    try:
        with pytest.raises(UnavailableError, match=r"cannot be written: disk I/O error"):
            index.update(open_feed(str(more), tmp_path), Progress())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    assert sorted(path.name for path in tmp_path.glob("*index*")) == [".index.sqlite.lock", "index.sqlite"]
    assert index.state().entries == len(REAL)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(DiskFullError, match="No space is left for the index"):
        index.update(open_feed(str(more), tmp_path), Progress())


def test_something_else_in_the_place_of_the_index(tmp_path: Path) -> None:
    (tmp_path / "index.sqlite").mkdir()
    with pytest.raises(UnavailableError, match="cannot be used"):
        Index(tmp_path / "index.sqlite").state()
    with pytest.raises(UnavailableError, match=r"cannot be kept in .*: Is a directory"):
        make(tmp_path, REAL)


@pytest.mark.parametrize("damage", ["cut", "other", "empty"])
def test_a_damaged_archive_is_said_to_be_one(tmp_path: Path, damage: str) -> None:
    top = write_feed(tmp_path / "feed", REAL)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz") as made:
        made.add(top / "cve", "cve")
    archive = tmp_path / "feed.tar.xz"
    whole = stream.getvalue()
    archive.write_bytes({"cut": whole[: len(whole) // 2], "other": b"no archive", "empty": b""}[damage])
    with pytest.raises(UnavailableError, match=r"damaged|cannot be read|holds no"):
        Index(tmp_path / "index.sqlite").update(open_feed(str(archive), tmp_path), Progress())


def test_what_is_no_feed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty/cve/published/2024").mkdir(parents=True)
    with pytest.raises(UnavailableError, match="no published vulnerability"):
        Index(tmp_path / "index.sqlite").update(open_feed(str(tmp_path / "empty"), tmp_path), Progress())
    with pytest.raises(UnavailableError, match="cannot be read"):
        Index(tmp_path / "index.sqlite").update(open_feed(str(tmp_path), tmp_path), Progress())
    with pytest.raises(InvalidInputError, match="no feed"):
        open_feed(str(tmp_path / "nowhere"), tmp_path)


def test_without_an_index_there_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no index"):
        Index(tmp_path / "index.sqlite").affecting(parse_version("6.1"))
    (tmp_path / "index.sqlite").write_bytes(b"this is not a database at all" * 100)
    with pytest.raises(UnavailableError, match="cannot be used"):
        Index(tmp_path / "index.sqlite").state()


def test_the_newest_release_that_is_known(tmp_path: Path) -> None:
    index = make(tmp_path, REAL)
    assert str(index.newest(parse_version("6.1"))) == "6.1.174"
    assert index.newest(parse_version("5.15")) is None


def test_a_feed_of_which_nothing_can_be_read_does_not_take_the_place_of_a_good_one(tmp_path: Path) -> None:
    index = make(tmp_path, REAL)
    bad = write_feed(tmp_path / "bad", {"CVE-2026-1000": Entry(["garbage"])})
    with pytest.raises(SourceRejectedError, match=r"Of the 1 entries of .* none can be read"):
        index.update(open_feed(str(bad), tmp_path), Progress())
    assert index.state().entries == len(REAL)


def test_a_feed_that_has_lost_most_of_its_entries_is_refused(tmp_path: Path) -> None:
    many = {f"CVE-2026-{1000 + number}": Entry([f"6.1:{A}:6.2:{B}"]) for number in range(120)}
    index = make(tmp_path, many)
    few = dict(list(many.items())[:50])
    with pytest.raises(SourceRejectedError, match="has 50 CVEs that can be read; the index has 120") as caught:
        index.update(open_feed(str(write_feed(tmp_path / "few", few)), tmp_path), Progress())
    assert "remove index.sqlite" in (caught.value.hint or "")
    assert index.state().entries == 120
    most = dict(list(many.items())[:110])
    assert index.update(open_feed(str(write_feed(tmp_path / "most", most)), tmp_path), Progress()).entries == 110


def test_entries_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    state = make(tmp_path, {**REAL, "CVE-2026-1000": Entry(["garbage"])}).state()
    assert (state.entries, state.unreadable) == (len(REAL) + 1, 1)
