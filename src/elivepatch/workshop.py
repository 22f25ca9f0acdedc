# SPDX-License-Identifier: GPL-2.0-or-later
"""Where builds are made: the caches, roots and sources of one machine, and how a kernel is found in them."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from elivepatch.build.host_images import HostImages
from elivepatch.build.kernels import Kernels
from elivepatch.errors import KernelUnavailableError, UnavailableError
from elivepatch.kernel.release import Release
from elivepatch.progress import Progress
from elivepatch.sources.debian import FLAVOURS, AptConfiguration, DebianSource
from elivepatch.sources.provider import KernelFiles, KernelSource
from elivepatch.sources.reference import KERNEL_ORG
from elivepatch.toolchains.roots import Root, Roots, RootSpec

#: The root whose suite offers a kernel, by what Debian puts into its releases; the first is asked first.
_SUITES = (("+deb13", "trixie"), ("+deb12", "bookworm"), ("6.1.0-", "bookworm"))
#: Where kpatch's tools come from, whatever the compiler's root: objects are just files.
TOOLS_ROOT = "trixie"
#: Releases that are named to someone who asked for one that is not offered.
_SHOWN = 6
#: The kernel that is taken where none is named.
DEFAULT_SERIES, DEFAULT_FLAVOUR = "6.12", "-cloud-amd64"


@dataclass(frozen=True)
class SourcePolicy:
    """Where the sources of kernels come from that nobody publishes.

    ``kernel_org`` is the address of kernel.org's files or of a mirror, ``keyring`` a file with the keys that sign them
    (None: kernel.org is not used). ``git`` are the beginnings of addresses that may be cloned, ``directories`` those
    below which trees may lie; None allows any, as for whoever types the command on this machine.
    ``gentoo_repositories`` are directories with ebuilds, ``gentoo_mirrors`` addresses with Gentoo's distfiles,
    ``debuginfod`` servers that are asked for images.
    """

    kernel_org: str = KERNEL_ORG
    keyring: Path | None = None
    git: tuple[str, ...] | None = ()
    directories: tuple[Path, ...] | None = ()
    gentoo_repositories: tuple[Path, ...] = ()
    gentoo_mirrors: tuple[str, ...] = ()
    debuginfod: tuple[str, ...] = ()


@dataclass(frozen=True)
class CvePolicy:
    """Where the vulnerabilities of kernels and their fixes are read from.

    ``index`` is the file that was made of the CVE data. ``stable_git`` is a repository with the stable branches,
    ``stable_http`` an address that gives single commits as patches. ``identity`` stands for the state of the data.
    """

    index: Path | None = None
    stable_git: str | None = None
    stable_http: str | None = None
    identity: str | None = None


@dataclass(frozen=True)
class Workshop:
    """Where builds are made, and how much of the machine they may use.

    ``mirror`` is where build roots are made from, if not from the suite's own archive. ``more_roots`` are recipes
    beside the known ones.
    """

    cache: Path
    parallel: int = 2
    kernels_limit_bytes: int = 40 * 1024**3
    mirror: str | None = None
    sources: SourcePolicy = field(default_factory=SourcePolicy)
    more_roots: Mapping[str, RootSpec] = field(default_factory=dict[str, RootSpec])
    cves: CvePolicy = field(default_factory=CvePolicy)

    def check(self) -> bool:
        """Whether the cache is new. Raises UnavailableError where it cannot be used, before anything is made there."""
        hint = "Give a directory of your own with ELIVEPATCH_CACHE; it takes some 10 GB."
        try:
            is_new = not (self.cache / "roots").is_dir()
            self.cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.cache):
                pass
            kernels = self.cache / "kernels/prepared"  # build roots are only read, they can be another user's
            if kernels.is_dir() and not os.access(kernels, os.W_OK | os.X_OK):
                raise UnavailableError(f"The cache {self.cache} belongs to another user.", hint=hint)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise UnavailableError(f"The cache {self.cache} cannot be used: {error.strerror}.", hint=hint) from error
        return is_new

    @property
    def roots(self) -> Roots:
        """The build roots."""
        return Roots(self.cache / "roots", self.mirror, self.more_roots)

    @property
    def kernels(self) -> Kernels:
        """The prepared kernels."""
        return Kernels(self.cache / "kernels", self.kernels_limit_bytes)

    @property
    def images(self) -> HostImages:
        """The images that hosts have sent."""
        return HostImages(self.cache / "images", self.kernels_limit_bytes)

    def source(self, root: Root) -> DebianSource:
        """Debian's kernels as the apt configuration of a root offers them."""
        etc = root.path / "etc/apt"
        return DebianSource(AptConfiguration(root.name, etc / "sources.list", etc / "trusted.gpg.d"), self.cache)

    def kernel_sources(self, root: Root) -> list[DebianSource]:
        """All that offers kernels which a root's compiler built: its suite, and the backports of that, asked last."""
        spec = self.roots.spec(root.name)
        if not spec.backports:
            return [self.source(root)]
        etc = root.path / "etc/apt"
        name = f"{root.name}-backports"
        backports = AptConfiguration(name, etc / "sources.list", etc / "trusted.gpg.d", root.name, spec.suite)
        return [self.source(root), DebianSource(backports, self.cache)]


