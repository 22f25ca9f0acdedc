# SPDX-License-Identifier: GPL-2.0-or-later
"""Ebuild repositories: where the ebuild of a kernel package and its Manifest are found.

Layout: Package Manager Specification, chapter 4 (``CATEGORY/PN/PN-PVR.ebuild``, ``Manifest`` and ``files/`` beside it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from elivepatch.errors import KernelUnavailableError
from elivepatch.progress import Progress
from elivepatch.sources.gentoo import ebuild as ebuilds
from elivepatch.sources.gentoo import manifest as manifests
from elivepatch.sources.gentoo.ebuild import Ebuild
from elivepatch.sources.gentoo.manifest import Manifest, parse_manifest
from elivepatch.sources.gentoo.package import CATEGORY, KernelPackage, version_key

#: Where a repository is: a directory, or a call that has it checked out (and up to date) and says where.
Place = Path | Callable[[Progress], Path]
#: Bytes of a patch that lies beside an ebuild.
AUX_BYTES = 64 * 1024 * 1024
#: Versions that are named where one is missing.
_NAMED = 12


@dataclass(frozen=True)
class PackageFiles:
    """An ebuild with its Manifest; ``directory`` is that of the package."""

    ebuild: Ebuild
    manifest: Manifest
    directory: Path

    def aux(self, name: str) -> bytes:
        """A file below ``files/``, as FILESDIR has it. Raises KernelUnavailableError and SourceRejectedError."""
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts:
            raise KernelUnavailableError(f"{self.ebuild.file} uses the file {name!r}, which is not below files/.")
        data = _read(self.directory / "files" / name, AUX_BYTES)
        if entry := self.manifest.find("AUX", name):
            entry.check(data, name)
        return data


def find_package(places: Sequence[Place], package: KernelPackage, progress: Progress) -> PackageFiles:
    """The files of a package from the first of the repositories that has that version.

    Raises KernelUnavailableError where none has, naming the versions that are there, and where its files cannot be
    read; SourceRejectedError where the Manifest has an entry of the ebuild and it is another.
    """
    if not places:
        raise KernelUnavailableError(
            f"{package} needs an ebuild repository, and none is configured.",
            hint="Name a directory with Gentoo's ebuilds, such as a checkout of https://github.com/gentoo/gentoo.",
        )
    there: set[str] = set()
    for place in places:
        root = place if isinstance(place, Path) else place(progress)
        if not (root / CATEGORY).is_dir():
            raise KernelUnavailableError(
                f"{root} is not an ebuild repository: it has no {CATEGORY}.",
                hint="Name the top directory, which has profiles, metadata and the categories.",
            )
        directory = root / CATEGORY / package.name
        if (directory / f"{package}.ebuild").is_file():
            return _load(directory, package)
        there |= _versions(directory, package.name)
    raise _unknown(package, there)


def _versions(directory: Path, name: str) -> set[str]:
    if not directory.is_dir():
        return set()
    return {path.name[len(name) + 1 : -len(".ebuild")] for path in directory.glob(f"{name}-*.ebuild")}


def _unknown(package: KernelPackage, there: set[str]) -> KernelUnavailableError:
    if not there:
        return KernelUnavailableError(
            f"The configured ebuild repositories have no package {CATEGORY}/{package.name}.",
            hint="Name the repository (overlay) that the host's package came from.",
        )
    # those of the same series first: one of them is what is meant, or what follows it
    series = package.pv.split(".")[:2]
    ordered = sorted(there, key=version_key, reverse=True)
    ordered.sort(key=lambda version: version.split(".")[:2] != series)
    named = ", ".join(ordered[:_NAMED]) + (f" and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else "")
    return KernelUnavailableError(
        f"The configured ebuild repositories have no {package}; of {package.name} they have: {named}.",
        hint="Gentoo removes old ebuilds, and git keeps them: configure a checkout of the commit before it was removed "
        f"('git log -- {CATEGORY}/{package.name}/{package}.ebuild').",
    )


def _load(directory: Path, package: KernelPackage) -> PackageFiles:
    data = _read(directory / f"{package}.ebuild", ebuilds.LIMIT_BYTES)
    listing = _read(directory / "Manifest", manifests.LIMIT_BYTES)
    manifest = parse_manifest(_text(listing, "Manifest"), f"the Manifest of {CATEGORY}/{package.name}")
    if entry := manifest.find("EBUILD", f"{package}.ebuild"):
        entry.check(data, f"{package}.ebuild")
    return PackageFiles(Ebuild(package, _text(data, f"{package}.ebuild")), manifest, directory)


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise KernelUnavailableError(f"{what} is not text: {error}.", hint="Renew the ebuild repository.") from error


def _read(path: Path, limit_bytes: int) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(limit_bytes + 1)
    except OSError as error:
        raise KernelUnavailableError(
            f"{path} cannot be read: {error.strerror}.", hint="Renew the ebuild repository, or check its permissions."
        ) from error
    if len(data) > limit_bytes:
        raise KernelUnavailableError(f"{path} is larger than {limit_bytes} bytes.")
    return data
