# SPDX-License-Identifier: GPL-2.0-or-later
"""How a request ended: what the program prints with ``--json``."""

from __future__ import annotations

from typing import Literal

from elivepatch.errors import ServerUnavailableError
from elivepatch.protocol.models import Build, BuildStatus, Model

#: What a build ends with that gave no module (docs/errors.md).
_NO_MODULE = range(1, 7)


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


class ContainedPatch(Model):
    """A patch that the module contains; ``livepatch`` is the earlier livepatch of this host that it came from."""

    name: str
    sha256: str
    livepatch: str | None = None


class DroppedLivepatch(Model):
    """An earlier livepatch that ends with effects of its own.

    ``patches`` are those that the new one does not contain, empty where they are not known; ``functions`` are all that
    it patched.
    """

    name: str
    patches: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()


class SentFile(Model):
    """A file that would be sent. ``size`` is bytes, ``part`` what it is in the request."""

    part: str
    name: str
    size: int
    sha256: str


class DryRunReport(Model):
    """What a request would have done.

    ``load``: whether the module would be loaded; ``prepared``: whether the server has this kernel at hand; ``image``:
    the directory that the kernel's image would be sent from.
    """

    url: str
    load: bool
    prepared: bool
    files: tuple[SentFile, ...] = ()
    image: str | None = None


class Outcome(Model):
    """How a request ended.

    ``status``: loaded; present (the kernel held it already); stored (not to be loaded); dry-run (nothing was done);
    nothing (no overlay has anything for this kernel); refused, failed or cancelled (so the build ended); error (the
    client could not go on). ``taint`` holds the letters that came with the load and that a livepatch does not explain.
    ``transition_seconds`` is seconds; ``forced`` says that the transition was ended by force. ``patches`` are those
    that the module contains, in order; ``replaced`` are the livepatches that it took the place of, ``dropped`` those
    of them whose effects it does not bring along.
    """

    status: Literal["loaded", "present", "stored", "dry-run", "nothing", "refused", "failed", "cancelled", "error"]
    exit_status: int
    kernel: str | None = None
    build: Build | None = None
    module: ModuleOnHost | None = None
    patches: tuple[ContainedPatch, ...] = ()
    replaced: tuple[str, ...] = ()
    dropped: tuple[DroppedLivepatch, ...] = ()
    transition_seconds: float | None = None
    forced: bool | None = None
    taint: str | None = None
    dry_run: DryRunReport | None = None
    error: Failure | None = None
    warnings: tuple[str, ...] = ()


def refusal(build: Build, kernel: str, warnings: tuple[str, ...]) -> Outcome:
    """The outcome of a build that gave no module. Raises ServerUnavailableError where the server does not say why."""
    report = build.report
    if report is None and build.status is not BuildStatus.CANCELLED:
        raise ServerUnavailableError(
            f"The server says that the build {build.id} is {build.status}, and not why.", hint="Look at its log."
        )
    status = {BuildStatus.REFUSED: "refused", BuildStatus.CANCELLED: "cancelled"}.get(build.status, "failed")
    error = Failure(
        code=(report.error if report else None) or status,
        message=(report.message if report else None) or f"The build was {status}.",
        hint=report.hint if report else None,
    )
    return Outcome.model_validate(
        {
            "status": status,
            # of a number that no build ends with the shell would make another one, 0 for instance
            "exit_status": report.exit_status if report and report.exit_status in _NO_MODULE else 1,
            "kernel": kernel,
            "build": build,
            "error": error,
            "warnings": warnings,
        }
    )
