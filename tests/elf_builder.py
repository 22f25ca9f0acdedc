# SPDX-License-Identifier: GPL-2.0-or-later
"""Small ELF files, put together byte by byte (System V gABI, chapter 4), for tests that have no assembler."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

ALLOC, EXEC = 2, 4
PROGBITS, SYMTAB, STRTAB, RELA, NOTE, NOBITS = 1, 2, 3, 4, 7, 8
LOCAL, GLOBAL, WEAK = range(3)
NOTYPE, OBJECT, FUNC, SECTION, FILE = range(5)


@dataclass(frozen=True)
class Sym:
    """A symbol; ``section`` is the name of its section, or a number for the special ones."""

    name: str
    kind: int = FUNC
    bind: int = LOCAL
    section: str | int = ".text"
    value: int = 0
    size: int = 0
    other: int = 0


@dataclass(frozen=True)
class Part:
    """A section; ``relocations`` are offset, type, index of the symbol, addend."""

    name: str
    data: bytes = b""
    flags: int = ALLOC
    kind: int = PROGBITS
    address: int = 0
    relocations: Sequence[tuple[int, int, int, int]] = ()


def strings(names: Sequence[str]) -> tuple[bytes, dict[str, int]]:
    """A string table and the place of each name in it."""
    table, places = b"\0", {"": 0}
    for name in names:
        if name not in places:
            places[name] = len(table)
            table += name.encode() + b"\0"
    return table, places


def tables(symbols: Sequence[Sym], sections: Sequence[str] = (".text",)) -> tuple[bytes, bytes]:
    """Symbol table and string table; section indices count from 1."""
    strtab, places = strings([symbol.name for symbol in symbols])
    symtab = bytes(24)
    for symbol in symbols:
        index = symbol.section if isinstance(symbol.section, int) else sections.index(symbol.section) + 1
        symtab += struct.pack(
            "<IBBHQQ",
            places[symbol.name],
            symbol.bind << 4 | symbol.kind,
            symbol.other,
            index,
            symbol.value,
            symbol.size,
        )
    return symtab, strtab


def elf(
    parts: Sequence[Part], symbols: Sequence[Sym] = (), *, machine: int = 62, bits: int = 2, order: int = 1
) -> bytes:
    """An ELF file with these sections, a symbol table and the relocations of the sections."""
    symtab, strtab = tables(symbols, [part.name for part in parts])
    count = len(parts)
    headers: list[tuple[str, int, int, int, bytes, int, int, int]] = [
        (part.name, part.kind, part.flags, part.address, part.data, 0, 0, 0) for part in parts
    ]
    headers.append((".symtab", SYMTAB, 0, 0, symtab, count + 2, 0, 24))
    headers.append((".strtab", STRTAB, 0, 0, strtab, 0, 0, 0))
    for number, part in enumerate(parts, start=1):
        if part.relocations:
            data = b"".join(
                struct.pack("<QQq", offset, symbol << 32 | kind, addend)
                for offset, kind, symbol, addend in part.relocations
            )
            headers.append((f".rela{part.name}", RELA, 0, 0, data, count + 1, number, 24))
    names, places = strings([header[0] for header in headers] + [".shstrtab"])
    headers.append((".shstrtab", STRTAB, 0, 0, names, 0, 0, 0))
    body, table = b"", bytes(64)
    for name, kind, flags, address, data, link, info, entry in headers:
        table += struct.pack(
            "<IIQQQQIIQQ", places[name], kind, flags, address, 64 + len(body), len(data), link, info, 1, entry
        )
        body += b"" if kind == NOBITS else data
    head = b"\x7fELF" + bytes([bits, order, 1]) + bytes(9)
    head += struct.pack(
        "<HHIQQQIHHHHHH", 1, machine, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, len(headers) + 1, len(headers)
    )
    return head + body + table


def note(name: bytes, kind: int, content: bytes) -> bytes:
    """A note, padded as it must be."""

    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    return struct.pack("<III", len(name), len(content), kind) + padded(name) + padded(content)
