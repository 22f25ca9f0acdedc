# SPDX-License-Identifier: GPL-2.0-or-later
"""Build roots that cannot be made: what a person is told, with a stand-in for mmdebstrap."""

from __future__ import annotations

from pathlib import Path

import pytest

import elivepatch.process
from elivepatch.errors import DownloadFailedError, ToolUnavailableError, UnavailableError
from elivepatch.progress import Progress
from elivepatch.toolchains.roots import Roots

NO_MODE = "E: unable to pick chroot mode automatically (use --mode for manual selection)"
NO_NETWORK = "E: apt-get update --error-on=any failed: process exited with 100"


@pytest.mark.parametrize(
    ("said", "kind", "hint", "other"),
    [
        (NO_MODE, ToolUnavailableError, "--add-subuids 10000000-10065535", "ELIVEPATCH_MIRROR"),
        (NO_NETWORK, DownloadFailedError, "ELIVEPATCH_MIRROR", "subuid"),
    ],
)
def test_a_root_that_cannot_be_made_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, kind: type[UnavailableError], hint: str, other: str
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    program = programs / "mmdebstrap"
    program.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(elivepatch.process, "PATH", f"{programs}:{elivepatch.process.PATH}")
    roots = Roots(tmp_path / "roots")
    with pytest.raises(UnavailableError) as caught:
        roots.ensure("trixie", Progress())
    assert type(caught.value) is kind
    assert said in caught.value.message
    assert hint in (caught.value.hint or "")
    assert other not in (caught.value.hint or "")
    assert not roots.installed()
    assert [left.name for left in (tmp_path / "roots").iterdir()] == [".trixie.lock"]
