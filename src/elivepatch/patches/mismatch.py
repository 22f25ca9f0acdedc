# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a hunk does not apply, in lines: what the patch expects, and what the tree has in its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from elivepatch.errors import Diagnosis
from elivepatch.patches.model import Hunk
from elivepatch.patches.parser import DOC

_SHOWN_LINES = 8
_SHOWN_CHARACTERS = 160
#: A line that a file has more often than this says nothing about where a hunk belongs.
_COMMON = 64
REBASE = "Make the patch against the source of this kernel (rebase it, or take the backport for this version)."
_FUZZ = (
    "The lines around the change differ from those that the patch was made for. Look whether the change is right "
    "there, then make the patch again against the source of this kernel."
)


def lines_of(data: bytes) -> list[bytes]:
    """The lines of a file without their newlines; bytes such as form feeds do not end a line."""
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    return lines


def places(lines: Sequence[bytes], wanted: Sequence[bytes]) -> list[int]:
    """Every index at which the wanted lines stand, one behind the other."""
    if not wanted:
        return []
    last = len(lines) - len(wanted)
    first = wanted[0]
    return [at for at in range(last + 1) if lines[at] == first and list(lines[at : at + len(wanted)]) == list(wanted)]


def best_place(lines: Sequence[bytes], wanted: Sequence[bytes], expected: int) -> int | None:
    """The index at which most of the wanted lines stand, the nearest to the expected one where several do.

    None where the file has none of them (blank and very common lines do not count).
    """
    where: dict[bytes, list[int]] = {}
    interesting = {line for line in wanted if line.strip()}
    for at, line in enumerate(lines):
        if line in interesting:
            where.setdefault(line, []).append(at)
    votes: Counter[int] = Counter()
    for offset, line in enumerate(wanted):
        found = where.get(line, [])
        if len(found) <= _COMMON:
            votes.update(at - offset for at in found if at >= offset)
    if not votes:
        return None
    return max(votes, key=lambda at: (votes[at], -abs(at - expected)))


def explain(
    path: str, hunk: Hunk, number: int, count: int, lines: Sequence[bytes], shift: int, fuzz: int = 0
) -> Diagnosis:
    """The finding for a hunk that does not apply.

    ``lines`` is the file as the patch met it, ``shift`` by how many lines the hunk before this one was off, ``fuzz``
    how many lines of context would have to be left out of account for it to apply (0: it applies in no way). The line
    of the finding counts in that file.
    """
    wanted = hunk.old_lines
    expected = max(0, hunk.old_first - 1 + shift)
    fate = f"would apply only with fuzz {fuzz}" if fuzz else "does not apply"
    title = f"{path}: hunk {number} of {count} ({hunk.header}) {fate}"
    rule, hint = ("fuzz", _FUZZ) if fuzz else ("hunk-failed", REBASE)
    if places(lines, hunk.new_lines) and hunk.new_lines != wanted:
        at = min(places(lines, hunk.new_lines), key=lambda place: abs(place - expected))
        return _finding(
            "hunk-applied",
            f"{title}: the tree has this change already, at line {at + 1}.",
            path,
            at,
            "Leave this hunk out: this kernel has that part of the change.",
        )
    at = best_place(lines, wanted, expected)
    if at is None:
        found = min(expected, max(len(lines) - 1, 0))
        what = f"expected at line {expected + 1}, and the file (of {len(lines)} lines) has nothing like it"
        return _finding(rule, f"{title}: {what}.{_block('the patch expects', wanted)}", path, found, hint)
    bad = first_difference(lines, wanted, at)
    has = _show(lines[at + bad]) if at + bad < len(lines) else "the end of the file"
    wants = _show(wanted[bad]) if bad < len(wanted) else "the end of the file"
    around = _block("the patch expects", wanted, bad) + _block("the tree has", lines[at : at + len(wanted)], bad)
    message = f"{title}: line {at + bad + 1} should be {wants}, the tree has {has}.{around}"
    return _finding(rule, message, path, at + bad, hint)


def first_difference(lines: Sequence[bytes], wanted: Sequence[bytes], at: int) -> int:
    """The index in ``wanted`` of the first line that the file has otherwise, when the hunk is held at index ``at``."""
    for offset, line in enumerate(wanted):
        if at + offset >= len(lines) or lines[at + offset] != line:
            return offset
    return len(wanted)


def _finding(rule: str, message: str, path: str, at: int, hint: str) -> Diagnosis:
    return Diagnosis(rule=rule, message=message, file=path, line=at + 1, hint=hint, doc=f"{DOC}#{rule}")


def show_line(line: bytes) -> str:
    """A line of source as it can be printed: tabs kept as spaces, what is not printable replaced, cut when long."""
    text = line.decode(errors="replace").expandtabs(8)
    return "".join(char if char.isprintable() else "?" for char in text)[:_SHOWN_CHARACTERS]


def _show(line: bytes) -> str:
    return f"'{show_line(line).strip()}'" if line.strip() else "an empty line"


def _block(title: str, lines: Sequence[bytes], around: int = 0) -> str:
    first = max(0, min(around - _SHOWN_LINES // 2, len(lines) - _SHOWN_LINES))
    shown = "".join(f"\n    | {show_line(line)}" for line in lines[first : first + _SHOWN_LINES])
    return f"\n  {title}:{shown}" if shown else ""
