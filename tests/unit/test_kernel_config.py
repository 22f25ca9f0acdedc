# SPDX-License-Identifier: GPL-2.0-or-later
"""Configurations and releases: what is taken, what is refused, and what differs."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elivepatch.errors import InvalidInputError
from elivepatch.kernel.config import parse_config
from elivepatch.kernel.release import parse_release

TEXT = b"""\
#
# Linux/x86 6.12.117 Kernel Configuration
#
CONFIG_CC_VERSION_TEXT="gcc-14 (Debian 14.2.0-19) 14.2.0"
CONFIG_HZ=250
CONFIG_LIVEPATCH=y
CONFIG_XFS_FS=m
# CONFIG_FOO is not set
CONFIG_PHYSICAL_START=0x1000000
CONFIG_QUOTED="a \\"b\\" \\\\ c"
CONFIG_EMPTY=""
"""


def test_what_a_configuration_says() -> None:
    config = parse_config(TEXT)
    assert config.enabled("LIVEPATCH")
    assert config.enabled("XFS_FS")
    assert not config.enabled("FOO")
    assert not config.enabled("HZ")
    assert not config.enabled("NEVER_HEARD_OF")
    assert config.string("CC_VERSION_TEXT") == "gcc-14 (Debian 14.2.0-19) 14.2.0"
    assert config.string("QUOTED") == 'a "b" \\ c'
    assert config.string("EMPTY") == ""
    assert config.string("HZ") == "250"
    assert config.string("FOO") is None


def test_differences_name_what_is_here_and_there() -> None:
    here = parse_config(TEXT)
    there = parse_config(TEXT.replace(b"HZ=250", b"HZ=1000").replace(b"CONFIG_XFS_FS=m\n", b"") + b"CONFIG_FOO=y\n")
    assert here.differences(there) == ["FOO: n, y", "HZ: 250, 1000", "XFS_FS: m, n"]
    assert here.differences(here) == []


def test_the_digest_is_of_what_is_said() -> None:
    lines = TEXT.splitlines(keepends=True)
    assert parse_config(b"".join(reversed(lines))).sha256 == parse_config(TEXT).sha256
    assert parse_config(TEXT.replace(b"\n", b"\r\n")).sha256 == parse_config(TEXT).sha256
    assert parse_config(TEXT.replace(b"250", b"100")).sha256 != parse_config(TEXT).sha256
    # not set and absent are the same for the compiler
    assert parse_config(TEXT.replace(b"# CONFIG_FOO is not set\n", b"")).sha256 == parse_config(TEXT).sha256


def test_the_last_line_of_an_option_counts() -> None:
    assert parse_config(b"CONFIG_A=y\nCONFIG_A=m\n").options == {"A": "m"}
    assert parse_config(b"CONFIG_B=1\nCONFIG_A=y\n# CONFIG_A is not set\n").options == {"B": "1"}


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "no option"),
        (b"# only a comment\n", "no option"),
        (b"\x1f\x8b\x08\x00", "neither text"),
        (b"CONFIG_A=y\nrm -rf /\n", "Line 2"),
        (b"CONFIG_A=y\nexport CONFIG_B=y\n", "Line 2"),
        (b"CONFIG_A B=y\n", "Line 1"),
        (b" CONFIG_A=y\n", "Line 1"),
        (b"A=y\n", "Line 1"),
        (b"CONFIG_\xc3\xa4=y\n", "Line 1"),
        (b"<html>\n" * 1000, "Line 1"),
    ],
)
def test_what_is_no_configuration(data: bytes, word: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_config(data)
    assert word in caught.value.message
    assert len(caught.value.message) < 300
    assert caught.value.hint


@given(st.binary(max_size=300))
def test_any_bytes_are_a_configuration_or_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidInputError):
        assert parse_config(data).options


# -- releases


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("6.12.117+deb13-cloud-amd64", (6, 12, 117)),
        ("6.1.0-47-amd64", (6, 1, 0)),
        ("6.12.60-gentoo", (6, 12, 60)),
        ("7.3.4+deb14-rt-amd64", (7, 3, 4)),
        ("6.13-rc1", (6, 13, 0)),
        ("6.12.5-dirty_x~2", (6, 12, 5)),
    ],
)
def test_releases(text: str, numbers: tuple[int, int, int]) -> None:
    release = parse_release(text)
    assert (release.major, release.minor, release.patch) == numbers
    assert str(release) == text
    assert release.series == f"{numbers[0]}.{numbers[1]}"


def test_releases_are_ordered_by_their_numbers() -> None:
    texts = ["6.12.117+deb13-amd64", "6.1.192-1-amd64", "6.12.9+deb13-amd64", "7.0.1-amd64"]
    assert [str(each) for each in sorted(map(parse_release, texts))] == [texts[1], texts[2], texts[0], texts[3]]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "6",
        "latest",
        "6.12.117 x",
        "6.12.117\n",
        "\n6.12.117",
        "6.12.117/../../etc/passwd",
        "../6.12.117",
        "6.12.117\0",
        "6.12.117;id",
        "6.12.117$(id)",
        "6.12.117`id`",
        "6.12.117*",
        "-6.12",
        "6.12.117" + "x" * 200,
        "9999.1",
        "\u0666.12.117",
        "6.12.117é",
    ],
)
def test_what_is_no_release(text: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_release(text)


@given(st.text(max_size=30))
def test_what_is_a_release_is_safe_in_a_path(text: str) -> None:
    try:
        release = str(parse_release(text))
    except InvalidInputError:
        return
    assert release.isascii()
    assert not set(release) & set("/\\ \0\n\t*?[]$`;&|<>'\"")
    assert release[0].isdigit()
