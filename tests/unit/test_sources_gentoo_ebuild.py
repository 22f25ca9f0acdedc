# SPDX-License-Identifier: GPL-2.0-or-later
"""Ebuilds, read without bash: what is understood is what bash makes of it, and the rest is an error with its line."""

from __future__ import annotations

import subprocess

import pytest

from elivepatch.errors import KernelUnavailableError
from elivepatch.sources.gentoo.ebuild import Ebuild
from elivepatch.sources.gentoo.package import parse_package
from elivepatch.sources.gentoo.shell import UnreadableError, expand, ver_cut, word_end

PACKAGE = "gentoo-kernel-6.12.60_p1-r2"
VARIABLES = {
    "PN": "gentoo-kernel",
    "PV": "6.12.60_p1",
    "PR": "r2",
    "PVR": "6.12.60_p1-r2",
    "P": "gentoo-kernel-6.12.60_p1",
}

WORDS = [
    "plain",
    "''",
    '""',
    "'single $PV'",
    '"double $PV"',
    "mixed'a b'\"c d\"e",
    r"back\ slash\$PV",
    r'"back\slash \$PV \" \\ \n"',
    "linux-${PV}",
    "linux-$PV-x",
    "${PV%.*}",
    "${PV%%.*}",
    "${PV#*.}",
    "${PV##*.}",
    "${PV%_p*}",
    "${PV%nothing}",
    "${PV#nothing}",
    "${PV%?}",
    "${PV/_/-}",
    "${PV//./-}",
    "${PV/6.*_/x}",
    "${PV/.}",
    "${PV#${PV%_p*}}",
    '"${PN}-${PV%_p*}".tar',
    "genpatches-$(( 60 + 7 ))",
    "$((60-7))",
    "$(( 5 ))",
    "{a,b}",
    "a*b?[c]",
    "https://dev.example/~user/x",
    '"two\nlines"',
    "a\\\nb",
    "$",
    '"$ 5"',
]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_what_bash_makes_of_it(word: str) -> None:
    script = "".join(f"{name}='{value}'\n" for name, value in VARIABLES.items()) + f'x={word}\nprintf %s "$x"'
    said = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    assert word_end(f"{word} rest", 0) == len(word)
    assert expand(word, VARIABLES.__getitem__) == said


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("$(uname -r)", "runs a command"),
        ("`uname -r`", "runs a command"),
        ("$'a'", "uses"),
        ('$"a"', "uses"),
        ("a$1", "uses"),
        ('"$@"', "uses"),
        ("$[1+1]", "uses"),
        ("${PV:-1}", "uses"),
        ("${!PV}", "uses"),
        ("${PV^^}", "uses"),
        ("${#PV}", "uses"),
        ("${PV%[0-9]}", "pattern"),
        ("${PV%@(a|b)}", "pattern"),
        ("$(( 010 + 1 ))", "computes"),
        ("$(( 1 * 2 ))", "computes"),
        ("$(( PV ))", "computes"),
        ("$(ver_cut 1 2 3)", "runs a command"),
        ("$(ver_cut 0)", "cuts"),
        ("~/x", "~"),
        ("a:~/x", "~"),
        ('"open', "not closed"),
        ("'open", "not closed"),
        ("${PV", "not closed"),
    ],
)
def test_a_word_that_is_not_understood(word: str, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        expand(word[: word_end(word, 0)], VARIABLES.__getitem__)


def test_parts_of_a_version() -> None:
    """The examples are those of the Package Manager Specification's ver_cut."""
    assert [ver_cut(span, "1.2b_alpha4") for span in ("1", "1-2", "2-", "1-3", "3-4", "9")] == [
        "1",
        "1.2",
        "2b_alpha4",
        "1.2b",
        "b_alpha",
        "",
    ]


def read(text: str, package: str = PACKAGE) -> Ebuild:
    return Ebuild(parse_package(package), text)


def test_assignments_in_their_order() -> None:
    ebuild = read(
        "# a comment\n\nA=1 # another\nB=${A}2; C='x y'\nA=3\nD+=\"${A}\n"
        "  more\"\nD+=' and more'\nE=( one 'two )' # not here )\n three )\nF=end\ninherit one two\n"
    )
    values = {name: ebuild.value(name) for name in ("A", "B", "C", "D", "F", "NONE")}
    assert values == {"A": "3", "B": "12", "C": "x y", "D": "3\n  more and more", "F": "end", "NONE": ""}
    assert ebuild.inherits == {"one", "two"}
    assert ebuild.line("A") == 5
    with pytest.raises(
        KernelUnavailableError, match=r"6\.12\.60_p1-r2\.ebuild, line 9: the value of E .* it is an array"
    ):
        ebuild.value("E")


def test_what_is_not_understood_matters_when_it_is_asked_for() -> None:
    ebuild = read('\nA="$(date)"\nB="${A}-1"\nC=fine\n')
    assert ebuild.value("C") == "fine"
    with pytest.raises(
        KernelUnavailableError, match=r"line 2: the value of A is not understood: it runs a command"
    ) as caught:
        ebuild.value("A")
    assert "dir:PATH" in (caught.value.hint or "")
    with pytest.raises(KernelUnavailableError, match=r"line 3: the value of B .* it uses A of line 2"):
        ebuild.value("B")


def test_functions_are_kept_by_line() -> None:
    ebuild = read('A=1\nsrc_prepare() {\n\t# why\n\tif true; then\n\t\teapply "x"\n\tfi\n}\n\nempty() {\n}\nB=2\n')
    assert [(each.line, each.text) for each in ebuild.functions["src_prepare"]] == [
        (4, "if true; then"),
        (5, 'eapply "x"'),
        (6, "fi"),
    ]
    assert ebuild.functions["empty"] == ()
    assert ebuild.value("B") == "2"


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("A=1\nif true; then\n", 2, "if true; then"),
        ("[[ ${PV} == 9999 ]] && A=1\n", 1, "9999"),
        ("A=1\n\neval A=2\n", 3, "eval A=2"),
        ("A=1 export B\n", 1, "A="),
        ("A=1 | cat\n", 1, "A="),
        ("inherit ${X}\n", 1, "inherit"),
        ("detect_version now\n", 1, "detect_version"),
        ("f() {\n\ttrue\n", 1, "has no end"),
        ("A=1\nB='open\n", 2, "not closed"),
        ("A=( $(x) ) && B=1\n", 1, "A="),
        ("A=( a; b )\n", 1, "array"),
    ],
)
def test_a_statement_that_is_not_understood(text: str, line: int, what: str) -> None:
    with pytest.raises(KernelUnavailableError, match=rf"\.ebuild, line {line}: ") as caught:
        read(text)
    assert what in caught.value.message


