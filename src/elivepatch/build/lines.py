# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeping line numbers where a header grows or shrinks.

``__LINE__`` goes into the code of every WARN_ON and might_sleep below a change, so a header that gets one line more
would change every function that uses any of its macros. ``#line`` (C11, 6.10.4) after each changed part gives what
follows its old numbers back.
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher

#: A file with more changed lines than this is left as it is; comparing them takes quadratic time.
_LINES_LIMIT = 4000
_SPANS = re.compile(
    rb'"(?:[^"\\\n]|\\.)*"|' + rb"'(?:[^'\\\n]|\\.)*'" + rb"|//(?:[^\n\\]|\\.)*|(?P<comment>/\*.*?(?:\*/|\Z))",
    re.DOTALL,
)


def keep_lines(original: bytes, patched: bytes) -> bytes:
    """The patched text, with what is unchanged in it told to be on the lines where the original has it."""
    old, new = original.split(b"\n"), patched.split(b"\n")
    head = 0
    while head < min(len(old), len(new)) and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < min(len(old), len(new)) - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    middle_old, middle_new = old[head : len(old) - tail], new[head : len(new) - tail]
    if max(len(middle_old), len(middle_new)) > _LINES_LIMIT:
        return patched
    # pairs of lines that are the same: (first in new, first in old, count), from 0
    blocks = SequenceMatcher(None, middle_new, middle_old, autojunk=False).get_matching_blocks()
    same = [(head + at, head + was, count) for at, was, count in blocks if count]
    if tail:
        same.append((len(new) - tail, len(old) - tail, tail))
    closed = _closed(patched, new)
    told = 0  # what must be added to a line's number in the new text to have the one that the compiler believes
    before: dict[int, int] = {}
    for at, was, count in same:
        if was - at == told:
            continue
        place = next((line for line in range(at, at + count) if line in closed), None)
        if place is not None:
            before[place] = was + (place - at) + 1
            told = was - at
    if not before:
        return patched
    out: list[bytes] = []
    for number, line in enumerate(new):
        if number in before:
            out.append(b"#line %d" % before[number])
        out.append(line)
    return b"\n".join(out)


def _closed(text: bytes, lines: list[bytes]) -> set[int]:
    """The lines before which a directive can stand: neither within a comment nor continuing the line before."""
    open_lines: set[int] = set()
    for match in _SPANS.finditer(text):
        if match["comment"] and b"\n" in match["comment"]:
            first = text.count(b"\n", 0, match.start())
            open_lines.update(range(first + 1, first + 1 + match["comment"].count(b"\n")))
    continued = {number + 1 for number, line in enumerate(lines) if line.rstrip(b" \t").endswith(b"\\")}
    return set(range(len(lines))) - open_lines - continued