def find_kernel(release: Release, workshop: Workshop, progress: Progress) -> tuple[KernelFiles, Root, KernelSource]:
    """The kernel's files, the root of its compiler and where they come from; asks the likely suite first.

    Raises KernelUnavailableError with the releases that are offered.
    """
    likely = [suite for mark, suite in _SUITES if mark in release.text]
    installed = {root.name: root for root in workshop.roots.installed()}
    # a release that says nothing of its suite is looked for where a root is at hand: making one takes minutes
    suites = dict.fromkeys(likely or [TOOLS_ROOT, *installed])
    # asking apt takes seconds: whoever is asked last (backports) may be the one who knows it already
    for root in (installed[suite] for suite in suites if suite in installed):
        for source in workshop.kernel_sources(root):
            if (known := source.remembered(release)) is not None:
                return known, root, source
    offered: list[Release] = []
    for suite in suites:
        root = workshop.roots.ensure(suite, progress)
        for source in workshop.kernel_sources(root):
            files = source.find(release, progress)
            if files is not None:
                return files, root, source
            offered += source.offered(progress)
    raise KernelUnavailableError(
        f"{release} is not offered by any configured source. Offered are: {_names(release, offered)}.",
        hint=f"A kernel that is replaced is no longer offered: install one of these on the host, or name the source of "
        f"{release} (debian:VERSION, kernel.org:VERSION, …) with its configuration (-k), and have its image from the "
        "host's build directory (elivepatch image) or from a debuginfod server (the setting 'debuginfod').",
    )


def _names(release: Release, offered: Sequence[Release]) -> str:
    """What is offered, for someone who asked for a release: those most like it first, and not more than can be read."""

    def likeness(one: Release) -> tuple[bool, bool]:
        return one.series != release.series, not one.text.endswith(ending)

    ending = next((flavour for flavour in FLAVOURS if release.text.endswith(f"-{flavour}")), "")
    newest_first = sorted(set(offered), reverse=True)
    alike = sorted(newest_first, key=likeness)
    shown = ", ".join(map(str, alike[:_SHOWN]))
    return (shown or "none") + (f" and {len(alike) - _SHOWN} more" if len(alike) > _SHOWN else "")


def newest_kernel(workshop: Workshop, progress: Progress) -> Release:
    """The newest cloud kernel of the default series; raises KernelUnavailableError where there is none."""
    offered = workshop.source(workshop.roots.ensure(TOOLS_ROOT, progress)).offered(progress)
    found = newest(offered)
    if found is None:
        names = ", ".join(map(str, offered)) or "none"
        raise KernelUnavailableError(f"No {DEFAULT_SERIES} cloud kernel is offered. Offered are: {names}.")
    return found


def newest(offered: Sequence[Release]) -> Release | None:
    """The newest cloud kernel of the default series."""
    fitting = [one for one in offered if one.series == DEFAULT_SERIES and one.text.endswith(DEFAULT_FLAVOUR)]
    return max(fitting, default=None)
