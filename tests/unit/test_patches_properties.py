# SPDX-License-Identifier: GPL-2.0-or-later
"""Properties of reading patches and sources: stable, total, and never an error from outside of the tree."""

from __future__ import annotations

import contextlib

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elivepatch.errors import InvalidInputError
from elivepatch.patches.csource import code_of, read_source
from elivepatch.patches.doctor import SourceChange, examine
from elivepatch.patches.mismatch import best_place, explain, lines_of, places
from elivepatch.patches.model import FilePatch, Hunk, Kind, Patch
from elivepatch.patches.series import normalise, parse_patch

#: A busy machine is no failure: what is slow is measured elsewhere.
STEADY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
VALID = (
    b"From 0123456789abcdef0123456789abcdef01234567 Mon Sep 17 00:00:00 2001\nSubject: x\n\n---\n"
    b"diff --git a/fs/x.c b/fs/x.c\nindex 1111111..2222222 100644\n--- a/fs/x.c\n+++ b/fs/x.c\n"
    b"@@ -1,3 +1,3 @@ int f(void)\n one\n-two\n+TWO\n three\n@@ -9 +9,2 @@\n nine\n+ten\n"
    b"diff --git a/n.c b/n.c\nnew file mode 100644\nindex 0000000..1111111\n"
    b"--- /dev/null\n+++ b/n.c\n@@ -0,0 +1 @@\n+n\n"
    b"diff --git a/o.c b/p.c\nsimilarity index 90%\nrename from o.c\nrename to p.c\n"
    b"--- a/o.c\n+++ b/p.c\n@@ -3 +3 @@\n-o\n+p\n"
    b"\\ No newline at end of file\n-- \n2.39\n"
)
PIECES = st.sampled_from(
    [
        b"",
        b"\n",
        b"@@ -1 +1 @@\n",
        b"--- a/x\n",
        b"+++ b/x\n",
        b"diff --git a/x b/x\n",
        b'"',
        b"\\",
        b"..",
        b"\0",
        b"\r\n",
    ]
)
LINES = st.lists(st.binary(max_size=6).filter(lambda line: b"\n" not in line and b"\0" not in line), max_size=6)
SAFE = LINES.map(lambda lines: [line for line in lines if not line.endswith(b"\r")])
NAMES = st.lists(st.text("abcxyz.-_ä\"'#", min_size=1, max_size=8), min_size=1, max_size=4).map("/".join)


@STEADY
@given(st.binary(max_size=300))
def test_random_bytes_are_refused_and_nothing_else(data: bytes) -> None:
    with contextlib.suppress(InvalidInputError):
        parse_patch("p", data)


@STEADY
@given(st.lists(st.tuples(st.integers(0, len(VALID)), st.integers(0, 40), PIECES | st.binary(max_size=4)), max_size=4))
def test_damaged_patches_are_read_or_refused(edits: list[tuple[int, int, bytes]]) -> None:
    data = VALID
    for at, length, new in edits:
        data = data[:at] + new + data[at + length :]
    try:
        text = normalise("p", data)
    except InvalidInputError:
        return
    assert normalise("p", text) == text


@STEADY
@given(st.lists(PIECES, max_size=12))
def test_shuffled_pieces_are_read_or_refused(pieces: list[bytes]) -> None:
    with contextlib.suppress(InvalidInputError):
        parse_patch("p", b"".join(pieces))


@STEADY
@given(NAMES, st.lists(st.tuples(st.integers(0, 9), SAFE, SAFE, SAFE), min_size=1, max_size=4))
def test_the_canonical_text_reads_back_as_what_it_was(
    name: str, parts: list[tuple[int, list[bytes], list[bytes], list[bytes]]]
) -> None:
    hunks: list[Hunk] = []
    line, shift = 1, 0
    for gap, context, removed, added in parts:
        line += gap
        old, new = len(context) + len(removed), len(context) + len(added)
        if not old + new:
            continue
        body = [b" " + text for text in context] + [b"-" + text for text in removed] + [b"+" + text for text in added]
        hunks.append(Hunk(line - (old == 0), old, line + shift - (new == 0), new, tuple(body)))
        line, shift = line + old, shift + new - old
    patch = Patch("p", (FilePatch(name, name, Kind.MODIFIED, tuple(hunks)),))
    try:
        read = parse_patch("p", patch.canonical)
    except InvalidInputError as refused:
        assert not hunks or refused.diagnosis[0].rule in ("file-name", "escaping-name")
        return
    assert read == patch
    assert read.canonical == patch.canonical


@STEADY
@given(LINES, LINES, st.integers(-5, 40))
def test_explaining_never_fails_and_never_points_outside(have: list[bytes], want: list[bytes], at: int) -> None:
    hunk = Hunk(max(at, 1), len(want), 1, 0, tuple(b"-" + line for line in want))
    finding = explain("x.c", hunk, 1, 1, have, at)
    assert finding.line is not None
    assert 1 <= finding.line <= max(len(have), 1) + len(want)
    found = places(have, want)
    assert all(have[place : place + len(want)] == want for place in found)
    best = best_place(have, want, at)
    assert best is None or 0 <= best < len(have)


@STEADY
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_the_doctor_survives_anything(one: bytes, two: bytes) -> None:
    examine([SourceChange("fs/x.c", one, two), SourceChange("y.h", None, two), SourceChange("z.c", one, None)])
    source = read_source(one)
    assert all(1 <= item.first <= item.last <= len(lines_of(one)) + 1 for item in source.items)


C_PIECES = st.sampled_from(
    [
        *(b"static", b"int", b"__init", b"f", b"(", b")", b"{", b"}", b";", b"=", b",", b"struct s", b"const", b"1"),
        *(b"#if X\n", b"#else\n", b"#endif\n", b"#define M(x) x\n", b"\n", b"/*", b"*/", b"//", b'"', b"'", b"\\"),
        *(b"EXPORT_SYMBOL", b"\xff", b"\f"),
    ]
)


@STEADY
@given(st.lists(C_PIECES, max_size=40), st.lists(C_PIECES, max_size=40))
def test_the_doctor_survives_damaged_c(one: list[bytes], two: list[bytes]) -> None:
    old, new = b" ".join(one), b" ".join(two)
    examination = examine([SourceChange("fs/x.c", old, new)])
    assert examination.code == (code_of(old) != code_of(new))
