# SPDX-License-Identifier: GPL-2.0-or-later
"""The one error tree.

Each class is a kind of failure with a stable ``code`` (it goes over HTTP and into reports), an exit status (the
contract of the command line) and an HTTP status. The docstring of a class is its default message; ``hint`` tells the
person what to do. Whatever is raised outside this tree is a bug of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

DOCUMENTATION = "docs/errors.md"


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """One finding about an input: which rule, where, why, and what to do about it.

    ``file`` is relative to the kernel tree, ``line`` counts from 1 in the patched file unless the message says
    otherwise. ``rule`` is stable and documented in docs/errors.md.
    """

    rule: str
    message: str
    severity: Literal["error", "warning", "note"] = "error"
    file: str | None = None
    line: int | None = None
    function: str | None = None
    hint: str | None = None
    doc: str | None = None


class ElivepatchError(Exception):
    """Something failed inside elivepatch."""

    code: ClassVar[str] = "internal-error"
    exit_status: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    default_hint: ClassVar[str | None] = None

    def __init__(
        self, message: str | None = None, *, hint: str | None = None, diagnosis: Sequence[Diagnosis] = ()
    ) -> None:
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.hint = hint or self.default_hint
        self.diagnosis = tuple(diagnosis)
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message

    def as_diagnosis(self) -> tuple[Diagnosis, ...]:
        """What to put in a report: the findings carried along, or else the error itself as one."""
        if self.diagnosis:
            return self.diagnosis
        return (Diagnosis(rule=self.code, message=self.message, hint=self.hint),)


class InternalError(ElivepatchError):
    """A bug of elivepatch."""

    default_hint = "This is not the patch's fault. Please report it with the log of the build."


class ToolCrashedError(InternalError):
    """A program we rely on crashed."""

    code = "tool-crashed"


class ProgramFailedError(InternalError):
    """A program failed where none may fail."""

    code = "program-failed"


class ResourceExhaustedError(ElivepatchError):
    """The machine ran out of something the build needs."""

    code = "resource-exhausted"
    http_status = 507


class DiskFullError(ResourceExhaustedError):
    """No space is left on the device."""

    code = "disk-full"
    default_hint = "Free some space, or lower the limits of the caches with 'elivepatch-server gc'; nothing was lost."


class CancelledError(ElivepatchError):
    """The build was cancelled."""

    code = "cancelled"
    http_status = 409


# -- exit status 2: the input is not what it should be


class InvalidInputError(ElivepatchError):
    """The input is not what it should be."""

    code = "invalid-input"
    exit_status = 2
    http_status = 422


class InvalidPatchError(InvalidInputError):
    """This is not a patch that can be used."""

    code = "invalid-patch"


class InputTooLargeError(InvalidInputError):
    """The input is larger than the limit."""

    code = "input-too-large"
    http_status = 413


class InvalidSettingError(InvalidInputError):
    """A setting has a value that cannot be used."""

    code = "invalid-setting"


class NotFoundError(InvalidInputError):
    """There is no such thing here."""

    code = "not-found"
    http_status = 404


# -- exit status 3: the patch cannot be a livepatch of this kernel


class RefusedError(ElivepatchError):
    """The patch cannot be a livepatch of this kernel."""

    code = "refused"
    exit_status = 3
    http_status = 422


class DoesNotApplyError(RefusedError):
    """The patch does not apply to the source of this kernel."""

    code = "does-not-apply"


class DoesNotCompileError(RefusedError):
    """The patched source does not compile."""

    code = "does-not-compile"


class NothingToPatchError(RefusedError):
    """The patch touches nothing that this kernel contains."""

    code = "nothing-to-patch"


class NoChangeError(RefusedError):
    """The patch changes nothing that runs."""

    code = "no-functional-change"


class CannotLivepatchError(RefusedError):
    """The change cannot be made while the kernel runs."""

    code = "cannot-livepatch"


class SandboxViolationError(RefusedError):
    """Building the patched source overstepped a limit of the sandbox."""

    code = "sandbox-limit"


# -- exit status 4: it does not fit the kernel


class DoesNotFitError(ElivepatchError):
    """What was built does not fit the kernel."""

    code = "does-not-fit"
    exit_status = 4
    http_status = 409


class ProofFailedError(DoesNotFitError):
    """The original code differs from the code of the running kernel."""

    code = "proof-failed"


class ConfigurationMismatchError(DoesNotFitError):
    """The configuration is not that of this kernel."""

    code = "configuration-mismatch"


class CompilerMismatchError(DoesNotFitError):
    """The compiler is not the one that built this kernel."""

    code = "compiler-mismatch"


class BuildIdMismatchError(DoesNotFitError):
    """The host runs another build of this kernel than the one that was found."""

    code = "build-id-mismatch"


# -- exit status 5: the boot test


class BootTestFailedError(ElivepatchError):
    """The livepatch failed its boot test."""

    code = "boot-test-failed"
    exit_status = 5
    http_status = 422


# -- exit status 6: something that is needed is not there


class UnavailableError(ElivepatchError):
    """Something that the build needs is not available."""

    code = "unavailable"
    exit_status = 6
    http_status = 503


class KernelUnavailableError(UnavailableError):
    """No source offers this kernel."""

    code = "kernel-unavailable"
    http_status = 404


class DownloadFailedError(UnavailableError):
    """A download failed."""

    code = "download-failed"
    default_hint = "Try again: what was already downloaded is kept. If it fails again, check the apt configuration."


class SourceRejectedError(UnavailableError):
    """What was downloaded is not what its signed list, its signature or its manifest says."""

    code = "source-rejected"
    http_status = 502
    default_hint = "Nothing of it was used. Try another mirror; if it stays so, tell whoever runs this one."


class ToolUnavailableError(UnavailableError):
    """A program that is needed is not installed."""

    code = "tool-unavailable"


class SandboxUnavailableError(UnavailableError):
    """This machine does not let programs run in a sandbox."""

    code = "sandbox-unavailable"


class ServerUnavailableError(UnavailableError):
    """The build server cannot be reached."""

    code = "server-unavailable"


# -- over HTTP


class BadRequestError(InvalidInputError):
    """This is not a request that can be read."""

    code = "bad-request"
    http_status = 400


class MethodNotAllowedError(InvalidInputError):
    """This address does not take that method."""

    code = "method-not-allowed"
    http_status = 405


class UploadTimeoutError(InvalidInputError):
    """The request took too long to arrive."""

    code = "upload-timeout"
    http_status = 408


class UnsupportedMediaTypeError(InvalidInputError):
    """The request is not of the media type that is asked for here."""

    code = "unsupported-media-type"
    http_status = 415


class NotOfferedError(InvalidInputError):
    """This server does not offer that yet."""

    code = "not-offered"


class NotFinishedError(InvalidInputError):
    """The build has not come that far, or ended without it."""

    code = "not-finished"
    http_status = 409


class AlreadyFinishedError(InvalidInputError):
    """The build has already ended."""

    code = "already-finished"
    http_status = 409


class BusyError(UnavailableError):
    """The server has as much to do as it takes on."""

    code = "busy"
    default_hint = "Try again in a minute."


# -- on the host


class HostError(ElivepatchError):
    """The livepatch was not loaded."""

    code = "not-loaded"
    exit_status = 4


class ModuleRejectedError(HostError):
    """The module is not what the server said, or not for this kernel."""

    code = "module-rejected"


class UnfinishedError(HostError):
    """What was begun did not come to its end: the kernel still holds something of the livepatch."""

    code = "left-unfinished"


class TransitionTimeoutError(HostError):
    """The transition did not finish in time and was undone."""

    code = "transition-timeout"


def error_classes() -> list[type[ElivepatchError]]:
    """Every class of the tree, the root first; the documentation is checked against it."""
    found: list[type[ElivepatchError]] = []
    todo: list[type[ElivepatchError]] = [ElivepatchError]
    while todo:
        cls = todo.pop(0)
        found.append(cls)
        todo.extend(cls.__subclasses__())
    return found
