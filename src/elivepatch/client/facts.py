# SPDX-License-Identifier: GPL-2.0-or-later
"""What the client tells a server about its host."""

from __future__ import annotations

import re

from elivepatch.errors import InvalidInputError
from elivepatch.kernel.running import RunningKernel
from elivepatch.protocol.models import HostFacts

#: A source reference: its kind, and what of it. Which kinds there are the server knows.
_SOURCE = re.compile(r"[a-z][a-z0-9._-]*:\S+")


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


def check_source(text: str) -> None:
    """Check that this can be the reference of a kernel's source. Raises InvalidInputError."""
    if not _SOURCE.fullmatch(text):
        raise InvalidInputError(
            f"{text!r} does not name the source of a kernel.",
            hint="--kernel (kernel_source) is a kind and what of it: kernel.org:6.12.60, git:URL#REF, dir:PATH. "
            "For the kernel of another host name its release with -a.",
        )
