# SPDX-License-Identifier: GPL-2.0-or-later
"""What was downloaded and can be had again, and what was tried and can be tried again: removing it from the cache."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elivepatch.build.kernels import list_kernels
from elivepatch.build.store import disk_usage
from elivepatch.kernel.release import parse_release
from elivepatch.workshop import Workshop

#: Downloads younger than this (seconds) stay: a kernel that is not there yet may just be made of them.
PACKAGE_REST_SECONDS = 3600.0
#: Days after which a git mirror that nobody brought up to date is removed, and the outcome of a trial.
MIRROR_DAYS, TRIAL_DAYS = 30.0, 90.0
#: Directories of single files, below the cache.
_FILES = ("sources/distfiles", "sources/kernel.org", "debuginfod", "fixes")
_MIRRORS = ("git/git", "sources/git/git", "git")


@dataclass(frozen=True)
class Removed:
    """Something that was removed from the cache; ``size`` is the bytes that this freed."""

    kind: str
    name: str
    size: int


def collect_packages(workshop: Workshop, rest_seconds: float = PACKAGE_REST_SECONDS) -> list[Removed]:
    """Remove downloaded packages that no prepared kernel was made of.

    Those that came less than ``rest_seconds`` ago stay.
    """
    needed = _needed_packages(workshop)
    removed: list[Removed] = []
    directory = workshop.cache / "packages"
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        # the change time says when it came here; the modification time is the server's
        if path.name.startswith(".") or path.name in needed or path.lstat().st_ctime > time.time() - rest_seconds:
            continue
        size = path.lstat().st_blocks * 512
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            removed.append(Removed("package", path.name, size))
    return removed


def _needed_packages(workshop: Workshop) -> set[str]:
    """The files that the prepared kernels were made of, as far as the sources remember."""
    releases = {parse_release(str(one["release"])) for one in list_kernels(workshop.kernels.store)}
    needed: set[str] = set()
    for source in (source for root in workshop.roots.installed() for source in workshop.kernel_sources(root)):
        for release in releases:
            files = source.remembered(release)
            if files is not None:
                needed.update(package.file for package in files.packages())
    return needed


def collect_downloads(workshop: Workshop, rest_seconds: float = PACKAGE_REST_SECONDS) -> list[Removed]:
    """Remove what else was downloaded: archives of sources, images, commits; and git mirrors that nobody uses.

    What came less than ``rest_seconds`` ago stays, and a mirror that was brought up to date within a month: that of
    linux-stable takes an hour.
    """
    now = time.time()
    removed: list[Removed] = []
    for place in _FILES:
        for path in _files_below(workshop.cache / place):
            if path.lstat().st_ctime <= now - rest_seconds:
                removed += _unlink("download", path)
    for place in _MIRRORS:
        for mirror in sorted((workshop.cache / place).glob("*.git")):
            if _last_change(mirror) <= now - MIRROR_DAYS * 86400:
                removed += _remove_mirror(mirror)
    return removed


def collect_trials(workshop: Workshop) -> list[Removed]:
    """Remove old outcomes of trials of fixes, and old indexes of CVE data that were given as an archive."""
    oldest = time.time() - TRIAL_DAYS * 86400
    removed: list[Removed] = []
    for path in _files_below(workshop.cache / "cves"):
        if path.lstat().st_mtime <= oldest:
            removed += _unlink("trial", path)
    return removed


def _files_below(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.rglob("*")) if directory.is_dir() else ():
        # lock files stay: one that is unlinked while another process waits on it would be two locks
        if path.is_file() and not path.is_symlink() and not path.name.startswith(".") and path.suffix != ".lock":
            yield path


def _unlink(kind: str, path: Path) -> list[Removed]:
    size = path.lstat().st_blocks * 512
    try:
        path.unlink()
    except FileNotFoundError:
        return []
    return [Removed(kind, path.name, size)]


def _last_change(mirror: Path) -> float:
    """When something last came into a mirror, in seconds since the epoch."""
    places = (mirror, mirror / "objects/pack", mirror / "refs", mirror / "packed-refs")
    return max((place.stat().st_mtime for place in places if place.exists()), default=0.0)


def _remove_mirror(mirror: Path) -> list[Removed]:
    """Remove a mirror, unless somebody works on it."""
    with mirror.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return []
        size = disk_usage(mirror)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(mirror)
        return [Removed("mirror", mirror.name, size)]
