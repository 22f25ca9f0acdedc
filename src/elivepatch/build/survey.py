# SPDX-License-Identifier: GPL-2.0-or-later
"""How much of a kernel the proof covers: random objects, compiled as its makers did, compared function by function.

A kernel whose functions are not all found identical was made from other source, with another configuration or another
compiler than was thought, or the proof itself is wrong; either must be known before patches are.
"""

from __future__ import annotations

import os
import random
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from elivepatch.build.compiler import Compiler, OriginalObject
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.proof import FunctionProof, ObjectProof, Outcome, Prover
from elivepatch.build.store import remove_tree
from elivepatch.errors import InvalidInputError
from elivepatch.kernel.elf import STT_FILE
from elivepatch.progress import Progress

#: Objects that one call of kbuild makes. With debug information one takes up to 10 MB; few batches, little overhead.
BATCH = 25
_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym (System V gABI, chapter 4)
#: What kbuild generates for every module (scripts/mod/modpost.c, scripts/module-common.c).
_GENERATED = ("module-common.c", ".mod.c")


@dataclass(frozen=True)
class Candidate:
    """An object that a kernel contains: its path from the top of the tree, and vmlinux or the module it is in."""

    path: str
    parent: str


@dataclass(frozen=True)
class Candidates:
    """The objects of a kernel that can be surveyed, and how many cannot.

    ``generated`` have a source that is not in the tree; ``ambiguous`` are files of modules of which the name alone
    does not say where they lie.
    """

    objects: Sequence[Candidate]
    generated: int
    ambiguous: int

    def draw(self, count: int, seed: int) -> list[Candidate]:
        """``count`` random objects, vmlinux and modules in proportion; the same seed draws the same ones.

        Raises InvalidInputError where the kernel has fewer.
        """
        if not 0 < count <= len(self.objects):
            raise InvalidInputError(
                f"{count} objects cannot be drawn: this kernel has {len(self.objects)} that can be surveyed.",
                hint="Ask for fewer objects.",
            )
        return random.Random(seed).sample(list(self.objects), count)  # noqa: S311  # a sample, not a secret


@dataclass(frozen=True)
class NotBuilt:
    """An object that could not be compiled or is not what it was taken for, and why."""

    candidate: Candidate
    why: str


@dataclass(frozen=True)
class Survey:
    """What a survey found. ``foreign`` are objects that kbuild makes for another parent than the one they were
    taken for: nothing can be said about those.
    """

    candidates: Candidates
    proofs: Sequence[ObjectProof] = field(default_factory=list[ObjectProof])
    not_built: Sequence[NotBuilt] = field(default_factory=list[NotBuilt])
    foreign: Sequence[NotBuilt] = field(default_factory=list[NotBuilt])

    def functions(self, outcome: Outcome) -> list[tuple[ObjectProof, FunctionProof]]:
        """The functions that ended so, each with its object."""
        return [(proof, function) for proof in self.proofs for function in proof.of(outcome)]

    def not_contained(self) -> list[ObjectProof]:
        """Objects with functions of which the kernel has none: that is not a matter of weak defaults."""
        return [proof for proof in self.proofs if not proof.contained]

    def absences(self) -> Mapping[str, int]:
        """How many functions are absent, by the reason."""
        return Counter(function.why for _, function in self.functions("absent"))


def candidates(kernel: PreparedKernel) -> Candidates:
    """The objects of a kernel: the compile units of vmlinux, and the FILE symbols of its modules."""
    found: list[Candidate] = []
    generated = 0
    for unit in sorted(kernel.compile_units()):
        if not unit.endswith(".c"):
            continue  # assembly has no functions that a livepatch could replace
        if (kernel.source / unit).is_file():
            found.append(Candidate(f"{unit.removesuffix('.c')}.o", "vmlinux"))
        else:
            generated += 1
    sources = sources_by_name(kernel.source)
    files = {name: file_symbols(kernel, name) for name in kernel.modules}
    of_modules, lacking, ambiguous = locate(kernel.modules, files, sources)
    return Candidates([*found, *of_modules], generated + lacking, ambiguous)


