# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel tree, read so that no name in a patch can lead out of it.

Every component of a path is opened by itself, relative to the one before, and never through a symbolic link
(``openat`` with ``O_NOFOLLOW``): a link in the tree, or one put there between the check and the use, is refused.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from elivepatch.errors import Diagnosis, InputTooLargeError, InvalidPatchError
from elivepatch.patches import limits
from elivepatch.patches.parser import DOC

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class TreeFile:
    """A regular file of the tree: its bytes, and whether it is executable."""

    data: bytes = field(repr=False)
    executable: bool = False


class Tree:
    """Reads files of a kernel tree by their paths relative to it, as they come out of `parse_series`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def exists(self, path: str) -> bool:
        """Whether the path is a regular file of the tree, reached without a symbolic link."""
        try:
            descriptor = self._open(path)
        except InvalidPatchError:
            return False
        if descriptor is None:
            return False
        try:
            return stat.S_ISREG(os.fstat(descriptor).st_mode)
        finally:
            os.close(descriptor)

    def read(self, path: str) -> TreeFile | None:
        """A file, or None where there is none.

        Raises InvalidPatchError where the path leads through a symbolic link or to something that is no regular file,
        InputTooLargeError for a file larger than FILE_BYTES.
        """
        descriptor = self._open(path)
        if descriptor is None:
            return None
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            os.close(descriptor)
            raise _refuse("not-a-file", path, f"{path} is no regular file in the kernel tree.")
        with open(descriptor, "rb") as stream:  # noqa: PTH123 - a descriptor, not a path
            data = stream.read(limits.FILE_BYTES + 1)
        if len(data) > limits.FILE_BYTES:
            raise InputTooLargeError(
                f"{path} is larger than the {limits.FILE_BYTES} bytes that a file to be patched may have.",
                hint="Leave this file out of the patch.",
            )
        return TreeFile(data=data, executable=bool(facts.st_mode & stat.S_IXUSR))

    def _open(self, path: str) -> int | None:
        *parents, name = path.split("/")
        here = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for parent in parents:
                below = self._step(path, parent, _DIRECTORY, here)
                if below is None:
                    return None
                os.close(here)
                here = below
            return self._step(path, name, _FILE, here)
        finally:
            os.close(here)

    @staticmethod
    def _step(path: str, name: str, flags: int, here: int) -> int | None:
        try:
            return os.open(name, flags, dir_fd=here)
        except FileNotFoundError:
            return None
        except OSError as error:
            # with O_DIRECTORY a symbolic link gives ENOTDIR, without it ELOOP (open(2))
            if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ENAMETOOLONG):
                raise
            if error.errno == errno.ENAMETOOLONG:
                return None
            if stat.S_ISLNK(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
                raise _refuse(
                    "symlink", path, f"{path} leads through the symbolic link '{name}' of the tree."
                ) from None
            raise _refuse("not-a-file", path, f"'{name}' in {path} is not what the patch takes it for.") from None


def _refuse(rule: str, path: str, message: str) -> InvalidPatchError:
    hint = "Name the file itself, by the path where it really lies in the kernel tree."
    return InvalidPatchError(
        message,
        hint=hint,
        diagnosis=[Diagnosis(rule=rule, message=message, file=path, hint=hint, doc=f"{DOC}#{rule}")],
    )
