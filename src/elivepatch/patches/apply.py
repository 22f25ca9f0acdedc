# SPDX-License-Identifier: GPL-2.0-or-later
"""Apply a series to copies of the files it touches; the kernel tree itself is only read.

GNU patch decides where a hunk goes. It gets the canonical text of one file at a time, and the name of the copy as an
argument: nothing in a patch can choose a file, a format or an option.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from elivepatch.errors import Diagnosis, DoesNotApplyError, InternalError
from elivepatch.patches.mismatch import REBASE, explain, first_difference, lines_of, places, show_line
from elivepatch.patches.model import EXECUTABLE, FilePatch, Hunk, Kind, Patch, Series
from elivepatch.patches.parser import DOC
from elivepatch.patches.tree import Tree, TreeFile
from elivepatch.process import ProgramError, run

#: What GNU patch 2.7 says about each hunk with --verbose (in the C locale).
_HUNK = re.compile(
    r"Hunk #(?P<number>\d+) (?P<fate>succeeded|FAILED|ignored) at (?P<line>\d+)"
    r"(?: with fuzz (?P<fuzz>\d+))?(?: \(offset (?P<offset>-?\d+) lines?\))?"
)
#: The fuzz that is tried to tell a near miss from a patch for another kernel; it is the default of GNU patch.
_TRIED_FUZZ = 2
_PATCH_SECONDS = 60.0
#: Hunks of one file that get a finding of their own.
_EXPLAINED = 20


@dataclass(frozen=True)
class TouchedFile:
    """A file that the whole series changes. Paths in the tree are relative to it.

    ``kind`` compares the tree with the result: a file that one patch adds and another changes is added. ``original``
    and ``patched`` are the copies; the one that does not exist is None. A renamed file has the original of
    ``old_path``.
    """

    path: str
    kind: Kind
    original: Path | None
    patched: Path | None
    old_path: str | None = None


@dataclass(frozen=True)
class Applied:
    """A series that has been applied: files below ``original`` and ``patched`` by their paths in the kernel tree.

    ``findings`` are notes and warnings (`offset`, and `fuzz` where it was allowed).
    """

    original: Path
    patched: Path
    files: tuple[TouchedFile, ...]
    findings: tuple[Diagnosis, ...] = ()


@dataclass(frozen=True)
class _Fate:
    """What became of one hunk: the line it went to, or None; ``offset`` in lines."""

    line: int | None
    fuzz: int
    offset: int


def apply_series(series: Series, source: Path, target: Path, *, prefix: Sequence[str] = (), fuzz: int = 0) -> Applied:
    """Copy each touched file from ``source`` to ``target``/original and ``target``/patched, and patch the latter.

    ``target`` is an absolute directory of ours in which neither exists yet. ``prefix`` is the argv prefix of a sandbox
    in which ``target`` has the same path and is writable. ``fuzz`` is how many lines of context may differ. Stops at
    the first patch that does not apply, with a finding for each of its hunks that does not. Raises DoesNotApplyError;
    InvalidPatchError for a path that leads through a symbolic link or to something that is no file.
    """
    work = _Work(Tree(source), target, tuple(prefix), fuzz)
    for patch in series.patches:
        work.apply(patch)
    return work.result()


class _Work:
    """The copies, while the series is applied to them."""

    def __init__(self, tree: Tree, target: Path, prefix: tuple[str, ...], fuzz: int) -> None:
        self._tree = tree
        self._original, self._patched = target / "original", target / "patched"
        self._input = target / "hunks.diff"
        self._prefix, self._fuzz = prefix, fuzz
        self._known: set[str] = set()
        self._changed: dict[str, str] = {}  # each file that the series has changed so far: the last patch that did
        self._origin: dict[str, str | None] = {}  # each file there is now: what it was in the tree, None for a new one
        self._findings: list[Diagnosis] = []
        for directory in (self._original, self._patched):
            directory.mkdir(parents=True)

    def apply(self, patch: Patch) -> None:
        """Apply one patch. Raises DoesNotApplyError with all that is wrong."""
        errors: list[Diagnosis] = []
        for file in patch.files:
            found = self._apply_file(file)
            earlier = next((self._changed[path] for path in (file.old_path, file.path) if path in self._changed), None)
            if found and earlier is not None and not self._tree_has(file):
                found = [_after(finding, earlier) for finding in found]
            errors += found
        for path in patch.paths:
            self._changed[path] = patch.name
        if errors:
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            raise DoesNotApplyError(
                f"{patch.name}: {errors[0].message}{more}", hint=errors[0].hint, diagnosis=[*errors, *self._findings]
            )

    def result(self) -> Applied:
        """All files of the series, as they were in the tree and as they are now."""
        files: list[TouchedFile] = []
        renamed = {
            origin
            for path, origin in self._origin.items()
            if origin not in (None, path) and not (self._original / path).exists()
        }
        for path in sorted(self._known):
            original = self._original / path if (self._original / path).exists() else None
            if path not in self._origin:
                if original is not None and path not in renamed:
                    files.append(TouchedFile(path=path, kind=Kind.DELETED, original=original, patched=None))
                continue
            patched, origin = self._patched / path, self._origin[path]
            if original is not None:
                file = TouchedFile(path=path, kind=Kind.MODIFIED, original=original, patched=patched)
            elif origin is None:
                file = TouchedFile(path=path, kind=Kind.ADDED, original=None, patched=patched)
            else:
                was = self._original / origin
                file = TouchedFile(path=path, kind=Kind.RENAMED, original=was, patched=patched, old_path=origin)
            files.append(file)
        return Applied(
            original=self._original, patched=self._patched, files=tuple(files), findings=tuple(self._findings)
        )

    def _load(self, path: str) -> TreeFile | None:
        """The file as it is now; the first time it is copied from the tree."""
        if path not in self._known:
            self._known.add(path)
            file = self._tree.read(path)
            if file is not None:
                _write(self._original / path, file)
                _write(self._patched / path, file)
                self._origin[path] = path
            return file
        if path not in self._origin:
            return None
        copy = self._patched / path
        return TreeFile(data=copy.read_bytes(), executable=bool(copy.stat().st_mode & 0o100))

    def _tree_has(self, file: FilePatch) -> bool:
        """Whether the kernel itself has the change of a file, whatever the patches before it did."""
        original = self._original / (file.old_path or file.path)
        if not original.exists():
            return False
        lines = lines_of(original.read_bytes())
        return all(places(lines, hunk.new_lines) for hunk in file.hunks)

    def _apply_file(self, file: FilePatch) -> list[Diagnosis]:
        if file.kind is Kind.ADDED:
            return self._add(file)
        assert file.old_path is not None  # noqa: S101 - only an added file has none; for the type checker
        before = self._load(file.old_path)
        if before is None:
            return [_missing(file)]
        if file.kind is Kind.DELETED:
            return self._delete(file, before)
        after = before
        if file.hunks:
            outcome = self._hunks(file, before)
            if isinstance(outcome, list):
                return outcome
            after = replace(before, data=outcome)
        if file.new_mode is not None:
            after = replace(after, executable=file.new_mode == EXECUTABLE)
        if file.kind is Kind.RENAMED:
            if self._load(file.path) is not None:
                return [_exists(file, already=False)]
            self._origin[file.path] = self._origin.pop(file.old_path)
            (self._patched / file.old_path).unlink()
        _write(self._patched / file.path, after)
        return []

    def _add(self, file: FilePatch) -> list[Diagnosis]:
        content = b"".join(_content(hunk) for hunk in file.hunks)
        before = self._load(file.path)
        if before is not None and before.data:
            return [_exists(file, already=before.data == content)]
        self._origin.setdefault(file.path, None)
        _write(self._patched / file.path, TreeFile(data=content, executable=file.new_mode == EXECUTABLE))
        return []

    def _delete(self, file: FilePatch, before: TreeFile) -> list[Diagnosis]:
        lines = lines_of(before.data)
        for hunk in file.hunks or (Hunk(1, 0, 0, 0, ()),):
            if list(hunk.old_lines) != lines:
                bad = first_difference(lines, hunk.old_lines, 0)
                has = f"'{show_line(lines[bad])}'" if bad < len(lines) else "no more lines"
                wants = f"'{show_line(hunk.old_lines[bad])}'" if bad < len(hunk.old_lines) else "no more lines"
                return [
                    _finding(
                        "hunk-failed",
                        f"{file.path} is not the file that the patch deletes: from line {bad + 1} on the patch has "
                        f"{wants}, the tree {has}.",
                        file.path,
                        REBASE,
                        line=bad + 1,
                    )
                ]
        (self._patched / file.path).unlink()
        del self._origin[file.path]
        return []

    def _hunks(self, file: FilePatch, before: TreeFile) -> bytes | list[Diagnosis]:
        """The bytes after the hunks, or what is wrong with them."""
        assert file.old_path is not None  # noqa: S101 - only an added file has none; for the type checker
        copy = self._patched / file.old_path
        fates = self._patch(file, copy, f"--fuzz={self._fuzz}")
        after = copy.read_bytes()
        lines = lines_of(before.data)
        if all(fate.line is not None for fate in fates):
            moved = [n for n, fate in enumerate(fates) if fate.offset or fate.fuzz]
            for n in moved[:_EXPLAINED]:
                self._findings += _moved(file, file.hunks[n], n + 1, fates[n], lines)
            if len(moved) > _EXPLAINED:
                rest = f"{file.path}: {len(moved) - _EXPLAINED} more hunks were applied elsewhere than they say."
                self._findings.append(_finding("offset", rest, file.path, None, severity="note"))
            return after
        _write(copy, before)
        backwards = self._patch(file, copy, "--fuzz=0", "--reverse", "--dry-run")
        if all(fate.line is not None for fate in backwards):
            return [
                _finding(
                    "already-applied",
                    f"{file.path}: the tree has this change already (all {len(file.hunks)} hunks).",
                    file.path,
                    "This kernel does not need the patch; leave it out.",
                    line=backwards[0].line,
                )
            ]
        fuzzy = self._patch(file, copy, f"--fuzz={_TRIED_FUZZ}", "--dry-run")
        findings: list[Diagnosis] = []
        shift = 0
        for number, (hunk, fate, loose) in enumerate(zip(file.hunks, fates, fuzzy, strict=True), 1):
            if fate.line is not None:
                shift = fate.offset
                continue
            if len(findings) == _EXPLAINED:
                rest = sum(fate.line is None for fate in fates) - _EXPLAINED
                message = f"{file.path}: {rest} more hunks do not apply."
                findings.append(_finding("hunk-failed", message, file.path, REBASE))
                break
            loosened = loose.fuzz if loose.line is not None else 0
            findings.append(explain(file.path, hunk, number, len(file.hunks), lines, shift, loosened))
        return findings

    def _patch(self, file: FilePatch, copy: Path, *options: str) -> list[_Fate]:
        """Run GNU patch on one copy; what became of each hunk."""
        self._input.write_bytes(_hunks_only(file))
        argv = [
            *self._prefix,
            "patch",
            *("-p1", "--unified", "--binary", "--verbose", "--force", "--get=0"),
            *("--no-backup-if-mismatch", "--reject-file=-", f"--directory={self._patched}", f"--input={self._input}"),
            *options,
            f"./{copy.relative_to(self._patched)}",
        ]
        done = run(argv, timeout=_PATCH_SECONDS, check=False)
        self._input.unlink()
        if done.returncode not in (0, 1):
            raise ProgramError(done)
        fates = [_fate(match) for match in _HUNK.finditer(done.stdout)]
        if len(fates) != len(file.hunks) or (done.returncode == 0) != all(fate.line is not None for fate in fates):
            raise InternalError(f"GNU patch said something unexpected about {file.path}:\n{done.stdout[-2000:]}")
        return fates


def _fate(match: re.Match[str]) -> _Fate:
    line = int(match["line"]) if match["fate"] == "succeeded" else None
    return _Fate(line=line, fuzz=int(match["fuzz"] or 0), offset=int(match["offset"] or 0))


def _hunks_only(file: FilePatch) -> bytes:
    """The hunks under fixed names: the file is given to GNU patch as an argument, so no name has to be understood."""
    parts = [b"--- a/file", b"+++ b/file"]
    for hunk in file.hunks:
        parts.append(hunk.header.encode())
        parts.extend(hunk.lines)
    return b"\n".join(parts) + b"\n"


def _content(hunk: Hunk) -> bytes:
    """What the hunk of a new file holds."""
    data = b"".join(line + b"\n" for line in hunk.new_lines)
    return data[:-1] if hunk.lines and hunk.lines[-1].startswith(b"\\") else data


def _write(path: Path, file: TreeFile) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.data)
    path.chmod(0o755 if file.executable else 0o644)


def _moved(file: FilePatch, hunk: Hunk, number: int, fate: _Fate, lines: Sequence[bytes]) -> list[Diagnosis]:
    """The findings for a hunk that went to another place than it says, or that needed fuzz."""
    found: list[Diagnosis] = []
    title = f"{file.path}: hunk {number} of {len(file.hunks)} ({hunk.header})"
    if fate.fuzz:
        message = f"{title} was applied at line {fate.line} with fuzz {fate.fuzz}: its context differs."
        hint = "Look whether the change is right there."
        found.append(_finding("fuzz", message, file.path, hint, line=fate.line, severity="warning"))
    if fate.offset:
        count = len(places(lines, hunk.old_lines))
        message = f"{title} was applied {abs(fate.offset)} lines {'after' if fate.offset > 0 else 'before'} its place"
        finding = _finding("offset", f"{message}.", file.path, None, line=fate.line, severity="note")
        if count > 1:
            finding = replace(
                finding,
                severity="warning",
                message=f"{message}, and its lines stand at {count} places of the file.",
                hint="Look whether this is the right place, or give the hunk more lines of context (git diff -U8).",
            )
        found.append(finding)
    return found


def _after(finding: Diagnosis, earlier: str) -> Diagnosis:
    """What is wrong with a file that a patch before this one has changed: that one is meant, not the kernel."""
    if finding.rule in ("already-applied", "hunk-applied"):
        hint = f"{earlier}, which comes before it, makes the same change: name one of them."
    else:
        hint = (
            f"{earlier}, which comes before it, changes the same file. The patches of a series apply one after the "
            "other: check their order, and whether both are wanted."
        )
    message = finding.message.replace("the tree has", f"with {earlier} the file has").replace(
        "in the tree already", f"there already, from {earlier},"
    )
    return replace(finding, message=message, hint=hint)


def _missing(file: FilePatch) -> Diagnosis:
    verb = {Kind.DELETED: "deletes", Kind.RENAMED: "renames"}.get(file.kind, "changes")
    path = file.old_path or file.path
    return _finding(
        "file-missing",
        f"{path}, which the patch {verb}, is not in the source of this kernel.",
        path,
        "Check that the patch is for this version of the kernel, and that its names start at the top of the tree.",
    )


def _exists(file: FilePatch, *, already: bool) -> Diagnosis:
    if already:
        return _finding(
            "already-applied",
            f"{file.path}, which the patch adds, is in the tree already with the same content.",
            file.path,
            "This kernel has that part of the change; leave it out of the patch.",
        )
    return _finding(
        "file-exists",
        f"{file.path}, which the patch makes, is in the tree already with other content.",
        file.path,
        REBASE,
    )


def _finding(
    rule: str,
    message: str,
    path: str,
    hint: str | None,
    *,
    line: int | None = None,
    severity: Literal["error", "warning", "note"] = "error",
) -> Diagnosis:
    return Diagnosis(
        rule=rule, message=message, severity=severity, file=path, line=line, hint=hint, doc=f"{DOC}#{rule}"
    )
