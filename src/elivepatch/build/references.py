# SPDX-License-Identifier: GPL-2.0-or-later
"""What a livepatch refers to must be there when it runs.

Code and data of ``.init`` sections are freed once the kernel, or the module, has started: a livepatch that uses them
would run into whatever lies there now. And a local symbol that nothing defines is a module that cannot be loaded: the
differ leaves one for a new static key, for example. Both are seen in the linked module, before any guest is booted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.rules import finding
from elivepatch.build.sealed import kept_names, klp_symbol
from elivepatch.errors import CannotLivepatchError, Diagnosis
from elivepatch.kernel.elf import (
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHN_UNDEF,
    STB_LOCAL,
    STT_SECTION,
    ElfImage,
    Symbol,
    unpack_relocations,
)

_INIT = ".init."
_KEPT = "init-symbols"


def check_references(kernel: PreparedKernel, module: Path, originals: Iterable[Path]) -> list[Diagnosis]:
    """Warnings about what the module refers to; raises CannotLivepatchError for what cannot be there.

    ``originals`` are the unpatched objects: a reference to initialisation code that the kernel makes itself (in a
    function that runs while it boots as well) is a warning only.
    """
    undefined = list(_undefined(module))
    local = [symbol.name for symbol in undefined if symbol.bind == STB_LOCAL and symbol.section == SHN_UNDEF]
    gone = _init_symbols(kernel, {klp_symbol(symbol.name) for symbol in undefined})
    known = {name for path in originals for name in _references(path)} if gone else set[str]()
    way_out = "Drop 'static' and give it a name that the kernel does not have."
    findings = [
        replace(finding("undefined-symbol", f"Nothing defines '{name}', a new static object."), hint=way_out)
        for name in local
    ]
    for owner, name in sorted(gone):
        said = f"{name} is initialisation code or data: it is freed once {_started(owner)} has started."
        findings.append(finding("init-reference", said, severity="warning" if name in known else "error"))
    findings.sort(key=lambda each: each.severity != "error")
    if findings and findings[0].severity == "error":
        raise CannotLivepatchError(findings[0].message, hint=findings[0].hint, diagnosis=findings)
    return findings


def _started(owner: str) -> str:
    return "the kernel" if owner == "vmlinux" else f"the module {owner}"


def _undefined(module: Path) -> Iterator[Symbol]:
    """The symbols that relocations of a module refer to and that it does not define."""
    with ElfImage(module) as image:
        table = image.symbol_table()
        used = {
            relocation.symbol
            for section in image.sections
            if section.type == 4 and section.info < len(image.sections)
            if image.sections[section.info].flags & SHF_ALLOC
            for relocation in unpack_relocations(image.data(section))
        }
        for index in sorted(used):
            symbol = table[index]
            if symbol.name and (symbol.section == SHN_UNDEF or symbol.name.startswith(".klp.sym.")):
                yield symbol


def _init_symbols(kernel: PreparedKernel, wanted: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those of the wanted symbols (object, name) of which everything of that name lies in sections that are freed."""
    names = {name for owner, name in wanted if owner == "vmlinux"}
    gone = {("vmlinux", name) for name in names & kept_names(kernel, _KEPT, _find_init)}
    found: dict[tuple[str, str], list[str]] = {}
    for owner in {owner for owner, _ in wanted} & kernel.modules.keys():
        tables = kernel.module_symbols(owner)
        for symbol in tables.symbols():
            if (owner, symbol.name) in wanted and symbol.section < len(tables.sections):
                found.setdefault((owner, symbol.name), []).append(tables.sections[symbol.section])
    return gone | {key for key, sections in found.items() if all(section.startswith(_INIT) for section in sections)}


def _find_init(vmlinux: Path) -> frozenset[str]:
    """The names that only stand for symbols in sections of an image that are freed."""
    freed: set[str] = set()
    stays: set[str] = set()
    with ElfImage(vmlinux) as image:
        indices = {section.index for section in image.sections if section.name.startswith(_INIT)}
        for symbol in image.iter_symbols():
            if symbol.name and symbol.type != STT_SECTION:
                (freed if symbol.section in indices else stays).add(symbol.name)
    return frozenset(freed - stays)


def _references(path: Path) -> Iterator[str]:
    """The names that the code of an object refers to, but for its initialisation code."""
    with ElfImage(path) as image:
        table = image.symbol_table()
        for section in image.sections:
            if section.type != 4 or section.info >= len(image.sections):
                continue
            target = image.sections[section.info]
            if not target.flags & SHF_EXECINSTR or target.name.startswith(_INIT):
                continue
            for relocation in unpack_relocations(image.data(section)):
                symbol = table[relocation.symbol]
                if symbol.type != STT_SECTION:
                    yield symbol.name
                else:  # a local one, by its place in a section; a branch counts from the end of its operand
                    places = {relocation.addend, relocation.addend + 4}
                    yield from (s.name for s in table if s.section == symbol.section and s.value in places)
