# SPDX-License-Identifier: GPL-2.0-or-later
"""Constants that change while some of their readers stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from elf_builder import ALLOC, EXEC, FUNC, GLOBAL, LOCAL, NOTYPE, OBJECT, SECTION, Part, Sym, elf
from elivepatch.build.compiler import CompiledObject
from elivepatch.build.constants import check_constants
from elivepatch.build.engines.engine import DiffObject, FunctionChange
from elivepatch.errors import CannotLivepatchError

ABSOLUTE, PC32 = 1, 2
#: The index of the section symbol of the table, and of that of the strings (the first symbol is number 1).
TABLE, STRINGS = 1, 2


def compiled(
    table: bytes = b"\1\2\3\4",
    *,
    text: bytes = b"one\0two\0",
    pointer: int | None = None,
    bind: int = LOCAL,
    name: str = "names",
    readers: tuple[str, ...] = (".text.reads", ".text.writes"),
    functions: tuple[str, ...] = ("reads", "writes.isra.0"),
) -> bytes:
    """An object with a constant ``names``, which functions (and other data) refer to through its section."""
    pointers = [] if pointer is None else [(0, ABSOLUTE, STRINGS, pointer)]
    place = f".rodata.{name}"
    code = [f".text.{function.partition('.')[0]}" for function in functions]
    others = [reader for reader in readers if reader not in code]
    refers = {reader: [(2, PC32, TABLE, -4)] for reader in readers}
    parts = [Part(place, table, ALLOC, relocations=pointers), Part(".rodata.str1.1", text)]
    parts += [Part(section, bytes(8), ALLOC | EXEC, relocations=refers.get(section, [])) for section in code]
    parts += [Part(section, bytes(8), ALLOC, relocations=refers[section]) for section in others]
    symbols = [Sym("", SECTION, LOCAL, place), Sym("", SECTION, LOCAL, ".rodata.str1.1")]
    symbols += [Sym(f, FUNC, section=section, size=8) for f, section in zip(functions, code, strict=True)]
    symbols += [Sym(one.rpartition(".")[2], OBJECT, section=one, size=8) for one in others]
    symbols += [Sym("nothing", NOTYPE, section=place), Sym(name, OBJECT, bind, place, size=len(table))]
    return elf(parts, symbols)


def check(tmp_path: Path, original: bytes, patched: bytes, *changed: str) -> None:
    (tmp_path / "original.o").write_bytes(original)
    (tmp_path / "patched.o").write_bytes(patched)
    files = (tmp_path / "exact.o", tmp_path / "original.o", tmp_path / "patched.o")
    changes = [FunctionChange("vmlinux", name, "changed") for name in changed]
    changes.append(FunctionChange("vmlinux", "writes", "new"))
    source = CompiledObject("kernel/demo.o", *files, parent="vmlinux", cached=True)
    check_constants([DiffObject(source, tmp_path / "diff.o", changes)])


@pytest.mark.parametrize(
    ("original", "patched"),
    [
        (compiled(), compiled(b"\1\2\3\5")),
        (compiled(bytes(8), pointer=0), compiled(bytes(8), pointer=4)),
        (compiled(bytes(8), pointer=0), compiled(bytes(8), pointer=0, text=b"uno\0two\0")),
        (compiled(name="names.3"), compiled(b"\1\2\3\5", name="names.4")),
    ],
    ids=["bytes", "pointer", "string", "static-in-a-function"],
)
def test_a_reader_that_does_not_change(tmp_path: Path, original: bytes, patched: bytes) -> None:
    with pytest.raises(CannotLivepatchError, match=r"names has changed, and writes\(\)") as caught:
        check(tmp_path, original, patched, "reads")
    assert [(each.rule, each.file) for each in caught.value.diagnosis] == [("data-object-changed", "kernel/demo.c")]
    check(tmp_path, original, patched, "reads", "writes.constprop.0")  # all of them have the new one
    check(tmp_path, original, original, "reads")


def test_strings_may_lie_elsewhere(tmp_path: Path) -> None:
    moved = compiled(bytes(8), pointer=6, text=b"other\0one\0")
    check(tmp_path, compiled(bytes(8), pointer=0), moved, "reads")


def test_a_reader_that_is_gone(tmp_path: Path) -> None:
    check(tmp_path, compiled(), compiled(b"\1\2\3\5", functions=("reads",), readers=(".text.reads",)), "reads")


def test_code_of_the_boot_reads_no_more(tmp_path: Path) -> None:
    readers = (".text.reads", ".init.rodata")
    check(tmp_path, compiled(readers=readers), compiled(b"\1\2\3\5", readers=readers), "reads")


def test_another_table_that_points_to_it(tmp_path: Path) -> None:
    readers = (".text.reads", ".data.operations")
    with pytest.raises(CannotLivepatchError, match="and operations, which"):
        check(tmp_path, compiled(readers=readers), compiled(b"\1\2\3\5", readers=readers), "reads")


def test_one_that_other_files_can_read(tmp_path: Path) -> None:
    with pytest.raises(CannotLivepatchError, match="other files"):
        check(tmp_path, compiled(bind=GLOBAL), compiled(b"\1\2\3\5", bind=GLOBAL), "reads", "writes")


def test_the_name_of_a_function(tmp_path: Path) -> None:
    check(tmp_path, compiled(name="__func__.1"), compiled(b"\1\2\3\5", name="__func__.1"), "reads")
