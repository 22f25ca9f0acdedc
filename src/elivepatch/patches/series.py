# SPDX-License-Identifier: GPL-2.0-or-later
"""From the bytes of patches to a series: every patch is judged here, before anything else sees it.

Nothing that a user sent goes on to another program: what goes on is the canonical text of what was understood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from elivepatch.errors import Diagnosis, InputTooLargeError, InvalidPatchError
from elivepatch.patches import limits
from elivepatch.patches.model import REGULAR, FilePatch, Hunk, Kind, Patch, Series
from elivepatch.patches.names import NULL, Exists, NameProblem, Pair, agree, strip_level
from elivepatch.patches.parser import DOC, Reader, Section, refuse

#: Object names of git's empty file, SHA-1 and SHA-256 (``git hash-object /dev/null``).
_EMPTY_BLOBS = (
    "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
    "473a0f4c3be8a93681a267e3b1e9a7dcda1185436fe141f7749120a303721813",
)
_CRLF_HINT = "Convert it with dos2unix, or: sed -i 's/\\r$//' FILE. Mail clients and core.autocrlf do this to patches."


def parse_series(
    inputs: Sequence[tuple[str, bytes]],
    *,
    exists: Exists | None = None,
    patches_limit: int = limits.PATCHES,
    bytes_limit: int = limits.PATCH_BYTES,
) -> Series:
    """Read patches in the order in which they apply; each input is its name and its bytes.

    ``exists`` says whether a path is a file of the kernel tree; where the names alone leave it open, it decides how
    many components to strip. Limits: how many patches, and bytes of each. Raises InvalidPatchError and
    InputTooLargeError.
    """
    if not inputs:
        raise InvalidPatchError(
            "There is no patch.",
            hint="Give at least one patch.",
            diagnosis=[Diagnosis(rule="empty", message="There is no patch.", hint="Give at least one patch.")],
        )
    if len(inputs) > patches_limit:
        raise _too_large(
            "too-many-patches", f"{len(inputs)} patches are more than {patches_limit}.", "Join some of them."
        )
    known: dict[str, bool] = {}  # what the patches before this one made and removed

    def present(path: str) -> bool:
        return known.get(path, exists is not None and exists(path))

    patches: list[Patch] = []
    for name, data in inputs:
        patch = parse_patch(name, data, exists=present if exists or known else None, bytes_limit=bytes_limit)
        patches.append(patch)
        for file in patch.files:
            if file.old_path is not None and file.new_path != file.old_path:
                known[file.old_path] = False
            if file.new_path is not None:
                known[file.new_path] = True
    series = Series(patches=tuple(patches))
    touched = sum(len(patch.files) for patch in patches)
    if touched > limits.FILES:
        raise _too_large(
            "too-many-files",
            f"The series touches {touched} files, more than the {limits.FILES} that a livepatch may touch.",
            "A livepatch is made from a small change: send only the files that it needs.",
        )
    _check_directories("the series", series.paths)
    return series


def parse_patch(
    name: str, data: bytes, *, exists: Exists | None = None, bytes_limit: int = limits.PATCH_BYTES
) -> Patch:
    """Read one patch; see `parse_series`."""
    name = _for_people(name)
    if len(data) > bytes_limit:
        raise _too_large(
            "patch-too-large",
            f"{name}: {len(data)} bytes are more than the {bytes_limit} that a patch may have.",
            "A livepatch is made from a small change: send only the files that it needs.",
            name,
        )
    if not data.strip():
        raise refuse(name, "empty", "The patch is empty.", "Check how the file was made.")
    for rule, byte, message, hint in (
        ("crlf", b"\r\n", "The line ends in CR LF.", _CRLF_HINT),
        ("binary", b"\0", "The patch holds a NUL byte: it is not text.", "Leave binary files out of the patch."),
    ):
        if (at := data.find(byte)) >= 0:
            raise refuse(name, rule, message, hint, data.count(b"\n", 0, at) + 1)
    sections = Reader(name, data).sections()
    pairs = [_pair(name, section) for section in sections]
    try:
        level = strip_level(pairs, exists)
    except NameProblem as problem:
        line = next((pair.line for pair in pairs if not agree(pair, 1)), None)
        raise refuse(name, problem.rule, str(problem), problem.hint, line) from None
    files = tuple(_file(name, section, pair, level, exists) for section, pair in zip(sections, pairs, strict=True))
    _check_order(name, files)
    patch = Patch(name=name, files=files)
    _check_directories(name, patch.paths)
    return patch


def normalise(name: str, data: bytes, *, exists: Exists | None = None) -> bytes:
    """The canonical text of a patch; see `parse_patch` for the errors."""
    return parse_patch(name, data, exists=exists).canonical


def _for_people(name: str) -> str:
    """A name that can be shown: one line, printable, of a bearable length."""
    return "".join(char if char.isprintable() else "?" for char in name)[:200] or "patch"


def _too_large(rule: str, message: str, hint: str, name: str | None = None) -> InputTooLargeError:
    finding = Diagnosis(rule=rule, message=message, file=name, hint=hint, doc=f"{DOC}#{rule}")
    return InputTooLargeError(message, hint=hint, diagnosis=[finding])


def _mismatch(patch: str, section: Section, message: str) -> InvalidPatchError:
    return refuse(patch, "header-mismatch", message, "Make the patch again; edit hunks, not headers.", section.line)


def _pair(patch: str, section: Section) -> Pair:
    """The names to decide by, checked against each other where the patch gives them more than once."""
    bare = None
    if (section.rename_from is None) != (section.rename_to is None):
        raise _mismatch(patch, section, "Only one of 'rename from' and 'rename to' is there.")
    if section.rename_from is not None and section.rename_to is not None:
        bare = (section.rename_from, section.rename_to)
        if section.added or section.deleted or bare[0] == bare[1]:
            raise _mismatch(patch, section, "A file cannot be renamed and added, removed or kept at once.")
    if section.git is None:
        old, new = section.old, section.new
        if NULL in (old, new) and old == new:
            raise _mismatch(patch, section, "Both names are /dev/null.")
    else:
        old, new = section.git
        if NULL in (old, new):
            raise _mismatch(patch, section, "'diff --git' names /dev/null.")
        if section.added and section.deleted:
            raise _mismatch(patch, section, "A file is added and deleted at once.")
        if not (section.added or section.deleted) and (section.old_mode is None) != (section.new_mode is None):
            raise _mismatch(patch, section, "Only one of 'old mode' and 'new mode' is there.")
        expected = (NULL if section.added else old, NULL if section.deleted else new)
        if section.old is not None and (section.old, section.new) != expected:
            raise _mismatch(patch, section, "'diff --git' and the lines below it name different files.")
        if section.added or section.deleted:
            # both names are given, and they must be one path: the level has to make them equal
            return Pair(old=old, new=new, line=section.line)
    return Pair(
        old=old if old != NULL else None,
        new=new if new != NULL else None,
        bare=bare,
        backup=section.git is None,
        line=section.line,
    )


def _file(patch: str, section: Section, pair: Pair, level: int, exists: Exists | None) -> FilePatch:
    paths = agree(pair, level)
    if paths is None:  # strip_level chose a level at which every pair agrees
        raise _mismatch(patch, section, "The names do not belong together.")
    old, new = paths
    hunks = _ordered(patch, section)
    kind = Kind.RENAMED if pair.bare else _kind(section, old, new, hunks, exists)
    if kind is Kind.ADDED and not (len(hunks) <= 1 and all(hunk.old_start == hunk.old_count == 0 for hunk in hunks)):
        raise _mismatch(patch, section, f"{new or old} is said to be new, but its hunks have old lines.")
    if kind is Kind.DELETED and not (
        len(hunks) <= 1 and all(hunk.old_start == 1 and hunk.new_count == 0 for hunk in hunks)
    ):
        raise _mismatch(patch, section, f"{old or new} is said to be deleted, but its hunks leave lines.")
    modes_differ = (
        section.old_mode is not None and section.new_mode is not None and section.old_mode != section.new_mode
    )
    if not hunks:
        _check_no_hunks(patch, section, nothing=kind is Kind.MODIFIED and not modes_differ)
    old_mode, new_mode = (section.old_mode, section.new_mode) if modes_differ else (None, None)
    return FilePatch(
        old_path=None if kind is Kind.ADDED else old if old is not None else new,
        new_path=None if kind is Kind.DELETED else new if new is not None else old,
        kind=kind,
        hunks=hunks,
        old_mode=(section.old_mode or REGULAR) if kind is Kind.DELETED else old_mode,
        new_mode=(section.new_mode or REGULAR) if kind is Kind.ADDED else new_mode,
        patch_line=section.line,
    )


def _kind(section: Section, old: str | None, new: str | None, hunks: tuple[Hunk, ...], exists: Exists | None) -> Kind:
    """What happens to the file; ``diff -N`` without git says it by the time of the epoch, or not at all."""
    if section.added or old is None:
        return Kind.ADDED
    if section.deleted or new is None:
        return Kind.DELETED
    if section.git is None and len(hunks) == 1:
        if hunks[0].old_start == hunks[0].old_count == 0 and (
            section.old_epoch or (exists is not None and not exists(old)) or exists is None
        ):
            return Kind.ADDED
        if hunks[0].new_start == hunks[0].new_count == 0 and section.new_epoch:
            return Kind.DELETED
    return Kind.MODIFIED


def _check_no_hunks(patch: str, section: Section, *, nothing: bool) -> None:
    """Without hunks only what git says so can happen: an empty file, a rename, a mode."""
    index = section.index
    if section.added or section.deleted:
        blob = (index or _EMPTY_BLOBS)[1 if section.added else 0]
        missing = index is not None and not any(empty.startswith(blob) for empty in _EMPTY_BLOBS)
    else:
        missing = nothing or (index is not None and index[0] != index[1])
    if missing:
        raise refuse(
            patch, "truncated", "The hunks of this file are missing.", "Get the whole patch as a file.", section.line
        )


def _ordered(patch: str, section: Section) -> tuple[Hunk, ...]:
    """The hunks, from top to bottom of the file, with the new starts that follow from the old ones."""
    hunks: list[Hunk] = []
    first_free, shift = 1, 0
    for hunk in section.hunks:
        if hunk.old_first < first_free or (hunks and _ends_file(hunks[-1])):
            raise refuse(
                patch,
                "hunk-order",
                f"The hunk {hunk.header} does not lie behind the one before it.",
                "Make the patch again instead of joining hunks by hand.",
                hunk.patch_line,
            )
        new_start = hunk.old_first + shift - (hunk.new_count == 0)
        hunks.append(replace(hunk, new_start=new_start))
        first_free = hunk.old_first + hunk.old_count
        shift += hunk.new_count - hunk.old_count
    return tuple(hunks)


def _ends_file(hunk: Hunk) -> bool:
    return any(line.startswith(b"\\") for line in hunk.lines)


def _check_directories(patch: str, paths: Sequence[str]) -> None:
    """No path may be a file here and a directory there."""
    files = set(paths)
    for path in paths:
        for at, char in enumerate(path):
            if char == "/" and path[:at] in files:
                message = f"{path[:at]} is a file in one place and a directory in another."
                raise refuse(patch, "file-order", message, "A patch cannot turn a file into a directory.")


def _check_order(patch: str, files: Sequence[FilePatch]) -> None:
    """A file may come more than once, as long as each time it is there (or not there) as the part before left it."""
    present: dict[str, bool] = {}
    for file in files:
        problem = None
        if file.old_path is not None and present.get(file.old_path, True) is False:
            problem = f"{file.old_path} is changed after the patch has removed it."
        elif file.new_path is not None and file.new_path != file.old_path and present.get(file.new_path, False):
            problem = f"{file.new_path} is made although the patch has it already."
        if problem:
            raise refuse(
                patch, "file-order", problem, "Split the patch in two, in the order of the changes.", file.patch_line
            )
        if file.old_path is not None:
            present[file.old_path] = file.new_path == file.old_path
        if file.new_path is not None:
            present[file.new_path] = True
