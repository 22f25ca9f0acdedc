# SPDX-License-Identifier: GPL-2.0-or-later
"""A copy of a module whose init does nothing and succeeds: for modules that a guest has no device for.

Such a module says ENODEV as it is loaded and goes again, and what needs it cannot come either. In the copy
``init_module`` and ``cleanup_module`` (include/linux/module.h) return at once; all other code, symbols and tables are
the module's own, so a livepatch is applied to it as to the real one. Nothing of it is ever called.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any

from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from elivepatch.errors import InvalidInputError

_ENDBR = b"\xf3\x0f\x1e\xfa"
_CALL = 0xE8
#: xor %eax,%eax; ret
_RETURN = b"\x31\xc0\xc3"
#: Appended by scripts/sign-file.c; before it stands struct module_signature, whose last four bytes are the length.
_SIGNED = b"~Module signature appended~\n"
_SIGNATURE_HEAD = 12


def without_init(elf: bytes) -> bytes:
    """The copy, unsigned. Raises InvalidInputError where it cannot be made."""
    data = bytearray(_unsigned(elf))
    file = ELFFile(io.BytesIO(bytes(data)))
    symbols = file.get_section_by_name(".symtab")
    if not isinstance(symbols, SymbolTableSection):
        raise InvalidInputError("The module has no symbol table.", hint="Get the kernel's package again.")
    for name in ("init_module", "cleanup_module"):
        for symbol in symbols.get_symbol_by_name(name) or ():
            _return_at_once(data, file, symbols, symbol)
    return bytes(data)


def _unsigned(elf: bytes) -> bytes:
    if not elf.endswith(_SIGNED):
        return elf
    end = len(elf) - len(_SIGNED)
    (length,) = struct.unpack(">I", elf[end - 4 : end])
    return elf[: end - _SIGNATURE_HEAD - length]


# Any: pyelftools gives symbols and relocations as mappings of its own
def _return_at_once(data: bytearray, file: ELFFile, symbols: SymbolTableSection, symbol: Any) -> None:
    """Let a function return where its own work begins, behind what the function tracer and IBT want at its top."""
    index, value = symbol["st_shndx"], symbol["st_value"]
    if not isinstance(index, int):
        return  # not of this file
    start = file.get_section(index)["sh_offset"] + value
    relocations = list(_relocations(file, index))
    at = 4 if data.startswith(_ENDBR, start) else 0
    if data[start + at] == _CALL and any(
        one["r_offset"] == value + at + 1 and symbols.get_symbol(one["r_info_sym"]).name == "__fentry__"
        for _, one in relocations
    ):
        at += 5
    begin, end = value + at, value + at + len(_RETURN)
    if symbol["st_size"] < at + len(_RETURN) or _is_patched(file, symbols, index, begin, end):
        raise InvalidInputError(f"{symbol.name} of the module cannot be cut short.", hint="Leave the boot test out.")
    data[start + at : start + at + len(_RETURN)] = _RETURN
    for place, one in relocations:
        if begin <= one["r_offset"] < end:
            data[place + 8 : place + 16] = bytes(8)  # r_info: R_X86_64_NONE


def _relocations(file: ELFFile, index: int) -> Iterator[tuple[int, Any]]:
    """The relocations of a section, each with its place in the file."""
    for section in file.iter_sections():
        if isinstance(section, RelocationSection) and section["sh_info"] == index:
            for number, one in enumerate(section.iter_relocations()):
                yield section["sh_offset"] + number * section["sh_entsize"], one


def _is_patched(file: ELFFile, symbols: SymbolTableSection, index: int, begin: int, end: int) -> bool:
    """Whether a table (jump labels, alternatives, …) has the kernel change these bytes when it loads the module."""
    for section in file.iter_sections():
        if not isinstance(section, RelocationSection) or section["sh_info"] == index:
            continue
        if ".debug" in section.name or ".orc" in section.name:
            continue
        for one in section.iter_relocations():
            symbol = symbols.get_symbol(one["r_info_sym"])
            if symbol["st_shndx"] == index and begin <= symbol["st_value"] + one["r_addend"] < end:
                return True
    return False
