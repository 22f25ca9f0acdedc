# SPDX-License-Identifier: GPL-2.0-or-later
"""The guard of IBT: a livepatch must not take the address of a function whose ENDBR the kernel has sealed.

With CONFIG_X86_KERNEL_IBT the kernel overwrites, at boot, the ENDBR of every function that nothing calls through a
pointer (the list is ``.ibt_endbr_seal`` of vmlinux, arch/x86/kernel/alternative.c). A pointer to one of them that a
livepatch makes would fault when called, on hardware with IBT only: emulators do not show it, so it is checked here.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.rules import finding
from elivepatch.errors import CannotLivepatchError
from elivepatch.kernel.elf import (
    R_X86_64_32,
    R_X86_64_32S,
    R_X86_64_64,
    R_X86_64_PC32,
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHN_UNDEF,
    STT_FUNC,
    ElfImage,
    unpack_relocations,
)

_KEPT = "sealed-functions"
_KLP_SYMBOL = ".klp.sym."
_SHN_LIVEPATCH = 0xFF20


def check_sealed(kernel: PreparedKernel, module: Path) -> None:
    """Raise CannotLivepatchError where the module takes the address of a sealed function."""
    taken = dict(addresses_taken(module))
    names = taken.keys() & sealed_functions(kernel) if taken else set[str]()
    findings = [
        finding(
            "sealed-endbr",
            f"{taken[name]} takes the address of {name}(), which the kernel has sealed against indirect calls.",
            function=name,
        )
        for name in sorted(names)
    ]
    if findings:
        raise CannotLivepatchError(findings[0].message, hint=findings[0].hint, diagnosis=findings)


def sealed_functions(kernel: PreparedKernel) -> frozenset[str]:
    """The names of all functions that a kernel seals."""
    return kept_names(kernel, _KEPT, _find_sealed)


def kept_names(kernel: PreparedKernel, kept_as: str, find: Callable[[Path], frozenset[str]]) -> frozenset[str]:
    """Names that are found in a kernel's image once, and kept with the kernel in a file of that name."""
    kept = kernel.path / kept_as
    try:
        return frozenset(kept.read_text().split())
    except FileNotFoundError:
        names = find(kernel.vmlinux)
    handle, aside = tempfile.mkstemp(prefix=f".{kept_as}.", dir=kernel.path)
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write("\n".join(sorted(names)))
        Path(aside).replace(kept)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    return names


def _find_sealed(vmlinux: Path) -> frozenset[str]:
    with ElfImage(vmlinux) as image:
        section = image.section(".ibt_endbr_seal")
        if section is None:
            return frozenset()
        data = image.data(section)
        # one 32-bit offset each, relative to its own place
        entries = struct.iter_unpack("<i", data[: len(data) // 4 * 4])
        sealed = {section.address + 4 * index + offset for index, (offset,) in enumerate(entries)}
        return frozenset(
            symbol.name for symbol in image.iter_symbols() if symbol.type == STT_FUNC and symbol.value in sealed
        )


def addresses_taken(module: Path) -> Iterator[tuple[str, str]]:
    """The kernel's symbols whose address a module takes, each with the section that does."""
    with ElfImage(module) as image:
        table = image.symbol_table()
        for rela in image.sections:
            if rela.type != 4 or rela.info >= len(image.sections):
                continue
            target = image.sections[rela.info]
            executable = bool(target.flags & SHF_EXECINSTR)
            if not target.flags & SHF_ALLOC or not _holds_pointers(target.name, executable):
                continue
            code = image.data(target)
            for relocation in unpack_relocations(image.data(rela)):
                symbol = table[relocation.symbol]
                if symbol.section not in (SHN_UNDEF, _SHN_LIVEPATCH):
                    continue
                branch = executable and _is_branch(code, relocation.offset)  # in data, any bytes may stand before it
                if relocation.type in (R_X86_64_64, R_X86_64_32, R_X86_64_32S) or (
                    relocation.type == R_X86_64_PC32 and not branch
                ):
                    yield kernel_name(symbol.name), target.name


def klp_symbol(symbol: str) -> tuple[str, str]:
    """Object and name of a livepatch's symbol; one without the mark belongs to vmlinux, or to whatever exports it."""
    if not symbol.startswith(_KLP_SYMBOL):
        return "vmlinux", symbol
    owner, _, rest = symbol.removeprefix(_KLP_SYMBOL).partition(".")
    return owner, rest.rpartition(",")[0]


def kernel_name(symbol: str) -> str:
    """NAME of a livepatch symbol ``.klp.sym.OBJECT.NAME,SYMPOS`` (Documentation/livepatch/module-elf-format.rst)."""
    if not symbol.startswith(_KLP_SYMBOL):
        return symbol
    return symbol.removeprefix(_KLP_SYMBOL).partition(".")[2].rpartition(",")[0]


def _holds_pointers(section: str, executable: bool) -> bool:
    """Code and data; not the tables beside them, which name code without calling it."""
    return executable or section.startswith((".data", ".rodata", ".bss", ".ro_after_init"))


def _is_branch(code: bytes, offset: int) -> bool:
    """Whether the 32-bit operand at an offset is that of a call, a jump or a conditional jump (Intel SDM, volume 2)."""
    if offset and code[offset - 1] in (0xE8, 0xE9):
        return True
    return offset > 1 and code[offset - 2] == 0x0F and 0x80 <= code[offset - 1] <= 0x8F
