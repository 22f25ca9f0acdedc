# SPDX-License-Identifier: GPL-2.0-or-later
"""Gentoo's kernel packages: their names and versions, and which of them a running release can belong to."""

from __future__ import annotations

import re
from dataclasses import dataclass

from elivepatch.errors import InvalidInputError

CATEGORY = "sys-kernel"
SOURCES, DIST, DIST_BINARY = "gentoo-sources", "gentoo-kernel", "gentoo-kernel-bin"

#: Names and versions by the Package Manager Specification, sections 3.1.2 and 3.2, less what no kernel package uses.
_NAME = r"[A-Za-z0-9_][A-Za-z0-9+_]*(?:-[A-Za-z0-9+_]+)*?"
_VERSION = r"(?P<pv>\d{1,4}(?:\.\d{1,6}){1,3}(?:_(?:alpha|beta|pre|rc|p)\d{0,8}){0,2})(?:-r(?P<revision>\d{1,6}))?"
_PACKAGE = re.compile(rf"(?:{CATEGORY}/)?(?P<name>{_NAME})-{_VERSION}", re.ASCII)
_ONLY_NAME = re.compile(rf"(?:{CATEGORY}/)?(?P<name>{_NAME})", re.ASCII)
_ONLY_VERSION = re.compile(_VERSION, re.ASCII)

#: What a release of a Gentoo kernel looks like: kernel-2.eclass makes EXTRAVERSION of the part before the first dash
#: of the package's name and of the revision, and LOCALVERSION of the configuration follows; a dist kernel has nothing
#: but its patch set's number in EXTRAVERSION, and LOCALVERSION -gentoo-dist.
_RELEASE = re.compile(
    r"(?P<pv>\d{1,3}\.\d{1,4}(?:\.\d{1,5})?)(?:-p(?P<patchset>\d{1,5}))?"
    r"(?P<tag>-gentoo(?P<dist>-dist(?![A-Za-z0-9]))?(?:-r(?P<revision>\d{1,6})(?![A-Za-z0-9]))?)?"
    r"(?P<local>[A-Za-z0-9.+~_-]{0,64})",
    re.ASCII,
)


@dataclass(frozen=True)
class KernelPackage:
    """A package of the category sys-kernel. ``pv`` is its version without the revision, 0 where it has none."""

    name: str
    pv: str
    revision: int = 0

    @property
    def pvr(self) -> str:
        """The version as the ebuild's file name has it: ``6.12.60-r1``."""
        return f"{self.pv}-r{self.revision}" if self.revision else self.pv

    def __str__(self) -> str:
        return f"{self.name}-{self.pvr}"


def parse_package(text: str) -> KernelPackage:
    """Read ``[sys-kernel/]NAME-VERSION[-rN]``; raises InvalidInputError, so that the parts are safe in a path."""
    match = _PACKAGE.fullmatch(text) if len(text) < 200 else None
    if match is None:
        raise InvalidInputError(
            f"{text[:200]!r} is not a kernel package of Gentoo.",
            hint="Name it with its version, as in sys-kernel/gentoo-sources-6.12.60-r1.",
        )
    return KernelPackage(match["name"], match["pv"], int(match["revision"] or 0))


def possible_packages(release: str) -> tuple[KernelPackage, ...]:
    """The packages that a running release can belong to, the likeliest first; empty where it is no Gentoo kernel.

    A release tells less than one would like. A dist kernel's says nothing of its revision, and the same text comes of
    gentoo-sources with CONFIG_LOCALVERSION="-dist"; a trailing ``-r1`` can be a revision or a local version.
    """
    match = _RELEASE.fullmatch(release)
    if match is None or match["tag"] is None:
        return ()
    pv = match["pv"] if not match["patchset"] else f"{match['pv']}_p{match['patchset']}"
    revision = int(match["revision"] or 0)
    if match["dist"]:
        return (KernelPackage(DIST, pv), KernelPackage(DIST_BINARY, pv), KernelPackage(SOURCES, pv))
    if match["patchset"]:
        return ()
    return (KernelPackage(SOURCES, pv, revision),)


def choose_package(release: str, named: str | None = None) -> KernelPackage:
    """The package of a running release, where ``named`` is what the client reports: a name, with or without version.

    A name with a version is taken at its word if it is of the same kernel version. Raises InvalidInputError where the
    release leaves a choice and nobody has made it, and where both contradict each other.
    """
    possible = possible_packages(release)
    if named is None:
        if len(possible) == 1:
            return possible[0]
        if not possible:
            raise InvalidInputError(
                f"{release} does not say which Gentoo package it is of.",
                hint="Name the package, as in sys-kernel/gentoo-sources-6.12.60; 'qlist -ICv sys-kernel/' lists those "
                "that are installed.",
            )
        names = ", ".join(package.name for package in possible)
        raise InvalidInputError(
            f"{release} can be of several packages: {names}.",
            hint=f"Name the one that is installed, as in sys-kernel/{possible[0]}.",
        )
    match = _RELEASE.fullmatch(release)
    if match is None:
        raise InvalidInputError(f"{release[:200]!r} is not a kernel release.", hint="Give what 'uname -r' prints.")
    version = match["pv"] if not match["patchset"] else f"{match['pv']}_p{match['patchset']}"
    if _PACKAGE.fullmatch(named):
        package = parse_package(named)
        if version not in {package.pv, f"{package.pv}.0"}:
            raise InvalidInputError(
                f"{package} is not the package of a kernel {release}.",
                hint="Name the package of the running kernel: after an update, the older one may still run.",
            )
        return package
    only = _ONLY_NAME.fullmatch(named) if len(named) < 200 else None
    if only is None:
        raise InvalidInputError(f"{named[:200]!r} is not the name of a package.", hint="Write sys-kernel/NAME-VERSION.")
    for package in possible:
        if package.name == only["name"]:
            return package
    if not possible:
        return KernelPackage(only["name"], version)
    names = ", ".join(package.name for package in possible)
    raise InvalidInputError(
        f"{release} is not a kernel of the package {only['name']}, but of one of these: {names}.",
        hint="Name the package with its version if it is of this one all the same.",
    )


def version_key(pvr: str) -> tuple[tuple[int, ...], str, int]:
    """A key that sorts versions of kernels by their numbers; suffixes (``_p1``, ``_rc2``) by their text."""
    match = _ONLY_VERSION.fullmatch(pvr)
    if match is None:
        return ((), pvr, 0)
    numbers, _, suffix = match["pv"].partition("_")
    return (tuple(int(part) for part in numbers.split(".")), suffix, int(match["revision"] or 0))
