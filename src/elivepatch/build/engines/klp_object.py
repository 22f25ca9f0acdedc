# SPDX-License-Identifier: GPL-2.0-or-later
"""What is done to the objects of the klp engine before and after ``objtool klp diff``.

Before: an object of ours is one file of a klp object, where klp-build has all of vmlinux or of a module. What the rest
of it would say is added: the name (``.modinfo``), and which undefined symbols the kernel has. After: positions that
the tool cannot know are filled in, and what cannot be redirected is refused. Structures:
include/linux/livepatch_external.h.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from elivepatch.build.compiler import CompiledObject
from elivepatch.build.engines.klp_image import ParentSymbols, Place
from elivepatch.build.rules import finding
from elivepatch.build.sealed import klp_symbol
from elivepatch.errors import CannotLivepatchError, Diagnosis, InternalError
from elivepatch.kernel.elf import (
    SHN_UNDEF,
    STT_FUNC,
    ElfImage,
    Relocation,
    unpack_relocations,
)
from elivepatch.kernel.elf_object import SHT_PROGBITS, SHT_RELA, ElfObject, SectionHeader, SymbolEntry

_MODINFO = ".modinfo"
_OBJECTS, _FUNCS = ".init.klp_objects", ".init.klp_funcs"
#: struct klp_object_ext: name, funcs, four callbacks and post_unpatch_enabled (struct klp_callbacks), nr_funcs.
_OBJECT_BYTES, _FUNCS_AT, _CALLBACKS, _COUNT_AT = 64, 8, (16, 24, 32, 40), 56
#: struct klp_func_ext: old_name, new_func, sympos.
_FUNC_BYTES, _NEW_AT, _POSITION_AT = 24, 8, 16
#: How far into a function the call of the tracer is: it may begin with ENDBR (4 bytes).
_ENTRY_BYTES = 16


# -- before


def name_parent(original: ElfObject, parent: str) -> None:
    """Say what the object belongs to, as a module's .modinfo does."""
    _extend_modinfo(original, f"\0name={parent}\0".encode())


def import_namespaces(original: ElfObject, patched: ElfObject, symvers: Path) -> None:
    """Import the namespaces of what the object uses already: it is the kernel's own code, and may.

    What the patch uses in addition must be in one of these, or imported by the file itself.
    """
    used = {symbol.name for symbol in original.symbols() if symbol.section == SHN_UNDEF}
    spaces = sorted({space for name, space in _exports(symvers).items() if space and name in used})
    wanted = [f"import_ns={space}\0".encode() for space in spaces if not space.startswith("module:")]
    if wanted:
        _extend_modinfo(patched, b"".join(wanted))


def declare_known(original: ElfObject, patched: ElfObject, parent: ParentSymbols) -> None:
    """Let the original name what the patched object uses in addition and its klp object has elsewhere.

    In the whole of vmlinux such a symbol is defined, and so found; otherwise the tool takes it for one that the patch
    brings along.
    """
    known = {symbol.name for symbol in original.symbols()}
    more = [s.name for s in patched.symbols() if s.section == SHN_UNDEF and s.name and s.name not in known]
    there = parent.places(more)
    names = sorted(name for name in more if any(not place.local for place in there.get(name, ())))
    original.add_symbols([SymbolEntry(name) for name in names])


def _extend_modinfo(target: ElfObject, text: bytes) -> None:
    index = target.find(_MODINFO)
    if index is None:
        target.add(SectionHeader(_MODINFO, SHT_PROGBITS, flags=2), text)
    else:
        target.replace(index, target.content(index) + text)


def _exports(symvers: Path) -> dict[str, str]:
    """The namespace of each exported symbol."""
    found: dict[str, str] = {}
    for line in symvers.read_text().splitlines():
        fields = line.split("\t")
        if len(fields) >= 5:
            found[fields[1]] = fields[4]
    return found


# -- after


