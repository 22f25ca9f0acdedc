# SPDX-License-Identifier: GPL-2.0-or-later
"""Which symbol of the image a local one is: by its file's block, by its code, or not at all."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from elivepatch.build.engines.klp_image import Located, ParentSymbols, locate, stand_in, symid_section
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.unpack import raw_tables, write_symbols
from elivepatch.kernel.elf import STB_LOCAL, STT_FILE, STT_FUNC, STT_OBJECT, ElfImage
from elivepatch.kernel.elf_object import SHT_PROGBITS, ElfObject, SectionHeader, SymbolEntry
from elivepatch.toolchains.roots import Root

BASE = 0x1000
#: File → its local symbols: name, type, place in .text, size.
Block = tuple[str, Sequence[tuple[str, int, int, int]]]


def image(blocks: Sequence[Block], code: bytes, others: Sequence[SymbolEntry] = (), *, base: int = BASE) -> bytes:
    """A linked image with the blocks of several files, all in one section."""
    made = ElfObject.empty(2)
    text = made.add(SectionHeader(".text", SHT_PROGBITS, flags=6, address=base, align=16), code)
    entries: list[SymbolEntry] = []
    for file, symbols in blocks:
        entries.append(SymbolEntry(file, STT_FILE, STB_LOCAL, 0xFFF1))
        entries += [SymbolEntry(n, kind, STB_LOCAL, text, base + at, size) for n, kind, at, size in symbols]
    made.make_symbol_table([*entries, *(replace(one, section=text) for one in others)])
    return made.write()


def compiled(symbols: Sequence[tuple[str, int, int, int]], code: bytes, file: str = "demo.c") -> bytes:
    """One object of them."""
    made = ElfObject.empty(1)
    text = made.add(SectionHeader(".text", SHT_PROGBITS, flags=6, align=16), code)
    entries = [SymbolEntry(file, STT_FILE, STB_LOCAL, 0xFFF1)]
    made.make_symbol_table([*entries, *(SymbolEntry(n, k, STB_LOCAL, text, at, size) for n, k, at, size in symbols)])
    return made.write()


@pytest.fixture
def kernel(tmp_path: Path) -> PreparedKernel:
    root = Root("trixie", tmp_path, "0", 1, 0.0, None)
    (tmp_path / "image").mkdir()
    (tmp_path / "symbols").mkdir()
    names = ("release", "origin", "build_id", "config_sha256", "compiler")
    return PreparedKernel(
        path=tmp_path, source=tmp_path, root=root, variables={}, environment={}, sizes={}, **dict.fromkeys(names, "x")
    )


def find(kernel: PreparedKernel, symbols: Sequence[tuple[str, int, int, int]], code: bytes) -> Located:
    object_file = kernel.path / "demo.o"
    object_file.write_bytes(compiled(symbols, code))
    return locate(kernel, ParentSymbols(kernel, "vmlinux"), "fs/demo.o", object_file, object_file)


SHOW = ("show", STT_FUNC, 0, 16)
CODE = bytes(range(16))


def test_the_file_decides(kernel: PreparedKernel) -> None:
    blocks: list[Block] = [
        ("first.c", [("show", STT_FUNC, 32, 16)]),
        ("demo.c", [("show", STT_FUNC, 16, 16)]),
        ("last.c", [("show", STT_FUNC, 0, 16)]),
    ]
    kernel.vmlinux.write_bytes(image(blocks, CODE * 3))
    located = find(kernel, [SHOW], CODE)
    assert [place.rank for place in located.named["show"]] == [BASE, BASE + 16, BASE + 32]
    assert located.own["show"].rank == BASE + 16


def test_of_two_files_of_one_name_the_code_decides(kernel: PreparedKernel) -> None:
    blocks: list[Block] = [("demo.c", [SHOW]), ("demo.c", [("show", STT_FUNC, 16, 16)])]
    kernel.vmlinux.write_bytes(image(blocks, bytes(16) + CODE))
    assert find(kernel, [SHOW], CODE).own["show"].rank == BASE + 16


def test_of_two_files_with_the_same_code_none_is_taken(kernel: PreparedKernel) -> None:
    blocks: list[Block] = [("demo.c", [SHOW]), ("demo.c", [("show", STT_FUNC, 16, 16)])]
    kernel.vmlinux.write_bytes(image(blocks, CODE + CODE))
    located = find(kernel, [SHOW], CODE)
    assert len(located.named["show"]) == 2
    assert not located.own


def test_a_file_that_the_image_does_not_have(kernel: PreparedKernel) -> None:
    kernel.vmlinux.write_bytes(image([("other.c", [SHOW])], CODE))
    assert find(kernel, [SHOW], CODE) == Located()


def test_a_variable_of_another_size_is_another_one(kernel: PreparedKernel) -> None:
    kernel.vmlinux.write_bytes(image([("demo.c", [SHOW, ("count.1", STT_OBJECT, 16, 4)])], CODE * 2))
    exact, original = kernel.path / "exact.o", kernel.path / "original.o"
    exact.write_bytes(compiled([SHOW, ("count.1", STT_OBJECT, 16, 4)], CODE * 2))
    parent = ParentSymbols(kernel, "vmlinux")
    assert set(locate(kernel, parent, "fs/demo.o", exact, exact).own) == {"show", "count.1"}
    for numbered in (("count.1", STT_OBJECT, 16, 8), ("count.2", STT_OBJECT, 16, 4)):
        original.write_bytes(compiled([SHOW, numbered], CODE * 2))
        assert set(locate(kernel, parent, "fs/demo.o", exact, original).named) == {"show"}


def test_two_of_one_name_in_one_file_cannot_be_told_apart(kernel: PreparedKernel) -> None:
    twice = [SHOW, ("label", STT_FUNC, 16, 4), ("label", STT_FUNC, 20, 4)]
    kernel.vmlinux.write_bytes(image([("demo.c", twice)], CODE * 2))
    located = find(kernel, twice, CODE * 2)
    assert len(located.named["label"]) == 2
    assert set(located.own) == {"show"}


def test_global_symbols_of_the_name_count_too(kernel: PreparedKernel) -> None:
    other = SymbolEntry("show", STT_FUNC, value=BASE + 16, size=16)
    kernel.vmlinux.write_bytes(image([("demo.c", [("show", STT_FUNC, 32, 16)])], CODE * 3, [other]))
    located = find(kernel, [SHOW], CODE)
    assert [place.local for place in located.named["show"]] == [False, True]


def test_a_module_counts_in_the_order_of_its_table(kernel: PreparedKernel) -> None:
    blocks: list[Block] = [
        ("a.c", [("show", STT_FUNC, 32, 16)]),
        ("demo.c", [SHOW]),
        ("z.c", [("show", STT_FUNC, 16, 16)]),
    ]
    write_symbols(kernel.path / "symbols/own.z", raw_tables(memoryview(image(blocks, CODE * 3, base=0))))
    object_file = kernel.path / "demo.o"
    object_file.write_bytes(compiled([SHOW], CODE))
    located = locate(kernel, ParentSymbols(kernel, "own"), "fs/demo.o", object_file, object_file)
    places = located.named["show"]
    assert [place.symbol.value for place in places] == [32, 0, 16]
    assert places.index(located.own["show"]) == 1


def test_the_two_tables_name_the_same_symbols(kernel: PreparedKernel) -> None:
    blocks: list[Block] = [("first.c", [("show", STT_FUNC, 16, 16)]), ("demo.c", [SHOW, ("lock", STT_OBJECT, 40, 4)])]
    kernel.vmlinux.write_bytes(image(blocks, CODE * 3))
    symbols = [SHOW, ("lock", STT_OBJECT, 40, 4)]
    original = ElfObject(compiled(symbols, CODE * 3))
    located = find(kernel, symbols, CODE * 3)
    with ElfImage(stand_in(original, located)) as beside:
        theirs = dict(struct.iter_unpack("<QQ", beside.data_of(".klp.symid")))
        assert sorted(symbol.name for symbol in beside.symbols() if symbol.name) == ["lock", "show", "show"]
    symid_section(original, located)
    with ElfImage(original.write()) as image_of:
        section = image_of.section(".klp.symid")
        assert section is not None
        table, data = image_of.symbol_table(), image_of.data(section)
        ours = {
            struct.unpack_from("<Q", data, one.offset - 8)[0]: table[one.symbol].name
            for one in image_of.relocations(section)
        }
    assert {ours[number]: address for number, address in theirs.items()} == {"show": BASE, "lock": BASE + 40}
