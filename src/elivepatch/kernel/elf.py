# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading ELF: the parts that livepatching needs, as plain values.

pyelftools finds headers and sections; symbol and relocation tables are unpacked here in one go, since a vmlinux holds
200 000 symbols. Formats: System V gABI, chapter 4, and the x86-64 psABI. Only 64-bit little-endian x86-64 is read.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Self

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from elivepatch.errors import InvalidInputError

STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION, STT_FILE = range(5)
STB_LOCAL, STB_GLOBAL, STB_WEAK = range(3)
SHN_UNDEF, SHN_ABS, SHN_COMMON = 0, 0xFFF1, 0xFFF2
SHF_ALLOC, SHF_EXECINSTR = 0x2, 0x4
SHT_NOBITS = 8

R_X86_64_64, R_X86_64_PC32, R_X86_64_PLT32, R_X86_64_32, R_X86_64_32S = 1, 2, 4, 10, 11
_RELOCATION_BYTES = {1: 8, 2: 4, 4: 4, 9: 4, 10: 4, 11: 4, 12: 2, 13: 2, 14: 1, 15: 1, 24: 8, 41: 4, 42: 4}


def _text(strings: bytes, at: int) -> str:
    return strings[at : strings.index(b"\0", at)].decode()


_SYMBOL = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QQq")


class Symbol(NamedTuple):
    """A symbol; ``section`` is the index of its section, ``file`` the FILE symbol that a local one stands under."""

    name: str
    type: int
    bind: int
    section: int
    value: int
    size: int
    file: str | None


class Relocation(NamedTuple):
    """A RELA entry. ``symbol`` is an index into the symbol table."""

    offset: int
    type: int
    symbol: int
    addend: int

    @property
    def width(self) -> int:
        """How many bytes it fills in."""
        return _RELOCATION_BYTES.get(self.type, 8)


@dataclass(frozen=True)
class Section:
    """A section header, its name resolved."""

    index: int
    name: str
    type: int
    flags: int
    address: int
    size: int
    info: int


def unpack_symbols(symtab: bytes, strtab: bytes, wanted: Callable[[bytes], bool] | None = None) -> Iterator[Symbol]:
    """The symbols of a table in order, with their FILE; only those whose name is ``wanted``, if that is given."""
    file: str | None = None
    group_open = False
    for name_at, info, _other, section, value, size in _SYMBOL.iter_unpack(symtab):
        raw = strtab[name_at : strtab.index(b"\0", name_at)]
        kind, bind = info & 15, info >> 4
        if kind == STT_FILE:
            file, group_open = raw.decode(), True
            continue
        if bind != STB_LOCAL:
            group_open = False
        if wanted is None or wanted(raw):
            yield Symbol(raw.decode(), kind, bind, section, value, size, file if group_open else None)


