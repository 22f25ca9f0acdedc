# SPDX-License-Identifier: GPL-2.0-or-later
"""What a patch defines anew, and what the differs let through although it is not what it looks like.

A global function or variable of a name that the kernel has already would not link in the kernel itself. In a livepatch
it would stand beside the kernel's: the patched code uses the new one, all other code the old one. That is so when a
patch moves a function to another file, too. And a variable under another name is a new variable, without the state of
the old one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elivepatch.build.compiler import CompiledObject
from elivepatch.build.engines.klp_image import ParentSymbols
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.rules import finding
from elivepatch.errors import CannotLivepatchError, Diagnosis
from elivepatch.kernel.elf import SHN_UNDEF, STB_LOCAL, STT_OBJECT, ElfImage

_SHN_LORESERVE = 0xFF00
#: What has a state; constants have none.
_STATE = (".data", ".bss")


@dataclass(frozen=True)
class _Defined:
    """What an object defines: its global names, and its variables with their size and kind of section."""

    globals: frozenset[str]
    variables: dict[str, tuple[int, str]]


def check_definitions(kernel: PreparedKernel, compiled: Sequence[CompiledObject]) -> list[Diagnosis]:
    """The warnings about variables that seem to have another name now.

    Raises CannotLivepatchError for new global names that the kernel has already.
    """
    notes: list[Diagnosis] = []
    refused: list[Diagnosis] = []
    for one in compiled:
        before, after = _defined(one.original), _defined(one.patched)
        notes += _renamed(one, before, after)
        fresh = after.globals - before.globals
        if not fresh:
            continue
        places = ParentSymbols(kernel, one.parent).places(fresh)
        refused += [
            finding(
                "duplicate-definition",
                f"{name} is new in {one.source}, and {one.parent} has one of that name: all code that is not patched "
                "would go on to use that.",
                file=one.source,
            )
            for name in sorted(fresh)
            if any(not place.local for place in places.get(name, ()))
        ]
    if refused:
        raise CannotLivepatchError(refused[0].message, hint=refused[0].hint, diagnosis=[*refused, *notes])
    return notes


def _renamed(one: CompiledObject, before: _Defined, after: _Defined) -> list[Diagnosis]:
    gone = {name: kind for name, kind in before.variables.items() if name not in after.variables}
    new = {name: kind for name, kind in after.variables.items() if name not in before.variables}
    return [
        finding(
            "variable-renamed",
            f"The variable {name} is gone and {other} is new: it starts from its initial value.",
            file=one.source,
        )
        for name, kind in sorted(gone.items())
        for other in sorted(other for other in new if new[other] == kind)[:1]
    ]


def _defined(path: Path) -> _Defined:
    names: set[str] = set()
    variables: dict[str, tuple[int, str]] = {}
    with ElfImage(path) as image:
        sections = {section.index: section.name for section in image.sections}
        for symbol in image.symbols():
            if not SHN_UNDEF < symbol.section < _SHN_LORESERVE or not symbol.name:
                continue
            if symbol.bind != STB_LOCAL and not symbol.name.startswith("__pfx_"):
                names.add(symbol.name)
            section = sections.get(symbol.section, "")
            # names with a dot are static variables of functions, those with underscores are made by macros
            by_hand = "." not in symbol.name and not symbol.name.startswith("__")
            if symbol.type == STT_OBJECT and by_hand and section.startswith(_STATE):
                variables[symbol.name] = (symbol.size, section.split(".")[1])
    return _Defined(frozenset(names), variables)
