# SPDX-License-Identifier: GPL-2.0-or-later
"""The macros for authors of livepatches: those of kpatch, and those that the kernel brings along since 6.19.

They do the same by other names, and each works with its own tools only. Names: kmod/patch/kpatch-macros.h and
kpatch-syscall.h of kpatch, include/linux/livepatch_helpers.h of the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from elivepatch.errors import Diagnosis
from elivepatch.patches.csource import without_comments
from elivepatch.patches.doctor import SourceChange
from elivepatch.patches.parser import DOC

#: The headers of each engine, the one that has all macros first, as they are written behind ``#include``.
_HEADERS = {
    "kpatch": ('"kpatch-macros.h"', '"kpatch-syscall.h"'),
    "klp": ("<linux/livepatch_helpers.h>",),
}
_PREFIXES = {"kpatch": "KPATCH_", "klp": "KLP_"}
_BOTH = (
    *(f"{when}_{what}_CALLBACK" for when in ("PRE", "POST") for what in ("PATCH", "UNPATCH")),
    *(f"SYSCALL_DEFINE{count}" for count in "123456x"),
    "STATIC_CALL",
)
_ONLY = {"kpatch": ("IGNORE_SECTION", "IGNORE_FUNCTION", "FORCE_UNSAFE", "PRINTK", "PRINTK_DEFERRED"), "klp": ()}
_TOOLS = {"kpatch": "kpatch's tools", "klp": "the kernel's own tools"}


def foreign_macros(changes: Sequence[SourceChange], engine: str) -> list[Diagnosis]:
    """A finding for each macro, and each header of macros, that a change brings in for another engine than this one.

    What the change defines itself is its own affair.
    """
    if engine not in _TOOLS:
        return []
    (other,) = _TOOLS.keys() - {engine}
    texts = [(change, without_comments(change.patched)) for change in changes if change.patched is not None]
    found: list[Diagnosis] = []
    for change, text in texts:
        before = without_comments(change.original or b"")
        for pattern, name, hint in _foreign(other, engine):
            uses = list(pattern.finditer(text))
            defined = re.compile(rb"^[ \t]*#[ \t]*define[ \t]+%s\b" % re.escape(name.encode()), re.MULTILINE)
            if len(uses) > len(pattern.findall(before)) and not any(defined.search(each) for _, each in texts):
                line = text.count(b"\n", 0, uses[0].start()) + 1
                found.append(_finding(change.path, line, name, hint, (other, engine)))
    return found


def _foreign(other: str, engine: str) -> Iterator[tuple[re.Pattern[bytes], str, str]]:
    """What to look for: a pattern, its name for people, and what to do instead."""
    header = _HEADERS[engine][0]
    for name in _HEADERS[other]:
        spelled = re.escape(name.strip('<>"').encode())
        pattern = re.compile(rb"^[ \t]*#[ \t]*include[ \t]*[<\"](?:[^>\"\n]*/)?%s[>\"]" % spelled, re.MULTILINE)
        yield pattern, name, f"Include {header} instead, and use its macros."
    for name in (*_BOTH, *_ONLY[other]):
        whole = f"{_PREFIXES[other]}{name}"
        hint = f"Use {_PREFIXES[engine]}{name} of {header} instead."
        if name in _ONLY[other]:
            hint = f"Leave it out: {_TOOLS[engine]} have nothing that does the same."
        yield re.compile(rb"\b%s\b" % whole.encode()), whole, hint


def _finding(path: str, line: int, name: str, hint: str, engines: tuple[str, str]) -> Diagnosis:
    other, engine = (_TOOLS[each] for each in engines)
    return Diagnosis(
        rule="foreign-macro",
        message=f"{name} is for {other}, and livepatches of this kernel are made with {engine}.",
        file=path,
        line=line,
        hint=hint,
        doc=f"{DOC}#foreign-macro",
    )
