# SPDX-License-Identifier: GPL-2.0-or-later
"""The index of a feed: one SQLite file that answers for a kernel in milliseconds.

Which kernels a vulnerability affects is decided from its dyads alone, by this rule. Of a vulnerability's dyads those
count whose fix is a release of the kernel's branch; if there are none, those whose fix is in mainline or missing; if
there are none of these either, all. Where one of the dyads that count has an introduction that the kernel has, and no
fix that it has, the kernel is affected. A kernel has a mainline release if that is not newer than its branch, and a
stable release if that is of its branch and not newer than itself.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import sqlite3
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path

from elivepatch.cves.feed import EntryFiles, Feed
from elivepatch.cves.records import Dyad, FeedFormatError, Vulnerability, parse_dyads, parse_record
from elivepatch.cves.versions import KernelVersion, parse_version
from elivepatch.errors import DiskFullError, NotFoundError, SourceRejectedError, UnavailableError
from elivepatch.progress import Progress

_FORMAT = 1
_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE cve (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, title TEXT NOT NULL, score REAL, vector TEXT,
    stamp TEXT NOT NULL, problem TEXT
);
CREATE TABLE dyad (
    cve INTEGER NOT NULL REFERENCES cve ON DELETE CASCADE, number INTEGER NOT NULL,
    v_version TEXT, v_commit TEXT, v_branch INTEGER NOT NULL, v_step INTEGER NOT NULL, v_mainline INTEGER NOT NULL,
    f_version TEXT, f_commit TEXT, f_branch INTEGER, f_step INTEGER, f_mainline INTEGER NOT NULL,
    PRIMARY KEY (cve, number)
) WITHOUT ROWID;
CREATE INDEX dyad_branch ON dyad (f_branch, cve);
CREATE TABLE file (cve INTEGER NOT NULL REFERENCES cve ON DELETE CASCADE, path TEXT NOT NULL, PRIMARY KEY (cve, path))
WITHOUT ROWID;
"""
_FULL = "No space is left for the index of the kernel's vulnerabilities in {}."
#: Of so many CVEs half do not vanish: the data only grow, but for single ones that are rejected.
_MANY = 100
#: Dyads of the kernel's branch, mainline's for what has none there, all for what has neither; the open ones of these.
_OPEN = """
WITH series (cve) AS (SELECT DISTINCT cve FROM dyad WHERE f_branch = :branch),
other (cve) AS (SELECT DISTINCT cve FROM dyad WHERE f_mainline AND cve NOT IN (SELECT cve FROM series)),
counted AS (
    SELECT * FROM dyad WHERE f_branch = :branch
    UNION ALL SELECT * FROM dyad WHERE f_mainline AND cve IN (SELECT cve FROM other)
    UNION ALL SELECT * FROM dyad WHERE cve NOT IN (SELECT cve FROM series) AND cve NOT IN (SELECT cve FROM other)
)
SELECT cve, number, v_version, v_commit, f_version, f_commit, f_branch = :branch FROM counted
WHERE (CASE WHEN v_mainline THEN v_branch <= :branch ELSE v_branch = :branch AND v_step <= :step END)
AND NOT coalesce(
    CASE WHEN f_mainline THEN f_branch <= :branch ELSE f_branch = :branch AND f_step <= :step END, 0
)
ORDER BY cve, f_step, number
"""


@dataclass(frozen=True)
class OpenCve:
    """A vulnerability that a version of the kernel has.

    ``fixes`` are the dyads whose fixes in the kernel's branch it lacks, in the order of the branch: all of them are
    needed. Where there are none, ``mainline`` has the fixes that nobody has taken to the branch yet. ``endless`` says
    that a part of it has no fix anywhere.
    """

    name: str
    title: str
    score: float | None
    vector: str | None
    files: tuple[str, ...]
    fixes: tuple[Dyad, ...]
    mainline: tuple[Dyad, ...] = ()
    endless: bool = False


@dataclass(frozen=True)
class FeedState:
    """What the index was made from.

    ``date`` is that of the feed's newest entry; ``entries`` counts them, ``unreadable`` those of them that have no form
    that is known.
    """

    source: str
    date: str
    identity: str
    entries: int
    unreadable: int = 0