def settle(raw: Path, target: Path, compiled: CompiledObject, parent: ParentSymbols) -> list[str]:
    """Check and complete a diff object; gives the names of the functions that it replaces.

    The tool takes global names for unique. Where a file has a local symbol of that name, too, the position is filled
    in. Raises CannotLivepatchError for what cannot be told apart, and for functions that no tracer call leads out of.
    """
    diff = ElfObject(raw.read_bytes())
    name_cold_parts(diff, ElfObject(compiled.patched.read_bytes()))
    functions = _functions(diff)
    findings = [*_untraced(compiled, [one.name for one in functions])]
    symbols = {index: klp_symbol(s.name) for index, s in enumerate(diff.symbols()) if s.name.startswith(".klp.sym.")}
    names = {name for owner, name in symbols.values() if owner == parent.parent} | {one.name for one in functions}
    places = parent.places(names)
    for index, (owner, name) in symbols.items():
        if owner == parent.parent and diff.symbols()[index].name.endswith(",0") and len(places.get(name, ())) > 1:
            position = _global_position(places[name])
            if position is None:
                findings.append(_ambiguous(compiled, name))
            else:
                diff.rename_symbol(index, f".klp.sym.{owner}.{name},{position}")
    content = bytearray(diff.content(diff.find(_FUNCS) or 0)) if functions else bytearray()
    for number, one in enumerate(functions):
        if one.position == 0 and len(places.get(one.name, ())) > 1:
            position = _global_position(places[one.name])
            if position is None:
                findings.append(_ambiguous(compiled, one.name))
            else:
                struct.pack_into("<Q", content, number * _FUNC_BYTES + _POSITION_AT, position)
    if findings:
        raise CannotLivepatchError(findings[0].message, hint=findings[0].hint, diagnosis=findings)
    if functions:
        diff.replace(diff.find(_FUNCS) or 0, bytes(content))
    target.write_bytes(diff.write())
    return [one.name for one in functions]


def name_cold_parts(diff: ElfObject, patched: ElfObject) -> None:
    """Call the cold parts of functions after the names that the diff object has those by.

    A system call without parameters has several (``__do_sys_getpid``, ``__x64_sys_getpid``): the tool keeps a global
    one, the compiler calls the cold part after the local one, and objtool then finds no function that it belongs to.
    """
    functions = [symbol for symbol in patched.symbols() if symbol.type == STT_FUNC and symbol.section != SHN_UNDEF]
    place = {symbol.name: (symbol.section, symbol.value) for symbol in functions}
    there = {symbol.name for symbol in diff.symbols() if symbol.section != SHN_UNDEF}
    for index, symbol in enumerate(diff.symbols()):
        name, cold, number = symbol.name.partition(".cold")
        if not cold or symbol.type != STT_FUNC or name in there or name not in place:
            continue
        other = next((one.name for one in functions if place[one.name] == place[name] and one.name in there), None)
        if other is not None:
            diff.rename_symbol(index, f"{other}.cold{number}")


def _global_position(places: Sequence[Place]) -> int | None:
    """The position of the one global symbol among several of its name."""
    found = [number for number, place in enumerate(places, start=1) if not place.local]
    if len(found) != 1 or any(place.passing for place in places[: found[0]]):
        return None
    return found[0]


def _ambiguous(compiled: CompiledObject, name: str) -> Diagnosis:
    said = f"{compiled.parent} has more than one symbol '{name}' that could be meant."
    return finding("symbol-ambiguous", said, file=compiled.source, function=name)


def callbacks(path: Path, source: str) -> list[Diagnosis]:
    """The notes on the functions that a diff object has the kernel call when it is loaded and unloaded."""
    diff = ElfObject(path.read_bytes())
    index = diff.find(_OBJECTS)
    if index is None:
        return []
    symbols, relocations = diff.symbols(), _relocations(diff, index)
    names = [symbols[relocations[at].symbol].name for at in _CALLBACKS if at in relocations]
    said = "'{}' runs when the livepatch is loaded or unloaded."
    return [finding("callbacks", said.format(name), file=source, function=name) for name in names]


@dataclass(frozen=True)
class _Function:
    """A function that a diff object replaces, and its position; 0 says that the name is unique."""

    name: str
    position: int


def _functions(diff: ElfObject) -> list[_Function]:
    index = diff.find(_FUNCS)
    if index is None:
        return []
    content, relocations = diff.content(index), _relocations(diff, index)
    return [
        _Function(_string(diff, relocations[at]), struct.unpack_from("<Q", content, at + _POSITION_AT)[0])
        for at in range(0, len(content), _FUNC_BYTES)
    ]


