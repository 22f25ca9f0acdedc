# SPDX-License-Identifier: GPL-2.0-or-later
"""What is to be known of a prepared kernel before its vulnerabilities can be: its version, and its vendor's patches."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from elivepatch.build.prepared import PreparedKernel
from elivepatch.cves.vendor import VendorFixes, named_commits, read_changelog
from elivepatch.cves.versions import KernelVersion, parse_version
from elivepatch.errors import KernelUnavailableError, UnavailableError
from elivepatch.kernel.compressed import gunzip
from elivepatch.process import run
from elivepatch.progress import Progress
from elivepatch.selection import WantedKernel
from elivepatch.sources.reference import parse_reference
from elivepatch.workshop import Workshop

_ASSIGNMENT = re.compile(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION)\s*=[ \t]*(\S*)", re.MULTILINE)
#: ``debian:linux 6.1.170-3 (bookworm)`` of a published kernel, ``debian:6.1.170-3`` of one's own.
_DEBIAN = re.compile(r"debian:(?:linux )?(\d+\.\d+)(\S*)", re.ASCII)
#: Bytes of a changelog, unpacked; those of Debian's kernels have 5 MB.
_CHANGELOG_BYTES = 64 * 1024 * 1024


def upstream_version(kernel: PreparedKernel) -> KernelVersion:
    """The upstream version that a kernel was made from, as its source's makefile says it.

    Raises KernelUnavailableError for a tree that does not say it, or that is before a release.
    """
    text = (kernel.source / "Makefile").read_text(errors="replace")
    said = {match[1]: match[2] for match in reversed(list(_ASSIGNMENT.finditer(text)))}
    if not said.get("VERSION", "").isdigit() or not said.get("PATCHLEVEL", "").isdigit():
        raise KernelUnavailableError(f"The makefile of {kernel.origin} names no version.")
    if said.get("EXTRAVERSION", "").startswith("-rc"):
        raise KernelUnavailableError(
            f"{kernel.origin} is a release candidate: which fixes it has no list says.",
            hint="Look up the release that is nearest: elivepatch-server cve scan --version.",
        )
    return parse_version(f"{said['VERSION']}.{said['PATCHLEVEL']}.{said.get('SUBLEVEL') or '0'}")


def vendor_fixes(kernel: PreparedKernel, wanted: WantedKernel, workshop: Workshop, progress: Progress) -> VendorFixes:
    """What a kernel has beyond its version: its distributor's changelog (Debian) or patches (Gentoo), base patches."""
    commits = named_commits([*distributor_patches(kernel.origin, wanted, workshop, progress), *wanted.base_patches])
    match = _DEBIAN.match(kernel.origin)
    text = _changelog(match[1], f"{match[1]}{match[2]}", workshop, progress) if match is not None else None
    if text is None:
        return VendorFixes(commits=commits)
    said = read_changelog(text)
    return VendorFixes(commits, said.subjects, said.cves)


def distributor_patches(
    origin: str, wanted: WantedKernel, workshop: Workshop, progress: Progress
) -> Sequence[tuple[str, bytes]]:
    """The patches of Gentoo's package that a kernel of that origin was made from; none where it is another's."""
    if not origin.startswith("gentoo:"):
        return ()
    from elivepatch.origins import find_tree  # with HTTP and all

    try:
        tree = find_tree(parse_reference(wanted.name), wanted.host, wanted.config, workshop, progress)
        tree.fetch(progress)
        return tree.patches(progress) if tree.patches is not None else ()
    except UnavailableError as error:
        progress.step(f"the patches of {origin} cannot be read: {error.message}")
        return ()


def _changelog(series: str, version: str, workshop: Workshop, progress: Progress) -> str | None:
    """The changelog of Debian's source package at a version; None where it is not to be had any more."""
    for root in workshop.roots.installed():
        for source in workshop.kernel_sources(root):
            try:
                found = source.linux_source(series, progress, version=version)
                if found is not None:
                    return _read_changelog(source.download_package(found[1], progress))
            except UnavailableError as error:
                progress.step(f"no changelog of linux {version}: {error.message}")
    return None


def _read_changelog(package: Path) -> str | None:
    with tempfile.TemporaryDirectory(prefix="elivepatch-changelog.") as scratch:
        archive = Path(scratch) / "package.tar"
        run(["dpkg-deb", "--fsys-tarfile", package], stdout=archive)
        run(["tar", "-x", "-C", scratch, "--wildcards", "--no-anchored", "-f", archive, "changelog*.gz"], check=False)
        for path in sorted(Path(scratch).rglob("changelog*.gz")):
            if path.is_file() and not path.is_symlink():
                return gunzip(path.read_bytes(), _CHANGELOG_BYTES, package.name).decode(errors="replace")
    return None
