# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel has beyond its upstream version: patches of its distributor, of Gentoo's sets, of its own builders.

Two kinds of evidence count. A patch that names the commit it was made from (as backports to stable branches do) has
that commit's fix. And Debian's changelog (Debian policy, 4.4) names its own patches by their subjects, and the CVEs
that they fix: only these items count, those of an upstream update are in the version anyhow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from elivepatch.cves.index import Index, OpenCve

_ENTRY = re.compile(r"\S+ \(([^)\s]+)\) [^;]+;", re.ASCII)
_CVE = re.compile(r"CVE-\d{4}-\d{4,19}", re.ASCII)
#: What Debian adds to the subject of a commit: architectures before it, CVEs and bugs behind it.
_BEFORE = re.compile(r"^(?:\[[^]]{1,80}\] )+")
_BEHIND = re.compile(r"\s*\((?:CVE-[^)]*|Closes:[^)]*)\)\.?$")
_REVERT = re.compile(r'^Revert "(.+)"$')
_UPSTREAM = re.compile(
    r"^(?:commit ([0-9a-f]{40}) upstream|\[ ?Upstream commit ([0-9a-f]{40}) ?\]|"
    r"\(cherry picked from commit ([0-9a-f]{40})\)|From ([0-9a-f]{40}) |commit ([0-9a-f]{40})$)",
    re.ASCII | re.MULTILINE | re.IGNORECASE,
)
_TAKES_BACK = re.compile(r'^(?:Subject: )?(?:\[[^]]*\] )*(?:Revert "|Reapply "|This reverts commit )', re.MULTILINE)
#: Where the message of a patch ends.
_CHANGE = re.compile(r"^(?:diff |--- \S|Index: )", re.MULTILINE)


@dataclass(frozen=True)
class VendorFixes:
    """What a kernel has beyond its version.

    ``commits`` are ids of commits that its patches were made from, each with the patch's name. ``subjects`` and
    ``cves`` come from a changelog, each with the version of the package that brought it.
    """

    commits: Mapping[str, str] = field(default_factory=dict[str, str])
    subjects: Mapping[str, str] = field(default_factory=dict[str, str])
    cves: Mapping[str, str] = field(default_factory=dict[str, str])

    def reason(self, cve: OpenCve, index: Index) -> str | None:
        """Why a kernel does not have a vulnerability that its version has; None where nothing says so."""
        if version := self.cves.get(cve.name):
            return f"the changelog names it as fixed in {version}"
        if cve.endless:  # a part of it nobody has fixed
            return None
        one_fix = len(cve.fixes or cve.mainline) <= 1
        if one_fix and (version := self.subjects.get(_plain(cve.title))) and index.titled(cve.title) == 1:
            return f"the changelog names its fix in {version}"
        if not self.commits:
            return None
        dyads = index.get(cve.name).dyads
        mainline = {one.fixed_commit for one in dyads if one.fixed is not None and one.fixed.mainline}
        own = {one.fixed_commit for one in cve.fixes}
        # where the branch needs more fixes than mainline, the patch of one of them names mainline's only commit
        for needed in (own, mainline) if len(mainline) >= len(own) else (own,):
            known = {commit for commit in needed if commit}
            if known and known == needed and known <= self.commits.keys():
                return f"fixed by {', '.join(sorted({self.commits[commit] for commit in known}))}"
        return None


def named_commits(patches: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    """The commits that patches say they were made from, with the names of the patches."""
    found: dict[str, str] = {}
    for name, data in patches:
        text = data.decode(errors="replace")
        change = _CHANGE.search(text)
        head = text[: change.start()] if change else text
        commits = [next(group for group in match.groups() if group).lower() for match in _UPSTREAM.finditer(head)]
        if _TAKES_BACK.search(head):  # in order: what a later patch takes back is not there any more
            for commit in [*commits, *re.findall(r"\b[0-9a-f]{40}\b", head)]:
                found.pop(commit, None)
            continue
        for commit in commits:
            found.setdefault(commit, name)
    return found


def read_changelog(text: str) -> VendorFixes:
    """Read a Debian changelog, the newest entry first. A fix that a later entry takes back does not count."""
    subjects: dict[str, str] = {}
    cves: dict[str, str] = {}
    reverted: set[str] = set()
    for version, items in _entries(text):
        for item in items:
            subject = _plain(item)
            if match := _REVERT.match(subject):
                reverted.add(match[1])
                continue
            if subject in reverted:
                continue
            subjects.setdefault(subject, version)
            for cve in _CVE.findall(item):
                cves.setdefault(cve, version)
    return VendorFixes(subjects=subjects, cves=cves)


def _plain(item: str) -> str:
    """The subject of a commit, without what a changelog adds."""
    text = _BEFORE.sub("", " ".join(item.split()))
    while (shorter := _BEHIND.sub("", text)) != text:
        text = shorter
    return text


def _entries(text: str) -> Iterable[tuple[str, list[str]]]:
    """The entries: the version of each, and its items without those that are below another (of an update)."""
    version: str | None = None
    items: list[str] = []
    below = False
    for line in text.splitlines():
        if match := _ENTRY.match(line):
            if version is not None:
                yield version, items
            version, items, below = match[1], [], False
        elif line.startswith("  * "):
            items.append(line[4:])
            below = False
        elif line.startswith("    - "):
            below = True
        elif line.startswith("    ") and items and not below:
            items[-1] += f" {line.strip()}"
        elif not line.strip():
            below = True  # what follows without a mark belongs to nothing
    if version is not None:
        yield version, items
