# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading ELF files that were put together by hand, whole ones and broken ones."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elf_builder import (
    ALLOC,
    EXEC,
    FILE,
    FUNC,
    GLOBAL,
    NOBITS,
    NOTE,
    OBJECT,
    SECTION,
    WEAK,
    Part,
    Sym,
    elf,
    note,
    tables,
)
from elivepatch.errors import InvalidInputError
from elivepatch.kernel.elf import ElfImage, Symbol, build_id_of_notes, file_groups, readelf_symbols, unpack_relocations

BUILD_ID = bytes(range(20))
GNU = note(b"GNU\0", 3, BUILD_ID)
SYMBOLS = (
    Sym("", SECTION, section=".text"),
    Sym("a.c", FILE, section=0xFFF1),
    Sym("helper", FUNC, value=0x1000, size=4),
    Sym("state", OBJECT, section=".data", value=0x2000, size=8),
    Sym("b.c", FILE, section=0xFFF1),
    Sym("helper", FUNC, value=0x1004, size=4),
    Sym("a.c", FILE, section=0xFFF1),
    Sym("third", FUNC, value=0x1008, size=2),
    Sym("main", FUNC, GLOBAL, value=0x100A, size=2),
    Sym("default", FUNC, WEAK, value=0x100C, size=1, other=2),
    Sym("late_local", FUNC, value=0x100D, size=1),
)
IMAGE = elf(
    [
        Part(".text", b"\x90" * 16, ALLOC | EXEC, address=0x1000, relocations=[(1, 2, 9, -4), (8, 1, 3, 16)]),
        Part(".data", b"\1" * 8, ALLOC, address=0x2000),
        Part(".bss", bytes(64), ALLOC, NOBITS, address=0x3000),
        Part(".notes", note(b"Linux\0", 257, b"x") + GNU, ALLOC, NOTE),
    ],
    SYMBOLS,
)


def test_sections_symbols_and_relocations() -> None:
    with ElfImage(IMAGE) as image:
        text = image.section(".text")
        assert text is not None
        assert (text.index, text.address, text.size, text.flags) == (1, 0x1000, 16, ALLOC | EXEC)
        assert image.data(text) == b"\x90" * 16
        assert image.section(".nothing") is None
        assert image.data_of(".nothing") == b""
        named = [(s.name, s.file) for s in image.symbols() if s.name]
        assert named == [
            ("helper", "a.c"),
            ("state", "a.c"),
            ("helper", "b.c"),
            ("third", "a.c"),
            ("main", None),
            ("default", None),
            ("late_local", None),  # behind a global one no FILE holds (objtool appends such)
        ]
        relocations = image.relocations(text)
        assert [(r.offset, r.type, r.symbol, r.addend, r.width) for r in relocations] == [
            (1, 2, 9, -4, 4),
            (8, 1, 3, 16, 8),
        ]
        table = image.symbol_table()
        assert (table[1].name, table[2].name, table[9].name) == (".text", "a.c", "main")  # FILE symbols are counted
        assert image.build_id() == BUILD_ID.hex()


def test_a_path_is_read_as_bytes_are(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(IMAGE)
    image = ElfImage(path)
    path.unlink()
    assert image.data_of(".data") == b"\1" * 8
    image.close()


@pytest.mark.parametrize(
    ("address", "size", "expected"),
    [
        (0x1000, 16, b"\x90" * 16),
        (0x100F, 1, b"\x90"),
        (0x100F, 2, None),  # over the end
        (0x0FFF, 1, None),
        (0x3000, 4, None),  # .bss holds nothing
        (0, 4, None),
    ],
)
def test_bytes_at_an_address(address: int, size: int, expected: bytes | None) -> None:
    with ElfImage(IMAGE) as image:
        assert image.at_address(address, size) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x7fELF",
        b"#!/bin/sh\n" * 100,
        IMAGE[:60],
        elf([Part(".text")], machine=183),  # aarch64
        elf([Part(".text")], order=2),
        b"\x7fELF\x01\x01\x01" + bytes(100),  # 32 bits
        IMAGE[: len(IMAGE) - 700],  # without its section headers
    ],
)
def test_what_is_no_image_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        ElfImage(data)
    path = tmp_path / "image"
    path.write_bytes(data)
    with pytest.raises(InvalidInputError) as caught:
        ElfImage(path)
    assert str(path) in caught.value.message


