# SPDX-License-Identifier: GPL-2.0-or-later
"""Objects are changed at their end, and readers see what was added."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elivepatch.errors import InvalidInputError
from elivepatch.kernel.elf import STB_LOCAL, STT_FUNC, STT_OBJECT, ElfImage, Relocation
from elivepatch.kernel.elf_object import SHT_PROGBITS, ElfObject, SectionHeader, SymbolEntry


def small() -> ElfObject:
    """An object with a section of code, a local and a global symbol."""
    image = ElfObject.empty(1)
    text = image.add(SectionHeader(".text", SHT_PROGBITS, flags=6, align=16), b"\xc3" * 20)
    image.make_symbol_table(
        [
            SymbolEntry("inner", STT_FUNC, STB_LOCAL, text, 0, 10),
            SymbolEntry("outer", STT_FUNC, section=text, value=10, size=10),
        ]
    )
    return image


def test_what_is_written_is_read_again() -> None:
    with ElfImage(small().write()) as image:
        assert image.data_of(".text") == b"\xc3" * 20
        found = {symbol.name: symbol for symbol in image.symbols() if symbol.name}
    assert (found["inner"].bind, found["inner"].value, found["inner"].size) == (STB_LOCAL, 0, 10)
    assert (found["outer"].bind, found["outer"].value) == (1, 10)


def test_no_index_of_the_original_changes() -> None:
    before = ElfObject(small().write())
    after = ElfObject(before.write())
    after.add_symbols([SymbolEntry("elsewhere"), SymbolEntry("data", STT_OBJECT)])
    table = after.add(SectionHeader(".table", SHT_PROGBITS, align=8), bytes(16))
    after.add_relocations(table, [Relocation(8, 1, 2, -4)])
    after.replace(after.find(".text") or 0, b"\x90" * 40)
    again = ElfObject(after.write())
    assert [one.name for one in again.sections[: len(before.sections)]] == [one.name for one in before.sections]
    assert again.symbols()[: len(before.symbols())] == before.symbols()
    assert [one.name for one in again.symbols()][-2:] == ["elsewhere", "data"]
    assert again.content(again.find(".text") or 0) == b"\x90" * 40
    with ElfImage(after.write()) as image:
        section = image.section(".table")
        assert section is not None
        assert image.relocations(section) == [Relocation(8, 1, 2, -4)]


def test_a_symbol_gets_another_name() -> None:
    image = ElfObject(small().write())
    image.rename_symbol(2, ".klp.sym.vmlinux.outer,3")
    assert [one.name for one in ElfObject(image.write()).symbols()] == ["", "inner", ".klp.sym.vmlinux.outer,3"]


def test_objects_without_symbols_take_none() -> None:
    with pytest.raises(InvalidInputError):
        ElfObject.empty(1).add_symbols([SymbolEntry("x")])


@given(st.binary(max_size=300))
def test_other_data_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        ElfObject(b"\x7fELF\x01" + data)


@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_damage_is_refused_or_harmless(at: int, damage: bytes) -> None:
    data = bytearray(small().write())
    data[at : at + len(damage)] = damage
    try:
        image = ElfObject(bytes(data))
        image.symbols()
        for index in range(len(image.sections)):
            image.content(index)
        image.write()
    except (InvalidInputError, struct.error):
        pass
