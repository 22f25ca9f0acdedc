# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules that need no compiler: what a change touches, and what of it cannot, or may not, be live patched.

A finding is an error only where the source alone settles it; where a macro, a ``#if`` or the parser leaves a doubt it
is a warning. The compiler and the differ have the last word either way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import PurePosixPath
from typing import Literal

from elivepatch.errors import CannotLivepatchError, Diagnosis, NothingToPatchError
from elivepatch.patches.apply import Applied
from elivepatch.patches.by_name import finding as _finding
from elivepatch.patches.by_name import findings_by_name
from elivepatch.patches.csource import CSource, Item, ItemKind, code_of, read_source
from elivepatch.patches.parser import DOC

#: ``__init`` and ``__exit`` (include/linux/init.h): a section that is freed after the boot or the load, and one that is
#: kept in a module until its end and never used in what is built in.
_INIT = re.compile(rb"\b__(?:init|exit)\b")
_EXIT = re.compile(rb"\b__(?:\w+_)?exit\b")
#: Those that are ``__init`` or nothing, as the configuration has it.
_MAYBE_INIT = re.compile(
    rb"\b(?:__(?:net|mem|cpu|dev|ref)_?(?:init|exit)|__init_or_module|__init_or_\w+|__ref|__head)\b"
)
_C = frozenset((".c", ".h"))


@dataclass(frozen=True)
class SourceChange:
    """A file before and after the series; None where it does not exist."""

    path: str
    original: bytes | None
    patched: bytes | None


@dataclass(frozen=True)
class TouchedFunction:
    """A function that differs. Lines are first and last, from 1, in the original and in the patched file."""

    name: str
    file: str
    kind: Literal["changed", "new", "removed"]
    old_lines: tuple[int, int] | None
    new_lines: tuple[int, int] | None


@dataclass(frozen=True)
class Examination:
    """What the doctor found. ``code`` says whether anything but documentation and comments has changed."""

    code: bool
    functions: tuple[TouchedFunction, ...] = ()
    findings: tuple[Diagnosis, ...] = ()


def changes_of(applied: Applied) -> tuple[SourceChange, ...]:
    """Read what a series did to the files it touches. A renamed file comes as its old path going and its new coming."""
    found: list[SourceChange] = []
    for file in applied.files:
        original = file.original.read_bytes() if file.original is not None else None
        patched = file.patched.read_bytes() if file.patched is not None else None
        if file.old_path is not None:
            found.append(SourceChange(file.old_path, original, None))
            original = None
        found.append(SourceChange(file.path, original, patched))
    return tuple(found)


def examine(changes: Sequence[SourceChange]) -> Examination:
    """Look at every changed file. Never fails, whatever the files hold."""
    code = False
    functions: list[TouchedFunction] = []
    findings: list[Diagnosis] = []
    for change in changes:
        by_name = findings_by_name(change.path)
        if by_name is None or not _differs(change):
            continue
        code = True
        findings += by_name
        if PurePosixPath(change.path).suffix in _C:
            old, new = read_source(change.original or b""), read_source(change.patched or b"")
            touched = [*_functions(change.path, old, new)]
            others = [*_item_findings(change, old, new)]
            if not touched and not others and change.original is not None and change.patched is not None:
                others = [_unclear(change.path)]
            functions += touched
            findings += others
    return Examination(code=code, functions=tuple(functions), findings=tuple(findings))


def require_code(examination: Examination, paths: Sequence[str] = ()) -> None:
    """Raise NothingToPatchError where only documentation and comments have changed; ``paths`` are for the message."""
    if examination.code:
        return
    where = f" ({', '.join(paths[:5])}{', …' if len(paths) > 5 else ''})" if paths else ""
    message = f"The patch changes no code{where}: only documentation and comments, if anything."
    hint = "Send the patch with the code that is to change in the running kernel."
    finding = Diagnosis(rule="only-documentation", message=message, hint=hint, doc=f"{DOC}#only-documentation")
    raise NothingToPatchError(message, hint=hint, diagnosis=[finding])


def require_possible(examination: Examination, more_findings: Sequence[Diagnosis] = ()) -> None:
    """Raise CannotLivepatchError where the doctor, or who looked besides, is sure (findings of severity error)."""
    findings = (*examination.findings, *more_findings)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise CannotLivepatchError(f"{errors[0].message}{more}", hint=errors[0].hint, diagnosis=findings)


def _differs(change: SourceChange) -> bool:
    """Whether more than comments and white space has changed, where the file's kind says what a comment is."""
    if change.original is None or change.patched is None:
        return True
    if PurePosixPath(change.path).suffix in _C:
        return code_of(change.original) != code_of(change.patched)
    return change.original != change.patched


def _pairs(kind: ItemKind, old: CSource, new: CSource) -> Iterator[tuple[Item | None, Item | None]]:
    """The items of a kind that differ: by name, and by order where one comes more than once (``#if``, ``#else``)."""
    names = dict.fromkeys(item.name for source in (old, new) for item in source.items if item.kind is kind)
    before, after = _by_name(kind, old), _by_name(kind, new)
    for name in names:
        was, now = before.get(name, []), after.get(name, [])
        kept = {item.code for item in was} & {item.code for item in now} if len(was) != len(now) else set[bytes]()
        lists = ([item for item in items if item.code not in kept] for items in (was, now))
        for left, right in zip_longest(*lists):
            if left is None or right is None or left.code != right.code:
                yield left, right


