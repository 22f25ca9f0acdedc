# SPDX-License-Identifier: GPL-2.0-or-later
"""The proof that the source is what runs: the original's code, byte for byte, in the kernel's own image.

Each function of the exactly compiled object is looked up in the published vmlinux or module and compared, with the
bytes that relocations fill in masked. Where the image is linked (vmlinux), what those bytes hold is checked as well: a
relocation against a named symbol must lead to that symbol.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

from elivepatch.build.prepared import PreparedKernel
from elivepatch.kernel.compressed import read_module
from elivepatch.kernel.elf import (
    R_X86_64_32,
    R_X86_64_32S,
    R_X86_64_64,
    R_X86_64_PC32,
    R_X86_64_PLT32,
    SHF_EXECINSTR,
    STB_LOCAL,
    STB_WEAK,
    STT_FUNC,
    ElfImage,
    FileGroup,
    Relocation,
    Symbol,
    file_groups,
    unpack_symbols,
)

#: Text that is gone when the kernel runs, or that the link discards or folds.
_GONE = (".init.text", ".exit.text", ".head.text", ".ref.text", ".meminit.text", ".memexit.text", ".discard")

Outcome = Literal["identical", "different", "absent"]
Reader = Callable[[Symbol], bytes | None]


@dataclass(frozen=True)
class FunctionProof:
    """How one function compares. ``masked`` is the number of bytes that relocations cover; ``why`` is for people."""

    function: str
    size: int
    masked: int
    outcome: Outcome
    why: str = ""


@dataclass(frozen=True)
class ObjectProof:
    """How the functions of one object compare; ``parent`` is vmlinux or a module's name."""

    path: str
    parent: str
    functions: Sequence[FunctionProof] = field(default_factory=list[FunctionProof])

    def of(self, outcome: Outcome) -> list[FunctionProof]:
        """The functions that ended so."""
        return [function for function in self.functions if function.outcome == outcome]

    @property
    def contained(self) -> bool:
        """Whether the parent contains this object at all: it has functions of it, or it has none to be found."""
        return not self.functions or bool(self.of("identical") or self.of("different"))


class Prover:
    """Proves objects against one kernel; reads its image once."""

    def __init__(self, kernel: PreparedKernel) -> None:
        self._kernel = kernel
        self._vmlinux: ElfImage | None = None
        self._addresses: dict[str, set[int]] = {}

    def prove(self, path: str, parent: str, exact: Path) -> ObjectProof:
        """Compare all functions of an object with those of its parent."""
        with ElfImage(exact) as image:
            functions = _functions(image)
            file = f"{PurePosixPath(path).stem}.c"
            if parent == "vmlinux":
                found = self._in_vmlinux(functions, file)
            else:
                found = self._in_module(functions, file, parent)
            return ObjectProof(path, parent, found)

    def blocks_with(self, path: str, parent: str, exact: Path, blocks: Sequence[FileGroup]) -> list[FileGroup]:
        """Those blocks of local symbols that have all local functions of an object, byte for byte."""
        with ElfImage(exact) as image:
            functions = [function for function in _functions(image) if function.symbol.bind == STB_LOCAL]
        found: list[FileGroup] = []
        for block in blocks:
            look = self._in_vmlinux if parent == "vmlinux" else partial(self._in_module, parent=parent)
            proofs = look(functions, f"{PurePosixPath(path).stem}.c", only=block)
            if all(proof.outcome == "identical" for proof in proofs):
                found.append(block)
        return found

    # -- vmlinux

    def _in_vmlinux(
        self, functions: Sequence[_Function], file: str, only: FileGroup | None = None
    ) -> list[FunctionProof]:
        kernel = self._vmlinux = self._vmlinux or ElfImage(self._kernel.vmlinux)
        symtab, strtab = kernel.data_of(".symtab"), kernel.data_of(".strtab")
        wanted = {function.symbol.name.encode() for function in functions}
        wanted |= {name.encode() for function in functions for name in function.targets}
        by_name: dict[str, list[Symbol]] = {}
        for symbol in unpack_symbols(symtab, strtab, wanted.__contains__):
            by_name.setdefault(symbol.name, []).append(symbol)
        self._addresses = {name: {symbol.value for symbol in symbols} for name, symbols in by_name.items()}
        groups = [group.symbols for group in ([only] if only else file_groups(symtab, strtab, file))]

        def read(symbol: Symbol) -> bytes | None:
            return kernel.at_address(symbol.value, symbol.size)

        return _compare_all(functions, by_name, groups, read, self._check_targets)

    def _check_targets(self, function: _Function, symbol: Symbol, code: bytes) -> str | None:
        """What a relocation of the linked code leads to, where that is not the symbol it names."""
        for relocation, name in function.named:
            addresses = self._addresses.get(name)
            if not addresses:
                continue  # a symbol that the link resolved otherwise (an undefined weak one, a linker script's)
            at = relocation.offset - function.symbol.value
            if relocation.type in (R_X86_64_PC32, R_X86_64_PLT32):
                (value,) = struct.unpack_from("<i", code, at)
                target = value + symbol.value + at - relocation.addend
            elif relocation.type in (R_X86_64_32, R_X86_64_32S):
                (value,) = struct.unpack_from("<i", code, at)
                target = value - relocation.addend
            elif relocation.type == R_X86_64_64:
                (value,) = struct.unpack_from("<q", code, at)
                target = value - relocation.addend
            else:
                continue
            if target & 0xFFFFFFFFFFFFFFFF not in addresses:
                return f"at +{at:#x} it refers to another symbol than {name}"
        return None

    # -- modules

    def _in_module(
        self, functions: Sequence[_Function], file: str, parent: str, only: FileGroup | None = None
    ) -> list[FunctionProof]:
        if parent not in self._kernel.modules:
            return [FunctionProof(f.symbol.name, f.symbol.size, 0, "absent", "no such module") for f in functions]
        tables = self._kernel.module_symbols(parent)
        module = ElfImage(read_module(self._kernel.module_path(parent)))
        by_name: dict[str, list[Symbol]] = {}
        for symbol in unpack_symbols(tables.symtab, tables.strtab):
            by_name.setdefault(symbol.name, []).append(symbol)
        groups = [group.symbols for group in ([only] if only else file_groups(tables.symtab, tables.strtab, file))]

        def read(symbol: Symbol) -> bytes | None:
            section = module.section(tables.sections[symbol.section]) if symbol.section < 0xFF00 else None
            if section is None or symbol.value + symbol.size > section.size:
                return None
            return module.data(section)[symbol.value : symbol.value + symbol.size]

        return _compare_all(functions, by_name, groups, read, None)


