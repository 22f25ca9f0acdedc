# SPDX-License-Identifier: GPL-2.0-or-later
"""The prepared kernels that the server has at hand."""

from __future__ import annotations

from collections.abc import Sequence

from elivepatch.errors import NotOfferedError
from elivepatch.pipeline import Workshop
from elivepatch.protocol.models import KernelEntry


def list_kernels(workshop: Workshop) -> Sequence[KernelEntry]:
    """The kernels that are prepared in the cache, the most recently used first."""
    store = workshop.cache / "kernels"
    if not store.is_dir() or not any(store.iterdir()):
        return ()
    raise NotOfferedError(
        "This server cannot list its prepared kernels yet.", hint="Ask for a build: it finds its own."
    )
