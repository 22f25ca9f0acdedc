# SPDX-License-Identifier: GPL-2.0-or-later
"""What client and server say to each other about vulnerabilities: which a kernel has, and what can be done."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from elivepatch.errors import Diagnosis
from elivepatch.protocol.base import Answer, Model, Sha256

CVE_ID = re.compile(r"CVE-[0-9]{4}-[0-9]{4,19}", re.ASCII)
CveId = Annotated[str, StringConstraints(pattern=r"^CVE-[0-9]{4}-[0-9]{4,19}$")]
ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,63}$")]
#: What is the matter with a vulnerability that the version of a kernel has:
#: affected     its code is in the kernel (or nobody looked), and nothing says that it is fixed
#: not-loaded   its code is in modules only, none of which is loaded
#: not-built    nothing of the kernel is made from its files
#: vendor-fixed the distributor, or a patch the kernel was built with, has fixed it
#: closed       a livepatch that is in force fixes it
#: undecided    whether its code is in the kernel cannot be told
CveState = Literal["affected", "not-loaded", "not-built", "vendor-fixed", "closed", "undecided"]
#: What came of a fix: it works; the patch cannot be a livepatch; it cannot be had or does not apply; it was not tried.
FixState = Literal["works", "refused", "unavailable", "not-tried"]


class CveWish(Model):
    """What a host wants to know of its kernel's vulnerabilities.

    ``loaded`` are the modules that the host has loaded (absent: nobody knows), ``closed`` the vulnerabilities that
    livepatches in force fix. ``only`` and ``min_score`` choose those whose fixes are tried; one without a score is
    chosen whatever the least score is.
    """

    loaded: tuple[ModuleName, ...] | None = Field(default=None, max_length=4096)
    closed: tuple[CveId, ...] = Field(default=(), max_length=20_000)
    only: tuple[CveId, ...] = Field(default=(), max_length=20_000)
    min_score: float | None = Field(default=None, ge=0, le=10)
    fixes: bool = Field(default=True, description="whether fixes are fetched and tried")


class BranchFix(Answer):
    """A fix: the release that has it first, and its commit."""

    version: str
    commit: str | None = None


class FixTrial(Answer):
    """What came of the fix of a vulnerability. ``patches`` are digests, in the order in which they apply."""

    state: FixState
    predicted: bool | None = Field(default=None, description="whether the patch looked possible before it was built")
    message: str | None = None
    diagnosis: tuple[Diagnosis, ...] = ()
    needs: tuple[str, ...] = Field(default=(), description="commits of the branch that it needs before it")
    patches: tuple[Sha256, ...] = ()


class CveEntry(Answer):
    """A vulnerability of the kernel's version.

    ``fix_version`` and ``fix_commit`` are the release and the commit of the kernel's own branch that fix it wholly;
    ``fixes`` has all that it takes. Without them there is no fix in the branch yet, ``mainline_fix`` is what there is.
    """

    id: CveId
    title: str = ""
    score: float | None = None
    vector: str | None = None
    state: CveState
    why: str | None = None
    files: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    fix_version: str | None = None
    fix_commit: str | None = None
    fixes: tuple[BranchFix, ...] = ()
    mainline_fix: BranchFix | None = None
    trial: FixTrial | None = None


class CveScan(Answer):
    """The vulnerabilities of a kernel.

    ``affected`` counts those that its version has, ``fixed_in_branch`` those of them that a later release of its branch
    fixes, ``counts`` all by their state. ``lower_bound`` says that the kernel is newer than what the data knows of its
    branch: what was found since is missing.
    """

    data_date: str
    source: str
    version: str
    kernel: str | None = None
    newest_known: str | None = None
    lower_bound: bool = False
    affected: int
    fixed_in_branch: int
    counts: dict[str, int]
    cves: tuple[CveEntry, ...]
    unreadable: tuple[str, ...] = Field(default=(), description="entries of the feed that could not be read")


class PlannedPatch(Answer):
    """A patch of the plan, in the order of the series; ``text`` is its content."""

    name: str
    sha256: Sha256
    commit: str
    subject: str = ""
    text: str
    cves: tuple[CveId, ...] = ()


class CvePlan(Answer):
    """What can be done about the vulnerabilities of a kernel: the scan with its trials, and the patches that work."""

    scan: CveScan
    patches: tuple[PlannedPatch, ...] = ()
    problem: str | None = Field(default=None, description="why fixes were not tried, or not together")
    incomplete: bool = Field(
        default=False,
        description="something could not be tried for a reason that passes: asked again, it is tried again",
    )


class CveSpan(Answer):
    """From where to where a branch has a vulnerability; without ``fixed`` there is no fix in that branch."""

    since: str | None = None
    since_commit: str | None = None
    fixed: str | None = None
    fixed_commit: str | None = None


class CveDetails(Answer):
    """What the data says of one vulnerability."""

    id: CveId
    title: str
    score: float | None = None
    vector: str | None = None
    files: tuple[str, ...] = ()
    spans: tuple[CveSpan, ...]
    data_date: str
