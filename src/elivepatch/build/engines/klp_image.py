# SPDX-License-Identifier: GPL-2.0-or-later
"""Which symbol of the kernel's image each local symbol of an object is, and how objtool is told.

The kernel tells symbols of one name apart by their position among them (sympos): by address in vmlinux, by their order
in the symbol table in a module (kallsyms_on_each_match_symbol() and module_kallsyms_on_each_symbol()). ``objtool klp
diff`` works that out from two tables that a kernel built for klp-build has, ``.klp.symid`` in vmlinux.o and in vmlinux
(tools/objtool/klp-symid.c and klp-sympos.c). A published kernel has neither, and knows more: its symbols stand in
blocks, one for each object, under the name of its file. The block of an object is found by its local symbols and, where
several files of one name have the same ones, by the code of its functions. From that both tables are made, and instead
of the image a stand-in that holds the names in question, in their order, and nothing else.

What cannot be told apart gets no entry, and the tool refuses a change that needs it.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.proof import Prover
from elivepatch.kernel.elf import (
    R_X86_64_64,
    SHF_ALLOC,
    SHN_UNDEF,
    STB_LOCAL,
    STT_FILE,
    STT_FUNC,
    STT_NOTYPE,
    STT_OBJECT,
    STT_SECTION,
    ElfImage,
    FileGroup,
    Relocation,
    Symbol,
    file_groups,
    unpack_symbols,
)
from elivepatch.kernel.elf_object import SHT_PROGBITS, ElfObject, SectionHeader, SymbolEntry

_SYMID = ".klp.symid"
#: struct klp_symid of tools/objtool/include/objtool/klp.h
_ENTRY = struct.Struct("<QQ")
_SHN_LORESERVE = 0xFF00
#: Sections of an object that do not come into the image, or not with their symbols.
_DISCARDED = (".discard", ".exit", ".modinfo", ".no_trim_symbol", "__tracepoint_check")
_ANY_EXECUTABLE = 2


@dataclass(frozen=True)
class Place:
    """A symbol of the image. Of two with one name the one of the lower ``rank`` is counted first.

    ``passing`` says that a module has it only while it is being loaded, so that the count is not always the same.
    """

    rank: int
    symbol: Symbol
    passing: bool = False

    @property
    def local(self) -> bool:
        """Whether it is local to its file."""
        return self.symbol.bind == STB_LOCAL


@dataclass(frozen=True)
class Located:
    """The local symbols of an object: ``named`` are all places of the image with that name, ``own`` is the one meant.

    A name is in ``named`` only if the image has it in this object's block; it is not in ``own`` if it cannot be told
    which one is meant.
    """

    named: Mapping[str, Sequence[Place]] = field(default_factory=dict[str, Sequence[Place]])
    own: Mapping[str, Place] = field(default_factory=dict[str, Place])


class ParentSymbols:
    """The symbols of vmlinux or of a module, as the running kernel counts them."""

    def __init__(self, kernel: PreparedKernel, parent: str) -> None:
        self.parent = parent
        if parent == "vmlinux":
            with ElfImage(kernel.vmlinux) as image:
                self._symtab, self._strtab = image.data_of(".symtab"), image.data_of(".strtab")
                self._kept = {section.index for section in image.sections if section.flags & SHF_ALLOC}
                self._passing = set[int]()
        else:
            tables = kernel.module_symbols(parent)
            self._symtab, self._strtab = tables.symtab, tables.strtab
            names = list(enumerate(tables.sections))
            self._kept = {index for index, name in names if index and not name.startswith(".discard")}
            self._passing = {index for index, name in names if name.startswith(".init")}

    def places(self, names: Collection[str]) -> dict[str, list[Place]]:
        """Where each name is, in the order in which the kernel counts; absent ones are left out."""
        wanted = {name.encode() for name in names}
        found: dict[str, list[Place]] = {}
        for number, symbol in enumerate(unpack_symbols(self._symtab, self._strtab, wanted.__contains__)):
            if self._counts(symbol):
                rank = symbol.value if self.parent == "vmlinux" else number
                found.setdefault(symbol.name, []).append(Place(rank, symbol, symbol.section in self._passing))
        for places in found.values():
            places.sort(key=lambda place: place.rank)
        return found

    def blocks(self, file: str) -> list[FileGroup]:
        """The blocks of all objects whose source is called so (a base name)."""
        return [
            FileGroup(file, [symbol for symbol in group.symbols if self._counts(symbol)])
            for group in file_groups(self._symtab, self._strtab, file)
        ]

    def _counts(self, symbol: Symbol) -> bool:
        return (
            SHN_UNDEF < symbol.section < _SHN_LORESERVE
            and symbol.section in self._kept
            and symbol.type not in (STT_SECTION, STT_FILE)
        )


def locate(kernel: PreparedKernel, parent: ParentSymbols, path: str, exact: Path, original: Path) -> Located:
    """Find the local symbols of an object in its parent.

    ``exact`` is the object as the kernel's makers compiled it: its block is looked for. ``original`` is the one that
    the differ gets.
    """
    with ElfImage(exact) as image:
        theirs = _locals(image)
    with ElfImage(original) as image:
        ours = _locals(image)
    blocks = [block for block in parent.blocks(f"{PurePosixPath(path).stem}.c") if _fits(theirs, block)]
    if len(blocks) > 1:
        identical = Prover(kernel).blocks_with(path, parent.parent, exact, blocks)
        blocks = identical or blocks
    if not blocks:
        return Located()
    named = _named(theirs, ours, blocks[0])
    places = parent.places(named)
    own: dict[str, Place] = {}
    for name, symbol in named.items():
        place = _place_of(symbol, places[name]) if len(blocks) == 1 and symbol is not None else None
        if place is not None:
            own[name] = place
    return Located(places, own)


def _locals(image: ElfImage) -> list[Symbol]:
    """The local functions and variables of an object that come into the image."""
    return [
        symbol
        for symbol in image.symbols()
        if symbol.bind == STB_LOCAL
        and symbol.name
        and symbol.type in (STT_FUNC, STT_OBJECT, STT_NOTYPE)
        and 0 < symbol.section < len(image.sections)
        and image.sections[symbol.section].flags & SHF_ALLOC
        and not image.sections[symbol.section].name.startswith(_DISCARDED)
        and not symbol.name.startswith(("__pfx_", ".L"))
    ]


def _sized(symbols: Sequence[Symbol]) -> Counter[tuple[str, int]]:
    return Counter((symbol.name, symbol.size) for symbol in symbols if symbol.type in (STT_FUNC, STT_OBJECT))


def _fits(theirs: Sequence[Symbol], block: FileGroup) -> bool:
    return not _sized(theirs) - _sized(block.symbols)


def _named(theirs: Sequence[Symbol], ours: Sequence[Symbol], block: FileGroup) -> dict[str, Symbol | None]:
    """The symbol of the block for each local name of the differ's object, None for several.

    The compiler numbers static variables of functions (``count.3``), and another form of the object may be numbered
    otherwise: so variables must have the size that the kernel's have.
    """
    in_block: dict[str, list[Symbol]] = {}
    for symbol in block.symbols:
        in_block.setdefault(symbol.name, []).append(symbol)
    times = Counter(symbol.name for symbol in ours)
    numbered_alike = _numbered(theirs) == _numbered(ours)
    found: dict[str, Symbol | None] = {}
    for symbol in ours:
        candidates = in_block.get(symbol.name, [])
        if not candidates or len(candidates) != times[symbol.name]:
            continue
        if symbol.type == STT_OBJECT:
            if any(candidate.size != symbol.size for candidate in candidates):
                continue
            if _is_numbered(symbol.name) and not numbered_alike:
                continue
        found[symbol.name] = candidates[0] if len(candidates) == 1 else None
    return found


def _is_numbered(name: str) -> bool:
    return name.rpartition(".")[2].isdigit()


def _numbered(symbols: Sequence[Symbol]) -> Counter[tuple[str, int]]:
    return Counter((s.name, s.size) for s in symbols if s.type == STT_OBJECT and _is_numbered(s.name))


def _place_of(symbol: Symbol, places: Sequence[Place]) -> Place | None:
    """The place of a symbol of a block; None where its position is not always the same."""
    for at, place in enumerate(places):
        if (place.symbol.section, place.symbol.value) == (symbol.section, symbol.value):
            return None if any(before.passing for before in places[:at]) else place
    return None


# -- the tables


def symid_section(original: ElfObject, located: Located) -> None:
    """Give the original object its ``.klp.symid``: an entry for each symbol of which it is known which one it is."""
    entries: list[Relocation] = []
    content = b""
    for index, symbol in enumerate(original.symbols()):
        if symbol.bind != STB_LOCAL or symbol.name not in located.own or symbol.section == SHN_UNDEF:
            continue
        entries.append(Relocation(len(content) + 8, R_X86_64_64, index, 0))
        content += _ENTRY.pack(len(entries), 0)
    section = original.add(SectionHeader(_SYMID, SHT_PROGBITS, align=8), content)
    original.add_relocations(section, entries)


def stand_in(original: ElfObject, located: Located) -> bytes:
    """The image that objtool reads beside the original: the names in question, and the table that goes with them."""
    image = ElfObject.empty(_ANY_EXECUTABLE)
    text = image.add(SectionHeader(".text", SHT_PROGBITS, flags=SHF_ALLOC, align=16), bytes(16))
    symbols = [
        SymbolEntry(name, place.symbol.type, STB_LOCAL, text, place.rank, place.symbol.size)
        for name, places in sorted(located.named.items())
        for place in places
    ]
    image.make_symbol_table(symbols)
    content = b""
    for symbol in original.symbols():
        if symbol.bind == STB_LOCAL and symbol.name in located.own and symbol.section != SHN_UNDEF:
            content += _ENTRY.pack(len(content) // _ENTRY.size + 1, located.own[symbol.name].rank)
    image.add(SectionHeader(_SYMID, SHT_PROGBITS, align=8), content)
    return image.write()
