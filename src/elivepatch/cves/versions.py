# SPDX-License-Identifier: GPL-2.0-or-later
"""Versions of the kernel as the feed compares them: mainline releases, and stable releases on their branches."""

from __future__ import annotations

import re
from dataclasses import dataclass

from elivepatch.errors import InvalidInputError

_VERSION = re.compile(r"(?:(2\.6)\.(\d{1,4})(?:\.(\d{1,5}))?|(\d{1,3})\.(\d{1,4})(?:\.(\d{1,5}))?)(?!\.?\d)", re.ASCII)
#: What may stand behind the numbers of a release: anything but a release candidate, which is before its version
#: (``-rc3`` of kernel.org, ``~rc3`` of Debian, ``_rc3`` of Gentoo, ``-0.rc3`` of Fedora).
_CANDIDATE = re.compile(r"(?:[-~_.]|-0\.)?rc(?![a-z])", re.IGNORECASE)
_STEP = 100_000


@dataclass(frozen=True, order=True)
class KernelVersion:
    """A version of the kernel: the mainline release ``series``, and which stable release of it (0: none, mainline).

    ``numbers`` are those of the mainline release: two, or three until 2.6.39.
    """

    numbers: tuple[int, ...]
    step: int = 0

    @property
    def mainline(self) -> bool:
        """Whether it is a mainline release."""
        return self.step == 0

    @property
    def branch(self) -> int:
        """The mainline release that it is built on, as a number that grows with it."""
        major, minor, third = (*self.numbers, 0)[:3]
        return (major * _STEP + minor) * _STEP + third

    @property
    def series(self) -> str:
        """The branch, as people name it: ``6.1``."""
        return ".".join(map(str, self.numbers))

    def __str__(self) -> str:
        return f"{self.series}.{self.step}" if self.step else self.series


def parse_version(text: str) -> KernelVersion:
    """Parse ``X.Y`` or ``X.Y.Z``. Raises InvalidInputError."""
    match = _VERSION.fullmatch(text)
    if match is None:
        raise InvalidInputError(
            f"'{text[:60]}' is not a version of the kernel.", hint="Give it as numbers: 6.1.170, or 6.1 for 6.1.0."
        )
    if match[1]:
        return KernelVersion((2, 6, int(match[2])), int(match[3] or 0))
    return KernelVersion((int(match[4]), int(match[5])), int(match[6] or 0))


def version_of(text: str) -> KernelVersion:
    """The version at the beginning of a release or of a package's version: ``6.1.170-3``, ``6.12.60-gentoo``.

    Raises InvalidInputError, also for a release candidate: which fixes it has no list says.
    """
    match = _VERSION.match(text)
    if match is None:
        raise InvalidInputError(
            f"'{text[:60]}' names no released version of the kernel: it does not begin with one.",
            hint="Give it as numbers: 6.1.170, or 6.1 for 6.1.0.",
        )
    if _CANDIDATE.match(text, match.end()):
        raise InvalidInputError(
            f"'{text[:60]}' names no released version of the kernel, so nothing can be looked up for it.",
            hint="Release candidates are on no list. The release that is nearest: elivepatch-server cve scan --version "
            f"{match[0]}",
        )
    return parse_version(match[0])
