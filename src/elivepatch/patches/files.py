# SPDX-License-Identifier: GPL-2.0-or-later
"""Patches as files: what a directory of them holds, and what can be told before anything is made of one."""

from __future__ import annotations

import os
import re
from pathlib import Path

from elivepatch.errors import InvalidInputError, InvalidPatchError

_SUFFIXES = (".patch", ".diff")
#: A line that a patch cannot do without, whichever tool made it; the builds say more about the rest.
PATCH_LINE = re.compile(rb"(?m)^(?:diff |--- |\*\*\* |Index: )")


def require_patch(name: str, data: bytes, what: str = "patch") -> None:
    """Raise InvalidPatchError for what is no patch, of whatever kind; ``what`` it is goes into the message."""
    if not data.strip():
        raise InvalidPatchError(f"The {what} {name} is empty.", hint="Name the file that holds the change.")
    if not PATCH_LINE.search(data):
        raise InvalidPatchError(
            f"The {what} {name} is not a patch: it names no file to change.",
            hint="Give a unified diff, as 'git diff' or 'diff -u' writes it.",
        )


def patch_files(path: Path) -> list[Path]:
    """The patches that a path stands for: a file is itself, a directory every ``*.patch`` and ``*.diff`` in it.

    Those of a directory come in C-locale order, that of the bytes of their names as ls has it with LC_ALL=C; those
    below it do not count, nor do hidden ones. Raises InvalidInputError for a directory that cannot be read.
    """
    try:
        if not path.is_dir():
            return [path]
        entries = [entry for entry in path.iterdir() if entry.suffix in _SUFFIXES and entry.name[0] != "."]
    except OSError as error:
        raise InvalidInputError(
            f"The directory of patches {path} cannot be read: {error.strerror}.",
            hint="Check the name and its permissions.",
        ) from error
    return sorted((entry for entry in entries if entry.is_file()), key=lambda entry: os.fsencode(entry.name))