def _relocations(image: ElfObject, section: int) -> dict[int, Relocation]:
    """The relocations of a section by their offsets."""
    found: dict[int, Relocation] = {}
    for index, header in enumerate(image.sections):
        if header.type == SHT_RELA and header.info == section:
            found |= {one.offset: one for one in unpack_relocations(image.content(index))}
    return found


def _string(image: ElfObject, relocation: Relocation) -> str:
    symbol = image.symbols()[relocation.symbol]
    content, at = image.content(symbol.section), symbol.value + relocation.addend
    return content[at : content.index(b"\0", at)].decode()


def _untraced(compiled: CompiledObject, names: Sequence[str]) -> list[Diagnosis]:
    """Findings for functions without a call of the tracer: the kernel cannot redirect them."""
    with ElfImage(compiled.original) as image:
        table = image.symbol_table()
        calls: set[tuple[int, int]] = set()
        for section in image.sections:
            if section.name == "__mcount_loc":
                for one in image.relocations(section):
                    calls.add((table[one.symbol].section, table[one.symbol].value + one.addend))
        traced = {
            symbol.name
            for symbol in image.symbols()
            if symbol.type == STT_FUNC
            and any((symbol.section, symbol.value + offset) in calls for offset in range(_ENTRY_BYTES))
        }
    said = "'{}' has changed and cannot be redirected: it was compiled without a call for the function tracer."
    return [
        finding("no-fentry", said.format(name), file=compiled.source, function=name)
        for name in names
        if name not in traced
    ]


# -- link


def merge_objects(joined: bytes) -> bytes | None:
    """The object of a module in which each klp object has one entry; None where that is so already.

    Every diff object brings an entry, and the kernel takes two of one name for an error. The functions of entries that
    stand together are one array already.
    """
    image = ElfObject(joined)
    index = image.find(_OBJECTS)
    if index is None:
        raise InternalError("The joined objects have no list of klp objects.")
    content, relocations = image.content(index), _relocations(image, index)
    entries: list[_Entry] = []
    for at in range(0, len(content), _OBJECT_BYTES):
        entry = _Entry.of(image, content, relocations, at)
        if entries and entries[-1].name == entry.name:
            entries[-1] = entries[-1].joined(entry)
        else:
            entries.append(entry)
    if len(entries) * _OBJECT_BYTES == len(content):
        return None
    packed, moved = b"", list[Relocation]()
    for entry in entries:
        moved += [one._replace(offset=len(packed) + at) for at, one in sorted(entry.relocations.items())]
        packed += bytes(_COUNT_AT) + struct.pack("<I", entry.count) + bytes(4)
    image.replace(index, packed)
    rela = next(i for i, one in enumerate(image.sections) if one.type == SHT_RELA and one.info == index)
    image.replace(rela, b"".join(struct.pack("<QQq", r.offset, r.symbol << 32 | r.type, r.addend) for r in moved))
    return image.write()


@dataclass(frozen=True)
class _Entry:
    """A struct klp_object_ext: ``relocations`` are those of its fields, ``end`` is where its functions end."""

    name: str
    count: int
    relocations: Mapping[int, Relocation]
    end: int

    @classmethod
    def of(cls, image: ElfObject, content: bytes, relocations: Mapping[int, Relocation], at: int) -> _Entry:
        fields = {place - at: one for place, one in relocations.items() if at <= place < at + _OBJECT_BYTES}
        (count,) = struct.unpack_from("<I", content, at + _COUNT_AT)
        name = _string(image, fields[0]) if 0 in fields else "vmlinux"
        return cls(name, count, fields, fields[_FUNCS_AT].addend + count * _FUNC_BYTES)

    def joined(self, other: _Entry) -> _Entry:
        """This entry with the functions and callbacks of the one that follows."""
        if other.relocations[_FUNCS_AT].addend != self.end:
            raise InternalError(f"The functions of {self.name} do not stand together.")
        callbacks = {at: one for at, one in other.relocations.items() if at in _CALLBACKS}
        if twice := callbacks.keys() & self.relocations.keys():
            said = f"Two files of {self.name} bring a callback of the same kind ({len(twice)})."
            raise CannotLivepatchError(said, hint="A klp object has one of each kind: call both from one.")
        return _Entry(self.name, self.count + other.count, {**self.relocations, **callbacks}, other.end)
