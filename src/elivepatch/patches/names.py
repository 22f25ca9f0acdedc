# SPDX-License-Identifier: GPL-2.0-or-later
"""File names in patches: untrusted words, from which only plain relative paths come out.

The quoting is git's (``core.quotePath`` in git-config): double quotes, the escapes of C, three octal digits a byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: Whether a path (relative to the kernel tree) names a file there.
Exists = Callable[[str], bool]

NULL = "/dev/null"
_PATH_BYTES = 4095
_COMPONENT_BYTES = 255
_ESCAPES = {b"a": 7, b"b": 8, b"t": 9, b"n": 10, b"v": 11, b"f": 12, b"r": 13, b'"': 0x22, b"\\": 0x5C}
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(rb"\\([0-3][0-7]{2}|[^0-9])|\\", re.DOTALL)
#: The prefixes of git (also with diff.mnemonicPrefix): what stands before the first slash is not a directory.
_PREFIXES = frozenset("abciow12")
#: What the kernel tree holds at its top: where both names start with one of these, no prefix was written.
_TOP = frozenset(
    (
        *("Documentation", "LICENSES", "arch", "block", "certs", "crypto", "drivers", "fs", "include", "init"),
        *("io_uring", "ipc", "kernel", "lib", "mm", "net", "rust", "samples", "scripts", "security", "sound"),
        *("tools", "usr", "virt"),
    )
)
_BACKUPS = (".orig", ".old", "~")


class NameProblem(ValueError):  # noqa: N818 - internal: the parser turns it into an InvalidPatchError with a place
    """A file name that cannot be used: ``rule``, what is wrong, and what to do."""

    def __init__(self, rule: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.rule = rule
        self.hint = hint


@dataclass(frozen=True)
class Pair:
    """The two names of one file as the patch writes them; None is /dev/null.

    ``bare`` are the names without prefix, where the patch gives those too (git's ``rename from`` and ``rename to``).
    ``backup`` allows the old name to be that of a backup (``x.c.orig``), as in diffs made by hand.
    """

    old: str | None
    new: str | None
    bare: tuple[str, str] | None = None
    backup: bool = False
    line: int = 0


def take_name(rest: bytes) -> tuple[str, bytes]:
    """The name at the start of a header line, decoded and checked, and what follows it.

    Raises NameProblem.
    """
    if rest.startswith(b'"'):
        match = _QUOTED.match(rest)
        if match is None:
            raise NameProblem("file-name", "A quoted file name does not end.", "Make the patch again with git.")
        raw, rest = _unescape(match[1]), rest[match.end() :]
        if rest and rest[:1] not in b" \t":
            raise NameProblem("file-name", "Something follows a quoted file name.", "Make the patch again with git.")
    else:
        raw = re.split(rb"[ \t]", rest, maxsplit=1)[0]
        rest = rest[len(raw) :]
    name = _decode(raw)
    if name != NULL:
        _check(name)
    return name, rest


def _unescape(raw: bytes) -> bytes:
    def byte(match: re.Match[bytes]) -> bytes:
        code = match[1]
        if code is not None and len(code) == 3:
            return bytes([int(code, 8)])
        if code is None or code not in _ESCAPES:
            raise NameProblem(
                "file-name", "A quoted file name has an unknown escape.", "Make the patch again with git."
            )
        return bytes([_ESCAPES[code]])

    return _ESCAPE.sub(byte, raw)


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise NameProblem(
            "file-name",
            f"The file name {raw.decode('latin-1')!a} is not UTF-8.",
            "Rename the file: the kernel's file names are plain ASCII.",
        ) from None


def _check(name: str) -> None:
    shown = ascii(name[:200])
    if name.startswith("/"):
        raise NameProblem(
            "absolute-name",
            f"The file name {shown} is absolute.",
            "Make the patch from the top of the kernel tree ('git diff', or 'diff -ru a b' from above it).",
        )
    parts = name.split("/")
    if ".." in parts:
        raise NameProblem(
            "escaping-name",
            f"The file name {shown} leads out of the kernel tree ('..').",
            "Make the patch from the top of the kernel tree; its names may hold no '..'.",
        )
    hint = "Use names relative to the top of the kernel tree, of printable characters and without white space."
    if not name or "" in parts or "." in parts[1:]:
        raise NameProblem("file-name", f"The file name {shown} has an empty part or a '.'.", hint)
    if "\\" in name or not name.isprintable() or any(char.isspace() for char in name):
        raise NameProblem("file-name", f"The file name {shown} has characters that no kernel file has.", hint)
    if any(part.lower() == ".git" for part in parts):
        raise NameProblem("file-name", f"The file name {shown} lies in a .git directory.", hint)
    if len(name.encode()) > _PATH_BYTES or any(len(part.encode()) > _COMPONENT_BYTES for part in parts):
        raise NameProblem("file-name", f"The file name {shown} is too long.", hint)


def strip(name: str, level: int) -> str:
    """A name without its prefix of ``level`` (0 or 1) components."""
    return name.split("/", 1)[1] if level else name


def agree(pair: Pair, level: int) -> tuple[str | None, str | None] | None:
    """The two paths of a file at a strip level, or None where the names make no sense at that level."""
    names = [name for name in (pair.old, pair.new) if name is not None]
    if any("/" not in name if level else name.startswith("./") for name in names):
        return None
    old = strip(pair.old, level) if pair.old is not None else None
    new = strip(pair.new, level) if pair.new is not None else None
    if pair.bare is not None:
        return (old, new) if (old, new) == pair.bare else None
    if old is not None and new is not None and old != new:
        if not pair.backup or old not in {new + suffix for suffix in _BACKUPS}:
            return None
        old = new
    return old, new


def strip_level(pairs: Sequence[Pair], exists: Exists | None) -> int:
    """How many components (0 or 1) stand before the path in every name of the patch.

    The names decide where only one level makes sense of all of them; then the tree, where ``exists`` knows it; then
    what prefixes look like. Raises NameProblem where neither level fits all names.
    """
    levels = [level for level in (1, 0) if all(agree(pair, level) for pair in pairs)]
    if not levels:
        raise NameProblem(
            "strip-level",
            "The names of old and new file do not belong together, with a prefix (a/, b/) or without.",
            "Make the whole patch one way: 'git diff', or 'diff -ru linux.orig linux' one level above the tree.",
        )
    if len(levels) == 1:
        return levels[0]
    if exists is not None:
        found = {level: sum(exists(strip(pair.old, level)) for pair in pairs if pair.old) for level in levels}
        if found[0] != found[1]:
            return 1 if found[1] > found[0] else 0
    heads = {name.split("/", 1)[0] for pair in pairs for name in (pair.old, pair.new) if name is not None}
    return 0 if heads <= _TOP and not heads <= _PREFIXES else 1
