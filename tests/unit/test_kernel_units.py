# SPDX-License-Identifier: GPL-2.0-or-later
"""Compile units of DWARF 4 and 5 that was put together by hand (sections 7.5.1 and 7.5.3)."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from elf_builder import Part, elf
from elivepatch.kernel.units import compile_units

NAME, PRODUCER, LANGUAGE, STMT_LIST, LOW_PC, MACROS, COMP_DIR = 0x03, 0x25, 0x13, 0x10, 0x11, 0x79, 0x1B
STRING, STRP, LINE_STRP, DATA2, DATA1, UDATA, SEC_OFFSET, ADDR, IMPLICIT, PRESENT, EXPRLOC = (
    *(0x08, 0x0E, 0x1F, 0x05, 0x0B, 0x0F),
    *(0x17, 0x01, 0x21, 0x19, 0x18),
)


def uleb(value: int) -> bytes:
    out = b""
    while True:
        byte, value = value & 0x7F, value >> 7
        if not value:
            return out + bytes([byte])
        out += bytes([byte | 0x80])


def abbreviation(code: int, tag: int, attributes: list[tuple[int, int]]) -> bytes:
    pairs = b"".join(
        uleb(attribute) + uleb(form) + (uleb(5) if form == IMPLICIT else b"") for attribute, form in attributes
    )
    return uleb(code) + uleb(tag) + b"\1" + pairs + b"\0\0"


def unit(version: int, body: bytes, *, abbrev: int = 0, kind: int = 1) -> bytes:
    if version >= 5:
        rest = struct.pack("<HBBI", version, kind, 8, abbrev) + (bytes(8) if kind in (4, 5) else b"") + body
    else:
        rest = struct.pack("<HIB", version, abbrev, 8) + body
    return struct.pack("<I", len(rest)) + rest


def write(path: Path, info: bytes, abbrev: bytes, *, flags: int = 0, **strings: bytes) -> Path:
    parts = [Part(".debug_info", info, flags=flags), Part(".debug_abbrev", abbrev, flags=0)]
    parts += [Part(f".debug_{name}", data, flags=0) for name, data in strings.items()]
    path.write_bytes(elf(parts))
    return path


def test_dwarf_4_with_names_in_place(tmp_path: Path) -> None:
    abbrev = abbreviation(1, 0x11, [(PRODUCER, STRING), (LANGUAGE, DATA1), (NAME, STRING), (COMP_DIR, STRING)]) + b"\0"
    info = unit(4, b"\1gcc\0\x0cfs/proc/meminfo.c\0/build\0") + unit(4, b"\1gcc\0\x0ckernel/fork.c\0/build\0")
    assert compile_units(write(tmp_path / "a", info, abbrev)) == ["fs/proc/meminfo.c", "kernel/fork.c"]


def test_dwarf_5_with_names_in_string_sections(tmp_path: Path) -> None:
    forms = [(PRODUCER, STRP), (LANGUAGE, DATA2), (MACROS, UDATA), (LOW_PC, ADDR), (STMT_LIST, SEC_OFFSET)]
    first = abbreviation(7, 0x11, [(PRODUCER, IMPLICIT), *forms, (0x7F, PRESENT), (NAME, LINE_STRP)])
    other = abbreviation(300, 0x11, [(NAME, STRP)])
    line_str, text = b"\0lib/string.c\0", b"gcc\0mm/slub.c\0"
    body = uleb(7) + struct.pack("<IH", 0, 29) + uleb(70000) + bytes(8) + bytes(4) + struct.pack("<I", 1)
    abbrev = first + other + b"\0" + abbreviation(1, 0x11, [(NAME, STRING)]) + b"\0"
    second_table = len(first + other) + 1
    info = (
        unit(5, body)
        + unit(5, uleb(300) + struct.pack("<I", 4))
        + unit(5, b"\1by/itself.c\0", abbrev=second_table)
        + unit(5, bytes(30), kind=2)  # a type unit, which has no name
    )
    path = write(tmp_path / "a", info, abbrev, line_str=line_str, str=text)
    assert compile_units(path) == ["lib/string.c", "mm/slub.c", "by/itself.c"]


@pytest.mark.parametrize(
    "attributes",
    [
        [(LANGUAGE, DATA1)],  # no name at all
        [(0x02, EXPRLOC), (NAME, STRING)],  # a form of unknown length stands before it
    ],
)
def test_a_unit_without_a_name_that_can_be_read(tmp_path: Path, attributes: list[tuple[int, int]]) -> None:
    abbrev = abbreviation(1, 0x11, attributes) + abbreviation(2, 0x11, [(NAME, STRING)]) + b"\0"
    info = unit(4, b"\1\x0c\0\0\0\0") + unit(4, b"\2a.c\0") + unit(4, b"\3\0\0\0\0\0")
    assert compile_units(write(tmp_path / "a", info, abbrev)) == ["a.c"]


def test_an_image_without_debug_information(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(elf([Part(".text", b"\x90")]))
    assert compile_units(path) == []
    abbrev = abbreviation(1, 0x11, [(NAME, STRING)]) + b"\0"
    compressed = write(tmp_path / "b", unit(4, b"\1a.c\0"), abbrev, flags=0x800)
    assert compile_units(compressed) == []


def test_a_length_of_nothing_does_not_hold_the_reader_up(tmp_path: Path) -> None:
    abbrev = abbreviation(1, 0x11, [(NAME, STRING)]) + b"\0"
    info = unit(4, b"\1a.c\0") + b"\xff\xff\xff\xff" + bytes(20)  # 64-bit DWARF, which kernels do not use
    assert compile_units(write(tmp_path / "a", info, abbrev)) == ["a.c"]
