# SPDX-License-Identifier: GPL-2.0-or-later
"""Which addresses a module takes, and that those of sealed functions are refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from elf_builder import ALLOC, EXEC, FUNC, GLOBAL, NOTYPE, Part, Sym, elf
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.sealed import addresses_taken, check_sealed, kernel_name, sealed_functions
from elivepatch.errors import CannotLivepatchError
from elivepatch.toolchains.roots import Root

ABS64, PC32, PLT32, ABS32S = 1, 2, 4, 11
LIVEPATCH = 0xFF20
TEXT = 0xFFFFFFFF81000000
SYMBOLS = [
    Sym("printed", NOTYPE, GLOBAL, 0),
    Sym(".klp.sym.vmlinux.victim,0", FUNC, GLOBAL, LIVEPATCH),
    Sym("own", FUNC, GLOBAL, ".text"),
]


def module(path: Path, *parts: Part) -> Path:
    path.write_bytes(elf(parts, SYMBOLS))
    return path


def code(before: bytes, kind: int, symbol: int = 2, *, name: str = ".text", flags: int = ALLOC | EXEC) -> Part:
    return Part(name, before + bytes(12), flags, relocations=[(len(before), kind, symbol, -4)])


@pytest.mark.parametrize(
    ("part", "taken"),
    [
        (code(b"\xe8", PLT32), []),  # call
        (code(b"\xe8", PC32), []),
        (code(b"\xe9", PC32), []),  # jmp
        (code(b"\x0f\x84", PC32), []),  # je
        (code(b"\x0f\x8f", PC32), []),  # jg
        (code(b"\x0f\x90", PC32), ["victim"]),  # setcc is no jump
        (code(b"\x48\x8d\x3d", PC32), ["victim"]),  # lea victim(%rip), %rdi
        (code(b"\x48\xc7\xc7", ABS32S), ["victim"]),  # mov $victim, %rdi
        (code(b"\xe8", ABS32S), ["victim"]),
        (code(b"", ABS64, name=".data", flags=ALLOC), ["victim"]),
        (code(b"\xe8", PC32, name=".rodata", flags=ALLOC), ["victim"]),  # in data no byte makes a branch
        (code(b"\xe8", PC32, name=".data.rel.ro", flags=ALLOC), ["victim"]),
        (code(b"", ABS64, symbol=1, name=".data", flags=ALLOC), ["printed"]),
        (code(b"", ABS64, symbol=3, name=".data", flags=ALLOC), []),  # the module's own
        (code(b"", ABS64, name="__ex_table", flags=ALLOC), []),
        (code(b"", ABS64, name=".debug_info", flags=0), []),
        (code(b"", PC32, name=".orc_unwind_ip", flags=ALLOC), []),
    ],
)
def test_addresses_that_a_module_takes(tmp_path: Path, part: Part, taken: list[str]) -> None:
    parts = [part] if part.name == ".text" else [Part(".text", b"\xc3", ALLOC | EXEC), part]
    path = module(tmp_path / "a.ko", *parts)
    assert [name for name, _ in addresses_taken(path)] == taken


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("kfree", "kfree"),
        (".klp.sym.vmlinux.kfree,0", "kfree"),
        (".klp.sym.nf_tables.nft_do_chain,2", "nft_do_chain"),
        (".klp.sym.vmlinux.work.isra.0,1", "work.isra.0"),
        (".klp.symptom", ".klp.symptom"),
    ],
)
def test_names_of_livepatch_symbols(symbol: str, name: str) -> None:
    assert kernel_name(symbol) == name


def kernel(directory: Path, sealed: list[int] | None) -> PreparedKernel:
    parts = [Part(".text", b"\xc3" * 64, ALLOC | EXEC, address=TEXT)]
    if sealed is not None:
        at = TEXT + 0x1000
        data = b"".join(struct.pack("<i", target - (at + 4 * number)) for number, target in enumerate(sealed))
        parts.append(Part(".ibt_endbr_seal", data, ALLOC, address=at))
    symbols = [Sym("victim", FUNC, value=TEXT + 16, size=4), Sym("free", FUNC, GLOBAL, value=TEXT + 32, size=4)]
    (directory / "image").mkdir()
    (directory / "image/vmlinux").write_bytes(elf(parts, symbols))
    root = Root("test", directory, "", 0, 0.0, None)
    return PreparedKernel(directory, directory, root, "6.12.1", "", "", "", "", {}, {}, {}, {})


def test_the_address_of_a_sealed_function_is_refused(tmp_path: Path) -> None:
    taking = module(tmp_path / "a.ko", code(b"\x48\x8d\x3d", PC32))
    with pytest.raises(CannotLivepatchError) as caught:
        check_sealed(kernel(tmp_path, [TEXT, TEXT + 16]), taking)
    (finding,) = caught.value.diagnosis
    assert (finding.rule, finding.function) == ("sealed-endbr", "victim")
    assert finding.hint


@pytest.mark.parametrize("sealed", [None, [], [TEXT + 32], [TEXT + 15, TEXT + 17]])
def test_other_addresses_are_not(tmp_path: Path, sealed: list[int] | None) -> None:
    check_sealed(kernel(tmp_path, sealed), module(tmp_path / "a.ko", code(b"\x48\x8d\x3d", PC32)))


def test_a_call_of_a_sealed_function_is_not(tmp_path: Path) -> None:
    check_sealed(kernel(tmp_path, [TEXT + 16]), module(tmp_path / "a.ko", code(b"\xe8", PLT32)))


def test_what_a_kernel_seals_is_found_once(tmp_path: Path) -> None:
    prepared = kernel(tmp_path, [TEXT + 16])
    assert sealed_functions(prepared) == {"victim"}
    (tmp_path / "image/vmlinux").unlink()
    assert sealed_functions(prepared) == {"victim"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image", "sealed-functions"]
