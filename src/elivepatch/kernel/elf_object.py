# SPDX-License-Identifier: GPL-2.0-or-later
"""Changing ELF objects: sections and symbols that binutils have no words for.

objcopy can add a section, but neither relocations that go with it nor an undefined symbol. Whatever is added goes to
the end of the file, so that no index of the original changes. Format: System V gABI, chapter 4.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from elivepatch.errors import InvalidInputError
from elivepatch.kernel.elf import SHN_UNDEF, STB_GLOBAL, STT_NOTYPE, Relocation

SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOBITS = 1, 2, 3, 4, 8
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QQq")
#: Indices from here on mean something else (gABI, "Special Section Indexes").
_SECTIONS_LIMIT = 0xFF00
#: Bytes; what a kernel aligns to at most are its large pages.
_ALIGN_LIMIT = 2 * 1024**2


@dataclass(frozen=True)
class SectionHeader:
    """A section header as it stands in the file, but for its name."""

    name: str
    type: int
    flags: int = 0
    address: int = 0
    offset: int = 0
    size: int = 0
    link: int = 0
    info: int = 0
    align: int = 1
    entry_size: int = 0


@dataclass(frozen=True)
class SymbolEntry:
    """An entry of the symbol table; ``section`` is an index."""

    name: str
    type: int = STT_NOTYPE
    bind: int = STB_GLOBAL
    section: int = SHN_UNDEF
    value: int = 0
    size: int = 0
    other: int = 0

    def pack(self, name_at: int) -> bytes:
        """The entry as bytes, its name at that place of the string table."""
        return _SYMBOL.pack(name_at, self.bind << 4 | self.type, self.other, self.section, self.value, self.size)


class ElfObject:
    """An x86-64 ELF file whose sections and symbols can be changed; raises InvalidInputError for anything else."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        try:
            if data[:6] != b"\x7fELF\x02\x01":
                raise InvalidInputError("This is not a 64-bit little-endian ELF file.")
            self._header = list(_HEADER.unpack_from(data))
            offset, count, names = self._header[6], self._header[12], self._header[13]
            raw = [_SECTION.unpack_from(data, offset + number * _SECTION.size) for number in range(count)]
            strings = data[raw[names][4] : raw[names][4] + raw[names][5]]
            self.sections = [SectionHeader(_text(strings, one[0]), *one[1:]) for one in raw]
        except (struct.error, IndexError, ValueError, OverflowError) as error:
            raise InvalidInputError(f"This is not a readable ELF file: {error}.") from error
        for one in self.sections:
            inside = one.type == SHT_NOBITS or one.offset + one.size <= len(data)
            if not inside or one.align > _ALIGN_LIMIT or one.link >= len(self.sections):
                raise InvalidInputError(f"The section {one.name or 'without a name'} is not one that can be.")
        self._contents: dict[int, bytes] = {}
        self._table = next((index for index, one in enumerate(self.sections) if one.type == SHT_SYMTAB), None)

    @classmethod
    def empty(cls, kind: int) -> ElfObject:
        """A file without anything in it, of that type (ET_REL is 1, ET_EXEC 2)."""
        names = b"\0.shstrtab\0"
        head = _HEADER.pack(
            b"\x7fELF\x02\x01\x01".ljust(16, b"\0"), kind, 62, 1, 0, 0, 64 + len(names), 0, 64, 0, 0, 64, 2, 1
        )
        sections = _SECTION.pack(*[0] * 10) + _SECTION.pack(1, SHT_STRTAB, 0, 0, 64, len(names), 0, 0, 1, 0)
        return cls(head + names + sections)

    # -- sections

    def find(self, name: str) -> int | None:
        """The index of the first section of that name."""
        return next((index for index, one in enumerate(self.sections) if one.name == name), None)

    def content(self, index: int) -> bytes:
        """The bytes of a section."""
        header = self.sections[index]
        if index in self._contents:
            return self._contents[index]
        if header.type == SHT_NOBITS:
            return b""
        return self._data[header.offset : header.offset + header.size]

    def replace(self, index: int, content: bytes) -> None:
        """Give a section other contents."""
        self._contents[index] = content

    def add(self, header: SectionHeader, content: bytes) -> int:
        """Add a section; gives its index."""
        if len(self.sections) + 1 >= _SECTIONS_LIMIT:
            raise InvalidInputError("An object has more sections than ELF can number.")
        self.sections.append(header)
        self._contents[len(self.sections) - 1] = content
        return len(self.sections) - 1

    def add_relocations(self, section: int, entries: Sequence[Relocation]) -> int:
        """Add the relocations of a section that has none yet."""
        packed = b"".join(_RELA.pack(one.offset, one.symbol << 32 | one.type, one.addend) for one in entries)
        name = f".rela{self.sections[section].name}"
        header = SectionHeader(name, SHT_RELA, link=self._symtab(), info=section, align=8, entry_size=_RELA.size)
        return self.add(header, packed)

    # -- symbols

    def symbols(self) -> list[SymbolEntry]:
        """All entries of the symbol table, as relocations count them."""
        if self._table is None:
            return []
        strings = self.content(self.sections[self._table].link)
        try:
            return [
                SymbolEntry(_text(strings, name), info & 15, info >> 4, section, value, size, other)
                for name, info, other, section, value, size in _SYMBOL.iter_unpack(self.content(self._table))
            ]
        except (struct.error, ValueError) as error:
            raise InvalidInputError(f"The symbol table is damaged: {error}.") from error

    def add_symbols(self, entries: Sequence[SymbolEntry]) -> None:
        """Add symbols at the end of the table: they must not be local, which come first."""
        table = self._symtab()
        strings, packed = self.content(self.sections[table].link), self.content(table)
        for entry in entries:
            packed += entry.pack(len(strings))
            strings += entry.name.encode() + b"\0"
        self._contents[table], self._contents[self.sections[table].link] = packed, strings

    def rename_symbol(self, index: int, name: str) -> None:
        """Give a symbol another name."""
        table = self._symtab()
        strings = self.content(self.sections[table].link)
        packed = bytearray(self.content(table))
        struct.pack_into("<I", packed, index * _SYMBOL.size, len(strings))
        self._contents[table] = bytes(packed)
        self._contents[self.sections[table].link] = strings + name.encode() + b"\0"

    def make_symbol_table(self, entries: Sequence[SymbolEntry]) -> None:
        """The symbol table of a file that has none yet; local symbols come first."""
        strings = self.add(SectionHeader(".strtab", SHT_STRTAB), b"\0")
        local = sum(entry.bind == 0 for entry in entries)
        header = SectionHeader(".symtab", SHT_SYMTAB, link=strings, info=local + 1, align=8, entry_size=_SYMBOL.size)
        self._table = self.add(header, _SYMBOL.pack(0, 0, 0, 0, 0, 0))
        self.add_symbols(entries)

    def _symtab(self) -> int:
        if self._table is None:
            raise InvalidInputError("The object has no symbol table.")
        return self._table

    # -- writing

    def write(self) -> bytes:
        """The file with all changes."""
        out = bytearray(self._data)
        names = bytearray(b"\0")
        name_at: list[int] = []
        for section in self.sections:
            name_at.append(len(names))
            names += section.name.encode() + b"\0"
        self._contents[self._header[13]] = bytes(names)
        headers = list(self.sections)
        for index, content in sorted(self._contents.items()):
            out += bytes(-len(out) % max(headers[index].align, 1))
            headers[index] = replace(headers[index], offset=len(out), size=len(content))
            out += content
        out += bytes(-len(out) % 8)
        self._header[6], self._header[12] = len(out), len(headers)
        for at, one in zip(name_at, headers, strict=True):
            out += _SECTION.pack(
                at, one.type, one.flags, one.address, one.offset, one.size, one.link, one.info, one.align,
                one.entry_size,
            )  # fmt: skip
        _HEADER.pack_into(out, 0, *self._header)
        return bytes(out)


def _text(strings: bytes, at: int) -> str:
    return strings[at : strings.index(b"\0", at)].decode()
