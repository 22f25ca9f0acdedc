# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeping line numbers where a patch makes a file longer or shorter.

``__LINE__`` goes into the code of every WARN_ON and might_sleep, into the data of every pr_debug and into the names of
some symbols below a change: one line more would change all of them. ``#line`` (C11, 6.10.4) after each changed part
gives what follows its old numbers back. In macro arguments GCC takes it like any other directive (cpp manual, 3.9).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from elivepatch.errors import Diagnosis

#: Cells of the tables that changed parts without a line of their own are compared in: of one part, and of a file.
_PART_CELLS = 400_000
_FILE_CELLS = 4_000_000
_SPANS = re.compile(
    rb'"(?:[^"\\\n]|\\.)*"|' + rb"'(?:[^'\\\n]|\\.)*'" + rb"|(?P<comment>//(?:[^\n\\]|\\.)*|/\*.*?(?:\*/|\Z))",
    re.DOTALL,
)
_DIRECTIVE = re.compile(rb"[ \t]*#[ \t]*(?P<word>[a-z]+|\d)")
_SPACE = b" \t\r\f\v"


@dataclass(frozen=True)
class KeptLines:
    """A patched text to be compiled. ``whole`` says that all of its unchanged lines have their old numbers."""

    text: bytes
    whole: bool = True


@dataclass(frozen=True)
class Texts:
    """The changed files by their paths: as they are compiled, and as the patch left them."""

    patched: Mapping[str, bytes]
    plain: Mapping[str, bytes]

    def tells_of(self, findings: Sequence[Diagnosis]) -> bool:
        """Whether a finding names a line of a file whose lines have other numbers as it is compiled."""
        return any(
            each.line is not None and each.file and self.plain.get(each.file) != self.patched.get(each.file)
            for each in findings
        )


def keep_lines(original: bytes, patched: bytes) -> KeptLines:
    """The patched text, with what is unchanged in it told to be on the lines where the original has it."""
    old, new = original.split(b"\n"), patched.split(b"\n")
    layout, had = _Layout(patched), _Layout(original)
    if layout.numbered or had.numbered:  # as generated files are: whose lines these are is said in them already
        return KeptLines(patched, whole=len(old) == len(new))
    same, whole = _pairs(old, new)
    before = _directives(same, layout, len(new))
    if not before:
        return KeptLines(patched, whole)
    out: list[bytes] = []
    for number, line in enumerate(new):
        if number in before:
            out.append(b"#line %d" % before[number])
        out.append(line)
    return KeptLines(b"\n".join(out), whole)


def _directives(same: Sequence[tuple[int, int]], layout: _Layout, total: int) -> dict[int, int]:
    """Where to put a ``#line``, by the line it goes before, and the number in it.

    In a part that ``#if`` leaves out it is not seen: what was told in one is told again when that part is over.
    """
    wanted = {at: was - at for at, was in same}
    told, again = 0, False  # told: what is added to a line's place for the number that the compiler believes
    open_parts: list[bool] = []  # for each open #if, whether anything was told in it
    before: dict[int, int] = {}
    for at in range(total):
        word = layout.conditional(at)
        if at in wanted and (again or wanted[at] != told) and layout.takes_directive(at):
            before[at] = at + wanted[at] + 1
            told, again = wanted[at], False
            open_parts = [True] * len(open_parts)
        if word.startswith(b"if"):
            open_parts.append(False)
        elif word and open_parts:
            again = again or open_parts[-1]
            if word == b"endif":
                open_parts.pop()
    return before


