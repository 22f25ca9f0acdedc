# SPDX-License-Identifier: GPL-2.0-or-later
"""What the client tells a server about its host."""

from __future__ import annotations

from elivepatch.kernel.running import RunningKernel
from elivepatch.protocol.models import HostFacts


def host_facts(kernel: RunningKernel) -> HostFacts:
    """The facts of this host as the server takes them; what is too long for it is cut."""
    return HostFacts(
        release=kernel.release,
        version=kernel.version[:512] or None,
        build_id=kernel.build_id,
        machine=kernel.machine[:32],
        distribution=kernel.distribution[:64],
        distribution_version=kernel.distribution_version[:64] if kernel.distribution_version else None,
        compiler=kernel.compiler[:256] if kernel.compiler else None,
        taint=kernel.taint,
        livepatches=tuple(patch.name for patch in kernel.livepatches[:256]),
    )
