# SPDX-License-Identifier: GPL-2.0-or-later
"""The fixes of a branch as patches: from a mirror of linux-stable, or one by one over HTTP.

With a mirror the order of the branch is known, and what a fix needs before it can be looked up; over HTTP neither is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from elivepatch.cves.versions import KernelVersion
from elivepatch.errors import (
    DownloadFailedError,
    ElivepatchError,
    InvalidInputError,
    NothingToPatchError,
    UnavailableError,
)
from elivepatch.patches.limits import PATCH_BYTES
from elivepatch.patches.series import parse_patch
from elivepatch.process import ProgramError
from elivepatch.progress import Progress
from elivepatch.sources.download import download
from elivepatch.sources.git import GitRepository
from elivepatch.sources.history import GitHistory

_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_DIFF = re.compile(rb"^diff --git ", re.MULTILINE)
_SUBJECT = re.compile(rb"^Subject: (.+(?:\n[ \t].+)*)", re.MULTILINE)
_TAG = re.compile(r"^\[[^]]*\] *")
#: What no kernel is made from: a fix that also changes it is a fix without it.
_BESIDE = ("Documentation/", "tools/", "samples/", "LICENSES/", "scripts/", "MAINTAINERS")
#: What kernel/bpf is made from all the same.
_USED = ("tools/lib/bpf/relo_core.",)
#: Commits of the same files that may lie between a kernel and a fix; more than that is a rewrite.
_BEFORE = 200
#: Downloads in a row after whose failure an address is not asked any more: each of them has tried several times.
_FAILURES = 3


@dataclass(frozen=True)
class Fix:
    """A commit of the branch.

    ``change`` is its diff without what no kernel is made from, ``files`` are those that it touches.
    """

    commit: str
    subject: str
    change: bytes
    files: tuple[str, ...]

    def patch(self, cves: Sequence[str]) -> bytes:
        """The fix as a patch that says what it is, and nothing else: the message of a commit may name other CVEs."""
        head = [f"commit {self.commit}", f"Subject: {self.subject}", *(f"CVE: {cve}" for cve in cves), "", ""]
        return "\n".join(head).encode() + self.change


class FixSource(Protocol):
    """Where the commits of a branch come from."""

    def update(self, progress: Progress) -> None:
        """Ask for what is new. Raises DownloadFailedError."""
        ...

    def get(self, commit: str, progress: Progress) -> Fix:
        """A commit. Raises UnavailableError where it cannot be had, NothingToPatchError where it changes no code."""
        ...

    def order(self, version: KernelVersion, commits: Sequence[str]) -> list[str]:
        """Commits in the order of the branch after a version; those of which nothing is known last, as they came."""
        ...

    def before(self, version: KernelVersion, commit: str, files: Sequence[str]) -> list[str] | None:
        """The commits of some files between a version and a commit, the oldest first; None where nobody knows."""
        ...

    def introducing(self, version: KernelVersion, commit: str, names: Sequence[str]) -> list[str]:
        """The commits between a version and a commit that bring names into the source; none where nobody knows."""
        ...


def open_fixes(git: str | None, http: str | None, cache: Path) -> FixSource:
    """The source that the settings name; the mirror counts first. Raises InvalidInputError where there is none."""
    if git is not None:
        return GitFixes(GitHistory(GitRepository(git, cache, whole=True, local=True)))
    if http is not None:
        return HttpFixes(http, cache / "fixes")
    raise InvalidInputError(
        "No place is configured that fixes come from.",
        hint="Set 'stable_git' to a repository with the stable branches, or 'stable_http' to an address of patches.",
    )


@dataclass(frozen=True)
class GitFixes:
    """A mirror with the history of the stable branches, and their tags (``v6.1.170``)."""

    history: GitHistory

    def update(self, progress: Progress) -> None:
        """Bring the mirror up to date."""
        self.history.repository.bring_all(progress)

    def get(self, commit: str, progress: Progress) -> Fix:
        """A commit of the mirror."""
        del progress
        if not _COMMIT.fullmatch(commit) or not self.history.has(commit):
            raise UnavailableError(
                f"The commit {commit[:40]} is not in the mirror of {self.history.repository.url}.",
                hint="Bring the mirror up to date: elivepatch-server cve sync.",
            )
        return make_fix(commit, *self.history.change(commit))

    def order(self, version: KernelVersion, commits: Sequence[str]) -> list[str]:
        """Commits in the order of the branch."""
        known = [commit for commit in dict.fromkeys(commits) if self.history.has(commit)]
        tag = _tag(version)
        ordered = self.history.ordered(known, tag if self.history.has(tag) else None)
        return [*ordered, *(commit for commit in dict.fromkeys(commits) if commit not in set(ordered))]

    def before(self, version: KernelVersion, commit: str, files: Sequence[str]) -> list[str] | None:
        """The commits of some files between a version and a commit."""
        tag = _tag(version)
        if not self.history.has(tag):
            return None
        try:
            found = self.history.commits(tag, f"{commit}^", files)
        except ProgramError:
            return None
        return found if len(found) <= _BEFORE else None

    def introducing(self, version: KernelVersion, commit: str, names: Sequence[str]) -> list[str]:
        """The commits between a version and a commit that bring names into the source."""
        tag = _tag(version)
        if not names or not self.history.has(tag):
            return []
        try:
            found = {one for name in names for one in self.history.introducing(tag, f"{commit}^", name)}
            return self.history.ordered(sorted(found), tag)
        except ProgramError:  # it took too long
            return []


def _tag(version: KernelVersion) -> str:
    return f"refs/tags/v{version}"


@dataclass(frozen=True)
class HttpFixes:
    """Single commits from an address with ``{commit}`` in it, as cgit gives them (``…/patch/?id={commit}``)."""

    address: str
    cache: Path
    _failures: list[DownloadFailedError] = field(default_factory=list[DownloadFailedError], init=False, compare=False)

    def update(self, progress: Progress) -> None:
        """There is nothing that could be brought up to date: a commit never changes."""

    def get(self, commit: str, progress: Progress) -> Fix:
        """A commit; what was fetched once is kept. An address that fails again and again is left alone."""
        if not _COMMIT.fullmatch(commit):
            raise UnavailableError(f"'{commit[:60]}' is not the id of a commit.")
        target = self.cache / f"{commit}.patch"
        if not target.exists():
            self._download(commit, target, progress)
        data = target.read_bytes()
        if not data.startswith(f"From {commit} ".encode()):
            target.unlink()
            raise UnavailableError(
                f"What came for the commit {commit} is not that commit as a patch.",
                hint="Check the setting 'stable_http': it is an address that gives 'git format-patch' of {commit}.",
            )
        match = _SUBJECT.search(data)
        subject = " ".join(match[1].decode(errors="replace").split()) if match else ""
        return make_fix(commit, _TAG.sub("", subject), data)

    def _download(self, commit: str, target: Path, progress: Progress) -> None:
        if len(self._failures) >= _FAILURES:
            raise DownloadFailedError(
                f"{self.address} was not asked, as it had failed {_FAILURES} times in a row: "
                f"{self._failures[-1].message}",
                hint="Check the setting 'stable_http' and the network, then ask again.",
            )
        try:
            download(
                self.address.replace("{commit}", commit),
                target,
                digests={},
                limit_bytes=PATCH_BYTES,
                progress=progress,
                missing=UnavailableError(f"{self.address} has no commit {commit}."),
            )
        except DownloadFailedError as error:
            self._failures.append(error)
            raise
        except UnavailableError:  # it answers
            self._failures.clear()
            raise
        self._failures.clear()

    def order(self, version: KernelVersion, commits: Sequence[str]) -> list[str]:
        """Commits as they came: there is no history to ask."""
        del version
        return list(dict.fromkeys(commits))

    def before(self, version: KernelVersion, commit: str, files: Sequence[str]) -> list[str] | None:
        """There is no history to ask."""
        del version, commit, files

    def introducing(self, version: KernelVersion, commit: str, names: Sequence[str]) -> list[str]:
        """There is no history to ask."""
        del version, commit, names
        return []


def make_fix(commit: str, subject: str, data: bytes) -> Fix:
    """A fix from the text of a commit.

    Raises NothingToPatchError, InvalidPatchError, and UnavailableError for what is no text that JSON can hold.
    """
    start = _DIFF.search(data)
    if start is None:
        raise NothingToPatchError(f"The commit {commit[:12]} changes no file.")
    patch = parse_patch(commit[:12], data[start.start() :])
    kept = [file for file in patch.files if not file.path.startswith(_BESIDE) or file.path.startswith(_USED)]
    kept = [file for file in kept if not (file.path.startswith("arch/") and not file.path.startswith("arch/x86/"))]
    if not kept:
        raise NothingToPatchError(f"The commit {commit[:12]} changes nothing that a kernel is made from.")
    files = tuple(dict.fromkeys(path for file in kept for path in (file.old_path, file.new_path) if path))
    change = b"".join(file.canonical() for file in kept)
    try:
        change.decode()
    except UnicodeDecodeError as error:
        raise UnavailableError(
            f"The change of the commit {commit[:12]} is not UTF-8 at {error.start}, so no plan can hold it.",
            hint="Save it with 'git format-patch', and ask for it by itself: elivepatch -p.",
        ) from error
    return Fix(commit, subject, change, files)


def why_not(error: ElivepatchError) -> str:
    """An error in one line."""
    return " ".join(error.message.split())[:500]
