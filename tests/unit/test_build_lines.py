# SPDX-License-Identifier: GPL-2.0-or-later
"""The line numbers of patched texts: what is unchanged keeps them, whatever stands around it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elivepatch.build.lines import keep_lines


def numbers(text: bytes) -> list[tuple[int, bytes]]:
    """Each line with the number that the compiler gives it."""
    found: list[tuple[int, bytes]] = []
    number = 1
    for line in text.split(b"\n"):
        if match := re.fullmatch(rb"#line (\d+)", line):
            number = int(match[1])
        else:
            found.append((number, line))
            number += 1
    return found


ORIGINAL = b"""\
/* a comment
 * of some
 * lines */
#define WARN \\
	one \\
	two

static inline int f(void)
{
	WARN_ON(1);
	return 1;
}

static inline int g(void)
{
	WARN_ON(2);
	return 2;
}
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"	return 1;\n", b"	if (x)\n		return 0;\n	return 1;\n"),
        (b"	return 1;\n", b""),
        (b"	WARN_ON(1);\n	return 1;\n", b"	return 1;\n"),
        (b"/* a", b"/* new */\n/* a"),
        (b" * of some\n", b""),
        (b"	one \\\n", b"	one \\\n	half \\\n"),
        (b"static inline int f", b"int h(void);\n\nstatic inline int f"),
    ],
)
def test_unchanged_lines_keep_their_numbers(before: bytes, after: bytes) -> None:
    assert ORIGINAL.count(before) == 1
    patched = ORIGINAL.replace(before, after)
    kept = keep_lines(ORIGINAL, patched).text
    assert [line for _, line in numbers(kept)] == patched.split(b"\n")
    old = {line: number for number, line in numbers(ORIGINAL) if b"WARN_ON" in line}
    new = {line: number for number, line in numbers(kept) if b"WARN_ON" in line}
    assert new == {line: number for line, number in old.items() if line in new}
    lines = kept.split(b"\n")
    for at, line in enumerate(lines):
        if line.startswith(b"#line"):
            assert not lines[at - 1].endswith(b"\\")
            assert b"/*" not in lines[at - 1] or b"*/" in lines[at - 1]


def test_lines_of_a_text_that_keeps_its_length_are_left_alone() -> None:
    patched = ORIGINAL.replace(b"return 1", b"return 3")
    assert keep_lines(ORIGINAL, patched).text == patched


# -- any text and any change, with a small preprocessor that is written for this test alone


