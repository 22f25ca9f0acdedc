# SPDX-License-Identifier: GPL-2.0-or-later
"""Archives that hold what no source tree holds."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from elivepatch.errors import SourceRejectedError
from elivepatch.sources.archives import unpack


@pytest.mark.parametrize(
    "kind", ["up", "link out", "absolute link", "hard link", "pipe", "device", "setuid", "damaged", "empty"]
)
def test_archives_with_what_no_tree_holds(tmp_path: Path, kind: str) -> None:
    top = tmp_path / "linux"
    (top / "d").mkdir(parents=True)
    (top / "d/file").write_text("x\n")
    transform: list[str] = []
    match kind:
        case "up":
            transform = ["-P", "--transform=s,linux/d/file,linux/../../evil,"]
        case "link out":
            (top / "d/link").symlink_to("../../../evil")
        case "absolute link":
            (top / "d/link").symlink_to("/etc/passwd")
        case "hard link":
            (top / "d/link").hardlink_to(top / "d/file")
        case "pipe":
            os.mkfifo(top / "d/pipe")
        case "setuid":
            (top / "d/file").chmod(0o6777)
        case "empty":
            (top / "d/file").unlink()
            (top / "d").rmdir()
        case _:
            pass
    archive = tmp_path / "x.tar.xz"
    subprocess.run(["tar", "-cJf", archive, "-C", tmp_path, *transform, "linux"], check=True)
    if kind == "device":  # written by hand: making one is for root
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:xz") as tar:
            device = tarfile.TarInfo("linux/null")
            device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 3
            tar.addfile(device)
        archive.write_bytes(stream.getvalue())
    if kind == "damaged":
        archive.write_bytes(archive.read_bytes()[:-20])
    target = tmp_path / "a/b/target"
    target.mkdir(parents=True)
    if kind == "setuid":
        unpack(archive, target)
        assert (target / "d/file").stat().st_mode & 0o7777 == 0o755
        return
    with pytest.raises(SourceRejectedError, match="rejected") as caught:
        unpack(archive, target, "the archive")
    assert "the archive" in caught.value.message
    assert not list(tmp_path.rglob("evil"))
