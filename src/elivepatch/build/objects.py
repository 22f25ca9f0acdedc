# SPDX-License-Identifier: GPL-2.0-or-later
"""From touched files to the objects of the kernel that contain them.

kbuild compiles any object it is asked for, also one that the configuration does not select. So what the kernel contains
is established first: the compile units of its image, and the files of its modules' symbol tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from elivepatch.build.compiler import CompiledObject
from elivepatch.build.contents import kernel_index, parents_of, source_tree
from elivepatch.build.elsewhere import lie_elsewhere, spell, unspelled
from elivepatch.build.fanout import Fanout
from elivepatch.build.includes import IncludeIndex
from elivepatch.build.lines import KeptLines, keep_lines
from elivepatch.build.newfiles import NewFiles, join_new_files
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.rules import finding
from elivepatch.build.signatures import callers_left, changed_signatures, exported_signatures
from elivepatch.build.unknown_modules import modules_unknown, parts_of_unknown_modules
from elivepatch.errors import CannotLivepatchError, Diagnosis, NothingToPatchError
from elivepatch.patches.apply import Applied
from elivepatch.patches.csource import code_of
from elivepatch.progress import Progress

_BUILD_FILES = ("Makefile", "Kbuild", "Kconfig")
_INCLUDED = (".c", ".h", ".inc", ".def")


@dataclass(frozen=True)
class Change:
    """The files of a patch by their paths: as they were (not the new ones), and as they are (not the removed ones)."""

    originals: Mapping[str, bytes]
    patched: Mapping[str, bytes]

    @property
    def texts(self) -> dict[str, bytes | None]:
        """All touched files as the patch leaves them; None is one that it removes."""
        return {**dict.fromkeys(self.originals, None), **self.patched}

    def added(self, path: str) -> bool:
        """Whether the kernel's source does not have the file."""
        return path not in self.originals


def change_of(applied: Applied) -> Change:
    """What a series that has been applied changes; a renamed file is one that goes and one that comes."""
    originals: dict[str, bytes] = {}
    patched: dict[str, bytes] = {}
    for file in applied.files:
        if file.original is not None:
            originals[file.old_path or file.path] = file.original.read_bytes()
        if file.patched is not None:
            patched[file.path] = file.patched.read_bytes()
    return Change(originals, patched)


@dataclass(frozen=True)
class Objects:
    """The objects to compile, paths from the top of the tree, and findings about files that need none.

    ``files`` are the texts to compile them with, ``plain`` the same as the patch has them, for messages. ``spelled``
    are the names of objects that lie elsewhere than their makefile (see `elsewhere`).
    """

    paths: Sequence[str]
    notes: Sequence[Diagnosis] = ()
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    plain: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    spelled: Mapping[str, str] = field(default_factory=dict[str, str])


def affected_objects(
    kernel: PreparedKernel,
    change: Change,
    work: Path,
    parallel: int,
    progress: Progress,
    patch_headers: Path | None = None,
) -> Objects:
    """The objects of the kernel that a change can alter; ``work`` is a directory that does not exist yet.

    ``patch_headers`` are those of the engine, for new files.

    Raises NothingToPatchError where none of the files is part of this kernel, CannotLivepatchError for headers with too
    many users, and for new or removed files that a livepatch cannot have.
    """
    search = _Search(kernel, change)
    search.sources(work.with_name(f"{work.name}-makefiles-0"))
    search.build_files()
    if search.modules(work.with_name(f"{work.name}-modules")):
        search.headers(work, parallel, progress)
        search.callers()
    return search.result(work, patch_headers)


