# SPDX-License-Identifier: GPL-2.0-or-later
"""What an overlay says, once it has been read: immutable values."""

from __future__ import annotations

from dataclasses import dataclass

from elivepatch.overlay.kernels import Distribution, Fit, KernelIdentity, KernelRange, fit


@dataclass(frozen=True)
class CommitSource:
    """A commit of a repository that the overlay names; ``id`` is its full id in hex."""

    repository: str
    url: str
    id: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A patch of an overlay.

    Its change is a file below ``patches/`` (``path``) or a ``commit``. ``requires`` are entries that must be applied
    before, ``after`` are those that go before it where both are applied; ``replaced_by`` is the entry that takes its
    place. ``check`` is a script below ``patches/``. ``line`` is where it stands, from 1.
    """

    id: str
    kernels: tuple[KernelRange, ...]
    distributions: tuple[Distribution, ...] = ()
    title: str | None = None
    path: str | None = None
    commit: CommitSource | None = None
    cves: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    replaced_by: str | None = None
    licence: str | None = None
    author: str | None = None
    tested_with: tuple[str, ...] = ()
    check: str | None = None
    line: int = 1

    def fit(self, kernel: KernelIdentity) -> Fit:
        """Whether it is for a kernel."""
        return fit(self.kernels, self.distributions, kernel)


@dataclass(frozen=True)
class Overlay:
    """An overlay. ``schema`` is 1, or 0 for the old format 0.1."""

    schema: int
    title: str | None
    entries: tuple[Entry, ...]
