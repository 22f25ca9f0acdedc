# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the vulnerabilities are read from: the kernel's vulns repository, as a directory, an archive or in git.

A feed lists its entries, each with a stamp that changes with its content, and gives the files of those that are asked
for: an index that has the stamps reads what is new and nothing else.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import os
import re
import stat
import tarfile
import time
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from elivepatch.errors import InvalidInputError, UnavailableError
from elivepatch.progress import Progress
from elivepatch.sources.git import GitRepository
from elivepatch.sources.history import GitHistory

#: The published entries: ``cve/published/2026/CVE-2026-46300.dyad``. Rejected ones lie elsewhere.
_ENTRY = re.compile(r"(?:^|/)cve/published/\d{4}/(CVE-\d{4}-\d{4,19})\.(dyad|json)$", re.ASCII)
#: Packed archives by how they begin.
_PACKED = {b"\xfd7zXZ": lzma.open, b"\x1f\x8b": gzip.open, b"BZh": bz2.open}
#: Bytes of one file, and how many entries: ten times what there is.
FILE_BYTES = 4 * 1024 * 1024
_ENTRIES = 500_000
_HINT = (
    "A feed is the vulns repository of kernel.org: a directory with cve/published in it, a tar archive of that, or the "
    "address of a git repository."
)


@dataclass(frozen=True)
class Listing:
    """The entries of a feed: names with stamps. ``date`` is that of its newest entry, ISO 8601 (``2026-08-21``)."""

    date: str
    identity: str
    stamps: Mapping[str, str]


@dataclass(frozen=True)
class EntryFiles:
    """The two files of an entry; None for one that is missing."""

    name: str
    dyad: bytes | None
    record: bytes | None


class Feed(Protocol):
    """Where entries come from."""

    @property
    def source(self) -> str:
        """What it is, for people."""
        ...

    def listing(self, progress: Progress) -> Listing:
        """What there is now. Raises UnavailableError, DownloadFailedError."""
        ...

    def read(self, listing: Listing, names: Iterable[str]) -> Iterator[EntryFiles]:
        """The files of entries that were listed, in any order."""
        ...


def open_feed(place: str, cache: Path) -> Feed:
    """The feed that a setting or a flag names: a path, or the address of a git repository with an optional ``#REF``.

    Raises InvalidInputError for what is neither.
    """
    if re.match(r"(?:https?|git|ssh|file)://", place):
        url, _, ref = place.partition("#")
        return GitFeed(GitRepository(url, cache, local=True), ref or "master")
    path = Path(place)
    if path.is_dir():
        return DirectoryFeed(path)
    if path.is_file():
        return ArchiveFeed(path)
    raise InvalidInputError(f"There is no feed '{place[:200]}'.", hint=_HINT)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _require(stamps: Mapping[str, str], source: str) -> None:
    if not stamps:
        raise UnavailableError(f"{source} holds no published vulnerability.", hint=_HINT)
    if len(stamps) > _ENTRIES:
        raise UnavailableError(f"{source} holds {len(stamps)} vulnerabilities; the limit is {_ENTRIES}.", hint=_HINT)


@dataclass(frozen=True)
class DirectoryFeed:
    """A checkout, or what was unpacked of an archive."""

    path: Path

    @property
    def source(self) -> str:
        """What it is, for people."""
        return str(self.path)

    def listing(self, progress: Progress) -> Listing:
        """What there is now; a stamp is the times and sizes of an entry's files."""
        progress.step(f"reading the names in {self.path}")
        found: dict[str, list[str]] = {}
        newest = 0.0
        top = self.path / "cve/published"
        try:
            years = [entry for entry in os.scandir(top) if entry.is_dir(follow_symlinks=False)]
        except OSError as error:
            raise UnavailableError(f"{top} cannot be read: {error.strerror}.", hint=_HINT) from error
        for year in years:
            for entry in sorted(os.scandir(year.path), key=lambda each: each.name):
                match = _ENTRY.search(f"/cve/published/{year.name}/{entry.name}")
                if match is None or not entry.is_file(follow_symlinks=False):
                    continue
                info = entry.stat(follow_symlinks=False)
                newest = max(newest, info.st_mtime)
                found.setdefault(match[1], []).append(f"{match[2]} {info.st_size} {info.st_mtime_ns}")
        stamps = {name: " ".join(parts) for name, parts in found.items()}
        _require(stamps, self.source)
        text = "\n".join(f"{name} {stamp}" for name, stamp in sorted(stamps.items()))
        return Listing(_date(newest), hashlib.sha256(text.encode()).hexdigest(), stamps)

    def read(self, listing: Listing, names: Iterable[str]) -> Iterator[EntryFiles]:
        """The files of entries."""
        del listing
        for name in names:
            stem = self.path / "cve/published" / name.split("-")[1] / name
            yield EntryFiles(name, _read(stem.with_name(f"{name}.dyad")), _read(stem.with_name(f"{name}.json")))


