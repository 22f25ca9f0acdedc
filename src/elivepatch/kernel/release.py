# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel releases, as ``uname -r`` gives them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from elivepatch.errors import InvalidInputError

_RELEASE = re.compile(
    r"(?P<major>\d{1,3})\.(?P<minor>\d{1,4})(?:\.(?P<patch>\d{1,5}))?(?P<rest>[A-Za-z0-9.+~_-]{0,100})",
    re.ASCII,
)


@dataclass(frozen=True, order=True)
class Release:
    """A kernel release: the numbers to compare by, and the text as the kernel spells it."""

    major: int
    minor: int
    patch: int
    text: str

    @property
    def series(self) -> str:
        """The series, as in the name of Debian's source package: ``6.12``."""
        return f"{self.major}.{self.minor}"

    def __str__(self) -> str:
        return self.text


def parse_release(text: str) -> Release:
    """Parse a release; raises InvalidInputError for anything else, so that the text is safe in paths and arguments."""
    match = _RELEASE.fullmatch(text)
    if match is None:
        raise InvalidInputError(
            f"'{text}' is not a kernel release.",
            hint="Give what 'uname -r' prints on the host, for example 6.12.117+deb13-cloud-amd64.",
        )
    return Release(int(match["major"]), int(match["minor"]), int(match["patch"] or 0), text)
