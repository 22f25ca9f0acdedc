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
#: Shadow variables of kpatch's core module (kmod/core/shadow.c), from before the kernel had them.
_SHADOW = re.compile(rb"\bkpatch_shadow_(alloc|free|get)\b")
_TOOLS = {"kpatch": "kpatch's tools", "klp": "the kernel's own tools"}


def foreign_macros(changes: Sequence[SourceChange], engine: str) -> list[Diagnosis]:
    """A finding for each macro, header of macros and shadow function that a change brings in for other tools.

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
                said = f"{name} is for {_TOOLS[other]}, and livepatches of this kernel are made with {_TOOLS[engine]}."
                found.append(_diagnosis("foreign-macro", change.path, line, said, hint))
        if (shadow := _SHADOW.search(text)) and not _SHADOW.search(before):
            line, name = text.count(b"\n", 0, shadow.start()) + 1, shadow[1].decode()
            said = f"kpatch_shadow_{name}() is of kpatch's core module, which no livepatch has to have any more."
            hint = f"Use klp_shadow_{name}() of <linux/livepatch.h>."
            found.append(_diagnosis("foreign-macro", change.path, line, said, hint))
    return found


def macros_without_header(changes: Sequence[SourceChange], engine: str) -> list[Diagnosis]:
    """A finding for each file that uses a macro of this engine and includes none of the headers that define it.

    A header that the change itself touches may include one of them for others: then nothing is said.
    """
    if engine not in _TOOLS:
        return []
    texts = [(change, without_comments(change.patched)) for change in changes if change.patched is not None]
    names = b"|".join(f"{_PREFIXES[engine]}{name}".encode() for name in (*_BOTH, *_ONLY[engine]))
    use = re.compile(rb"\b(%s)\b" % names)
    if any(_includes(text, engine) for change, text in texts if change.path.endswith(".h")):
        return []
    found: list[Diagnosis] = []
    for change, text in texts:
        match = use.search(text)
        if match is None or _includes(text, engine) or use.search(without_comments(change.original or b"")):
            continue
        defined = re.compile(rb"^[ \t]*#[ \t]*define[ \t]+%s\b" % match[1], re.MULTILINE)
        if not any(defined.search(each) for _, each in texts):
            line = text.count(b"\n", 0, match.start()) + 1
            header = _HEADERS[engine][0]
            said = f"{match[1].decode()} is used, and {header}, which defines it, is not included."
            hint = f"Add to the includes of the file: #include {header}"
            found.append(_diagnosis("macro-header", change.path, line, said, hint))
    return found


def _includes(text: bytes, engine: str) -> bool:
    return any(_inclusion(name).search(text) for name in _HEADERS[engine])


def _inclusion(name: str) -> re.Pattern[bytes]:
    """A line that includes a header, in whatever way."""
    spelled = re.escape(name.strip('<>"').encode())
    return re.compile(rb"^[ \t]*#[ \t]*include[ \t]*[<\"](?:[^>\"\n]*/)?%s[>\"]" % spelled, re.MULTILINE)


def _foreign(other: str, engine: str) -> Iterator[tuple[re.Pattern[bytes], str, str]]:
    """What to look for: a pattern, its name for people, and what to do instead."""
    header = _HEADERS[engine][0]
    for name in _HEADERS[other]:
        yield _inclusion(name), name, f"Include {header} instead, and use its macros."
    for name in (*_BOTH, *_ONLY[other]):
        whole = f"{_PREFIXES[other]}{name}"
        hint = f"Use {_PREFIXES[engine]}{name} of {header} instead."
        if name in _ONLY[other]:
            hint = f"Leave it out: {_TOOLS[engine]} have nothing that does the same."
        yield re.compile(rb"\b%s\b" % whole.encode()), whole, hint


def _diagnosis(rule: str, path: str, line: int, message: str, hint: str) -> Diagnosis:
    return Diagnosis(rule=rule, message=message, file=path, line=line, hint=hint, doc=f"{DOC}#{rule}")
