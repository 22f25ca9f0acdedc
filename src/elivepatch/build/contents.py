# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel contains: its source files, each with vmlinux or the modules that it belongs to, and their includes.

vmlinux names its compile units by their paths, modules only the base names of their files. A module lies where the
makefile that makes it does, so its files are looked for there and below, and only then elsewhere: kvm of arch/x86/kvm
has files of virt/kvm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

from elivepatch.build.includes import IncludeIndex, SearchPath, Tree, load_index, make_index, save_index
from elivepatch.build.prepared import PreparedKernel
from elivepatch.kernel.elf import file_groups, file_names

_KEPT = "include-index.gz"
#: Made by kbuild for every module; nothing of it can be patched.
_OF_EVERY_MODULE = "module-common.c"


def source_tree(kernel: PreparedKernel) -> Tree:
    """The tree that the kernel's objects are compiled in, as far as it was not made by the compilation itself."""
    return Tree((kernel.products, kernel.source))


def kernel_index(kernel: PreparedKernel) -> IncludeIndex:
    """The include index of a kernel: made once, in a few seconds, and kept with it.

    Dependency files of a full build would say the same without a doubt: where there are some, this is the place to read
    them.
    """
    kept = kernel.path / _KEPT
    index = load_index(kept)
    if index is None:
        tree = source_tree(kernel)
        search = SearchPath.of(kernel.environment.get("LINUXINCLUDE", ""))
        index = make_index(tree, search, contained_files(kernel, tree.files()))
        save_index(index, kept)
    return index


def contained_files(kernel: PreparedKernel, files: Iterable[str]) -> dict[str, list[str]]:
    """The source files of a kernel by their paths, each with vmlinux or the names of modules.

    Where a module's file can be one of several, all of them are named. What is generated and has no template in the
    tree is left out: these are tables, which cannot be patched.
    """
    found = {unit: ["vmlinux"] for unit in kernel.compile_units()}
    by_name: dict[str, list[str]] = {}
    for path in files:
        by_name.setdefault(path.rpartition("/")[2], []).append(path)
    for module in kernel.modules:
        for path in _files_of_module(kernel, module, by_name):
            found.setdefault(path, []).append(module)
    return found


def parents_of(kernel: PreparedKernel, file: str) -> tuple[str, ...]:
    """What a source file may belong to: vmlinux, or the modules that hold a file of that name; empty for none."""
    if file in kernel.compile_units():
        return ("vmlinux",)
    path = PurePosixPath(file)
    above = {str(parent) for parent in path.parents if str(parent) != "."}
    found: list[str] = []
    for name in kernel.modules:
        if kernel.module_place(name) in above and (kernel.path / "symbols" / f"{name}.z").exists():
            tables = kernel.module_symbols(name)
            if file_groups(tables.symtab, tables.strtab, path.name):
                found.append(name)
    # one that lies elsewhere than its module's makefile, or is in none: that takes the whole tree to tell
    return tuple(found) or kernel_index(kernel).units.get(file, ())


def foreign_module(kernel: PreparedKernel, file: str, parents: Collection[str]) -> str | None:
    """The module of a file that the makefile of another directory compiles (``../../../virt/kvm/x.o``); else None."""
    places = {name: kernel.module_place(name) for name in parents if name != "vmlinux"}
    if not places or "vmlinux" in parents:
        return None
    if any(file.startswith(f"{place}/") for place in places.values()):
        return None
    return min(places)


def _files_of_module(kernel: PreparedKernel, module: str, by_name: dict[str, list[str]]) -> list[str]:
    if not (kernel.path / "symbols" / f"{module}.z").exists():
        return []
    tables = kernel.module_symbols(module)
    place = f"{kernel.module_place(module)}/"
    found: list[str] = []
    elsewhere: list[list[str]] = []
    for name in sorted(file_names(tables.symtab, tables.strtab)):
        if not name.endswith(".c") or name.endswith(".mod.c") or name == _OF_EVERY_MODULE:
            continue
        paths = by_name.get(name, [])
        near = [path for path in paths if path.startswith(place)]
        found += near
        if not near:
            elsewhere.append([path for path in paths if _is_ours(path)])
        if not paths and (template := _template(place, name, by_name)):
            found.append(template)
    # of several with one name, the one in the directory that most of them are from
    homes = Counter(path.rpartition("/")[0] for paths in elsewhere for path in paths)
    for paths in elsewhere:
        most = max((homes[path.rpartition("/")[0]] for path in paths), default=0)
        found += [path for path in paths if homes[path.rpartition("/")[0]] == most]
    return found


def _is_ours(path: str) -> bool:
    return not path.startswith("arch/") or path.startswith("arch/x86/")


def _template(place: str, name: str, by_name: dict[str, list[str]]) -> str | None:
    """What a generated file is made from: ``int8.c`` of raid6 is ``int.uc`` unrolled (lib/raid6/Makefile)."""
    stem = name.removesuffix(".c").rstrip("0123456789")
    return next((path for path in by_name.get(f"{stem}.uc", ()) if path.startswith(place)), None)
