# SPDX-License-Identifier: GPL-2.0-or-later
"""What the API wants of a job engine, whoever runs the builds."""

from __future__ import annotations

from typing import Protocol


class JobEngine(Protocol):
    """Runs the builds that the database holds in the state ``queued``, in their order.

    An engine promises: a build that was queued ends in a final state, whatever process dies when; it is done only
    when its module is in the artifact store under the digest of its report; and a restart of the server neither loses
    nor repeats a build that runs.
    """

    def start(self) -> None:
        """Begin to run builds, those of before first."""
        ...

    def stop(self) -> None:
        """Stop starting builds. Those that run go on."""
        ...

    def wake(self) -> None:
        """Tell that there may be something to do: a build was queued, or is to be cancelled."""
        ...

    def problems(self) -> tuple[str, ...]:
        """What keeps builds from being made, for the operator; empty when all is well."""
        ...
