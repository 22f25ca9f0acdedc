# SPDX-License-Identifier: GPL-2.0-or-later
"""Distfiles: where they are downloaded from, and where they lie once they are here.

Gentoo's mirrors keep them below ``distfiles/``, in one of two layouts (GLEP 75): all in one directory, or, on all
official mirrors since 2019, in directories named by the first eight bits of the BLAKE2B of the file's *name*
(``filename-hash BLAKE2B 8``). Both are tried; a mirror's layout.conf would only say which one to leave out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from elivepatch.errors import KernelUnavailableError, SourceRejectedError
from elivepatch.progress import Progress
from elivepatch.sources.download import check_file, download
from elivepatch.sources.gentoo.manifest import ManifestEntry

#: Bytes that no distfile of a kernel comes near.
LIMIT_BYTES = 1024**3
#: Where kernel-2.eclass looks for genpatches.
GENPATCHES_URLS = (
    "https://distfiles.gentoo.org/pub/proj/kernel/genpatches/",
    "https://dev.gentoo.org/~alicef/dist/genpatches/",
    "https://dev.gentoo.org/~mpagano/dist/genpatches/",
)
KERNEL_ORG_URL = "https://www.kernel.org/pub/linux/kernel/"


@dataclass(frozen=True)
class Distfile:
    """A file by its Manifest, and the addresses where its makers offer it."""

    entry: ManifestEntry
    urls: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name, in the Manifest and on mirrors."""
        return self.entry.name


@dataclass(frozen=True)
class Distfiles:
    """Downloaded distfiles below ``directory``.

    ``mirrors`` are asked first, each an address that has ``distfiles/`` below it, as in GENTOO_MIRRORS. ``upstream``
    says whether the addresses of the files' makers are asked too. A file lies in a directory named by its digest:
    repositories may call two different files by one name.
    """

    directory: Path
    mirrors: Sequence[str] = field(default_factory=tuple)
    upstream: bool = True

    def path(self, file: Distfile) -> Path:
        """Where a distfile lies, or will."""
        return self.directory / file.entry.digests["sha512"][:16] / file.name

    def addresses(self, file: Distfile) -> list[str]:
        """Where it can be downloaded, in the order in which they are asked."""
        found: list[str] = []
        name = quote(file.name)
        for mirror in self.mirrors:
            top = mirror.rstrip("/").removesuffix("/distfiles") + "/distfiles"
            found += [f"{top}/{hashed_directory(file.name)}/{name}", f"{top}/{name}"]
        return [*found, *(file.urls if self.upstream else ())]

    def fetch(self, files: Sequence[Distfile], progress: Progress) -> None:
        """Download what is missing, and verify it: size and both digests.

        Raises DownloadFailedError, SourceRejectedError, DiskFullError; KernelUnavailableError where nobody has it.
        """
        for file in files:
            if file.entry.size > LIMIT_BYTES:
                raise KernelUnavailableError(f"{file.name} has {file.entry.size} bytes; the limit is {LIMIT_BYTES}.")
            download(
                self.addresses(file),
                self.path(file),
                digests=file.entry.digests,
                size=file.entry.size,
                limit_bytes=LIMIT_BYTES,
                progress=progress,
                what=file.name,
                missing=KernelUnavailableError(
                    f"No mirror has the distfile {file.name}.",
                    hint="Name a mirror that keeps old files, or put it on one of your own below distfiles/.",
                ),
            )

    def checked(self, file: Distfile) -> Path:
        """The path of a distfile that is here and right. Raises KernelUnavailableError and SourceRejectedError."""
        path = self.path(file)
        if not path.is_file():
            raise KernelUnavailableError(
                f"The distfile {file.name} is not here.", hint="It has to be downloaded first."
            )
        try:
            check_file(path, file.name, file.entry.digests, file.entry.size)
        except SourceRejectedError as error:
            raise SourceRejectedError(
                f"{path} was changed after its download: {error.message}", hint="It is downloaded again the next time."
            ) from error
        return path


def hashed_directory(name: str) -> str:
    """The directory of a file in the layout ``filename-hash BLAKE2B 8``."""
    return hashlib.blake2b(name.encode()).hexdigest()[:2]


def kernel_org_url(name: str) -> str:
    """The address of ``linux-X.Y.tar.xz`` or ``patch-X.Y.Z.xz`` on kernel.org."""
    major = re.match(r"(?:linux|patch)-(\d+)\.", name)
    if major is None:
        raise ValueError(f"{name} is not a file of kernel.org")
    return f"{KERNEL_ORG_URL}v{major[1]}.x/{name}"


def genpatches_urls(name: str) -> tuple[str, ...]:
    """The addresses of a genpatches tarball."""
    return tuple(base + name for base in GENPATCHES_URLS)
