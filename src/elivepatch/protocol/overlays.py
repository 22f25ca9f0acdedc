# SPDX-License-Identifier: GPL-2.0-or-later
"""What a server says of the overlays that it watches."""

from __future__ import annotations

from pydantic import Field

from elivepatch.protocol.base import Answer
from elivepatch.protocol.models import BuildStatus


class AheadBuild(Answer):
    """What an overlay has for a kernel, as one livepatch that was made before anybody asked."""

    kernel: str
    build_id: str = Field(description="of the kernel")
    overlays: tuple[str, ...] = Field(description="whose entries it has, in this order")
    entries: tuple[str, ...] = Field(description="its entries in their order, as OVERLAY/ID")
    left_out: tuple[str, ...] = Field(default=(), description="entries that it has not: OVERLAY/ID, and the reason")
    build: str | None = Field(default=None, description="id of the build; absent until it is asked for")
    status: BuildStatus | None = Field(default=None, description="state of the build")
    problem: str | None = Field(default=None, description="why it cannot be built, or why its build ended badly")


class WatchedOverlay(Answer):
    """An overlay. ``synced`` is when it was last found good, seconds since the epoch."""

    name: str
    url: str
    branch: str
    commit: str | None = None
    signer: str | None = Field(default=None, description="the key that signed the commit, by its fingerprint")
    synced: float | None = None
    entries: int | None = None
    problem: str | None = Field(default=None, description="why what is new there is not taken")


class WatchedOverlays(Answer):
    """The overlays that the server watches, and what it has built of them."""

    overlays: tuple[WatchedOverlay, ...]
    builds: tuple[AheadBuild, ...]
