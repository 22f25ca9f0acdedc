# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine that does not let a sandbox be made is told apart from a program that failed in one."""

from __future__ import annotations

import pytest

from elivepatch.errors import SandboxUnavailableError
from elivepatch.toolchains.sandbox import require_sandbox

#: What the programs said, each seen in a container or on a machine without user namespaces.
SAID = [
    (
        "mount: /tmp/b/tree: fsconfig() failed: overlay: filesystem on /tmp/b/upper not supported as upperdir.\n"
        "       dmesg(1) may have more information after failed mount system call.\n",
        "ELIVEPATCH_CACHE",
    ),
    ("bwrap: Can't mount proc on /proc: Operation not permitted\n", "docs/install.md"),
    ("unshare: unshare failed: Operation not permitted\n", "user.max_user_namespaces"),
    ("bwrap: Creating new namespace failed: Operation not permitted\n", "user.max_user_namespaces"),
]


@pytest.mark.parametrize(("said", "way_out"), SAID)
def test_what_is_forbidden_is_named_with_the_way_out(said: str, way_out: str) -> None:
    with pytest.raises(SandboxUnavailableError) as refused:
        require_sandbox(said)
    assert said.splitlines()[0].rstrip(".") in refused.value.message
    assert way_out in (refused.value.hint or "")
    assert refused.value.exit_status == 6


@pytest.mark.parametrize(
    "said",
    [
        "",
        "fs/proc/loadavg.c:3: error: expected ';'\n",
        "make: *** [Makefile:1: x] Error 1\nbwrap: Can't mount proc\n",  # the second line a program in it can say
        "mount: /mnt: permission denied.\n",
    ],
)
def test_what_a_program_says_is_its_own(said: str) -> None:
    require_sandbox(said)