# -- notes


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        (GNU, BUILD_ID.hex()),
        (note(b"Linux\0", 3, b"xy") + GNU, BUILD_ID.hex()),  # type 3 of somebody else, padded
        (note(b"GNU\0", 1, b"abi!") + GNU, BUILD_ID.hex()),
        (note(b"GNU\0", 3, b"\xab" * 16), "ab" * 16),
        (b"", None),
        (bytes(64), None),
        (note(b"GNU\0", 1, BUILD_ID), None),
        (note(b"GNX\0", 3, BUILD_ID), None),
        (GNU[:11], None),
        (GNU[:20], None),
        (GNU[:-5], None),  # cut in the middle of the identification: that is not one
        (struct.pack("<III", 4, 0xFFFFFFF0, 3) + b"GNU\0" + BUILD_ID, None),
        (struct.pack("<III", 0xFFFFFFFF, 20, 3) + b"GNU\0" + BUILD_ID, None),
        (struct.pack("<III", 0xFFFFFFFF, 0xFFFFFFFF, 3) + GNU, None),
        (struct.pack("<III", 4, 0, 3) + b"GNU\0", None),
    ],
)
def test_build_id_of_notes(notes: bytes, expected: str | None) -> None:
    assert (build_id_of_notes(notes) or None) == expected


@given(st.binary(max_size=200))
def test_no_notes_break_the_reader(notes: bytes) -> None:
    found = build_id_of_notes(notes)
    assert found is None or bytes.fromhex(found) in notes


# -- groups and text


def test_groups_of_a_file_name() -> None:
    symtab, strtab = tables(SYMBOLS, [".text", ".data"])
    groups = file_groups(symtab, strtab, "a.c")
    assert [[symbol.name for symbol in group.symbols] for group in groups] == [["helper", "state"], ["third"]]
    assert [[symbol.value for symbol in group.symbols] for group in file_groups(symtab, strtab, "b.c")] == [[0x1004]]
    assert file_groups(symtab, strtab, "c.c") == []


def test_the_text_form_is_that_of_readelf() -> None:
    symtab, strtab = tables(
        [
            Sym("a.c", FILE, section=0xFFF1),
            Sym("helper", FUNC, value=0xFFFFFFFF81000000, size=4),
            Sym("weak", OBJECT, WEAK, section=0, other=2),
            Sym("shared", OBJECT, GLOBAL, section=0xFFF2, size=123456),
        ]
    )
    # as GNU readelf 2.44 prints the same table with --symbols --wide
    assert readelf_symbols(symtab, strtab) == (
        "\nSymbol table '.symtab' contains 5 entries:\n"
        "   Num:    Value          Size Type    Bind   Vis      Ndx Name\n"
        "     0: 0000000000000000     0 NOTYPE  LOCAL  DEFAULT  UND \n"
        "     1: 0000000000000000     0 FILE    LOCAL  DEFAULT  ABS a.c\n"
        "     2: ffffffff81000000     4 FUNC    LOCAL  DEFAULT    1 helper\n"
        "     3: 0000000000000000     0 OBJECT  WEAK   HIDDEN   UND weak\n"
        "     4: 0000000000000000 123456 OBJECT  GLOBAL DEFAULT  COM shared\n"
    )


def test_relocations_are_signed_and_keep_their_type() -> None:
    data = struct.pack("<QQq", 2**63, 7 << 32 | 11, -(2**63))
    (only,) = unpack_relocations(data)
    assert (only.offset, only.type, only.symbol, only.addend) == (2**63, 11, 7, -(2**63))


def test_symbols_can_be_chosen_by_name() -> None:
    with ElfImage(IMAGE) as image:
        chosen = list(image.iter_symbols(lambda name: name == b"third"))
    assert chosen == [Symbol("third", 2, 0, 1, 0x1008, 2, "a.c")]
