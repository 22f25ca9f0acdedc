# SPDX-License-Identifier: GPL-2.0-or-later
"""Constant tables that change, and who goes on reading the old ones.

kpatch's differ takes a changed constant along for the functions that it replaces; all others keep the kernel's. Where
one of those reads it as well, half of the kernel would go by the new table and half by the old one. (objtool's differ
refuses every changed value.)
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from elivepatch.build.engines.engine import DiffObject
from elivepatch.build.rules import finding
from elivepatch.errors import CannotLivepatchError, Diagnosis
from elivepatch.kernel.elf import (
    SHF_ALLOC,
    SHF_EXECINSTR,
    STB_LOCAL,
    STT_FUNC,
    STT_OBJECT,
    STT_SECTION,
    ElfImage,
    Relocation,
    Section,
    Symbol,
    unpack_relocations,
)
from elivepatch.kernel.elf_object import SHT_RELA

_CONSTANT = ".rodata."
_STRINGS = ".rodata.str"
_INIT = ".init"
#: What the compiler and macros make for each function by itself.
_OF_A_FUNCTION = re.compile(r"__(?:func|FUNCTION|PRETTY_FUNCTION)__")
#: Numbers and specialisations that the compiler appends to a name: ``table.3``, ``read.isra.0``, ``read.cold``.
_APPENDED = re.compile(r"\..*")
_NUMBER = re.compile(r"\.\d+\b")


@dataclass(frozen=True)
class _Table:
    """A constant of an object: its content, with what its pointers lead to, and whether other files can read it."""

    content: object
    shared: bool


def check_constants(diffs: Sequence[DiffObject]) -> None:
    """Raise CannotLivepatchError for changed constants that code which is not replaced reads, too."""
    findings: list[Diagnosis] = []
    for diff in diffs:
        replaced = {_stem(change.function) for change in diff.changes if change.kind == "changed"}
        findings += [
            finding(
                "data-object-changed",
                f"The constant {name} has changed, and {who}, which does not change, reads it as well: it would go on "
                "with the old one.",
                file=diff.source.source,
            )
            for name, who in _half_changed(diff.source.original, diff.source.patched, replaced)
        ]
    if findings:
        raise CannotLivepatchError(findings[0].message, hint=findings[0].hint, diagnosis=findings)


def _half_changed(original: Path, patched: Path, replaced: Collection[str]) -> Iterator[tuple[str, str]]:
    """The names of constants that have changed, each with something that goes on reading the old one."""
    with ElfImage(original) as before, ElfImage(patched) as after:
        old, new = _Object(before), _Object(after)
        functions = {_stem(symbol.name) for symbol in new.table if symbol.type == STT_FUNC}
        contents = new.constants()
        for name, tables in sorted(old.constants().items()):
            known = [table.content for table in contents.get(name, [])]
            if not known or all(table.content in known for table in tables):
                continue
            if any(table.shared for table in tables):
                yield name, "code of other files"
                continue
            # a function that is gone was inlined into others, or is called no more
            readers = sorted(
                f"{reader}()" if code else reader
                for reader, code in old.readers(name)
                if not code or reader in functions - set(replaced)
            )
            if readers:
                yield name, readers[0]


def _stem(name: str) -> str:
    return _APPENDED.sub("", name)


class _Object:
    """An object of a pair, with what of it is asked for more than once."""

    def __init__(self, image: ElfImage) -> None:
        self._image = image
        self.table = image.symbol_table()
        self._relocations: dict[int, list[Relocation]] = {}
        for section in image.sections:
            if section.type == SHT_RELA:
                self._relocations.setdefault(section.info, []).extend(unpack_relocations(image.data(section)))

    def _is_constant(self, symbol: Symbol) -> bool:
        if symbol.type != STT_OBJECT or not 0 < symbol.section < len(self._image.sections):
            return False
        named = self._image.sections[symbol.section].name.startswith(_CONSTANT)
        return named and not _OF_A_FUNCTION.match(symbol.name)

    def constants(self) -> dict[str, list[_Table]]:
        """The constants by their names, without the numbers of those that lie in functions."""
        found: dict[str, list[_Table]] = {}
        for symbol in self.table:
            if self._is_constant(symbol):
                table = _Table(self._content(symbol), symbol.bind != STB_LOCAL)
                found.setdefault(_stem(symbol.name), []).append(table)
        return found

    def _content(self, symbol: Symbol) -> object:
        start, end = symbol.value, symbol.value + symbol.size
        pointers = [
            (one.offset - start, one.type, self._target(self.table[one.symbol], one.addend))
            for one in self._relocations.get(symbol.section, [])
            if start <= one.offset < end
        ]
        return self._image.data(self._image.sections[symbol.section])[start:end], tuple(sorted(pointers))

    def _target(self, symbol: Symbol, addend: int) -> str:
        """What a pointer leads to, the same in both objects: a string by its text, all else by its name."""
        if not 0 < symbol.section < len(self._image.sections):
            return f"{symbol.name}+{addend}"
        section = self._image.sections[symbol.section]
        if section.name.startswith(_STRINGS):
            data, at = self._image.data(section), symbol.value + addend
            return repr(data[at : data.find(b"\0", at)])
        return f"{_NUMBER.sub('', section.name if symbol.type == STT_SECTION else symbol.name)}+{addend}"

    def readers(self, name: str) -> set[tuple[str, bool]]:
        """The functions (True) and other data that refer to the constants of a name; without what runs at the boot."""
        numbers = {
            number for number, one in enumerate(self.table) if self._is_constant(one) and _stem(one.name) == name
        }
        places = {self.table[number].section for number in numbers}
        numbers |= {n for n, one in enumerate(self.table) if one.type == STT_SECTION and one.section in places}
        return {
            self._owner(self._image.sections[at], one.offset)
            for at, relocations in self._relocations.items()
            if self._image.sections[at].flags & SHF_ALLOC and not self._image.sections[at].name.startswith(_INIT)
            for one in relocations
            if one.symbol in numbers
        }

    def _owner(self, section: Section, offset: int) -> tuple[str, bool]:
        code = bool(section.flags & SHF_EXECINSTR)
        for symbol in self.table:
            inside = symbol.section == section.index and symbol.value <= offset < symbol.value + symbol.size
            if inside and symbol.type == (STT_FUNC if code else STT_OBJECT):
                return _stem(symbol.name), code
        return section.name, code