def sources_by_name(tree: Path) -> dict[str, list[str]]:
    """The directories of a tree that hold a C file of each name."""
    found: dict[str, list[str]] = {}
    for base, _, names in os.walk(tree):
        directory = os.path.relpath(base, tree)
        for name in names:
            if name.endswith(".c"):
                found.setdefault(name, []).append(directory)
    return found


def file_symbols(kernel: PreparedKernel, module: str) -> list[str]:
    """The C files that a module was made from, base names, without those that kbuild generates for every module."""
    if not (kernel.path / "symbols" / f"{module}.z").exists():
        return []
    tables = kernel.module_symbols(module)
    names: list[str] = []
    for name_at, info, *_ in _SYMBOL.iter_unpack(tables.symtab):
        if info & 15 == STT_FILE:
            name = tables.strtab[name_at : tables.strtab.index(b"\0", name_at)].decode()
            if name.endswith(".c") and not name.endswith(_GENERATED):
                names.append(name)
    return names


def locate(
    modules: Mapping[str, str], files: Mapping[str, Sequence[str]], sources: Mapping[str, Sequence[str]]
) -> tuple[list[Candidate], int, int]:
    """Where the files of modules lie in the tree, how many have no source there, and how many cannot be told.

    A module lies where the Makefile that makes it does, its files there or below. ``modules`` has their shipped paths.
    A name that several files answer to is not told apart, and a file that several modules claim is left out as well.
    """
    claimed: dict[str, list[str]] = {}
    lacking = ambiguous = 0
    for module, shipped in sorted(modules.items()):
        place = str(PurePosixPath(shipped).parent).removeprefix("kernel/")
        for name, times in Counter(files.get(module, ())).items():
            homes = [home for home in sources.get(name, ()) if home == place or home.startswith(f"{place}/")]
            if not homes:
                lacking += times
            elif len(homes) > 1 or times > 1:
                ambiguous += times
            else:
                claimed.setdefault(f"{homes[0]}/{name.removesuffix('.c')}.o", []).append(module)
    found = [Candidate(path, owners[0]) for path, owners in sorted(claimed.items()) if len(owners) == 1]
    ambiguous += sum(len(owners) for owners in claimed.values() if len(owners) > 1)
    return found, lacking, ambiguous


def survey(
    kernel: PreparedKernel, count: int, seed: int, work: Path, parallel: int, progress: Progress, batch: int = BATCH
) -> Survey:
    """Prove ``count`` random objects; ``work`` is an existing directory, where ``batch`` objects at a time lie.

    Raises InvalidInputError where the kernel does not have so many.
    """
    known = candidates(kernel)
    drawn = sorted(known.draw(count, seed), key=lambda candidate: candidate.path)
    return prove_all(kernel, known, drawn, work, parallel, progress, batch)


def prove_all(
    kernel: PreparedKernel,
    known: Candidates,
    drawn: Sequence[Candidate],
    work: Path,
    parallel: int,
    progress: Progress,
    batch: int = BATCH,
) -> Survey:
    """Compile and prove the given objects."""
    prover = Prover(kernel)
    proofs: list[ObjectProof] = []
    not_built: list[NotBuilt] = []
    foreign: list[NotBuilt] = []
    for start in range(0, len(drawn), batch):
        part = drawn[start : start + batch]
        progress.step(f"objects {start + 1} to {start + len(part)} of {len(drawn)}", start / len(drawn))
        place = work / f"batch-{start}"
        place.mkdir()
        place.chmod(0o755)
        try:
            built = Compiler(kernel, place, parallel).originals([candidate.path for candidate in part])
            _judge(part, built, prover.prove, proofs, not_built, foreign)
        finally:
            remove_tree(place)
    return Survey(known, proofs, not_built, foreign)


def _judge(
    part: Sequence[Candidate],
    built: Mapping[str, OriginalObject | str],
    prove: Callable[[str, str, Path], ObjectProof],
    proofs: list[ObjectProof],
    not_built: list[NotBuilt],
    foreign: list[NotBuilt],
) -> None:
    for candidate in part:
        original = built[candidate.path]
        if isinstance(original, str):
            not_built.append(NotBuilt(candidate, original.strip()))
        elif original.parent != candidate.parent:
            foreign.append(NotBuilt(candidate, f"kbuild makes it for {original.parent}, not for {candidate.parent}"))
        else:
            proofs.append(prove(candidate.path, original.parent, original.exact))