class _Layout:
    """What of a text is code, line by line."""

    def __init__(self, text: bytes) -> None:
        self._open: set[int] = set()
        line, since = 0, 0
        for match in _SPANS.finditer(text):
            if breaks := text.count(b"\n", match.start(), match.end()):
                line += text.count(b"\n", since, match.start())
                if match["comment"]:
                    self._open.update(range(line + 1, line + 1 + breaks))
                line, since = line + breaks, match.end()
        plain = _SPANS.sub(lambda found: b"\n" * found[0].count(b"\n") if found["comment"] else found[0], text)
        lines = plain.split(b"\n")
        self._open |= {number + 1 for number, each in enumerate(text.split(b"\n")) if each.rstrip(_SPACE)[-1:] == b"\\"}
        self._last = max((number for number, each in enumerate(lines) if each.strip()), default=-1)
        self._words = {
            number: match["word"]
            for number, each in enumerate(lines)
            if number not in self._open and (match := _DIRECTIVE.match(each))
        }

    @property
    def numbered(self) -> bool:
        """Whether it has line directives of its own (``#line 3``, or ``# 3`` as the preprocessor writes them)."""
        return any(word == b"line" or word.isdigit() for word in self._words.values())

    def conditional(self, line: int) -> bytes:
        """The word of the directive on a line, if it is one of ``#if`` and its kin; lines count from 0."""
        word = self._words.get(line, b"")
        return word if word.startswith((b"if", b"el")) or word == b"endif" else b""

    def takes_directive(self, line: int) -> bool:
        """Whether one can stand before a line, neither in a comment nor in a continued line, and is of any use."""
        return line not in self._open and line <= self._last


def _pairs(old: Sequence[bytes], new: Sequence[bytes]) -> tuple[list[tuple[int, int]], bool]:
    """Lines that are the same, as (in new, in old), rising; and whether all parts could be compared.

    Lines that come once in both are found at once, and what lies between two of those is compared by itself.
    """
    once_old, once_new = ({line for line, count in Counter(text).items() if count == 1} for text in (old, new))
    places = {line: number for number, line in enumerate(old) if line in once_new and line in once_old}
    anchors = _rising([(at, places[line]) for at, line in enumerate(new) if line in places])
    pairs: list[tuple[int, int]] = []
    whole, cells = True, _FILE_CELLS
    start = (0, 0)
    for at, was in [*anchors, (len(new), len(old))]:
        part_new, part_old = new[start[0] : at], old[start[1] : was]
        head, tail = _ends(part_old, part_new)
        middle_new, middle_old = part_new[head : len(part_new) - tail], part_old[head : len(part_old) - tail]
        pairs += [(start[0] + number, start[1] + number) for number in range(head)]
        size = len(middle_new) * len(middle_old)
        if size <= min(_PART_CELLS, cells):
            cells -= size
            pairs += [(start[0] + head + a, start[1] + head + b) for a, b in _common(middle_new, middle_old)]
        else:
            whole = False
        pairs += [(at - number, was - number) for number in range(tail, 0, -1)]
        if at < len(new):
            pairs.append((at, was))
        start = (at + 1, was + 1)
    return pairs, whole


def _ends(old: Sequence[bytes], new: Sequence[bytes]) -> tuple[int, int]:
    """How many lines are the same from the beginning, and of the rest from the end."""
    most = min(len(old), len(new))
    head = next((number for number in range(most) if old[number] != new[number]), most)
    most -= head
    return head, next((number for number in range(most) if old[-1 - number] != new[-1 - number]), most)


def _rising(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The longest choice of pairs, given in the order of their first numbers, whose second ones rise too."""
    ends: list[int] = []  # the lowest second number that a choice of each length can end with
    last: list[int] = []
    previous: list[int] = []
    for number, (_, was) in enumerate(pairs):
        length = bisect_left(ends, was)
        ends[length : length + 1] = [was]
        last[length : length + 1] = [number]
        previous.append(last[length - 1] if length else -1)
    found: list[tuple[int, int]] = []
    at = last[-1] if last else -1
    while at >= 0:
        found.append(pairs[at])
        at = previous[at]
    return found[::-1]


def _common(new: Sequence[bytes], old: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """The longest common subsequence of two short texts, as pairs of places."""
    rows = [[0] * (len(old) + 1)]
    for line in reversed(new):
        below, row = rows[-1], [0] * (len(old) + 1)
        for column in range(len(old) - 1, -1, -1):
            row[column] = below[column + 1] + 1 if line == old[column] else max(below[column], row[column + 1])
        rows.append(row)
    rows.reverse()
    at = was = 0
    while at < len(new) and was < len(old):
        if new[at] == old[was]:
            yield at, was
            at, was = at + 1, was + 1
        elif rows[at + 1][was] >= rows[at][was + 1]:
            at += 1
        else:
            was += 1
