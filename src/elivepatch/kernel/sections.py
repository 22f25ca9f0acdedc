# SPDX-License-Identifier: GPL-2.0-or-later
"""The section table of an ELF file, read with the standard library alone: a host has no ELF tools.

System V gABI, chapter 4. Only 64-bit little-endian files for x86-64 are read.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from elivepatch.errors import InvalidInputError

Buffer = bytes | bytearray | memoryview | mmap.mmap

EM_X86_64 = 62
ET_REL, ET_EXEC, ET_DYN = 1, 2, 3
SHT_NULL, SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOTE, SHT_NOBITS, SHT_REL = 0, 1, 2, 3, 4, 7, 8, 9
SHT_GROUP = 17
SHF_ALLOC, SHF_EXECINSTR, SHF_COMPRESSED = 0x2, 0x4, 0x800
#: The headers: e_ident and the fields of Elf64_Ehdr, and Elf64_Shdr.
FILE_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
#: Far more than any kernel has; an object compiled with a section for each function stays below it too.
_SECTION_LIMIT = 0xFF00


@dataclass(frozen=True)
class SectionHeader:
    """An entry of the section table (Elf64_Shdr), its name resolved; offsets and sizes are bytes."""

    name: str
    name_at: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int

    @property
    def file_size(self) -> int:
        """How many bytes of the file it takes."""
        return 0 if self.type in (SHT_NOBITS, SHT_NULL) else self.size


@dataclass(frozen=True)
class ElfFile:
    """What the headers of an ELF file say; ``kind`` is e_type, ``sections`` the table in order, index 0 included."""

    kind: int
    sections: Sequence[SectionHeader]
    segments_at: int
    segment_count: int
    names_index: int

    def section(self, name: str) -> SectionHeader | None:
        """The first section of that name."""
        return next((section for section in self.sections if section.name == name), None)


def read_sections(data: Buffer, what: str) -> ElfFile:
    """Read the section table of an ELF file; ``what`` names the file in errors.

    Raises InvalidInputError where it is none for x86-64, and where a section reaches beyond the end of the file.
    """
    size = len(data)
    if size < FILE_HEADER.size or bytes(data[:4]) != b"\x7fELF":
        raise InvalidInputError(f"{what} is not an ELF file.")
    kind, machine, segments_at, table = _numbers(data, 1, 2, 5, 6)
    segment_size, segment_count, header_size, count, names_index = _numbers(data, 9, 10, 11, 12, 13)
    if bytes(data[4:6]) != b"\2\1" or machine != EM_X86_64:
        raise InvalidInputError(f"{what} is not an x86-64 ELF file.", hint="Only x86-64 is supported.")
    if not 0 < count < _SECTION_LIMIT or header_size != SECTION_HEADER.size or names_index >= count:
        raise InvalidInputError(f"The section table of {what} is malformed.")
    if table + count * SECTION_HEADER.size > size:
        raise InvalidInputError(f"{what} is cut off before the end of its section table.")
    if segment_count and (segment_size != 56 or segments_at + segment_count * 56 > size):
        raise InvalidInputError(f"The program headers of {what} are malformed.")
    rows = [_row(data, table + index * SECTION_HEADER.size) for index in range(count)]
    names_at, names_size = rows[names_index][4], rows[names_index][5]
    if names_at + names_size > size:
        raise InvalidInputError(f"The names of sections of {what} reach beyond its end.")
    names = bytes(data[names_at : names_at + names_size])
    sections: list[SectionHeader] = []
    for index, row in enumerate(rows):
        end = names.find(b"\0", row[0])
        if row[0] >= len(names) or end < 0:
            raise InvalidInputError(f"The name of section {index} of {what} lies outside the table of names.")
        section = SectionHeader(names[row[0] : end].decode(errors="replace"), *row)
        if section.offset + section.file_size > size:
            raise InvalidInputError(f"Section {index} ({section.name}) of {what} reaches beyond its end.")
        sections.append(section)
    return ElfFile(kind, sections, segments_at, segment_count, names_index)


def _numbers(data: Buffer, *fields: int) -> list[int]:
    values: tuple[Any, ...] = FILE_HEADER.unpack_from(data, 0)  # Any: bytes first, then numbers
    return [int(values[field]) for field in fields]


def _row(data: Buffer, at: int) -> tuple[int, ...]:
    return SECTION_HEADER.unpack_from(data, at)


def content(data: Buffer, section: SectionHeader | None) -> bytes:
    """The bytes of a section; empty where there is none."""
    return b"" if section is None else bytes(data[section.offset : section.offset + section.file_size])
