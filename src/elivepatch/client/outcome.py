# SPDX-License-Identifier: GPL-2.0-or-later
"""How a request ended: what the program prints with ``--json``."""

from __future__ import annotations

from typing import Literal

from elivepatch.protocol.models import Build, Model


class Failure(Model):
    """Why it did not go on; ``code`` is in docs/errors.md."""

    code: str
    message: str
    hint: str | None = None


class ModuleOnHost(Model):
    """The module as it lies on this host. ``size`` is bytes; ``stored`` and ``output`` are files."""

    name: str
    sha256: str
    size: int
    stored: str | None = None
    output: str | None = None


class Outcome(Model):
    """How a request ended.

    ``status``: loaded; present (the kernel held it already); stored (not to be loaded); refused, failed or cancelled
    (so the build ended); error (the client could not go on). ``taint`` holds the letters that came with the load and
    that a livepatch does not explain. ``transition_seconds`` is seconds.
    """

    status: Literal["loaded", "present", "stored", "refused", "failed", "cancelled", "error"]
    exit_status: int
    kernel: str | None = None
    build: Build | None = None
    module: ModuleOnHost | None = None
    transition_seconds: float | None = None
    taint: str | None = None
    error: Failure | None = None
    warnings: tuple[str, ...] = ()
