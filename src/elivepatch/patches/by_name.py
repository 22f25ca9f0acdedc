# SPDX-License-Identifier: GPL-2.0-or-later
"""What the name of a changed file says already: the rules that need neither its content nor a parser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Literal

from elivepatch.errors import Diagnosis
from elivepatch.patches.parser import DOC

Severity = Literal["error", "warning", "note"]
_DOCUMENTATION_NAMES = frozenset(
    ("MAINTAINERS", "CREDITS", "COPYING", "CHANGES", ".mailmap", ".gitignore", ".gitattributes", ".editorconfig")
)
_DOCUMENTATION_SUFFIXES = frozenset((".rst", ".txt", ".md"))


def findings_by_name(path: str) -> tuple[Diagnosis, ...] | None:
    """What the name of a changed file says already, without its content; None where it is documentation."""
    return None if _is_documentation(path) else tuple(_file_findings(path))


def _file_findings(path: str) -> Iterator[Diagnosis]:
    pure = PurePosixPath(path)
    if pure.suffix == ".S":
        yield finding(
            "assembly",
            f"{path} is assembly: only functions that the C compiler makes can be replaced in a running kernel.",
            path,
            hint="Leave it out if the rest of the change works without it; otherwise this needs a reboot.",
        )
    elif pure.name in ("Makefile", "Kbuild") or pure.name.startswith(("Kconfig", "Makefile.", "Kbuild.")):
        yield finding(
            "build-file",
            f"{path} belongs to the build system: a livepatch keeps the configuration and the objects of its kernel.",
            path,
            severity="warning",
            hint="Leave it out, unless it says what a new source file of the patch is a part of.",
        )
    elif pure.suffix == ".h":
        yield finding(
            "header-change",
            f"{path} is a header: the functions of every file that includes it may change.",
            path,
            severity="note",
        )
    elif pure.suffix != ".c":
        yield finding(
            "other-file",
            f"{path} is no C source: elivepatch does not know what it becomes in the kernel.",
            path,
            severity="warning",
            hint="Leave it out if the change works without it.",
        )


def _is_documentation(path: str) -> bool:
    pure = PurePosixPath(path)
    return (
        pure.parts[0] in ("Documentation", "LICENSES")
        or pure.name in _DOCUMENTATION_NAMES
        or pure.name.startswith("README")
        or pure.suffix in _DOCUMENTATION_SUFFIXES
    )


def finding(
    rule: str,
    message: str,
    path: str,
    line: int | None = None,
    *,
    function: str | None = None,
    severity: Severity = "error",
    hint: str | None = None,
) -> Diagnosis:
    """A finding of the doctor about a file of the kernel; ``line`` counts from 1 in the patched file."""
    return Diagnosis(
        rule=rule,
        message=message,
        severity=severity,
        file=path,
        line=line,
        function=function,
        hint=hint,
        doc=f"{DOC}#{rule}",
    )
