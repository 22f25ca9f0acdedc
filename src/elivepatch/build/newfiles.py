# SPDX-License-Identifier: GPL-2.0-or-later
"""Source files that a patch adds to the objects of the kernel.

A new object has no original, and the differ works on pairs. So a new file is compiled as a part of one that the patch
changes, as if its text stood at that one's end: its functions are then new functions of a changed object, with all
that the differ does for those (symbols of the kernel that are not exported, the tables of alternatives and static
calls). It is compiled by itself first, so that what only works by being joined is no surprise in a later kernel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import basename, dirname, relpath

from elivepatch.build.compiler import Compiler, NewObject
from elivepatch.build.contents import parents_of
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.rules import finding
from elivepatch.errors import Diagnosis
from elivepatch.kernel.elf import STB_LOCAL, ElfImage

_ASSIGNMENT = re.compile(
    r"^\s*(?P<target>[\w.$()/-]+?)-(?P<when>y|m|objs|\$\((?P<option>CONFIG_\w+)\))\s*[:+]?=(?P<objects>.*)$",
    re.MULTILINE,
)
_DEFINE = re.compile(rb"^[ \t]*#[ \t]*define[ \t]+(\w+)", re.MULTILINE)
#: Sections that something reads while the kernel boots or a module loads, by what fills them.
_BOOT_SECTIONS = {
    ".init": "code or data for the start (__init, initcalls, module_init)",
    ".exit": "code for the end of a module (__exit, module_exit)",
    ".modinfo": "module information (MODULE_LICENSE and the like)",
    "__param": "module parameters",
}
_EXPORTS = ("__ksymtab", "___ksymtab", "__kcrctab", ".export_symbol")
#: Macros that the kernel's headers use late: they need a value.
_FORMATS = {b"pr_fmt": b"#define pr_fmt(fmt) fmt", b"dev_fmt": b"#define dev_fmt(fmt) fmt"}


@dataclass(frozen=True)
class NewFiles:
    """What comes of new files: the texts of the files that bring them along, and findings.

    ``files`` are those to compile, ``plain`` the same without directives for line numbers.
    """

    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    plain: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    notes: Sequence[Diagnosis] = ()
    refused: Sequence[Diagnosis] = ()


def join_new_files(
    kernel: PreparedKernel,
    new: Sequence[str],
    texts: tuple[Mapping[str, bytes], Mapping[str, bytes]],
    objects: Sequence[str],
    work: Path,
    headers: Path | None = None,
) -> NewFiles:
    """Give each new file to one of the objects that are compiled; ``texts`` are those to compile, and the plain ones.

    Raises DoesNotCompileError where a new file does not compile by itself.
    """
    notes: list[Diagnosis] = []
    refused: list[Diagnosis] = []
    wanted: list[str] = []
    patched = texts[1]
    for file in new:
        said = _selected(kernel, file, patched)
        if said is None:
            wanted.append(file)
        else:
            (refused if said.severity == "error" else notes).append(said)
    joined: tuple[dict[str, bytes], dict[str, bytes]] = ({}, {})
    if wanted and not refused:
        work.mkdir()
        built, findings = Compiler(kernel, work, 1, headers).compile_new([_object(file) for file in wanted], patched)
        notes += findings
        for file in wanted:
            made = built[_object(file)]
            wrong = _cannot_come(file, made)
            host = None if wrong else _host(kernel, file, made, patched, objects)
            if wrong or host is None:
                refused += wrong or [_nobody(file, made)]
                continue
            for form, known in zip(joined, texts, strict=True):
                text = form.get(host) or known.get(host) or (kernel.source / host).read_bytes()
                form[host] = _joined(host, text, file, patched[file])
            said = f"{file} is new: it is compiled at the end of {host}, as a part of that object."
            notes.append(finding("new-file-joined", said, file=file))
    return NewFiles(*joined, notes, refused)


def _object(file: str) -> str:
    return f"{file.removesuffix('.c')}.o"


def _selected(kernel: PreparedKernel, file: str, patched: Mapping[str, bytes]) -> Diagnosis | None:
    """Why a file does not become part of the kernel, if it does not, by the makefiles of the patch."""
    for makefile, text in patched.items():
        if basename(makefile) not in ("Makefile", "Kbuild") or not file.startswith(f"{dirname(makefile)}/"):
            continue
        wanted = relpath(_object(file), dirname(makefile))
        lines = text.decode(errors="replace").replace("\\\n", " ")
        for match in _ASSIGNMENT.finditer(lines):
            if wanted not in match["objects"].split():
                continue
            option = (match["option"] or "").removeprefix("CONFIG_")
            value = kernel.config().options.get(option) if option else match["when"]
            if option and value not in ("y", "m"):
                said = f"{file} is left out by the configuration of {kernel.release}: CONFIG_{option} is not set."
                return finding("not-in-kernel", said, file=file, severity="note")
            if match["target"] == "obj" and value == "m":
                said = f"{file} is a module of its own, which no livepatch is needed for."
                return finding("new-file", said, file=file)
            return None
    said = f"{file} is new, and no makefile in the patch says what it is a part of; nothing includes it either."
    return finding("new-file", said, file=file)


def _cannot_come(file: str, made: NewObject) -> list[Diagnosis]:
    """What of the object a livepatch cannot have."""
    with ElfImage(made.file) as image:
        sections = [section.name for section in image.sections if section.size]
    found = [
        finding("new-file-init", f"{file} has {what}: the time for that has passed in a running kernel.", file=file)
        for start, what in _BOOT_SECTIONS.items()
        if any(name.startswith((start, f".rela{start}")) for name in sections)
    ]
    if any(name.startswith(_EXPORTS) for name in sections):
        found.append(finding("new-file-export", f"{file} exports symbols.", file=file))
    return found


def _host(
    kernel: PreparedKernel, file: str, made: NewObject, patched: Mapping[str, bytes], objects: Sequence[str]
) -> str | None:
    """The file that takes the new one along: of the same module, best one that uses it, else of the same directory."""
    with ElfImage(made.file) as image:
        names = [s.name.encode() for s in image.symbols() if s.bind != STB_LOCAL and s.section and s.size]
    hosts = [f"{path.removesuffix('.o')}.c" for path in objects]
    hosts = [host for host in hosts if made.parent is not None and made.parent in parents_of(kernel, host)]
    uses = re.compile(rb"\b(?:" + b"|".join(map(re.escape, names)) + rb")\b") if names else None

    def rank(host: str) -> tuple[bool, bool, str]:
        used = uses is not None and uses.search(patched.get(host, b"")) is not None
        return (not used, dirname(host) != dirname(file), host)

    return min(hosts, key=rank, default=None)


def _nobody(file: str, made: NewObject) -> Diagnosis:
    said = f"{file} is new in {made.parent}, of which the patch changes nothing else: nothing would ever call it."
    return finding("new-file", said, file=file)


def _joined(host: str, text: bytes, file: str, new: bytes) -> bytes:
    """The host with the new file at its end; the host's own macros end before that."""
    macros = dict.fromkeys(_DEFINE.findall(text))
    own = set(_DEFINE.findall(new))
    lines = [b"", *(b"#undef " + name for name in macros)]
    lines += [value for name, value in _FORMATS.items() if name in macros and name not in own]
    lines += [b"#undef " + name for name in _FORMATS if name in own and name not in macros]
    lines += [b'#include "%s"' % relpath(file, dirname(host)).encode(), b""]
    return text.rstrip(b"\n") + b"\n".join(lines)
