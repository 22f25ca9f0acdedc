# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes to read-only data, in the code that gcc makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from elf_builder import ALLOC, EXEC, FUNC, GLOBAL, NOTYPE, OBJECT, SECTION, Part, Sym, elf
from elivepatch.build.compiler import CompiledObject
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.read_only import check_read_only, writes
from elivepatch.errors import CannotLivepatchError
from elivepatch.kernel.elf import Relocation

PC32, S32, PLT32 = 2, 11, 4
RO = ".data..ro_after_init"
#: What the compiler makes of an access, its operand at the end or before a constant: bytes with dots for the operand.
WRITES = {
    "mov %eax,x": ("89 05 ....", PC32),
    "mov %r12b,x": ("44 88 25 ....", PC32),
    "movl $1,x": ("c7 05 .... 01000000", PC32),
    "movb $1,x": ("c6 05 .... 01", PC32),
    "incl x": ("ff 05 ....", PC32),
    "lock decl x": ("f0 ff 0d ....", PC32),
    "addb $5,x": ("80 05 .... 05", PC32),
    "or %al,x": ("08 05 ....", PC32),
    "xchg %al,x": ("86 05 ....", PC32),
    "lock cmpxchg %edx,x": ("f0 0f b1 15 ....", PC32),
    "lock bts %rax,x": ("f0 48 0f ab 05 ....", PC32),
    "lock btsq $3,x": ("f0 48 0f ba 2d .... 03", PC32),
    "sete x": ("0f 94 05 ....", PC32),
    "mov %al,x(%rdi)": ("88 87 ....", S32),
    "mov %rax,x(,%rdi,8)": ("48 89 04 fd ....", S32),
    "mov %eax,x(%rsi,%rdi,4)": ("89 84 be ....", S32),
    "movq $0,x(,%rdi,8)": ("48 c7 04 fd .... 00000000", S32),
}
READS = {
    "mov x,%eax": ("8b 05 ....", PC32),
    "movzbl x,%eax": ("0f b6 05 ....", PC32),
    "cmpb $7,x": ("80 3d .... 07", PC32),
    "cmp %eax,x": ("39 05 ....", PC32),
    "testb $1,x": ("f6 05 .... 01", PC32),
    "test %eax,x": ("85 05 ....", PC32),
    "lea x,%rax": ("48 8d 05 ....", PC32),
    "push x": ("ff 35 ....", PC32),
    "call *x": ("ff 15 ....", PC32),
    "bt %rax,x": ("48 0f a3 05 ....", PC32),
    "btq $3,x": ("48 0f ba 25 .... 03", PC32),
    "add x,%eax": ("03 05 ....", PC32),
    "mov x(%rdi),%al": ("8a 87 ....", S32),
    "mov x(,%rdi,8),%rax": ("48 8b 04 fd ....", S32),
    "mov $x,%rdi": ("48 c7 c7 ....", S32),
    "call x": ("90 90 e8 ....", PLT32),
    "jne x": ("0f 85 ....", PC32),
}


def encoded(text: str, kind: int) -> tuple[bytes, Relocation]:
    """The bytes, behind some that are no part of it, and what completes the operand."""
    head, tail = (bytes.fromhex(part) for part in text.split("...."))
    code = b"\x90\x90\x90\x90" + head
    return code + bytes(4) + tail + b"\xc3", Relocation(len(code), kind, 1, -4 - len(tail) if kind == PC32 else 0)


@pytest.mark.parametrize("text", WRITES)
def test_what_writes(text: str) -> None:
    assert writes(*encoded(*WRITES[text]))


@pytest.mark.parametrize("text", READS)
def test_what_only_reads(text: str) -> None:
    assert not writes(*encoded(*READS[text]))


def test_what_is_cut_off_is_no_write() -> None:
    assert not writes(b"\x89\x05", Relocation(2, PC32, 1, -4))
    assert not writes(b"\x89\x05\0\0\0\0", Relocation(900, PC32, 1, -4))


def made(access: str = "mov x,%eax", *, place: str = RO, text: str = ".text.counts", extern: bool = False) -> bytes:
    """An object whose function accesses a variable, of its own or of another file."""
    code, one = encoded(*{**WRITES, **READS}[access])
    parts = [
        Part(place, bytes(8)),
        Part(text, code, ALLOC | EXEC, relocations=[(one.offset, one.type, 3 if extern else 1, one.addend)]),
    ]
    symbols = [
        Sym("", SECTION, section=place),
        Sym("seen", OBJECT, section=place, size=4),
        Sym("elsewhere", NOTYPE, GLOBAL, section=0),
        Sym("__pfx_counts", FUNC, section=text, size=4),
        Sym("counts.isra.0", FUNC, section=text, value=4, size=len(code) - 4),
    ]
    return elf(parts, symbols)


def check(tmp_path: Path, original: bytes, patched: bytes, kernel: PreparedKernel | None = None) -> None:
    (tmp_path / "original.o").write_bytes(original)
    (tmp_path / "patched.o").write_bytes(patched)
    files = (tmp_path / "exact.o", tmp_path / "original.o", tmp_path / "patched.o")
    check_read_only(
        cast("PreparedKernel", kernel), [CompiledObject("kernel/demo.o", *files, parent="vmlinux", cached=True)]
    )


@pytest.mark.parametrize("place", [RO, ".rodata", ".rodata.seen", ".data.rel.ro.seen"])
def test_a_new_write_is_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(CannotLivepatchError, match=r"^counts\(\) writes to seen,") as caught:
        check(tmp_path, made(place=place), made("movl $1,x", place=place))
    (found,) = caught.value.diagnosis
    assert (found.rule, found.file, found.function) == ("read-only-written", "kernel/demo.c", "counts")


@pytest.mark.parametrize(
    ("original", "patched"),
    [
        (made("incl x"), made("mov %eax,x")),
        (made(), made("mov x,%eax")),
        (made(place=".data.seen"), made("incl x", place=".data.seen")),
        (made(), made("incl x", text=".init.text")),
    ],
    ids=["as-before", "read", "variable", "boot-code"],
)
def test_what_may_be(tmp_path: Path, original: bytes, patched: bytes) -> None:
    check(tmp_path, original, patched)


@pytest.mark.parametrize(("place", "refused"), [(".rodata", True), (".data", False)])
def test_variables_of_other_files_are_looked_up_in_the_kernel(tmp_path: Path, place: str, refused: bool) -> None:
    class Kernel:
        vmlinux = tmp_path / "vmlinux"

    Kernel.vmlinux.write_bytes(elf([Part(place, bytes(8))], [Sym("elsewhere", OBJECT, GLOBAL, section=place, size=8)]))
    original, patched = made(extern=True), made("incl x", extern=True)
    kernel = cast("PreparedKernel", Kernel())
    if refused:
        with pytest.raises(CannotLivepatchError, match=r"^counts\(\) writes to elsewhere,"):
            check(tmp_path, original, patched, kernel)
    else:
        check(tmp_path, original, patched, kernel)
