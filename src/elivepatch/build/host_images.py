# SPDX-License-Identifier: GPL-2.0-or-later
"""The images that hosts have sent, each under the digest of its archive.

Whoever asks for a build with one names that digest, so nobody can put another image under a kernel that is not theirs.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from elivepatch.build import unpack
from elivepatch.build.image import HostImage
from elivepatch.build.store import Store
from elivepatch.errors import InvalidInputError, NotFoundError
from elivepatch.kernel.archive_reader import KernelArchive, read_archive


class HostImages:
    """Archives of hosts, unpacked; the least recently used go first when they take too much room."""

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self._store = Store(directory, limit_bytes)

    @property
    def store(self) -> Store:
        """The store, for listing and cleaning."""
        return self._store

    def has(self, sha256: str) -> bool:
        """Whether an archive is there."""
        return any(entry.key == sha256 for entry in self._store.entries())

    def add(self, archive: Path, sha256: str) -> None:
        """Take an archive in. Raises InvalidInputError where it is not of the format, or not of that digest."""

        def make(work: Path) -> None:
            (work / "files").mkdir()
            _lay_out(read_archive(archive, work / "files"), sha256, work)

        with self._store.use(sha256, make):
            pass

    @contextmanager
    def use(self, sha256: str) -> Generator[HostImage]:
        """An image, held while the block runs. Raises NotFoundError where it is not there."""

        def missing(_: Path) -> None:
            raise NotFoundError(
                f"The image {sha256[:12]} is not here, or not any more.",
                hint="Send it again; the client does it by itself.",
            )

        with self._store.use(sha256, missing) as (path, _):
            yield _load(path, sha256)


def _lay_out(archive: KernelArchive, sha256: str, work: Path) -> None:
    if archive.sha256 != sha256:
        raise InvalidInputError(
            f"The archive has the digest {archive.sha256}, not {sha256}.", hint="Send it again, as it was packed."
        )
    (work / "facts.json").write_text(json.dumps(asdict(archive.facts)))
    (work / "units.json").write_text(json.dumps(sorted(archive.units or ())))


def _load(path: Path, sha256: str) -> HostImage:
    files = path / "files"
    symvers, vmlinuz, modules = files / "Module.symvers", files / "vmlinuz", files / "modules"
    return HostImage(
        kind="uploaded",
        digest=sha256,
        vmlinux=files / "vmlinux",
        symvers=symvers if symvers.exists() else None,
        vmlinuz=vmlinuz if vmlinuz.exists() else None,
        modules=modules if modules.is_dir() else None,
        config=files / ".config",
        units=unpack.in_tree(json.loads((path / "units.json").read_text())),
    )
