# SPDX-License-Identifier: GPL-2.0-or-later
"""Directories of commands that compile: beside the caches, removed in the end, or by the next command after a kill."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Generator
from pathlib import Path

from elivepatch.build.store import remove_tree

#: The name of a directory begins so; the lock in it says that its command lives.
_PREFIX, _LOCK = "elivepatch-build-", ".lock"


@contextlib.contextmanager
def scratch(cache: Path) -> Generator[Path]:
    """A directory for one build, removed in the end. What builds that were killed have left behind goes first.

    It lies in the cache, as the layers do that a build is put over: the temporary directory may be on a file system
    that overlayfs cannot write to (of a container, or in memory with an older kernel), or be a small one in memory.
    TMPDIR, where it is set, is taken all the same, and the temporary directory where the cache cannot be used: what is
    wrong with the cache is told by what needs it.
    """
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=_above(cache)) as name:
        place = Path(name)
        place.chmod(0o755)
        unlocked = place / f"{_LOCK}.new"
        with unlocked.open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            unlocked.rename(place / _LOCK)  # so that nobody finds it unlocked
            yield place


def _above(cache: Path) -> Path:
    above = Path(tempfile.gettempdir())
    if not os.environ.get("TMPDIR"):
        with contextlib.suppress(OSError):
            inside = cache / "scratch"
            inside.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=inside):
                above = inside
    _remove_left(above)
    return above


def _remove_left(above: Path) -> None:
    for left in above.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if left.lstat().st_uid != os.geteuid():
                continue  # whatever others have put there
            with (left / _LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held as long as its build lives
                remove_tree(left)
