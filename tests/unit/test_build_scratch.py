# SPDX-License-Identifier: GPL-2.0-or-later
"""The directory of a build from the command line: removed with the build, or by the next one after a kill."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from elivepatch.server.build_command import scratch

#: Takes a directory, and is killed with it.
KILLED = """
import os, signal, sys, tempfile
tempfile.tempdir = sys.argv[1]
from elivepatch.server.build_command import scratch
with scratch() as place:
    (place / "half").mkdir()
    (place / "half/module.ko").write_bytes(b"x" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_a_killed_build_left_goes_with_the_next_one(temporary: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(temporary)], check=False).returncode == -9
    (left,) = temporary.iterdir()
    with scratch() as place:
        assert list(temporary.iterdir()) == [place]
        assert place != left
    assert not list(temporary.iterdir())


def test_builds_that_live_are_left_alone(temporary: Path) -> None:
    (temporary / "elivepatch-build-other").mkdir()  # of a build that is just beginning, or of something else
    with scratch() as first, scratch() as second:
        assert first.is_dir()
        assert second.is_dir()
    assert [path.name for path in temporary.iterdir()] == ["elivepatch-build-other"]
