# SPDX-License-Identifier: GPL-2.0-or-later
"""The directory of a build from the command line: removed with the build, or by the next one after a kill."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from elivepatch.server.scratch import scratch

#: Takes a directory, and is killed with it.
KILLED = """
import os, signal, sys
from pathlib import Path
from elivepatch.server.scratch import scratch
with scratch(Path(sys.argv[1])) as place:
    (place / "half").mkdir()
    (place / "half/module.ko").write_bytes(b"x" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("TMPDIR", raising=False)
    return tmp_path / "cache"


def test_what_a_killed_build_left_goes_with_the_next_one(cache: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(cache)], check=False).returncode == -9
    (left,) = (cache / "scratch").iterdir()
    with scratch(cache) as place:
        assert list((cache / "scratch").iterdir()) == [place]
        assert place != left
    assert not list((cache / "scratch").iterdir())


def test_builds_that_live_are_left_alone(cache: Path) -> None:
    # of a build that is just beginning, or of something else
    (cache / "scratch/elivepatch-build-other").mkdir(parents=True)
    with scratch(cache) as first, scratch(cache) as second:
        assert first.is_dir()
        assert second.is_dir()
    assert [path.name for path in (cache / "scratch").iterdir()] == ["elivepatch-build-other"]


def test_where_it_is_named_or_where_it_can_be(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TMPDIR counts; where the cache cannot be used, what needs it says so, and not this."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache.write_bytes(b"")
    with scratch(cache) as place:
        assert place.parent == tmp_path
    cache.unlink()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with scratch(cache) as place:
        assert place.parent == tmp_path
    assert not cache.exists()
