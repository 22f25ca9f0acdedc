# SPDX-License-Identifier: GPL-2.0-or-later
"""What an image and its modules export, in the form of Module.symvers: for kernels of which only the image can be had.

``__ksymtab`` and ``__ksymtab_gpl`` are arrays of struct kernel_symbol (kernel/module/internal.h): on x86-64 three
numbers of 32 bits, each the distance from its own place to the value, the name and the namespace (5.4 and later; two
numbers before). ``__kcrctab`` and ``__kcrctab_gpl`` hold the CRCs in the same order, 32 bits each: the CRC itself, or,
before 5.19 with CONFIG_MODULE_REL_CRCS, the distance to it. A kernel without CONFIG_MODVERSIONS has none: its CRCs are
written as zero. Newer kernels have ``__kflagstab`` instead of the tables with ``_gpl``: a byte for each entry of
``__ksymtab``, whose bit 0 is KSYM_FLAG_GPL_ONLY (linux/module_symbol.h). The lines are those of scripts/mod/modpost.c:
CRC, name, owner, kind, namespace.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from elivepatch.errors import InvalidInputError
from elivepatch.kernel.elf import SHN_ABS, ElfImage, Relocation, Section

_TABLES = (("", False), ("_gpl", True))
_NUMBER = struct.Struct("<i")
#: Sizes of struct kernel_symbol, the newest first.
_ENTRY_BYTES = (12, 8)
_NAME_AT, _NAMESPACE_AT = 4, 8
_NAME_BYTES = 512
_GPL_ONLY = 1


@dataclass(frozen=True, order=True)
class Export:
    """An exported symbol. ``owner`` is ``vmlinux`` or the module's path in the tree without ``.ko``."""

    name: str
    crc: int
    owner: str
    gpl: bool
    namespace: str

    def line(self) -> str:
        """Its line of Module.symvers, without the line's end."""
        kind = "EXPORT_SYMBOL_GPL" if self.gpl else "EXPORT_SYMBOL"
        return f"{self.crc:#010x}\t{self.name}\t{self.owner}\t{kind}\t{self.namespace}"


def symvers(exports: Iterable[Export]) -> str:
    """The text of a Module.symvers with these symbols, sorted by name."""
    return "".join(f"{export.line()}\n" for export in sorted(exports))


def module_owner(path: PurePosixPath | str) -> str:
    """How Module.symvers calls the module of a file below ``/lib/modules/RELEASE``: ``kernel/fs/xfs/xfs.ko.xz``."""
    text = str(path).partition(".ko")[0]
    return text.removeprefix("kernel/")


def exports_of_image(image: ElfImage) -> list[Export]:
    """What a vmlinux exports. Raises InvalidInputError where its tables cannot be read."""
    return _Linked(image, "vmlinux").exports()


def exports_of_module(module: ElfImage, owner: str) -> list[Export]:
    """What a module exports; ``owner`` as in `Export`. Raises InvalidInputError where its tables cannot be read."""
    return _Relocatable(module, owner).exports()


class _Tables:
    """Reads the tables of an ELF file; how a place leads to another one is up to what kind of file it is."""

    def __init__(self, image: ElfImage, owner: str) -> None:
        self._image = image
        self._owner = owner

    def _text(self, table: Section, at: int) -> str | None:
        """The string that the number at an offset of a table leads to; None where it leads to none."""
        raise NotImplementedError

    def _crc(self, table: Section, at: int) -> int:
        raise NotImplementedError

    def exports(self) -> list[Export]:
        found: list[Export] = []
        for suffix, gpl in _TABLES:
            table = self._image.section(f"__ksymtab{suffix}")
            if table is not None and table.size:
                found += self._read(table, self._image.section(f"__kcrctab{suffix}"), gpl=gpl)
        return found

    def _read(self, table: Section, crcs: Section | None, *, gpl: bool) -> list[Export]:
        for size in _ENTRY_BYTES:
            if table.size % size == 0 and (names := self._names(table, size)) is not None:
                break
        else:
            raise self._unreadable(table.name)
        if crcs is None or crcs.size == 0:
            numbers = [0] * len(names)
        elif crcs.size == 4 * len(names):
            numbers = [self._crc(crcs, at) for at in range(0, crcs.size, 4)]
        else:
            raise self._unreadable(crcs.name)
        flags = self._flags(table, len(names), gpl=gpl)
        return [
            Export(name, crc, self._owner, flag, namespace)
            for (name, namespace), crc, flag in zip(names, numbers, flags, strict=True)
        ]

    def _flags(self, table: Section, count: int, *, gpl: bool) -> list[bool]:
        """Which entries of a table are for GPL modules only."""
        flags = self._image.data_of("__kflagstab")
        if gpl or not flags:
            return [gpl] * count
        if len(flags) != count:
            raise self._unreadable(f"__kflagstab, for {table.name},")
        return [bool(flag & _GPL_ONLY) for flag in flags]

    def _names(self, table: Section, size: int) -> list[tuple[str, str]] | None:
        found: list[tuple[str, str]] = []
        for at in range(0, table.size, size):
            name = self._text(table, at + _NAME_AT)
            namespace = self._namespace(table, at) if size > _NAMESPACE_AT else ""
            if not name or namespace is None:
                return None
            found.append((name, namespace))
        return found

    def _namespace(self, table: Section, at: int) -> str | None:
        """That of an entry; zero is none (kernel_symbol_namespace in kernel/module/main.c, what assembly exports)."""
        place = at + _NAMESPACE_AT
        text = self._text(table, place)
        return "" if text is None and not any(self._image.data(table)[place : place + 4]) else text

    def _unreadable(self, what: str) -> InvalidInputError:
        return InvalidInputError(
            f"{what} of {self._image.name} is not in a form that is known here.",
            hint="Give the Module.symvers of the kernel with its image.",
        )