@dataclass(frozen=True)
class _Function:
    """A function of an object: its code, the relocations within it, and the named symbols those refer to."""

    symbol: Symbol
    code: bytes
    relocations: Sequence[Relocation]
    named: Sequence[tuple[Relocation, str]]

    @property
    def targets(self) -> Iterable[str]:
        return {name for _, name in self.named}


def _functions(image: ElfImage) -> list[_Function]:
    table = image.symbol_table()
    by_section: dict[int, list[Relocation]] = {}
    found: list[_Function] = []
    for symbol in image.symbols():
        if symbol.type != STT_FUNC or not symbol.size or not 0 < symbol.section < len(image.sections):
            continue
        section = image.sections[symbol.section]
        if not section.flags & SHF_EXECINSTR or section.name.startswith(_GONE):
            continue
        if symbol.name.startswith("__pfx_"):
            continue  # objtool's name for the padding in front of a function
        if section.index not in by_section:
            by_section[section.index] = image.relocations(section)
        end = symbol.value + symbol.size
        inside = [r for r in by_section[section.index] if symbol.value <= r.offset < end]
        named = [
            (r, table[r.symbol].name) for r in inside if table[r.symbol].type in (0, 1, 2) and table[r.symbol].name
        ]
        found.append(_Function(symbol, image.data(section)[symbol.value : end], inside, named))
    return found


def masked(code: bytes, relocations: Sequence[Relocation], start: int) -> tuple[bytes, int]:
    """The code with what relocations fill in set to zero, and how many bytes that are."""
    out = bytearray(code)
    covered: set[int] = set()
    for relocation in relocations:
        at = relocation.offset - start
        covered.update(range(max(at, 0), min(at + relocation.width, len(out))))
    for at in covered:
        out[at] = 0
    return bytes(out), len(covered)


def _compare_all(
    functions: Sequence[_Function],
    by_name: Mapping[str, Sequence[Symbol]],
    groups: Sequence[Sequence[Symbol]],
    read: Reader,
    check: Callable[[_Function, Symbol, bytes], str | None] | None,
) -> list[FunctionProof]:
    """Compare with the group of local symbols that fits best: several objects may have the same file name."""
    locals_of = [{symbol.name for symbol in group} for group in groups]
    names = {function.symbol.name for function in functions if function.symbol.bind == STB_LOCAL}
    best: list[FunctionProof] = []
    best_score = (-1, -1)
    order = sorted(range(len(groups)), key=lambda index: -len(names & locals_of[index]))
    for index in order or [-1]:
        group: dict[str, list[Symbol]] = {}
        for symbol in groups[index] if index >= 0 else ():
            group.setdefault(symbol.name, []).append(symbol)
        results = [_compare(function, group, by_name, read, check) for function in functions]
        score = (
            sum(result.outcome == "identical" for result in results),
            -sum(result.outcome == "different" for result in results),
        )
        if score > best_score:
            best, best_score = results, score
        if score[0] == len(functions):
            break
    return best


def _compare(
    function: _Function,
    group: Mapping[str, Sequence[Symbol]],
    by_name: Mapping[str, Sequence[Symbol]],
    read: Reader,
    check: Callable[[_Function, Symbol, bytes], str | None] | None,
) -> FunctionProof:
    symbol = function.symbol
    want, covered = masked(function.code, function.relocations, symbol.value)
    if symbol.bind == STB_LOCAL:
        candidates = group.get(symbol.name, [])
    else:
        candidates = [candidate for candidate in by_name.get(symbol.name, []) if candidate.bind != STB_LOCAL]
    reasons: list[str] = []
    for candidate in candidates:
        code = read(candidate)
        if code is None:
            continue
        if candidate.size != symbol.size:
            reasons.append(f"its size is {candidate.size} bytes in the kernel, {symbol.size} in what was compiled")
            continue
        have, _ = masked(code, function.relocations, symbol.value)
        if have != want:
            at = next(index for index in range(len(have)) if have[index] != want[index])
            reasons.append(f"it differs from the kernel's at +{at:#x}")
            continue
        wrong = check(function, candidate, code) if check else None
        if wrong is None:
            return FunctionProof(symbol.name, symbol.size, covered, "identical")
        reasons.append(wrong)
    if symbol.bind == STB_WEAK and reasons:
        return FunctionProof(symbol.name, symbol.size, covered, "absent", "a weak default that another file overrides")
    if not reasons:
        return FunctionProof(
            symbol.name, symbol.size, covered, "absent", "the kernel has no such function of this file"
        )
    return FunctionProof(symbol.name, symbol.size, covered, "different", reasons[0])
