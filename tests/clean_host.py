# SPDX-License-Identifier: GPL-2.0-or-later
"""A clean host of a Debian release: a root file system in which programs run as root, with a /proc of its own."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from elivepatch import process
from elivepatch.progress import Progress
from elivepatch.toolchains.roots import Roots, RootSpec
from elivepatch.workshop import Workshop

#: Runs the words after the first in the root that is the first. It shares the network, so 127.0.0.1 is this machine's.
_INSIDE = 'mount -t proc proc "$0/proc" && mount --rbind /sys "$0/sys" && exec chroot "$0" "$@"'


class CleanHost:
    """A host, as a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *argv: str, check: bool = True, env: Mapping[str, str] | None = None) -> str:
        """What a program says on stdout and stderr."""
        done = self.completed(*argv, check=check, env=env)
        return done.stdout + done.stderr

    def completed(self, *argv: str, check: bool = False, env: Mapping[str, str] | None = None) -> process.Completed:
        """A program, ended."""
        namespace = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--"]
        environment = {"DEBIAN_FRONTEND": "noninteractive", **(env or {})}
        return process.run(
            [*namespace, "sh", "-euc", _INSIDE, str(self.root), *argv], check=check, timeout=300, env=environment
        )

    def files(self) -> dict[str, int]:
        """All files with their sizes, but for dpkg's own records and logs."""
        found: dict[str, int] = {}
        for path in self.root.rglob("*"):
            name = str(path.relative_to(self.root))
            if not name.startswith(("var/lib/dpkg", "var/log", "proc", "sys", "dev")) and (
                path.is_symlink() or path.is_file()
            ):
                found[name] = path.lstat().st_blocks * 512
        return found


@contextlib.contextmanager
def clean_host(
    suite: str, packages: Sequence[str], place: Path, workshop: Workshop, progress: Progress, *, name: str = "host"
) -> Generator[CleanHost]:
    """A host of the suite with packages installed, below ``place``; it is gone afterwards."""
    called = f"{name}-{suite}"
    spec = RootSpec(suite, tuple(packages))
    root = Roots(workshop.cache / "roots", workshop.mirror, {called: spec}).ensure(called, progress)
    copy = place / "host"
    process.run(["cp", "-a", root.path, copy], timeout=300)
    try:
        yield CleanHost(copy)
    finally:
        shutil.rmtree(copy)