class _Linked(_Tables):
    """A vmlinux: numbers are what they are, places are addresses."""

    def __init__(self, image: ElfImage, owner: str) -> None:
        super().__init__(image, owner)
        self._strings = image.section("__ksymtab_strings")
        self._relative: dict[str, bool] = {}

    def _target(self, table: Section, at: int) -> int:
        (distance,) = _NUMBER.unpack_from(self._image.data(table), at)
        return table.address + at + int(distance)

    def _text(self, table: Section, at: int) -> str | None:
        if self._strings is None:
            return None
        return _string(self._image.data(self._strings), self._target(table, at) - self._strings.address)

    def _crc(self, table: Section, at: int) -> int:
        if table.name not in self._relative:
            # a CRC is as good as random: that all of them lead into the image by chance does not happen
            places = (self._pointed_at(table, place) for place in range(0, table.size, 4))
            self._relative[table.name] = all(place is not None for place in places)
        data = self._image.data(table)[at : at + 4]
        if self._relative[table.name]:
            data = self._pointed_at(table, at) or data
        return int.from_bytes(data, "little")

    def _pointed_at(self, table: Section, at: int) -> bytes | None:
        return self._image.at_address(self._target(table, at), 4)


class _Relocatable(_Tables):
    """A module: each number is filled in by a relocation (R_X86_64_PC32), which says where it leads."""

    def __init__(self, image: ElfImage, owner: str) -> None:
        super().__init__(image, owner)
        self._symbols = image.symbol_table()
        self._relocations: dict[int, dict[int, Relocation]] = {}

    def _relocation(self, table: Section, at: int) -> Relocation | None:
        if table.index not in self._relocations:
            self._relocations[table.index] = {each.offset: each for each in self._image.relocations(table)}
        return self._relocations[table.index].get(at)

    def _content(self, relocation: Relocation) -> tuple[bytes, int] | None:
        """The section that a relocation leads to, and the offset in it."""
        if relocation.symbol >= len(self._symbols):
            return None
        symbol = self._symbols[relocation.symbol]
        if not 0 < symbol.section < len(self._image.sections):
            return None
        return self._image.data(self._image.sections[symbol.section]), symbol.value + relocation.addend

    def _text(self, table: Section, at: int) -> str | None:
        relocation = self._relocation(table, at)
        place = self._content(relocation) if relocation else None
        return _string(*place) if place else None

    def _crc(self, table: Section, at: int) -> int:
        relocation = self._relocation(table, at)
        if relocation is None:
            return int.from_bytes(self._image.data(table)[at : at + 4], "little")
        place = self._content(relocation)
        if place is not None:
            return int.from_bytes(place[0][place[1] : place[1] + 4], "little")
        if relocation.symbol < len(self._symbols) and self._symbols[relocation.symbol].section == SHN_ABS:
            return (self._symbols[relocation.symbol].value + relocation.addend) & 0xFFFFFFFF
        raise self._unreadable(table.name)


def _string(strings: bytes, at: int) -> str | None:
    end = strings.find(b"\0", at, at + _NAME_BYTES) if 0 <= at < len(strings) else -1
    text = strings[at:end] if end >= 0 else b"\xff"
    return text.decode() if all(0x21 <= byte < 0x7F for byte in text) else None
