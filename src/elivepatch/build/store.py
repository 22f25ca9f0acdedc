# SPDX-License-Identifier: GPL-2.0-or-later
"""A store of directories by key: made once, shared, bounded in size.

An entry is built aside and renamed into place when it is whole, so a kill at any moment leaves an entry or nothing.
Locks are kept by the kernel (flock) and end with their process: shared while an entry is used, exclusive while it is
made or removed. Entries used least recently are removed first, and never while in use.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: How deep `remove_tree` goes before it moves things up; deeper than what kernels and packages hold.
_DEPTH = 40


@dataclass(frozen=True)
class Entry:
    """An entry of a store. ``size`` is bytes on disk, ``last_used`` seconds since the epoch."""

    key: str
    path: Path
    size: int
    last_used: float


class Store:
    """The entries of one kind, below one directory."""

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes

    @contextmanager
    def use(self, key: str, make: Callable[[Path], None]) -> Generator[tuple[Path, bool]]:
        """The entry of that key, held while the block runs; ``make`` fills the directory it is given if there is none.

        Gives the path, and whether the entry was there already. Callers that ask at once for one that is missing wait
        for the first of them to make it.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / key
        with self._lock_file(key) as lock:
            was_there = True
            while True:
                fcntl.flock(lock, fcntl.LOCK_SH)
                if path.is_dir():
                    break
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.is_dir():
                    was_there = False
                    self._make(key, make)
            self._touch(key)
            if not was_there:
                self.collect()
            yield path, was_there

    def paths(self) -> list[Path]:
        """Where the entries are. Cheap: nothing is measured; one may go at any moment."""
        if not self._directory.is_dir():
            return []
        return sorted(path for path in self._directory.iterdir() if path.is_dir() and not path.name.startswith("."))

    def entries(self) -> list[Entry]:
        """What is there, the least recently used first."""
        found: list[Entry] = []
        for path in self.paths():
            stamp = self._stamp(path.name)
            used = stamp.stat().st_mtime if stamp.exists() else path.stat().st_mtime
            found.append(Entry(path.name, path, disk_usage(path), used))
        return sorted(found, key=lambda entry: entry.last_used)

    def collect(self, limit_bytes: int | None = None) -> list[Entry]:
        """Remove entries until the store is within its limit; gives those that were removed."""
        limit = self._limit_bytes if limit_bytes is None else limit_bytes
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        removed: list[Entry] = []
        for entry in entries:
            if total <= limit:
                break
            if self.remove(entry.key):
                total -= entry.size
                removed.append(entry)
        return removed

    def remove(self, key: str) -> bool:
        """Remove an entry; False where it is in use or not there."""
        path = self._directory / key
        with self._lock_file(key) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if not path.is_dir():
                return False
            trash = Path(tempfile.mkdtemp(prefix=f".{key}.trash.", dir=self._directory))
            path.rename(trash / "entry")
            remove_tree(trash)
            self._stamp(key).unlink(missing_ok=True)
            return True

    def sweep(self) -> int:
        """Remove what makers and removers that were killed left behind; gives the bytes that this freed."""
        freed = 0
        for left in self._directory.glob(".*.*.*") if self._directory.is_dir() else ():
            if left.is_dir():
                with self._lock_file(left.name.split(".")[1]) as lock:
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        continue  # its maker lives
                    freed += disk_usage(left)
                    remove_tree(left)
        return freed

    def _make(self, key: str, make: Callable[[Path], None]) -> None:
        for left in self._directory.glob(f".{key}.*.*"):  # of a maker that was killed: we hold its lock
            if left.is_dir():
                remove_tree(left)
        work = Path(tempfile.mkdtemp(prefix=f".{key}.part.", dir=self._directory))
        work.chmod(0o755)
        try:
            make(work)
            work.rename(self._directory / key)
        except BaseException:
            remove_tree(work)
            raise

    @contextmanager
    def _lock_file(self, key: str) -> Generator[int]:
        # never removed: a lock file that is unlinked while another process waits on it would be two locks
        fd = os.open(self._directory / f".{key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield fd
        finally:
            os.close(fd)

    def _stamp(self, key: str) -> Path:
        return self._directory / f".{key}.used"

    def _touch(self, key: str) -> None:
        with contextlib.suppress(OSError):  # a full disk must not stop a build that needs no more of it
            self._stamp(key).touch()
            now = time.time()
            os.utime(self._stamp(key), (now, now))


@contextmanager
def made_aside(kept: Path) -> Generator[Path]:
    """A directory to fill, which becomes ``kept`` when the block ends well; if another process was first, its stays."""
    aside = Path(tempfile.mkdtemp(prefix=f".{kept.name}.", dir=kept.parent))
    try:
        aside.chmod(0o755)
        yield aside
        try:
            aside.rename(kept)
        except OSError:
            if not kept.is_dir():
                raise
    finally:
        remove_tree(aside)


def disk_usage(path: Path) -> int:
    """Bytes that a directory takes on disk."""
    total = 0
    for base, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                facts = (Path(base) / name).lstat()
                total += facts.st_blocks * 512 // facts.st_nlink  # trees share the files in which they are alike
    return total


def remove_tree(path: Path) -> None:
    """Remove a directory, whatever a hostile program or overlayfs left in it; what cannot be removed stays.

    Directories may lack every permission, and be nested deeper than a path, a call stack or open files can reach. So
    what lies deep is moved to the top first, and no path gets too long.
    """
    token = secrets.token_hex(8)  # a name that nothing in there has
    emptied: list[Path] = []
    todo = [] if path.is_symlink() else [(path, 0)]
    while todo:
        directory, depth = todo.pop()
        emptied.append(directory)
        with contextlib.suppress(OSError):
            directory.chmod(0o700)
            for entry in list(os.scandir(directory)):
                with contextlib.suppress(OSError):
                    inside = Path(entry.path)
                    if not entry.is_dir(follow_symlinks=False):
                        inside.unlink()
                    elif depth < _DEPTH:
                        todo.append((inside, depth + 1))
                    else:
                        inside.chmod(0o700)
                        inside = inside.rename(path / f".{token}-{len(emptied)}-{len(todo)}")
                        todo.append((inside, 1))
    for directory in reversed(emptied):  # what lies in a directory was found after it
        with contextlib.suppress(OSError):
            directory.rmdir()
