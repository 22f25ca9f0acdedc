# SPDX-License-Identifier: GPL-2.0-or-later
"""What a series of patches is once it has been read: immutable values, and their one canonical text.

The canonical text is a git-style unified diff (format: git's ``diff-generate-patch`` page, and GNU diffutils,
"Detailed Description of Unified Format"). It holds nothing but the change: no message, no function names behind
``@@``, no object names, no timestamps. Two patches that make the same change in the same hunks have the same text.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

NO_NEWLINE = b"\\ No newline at end of file"
REGULAR = "100644"
EXECUTABLE = "100755"


class Kind(StrEnum):
    """What happens to a file."""

    MODIFIED = "modified"
    ADDED = "added"
    DELETED = "deleted"
    RENAMED = "renamed"


@dataclass(frozen=True)
class Hunk:
    """One hunk. Lines count from 1; where a count is 0 the start is the line before, as in every unified diff.

    ``lines`` are the bytes of each line, with its mark (space, minus, plus, or the backslash of a missing newline at
    the end) and without the newline. ``section`` is what stood behind the second ``@@``, ``patch_line`` where the
    hunk begins in the patch that was read; both are for people and take no part in comparisons.
    """

    old_start: int
    old_count: int
    new_start: int
    new_count: int
    lines: tuple[bytes, ...]
    section: str = field(default="", compare=False)
    patch_line: int = field(default=0, compare=False)

    @property
    def header(self) -> str:
        """The hunk's header as the canonical text has it."""
        return f"@@ -{_range(self.old_start, self.old_count)} +{_range(self.new_start, self.new_count)} @@"

    @property
    def old_lines(self) -> tuple[bytes, ...]:
        """What the file must hold at this place: context and removed lines, without marks."""
        return tuple(line[1:] for line in self.lines if line[:1] in b" -")

    @property
    def new_lines(self) -> tuple[bytes, ...]:
        """What the file holds there afterwards: context and added lines, without marks."""
        return tuple(line[1:] for line in self.lines if line[:1] in b" +")

    @property
    def old_first(self) -> int:
        """The line of the old file that the hunk's first line is, or is put before; counts from 1."""
        return self.old_start + (self.old_count == 0)


@dataclass(frozen=True)
class FilePatch:
    """What a patch does to one file. Paths are relative to the kernel tree; one that does not exist is None.

    ``old_mode`` and ``new_mode`` are given only where the patch gives them. A file that is renamed, added or deleted
    empty, or whose mode changes, may have no hunks.
    """

    old_path: str | None
    new_path: str | None
    kind: Kind
    hunks: tuple[Hunk, ...] = ()
    old_mode: str | None = None
    new_mode: str | None = None
    patch_line: int = field(default=0, compare=False)

    @property
    def path(self) -> str:
        """The path that people know the file by: the new one, or the old one of a deleted file."""
        path = self.new_path if self.new_path is not None else self.old_path
        assert path is not None  # noqa: S101 - the parser gives every file a path; for the type checker
        return path

    def canonical(self) -> bytes:
        """The canonical text of this file's part."""
        old = self.old_path if self.old_path is not None else self.path
        head = [f"diff --git {_quoted('a/' + old)} {_quoted('b/' + self.path)}"]
        if self.kind is Kind.ADDED:
            head.append(f"new file mode {self.new_mode or REGULAR}")
        elif self.kind is Kind.DELETED:
            head.append(f"deleted file mode {self.old_mode or REGULAR}")
        elif self.old_mode != self.new_mode and self.old_mode and self.new_mode:
            head += [f"old mode {self.old_mode}", f"new mode {self.new_mode}"]
        if self.kind is Kind.RENAMED:
            head += [f"rename from {_quoted(old)}", f"rename to {_quoted(self.path)}"]
        if self.hunks:
            head.append("--- " + ("/dev/null" if self.kind is Kind.ADDED else _quoted("a/" + old)))
            head.append("+++ " + ("/dev/null" if self.kind is Kind.DELETED else _quoted("b/" + self.path)))
        parts = [line.encode() for line in head]
        for hunk in self.hunks:
            parts.append(hunk.header.encode())
            parts.extend(hunk.lines)
        return b"\n".join(parts) + b"\n"


@dataclass(frozen=True)
class Patch:
    """One patch. ``name`` is for people only: it is never a path and takes no part in comparisons."""

    name: str = field(compare=False)
    files: tuple[FilePatch, ...]

    @cached_property
    def canonical(self) -> bytes:
        """The canonical text."""
        return b"".join(file.canonical() for file in self.files)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical text: the same for the same change, whatever the patch looked like."""
        return hashlib.sha256(self.canonical).hexdigest()

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path the patch touches, old names included, each once and in order."""
        names = (name for file in self.files for name in (file.old_path, file.new_path) if name is not None)
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Series:
    """Patches in the order in which they apply."""

    patches: tuple[Patch, ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the digests of the patches, in order."""
        return hashlib.sha256("".join(patch.digest for patch in self.patches).encode()).hexdigest()

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path the series touches, each once and in order."""
        return tuple(dict.fromkeys(path for patch in self.patches for path in patch.paths))


def _range(start: int, count: int) -> str:
    return str(start) if count == 1 else f"{start},{count}"


def _quoted(path: str) -> str:
    """A path as git writes it (core.quotePath on): octal escapes in double quotes where it is not plain ASCII."""
    if path.isascii() and '"' not in path:
        return path
    return '"' + "".join(_escape(byte) for byte in path.encode()) + '"'


def _escape(byte: int) -> str:
    if byte == 0x22:
        return '\\"'
    return chr(byte) if 0x20 <= byte < 0x7F else f"\\{byte:03o}"
