# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel source trees: what a kernel is built from where nobody publishes its products.

A source names a tree by everything that decides its contents, fetches and verifies what is needed, and composes the
tree. It decides nothing about configuration, compiler or build.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from elivepatch.progress import Progress


@dataclass(frozen=True)
class SourceTree:
    """A tree that can be had.

    ``origin`` says where it comes from, for people and reports (``kernel.org:6.12.60``). ``identity`` is a digest of
    all that decides its contents: the same identity is the same tree, file by file. ``fetch`` downloads and verifies
    what is missing (the only part that uses the network); ``compose`` lays the tree out in an empty directory. Both
    raise errors of the tree: DownloadFailedError, KernelUnavailableError, SourceRejectedError, DiskFullError.
    ``patches``, where the distributor's own are known, reads them once they are fetched: names and bytes, in order.
    """

    origin: str
    identity: str
    fetch: Callable[[Progress], None]
    compose: Callable[[Path, Progress], None]
    patches: Callable[[Progress], Sequence[tuple[str, bytes]]] | None = None
