# SPDX-License-Identifier: GPL-2.0-or-later
"""The artifact store: modules by the SHA-256 of their content.

A plain directory behind three methods; an object store can take its place behind the same ones. A file is written
aside, brought to the disk and then renamed, so under its name there is all of it or nothing; and it is compared with
its name again whenever it is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

from elivepatch.errors import ElivepatchError, InternalError, NotFoundError


class ArtifactError(InternalError):
    """An artifact is not what it was when it was stored."""


def sync_directory(directory: Path) -> None:
    """Bring the names in a directory to the disk."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, data: bytes, *, asides: Path | None = None) -> None:
    """Write a file so that at any moment, power cuts included, the old one or all of the new one is there.

    It is first written aside, in ``asides`` (the same file system) or else beside its place; a kill leaves that file
    behind. Raises OSError, with nothing left behind.
    """
    aside = (asides or path.parent) / f".{path.name}.{secrets.token_hex(4)}"
    try:
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    sync_directory(path.parent)


class ArtifactStore:
    """Artifacts in a directory, ``ab/abcdef…`` below it. One server at a time opens it (`directory.only_server`)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._asides = directory / "incoming"
        self._asides.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in self._asides.iterdir():  # by a server that was killed while it wrote
            left.unlink()

    def _path(self, digest: str) -> Path:
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise ElivepatchError(f"'{digest}' is not a SHA-256 digest.")
        return self._directory / digest[:2] / digest

    def put(self, data: bytes, digest: str) -> None:
        """Store an artifact. Raises ArtifactError when it does not have that digest, OSError when it does not fit."""
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise ArtifactError(f"An artifact has the digest {found}, not {digest} as its report says.")
        path = self._path(digest)
        if not self.holds(digest):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            sync_directory(self._directory)
            write_atomically(path, data, asides=self._asides)

    def holds(self, digest: str) -> bool:
        """Whether there is such an artifact; only `get` looks inside."""
        return self._path(digest).is_file()

    def get(self, digest: str) -> bytes:
        """The artifact. Raises NotFoundError when it is not there and ArtifactError when it has changed."""
        try:
            data = self._path(digest).read_bytes()
        except FileNotFoundError:
            raise NotFoundError(
                "The module of this build is no longer kept.", hint="Send the same request again: it is built anew."
            ) from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise ArtifactError(f"The artifact {digest} has changed on the disk.")
        return data
