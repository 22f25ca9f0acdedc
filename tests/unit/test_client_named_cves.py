# SPDX-License-Identifier: GPL-2.0-or-later
"""Which CVEs a patch says it is for, and which it only tells of: the CVE mode calls the first ones closed."""

from __future__ import annotations

import pytest

from elivepatch.client.inputs import InputFile, named_cves

CHANGE = "--- a/x.c\n+++ b/x.c\n CVE-2026-9999\n"
NAME = "CVE-2026-1000"


def named(head: str, name: str = "a.patch") -> tuple[str, ...]:
    return named_cves([InputFile(name, f"{head}{CHANGE}".encode())])


@pytest.mark.parametrize(
    "head",
    [
        f"Fixes {NAME}\n",
        f"{NAME}: net: check the length\n\n",
        f"From {'a' * 40} Mon Sep 17 00:00:00 2001\nSubject: [PATCH] net: check it\n ({NAME})\n\n",
        f"commit {'a' * 40}\nSubject: mm: fix it\nCVE: {NAME}\n\n",
        f"Subject: x\n\nBugLink: https://example.org\n{NAME}\n\n",
        f"Description: Fix {NAME}\nForwarded: no\n",
        f"From: x\nReferences: bsc#1 {NAME}\n",
    ],
)
def test_what_a_patch_says_it_is_for(head: str) -> None:
    assert named(head) == (NAME,)


def test_several_and_the_name_of_the_file() -> None:
    assert named(f"Subject: x\nCVE: {NAME}, CVE-2026-1001\n") == (NAME, "CVE-2026-1001")
    assert named(f"Subject: x\n\n{NAME} and CVE-2026-1001\n") == (NAME, "CVE-2026-1001")
    assert named("", f"0001-{NAME.lower()}.patch") == (NAME,)


@pytest.mark.parametrize(
    "head",
    [
        f"Subject: mm: mend the leak\n\nThe fix of {NAME} brought it in, and it is still open.\n",
        f"Subject: mm: mend the leak\n\nThis is what was left open by\n{NAME} in the first place.\n",
        f'Subject: [PATCH] Revert "mm: fix it ({NAME})"\n\n',
        f"Subject: mm: back to the old way\nCVE: {NAME}\n\nThis reverts commit {'a' * 40}.\n",
        "",
    ],
)
def test_what_a_patch_only_tells_of_is_not_closed_by_it(head: str) -> None:
    assert named(head) == ()


def test_a_patch_that_takes_a_fix_back_does_not_close_what_its_file_is_called_after() -> None:
    assert named("", f"revert-{NAME}.patch") == ()
