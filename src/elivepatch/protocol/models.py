# SPDX-License-Identifier: GPL-2.0-or-later
"""The v2 protocol: what a build request says, and the report that a build ends with.

The same models serve the one-shot build, the job engine and HTTP. In JSON, fields that do not apply are absent
(`dump`), times are seconds unless the name says ms, sizes are bytes, digests are lower-case hex of SHA-256.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from elivepatch.errors import Diagnosis
from elivepatch.protocol.base import Answer, Model, Sha256
from elivepatch.protocol.cves import CvePlan, CveWish

__all__ = ["Answer", "Model", "Sha256"]

#: A kernel release as `uname -r` gives it, or a source reference (``kernel.org:6.12.60``, ``git:URL#REF``, …).
KernelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+~_:/#@%-]{0,299}$")]
#: The build ID of a kernel: the hex digits of its NT_GNU_BUILD_ID note.
BuildId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16,64}$")]


#: How sure a proof is: the image is the host's, or it was built here and is laid out as the host's, or nobody knows.
ProofLevel = Literal["exact", "layout", "none"]
#: The differs: kpatch's for kernels up to 6.18, the kernel's own (objtool klp) from 6.19 on.
EngineName = Literal["kpatch", "klp"]


class BuildStatus(StrEnum):
    """The states of the life of a build; the last four are final."""

    QUEUED = "queued"
    PREPARING = "preparing"
    BUILDING = "building"
    VERIFYING = "verifying"
    SIGNING = "signing"
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen to the build."""
        return self in {BuildStatus.DONE, BuildStatus.REFUSED, BuildStatus.FAILED, BuildStatus.CANCELLED}


class PackageFacts(Model):
    """The package of Gentoo's that a host's kernel is of: with revision, flags, and what of its environment counts."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9+_-]{0,63}$")
    version: str = Field(pattern=r"^[0-9][A-Za-z0-9._-]{0,63}$")
    use: tuple[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9+_@-]{0,63}$")], ...] = Field(
        default=(), max_length=256
    )
    variables: dict[
        Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]{0,63}$")], Annotated[str, Field(max_length=512)]
    ] = Field(default_factory=dict, max_length=16)


class HostFacts(Model):
    """What the client tells about its host, so that the server builds for that kernel and no other."""

    release: str | None = Field(default=None, max_length=128)
    version: str | None = Field(default=None, max_length=512, description="/proc/version")
    build_id: BuildId | None = None
    machine: str | None = Field(default=None, max_length=32)
    distribution: str | None = Field(default=None, max_length=64, description="ID of os-release")
    distribution_version: str | None = Field(default=None, max_length=64, description="VERSION_ID of os-release")
    compiler: str | None = Field(default=None, max_length=256)
    taint: int | None = Field(default=None, ge=0)
    livepatches: tuple[str, ...] = Field(default=(), max_length=256)
    place: str | None = Field(default=None, max_length=1024, description="directory that the kernel was built in")
    package: PackageFacts | None = Field(default=None, description="the kernel's package, on a Gentoo host")
    symbols_sha256: Sha256 | None = Field(default=None, description="digest of the symbol layout of the kernel's text")
    btf_sha256: Sha256 | None = Field(default=None, description="digest of the kernel's types, /sys/kernel/btf/vmlinux")


class BuildRequest(Model):
    """The ``request`` part of POST builds; the files come as parts of their own."""

    kernel: KernelName
    build_id: BuildId | None = Field(default=None, description="of the running kernel; the image must have the same")
    verify: bool = Field(default=True, description="whether the module is tried in a VM")
    proof: ProofLevel = Field(default="layout", description="the weakest proof that is accepted")
    engine: EngineName | None = Field(default=None, description="the differ; without it, the one for the kernel")
    host: HostFacts | None = None
    image: Sha256 | None = Field(default=None, description="digest of the archive with the host's image, sent before")
    cves: CveWish | None = Field(
        default=None, description="instead of a module: which vulnerabilities the kernel has, and which can be closed"
    )


class KernelReport(Answer):
    """The kernel that was built for."""

    release: str
    build_id: str | None = None
    source: str | None = None
    image: str | None = Field(default=None, description="published, debuginfod, uploaded or built: whose image it is")
    config_sha256: str | None = None
    compiler: str | None = None


class EngineReport(Answer):
    """The differ that was used."""

    name: str
    version: str


class ModuleReport(Answer):
    """The module that came out. ``path`` is present only in the report of a one-shot build."""

    name: str
    sha256: Sha256
    size: int
    path: str | None = None


class ChangedFunction(Answer):
    """A function the livepatch replaces (changed) or brings along (new). ``object`` is vmlinux or a module's name."""

    object: str
    function: str
    kind: Literal["changed", "new"]