def compiled(text: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that reach the compiler, with the numbers that it gives them."""
    number, comment, continued = 1, False, False
    parts: list[list[bool]] = []  # of each open #if: whether this part is compiled, and whether one was
    for line in text.split(b"\n"):
        directive = re.fullmatch(rb"#(\w+) ?(.*)", line) if not (comment or continued) else None
        assert comment or not (continued and line.startswith(b"#line")), "a directive in a continued line"
        assert not (comment and line.startswith(b"#line")), "a directive in a comment"
        active = all(part[0] for part in parts)
        if directive and directive[1] == b"line":
            number = int(directive[2]) if active else number + 1
            continue
        if directive and directive[1] == b"if":
            parts.append([directive[2] == b"1"] * 2)
        elif directive and directive[1] == b"else":
            parts[-1][0] = not parts[-1][1]
        elif directive and directive[1] == b"elif":
            parts[-1][0] = directive[2] == b"1" and not parts[-1][1]
            parts[-1][1] |= parts[-1][0]
        elif directive and directive[1] == b"endif":
            parts.pop()
        elif active and not (comment or continued):
            yield number, line
        if comment or line.startswith(b"/*"):
            comment = not line.endswith(b"*/")
        continued = not comment and line.endswith(b"\\")
        number += 1


FILLERS = [
    b"",
    b"}",
    b"\tWARN_ON(1);",
    b"/* one line */",
    b"/* of\n * three\n */",
    b"#define M \\\n\ta \\\n\tb",
    b"// \" '",
]
#: At the end of all texts, so that of two lines that have changed places it is never one of these that has stayed.
OFTEN = b"\n".join([*FILLERS, b"#if 0", b"#elif 0", b"#elif 1", b"#else", b"#endif", b"#if 1", b"#endif"] * 2)
FILLED = st.sampled_from(FILLERS)
UNIQUE = st.integers(0, 10**9).map(lambda number: b"\tmark_%d();" % number)


def conditional(inner: st.SearchStrategy[list[bytes]]) -> st.SearchStrategy[list[bytes]]:
    """Pieces within ``#if``, with what may come between it and its ``#endif``."""
    value = st.sampled_from([b"0", b"1"])
    whole = st.tuples(value, inner, value, inner, inner).map(
        lambda a: [b"#if " + a[0], *a[1], b"#elif " + a[2], *a[3], b"#else", *a[4], b"#endif"]
    )
    return st.one_of(whole, st.tuples(value, inner).map(lambda a: [b"#if " + a[0], *a[1], b"#endif"]))


def renamed(pieces: list[bytes], name: bytes) -> list[bytes]:
    """The pieces with their marks under another name."""
    return [piece.replace(b"mark", name) for piece in pieces]


PIECES = st.recursive(
    st.lists(st.one_of(FILLED, UNIQUE), max_size=6),
    lambda inner: st.lists(st.one_of(inner, conditional(inner)), max_size=4).map(lambda lists: list(chain(*lists))),
    max_leaves=12,
)


@given(st.lists(st.tuples(PIECES, PIECES, st.booleans()), max_size=6))
def test_what_both_texts_compile_has_the_same_number_in_both(
    parts: list[tuple[list[bytes], list[bytes], bool]],
) -> None:
    # what goes and what comes is never the same: a line that has moved may keep the number of either place
    pieces = [
        (same, [] if added else renamed(other, b"gone"), renamed(other, b"come") if added else [])
        for same, other, added in parts
    ]
    original = b"\n".join([*chain(*([*same, *gone] for same, gone, _ in pieces)), OFTEN])
    patched = b"\n".join([*chain(*([*same, *come] for same, _, come in pieces)), OFTEN])
    kept = keep_lines(original, patched)
    assert kept.whole
    assert [line for line in kept.text.split(b"\n") if not line.startswith(b"#line")] == patched.split(b"\n")
    old, new = list(compiled(original)), list(compiled(kept.text))
    once = {line for _, line in old if line.startswith(b"\tmark") and original.count(line) == patched.count(line) == 1}
    assert [pair for pair in new if pair[1] in once] == [
        pair for pair in old if pair[1] in once and pair[1] in {line for _, line in new}
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"#ifdef X\n\tx();\n", b"#ifdef X\n\tx();\n\ty();\n"),
        (b"#ifdef X\n\tx();\n", b"#ifdef X\n"),
        (b"\tx();\n#else\n", b"\tx();\n\ty();\n#else\n"),
        (b"#else\n", b"\ty();\n#else\n\tz();\n"),
        (b"#endif\n", b"\ty();\n#endif\n"),
    ],
)
def test_numbers_are_told_again_behind_what_may_be_left_out(before: bytes, after: bytes) -> None:
    text = b"#ifdef X\n\tx();\n#else\n\t0;\n#endif\nint after;\n"
    assert text.count(before) == 1
    lines = keep_lines(text, text.replace(before, after)).text.split(b"\n")
    assert lines[lines.index(b"int after;") - 1] == b"#line 6"


def test_nothing_is_put_behind_the_last_line_of_a_header() -> None:
    # else the compiler would read a guarded header again and again
    text = b"#ifndef H\n#define H\nint a;\n#endif /* H */\n\n/* end */\n"
    kept = keep_lines(text, text.replace(b"int a;", b"int a;\nint b;")).text
    assert kept.endswith(b"#endif /* H */\n\n/* end */\n")
    assert kept.count(b"#line") == 1


@pytest.mark.parametrize("line", [b"#line 7", b'# 3 "parse.y"', b" #  line 9 /* generated */"])
def test_a_file_that_tells_its_own_numbers_is_left_alone(line: bytes) -> None:
    text = b"int a;\n" + line + b"\nint b;\n"
    longer, equal = text.replace(b"int a", b"int c;\nint a"), text.replace(b"int a", b"int c")
    assert keep_lines(text, longer).text == longer
    assert not keep_lines(text, longer).whole
    assert keep_lines(text, equal).whole


def test_a_long_file_with_changes_far_apart() -> None:
    lines = [b"\tline %d;" % number if number % 3 else b"}" for number in range(30_000)]
    text = b"\n".join(lines)
    patched = b"\n".join([b"first", *lines[:15_000], b"\tmiddle;", b"", *lines[15_001:], b"last"])
    began = time.monotonic()
    kept = keep_lines(text, patched)
    assert time.monotonic() - began < 5
    assert kept.whole
    old = [number for number, line in numbers(text) if line == b"\tline 14999;"]
    assert [number for number, line in numbers(kept.text) if line == b"\tline 14999;"] == old


def test_a_part_that_is_too_long_to_compare_is_said() -> None:
    same = [b"a" if number % 3 else b"b" for number in range(4000)]
    other = [b"b" if number % 5 else b"a" for number in range(4001)]
    text, patched = (b"\n".join([b"\thead;", *middle, b"\ttail;", b""]) for middle in (same, other))
    began = time.monotonic()
    kept = keep_lines(text, patched)
    assert time.monotonic() - began < 5
    assert not kept.whole
    assert [number for number, line in numbers(kept.text) if line == b"\ttail;"] == [4002]
