# SPDX-License-Identifier: GPL-2.0-or-later
"""An ELF file without its debug information, made with the standard library alone: a host need not have binutils.

The section table keeps every entry, so that section indices in symbols and relocations stay right; the sections that
are left out become empty. What is loaded (and all that segments cover) stays where it is in the file; the rest moves.
Symbol tables stay as they are, with the FILE symbols that ``strip`` would take. A signature behind a module is left
out: it would not be valid any more. Format: System V gABI, chapter 4.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from elivepatch.kernel.sections import (
    ET_REL,
    FILE_HEADER,
    SECTION_HEADER,
    SHF_ALLOC,
    SHF_COMPRESSED,
    SHT_NULL,
    SHT_REL,
    SHT_RELA,
    Buffer,
    ElfFile,
    SectionHeader,
    read_sections,
)

_DEBUG = (".debug_", ".zdebug_", ".gnu.debuglto_", ".gdb_index", ".stab", ".rela.debug_", ".rela.zdebug_")
#: e_shoff in Elf64_Ehdr, and p_offset and p_filesz in Elf64_Phdr.
_SECTIONS_AT = 40
_SEGMENT = struct.Struct("<IIQQQQQQ")
_CHUNK = 1024 * 1024


@dataclass(frozen=True)
class SlimElf:
    """A plan for the file: ``size`` is how long it becomes, in bytes; `chunks` makes it, with the data still open."""

    data: Buffer
    size: int
    _pieces: tuple[tuple[int, int, int], ...]  # where it goes, where it comes from, how long
    _blanks: tuple[tuple[int, int], ...]  # what is cleared of what stays in its place: from, to
    _table: bytes

    def chunks(self) -> Iterator[bytes]:
        """The file, piece by piece."""
        at = 0
        for to, source, length in self._pieces:
            yield bytes(to - at)
            for begin in range(source, source + length, _CHUNK):
                yield self._copied(begin, min(begin + _CHUNK, source + length))
            at = to + length
        yield bytes(self.size - len(self._table) - at)
        yield self._table

    def _copied(self, begin: int, end: int) -> bytes:
        chunk = bytearray(self.data[begin:end])
        if begin < FILE_HEADER.size:
            struct.pack_into("<Q", chunk, _SECTIONS_AT, self.size - len(self._table))
        for start, stop in self._blanks:
            low, high = max(start, begin), min(stop, end)
            if low < high:
                chunk[low - begin : high - begin] = bytes(high - low)
        return bytes(chunk)


def slim(data: Buffer, what: str) -> SlimElf:
    """Plan an ELF file without debug information; ``what`` names it in errors.

    Of a linked file, relocations that the linker left behind (``--emit-relocs``) are left out too. Raises
    InvalidInputError where it is no readable x86-64 ELF file.
    """
    elf = read_sections(data, what)
    floor = FILE_HEADER.size if elf.kind == ET_REL else _loaded_end(data, elf)
    at = floor
    headers: list[SectionHeader] = list(elf.sections)
    pieces = [(0, 0, floor)]
    blanks: list[tuple[int, int]] = []
    for index in sorted(range(len(headers)), key=lambda number: headers[number].offset):
        section = headers[index]
        if section.type == SHT_NULL:
            continue
        if _left_out(elf, section):
            if section.offset < floor:
                blanks.append((section.offset, min(section.offset + section.file_size, floor)))
            headers[index] = replace(section, offset=at, size=0, flags=section.flags & ~SHF_COMPRESSED)
        elif elf.kind == ET_REL or section.offset + section.file_size > floor:
            at = _aligned(at, section.alignment)
            headers[index] = replace(section, offset=at)
            if section.file_size:
                pieces.append((at, section.offset, section.file_size))
            at += section.file_size
    table = b"".join(
        SECTION_HEADER.pack(
            header.name_at,
            header.type,
            header.flags,
            header.address,
            header.offset,
            header.size,
            header.link,
            header.info,
            header.alignment,
            header.entry_size,
        )
        for header in headers
    )
    return SlimElf(data, _aligned(at, 8) + len(table), tuple(pieces), tuple(blanks), table)


def _left_out(elf: ElfFile, section: SectionHeader) -> bool:
    if section.flags & SHF_ALLOC:
        return False
    if section.name.startswith(_DEBUG):
        return True
    return elf.kind != ET_REL and section.type in (SHT_RELA, SHT_REL)


def _loaded_end(data: Buffer, elf: ElfFile) -> int:
    """Up to where the file is loaded, or describes what is."""
    ends = [FILE_HEADER.size, elf.segments_at + elf.segment_count * _SEGMENT.size]
    ends += [section.offset + section.file_size for section in elf.sections if section.flags & SHF_ALLOC]
    for number in range(elf.segment_count):
        fields = _SEGMENT.unpack_from(data, elf.segments_at + number * _SEGMENT.size)
        ends.append(min(fields[2] + fields[5], len(data)))
    return max(ends)


def _aligned(at: int, alignment: int) -> int:
    step = alignment if 1 < alignment <= 4096 else 1
    return (at + step - 1) // step * step