@dataclass(frozen=True)
class Index:
    """The file. It is replaced as a whole: whoever reads it sees one state of the feed."""

    path: Path
    connection: sqlite3.Connection | None = field(default=None, repr=False, compare=False)

    # -- making

    def update(self, feed: Feed, progress: Progress) -> FeedState:
        """Bring the index to the state of a feed; only entries that changed are read. Gives that state.

        Raises what the feed does, and DiskFullError or UnavailableError if the index cannot be written. An entry that
        cannot be read stays in the index, with what is wrong with it.
        """
        listing = feed.listing(progress)
        with self._aside() as aside, aside._open(write=True) as data:
            known = dict(data.execute("SELECT name, stamp FROM cve"))
            changed = sorted(name for name, stamp in listing.stamps.items() if known.get(name) != stamp)
            gone = sorted(known.keys() - listing.stamps.keys())
            if changed:
                progress.step(f"reading {len(changed)} entries of {feed.source}")
            data.executemany("DELETE FROM cve WHERE name = ?", [(name,) for name in (*gone, *changed)])
            for files in feed.read(listing, changed):
                _insert(data, files, listing.stamps[files.name])
            self._check(data, feed, len(known))
            meta = {"format": str(_FORMAT), "source": feed.source, "date": listing.date, "identity": listing.identity}
            data.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())
        return self.state()

    def _check(self, data: sqlite3.Connection, feed: Feed, before: int) -> None:
        """Raise SourceRejectedError for a feed that has lost what the index has: no CVE must seem to be gone."""
        (readable,) = data.execute("SELECT COUNT(*) FROM cve WHERE problem IS NULL").fetchone()
        (entries,) = data.execute("SELECT COUNT(*) FROM cve").fetchone()
        if entries and not readable:
            name, problem = data.execute("SELECT name, problem FROM cve ORDER BY name LIMIT 1").fetchone()
            raise SourceRejectedError(
                f"Of the {entries} entries of {feed.source} none can be read; of {name}: {problem}",
                hint="Check that it is a feed of CVEs.",
            )
        if before > _MANY and readable < before // 2:
            raise SourceRejectedError(
                f"{feed.source} has {readable} CVEs that can be read; the index has {before}. The index stays.",
                hint=f"If that is meant, remove {self.path.name.removeprefix('.').removesuffix('.new')} from the "
                "directory 'cves' of the server's data, and sync again.",
            )

    @contextlib.contextmanager
    def _aside(self) -> Generator[Index]:
        """A copy that takes the place of the index when the block ends well; one at a time is made."""
        aside = self.path.with_name(f".{self.path.name}.new")
        with contextlib.ExitStack() as stack:
            with self._keeping():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(self.path.with_name(f".{self.path.name}.lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX)
                # a journal that a full disk left behind would be played back into the next copy
                for made in (aside, aside.with_name(f"{aside.name}-journal")):
                    made.unlink(missing_ok=True)
                    stack.callback(made.unlink, missing_ok=True)
                if self._usable():
                    shutil.copyfile(self.path, aside)
            yield Index(aside)
            with self._keeping():
                aside.replace(self.path)

    @contextlib.contextmanager
    def _keeping(self) -> Generator[None]:
        """Tell of a place that cannot be written, and the way out."""
        try:
            yield
        except OSError as error:
            place = self.path.parent
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(_FULL.format(place)) from error
            raise UnavailableError(
                f"The index of the kernel's vulnerabilities cannot be kept in {place}: {error.strerror}.",
                hint="Run it as the user of the server, for whom that directory and its files must be writable.",
            ) from error

    def _usable(self) -> bool:
        """Whether what is there can be built on."""
        try:
            self.state()
        except UnavailableError:
            return False
        return True

    @contextlib.contextmanager
    def reading(self) -> Generator[Index]:
        """The index as it is now, for several questions: what replaces it meanwhile is not seen."""
        with self._open() as data:
            yield replace(self, connection=data)

    @contextlib.contextmanager
    def _open(self, *, write: bool = False) -> Generator[sqlite3.Connection]:
        if self.connection is not None:
            yield self.connection
            return
        if not write and not self.path.exists():
            raise UnavailableError(
                "There is no index of the kernel's vulnerabilities yet.",
                hint="Make it: elivepatch-server cve sync, with the setting 'cve_feed', or name a feed with --feed.",
            )
        place = self.path if write else f"{self.path.resolve().as_uri()}?mode=ro"
        try:
            with contextlib.closing(sqlite3.connect(place, uri=not write)) as data:
                data.execute("PRAGMA foreign_keys = ON")
                if write:
                    self._make_tables(data)
                    data.execute("BEGIN IMMEDIATE")
                yield data
                data.commit()
        except sqlite3.DatabaseError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: sqlite3.DatabaseError) -> UnavailableError | DiskFullError:
        # not the copy, which is gone
        place = self.path.with_name(self.path.name.removeprefix(".").removesuffix(".new"))
        what = "The index of the kernel's vulnerabilities cannot be"
        if error.sqlite_errorname == "SQLITE_FULL":
            return DiskFullError(_FULL.format(place.parent))
        if error.sqlite_errorname.startswith("SQLITE_IOERR_WRITE"):
            hint = f"See to the disk of {place.parent}, and to limits of the size of files; the index stays as it was."
            return UnavailableError(f"{what} written: {error}.", hint=hint)
        if self.path.is_file() and not os.access(self.path, os.R_OK):
            return UnavailableError(f"{what} read: {self.path} belongs to another user.", hint="Run it as that user.")
        return UnavailableError(
            f"{what} used: {error}.", hint=f"Remove {place} and make it again: elivepatch-server cve sync."
        )

    def _make_tables(self, data: sqlite3.Connection) -> None:
        rows: list[tuple[str]] = data.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        tables: set[str] = {row[0] for row in rows}
        held = data.execute("SELECT value FROM meta WHERE name = 'format'").fetchone() if "meta" in tables else None
        if tables and held != (str(_FORMAT),):
            for table in ("dyad", "file", "cve", "meta"):
                data.execute(f"DROP TABLE IF EXISTS {table}")
            tables = set()
        if not tables:
            data.executescript(_TABLES)
            data.execute("INSERT INTO meta VALUES ('format', ?)", (str(_FORMAT),))
            data.commit()

    # -- asking

    def state(self) -> FeedState:
        """What the index was made from. Raises UnavailableError where there is none."""
        with self._open() as data:
            meta: dict[str, str] = dict(data.execute("SELECT name, value FROM meta"))
            (entries,) = data.execute("SELECT count(*) FROM cve").fetchone()
            (unreadable,) = data.execute("SELECT count(*) FROM cve WHERE problem IS NOT NULL").fetchone()
        if "identity" not in meta:
            raise UnavailableError("The index was never filled.", hint="Make it: elivepatch-server cve sync.")
        return FeedState(meta["source"], meta["date"], meta["identity"], entries, unreadable)

    def problems(self) -> list[tuple[str, str]]:
        """The entries that cannot be read, with the reason: whether a kernel has these nobody knows."""
        with self._open() as data:
            return data.execute("SELECT name, problem FROM cve WHERE problem IS NOT NULL ORDER BY name").fetchall()

    def newest(self, version: KernelVersion) -> KernelVersion | None:
        """The newest release of a kernel's branch that the feed knows; what came after is on no list."""
        with self._open() as data:
            row = data.execute(
                "SELECT f_version FROM dyad WHERE f_branch = ? ORDER BY f_step DESC LIMIT 1", (version.branch,)
            ).fetchone()
        return parse_version(row[0]) if row is not None else None

    def affecting(self, version: KernelVersion) -> list[OpenCve]:
        """The vulnerabilities that a version has, by the rule of this module; the oldest first."""
        with self._open() as data:
            rows = data.execute(_OPEN, {"branch": version.branch, "step": version.step}).fetchall()
            lines: dict[int, list[tuple[Dyad, bool]]] = {}
            for cve, _, v_version, v_commit, f_version, f_commit, own in rows:
                dyad = Dyad(_parsed(v_version), v_commit, _parsed(f_version), f_commit)
                lines.setdefault(cve, []).append((dyad, bool(own)))
            data.execute("CREATE TEMP TABLE IF NOT EXISTS wanted (id INTEGER PRIMARY KEY)")
            data.execute("DELETE FROM wanted")
            data.executemany("INSERT INTO wanted VALUES (?)", ((cve,) for cve in lines))
            files: dict[int, list[str]] = {}
            for cve, path in data.execute("SELECT cve, path FROM file WHERE cve IN (SELECT id FROM wanted)"):
                files.setdefault(cve, []).append(path)
            found = data.execute("SELECT id, name, title, score, vector FROM cve WHERE id IN (SELECT id FROM wanted)")
            return sorted(
                (
                    OpenCve(
                        name,
                        title,
                        score,
                        vector,
                        tuple(files.get(cve, ())),
                        fixes=tuple(dyad for dyad, own in lines[cve] if own and dyad.fixed is not None),
                        mainline=tuple(dyad for dyad, own in lines[cve] if not own and dyad.fixed is not None),
                        endless=any(dyad.fixed is None for dyad, _ in lines[cve]),
                    )
                    for cve, name, title, score, vector in found
                ),
                key=lambda each: sort_key(each.name),
            )

    def titled(self, title: str) -> int:
        """How many vulnerabilities have that title: it is the subject of a commit, and some commits share theirs."""
        with self._open() as data:
            (number,) = data.execute("SELECT count(*) FROM cve WHERE title = ?", (title,)).fetchone()
        return int(number)

    def get(self, name: str) -> Vulnerability:
        """One vulnerability. Raises NotFoundError, and UnavailableError where its entry cannot be read."""
        with self._open() as data:
            row = data.execute(
                "SELECT id, name, title, score, vector, problem FROM cve WHERE name = ?", (name,)
            ).fetchone()
            if row is None:
                raise NotFoundError(
                    f"The feed knows no {name[:40]}.",
                    hint="The kernel's own CVEs begin in 2024; older ones are there only as far as they were added.",
                )
            cve, name, title, score, vector, problem = row
            dyads = data.execute(
                "SELECT v_version, v_commit, f_version, f_commit FROM dyad WHERE cve = ? ORDER BY number", (cve,)
            ).fetchall()
            files = data.execute("SELECT path FROM file WHERE cve = ? ORDER BY path", (cve,)).fetchall()
        if problem is not None and not dyads:
            raise UnavailableError(
                f"The entry of {name} in the CVE data cannot be read, so which kernels have it nobody knows: {problem}",
                hint="Bring the data up to date: elivepatch-server cve sync. If that does not help, tell their makers.",
            )
        return Vulnerability(
            name,
            title,
            tuple(Dyad(_parsed(v), v_commit, _parsed(f), f_commit) for v, v_commit, f, f_commit in dyads),
            tuple(path for (path,) in files),
            score,
            vector,
        )


def sort_key(name: str) -> tuple[int, int]:
    """The order of CVE ids: by year, then by number."""
    _, year, number = name.split("-")
    return int(year), int(number)


def _parsed(text: str | None) -> KernelVersion | None:
    return None if text is None else parse_version(text)


def _insert(data: sqlite3.Connection, files: EntryFiles, stamp: str) -> None:
    found, problem = _vulnerability(files)
    cve = data.execute(
        "INSERT INTO cve (name, title, score, vector, stamp, problem) VALUES (?, ?, ?, ?, ?, ?)",
        (found.name, found.title, found.score, found.vector, stamp, problem),
    ).lastrowid
    data.executemany("INSERT INTO file VALUES (?, ?)", [(cve, path) for path in found.files])
    data.executemany(
        "INSERT INTO dyad VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(cve, number, *_vulnerable(dyad), *_fixed(dyad)) for number, dyad in enumerate(found.dyads)],
    )


def _vulnerability(files: EntryFiles) -> tuple[Vulnerability, str | None]:
    """An entry as far as it can be read, and what is wrong with it: without its record, the versions are known."""
    dyads: tuple[Dyad, ...] = ()
    try:
        if files.dyad is None:
            raise FeedFormatError(f"{files.name} has no dyads: which versions have it nobody says.")
        dyads = parse_dyads(files.dyad.decode(errors="replace"), files.name)
        if files.record is None:
            return Vulnerability(files.name, "", dyads), None
        return parse_record(files.record, dyads, files.name), None
    except FeedFormatError as error:
        return Vulnerability(files.name, "", dyads), str(error)


def _vulnerable(dyad: Dyad) -> tuple[object, ...]:
    since = dyad.vulnerable
    if since is None:
        return (None, dyad.vulnerable_commit, 0, 0, 1)
    return (str(since), dyad.vulnerable_commit, since.branch, since.step, int(since.mainline))


def _fixed(dyad: Dyad) -> tuple[object, ...]:
    """A fix that is not there counts as one of mainline, which no kernel has."""
    fixed = dyad.fixed
    if fixed is None:
        return (None, dyad.fixed_commit, None, None, 1)
    return (str(fixed), dyad.fixed_commit, fixed.branch, fixed.step, int(fixed.mainline))
