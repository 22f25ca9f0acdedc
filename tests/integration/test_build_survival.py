# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds that are killed at any moment, and builds on a full disk: the next one ends as if nothing had been."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from build_support import LIVEPATCHES, Builder, mounts, processes_with
from elivepatch.build.prepared import PreparedKernel
from elivepatch.errors import DiskFullError
from elivepatch.kernel.release import Release
from elivepatch.progress import Progress
from elivepatch.protocol.models import BuildStatus
from elivepatch.workshop import Workshop

pytestmark = pytest.mark.integration

PATCH = LIVEPATCHES / "two-files.patch"


class Killed:
    """The real command as a process, killed without a warning; its temporary files are below one directory."""

    def __init__(self, cache: Path, release: str, directory: Path) -> None:
        self.temporary = directory / "temporary"
        self.module = directory / "out.ko"
        self.temporary.mkdir(parents=True)
        program = Path(sys.executable).with_name("elivepatch-server")
        self._argv = [program, "build", "--kernel", release, "--patch", PATCH, "--no-verify", "-o", self.module]
        self._environment = {**os.environ, "ELIVEPATCH_CACHE": str(cache), "TMPDIR": str(self.temporary)}
        self._before = mounts()
        self._log = directory / "log"

    def run(self, seconds: float | None = None) -> int:
        """Run for so many seconds, or to the end; what is left afterwards must be nothing."""
        with self._log.open("wb") as log:
            child = subprocess.Popen(self._argv, env=self._environment, stdout=log, stderr=log, start_new_session=True)
            try:
                status = child.wait(seconds)
            except subprocess.TimeoutExpired:
                child.kill()
                status = child.wait(10)
        deadline = time.monotonic() + 10
        while (left := processes_with([str(self.temporary)])) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left, f"processes outlived the build: {left}"
        assert mounts() == self._before
        if status != -signal.SIGKILL:
            assert status == 0, self._log.read_text()
        return status


def killed_at_moments(killed: Killed, moments: list[float], module: bytes) -> None:
    statuses = [killed.run(moment) for moment in moments]
    assert statuses.count(-signal.SIGKILL) >= len(moments) // 2, "hardly any kill came before the end"
    assert killed.run() == 0
    assert killed.module.read_bytes() == module


@pytest.mark.parametrize("kills", [4, pytest.param(15, marks=pytest.mark.slow)])
def test_kills_while_it_builds(builder: Builder, tmp_path: Path, kills: int) -> None:
    module = builder(PATCH.read_bytes()).module
    killed = Killed(builder.workshop.cache, builder.kernel.release, tmp_path / "killed")
    began = time.monotonic()
    killed.run()
    chance, whole = random.Random(kills), time.monotonic() - began
    killed_at_moments(killed, [chance.uniform(0.1, whole) for _ in range(kills)], module)
    objects = builder.kernel.path / "objects"
    for entry in objects.iterdir():
        if not entry.name.startswith("."):
            assert {"exact.o", "original.o", "parent"} <= {path.name for path in entry.iterdir()}


@pytest.fixture
def scratch_cache(workshop: Workshop, kernel: PreparedKernel, tmp_path: Path) -> Path:
    """A cache in which nothing is prepared, with the downloads and roots of the real one."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("packages", "roots"):
        (cache / name).symlink_to(workshop.cache / name)
    shutil.copytree(workshop.cache / "apt", cache / "apt")
    return cache


@pytest.mark.slow
def test_kills_while_it_prepares(builder: Builder, scratch_cache: Path, tmp_path: Path) -> None:
    module = builder(PATCH.read_bytes()).module
    killed = Killed(scratch_cache, builder.kernel.release, tmp_path / "killed")
    chance = random.Random(15)
    killed_at_moments(killed, [chance.uniform(0.5, 9) for _ in range(15)], module)
    kernels = Workshop(scratch_cache).kernels
    assert len(kernels.store.entries()) == 1
    left = [path for path in scratch_cache.glob("kernels/*/.*") if path.is_dir()]
    assert not left, f"what killed makers left is still there: {left}"


# -- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A file system of a size that `resize` sets."""
    if os.geteuid() != 0:
        pytest.skip("a small file system can be mounted by root only")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "small", disk], check=True)
    yield disk
    deadline = time.monotonic() + 10  # the kernel takes a moment to put away what was killed
    while subprocess.run(["umount", disk], check=time.monotonic() > deadline).returncode != 0:
        time.sleep(0.1)


def resize(disk: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", disk], check=True)


def test_no_room_for_a_build(builder: Builder, small_disk: Path) -> None:
    patch = PATCH.read_bytes()
    module = builder(patch).module
    ends: list[str | None] = []
    for kilobytes in (200, 600, 1200, 2400, 4000, 6000, 9000, 200_000):
        resize(small_disk, kilobytes)
        built = builder(patch, output=small_disk / "output")
        ends.append(built.report.error)
        if built.report.error is None:
            assert built.module == module
        else:
            assert (built.report.status, built.report.exit_status) == (BuildStatus.FAILED, 1), built.told
            assert built.report.error == "disk-full", built.told
            assert built.report.hint
            assert not list((small_disk / "output").glob("*.ko")), "there is a module of a build that failed"
        shutil.rmtree(small_disk / "output")
    assert ends[0] == "disk-full"
    assert ends[-1] is None


def test_no_room_to_prepare(builder: Builder, scratch_cache: Path, small_disk: Path) -> None:
    resize(small_disk, 100_000)
    (scratch_cache / "kernels").symlink_to(small_disk)
    crowded = Builder(Workshop(scratch_cache), builder.kernel, scratch_cache.parent / "crowded")
    for _ in range(2):
        built = crowded(PATCH.read_bytes())
        assert (built.report.status, built.report.exit_status, built.report.error) == (
            BuildStatus.FAILED,
            1,
            "disk-full",
        ), built.told
        assert built.report.hint
        entries = [path for path in small_disk.glob("*/*") if path.is_dir()]
        assert not entries, f"half an entry is there: {entries}"


@pytest.mark.slow
def test_room_again_to_prepare(builder: Builder, scratch_cache: Path, small_disk: Path) -> None:
    resize(small_disk, 1_200_000)
    (scratch_cache / "kernels").symlink_to(small_disk)
    crowded = Builder(Workshop(scratch_cache), builder.kernel, scratch_cache.parent / "crowded")
    assert crowded(PATCH.read_bytes()).report.error == "disk-full"
    resize(small_disk, 4_000_000)
    assert crowded(PATCH.read_bytes()).module == builder(PATCH.read_bytes()).module


def test_no_room_to_download(workshop: Workshop, kernel: PreparedKernel, release: Release, small_disk: Path) -> None:
    (small_disk / "apt").symlink_to(workshop.cache / "apt")
    source = Workshop(small_disk).source(kernel.root)
    files = source.find(release, Progress())
    assert files is not None
    with pytest.raises(DiskFullError):
        source.download(files, Progress())
