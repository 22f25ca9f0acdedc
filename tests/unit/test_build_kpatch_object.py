# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the functions of a patched object stand, for kpatch's differ."""

from __future__ import annotations

import pytest

from elf_builder import EXEC, FUNC, GLOBAL, Part, Sym, elf
from elivepatch.build.engines.kpatch_object import with_sections_of
from elivepatch.kernel.elf_object import ElfObject

R_PLT32 = 4


def made(*functions: tuple[str, str]) -> bytes:
    """An object with these functions: section and name, each with a relocation."""
    parts = [Part(section, bytes(16), 2 | EXEC, relocations=[(4, R_PLT32, 1, -4)]) for section, _ in functions]
    return elf(parts, [Sym(name, FUNC, GLOBAL, section, 0, 16) for section, name in functions])


def sections(data: bytes) -> list[tuple[str, str]]:
    """The functions of an object by their sections, and that its relocations are called after those."""
    image = ElfObject(data)
    for section in image.sections:
        if section.name.startswith(".rela"):
            assert section.name == f".rela{image.sections[section.info].name}"
    return [(image.sections[one.section].name, one.name) for one in image.symbols() if one.name]


@pytest.mark.parametrize(
    ("original", "patched"),
    [
        (".text.one", ".text.unlikely.one"),
        (".text.unlikely.one", ".text.one"),
        (".text.hot.one", ".text.startup.one"),
    ],
)
def test_a_function_that_moved_is_put_back(original: str, patched: str) -> None:
    before = made((original, "one"), (".text.two", "two"))
    found = with_sections_of(before, made((".text.two", "two"), (patched, "one")))
    assert sections(found) == [(".text.two", "two"), (original, "one")]


@pytest.mark.parametrize(
    "patched",
    [
        ((".text.one", "one"), (".text.unlikely.new", "new")),
        # its cold part has the name: a second section of it would be one too many
        ((".text.unlikely.one", "one"), (".text.one", "one.cold")),
        ((".init.text", "one"),),
        ((".text.unlikely.other", "one"),),
    ],
    ids=["in-place", "taken", "init", "shared"],
)
def test_what_did_not_move_so_stays_as_it_is(patched: tuple[tuple[str, str], ...]) -> None:
    data = made(*patched)
    assert with_sections_of(made((".text.one", "one")), data) is data