@pytest.mark.parametrize(
    ("package", "more", "expected"),
    [
        ("gentoo-sources-6.12.60", "", ("6.12.60", "6.12", "6.12.60-gentoo")),
        ("gentoo-sources-6.12.60-r1", "", ("6.12.60", "6.12", "6.12.60-gentoo-r1")),
        ("gentoo-sources-7.2", "", ("7.2", "7.2", "7.2-gentoo")),
        ("zen-sources-6.12.60-r1", "", ("6.12.60", "6.12", "6.12.60-zen-r1")),
        ("vanilla-sources-6.12.60-r1", "K_NOUSENAME=yes\n", ("6.12.60", "6.12", "6.12.60-r1")),
        ("gentoo-sources-6.12.60-r1", "K_NOUSEPR=yes\n", ("6.12.60", "6.12", "6.12.60")),
        ("pf-sources-6.12", "K_USEPV=1\n", ("6.12", "6.12", "6.12-pf-6.12")),
        ("pf-sources-6.12", "CKV=6.12.7\n", ("6.12.7", "6.12", "6.12.7-pf")),
    ],
)
def test_the_version_that_the_eclass_makes(package: str, more: str, expected: tuple[str, str, str]) -> None:
    ebuild = read(f'ETYPE="sources"\n{more}inherit kernel-2\ndetect_version\nV="${{KV_MAJOR}} ${{KV_FULL}}"\n', package)
    assert ebuild.version is not None
    assert (ebuild.version.okv, ebuild.version.series, ebuild.version.full) == expected
    assert ebuild.value("V") == f"{expected[0][0]} {expected[2]}"


@pytest.mark.parametrize(
    ("package", "more", "what"),
    [
        ("git-sources-6.12_rc3", 'ETYPE="sources"\n', "6.12_rc3"),
        ("gentoo-sources-2.6.39", 'ETYPE="sources"\n', "2.6.39"),
        ("gentoo-sources-6.12.60", 'ETYPE="headers"\n', "ETYPE"),
        ("gentoo-sources-6.12.60", 'ETYPE="sources"\nK_PREPATCHED=1\n', "K_PREPATCHED"),
        ("gentoo-sources-6.12.60", 'ETYPE="sources"\nEXTRAVERSION=-x\n', "EXTRAVERSION"),
        ("gentoo-sources-6.12.60_p2", 'ETYPE="sources"\n', "_p2"),
    ],
)
def test_a_version_that_is_not_known(package: str, more: str, what: str) -> None:
    with pytest.raises(KernelUnavailableError, match=r"line \d") as caught:
        read(f"{more}detect_version\n", package)
    assert what in caught.value.message