class ElfImage:
    """An ELF file: a vmlinux, a module or an object.

    Raises InvalidInputError for anything that is not a readable x86-64 ELF file.
    """

    def __init__(self, source: Path | bytes) -> None:
        self.name = str(source) if isinstance(source, Path) else "ELF data"
        try:
            self._stream: Any = _map(source) if isinstance(source, Path) else BytesIO(source)  # Any: both read alike
            self._elf = ELFFile(self._stream)
            if self._elf.elfclass != 64 or not self._elf.little_endian or self._elf["e_machine"] != "EM_X86_64":
                raise InvalidInputError(f"{self.name} is not an x86-64 ELF file.", hint="Only x86-64 is supported.")
            self.sections: list[Section] = [
                Section(
                    index,
                    str(section.name),
                    _number(section["sh_type"]),
                    int(section["sh_flags"]),
                    int(section["sh_addr"]),
                    int(section["sh_size"]),
                    int(section["sh_info"]),
                )
                for index, section in enumerate(self._elf.iter_sections())
            ]
        except (ELFError, struct.error, ValueError, KeyError) as error:
            raise InvalidInputError(f"{self.name} is not a readable ELF file: {error}.") from error
        self._by_name = {section.name: section for section in self.sections}
        self._data: dict[int, bytes] = {}
        self._symbols: list[Symbol] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was read stays."""
        self._stream.close()

    def section(self, name: str) -> Section | None:
        """The section of that name."""
        return self._by_name.get(name)

    def data(self, section: Section) -> bytes:
        """The bytes of a section."""
        if section.index not in self._data:
            content: Any = self._elf.get_section(section.index).data()  # Any: pyelftools' return type is not declared
            self._data[section.index] = bytes(content)
        return self._data[section.index]

    def data_of(self, name: str) -> bytes:
        """The bytes of the section of that name; empty where there is none."""
        section = self.section(name)
        return self.data(section) if section else b""

    def at_address(self, address: int, size: int) -> bytes | None:
        """``size`` bytes of the linked image at an address; None where no section with contents holds them."""
        for section in self.sections:
            if section.flags & SHF_ALLOC and section.type != SHT_NOBITS:
                start = address - section.address
                if section.address and start >= 0 and start + size <= section.size:
                    return self.data(section)[start : start + size]
        return None

    def symbols(self) -> list[Symbol]:
        """All symbols but FILE ones; note that relocations count those too, see `symbol_table`."""
        if self._symbols is None:
            self._symbols = list(self.iter_symbols())
        return self._symbols

    def iter_symbols(self, wanted: Callable[[bytes], bool] | None = None) -> Iterator[Symbol]:
        """The symbols in order, without FILE symbols; see `unpack_symbols`."""
        return unpack_symbols(self.data_of(".symtab"), self.data_of(".strtab"), wanted)

    def symbol_table(self) -> list[Symbol]:
        """The table as relocations index it: FILE symbols included, section symbols named after their section."""
        strtab = self.data_of(".strtab")
        table: list[Symbol] = []
        for name_at, info, _other, section, value, size in _SYMBOL.iter_unpack(self.data_of(".symtab")):
            name = _text(strtab, name_at)
            if info & 15 == STT_SECTION and section < len(self.sections):
                name = self.sections[int(section)].name
            table.append(Symbol(name, info & 15, info >> 4, section, value, size, None))
        return table

    def relocations(self, section: Section) -> list[Relocation]:
        """The relocations that apply to a section."""
        found: list[Relocation] = []
        for candidate in self.sections:
            if candidate.type == 4 and candidate.info == section.index:
                found += unpack_relocations(self.data(candidate))
        return found

    def build_id(self) -> str | None:
        """The build ID: the GNU note, wherever the linker script put it (``.notes`` in vmlinux)."""
        for name in (".notes", ".note.gnu.build-id"):
            found = build_id_of_notes(self.data_of(name))
            if found:
                return found
        return None


def _map(path: Path) -> mmap.mmap:
    # a mapping needs no open file: an image that is kept for a while holds no descriptor
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _number(value: int | str) -> int:
    names = {"SHT_NULL": 0, "SHT_PROGBITS": 1, "SHT_SYMTAB": 2, "SHT_STRTAB": 3, "SHT_RELA": 4, "SHT_NOTE": 7}
    if isinstance(value, int):
        return value
    return SHT_NOBITS if value == "SHT_NOBITS" else names.get(value, 0xFFFF)


def unpack_relocations(data: bytes) -> list[Relocation]:
    """The entries of a RELA section."""
    return [
        Relocation(offset, info & 0xFFFFFFFF, info >> 32, addend) for offset, info, addend in _RELA.iter_unpack(data)
    ]


def build_id_of_notes(notes: bytes) -> str | None:
    """The build ID in a note section (ELF gABI, "Note Section": name "GNU", type NT_GNU_BUILD_ID = 3); hex digits."""
    at = 0
    while at + 12 <= len(notes):
        name_size, desc_size, kind = struct.unpack_from("<III", notes, at)
        name_at = at + 12
        desc_at = name_at + (name_size + 3) // 4 * 4
        at = desc_at + (desc_size + 3) // 4 * 4
        if at > len(notes) + 3:
            return None
        if kind == 3 and notes[name_at : name_at + name_size] == b"GNU\0":
            return notes[desc_at : desc_at + desc_size].hex()
    return None


def readelf_symbols(symtab: bytes, strtab: bytes) -> str:
    """The symbol table in the form of ``readelf --symbols --wide``, which create-diff-object reads.

    The order is kept: the position among equal names (sympos) is counted in it.
    """
    types = ("NOTYPE", "OBJECT", "FUNC", "SECTION", "FILE", "COMMON", "TLS")
    binds = ("LOCAL", "GLOBAL", "WEAK")
    visibilities = ("DEFAULT", "INTERNAL", "HIDDEN", "PROTECTED")
    places = {SHN_UNDEF: "UND", SHN_ABS: "ABS", SHN_COMMON: "COM"}
    count = len(symtab) // _SYMBOL.size
    lines = [
        "",
        f"Symbol table '.symtab' contains {count} entries:",
        "   Num:    Value          Size Type    Bind   Vis      Ndx Name",
    ]
    for number, (name_at, info, other, section, value, size) in enumerate(_SYMBOL.iter_unpack(symtab)):
        name = _text(strtab, name_at)
        kind, bind = info & 15, info >> 4
        lines.append(
            f"{number:6d}: {value:016x} {size:5d} {types[kind] if kind < len(types) else kind:<7} "
            f"{binds[bind] if bind < len(binds) else bind:<6} {visibilities[other & 3]:<8} "
            f"{places.get(section, section):>3} {name}"
        )
    return "\n".join(lines) + "\n"


def file_names(symtab: bytes, strtab: bytes) -> set[str]:
    """The base names of all files that a symbol table names."""
    symbols = _SYMBOL.iter_unpack(symtab)
    return {_text(strtab, name_at) for name_at, info, *_ in symbols if info & 15 == STT_FILE}


@dataclass(frozen=True)
class FileGroup:
    """The local symbols that stand under one FILE symbol: what one object gave to the linked image."""

    file: str
    symbols: Sequence[Symbol]


def file_groups(symtab: bytes, strtab: bytes, file: str) -> list[FileGroup]:
    """The groups of all objects whose source is called ``file`` (a base name): several directories may have one."""
    groups: list[FileGroup] = []
    current: list[Symbol] | None = None
    for name_at, info, _other, section, value, size in _SYMBOL.iter_unpack(symtab):
        kind, bind = info & 15, info >> 4
        if kind != STT_FILE and current is None:
            continue
        name = _text(strtab, name_at)
        if kind == STT_FILE:
            current = None
            if name == file:
                current = []
                groups.append(FileGroup(file, current))
        elif bind != STB_LOCAL:
            current = None
        elif current is not None:
            current.append(Symbol(name, kind, bind, section, value, size, file))
    return groups
