# SPDX-License-Identifier: GPL-2.0-or-later
"""Where an overlay that a machine uses comes from, and whose word it takes for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from elivepatch.errors import InvalidSettingError

#: An overlay may be local too: where it lies belongs to whoever configures the host.
URL = re.compile(r"(https|ssh|git|file)://[A-Za-z0-9/][A-Za-z0-9._~:/@%+-]{0,500}", re.ASCII)
_BRANCH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,200}", re.ASCII)
#: What a machine calls an overlay: also the name of a directory.
OverlayName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class OverlaySettings(BaseModel):
    """An overlay that is mirrored. Where files of keys are named it must be signed by one of these keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(description="where it is: https://, ssh://, git:// or file:///")
    branch: str = Field(default="main", description="a branch, or a full name such as refs/tags/stable")
    keys: Path | None = Field(default=None, description="OpenPGP keys that may sign; checked where set")
    allowed_signers: Path | None = Field(default=None, description="ssh keys that may sign; checked where set")


def check_place(url: str, ref: str) -> None:
    """Raise InvalidSettingError for what cannot be where an overlay is, or holds a password, which would be told."""
    user, at, _ = url.partition("://")[2].partition("/")[0].rpartition("@")
    if at and (":" in user or not url.startswith("ssh:")):
        raise InvalidSettingError(
            f"'{re.sub('://[^/]*@', '://…@', url[:200])}' holds a name or a password, which would be told to others.",
            hint="Leave it out, and give git a credential helper (/etc/gitconfig), or take ssh:// with a key.",
        )
    if not URL.fullmatch(url):
        raise InvalidSettingError(
            f"'{url[:200]}' is no address of an overlay.", hint="https://, ssh://, git:// or file:///"
        )
    parts = ref.split("/")
    if not _BRANCH.fullmatch(ref) or ".." in ref or any(not part or part.startswith(".") for part in parts):
        raise InvalidSettingError(f"'{ref[:200]}' is no branch.", hint="For instance main, or refs/tags/v1.")
