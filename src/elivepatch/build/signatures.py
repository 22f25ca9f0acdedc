# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions that are called otherwise after a patch, and callers that it would leave as they are.

Whoever includes a changed header is compiled again. A file with a declaration of its own is not, nor is assembly: it
would go on to pass what the old function took.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from elivepatch.build.rules import finding
from elivepatch.errors import Diagnosis
from elivepatch.patches.csource import CSource, ItemKind, read_source, without_comments

#: Words before a function's name that change nothing for its callers.
_WORDLESS = frozenset(
    b"extern inline noinline noinline_for_stack asmlinkage notrace noinstr nokprobe_inline __visible __weak __cold"
    b" __must_check __sched __latent_entropy __no_kcsan __used __maybe_unused __always_unused __init_or_module".split()
)
_TOKEN = re.compile(rb"\w+|[^\w\s]")
_NAME = re.compile(rb"[A-Za-z_]\w*")
#: Words that are no name of a parameter where they stand last: ``unsigned int``, ``const struct file *``.
_TYPES = frozenset(b"int char short long unsigned signed bool void float double u8 u16 u32 u64 s32 s64 size_t".split())


def changed_signatures(original: bytes, patched: bytes) -> list[str]:
    """The functions of a C file that other files can call, and that take or give something else than before."""
    old, new = read_source(original), read_source(patched)
    before, after = dict(_global_functions(old)), dict(_global_functions(new))
    return sorted(name for name in before.keys() & after.keys() if before[name] != after[name])


def exported_signatures(original: bytes, file: str, changed: Iterable[str]) -> list[Diagnosis]:
    """The warnings about exported functions: whether a module from elsewhere calls one, only the host could tell."""
    exports = read_source(original).exports
    return [
        finding(
            "exported-signature",
            f"{name}() is exported, and called otherwise than before: modules that were not built from this source "
            "would go on as before, and no version is checked any more once they are loaded.",
            file=file,
            function=name,
        )
        for name in changed
        if name in exports
    ]


def _global_functions(source: CSource) -> Iterator[tuple[str, frozenset[bytes]]]:
    found: dict[str, set[bytes]] = {}
    for item in source.items:
        if item.kind is ItemKind.FUNCTION and (signature := _signature(item.head, item.name.encode())) is not None:
            found.setdefault(item.name, set()).add(signature)  # one for each branch of an #if
    yield from ((name, frozenset(signatures)) for name, signatures in found.items())


def _signature(head: bytes, name: bytes) -> bytes | None:
    """What a definition says to callers, without the names of parameters; None for a static function or a macro's."""
    match = re.search(rb"\b" + re.escape(name) + rb"\s*\((.*)\)", head, re.DOTALL)
    if match is None:
        return None
    words = [word for word in _TOKEN.findall(head[: match.start()]) if word not in _WORDLESS]
    if not words or b"static" in words:
        return None
    parameters = [b" ".join(_type_of(_TOKEN.findall(one))) for one in _split(match[1])]
    return b" ".join(words) + b"(" + b",".join(parameters) + b")"


def _type_of(tokens: list[bytes]) -> list[bytes]:
    last = tokens[-1] if tokens else b""
    named = len(tokens) > 1 and _NAME.fullmatch(last) is not None and last not in _TYPES
    return tokens[:-1] if named and tokens[-2] not in (b"struct", b"union", b"enum") else tokens


def _split(parameters: bytes) -> Iterator[bytes]:
    depth = start = 0
    for at, mark in enumerate(parameters):
        depth += (mark in b"([{") - (mark in b")]}")
        if mark == ord(",") and not depth:
            yield parameters[start:at]
            start = at + 1
    yield parameters[start:]


def callers_left(
    source: Path, changed: Mapping[str, Collection[str]], units: Iterable[str], skip: Collection[str]
) -> list[Diagnosis]:
    """The refusals of functions that files call which are not compiled again.

    ``changed`` are the functions by the file that defines them, ``units`` the source files of the kernel, ``skip``
    those that are compiled, or were looked at because they include what has changed.
    """
    names = {name: file for file, functions in changed.items() for name in functions}
    if not names:
        return []
    pattern = re.compile(rb"(?<![\w.>])(?:" + b"|".join(re.escape(name.encode()) for name in names) + rb")\b")
    left: dict[str, list[str]] = {}
    for unit in sorted(set(units) - set(skip)):
        try:
            text = (source / unit).read_bytes()
        except OSError:
            continue  # generated, and no caller of anything
        if not pattern.search(text):
            continue
        text = without_comments(text)
        for name in {match[0].decode() for match in pattern.finditer(text)}:
            if unit.endswith(".S") or not _has_its_own(text, name.encode()):
                left.setdefault(name, []).append(unit)
    return [
        finding(
            "callers-left",
            f"{name}() is called otherwise than before, and {', '.join(files[:3])} would go on as before: nothing that "
            "the patch changes tells it of the new form.",
            file=names[name],
            function=name,
        )
        for name, files in sorted(left.items())
    ]


def _has_its_own(text: bytes, name: bytes) -> bool:
    """Whether a file has a static function, a macro or a pointer of its own by that name, or does not call it."""
    static = rb"\bstatic\b[^;{}()=]*\b" + name + rb"\b"
    macro = rb"#[ \t]*define[ \t]+" + name + rb"\b"
    pointer = rb"\*\s*" + name + rb"\s*[,;=)]"
    calls = rb"(?<![\w.>])" + name + rb"\s*\("
    return re.search(b"|".join((static, macro, pointer)), text) is not None or re.search(calls, text) is None
