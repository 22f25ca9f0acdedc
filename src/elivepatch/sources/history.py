# SPDX-License-Identifier: GPL-2.0-or-later
"""What a mirror of a git repository says of its commits and files, read without a work tree."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from elivepatch.errors import SourceRejectedError
from elivepatch.git import OBJECT
from elivepatch.sources.git import GitRepository

_TREE_LINE = re.compile(r"100(?:644|755) blob ([0-9a-f]{40})\t(.+)", re.ASCII | re.DOTALL)
_HEADER = re.compile(rb"([0-9a-f]{40}) (?:(missing)|\w+ (\d+))\n", re.ASCII)
#: Options of diff that the system's configuration could set otherwise: a patch is to be the same everywhere.
_DIFF = (
    *("--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", "--full-index", "--unified=3"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--diff-algorithm=myers", "--no-indent-heuristic"),
)
#: For each commit a byte that begins no name and its id, then the names that it changes; all end with NUL.
_NAMES = ("-z", "--format=%x01%H", "--name-only", "--no-renames")


@dataclass(frozen=True)
class GitHistory:
    """The commits and files of a mirror; they must have been brought before."""

    repository: GitRepository

    def commit_time(self, commit: str) -> float:
        """When a commit was made, in seconds since the epoch."""
        return float(self.repository.query("show", "-s", "--format=%ct", commit, "--").stdout.strip())

    def has(self, commit: str) -> bool:
        """Whether a commit is here."""
        return self.repository.query("cat-file", "-e", f"{commit}^{{commit}}", check=False).returncode == 0

    def blobs(self, commit: str, below: str) -> Iterator[tuple[str, str]]:
        """The regular files below a directory: path and id of the content."""
        listing = self.repository.query("ls-tree", "-r", "-z", "--full-tree", commit, "--", f"{below}/").stdout
        for line in listing.split("\0"):
            if match := _TREE_LINE.fullmatch(line):
                yield match[2], match[1]

    def read_blobs(self, ids: Iterable[str], limit_bytes: int) -> Iterator[tuple[str, bytes]]:
        """The contents by their ids; what is larger than the limit is left out."""
        wanted = dict.fromkeys(ids)
        if not wanted:  # an empty line would be asked for as an object without a name
            return
        with tempfile.NamedTemporaryFile(prefix="elivepatch-blobs.") as scratch:
            words = "\n".join(wanted).encode() + b"\n"
            self.repository.query("cat-file", "--batch", "--buffer", stdin=words, stdout=Path(scratch.name))
            with Path(scratch.name).open("rb") as stream:
                while header := stream.readline():
                    match = _HEADER.fullmatch(header)
                    if match is None:
                        raise SourceRejectedError(f"git says of its objects: {header[:100]!r}")
                    if match[2]:
                        continue
                    size = int(match[3])
                    if size <= limit_bytes:
                        yield match[1].decode(), stream.read(size)
                    else:
                        stream.seek(size, 1)
                    stream.read(1)

    def commits(self, after: str, last: str, files: Sequence[str] = ()) -> list[str]:
        """The commits from ``after`` (excluded) to ``last``, the oldest first; those of ``files`` if any are named."""
        words = ["rev-list", "--reverse", "--topo-order", "--no-merges", f"{after}..{last}"]
        return self.repository.query(*words, "--", *files).stdout.split()

    def introducing(self, after: str, last: str, name: str) -> list[str]:
        """The commits of a range that change how often a name stands in the source, the oldest first."""
        words = ("log", "--format=%H", "--reverse", "--no-merges", "-S", name, f"{after}..{last}", "--", "*.c", "*.h")
        return self.repository.query(*words).stdout.split()

    def files(self, commits: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """The files that commits change, of those that are here."""
        words = ("log", "--no-walk=unsorted", "--ignore-missing", "--stdin", "--root", *_NAMES)
        asked = "".join(f"{commit}\n" for commit in dict.fromkeys(commits) if OBJECT.fullmatch(commit)).encode()
        if not asked:  # that would be the branch
            return {}
        found: dict[str, list[str]] = {}
        names: list[str] = []
        for part in self.repository.query(*words, stdin=asked).stdout.split("\0"):
            text = part.removeprefix("\n")
            if text.startswith("\1") and OBJECT.fullmatch(text[1:]):
                names = found.setdefault(text[1:], [])
            elif text:
                names.append(text)
        return {commit: tuple(names) for commit, names in found.items()}

    def ordered(self, commits: Sequence[str], after: str | None) -> list[str]:
        """Commits, those first that others are built on; without ``after``, a ref before all, by their time."""
        if not commits:
            return []
        if after is None:
            return sorted(commits, key=self.commit_time)
        words = "\n".join([*commits, f"^{after}"]).encode() + b"\n"
        found = self.repository.query("rev-list", "--topo-order", "--reverse", "--stdin", stdin=words).stdout.split()
        given = set(commits)
        return [commit for commit in found if commit in given]

    def change(self, commit: str) -> tuple[str, bytes]:
        """The subject of a commit, and its diff to its parent; the same bytes wherever it is asked for."""
        subject = self.repository.query("show", "-s", "--format=%s", commit, "--").stdout.strip()
        with tempfile.NamedTemporaryFile(prefix="elivepatch-patch.") as scratch:
            words = ("diff-tree", "-r", "-p", "--root", "--no-commit-id", *_DIFF, commit, "--")
            self.repository.query(*words, stdout=Path(scratch.name))
            return subject, Path(scratch.name).read_bytes()
