# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of an overlay, from a directory or from the objects of a bare git repository.

Only ``elivepatch.yml`` and what lies below ``patches/`` is looked at. Nothing is checked out and nothing runs: no
hooks, filters or submodules. Links are not followed, wherever they lead; names are those that `schema.PATH` allows,
anything else is a finding and not read. How many files, how deep, and how large is limited before it is read.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from elivepatch.errors import InputTooLargeError, InvalidInputError
from elivepatch.git import OBJECT, Git
from elivepatch.overlay.findings import DESCRIPTION, Findings, shown
from elivepatch.overlay.schema import PATH
from elivepatch.overlay.yaml_reader import DESCRIPTION_BYTES
from elivepatch.patches.limits import PATCH_BYTES

PATCHES = "patches"
#: Files below patches/, and bytes of all of them.
FILES = 4000
TOTAL_BYTES = 256 * 1024 * 1024
DEPTH = 7
DIRECTORIES = 500
_GIT_MEMORY = 1024**3
_GIT_SECONDS = 60.0
_HINT_NAME = "Letters, digits and . _ + - only; nothing hidden, nothing that begins with '-'."


class OverlayFiles(Protocol):
    """The files of an overlay. Paths are relative to its root."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """The files that there are, with their bytes: the description and those below patches/."""
        ...

    def read(self, path: str) -> bytes:
        """A file, whole. Raises InvalidInputError where it cannot be read, or has changed since it was found."""
        ...


@dataclass
class _Listing:
    """Files as they are found, and what is wrong with them."""

    findings: Findings
    sizes: dict[str, int] = field(default_factory=dict[str, int])
    total: int = 0
    directories: int = 0
    full: bool = False

    def take(self, path: str, size: int) -> bool:
        """Note a file, if there is room for it."""
        limit = DESCRIPTION_BYTES if path == DESCRIPTION else PATCH_BYTES
        if size > limit:
            message = f"The file has {size} bytes; the limit is {limit}."
            self.findings.add("file-size", 1, message, "Keep only what a livepatch is made from.", file=path)
            return False
        if len(self.sizes) >= FILES or self.total + size > TOTAL_BYTES:
            self.stop(f"There are more than {FILES} files, or more than {TOTAL_BYTES // 1024**2} MiB of them.")
            return False
        self.sizes[path] = size
        self.total += size
        return True

    def stop(self, message: str) -> None:
        """Note that there is more than is looked at; once."""
        if not self.full:
            self.full = True
            self.findings.add("too-many-files", 1, message, "Make two overlays of it.", file=PATCHES)

    def enter(self, depth: int) -> bool:
        """Whether a directory is to be looked at."""
        self.directories += 1
        if depth > DEPTH or self.directories > DIRECTORIES:
            self.stop(f"There are more than {DIRECTORIES} directories, or some more than {DEPTH} levels deep.")
            return False
        return not self.full

    def bad_name(self, directory: str, name: str) -> bool:
        """Note a name that no file of an overlay may have."""
        below = f"{directory}/{name}".removeprefix(f"{PATCHES}/")
        if PATH.fullmatch(below):
            return False
        message = f"There is a file named {shown(name)}, which is not read."
        self.findings.add("file-name", 1, message, _HINT_NAME, file=directory)
        return True

    def bad_kind(self, path: str, kind: str) -> None:
        """Note what is neither a file nor a directory."""
        self.findings.add("file-kind", 1, f"This is {kind}, which is not read.", "Put the file itself here.", file=path)


# -- a directory


class DirectoryFiles:
    """The files of a working directory. Raises InvalidInputError where that is none."""

    def __init__(self, root: Path, findings: Findings) -> None:
        self._root = root
        listing = _Listing(findings)
        try:
            with _opened(root, None) as top:
                self._take(top, DESCRIPTION, DESCRIPTION, listing)
                with contextlib.suppress(FileNotFoundError), _directory(top, PATCHES, PATCHES, listing) as below:
                    if below is not None:
                        self._walk(below, PATCHES, 1, listing)
        except OSError as error:
            raise InvalidInputError(
                f"{root} cannot be read as an overlay: {error.strerror}.", hint="Name the directory of the overlay."
            ) from error
        self.sizes: Mapping[str, int] = listing.sizes

    def _take(self, directory: int, name: str, path: str, listing: _Listing) -> None:
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                listing.take(path, status.st_size)
            else:
                listing.bad_kind(path, _kind(status.st_mode))

    def _walk(self, directory: int, path: str, depth: int, listing: _Listing) -> None:
        for name in sorted(os.listdir(directory)):
            if listing.full:
                return
            if listing.bad_name(path, name):
                continue
            below = f"{path}/{name}"
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                self._take(directory, name, below, listing)
            elif listing.enter(depth + 1):
                with _directory(directory, name, below, listing) as inner:
                    if inner is not None:
                        self._walk(inner, below, depth + 1, listing)

    def read(self, path: str) -> bytes:
        """See `OverlayFiles`."""
        if path not in self.sizes:
            raise InvalidInputError(f"The overlay has no file {shown(path)}.", hint="Look at its findings.")
        *directories, name = path.split("/")
        try:
            with contextlib.ExitStack() as stack:
                at = stack.enter_context(_opened(self._root, None))
                for one in directories:
                    at = stack.enter_context(_opened(one, at))
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
                with os.fdopen(descriptor, "rb") as stream:
                    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                        raise InvalidInputError(f"{path} is no file any more.", hint="Try again.")
                    data = stream.read(self.sizes[path] + 1)
        except OSError as error:
            raise InvalidInputError(f"{path} cannot be read: {error.strerror}.", hint="Try again.") from error
        if len(data) > self.sizes[path]:
            raise InvalidInputError(f"{path} grows while it is read.", hint="Try again.")
        return data


@contextlib.contextmanager
def _opened(name: Path | str, at: int | None) -> Generator[int]:
    """A directory as a descriptor; a link is not followed, but for the root that somebody named."""
    follow = 0 if at is None else os.O_NOFOLLOW
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | follow, dir_fd=at)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _directory(at: int, name: str, path: str, listing: _Listing) -> Generator[int | None]:
    """A directory below another; None, and a finding, where it is something else."""
    status = os.stat(name, dir_fd=at, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        listing.bad_kind(path, _kind(status.st_mode))
        yield None
        return
    with _opened(name, at) as descriptor:
        yield descriptor


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    return "a file" if stat.S_ISREG(mode) else "a directory" if stat.S_ISDIR(mode) else "a special file"


# -- git


class GitFiles:
    """The files of a commit, read from the objects of a bare repository. Raises InputTooLargeError, ProgramError."""

    def __init__(self, directory: Path, commit: str, findings: Findings) -> None:
        if not OBJECT.fullmatch(commit):
            raise InvalidInputError(f"{shown(commit)} is not the id of a commit.", hint="All its digits.")
        self._git = Git(directory, system=False)
        self._objects: dict[str, str] = {}
        listing = _Listing(findings)
        for name, mode, kind, oid, size in self._entries(f"{commit}^{{tree}}"):
            if name == DESCRIPTION:
                self._take(name, mode, kind, oid, size, listing)
            elif name == PATCHES and kind == "tree":
                self._walk(oid, PATCHES, 1, listing)
            elif name == PATCHES:
                listing.bad_kind(PATCHES, _git_kind(mode))
        self.sizes: Mapping[str, int] = listing.sizes

    def _entries(self, tree: str) -> list[tuple[str, str, str, str, int]]:
        """Name, mode, kind, object and bytes of what is in a tree; of one level, for trees can be made without end."""
        done = self._git("ls-tree", "-z", "-l", tree, timeout=_GIT_SECONDS, memory_bytes=_GIT_MEMORY)
        found: list[tuple[str, str, str, str, int]] = []
        for record in done.stdout.split("\0")[:-1]:
            if len(found) > FILES:
                raise InputTooLargeError(f"A directory of the overlay has more than {FILES} files.")
            head, _, name = record.partition("\t")
            mode, kind, oid, size = head.split()
            found.append((name, mode, kind, oid, int(size) if size.isdigit() else 0))
        return found

    def _take(self, path: str, mode: str, kind: str, oid: str, size: int, listing: _Listing) -> None:
        if kind != "blob" or mode not in {"100644", "100755"}:
            listing.bad_kind(path, _git_kind(mode))
        elif listing.take(path, size):
            self._objects[path] = oid

    def _walk(self, tree: str, path: str, depth: int, listing: _Listing) -> None:
        for name, mode, kind, oid, size in self._entries(tree):
            if listing.full:
                return
            if listing.bad_name(path, name):
                continue
            below = f"{path}/{name}"
            if kind != "tree":
                self._take(below, mode, kind, oid, size, listing)
            elif listing.enter(depth + 1):
                self._walk(oid, below, depth + 1, listing)

    def read(self, path: str) -> bytes:
        """See `OverlayFiles`."""
        if path not in self._objects:
            raise InvalidInputError(f"The overlay has no file {shown(path)}.", hint="Look at its findings.")
        with tempfile.TemporaryDirectory(prefix="elivepatch-overlay.") as scratch:
            target = Path(scratch) / "blob"
            words = ("cat-file", "blob", self._objects[path])
            self._git(*words, stdout=target, timeout=_GIT_SECONDS, memory_bytes=_GIT_MEMORY)
            data = target.read_bytes()
        if len(data) != self.sizes[path]:
            raise InvalidInputError(f"{path} has other bytes than git said.", hint="Remove the mirror and sync again.")
        return data


def _git_kind(mode: str) -> str:
    return {"120000": "a symbolic link", "160000": "a submodule", "040000": "a directory"}.get(mode, "no plain file")
