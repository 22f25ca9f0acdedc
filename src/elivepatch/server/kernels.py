# SPDX-License-Identifier: GPL-2.0-or-later
"""The prepared kernels that the server has at hand."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from elivepatch.build import kernels
from elivepatch.kernel.config import KernelConfig
from elivepatch.protocol.models import KernelEntry
from elivepatch.workshop import Workshop


def list_kernels(workshop: Workshop) -> Sequence[KernelEntry]:
    """The kernels that are prepared in the cache, the most recently used first."""
    found = [
        KernelEntry.model_validate({name: entry[name] for name in KernelEntry.model_fields})
        for entry in kernels.list_kernels(workshop.kernels.store)
    ]
    return sorted(found, key=lambda entry: entry.last_used, reverse=True)


#: Bytes at the beginning of a configuration in which kconfig says of which version it is.
_HEADER_BYTES = 200


def published_with(workshop: Workshop, version: str, config: KernelConfig) -> Sequence[str]:
    """The releases of the published kernels, prepared here, that have that configuration and that version.

    ``version`` is of the kernel's source (``6.12.118``); the heading that kconfig writes into a configuration has it.
    """
    found: set[str] = set()
    for entry in workshop.kernels.store.entries():
        data = kernels.read_entry(entry)
        if data is None:
            continue
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            same = data.image == "published" and data.config_sha256 == config.sha256
            if same and _version(entry.path / "image/config") == version:
                found.add(data.release)
    return sorted(found)


def _version(config: Path) -> str | None:
    """The version in the heading of a configuration."""
    with config.open("rb") as stream:
        head = stream.read(_HEADER_BYTES)
    found = re.search(rb"^# Linux/\S+ (\S+) Kernel Configuration$", head, re.MULTILINE)
    return found[1].decode(errors="replace") if found else None