def _read(path: Path) -> bytes | None:
    try:
        # a pipe that nobody writes to would wait for ever
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as stream:
        return stream.read(FILE_BYTES) if stat.S_ISREG(os.fstat(handle).st_mode) else None


@dataclass(frozen=True)
class ArchiveFeed:
    """A tar archive, packed in any way that Python reads. Nothing is unpacked to the disk."""

    path: Path

    @property
    def source(self) -> str:
        """What it is, for people."""
        return self.path.name

    @property
    def digest(self) -> str:
        """The SHA-256 of the archive."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def listing(self, progress: Progress) -> Listing:
        """What there is now; all entries have the digest of the archive as stamp, so it is read as a whole or not."""
        progress.step(f"reading the names in {self.path}")
        digest = self.digest
        names: set[str] = set()
        newest = 0.0
        with self._open() as archive:
            for member, name, _ in self._members(archive):
                names.add(name)
                newest = max(newest, float(member.mtime))
        stamps = dict.fromkeys(names, digest)
        _require(stamps, self.source)
        return Listing(_date(newest), digest, stamps)

    def read(self, listing: Listing, names: Iterable[str]) -> Iterator[EntryFiles]:
        """The files of entries, in the order of the archive."""
        del listing
        wanted = set(names)
        waiting: dict[str, dict[str, bytes]] = {}
        for name, kind, content in self._files(wanted):
            files = waiting.setdefault(name, {})
            files[kind] = content
            if len(files) == 2:  # dyad and record
                yield EntryFiles(name, files["dyad"], files["json"])
                del waiting[name]
        for name, files in waiting.items():
            yield EntryFiles(name, files.get("dyad"), files.get("json"))

    def _files(self, wanted: set[str]) -> Iterator[tuple[str, str, bytes]]:
        with self._open() as archive:
            for member, name, kind in self._members(archive):
                stream = archive.extractfile(member) if name in wanted else None
                if stream is not None:
                    yield name, kind, stream.read(FILE_BYTES)

    @contextlib.contextmanager
    def _open(self) -> Generator[tarfile.TarFile]:
        # tarfile's own unpacking of a stream takes an archive that was cut off for one that ends there
        with self.path.open("rb") as stream:
            magic = stream.read(6)
        unpack = next((opener for start, opener in _PACKED.items() if magic.startswith(start)), open)
        try:
            with unpack(self.path, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
                yield archive
        except (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError) as error:
            raise UnavailableError(f"The feed {self.path} cannot be read: {error}", hint=_HINT) from error

    def _members(self, archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
        for member in archive:
            match = _ENTRY.search(member.name) if member.isreg() else None
            if match is not None:
                yield member, match[1], match[2]


@dataclass(frozen=True)
class GitFeed:
    """A branch of a repository, read from a mirror without a work tree. Stamps are the ids of blobs."""

    repository: GitRepository
    ref: str

    @property
    def source(self) -> str:
        """What it is, for people."""
        return f"{self.repository.url}#{self.ref}"

    @property
    def _history(self) -> GitHistory:
        return GitHistory(self.repository)

    def listing(self, progress: Progress) -> Listing:
        """What there is now, after asking the repository's server."""
        commit = self.repository.bring(self.ref, progress)
        found: dict[str, dict[str, str]] = {}
        for path, blob in self._history.blobs(commit, "cve/published"):
            if match := _ENTRY.search(path):
                found.setdefault(match[1], {})[match[2]] = blob
        stamps = {name: f"{files.get('dyad', '-')} {files.get('json', '-')}" for name, files in found.items()}
        _require(stamps, self.source)
        return Listing(_date(self._history.commit_time(commit)), commit, stamps)

    def read(self, listing: Listing, names: Iterable[str]) -> Iterator[EntryFiles]:
        """The files of entries that were listed."""
        wanted = {name: listing.stamps[name].split() for name in names}
        ids = [blob for pair in wanted.values() for blob in pair if blob != "-"]
        contents = dict(self._history.read_blobs(ids, FILE_BYTES))
        for name, (dyad, record) in wanted.items():
            yield EntryFiles(name, contents.get(dyad), contents.get(record))
