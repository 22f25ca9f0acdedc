# SPDX-License-Identifier: GPL-2.0-or-later
"""Which vulnerabilities a kernel has: by its version, its vendor, its contents and what its host has loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from elivepatch.cves.index import Index, OpenCve
from elivepatch.cves.reach import Contents, reach
from elivepatch.cves.records import Dyad
from elivepatch.cves.vendor import VendorFixes
from elivepatch.cves.versions import KernelVersion
from elivepatch.protocol.cves import BranchFix, CveEntry, CveScan, CveState

FilesOf = Callable[[OpenCve], Sequence[str]]


def scan(
    index: Index,
    version: KernelVersion,
    *,
    vendor: VendorFixes | None = None,
    contents: Contents | None = None,
    loaded: Collection[str] | None = None,
    closed: Collection[str] = (),
    files_of: FilesOf | None = None,
) -> CveScan:
    """Look a kernel up. Each vulnerability of its version is in the answer, with what is the matter with it.

    Without ``contents`` only version and vendor decide; ``loaded`` are the names of modules, None where nobody knows.
    ``files_of`` gives the files of the branch's own fix, which the record names as they are called in mainline.
    """
    with index.reading() as now:
        return _scan(now, version, vendor or VendorFixes(), contents, loaded, frozenset(closed), files_of)


def _scan(
    index: Index,
    version: KernelVersion,
    vendor: VendorFixes,
    contents: Contents | None,
    loaded: Collection[str] | None,
    closed: Collection[str],
    files_of: FilesOf | None,
) -> CveScan:
    state = index.state()
    newest = index.newest(version)
    have = None if loaded is None else {name.replace("-", "_") for name in loaded}
    entries = [
        _entry(cve, *_judge(cve, index, vendor, contents, have, closed, files_of)) for cve in index.affecting(version)
    ]
    return CveScan(
        data_date=state.date,
        source=state.source,
        version=str(version),
        kernel=contents.kernel.release if contents is not None else None,
        newest_known=str(newest) if newest is not None else None,
        lower_bound=newest is None or version > newest,
        affected=len(entries),
        fixed_in_branch=sum(bool(entry.fix_version) for entry in entries),
        counts=dict(Counter(entry.state for entry in entries)),
        cves=tuple(entries),
        unreadable=tuple(name for name, _ in index.problems()),
    )


def _judge(
    cve: OpenCve,
    index: Index,
    vendor: VendorFixes,
    contents: Contents | None,
    loaded: Collection[str] | None,
    closed: Collection[str],
    files_of: FilesOf | None,
) -> tuple[CveState, str | None, tuple[str, ...]]:
    """The state of a vulnerability, why it is that, and the objects that have its code."""
    if cve.name in closed:
        return "closed", "a livepatch in force fixes it", ()
    if reason := vendor.reason(cve, index):
        return "vendor-fixed", reason, ()
    if contents is None:
        return "affected", None, ()
    found = reach(cve.files, contents)
    # mainline's file may be another one here, or not built here, where the branch's fix is in one that is
    if found.state in {"undecided", "not-built"} and files_of is not None and cve.fixes and (files := files_of(cve)):
        found = reach(files, contents)
    if found.state == "built-in":
        return "affected", found.why, found.parents
    if found.state == "module":
        if loaded is not None and not {name.replace("-", "_") for name in found.parents} & set(loaded):
            return "not-loaded", f"{found.why}; not loaded", found.parents
        return "affected", found.why, found.parents
    return found.state, found.why, found.parents


def _entry(cve: OpenCve, state: CveState, why: str | None, objects: tuple[str, ...]) -> CveEntry:
    last = cve.fixes[-1] if cve.fixes else None
    return CveEntry(
        id=cve.name,
        title=cve.title,
        score=cve.score,
        vector=cve.vector,
        state=state,
        why=why,
        files=cve.files,
        objects=objects,
        fix_version=str(last.fixed) if last else None,
        fix_commit=last.fixed_commit if last else None,
        fixes=tuple(map(_fix, cve.fixes)),
        mainline_fix=_fix(cve.mainline[-1]) if cve.mainline else None,
    )


def _fix(dyad: Dyad) -> BranchFix:
    return BranchFix(version=str(dyad.fixed), commit=dyad.fixed_commit)
