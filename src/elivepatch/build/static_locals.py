# SPDX-License-Identifier: GPL-2.0-or-later
"""Static variables of functions that go from one function to another under the same name.

objtool's differ finds the counterpart of such a variable by its name. Where one function loses its ``static int seen``
and another gets one, it takes the new variable for the old: it has the state of the old one, and not its initial value.
(kpatch's differ refuses that.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from elivepatch.build.compiler import CompiledObject
from elivepatch.build.rules import finding
from elivepatch.errors import CannotLivepatchError, Diagnosis
from elivepatch.kernel.elf import SHF_EXECINSTR, STT_FUNC, STT_OBJECT, STT_SECTION, ElfImage, unpack_relocations
from elivepatch.kernel.elf_object import SHT_RELA

#: A static variable of a function, as the compiler numbers it; names with underscores in front are made by macros.
_LOCAL = re.compile(r"(?P<name>[A-Za-z]\w*)\.\d+")
_STATE = (".data", ".bss")


def check_static_locals(compiled: Sequence[CompiledObject]) -> None:
    """Raise CannotLivepatchError for static variables that seem to have moved into another function."""
    findings: list[Diagnosis] = []
    for one in compiled:
        before, functions = _users(one.original)
        after, still = _users(one.patched)
        for name in sorted(before.keys() & after.keys()):
            lost = sorted((before[name] - after[name]) & still)
            won = sorted((after[name] - before[name]) & functions)
            if lost and won:
                said = (
                    f"{lost[0]}() no longer uses its static variable {name}, and {won[0]}() has one of that name: "
                    "it would be taken for the old one."
                )
                findings.append(finding("static-local-changed", said, file=one.source, function=lost[0]))
    if findings:
        raise CannotLivepatchError(findings[0].message, hint=findings[0].hint, diagnosis=findings)


def _users(path: Path) -> tuple[dict[str, set[str]], set[str]]:
    """The functions that use static variables of functions, by the variables' names; and all functions."""
    with ElfImage(path) as image:
        table = image.symbol_table()
        names: dict[int, str] = {}  # section → variable: each has one of its own
        functions: dict[int, str] = {}
        for symbol in table:
            if symbol.type == STT_OBJECT and 0 < symbol.section < len(image.sections):
                match = _LOCAL.fullmatch(symbol.name)
                if match and image.sections[symbol.section].name.startswith(_STATE):
                    names[symbol.section] = match["name"]
            elif symbol.type == STT_FUNC:
                functions.setdefault(symbol.section, symbol.name.partition(".")[0])
        found: dict[str, set[str]] = {}
        for section in image.sections:
            if section.type != SHT_RELA or not image.sections[section.info].flags & SHF_EXECINSTR:
                continue
            for one in unpack_relocations(image.data(section)):
                target = table[one.symbol]
                if target.type in (STT_OBJECT, STT_SECTION) and target.section in names and section.info in functions:
                    found.setdefault(names[target.section], set()).add(functions[section.info])
        return found, set(functions.values())
