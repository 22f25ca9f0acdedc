# SPDX-License-Identifier: GPL-2.0-or-later
"""Where an overlay that a machine uses comes from, and whose word it takes for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

#: What a machine calls an overlay: also the name of a directory.
OverlayName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class OverlaySettings(BaseModel):
    """An overlay that is mirrored. Where files of keys are named it must be signed by one of these keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(description="where it is: https://, ssh://, git:// or file:///")
    branch: str = Field(default="main", description="a branch, or a full name such as refs/tags/stable")
    keys: Path | None = Field(default=None, description="OpenPGP keys that may sign; checked where set")
    allowed_signers: Path | None = Field(default=None, description="ssh keys that may sign; checked where set")
