# SPDX-License-Identifier: GPL-2.0-or-later
"""From touched files to the objects of the kernel that contain them.

kbuild compiles any object it is asked for, also one that the configuration does not select. So what the kernel contains
is established first: the compile units of its image, and the files of its modules' symbol tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.rules import finding
from elivepatch.errors import CannotLivepatchError, Diagnosis, NothingToPatchError
from elivepatch.kernel.elf import file_groups

_INCLUDES = r'^\s*#\s*include\s+"(?:[^"\n]*/)?{name}"'


@dataclass(frozen=True)
class Objects:
    """The objects to compile, and findings about files that need none."""

    paths: Sequence[str]
    notes: Sequence[Diagnosis]


def affected_objects(kernel: PreparedKernel, touched: Iterable[str], added: Iterable[str]) -> Objects:
    """The objects of the kernel that touched files are compiled into, paths from the top of the tree.

    ``added`` are the touched files that the kernel's source does not have. Raises NothingToPatchError where none of
    the files is part of this kernel, CannotLivepatchError for headers and new files.
    """
    new = set(added)
    units = kernel.compile_units()
    paths: list[str] = []
    outside: list[Diagnosis] = []
    refused: list[Diagnosis] = []
    for file in touched:
        suffix = PurePosixPath(file).suffix
        if suffix == ".h":
            refused.append(_header(file))
        elif suffix == ".c" and file in new:
            refused.append(_new_file(file))
        elif suffix == ".c":
            owners = _owners(kernel, units, file, set())
            if owners:
                paths += [owner for owner in owners if owner not in paths]
            else:
                outside.append(_not_contained(kernel, file))
    if refused:
        raise CannotLivepatchError(refused[0].message, hint=refused[0].hint, diagnosis=[*refused, *outside])
    if not paths:
        raise NothingToPatchError(
            outside[0].message if outside else "The patch touches no C source file of this kernel.",
            hint=outside[0].hint if outside else "Send the patch with the C code that is to change.",
            diagnosis=outside,
        )
    return Objects(paths, [replace(said, severity="note") for said in outside])


def _owners(kernel: PreparedKernel, units: frozenset[str], file: str, seen: set[str]) -> list[str]:
    """The objects that a C file is compiled into: its own, or those of the files that include it."""
    if file in seen:
        return []
    seen.add(file)
    if file in units or module_candidates(kernel, file):
        return [f"{file.removesuffix('.c')}.o"]
    directory = kernel.source / PurePosixPath(file).parent
    pattern = re.compile(_INCLUDES.format(name=re.escape(PurePosixPath(file).name)).encode(), re.MULTILINE)
    owners: list[str] = []
    for sibling in sorted(directory.glob("*.c")) if directory.is_dir() else ():
        if not sibling.is_symlink() and pattern.search(sibling.read_bytes()):
            owners += _owners(kernel, units, str(sibling.relative_to(kernel.source)), seen)
    return owners


def module_candidates(kernel: PreparedKernel, file: str) -> list[str]:
    """The shipped modules of a file's directory that hold a file of that name.

    A module lies where the Makefile that makes it does: in the file's directory, or in one above it.
    """
    path = PurePosixPath(file)
    above = {str(parent) for parent in path.parents if str(parent) != "."}
    found: list[str] = []
    for name, shipped in kernel.modules.items():
        place = str(PurePosixPath(shipped).parent).removeprefix("kernel/")
        if place in above and (kernel.path / "symbols" / f"{name}.z").exists():
            tables = kernel.module_symbols(name)
            if file_groups(tables.symtab, tables.strtab, path.name):
                found.append(name)
    return found


def check_parent(kernel: PreparedKernel, path: str, parent: str) -> None:
    """Check, once kbuild has named the parent of an object, that this kernel contains it there.

    Raises NothingToPatchError: kbuild compiles what the configuration does not select, too.
    """
    file = f"{path.removesuffix('.o')}.c"
    if ":" in parent:
        said = f"{file} is compiled into several modules: {', '.join(parent.split(':'))}."
        shared = finding("several-modules", said, file=file)
        raise CannotLivepatchError(shared.message, hint=shared.hint, diagnosis=[shared])
    contained = file in kernel.compile_units() if parent == "vmlinux" else parent in module_candidates(kernel, file)
    if not contained:
        lacking = _not_contained(kernel, file)
        raise NothingToPatchError(lacking.message, hint=lacking.hint, diagnosis=[lacking])


def _not_contained(kernel: PreparedKernel, file: str) -> Diagnosis:
    exists = (kernel.source / Path(file)).exists()
    why = "its configuration leaves it out" if exists else "its source does not have it"
    return finding(
        "not-in-kernel", f"{kernel.release} does not contain {file}: {why}. There is nothing to patch.", file=file
    )


def _header(file: str) -> Diagnosis:
    said = f"{file} is a header: every object that includes it would have to be built, which is not offered yet."
    return finding("header-change", said, file=file)


def _new_file(file: str) -> Diagnosis:
    said = f"{file} is a new source file: objects that the kernel does not have yet are not offered yet."
    return finding("new-file", said, file=file)
