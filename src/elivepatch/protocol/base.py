# SPDX-License-Identifier: GPL-2.0-or-later
"""What all models of the protocol have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Model(BaseModel):
    """Base of all models: immutable, and nothing unknown is taken silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    def dump(self) -> dict[str, Any]:
        """As JSON-ready data, without the fields that do not apply."""
        return self.model_dump(mode="json", exclude_none=True)

    def dump_json(self) -> str:
        """As indented JSON, without the fields that do not apply."""
        return self.model_dump_json(exclude_none=True, indent=2)


class Answer(Model):
    """Base of what a server says: a client takes no offence at fields that a newer server adds.

    Numbers are finite, so that what is passed on as JSON is JSON.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True, allow_inf_nan=False)
