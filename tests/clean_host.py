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

#: Runs the words after the first in the root that is the first. It is not a chroot, in which no user namespace can be
#: made. It shares the network, so 127.0.0.1 is this machine's.
_INSIDE = """
mount --rbind "$0" "$0"
cd "$0"
mkdir -p .outside
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
pivot_root . .outside
cd /
exec "$@"
"""
_NAMESPACE = ("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--")


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
        environment = {"DEBIAN_FRONTEND": "noninteractive", **(env or {})}
        return process.run(self.command(*argv), check=check, timeout=900, env=environment)

    def command(self, *argv: str) -> list[str]:
        """What runs a program in the host."""
        return [*_NAMESPACE, "sh", "-euc", _INSIDE, str(self.root), *argv]

    def files(self) -> dict[str, int]:
        """All files with their sizes, but for dpkg's own records and logs."""
        found: dict[str, int] = {}
        for path in self.root.rglob("*"):
            name = str(path.relative_to(self.root))
            if not name.startswith(("var/lib/dpkg", "var/log", "proc", "sys", "dev", ".outside")) and (
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
