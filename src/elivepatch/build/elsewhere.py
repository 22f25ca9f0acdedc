# SPDX-License-Identifier: GPL-2.0-or-later
"""Objects that the makefile of another directory compiles, under a name of its own.

arch/x86/kvm makes ``../../../virt/kvm/kvm_main.o`` a part of kvm, amdgpu has some hundred files of ``../display``.
kbuild knows flags and module of such an object by the name that the makefile spells, and builds it on demand under no
other. For vmlinux that name is in the debug information; the objects of modules are asked of kbuild itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from posixpath import normpath, splitext

from elivepatch.build.contents import foreign_module
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.rules import finding
from elivepatch.errors import Diagnosis
from elivepatch.toolchains.sandbox import TREE, give_to_sandbox

_GOAL = "elivepatch-objects"
#: Read before the makefiles; its recipe is expanded when they have all been read. ``real-obj-m`` (scripts/Makefile.lib)
#: has the objects of the directory's modules, those of composite ones too.
_LISTING = f".PHONY: {_GOAL}\n{_GOAL}:\n\t@printf '%s\\n' $(real-obj-m)\n"


def lie_elsewhere(kernel: PreparedKernel, owners: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Those of some files that another directory's makefile compiles, each with the module or vmlinux.

    ``owners`` are the files with what they belong to.
    """
    spelled = kernel.unit_spellings()
    found = {file: "vmlinux" for file in owners if file in spelled}
    for file, parents in owners.items():
        if file not in spelled and (module := foreign_module(kernel, file, parents)):
            found[file] = module
    return found


def spell(kernel: PreparedKernel, files: Mapping[str, str], work: Path) -> dict[str, str]:
    """How makefiles spell the objects of files that lie elsewhere, without suffixes; one that none names is left out.

    ``files`` is what `lie_elsewhere` gives, ``work`` a directory that does not exist yet.
    """
    units = kernel.unit_spellings()
    found = {_stem(file): _stem(units[file]) for file in files if file in units}
    places: dict[str, list[str]] = {}
    for file, module in files.items():
        if module != "vmlinux":
            places.setdefault(kernel.module_place(module), []).append(_stem(file))
    for number, (place, stems) in enumerate(places.items()):
        listed = {_stem(normpath(path)): _stem(path) for path in module_objects(kernel, place, work / f"{number}")}
        found |= {stem: listed[stem] for stem in stems if stem in listed}
    return found


def unspelled(file: str, module: str) -> Diagnosis:
    """The refusal of a file of which kbuild does not say how it is compiled."""
    said = f"{file} may be a part of {module}, but lies elsewhere, and the makefile of {module} does not name it."
    return finding("foreign-makefile", said, file=file)


def module_objects(kernel: PreparedKernel, place: str, work: Path) -> list[str]:
    """The objects of the modules that a directory's makefile makes, as it spells them; ``work`` does not exist yet."""
    with kernel.sandbox(work) as sandbox:
        listing = work / "upper" / f"{_GOAL}.mk"
        listing.write_text(_LISTING)
        give_to_sandbox(listing)
        environment = {**kernel.environment, "KBUILD_MODULES": "1", "MAKEFILES": f"{TREE}/{listing.name}"}
        argv = ["make", "-s", "-f", "scripts/Makefile.build", f"obj={place}", _GOAL]
        done = sandbox.run(argv, cwd=TREE, env=environment, check=False)
    return [line for line in done.stdout.splitlines() if line.startswith(f"{place}/") and line.endswith(".o")]


def _stem(path: str) -> str:
    return splitext(path)[0]
