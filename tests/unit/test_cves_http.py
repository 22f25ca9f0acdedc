# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixes over HTTP: an address that is dead is not asked for each of a thousand fixes."""

from __future__ import annotations

from pathlib import Path

import pytest

from elivepatch.cves import fixes
from elivepatch.cves.fixes import HttpFixes
from elivepatch.errors import DownloadFailedError, UnavailableError
from elivepatch.progress import Progress

ADDRESS = "https://127.0.0.1/{commit}"
IDS = [f"{number:040x}" for number in range(8)]
TEXT = (
    "From {} Mon Sep 17 00:00:00 2001\nSubject: [PATCH] fs: close it\n\ndiff --git a/fs/a.c b/fs/a.c\n"
    "--- a/fs/a.c\n+++ b/fs/a.c\n@@ -1 +1 @@\n-old\n+new\n"
)


class Server:
    """What stands for the network: ``answers`` are what each of its requests gets, the last one for ever."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, address: str, target: Path, **_: object) -> None:
        commit = address.rpartition("/")[2]
        self.asked.append(commit)
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        target.write_text(answer.format(commit))


def outcomes(monkeypatch: pytest.MonkeyPatch, server: Server, cache: Path) -> list[str]:
    monkeypatch.setattr(fixes, "download", server)
    source = HttpFixes(ADDRESS, cache)
    found: list[str] = []
    for commit in IDS:
        try:
            found.append(source.get(commit, Progress()).subject)
        except UnavailableError as error:
            found.append(error.message)
    return found


def test_a_dead_address_is_left_alone_and_each_fix_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = Server(DownloadFailedError("nobody listens"))
    found = outcomes(monkeypatch, server, tmp_path)
    assert server.asked == IDS[:3]
    assert found[:3] == ["nobody listens"] * 3
    assert all("was not asked, as it had failed 3 times in a row: nobody listens" in said for said in found[3:])


def test_what_fails_now_and_then_is_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bad = DownloadFailedError("busy")
    server = Server(bad, bad, TEXT, bad, bad, UnavailableError("has no commit"), bad, TEXT)
    found = outcomes(monkeypatch, server, tmp_path)
    assert server.asked == IDS
    assert found == ["busy", "busy", "fs: close it", "busy", "busy", "has no commit", "busy", "fs: close it"]
