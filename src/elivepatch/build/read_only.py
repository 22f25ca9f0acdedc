# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes to what the kernel has made read-only: constants, and what is ``__ro_after_init``.

The compiler lets the second pass everywhere, and the first behind a cast. In the running kernel such a write is a
fault, whenever it comes to it, which the boot test need not. Only x86-64's ordinary instructions are told apart, and
only where they name the variable themselves: what is written through a pointer is not found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from elivepatch.build.compiler import CompiledObject
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.rules import finding
from elivepatch.errors import CannotLivepatchError, Diagnosis
from elivepatch.kernel.elf import (
    SHF_EXECINSTR,
    SHN_UNDEF,
    STT_FUNC,
    STT_OBJECT,
    STT_SECTION,
    ElfImage,
    Relocation,
    Symbol,
    unpack_relocations,
)
from elivepatch.kernel.elf_object import SHT_RELA

#: Relocations of an operand in memory (x86-64 psABI, 4.4): relative to the next instruction, and with a register added.
_R_X86_64_PC32, _R_X86_64_32S = 2, 11
#: Sections of an object that the kernel makes read-only once it, or the module, has been initialised.
_READ_ONLY = (".rodata", ".data..ro_after_init", ".data.rel.ro")
#: The room in front of a function, which has a name of its own.
_PADDING = "__pfx_"
#: Code that has run by then, and code that is copied elsewhere.
_NOT_LATER = (".init", ".altinstr", ".discard")
_TWO_BYTES = 0x0F
#: Opcodes that write to their operand in memory (Intel SDM, volume 2, appendix A), with the values of ModRM's second
#: field for which they do.
_ANY = frozenset(range(8))
_WRITES = (
    {base + wide: _ANY for base in range(0, 0x38, 8) for wide in (0, 1)}
    | dict.fromkeys((0x86, 0x87, 0x88, 0x89, 0xC0, 0xC1, 0xD0, 0xD1, 0xD2, 0xD3), _ANY)
    | dict.fromkeys((0x80, 0x81, 0x83), _ANY - {7})
    | dict.fromkeys((0xC6, 0xC7, 0x8F), frozenset({0}))
    | dict.fromkeys((0xF6, 0xF7), frozenset({2, 3}))
    | dict.fromkeys((0xFE, 0xFF), frozenset({0, 1}))
)
_WRITES_TWO = dict.fromkeys(
    (*range(0x90, 0xA0), 0xA4, 0xA5, 0xAB, 0xAC, 0xAD, 0xB0, 0xB1, 0xB3, 0xBB, 0xC0, 0xC1, 0xC3), _ANY
) | {0xBA: frozenset({5, 6, 7}), 0xC7: frozenset({1})}


def check_read_only(kernel: PreparedKernel, compiled: Sequence[CompiledObject]) -> None:
    """Raise CannotLivepatchError for code that writes to read-only data to which nothing has written before."""
    findings: list[Diagnosis] = []
    for one in compiled:
        before = {name for name, _, _ in _written(one.original)}
        after = [found for found in _written(one.patched) if found[0] not in before]
        elsewhere = _read_only_names(kernel, {name for name, _, known in after if not known})
        for name, function in sorted({(name, fn) for name, fn, known in after if known or name in elsewhere}):
            said = f"{function}() writes to {name}, which is read-only once the kernel has started: a fault."
            findings.append(finding("read-only-written", said, file=one.source, function=function))
    if findings:
        raise CannotLivepatchError(findings[0].message, hint=findings[0].hint, diagnosis=findings)


def _written(path: Path) -> Iterator[tuple[str, str, bool]]:
    """What code of an object that runs later writes to: variable, function, and whether it is known to be read-only.

    Otherwise another file defines the variable.
    """
    with ElfImage(path) as image:
        table = image.symbol_table()
        read_only = {section.index for section in image.sections if section.name.startswith(_READ_ONLY)}
        named = [one for one in table if one.type == STT_FUNC and not one.name.startswith(_PADDING)]
        functions = {symbol.section: symbol.name.partition(".")[0] for symbol in named}
        for section in image.sections:
            if section.type != SHT_RELA or section.info not in functions:
                continue
            target = image.sections[section.info]
            if not target.flags & SHF_EXECINSTR or target.name.startswith(_NOT_LATER):
                continue
            code = image.data(target)
            for one in unpack_relocations(image.data(section)):
                symbol = table[one.symbol]
                known = symbol.section in read_only
                if (known or (symbol.section == SHN_UNDEF and symbol.name)) and writes(code, one):
                    yield _name(symbol, one, table), functions[section.info], known


def _name(symbol: Symbol, one: Relocation, table: Sequence[Symbol]) -> str:
    """The variable that an operand names, perhaps by its place in a section."""
    if symbol.type != STT_SECTION:
        return symbol.name
    # the place counts from the end of the instruction, where a constant of 1 to 4 bytes can stand
    ends = (4, 5, 6, 8) if one.type == _R_X86_64_PC32 else (0,)
    places = [one.addend + end for end in ends]
    variables = [each for each in table if each.type == STT_OBJECT and each.section == symbol.section]
    named = (each.name for at in places for each in variables if each.value <= at < each.value + max(each.size, 1))
    return next(named, "constant data")


def writes(code: bytes, one: Relocation) -> bool:
    """Whether an instruction writes to the operand in memory that a relocation completes."""
    at = one.offset
    if one.type not in (_R_X86_64_PC32, _R_X86_64_32S) or not 3 <= at < len(code):
        return False
    last = code[at - 1]
    if one.type == _R_X86_64_PC32:
        return last & 0xC7 == 0x05 and _opcode_writes(code, at - 1)  # relative to the instruction
    before = code[at - 2]
    scaled = before & 7 == 4 and (before >> 6 == 2 or (before >> 6 == 0 and last & 7 == 5))  # a SIB byte
    plain = last >> 6 == 2 and last & 7 != 4
    return (scaled and _opcode_writes(code, at - 2)) or (plain and _opcode_writes(code, at - 1))


def _opcode_writes(code: bytes, modrm: int) -> bool:
    opcode, field = code[modrm - 1], code[modrm] >> 3 & 7
    table = _WRITES_TWO if modrm >= 2 and code[modrm - 2] == _TWO_BYTES else _WRITES
    return field in table.get(opcode, frozenset())


def _read_only_names(kernel: PreparedKernel, names: Collection[str]) -> set[str]:
    """Those of the names that stand for read-only data of vmlinux."""
    if not names:
        return set()
    with ElfImage(kernel.vmlinux) as image:
        sections = {section.index for section in image.sections if section.name.startswith(_READ_ONLY)}
        return {symbol.name for symbol in image.iter_symbols() if symbol.name in names and symbol.section in sections}