def _by_name(kind: ItemKind, source: CSource) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = {}
    for item in source.items:
        if item.kind is kind:
            found.setdefault(item.name, []).append(item)
    return found


def _functions(path: str, old: CSource, new: CSource) -> Iterator[TouchedFunction]:
    for was, now in _pairs(ItemKind.FUNCTION, old, new):
        item = now or was
        if item is not None:
            yield TouchedFunction(
                name=item.name,
                file=path,
                kind="changed" if was and now else "new" if now else "removed",
                old_lines=(was.first, was.last) if was else None,
                new_lines=(now.first, now.last) if now else None,
            )


def _item_findings(change: SourceChange, old: CSource, new: CSource) -> Iterator[Diagnosis]:
    path = change.path
    for was, now in _pairs(ItemKind.FUNCTION, old, new):
        if was is not None and now is not None:
            yield from _function_findings(change, was, now)
    for was, now in _pairs(ItemKind.DATA, old, new):
        if was is not None and now is not None:
            yield _data_finding(change, was, now)
    for was, now in _pairs(ItemKind.TYPE, old, new):
        if was is not None and now is not None:
            yield _finding(
                "struct-layout",
                f"The definition of {now.name} changes: memory that the running kernel holds keeps the old layout.",
                path,
                _first_changed(change, was, now),
                severity="warning",
                hint="Keep the layout; a livepatch can attach new data to an object with shadow variables "
                "(Documentation/livepatch/shadow-vars.rst).",
            )
    for was, now in _pairs(ItemKind.MACRO, old, new):
        item = now or was
        if item is not None:
            yield _finding(
                "macro-change",
                f"The macro {item.name} changes: so does every function that uses it.",
                path,
                now.first if now else None,
                severity="note",
            )
    for name in sorted(old.exports ^ new.exports):
        yield _finding(
            "export-change",
            f"The export of {name} {'goes' if name in old.exports else 'is new'}: the kernel's table of exported "
            "symbols cannot change while it runs.",
            path,
            severity="warning",
            hint="Leave the EXPORT_SYMBOL lines as they are.",
        )


def _first_changed(change: SourceChange, was: Item, now: Item) -> int:
    """The first line, in the patched file, at which two versions of an item differ in more than white space."""
    lines = [
        (text or b"").split(b"\n")[item.first - 1 : item.last]
        for text, item in ((change.original, was), (change.patched, now))
    ]
    for offset, (left, right) in enumerate(zip(*lines, strict=False)):
        if code_of(left) != code_of(right):
            return now.first + offset
    return min(now.last, now.first + min(map(len, lines)))


def _function_findings(change: SourceChange, was: Item, now: Item) -> Iterator[Diagnosis]:
    path, line = change.path, _first_changed(change, was, now)
    sure = all(_INIT.search(item.head) for item in (was, now))
    if sure or any(pattern.search(item.head) for pattern in (_INIT, _MAYBE_INIT) for item in (was, now)):
        doubt = not sure or was.conditional or now.conditional
        runs = f"{now.name}() {'may run' if doubt else 'runs'} only"
        if any(_EXIT.search(item.head) for item in (was, now)):
            message = (
                f"{runs} when its module is unloaded (__exit): a livepatch cannot carry the section it is in, and "
                "where it is built into the kernel, it never runs."
            )
            hint = "Leave it out, and see to the end of the module in a function that runs before."
        else:
            message = (
                f"{runs} while the kernel or its module starts (__init): then it has run already, and is not in memory "
                "any more."
            )
            hint = "Change what runs later instead, or set the state right from a function that does."
        yield _finding(
            "init-code",
            message,
            path,
            line,
            function=now.name,
            severity="warning" if doubt else "error",
            hint=hint,
        )
    values = dict(was.static_data)
    for name, value in now.static_data:
        if name in values and values[name] != value:
            yield _finding(
                "data-initialiser",
                f"The static variable {name} of {now.name}() gets another initial value: the running kernel keeps the "
                "variable with the value it has.",
                path,
                line,
                function=now.name,
                severity="warning",
                hint=_DATA_HINT,
            )


_DATA_HINT = "Change the code that reads the data, or set the new value from a function that the change patches."


def _data_finding(change: SourceChange, was: Item, now: Item) -> Diagnosis:
    path, line = change.path, _first_changed(change, was, now)
    if was.value == now.value:
        return _finding(
            "data-layout",
            f"The declaration of {now.name} changes: the running kernel keeps the object as it is.",
            path,
            line,
            severity="warning",
            hint="Leave existing data as it is; new variables are possible.",
        )
    ignored = rb'KPATCH_IGNORE_SECTION[ \t]*\([ \t]*"\.[\w.]+\.%s"' % now.name.encode()
    left_out = re.search(ignored, change.patched or b"") is not None
    doubt = left_out or any(item.constant or item.conditional or item.unsure for item in (was, now))
    return _finding(
        "data-initialiser",
        f"The initialiser of {now.name} changes: the data exists in the running kernel and is not replaced.",
        path,
        line,
        severity="warning" if doubt else "error",
        hint=_DATA_HINT,
    )


def _unclear(path: str) -> Diagnosis:
    return _finding(
        "unclear-change",
        f"The change in {path} is in no function, data or type that could be made out; the compiler decides.",
        path,
        severity="note",
    )
