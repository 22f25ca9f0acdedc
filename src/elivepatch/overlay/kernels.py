# SPDX-License-Identifier: GPL-2.0-or-later
"""For which kernels a patch is: upstream versions, ranges of them, releases, distributions; and what a kernel is.

An upstream version is that of kernel.org, three numbers. Not every release tells it: that of Debian 12's kernel is
6.1.0-49-amd64, whatever stable version it was made from. Where it is not known, nothing is guessed: a patch that needs
it is undecided.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from elivepatch.kernel.running import RELEASE, RunningKernel

Version = tuple[int, int, int]
#: Above the third number of every version.
_LAST = 10**9
_VERSION = re.compile(r"(\d{1,3})\.(\d{1,4})(?:\.(\d{1,5}))?", re.ASCII)
_SERIES = re.compile(r"(\d{1,3})\.(\d{1,4})\.\*", re.ASCII)
_BOUND = re.compile(r"(>=|<=|>|<)(\S+)", re.ASCII)
#: os-release(5): what ID and VERSION_ID may be.
_DISTRIBUTION = re.compile(r"([a-z0-9][a-z0-9._-]{0,63})(?::([a-z0-9][a-z0-9._-]{0,63}))?", re.ASCII)
#: Releases whose third number is no stable version: those with an ABI (Debian 12, Ubuntu, RHEL, SUSE), and candidates.
_NOT_TELLING = re.compile(r"\d+\.\d+\.0-\d|\d+\.\d+(?:\.\d+)?-rc\d", re.ASCII)
#: How Debian's kernels name the version of their package in /proc/version (debian/rules.real, KBUILD_BUILD_VERSION).
_DEBIAN = re.compile(r" Debian (\d{1,3}\.\d{1,4}\.\d{1,5})-\S+ \(", re.ASCII)


class Fit(StrEnum):
    """Whether a patch is for a kernel."""

    YES = "yes"
    NO = "no"
    UNDECIDED = "undecided"


class KernelSyntaxError(ValueError):
    """A text that names no kernels; what is wrong with it is the message."""


@dataclass(frozen=True)
class KernelIdentity:
    """A kernel that patches are chosen for. ``version`` is its upstream version, ``distribution`` ID of os-release.

    What is not known is None.
    """

    release: str
    version: Version | None = None
    distribution: str | None = None
    distribution_version: str | None = None


@dataclass(frozen=True)
class KernelRange:
    """One ``release``, or the upstream versions from ``low`` to ``high``, both included; ``text`` is as written.

    Where the version of a kernel is not known, its series is, and may be wholly within or without.
    """

    text: str
    release: str | None = None
    low: Version = (0, 0, 0)
    high: Version = (_LAST, 0, 0)

    def fit(self, kernel: KernelIdentity) -> Fit:
        """Whether a kernel is one of them."""
        if self.release is not None:
            return Fit.YES if kernel.release == self.release else Fit.NO
        if kernel.version is not None:
            return Fit.YES if self.low <= kernel.version <= self.high else Fit.NO
        found = parse_version(kernel.release, prefix=True)
        if found is None:
            return Fit.UNDECIDED
        first, last = (*found[:2], 0), (*found[:2], _LAST)
        if self.low <= first and last <= self.high:
            return Fit.YES
        return Fit.NO if last < self.low or self.high < first else Fit.UNDECIDED


@dataclass(frozen=True)
class Distribution:
    """A distribution by ID of os-release, or one of its versions by VERSION_ID."""

    id: str
    version: str | None = None

    def __str__(self) -> str:
        return f"{self.id}:{self.version}" if self.version else self.id

    def fit(self, kernel: KernelIdentity) -> Fit:
        """Whether a kernel is of it."""
        if kernel.distribution is None:
            return Fit.UNDECIDED
        if kernel.distribution != self.id:
            return Fit.NO
        if self.version is None:
            return Fit.YES
        if kernel.distribution_version is None:
            return Fit.UNDECIDED
        return Fit.YES if kernel.distribution_version == self.version else Fit.NO


def fit(ranges: Sequence[KernelRange], distributions: Sequence[Distribution], kernel: KernelIdentity) -> Fit:
    """Whether a kernel is one of some, and of one of some distributions; where none are named, of any."""
    of_kernels = _any([one.fit(kernel) for one in ranges])
    of_distributions = _any([one.fit(kernel) for one in distributions]) if distributions else Fit.YES
    both = {of_kernels, of_distributions}
    return Fit.NO if Fit.NO in both else Fit.UNDECIDED if Fit.UNDECIDED in both else Fit.YES


def _any(fits: Sequence[Fit]) -> Fit:
    return Fit.YES if Fit.YES in fits else Fit.UNDECIDED if Fit.UNDECIDED in fits else Fit.NO


def parse_version(text: str, *, prefix: bool = False) -> Version | None:
    """An upstream version (``6.12`` is 6.12.0), or that at the beginning of a text; None where there is none."""
    match = _VERSION.match(text) if prefix else _VERSION.fullmatch(text)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def parse_kernels(text: str) -> KernelRange:
    """What an item of ``kernels`` means. Raises KernelSyntaxError.

    ``>=6.1.100 <6.1.175`` (one or more bounds, all of which hold), ``6.1.*`` (a series), ``6.1.100`` (one upstream
    version), or else a release as ``uname -r`` prints it.
    """
    if series := _SERIES.fullmatch(text):
        major, minor = int(series[1]), int(series[2])
        return KernelRange(text, low=(major, minor, 0), high=(major, minor, _LAST))
    if version := parse_version(text):
        return KernelRange(text, low=version, high=version)
    if text.startswith(("<", ">", "=", "!", "~", "^")):
        return _bounds(text)
    if not RELEASE.fullmatch(text) or parse_version(text, prefix=True) is None:
        raise KernelSyntaxError("is neither a release, nor a version, nor a range of versions")
    return KernelRange(text, release=text)


def _bounds(text: str) -> KernelRange:
    low, high = (0, 0, 0), (_LAST, 0, 0)
    for word in text.split():
        match = _BOUND.fullmatch(word)
        version = parse_version(match[2]) if match else None
        if match is None or version is None:
            raise KernelSyntaxError(f"has the bound '{word[:40]}', which is not one of >=, >, <=, < and a version")
        if match[1] == ">=":
            low = max(low, version)
        elif match[1] == ">":
            low = max(low, (version[0], version[1], version[2] + 1))
        elif match[1] == "<=":
            high = min(high, version)
        else:
            high = min(high, (version[0], version[1], version[2] - 1))  # 6.1.-1 is below 6.1.0, and above all of 6.0
    if low > high:
        raise KernelSyntaxError("holds no version: its lower bound is above its upper bound")
    return KernelRange(text, low=low, high=high)


def parse_distribution(text: str) -> Distribution:
    """``ID`` or ``ID:VERSION_ID`` of os-release. Raises KernelSyntaxError."""
    match = _DISTRIBUTION.fullmatch(text)
    if match is None:
        raise KernelSyntaxError("is not ID or ID:VERSION_ID of a distribution's os-release")
    return Distribution(match[1], match[2])


def upstream_version(release: str, proc_version: str = "") -> Version | None:
    """The upstream version of a kernel by its release, and by /proc/version where that is at hand; None if not told."""
    numbers = parse_version(release, prefix=True)
    if numbers is None:
        return None
    if not _NOT_TELLING.match(release):
        return numbers
    if match := _DEBIAN.search(proc_version):
        version = parse_version(match[1])
        if version is not None and version[:2] == numbers[:2]:
            return version
    return None


def identify(kernel: RunningKernel) -> KernelIdentity:
    """The identity of the kernel that a host runs."""
    return KernelIdentity(
        kernel.release,
        upstream_version(kernel.release, kernel.version),
        kernel.distribution,
        kernel.distribution_version,
    )
