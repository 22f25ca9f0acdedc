# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest tests share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from elivepatch.vm.machine import GuestKernel


@dataclass(frozen=True)
class Kit:
    """What a boot test needs beside a livepatch; ``shared`` is the workshop's place for what guests have in common."""

    kernel: GuestKernel
    busybox: Path
    shared: Path
