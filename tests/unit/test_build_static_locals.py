# SPDX-License-Identifier: GPL-2.0-or-later
"""Static variables of functions that go from one function to another."""

from __future__ import annotations

from pathlib import Path

import pytest

from elf_builder import ALLOC, EXEC, FUNC, OBJECT, SECTION, Part, Sym, elf
from elivepatch.build.compiler import CompiledObject
from elivepatch.build.static_locals import check_static_locals
from elivepatch.errors import CannotLivepatchError


def compiled(*users: str, name: str = "seen.3", functions: tuple[str, ...] = ("reads", "writes.isra.0")) -> bytes:
    place = f".data.{name}"
    texts = [f".text.{function}" for function in functions]
    parts = [Part(place, bytes(4))]
    for text, function in zip(texts, functions, strict=True):
        parts.append(Part(text, bytes(8), ALLOC | EXEC, relocations=[(2, 2, 1, -4)] if function in users else []))
    symbols = [Sym("", SECTION, section=place), Sym(name, OBJECT, section=place, size=4)]
    return elf(parts, [*symbols, *(Sym(f, FUNC, section=t, size=8) for f, t in zip(functions, texts, strict=True))])


def check(tmp_path: Path, original: bytes, patched: bytes) -> None:
    (tmp_path / "original.o").write_bytes(original)
    (tmp_path / "patched.o").write_bytes(patched)
    files = (tmp_path / "exact.o", tmp_path / "original.o", tmp_path / "patched.o")
    check_static_locals([CompiledObject("kernel/demo.o", *files, parent="vmlinux", cached=True)])


def test_one_that_moves(tmp_path: Path) -> None:
    with pytest.raises(CannotLivepatchError, match=r"reads\(\) no longer uses .* seen, and writes\(\)") as caught:
        check(tmp_path, compiled("reads"), compiled("writes.isra.0", name="seen.4"))
    assert [(each.rule, each.function) for each in caught.value.diagnosis] == [("static-local-changed", "reads")]


@pytest.mark.parametrize(
    ("original", "patched"),
    [
        (compiled("reads"), compiled("reads")),
        (compiled("reads"), compiled("reads", "writes.isra.0")),
        (compiled("reads", "writes.isra.0"), compiled("reads")),
        (compiled("reads", name="__already_done.3"), compiled("writes.isra.0", name="__already_done.3")),
        (compiled("reads"), compiled("other", functions=("other",))),  # the function has another name
    ],
    ids=["same", "one-more", "one-less", "made-by-a-macro", "renamed"],
)
def test_those_that_stay(tmp_path: Path, original: bytes, patched: bytes) -> None:
    check(tmp_path, original, patched)