class _Search:
    def __init__(self, kernel: PreparedKernel, change: Change) -> None:
        self._kernel = kernel
        self._change = change
        self._paths: list[str] = []
        self._outside: list[Diagnosis] = []
        self._notes: list[Diagnosis] = []
        self._refused: list[Diagnosis] = []
        self._included: list[str] = []
        self._new: list[str] = []
        self._spelled: dict[str, str] = {}

    @property
    def _index(self) -> IncludeIndex:
        return kernel_index(self._kernel)

    def sources(self, work: Path) -> None:
        """The C files: compiled themselves, new, gone, or only included by others."""
        owners: dict[str, tuple[str, ...]] = {}
        for file, text in self._change.texts.items():
            suffix = PurePosixPath(file).suffix
            if suffix == ".c" and self._change.added(file):
                self._new.append(file)
            elif suffix == ".c" and (parents := parents_of(self._kernel, file)):
                if text is None:
                    self._refused.append(
                        finding("file-removed", f"The patch removes {file}, which this kernel contains.", file=file)
                    )
                else:
                    owners[file] = parents
            elif suffix in _INCLUDED:
                self._included.append(file)
        elsewhere = lie_elsewhere(self._kernel, owners)
        self._spelled |= spell(self._kernel, elsewhere, work)
        for file in owners:
            if file in elsewhere and file.removesuffix(".c") not in self._spelled:
                self._refused.append(unspelled(file, elsewhere[file]))
            else:
                self._paths.append(f"{file.removesuffix('.c')}.o")

    def build_files(self) -> None:
        """Makefiles and Kconfig files: what of them does nothing, said openly."""
        for file in self._change.texts:
            name = PurePosixPath(file).name
            if name.startswith("Kconfig"):
                said = f"{file} is ignored: a livepatch does not change the configuration of the running kernel."
            elif name.startswith(_BUILD_FILES):
                said = (
                    f"{file} counts for the objects that the patch changes anyway, and for those alone: a livepatch "
                    "neither adds objects to the running kernel nor takes any away."
                )
            else:
                continue
            self._notes.append(finding("build-file-ignored", said, file=file))

    def headers(self, work: Path, parallel: int, progress: Progress) -> None:
        """Files that others include: the objects that they reach and that change with them."""
        wanted = [*self._included, *self._new]
        if not wanted:
            return
        progress.step(f"looking for what includes {', '.join(wanted[:3])}{', …' if len(wanted) > 3 else ''}")
        index = self._index
        tree = replace(source_tree(self._kernel), texts=self._change.texts)
        fanout = Fanout(self._kernel, index, tree, self._files, parallel, progress)
        found = fanout.users(self._included, self._new, known=self._paths, work=work)
        self._paths += [path for path in found.objects if path not in self._paths]
        self._spelled |= found.spelled
        self._notes += found.notes
        self._refused += found.refused
        self._new = [file for file in self._new if file not in found.included]
        for file in self._included:
            if file not in found.reached and PurePosixPath(file).suffix == ".c":
                self._outside.append(not_contained(self._kernel, file))
            elif file not in found.reached and not self._change.added(file):
                said = f"No object of {self._kernel.release} includes {file}."
                self._outside.append(finding("not-in-kernel", said, file=file))

    def modules(self, work: Path) -> bool:
        """Whether modules can have nothing of the changed files, or it is known what modules there are."""
        if not modules_unknown(self._kernel):
            return True
        sources = [file for file in self._included if file.endswith(".c")]
        headers = [file for file in self._included if not file.endswith(".c") and self._altered(file)]
        refused = parts_of_unknown_modules(self._kernel, sources, headers, self._kernel.compile_units(), work)
        self._refused += refused
        return not refused

    def callers(self) -> None:
        """Callers of functions that have other parameters now, in files that nothing of the patch reaches."""
        both = [file for file in self._change.patched if file.endswith(".c") and not self._change.added(file)]
        changed = {
            file: names
            for file in both
            if (names := changed_signatures(self._change.originals[file], self._change.patched[file]))
        }
        for file, names in changed.items():
            self._notes += exported_signatures(self._change.originals[file], file, names)
        if changed:
            index = self._index
            skip = {*both, *(f"{path.removesuffix('.o')}.c" for path in self._paths)}
            skip |= index.includers(self._included).keys() - index.includers([]).keys() if self._included else set()
            self._refused += callers_left(self._kernel.source, changed, index.units, skip)

    def _altered(self, file: str) -> bool:
        """Whether more than comments of a file that was there has changed."""
        original = self._change.originals.get(file)
        return original is not None and code_of(original) != code_of(self._change.texts[file] or b"")

    def result(self, work: Path, patch_headers: Path | None) -> Objects:
        """What is to be compiled; raises what speaks against it."""
        plain = self._change.patched
        joined = NewFiles()
        if self._new:
            aside = work.with_name(f"{work.name}-new")
            joined = join_new_files(self._kernel, self._new, (self._files, plain), self._paths, aside, patch_headers)
            self._refused += joined.refused
            self._notes += joined.notes
        if self._refused:
            first = self._refused[0]
            raise CannotLivepatchError(
                first.message, hint=first.hint, diagnosis=[*self._refused, *self._outside, *self._notes]
            )
        if not self._paths:
            reasons = self._outside or [replace(note, severity="error") for note in self._notes]
            raise NothingToPatchError(
                reasons[0].message if reasons else "The patch touches no C source file of this kernel.",
                hint=reasons[0].hint if reasons else "Send the patch with the C code that is to change.",
                diagnosis=reasons,
            )
        notes = [*self._notes, *(replace(said, severity="note") for said in self._outside)]
        notes += [_moved_lines(path) for path, kept in self._kept.items() if not kept.whole]
        files, plain = {**self._files, **joined.files}, {**plain, **joined.plain}
        return Objects(self._paths, notes, files, plain, self._spelled)

    @cached_property
    def _kept(self) -> dict[str, KeptLines]:
        """The changed C files and headers with their line numbers kept: ``__LINE__`` is in the code below a change."""
        return {
            path: keep_lines(self._change.originals[path], text)
            for path, text in self._change.patched.items()
            if PurePosixPath(path).suffix in _INCLUDED and path in self._change.originals
        }

    @property
    def _files(self) -> dict[str, bytes]:
        """All changed files as they are compiled."""
        return {**self._change.patched, **{path: kept.text for path, kept in self._kept.items()}}


def in_parents(kernel: PreparedKernel, compiled: CompiledObject) -> list[CompiledObject]:
    """An object as a part of what this kernel has it in, now that kbuild has named that: one for each of its modules.

    kbuild compiles an object of several modules once, with the same flags for all, and names them ``a:b``. Raises
    NothingToPatchError where the kernel has it in none: kbuild compiles what the configuration does not select, too.
    """
    known = parents_of(kernel, compiled.source)
    found = [replace(compiled, parent=parent) for parent in compiled.parent.split(":") if parent in known]
    if not found:
        lacking = not_contained(kernel, compiled.source)
        raise NothingToPatchError(lacking.message, hint=lacking.hint, diagnosis=[lacking])
    return found


def not_contained(kernel: PreparedKernel, file: str) -> Diagnosis:
    """The finding that a kernel does not contain a file, and why."""
    exists = (kernel.source / Path(file)).exists()
    why = "its configuration leaves it out" if exists else "its source does not have it"
    return finding(
        "not-in-kernel", f"{kernel.release} does not contain {file}: {why}. There is nothing to patch.", file=file
    )


def _moved_lines(file: str) -> Diagnosis:
    """The note that lines of a file could not keep the numbers that they have in the kernel's source."""
    said = f"Not all unchanged lines of {file} could keep their numbers: functions that tell theirs change with them."
    return finding("line-numbers", said, file=file)
