# SPDX-License-Identifier: GPL-2.0-or-later
"""Versions, dyads and records of the CVE data."""

from __future__ import annotations

import json

import pytest

from elivepatch.cves.records import FeedFormatError, parse_dyads, parse_record
from elivepatch.cves.versions import parse_version, version_of
from elivepatch.errors import InvalidInputError

A, B = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    ("text", "series", "step"),
    [
        ("6.1", "6.1", 0),
        ("6.1.0", "6.1", 0),
        ("6.1.170", "6.1", 170),
        ("2.6.39", "2.6.39", 0),
        ("2.6.32.70", "2.6.32", 70),
    ],
)
def test_a_version_is_a_mainline_release_and_a_step_on_it(text: str, series: str, step: int) -> None:
    version = parse_version(text)
    assert (version.series, version.step, version.mainline) == (series, step, step == 0)


def test_branches_grow_with_the_releases() -> None:
    names = ["2.6.12", "2.6.39", "3.0", "3.19", "4.0", "4.19", "4.20", "5.0", "6.1", "6.12", "7.0"]
    branches = [parse_version(name).branch for name in names]
    assert branches == sorted(set(branches))


@pytest.mark.parametrize("text", ["", "6", "6.1.2.3", "6.1-rc1", "v6.1", "6.1.", "\uff16.1", "6.1 ", "0"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_version(text)


@pytest.mark.parametrize(
    ("text", "version"),
    [("6.1.170-3", "6.1.170"), ("6.12.60-gentoo", "6.12.60"), ("7.3.4-1~bpo13+1", "7.3.4"), ("6.12", "6.12")],
)
def test_a_release_begins_with_its_version(text: str, version: str) -> None:
    assert str(version_of(text)) == version


@pytest.mark.parametrize("text", ["7.2.0-rc3", "7.2~rc3-1", "gentoo", ""])
def test_no_version_is_made_up(text: str) -> None:
    with pytest.raises(InvalidInputError, match="names no released version"):
        version_of(text)


def test_dyads_are_read_line_by_line() -> None:
    text = f"# dyad version: 1.2.0\n# \tgetting pairs\n3.9:{A}:6.1.174:{B}\n0:0:0:0\n\n6.1.43:{A}:6.1.78:{B}"
    first, second, third = parse_dyads(text, "CVE-2026-1000")
    assert (str(first.vulnerable), first.vulnerable_commit, str(first.fixed), first.fixed_commit) == (
        "3.9",
        A,
        "6.1.174",
        B,
    )
    assert (second.vulnerable, second.vulnerable_commit, second.fixed, second.fixed_commit) == (None,) * 4
    assert third.vulnerable is not None
    assert not third.vulnerable.mainline


@pytest.mark.parametrize(
    "line",
    [
        "3.9:x:6.1:y",
        f"3.9:{A}:6.1",
        f"3.9:{A}:6.1:{B}:",
        f"three:{A}:6.1:{B}",
        f"3.9:{A[:-1]}:6.1:{B}",
        f"3.9:{A.upper()}:6.1:0",
    ],
)
def test_a_line_that_is_none_is_named(line: str) -> None:
    with pytest.raises(FeedFormatError, match="CVE-2026-1000: line 2 of its dyads"):
        parse_dyads(f"# comment\n{line}\n", "CVE-2026-1000")


def test_no_dyads_is_no_answer() -> None:
    with pytest.raises(FeedFormatError, match="no dyads"):
        parse_dyads("# nothing\n", "CVE-2026-1000")


def _record(**cna: object) -> bytes:
    return json.dumps({"containers": {"cna": cna}, "cveMetadata": {"cveId": "CVE-2026-1000"}}).encode()


def test_a_record_gives_title_files_and_score() -> None:
    data = _record(
        title="net:  a\nfault",
        affected=[{"programFiles": ["net/core/skbuff.c"]}, {"product": "Linux"}],
        metrics=[{"other": 1}, {"cvssV3_1": {"baseScore": 7.8, "vectorString": "CVSS:3.1/AV:L"}}],
        unknown={"anything": [1, 2]},
    )
    found = parse_record(data, (), "CVE-2026-1000")
    assert (found.title, found.files, found.score, found.vector) == (
        "net: a fault",
        ("net/core/skbuff.c",),
        7.8,
        "CVSS:3.1/AV:L",
    )


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.c", "a//b.c", "a/./b.c", "a\nb.c", "", "a/../../b.c"])
def test_paths_that_lead_elsewhere_are_left_out(path: str) -> None:
    found = parse_record(_record(affected=[{"programFiles": [path, "mm/slub.c"]}]), (), "CVE-2026-1000")
    assert found.files == ("mm/slub.c",)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{", b'{"containers": {}}', _record(metrics=[{"cvssV3_1": {"baseScore": 99, "vectorString": ""}}])],
)
def test_a_record_that_is_none_says_where(data: bytes) -> None:
    with pytest.raises(FeedFormatError, match="CVE-2026-1000: its record cannot be read"):
        parse_record(data, (), "CVE-2026-1000")


def test_the_record_of_another_is_no_record() -> None:
    with pytest.raises(FeedFormatError, match="that of CVE-2026-1000"):
        parse_record(_record(title="x"), (), "CVE-2026-1001")