class ProvenFunction(Answer):
    """One function compared with the kernel's own code; ``masked`` is how many bytes relocations cover."""

    object: str
    function: str
    size: int
    masked: int
    identical: bool


class Proof(Answer):
    """How sure it is that the original is what runs."""

    level: ProofLevel
    functions: tuple[ProvenFunction, ...] = ()
    compared: int | None = Field(default=None, description="functions of the touched objects that were compared")
    absent: int | None = Field(
        default=None, description="functions the kernel does not contain (overridden, discarded)"
    )


class Verification(Answer):
    """What the boot test saw. ``log`` is the end of the guest's kernel log, or all of it."""

    booted: bool
    loaded: bool | None = None
    transition_ms: int | None = None
    check_before: bool | None = Field(default=None, description="whether the check script succeeded before the load")
    check_after: bool | None = None
    reverted: bool | None = None
    check_reverted: bool | None = None
    unloaded: bool | None = None
    accelerator: str | None = None
    not_run: tuple[str, ...] = Field(
        default=(),
        description="modules for which the guest has no device: it was applied to copies of them without their init",
    )
    log: str | None = None


class Timings(Answer):
    """Wall seconds of the parts of a build."""

    prepare: float | None = None
    apply: float | None = None
    compile: float | None = None
    proof: float | None = None
    diff: float | None = None
    link: float | None = None
    verify: float | None = None
    total: float | None = None


class CacheReport(Answer):
    """What did not have to be made: the prepared kernel, and how many of the original objects."""

    kernel: bool
    original_objects: int


class Report(Answer):
    """What a build ends with, whichever way it ends."""

    status: BuildStatus
    key: str
    exit_status: int = Field(default=0, description="the exit status of the one-shot build, see docs/errors.md")
    error: str | None = Field(default=None, description="code of the error, where the build did not end done")
    message: str | None = None
    hint: str | None = None
    engine: EngineReport | None = None
    kernel: KernelReport | None = None
    module: ModuleReport | None = None
    changed: tuple[ChangedFunction, ...] = ()
    proof: Proof | None = None
    diagnosis: tuple[Diagnosis, ...] = ()
    verification: Verification | None = None
    cves: CvePlan | None = Field(default=None, description="what was found of the kernel's vulnerabilities")
    timings: Timings | None = None
    cache: CacheReport | None = None


class Build(Answer):
    """A build as the API shows it. Times are seconds since the epoch."""

    id: str
    key: str
    status: BuildStatus
    kernel: str
    created: float
    started: float | None = None
    finished: float | None = None
    report: Report | None = None


class BuildPage(Answer):
    """A page of builds, newest first; ``next`` is the cursor of the following page."""

    builds: tuple[Build, ...]
    next: str | None = None


class KernelEntry(Answer):
    """A prepared kernel the server has at hand. ``size`` is bytes on disk, ``last_used`` seconds since the epoch."""

    release: str
    build_id: str
    source: str
    size: int
    last_used: float


class Kernels(Answer):
    """The prepared kernels that the server has at hand."""

    kernels: tuple[KernelEntry, ...]


class Health(Answer):
    """Whether the server can build."""

    status: Literal["ok", "degraded"]
    version: str
    queued: int
    running: int
    disk_free: int
    problems: tuple[str, ...] = ()


class Problem(Answer):
    """An error over HTTP (RFC 9457), media type application/problem+json; for ``code`` see docs/errors.md."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    hint: str | None = None
    diagnosis: tuple[Diagnosis, ...] = ()
