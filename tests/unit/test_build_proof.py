# SPDX-License-Identifier: GPL-2.0-or-later
"""The comparison that the proof is made of, on objects and images put together by hand."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elf_builder import ALLOC, EXEC, FILE, FUNC, GLOBAL, LOCAL, NOTYPE, SECTION, WEAK, Part, Sym, elf
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.proof import FunctionProof, Prover, masked
from elivepatch.build.unpack import raw_tables, write_symbols
from elivepatch.kernel.elf import Relocation
from elivepatch.toolchains.roots import Root

PC32, PLT32, ABS64, ABS32S = 2, 4, 1, 11
TEXT = 0xFFFFFFFF81000000
CALL = b"\x55\xe8\0\0\0\0\xc3"  # push; call <relocation at 2>; ret


def kernel(directory: Path, vmlinux: bytes, modules: dict[str, str] | None = None) -> PreparedKernel:
    (directory / "image").mkdir()
    (directory / "image/vmlinux").write_bytes(vmlinux)
    root = Root("test", directory, "", 0, 0.0, None)
    return PreparedKernel(directory, directory, root, "6.12.1", "", "", "", "", {}, {}, {}, modules or {})


def image(code: bytes, symbols: Sequence[Sym]) -> bytes:
    return elf([Part(".text", code, ALLOC | EXEC, address=TEXT)], symbols)


def compiled(code: bytes, symbols: Sequence[Sym], relocations: Sequence[tuple[int, int, int, int]] = ()) -> bytes:
    return elf([Part(".text", code, ALLOC | EXEC, relocations=relocations)], symbols)


def call_to(target: int, at: int = TEXT) -> bytes:
    return b"\x55\xe8" + struct.pack("<i", target - (at + 6)) + b"\xc3"


def prove(directory: Path, vmlinux: bytes, original: bytes, path: str = "fs/a.o") -> list[FunctionProof]:
    exact = directory / "exact.o"
    exact.write_bytes(original)
    return list(Prover(kernel(directory, vmlinux)).prove(path, "vmlinux", exact).functions)


CALLER = [Sym("caller", FUNC, GLOBAL, size=7), Sym("callee", NOTYPE, GLOBAL, 0)]
IN_KERNEL = [
    Sym("a.c", FILE, section=0xFFF1),
    Sym("caller", FUNC, GLOBAL, value=TEXT, size=7),
    Sym("callee", FUNC, GLOBAL, value=TEXT + 0x100, size=1),
    Sym("other", FUNC, GLOBAL, value=TEXT + 0x200, size=1),
]


def test_identical_with_what_the_relocation_fills_in_masked(tmp_path: Path) -> None:
    (proof,) = prove(tmp_path, image(call_to(TEXT + 0x100), IN_KERNEL), compiled(CALL, CALLER, [(2, PLT32, 2, -4)]))
    assert (proof.function, proof.outcome, proof.size, proof.masked) == ("caller", "identical", 7, 4)


@pytest.mark.parametrize(
    ("linked", "size", "why"),
    [
        (call_to(TEXT + 0x200), 7, "another symbol than callee"),
        (b"\x56" + call_to(TEXT + 0x100)[1:], 7, "at +0x0"),
        (call_to(TEXT + 0x100)[:-1] + b"\xcc", 7, "at +0x6"),
        (call_to(TEXT + 0x100) + b"\x90", 8, "its size is 8 bytes in the kernel, 7"),
    ],
)
def test_different(tmp_path: Path, linked: bytes, size: int, why: str) -> None:
    symbols = [IN_KERNEL[0], Sym("caller", FUNC, GLOBAL, value=TEXT, size=size), *IN_KERNEL[2:]]
    (proof,) = prove(tmp_path, image(linked, symbols), compiled(CALL, CALLER, [(2, PLT32, 2, -4)]))
    assert proof.outcome == "different"
    assert why in proof.why


@pytest.mark.parametrize(
    ("kind", "width", "value"),
    [
        (PC32, 4, TEXT + 0x100 + 4 - (TEXT + 2)),
        (ABS32S, 4, TEXT + 0x100 + 4 - 2**64),
        (ABS64, 8, TEXT + 0x100 + 4 - 2**64),
    ],
)
def test_every_kind_of_reference_is_followed(tmp_path: Path, kind: int, width: int, value: int) -> None:
    symbols = [Sym("caller", FUNC, GLOBAL, size=2 + width), CALLER[1]]
    original = compiled(b"\x48\xb8" + bytes(width), symbols, [(2, kind, 2, 4)])
    in_kernel = [IN_KERNEL[0], Sym("caller", FUNC, GLOBAL, value=TEXT, size=2 + width), *IN_KERNEL[2:]]
    for off, outcome in ((0, "identical"), (1, "different")):
        place = tmp_path / str(off)
        place.mkdir()
        code = b"\x48\xb8" + (value + off).to_bytes(width, "little", signed=True)
        (proof,) = prove(place, image(code, in_kernel), original)
        assert (proof.outcome, proof.masked) == (outcome, width), proof.why


def test_a_weak_default_that_another_file_overrides_is_absent(tmp_path: Path) -> None:
    original = compiled(b"\xc3\x90", [Sym("hook", FUNC, WEAK, size=2)])
    strong = image(b"\x31\xc0", [Sym("a.c", FILE, section=0xFFF1), Sym("hook", FUNC, GLOBAL, value=TEXT, size=2)])
    (proof,) = prove(tmp_path, strong, original)
    assert proof.outcome == "absent"
    assert "overrides" in proof.why


def test_a_weak_default_that_is_used_is_identical(tmp_path: Path) -> None:
    vmlinux = image(b"\xc3\x90", [Sym("hook", FUNC, WEAK, value=TEXT, size=2)])
    (proof,) = prove(tmp_path, vmlinux, compiled(b"\xc3\x90", [Sym("hook", FUNC, WEAK, size=2)]))
    assert proof.outcome == "identical"


def test_a_function_that_the_kernel_has_not_is_absent(tmp_path: Path) -> None:
    (proof,) = prove(tmp_path, image(b"\xc3", IN_KERNEL), compiled(b"\xc3", [Sym("gone", FUNC, GLOBAL, size=1)]))
    assert proof.outcome == "absent"


def test_a_local_function_of_another_file_is_not_taken(tmp_path: Path) -> None:
    vmlinux = image(b"\xc3", [Sym("b.c", FILE, section=0xFFF1), Sym("helper", FUNC, LOCAL, value=TEXT, size=1)])
    (proof,) = prove(tmp_path, vmlinux, compiled(b"\xc3", [Sym("helper", FUNC, LOCAL, size=1)]))
    assert proof.outcome == "absent"
    # nor is a local one for a global one of that name
    (tmp_path / "2").mkdir()
    (proof,) = prove(tmp_path / "2", vmlinux, compiled(b"\xc3", [Sym("helper", FUNC, GLOBAL, size=1)]))
    assert proof.outcome == "absent"


def test_of_files_of_one_name_the_one_that_fits_is_taken_whole(tmp_path: Path) -> None:
    # three objects from an a.c: the second is ours, the first and the third share names with it
    code = b"\x90\xc3" + b"\x31\xc3" + b"\x32\xc3" + b"\x90\xc3" + b"\x40\xc3"
    symbols = [
        Sym("a.c", FILE, section=0xFFF1),
        Sym("init", FUNC, value=TEXT, size=2),
        Sym("a.c", FILE, section=0xFFF1),
        Sym("init", FUNC, value=TEXT + 2, size=2),
        Sym("work", FUNC, value=TEXT + 4, size=2),
        Sym("a.c", FILE, section=0xFFF1),
        Sym("init", FUNC, value=TEXT + 6, size=2),
        Sym("work", FUNC, value=TEXT + 8, size=2),
    ]
    ours = [Sym("init", FUNC, size=2), Sym("work", FUNC, value=2, size=2)]
    proofs = prove(tmp_path, image(code, symbols), compiled(b"\x31\xc3\x32\xc3", ours))
    assert [proof.outcome for proof in proofs] == ["identical", "identical"]
    # a mix of two of them is nobody's: not one function of each is taken
    (tmp_path / "2").mkdir()
    proofs = prove(tmp_path / "2", image(code, symbols), compiled(b"\x31\xc3\x40\xc3", ours))
    assert sorted(proof.outcome for proof in proofs) == ["different", "identical"]


def test_what_is_left_out(tmp_path: Path) -> None:
    original = elf(
        [Part(".text", b"\xc3" * 8, ALLOC | EXEC), Part(".init.text", b"\xc3", ALLOC | EXEC), Part(".data", bytes(8))],
        [
            Sym("", SECTION),
            Sym("early", FUNC, section=".init.text", size=1),
            Sym("table", FUNC, section=".data", size=8),
            Sym("__pfx_live", FUNC, size=4),
            Sym("empty", FUNC, size=0),
            Sym("extern", FUNC, GLOBAL, 0, size=8),
            Sym("live", FUNC, value=4, size=1),
        ],
    )
    assert [proof.function for proof in prove(tmp_path, image(b"\xc3", IN_KERNEL), original)] == ["live"]


def test_modules_are_compared_by_section(tmp_path: Path) -> None:
    symbols = [Sym("a.c", FILE, section=0xFFF1), Sym("caller", FUNC, section=".text", value=1, size=7)]
    module = elf([Part(".text", b"\x90" + CALL, ALLOC | EXEC)], symbols)
    prepared = kernel(tmp_path, image(b"\xc3", IN_KERNEL), {"mod": "kernel/fs/mod.ko"})
    (tmp_path / "modules/kernel/fs").mkdir(parents=True)
    (tmp_path / "modules/kernel/fs/mod.ko").write_bytes(module)
    (tmp_path / "symbols").mkdir()
    write_symbols(tmp_path / "symbols/mod.z", raw_tables(memoryview(module)))
    exact = tmp_path / "a.o"
    for code, outcome in ((CALL, "identical"), (CALL[:-1] + b"\xcc", "different")):
        exact.write_bytes(compiled(code, [Sym("caller", FUNC, LOCAL, size=7), CALLER[1]], [(2, PLT32, 2, -4)]))
        proof = Prover(prepared).prove("fs/a.o", "mod", exact)
        assert [each.outcome for each in proof.functions] == [outcome]
        assert proof.contained
    nowhere = Prover(prepared).prove("fs/a.o", "none", exact)
    assert [each.outcome for each in nowhere.functions] == ["absent"]
    assert not nowhere.contained


@given(
    code=st.binary(max_size=64),
    places=st.lists(st.tuples(st.integers(0, 80), st.sampled_from([1, 2, 4, 10, 11, 12, 24, 99])), max_size=6),
    start=st.integers(0, 10),
)
def test_masking_covers_what_relocations_fill_in_and_nothing_else(
    code: bytes, places: list[tuple[int, int]], start: int
) -> None:
    relocations = [Relocation(offset, kind, 0, 0) for offset, kind in places]
    out, covered = masked(code, relocations, start)
    filled = {
        at
        for relocation in relocations
        for at in range(relocation.offset - start, relocation.offset - start + relocation.width)
        if 0 <= at < len(code)
    }
    assert len(out) == len(code)
    assert covered == len(filled)
    assert all(out[at] == (0 if at in filled else code[at]) for at in range(len(code)))
