# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's kernel source by series or version: the tree that the package linux-source-X.Y holds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from elivepatch.errors import DownloadFailedError, KernelUnavailableError
from elivepatch.process import run
from elivepatch.progress import Progress
from elivepatch.sources.archives import unpack
from elivepatch.sources.debian import DebianSource
from elivepatch.sources.provider import Package
from elivepatch.sources.reference import DebianReference
from elivepatch.sources.trees import SourceTree


def debian_tree(reference: DebianReference, suites: Sequence[DebianSource], progress: Progress) -> SourceTree:
    """The tree of Debian's linux-source: of a series the newest that any suite offers, else exactly that version.

    The identity is the digest that the signed package list names. Uses the network for lists only. Raises
    KernelUnavailableError with what is offered, DownloadFailedError where a suite's lists cannot be had.
    """
    exactly = None if reference.version == reference.series else reference.version
    best = _known(reference.series, exactly, suites) if exactly is not None else None
    if best is None:
        best = _offered(reference.series, exactly, suites, progress)
    if best is None:
        offered = [version for suite in suites for version in suite.linux_source_versions(reference.series)]
        if not offered:
            known = sorted(dict.fromkeys(one for suite in suites for one in suite.linux_source_series()))
            raise KernelUnavailableError(
                f"No configured suite has the series {reference.series} of linux-source.",
                hint=f"The series that are offered: {', '.join(known) or 'none'}.",
            )
        names = ", ".join(dict.fromkeys(offered))
        raise KernelUnavailableError(
            f"No configured suite offers debian:{reference.version}; the series has: {names}.",
            hint="Name one of these, or a series (debian:6.12) for its newest; Debian removes what it replaces.",
        )
    version, package, source = best

    def fetch(progress: Progress) -> None:
        source.download_package(package, progress)

    def compose(target: Path, progress: Progress) -> None:
        path = source.package_path(package)
        if not path.exists():
            raise DownloadFailedError(f"{path.name} is not in {path.parent} any more.", hint="Start the build again.")
        unpack_package(path, target, progress)

    identity = hashlib.sha256(f"elivepatch-linux-source-1 {package.sha256}".encode()).hexdigest()
    return SourceTree(f"debian:{version}", identity, fetch, compose)


def _known(series: str, version: str, suites: Sequence[DebianSource]) -> tuple[str, Package, DebianSource] | None:
    """A version that one of the suites knows already: to ask apt for what never changes would take seconds."""
    for suite in suites:
        if (package := suite.remembered_source(series, version)) is not None:
            return version, package, suite
    return None


def _offered(
    series: str, exactly: str | None, suites: Sequence[DebianSource], progress: Progress
) -> tuple[str, Package, DebianSource] | None:
    """The newest that any suite offers, or exactly that version; backports are asked where no suite has one."""
    best: tuple[str, Package, DebianSource] | None = None
    for suite in sorted(suites, key=lambda suite: suite.backports):
        if suite.backports and best is not None:
            break
        found = suite.linux_source(series, progress, version=exactly)
        if found is not None and (best is None or _newer(found[0], best[0])):
            best = (*found, suite)
    return best


def _newer(one: str, other: str) -> bool:
    return run(["dpkg", "--compare-versions", one, "gt", other], check=False).returncode == 0


def unpack_package(package: Path, target: Path, progress: Progress) -> None:
    """Unpack the source that a linux-source package holds into a directory.

    Raises KernelUnavailableError where it holds none, SourceRejectedError for an archive that is no source tree.
    """
    progress.step(f"unpacking {package.name}")
    # named after the directory, so that what a kill leaves of it is cleaned with that
    with TemporaryDirectory(prefix=f"{target.name}.deb.", dir=target.parent) as scratch:
        run(["dpkg-deb", "--extract", package, scratch], timeout=600)
        archives = sorted(Path(scratch).glob("usr/src/linux-source-*.tar.xz"))
        if len(archives) != 1:
            raise KernelUnavailableError(f"{package.name} holds no linux-source archive.")
        unpack(archives[0], target, package.name)
