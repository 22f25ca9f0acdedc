# SPDX-License-Identifier: GPL-2.0-or-later
"""What a source of kernels gives: the files that a prepared kernel is made from, found and verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from elivepatch.kernel.release import Release
from elivepatch.progress import Progress


@dataclass(frozen=True)
class Package:
    """A published file: where apt finds it, its name on disk, its size in bytes and its SHA-256 from a signed list."""

    uri: str
    file: str
    size: int
    sha256: str


@dataclass(frozen=True)
class KernelFiles:
    """The published files of one kernel, all of one source version.

    ``origin`` says where it comes from and which version it is, for people; ``toolchain`` names the root whose compiler
    built it. ``directory`` is where the packages lie once they are downloaded. ``images`` are the packages that hold
    vmlinuz, configuration and modules.
    """

    release: Release
    origin: str
    toolchain: str
    directory: Path
    images: Sequence[Package]
    debug: Package
    headers: Package
    kbuild: Package
    source: Package

    def packages(self) -> list[Package]:
        """All of them."""
        return [self.headers, self.kbuild, *self.images, self.source, self.debug]

    def path(self, package: Package) -> Path:
        """Where a package lies."""
        return self.directory / package.file


class KernelSource(Protocol):
    """A place where kernels come from."""

    def find(self, release: Release, progress: Progress) -> KernelFiles | None:
        """The files of a release, or None where this source does not have it; nothing but lists is downloaded."""
        ...

    def remembered(self, release: Release) -> KernelFiles | None:
        """The files of a release that was found before; asks nobody."""
        ...

    def offered(self, progress: Progress) -> list[Release]:
        """The releases that can be had now, the newest last."""
        ...

    def download(self, files: KernelFiles, progress: Progress) -> None:
        """Download what is missing and verify it; raises DownloadFailedError."""
        ...
