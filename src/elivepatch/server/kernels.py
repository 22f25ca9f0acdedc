# SPDX-License-Identifier: GPL-2.0-or-later
"""The prepared kernels that the server has at hand."""

from __future__ import annotations

from collections.abc import Sequence

from elivepatch.build import kernels
from elivepatch.protocol.models import KernelEntry
from elivepatch.workshop import Workshop


def list_kernels(workshop: Workshop) -> Sequence[KernelEntry]:
    """The kernels that are prepared in the cache, the most recently used first."""
    found = [
        KernelEntry.model_validate({name: entry[name] for name in KernelEntry.model_fields})
        for entry in kernels.list_kernels(workshop.kernels.store)
    ]
    return sorted(found, key=lambda entry: entry.last_used, reverse=True)
