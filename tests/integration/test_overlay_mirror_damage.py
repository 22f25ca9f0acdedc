# SPDX-License-Identifier: GPL-2.0-or-later
"""Mirrors of overlays on disks that lost something, or have no room: what is said, and that a sync mends it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from elivepatch.errors import DiskFullError, DownloadFailedError, UnavailableError
from elivepatch.git import Git
from elivepatch.overlay.findings import Findings
from elivepatch.overlay.mirror import Mirror, Synced
from overlay_git import repository

pytestmark = pytest.mark.integration


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    (tmp_path / "mirror").mkdir()
    return Mirror(tmp_path / "mirror", repository(tmp_path / "overlay").url)


def sync(mirror: Mirror) -> Synced:
    def write(path: Path, data: bytes) -> None:
        path.write_bytes(data)

    return mirror.sync("team", write, Findings())


def sync_from_nowhere(mirror: Mirror) -> None:
    place = Path(mirror.url.removeprefix("file://"))
    place.rename(place.with_name("away"))
    try:
        sync(mirror)
    finally:
        place.with_name("away").rename(place)


def cut_packs(repository: Path) -> None:
    for pack in repository.glob("objects/pack/*.pack"):
        pack.chmod(0o600)
        os.truncate(pack, 20)


def lose_objects(repository: Path) -> None:
    shutil.rmtree(repository / "objects")


def lose_head(repository: Path) -> None:
    (repository / "HEAD").write_bytes(b"")


@pytest.mark.parametrize("damage", [cut_packs, lose_objects, lose_head])
def test_a_sync_mends_a_mirror_that_is_damaged(mirror: Mirror, damage: Callable[[Path], None]) -> None:
    before = sync(mirror).state.commit
    damage(mirror.repository)
    with pytest.raises(DownloadFailedError):  # what is left stays where nothing else is to be had
        sync_from_nowhere(mirror)
    with pytest.raises(UnavailableError, match="mirror of the overlay team cannot be read") as caught:
        mirror.read("team", Findings())
    assert "overlay sync" in (caught.value.hint or "")
    assert sync(mirror).state.commit == before
    assert mirror.read("team", Findings())[0].entries


def test_a_mirror_that_cannot_be_written(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    (mirror.directory / "lock").mkdir()
    with pytest.raises(UnavailableError, match="cannot be written: Is a directory"):
        sync(mirror)
    (mirror.directory / "lock").rmdir()

    def full(_: Git) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as changed:
        changed.setattr(Git, "init", full)
        with pytest.raises(DiskFullError, match="No space is left in"):
            sync(mirror)
    mirror.repository.write_bytes(b"what git cannot make a repository of")

    def nothing(path: Path, *, ignore_errors: bool) -> None:
        del path, ignore_errors

    monkeypatch.setattr(shutil, "rmtree", nothing)
    with pytest.raises(UnavailableError, match="cannot be written"):
        sync(mirror)
