# SPDX-License-Identifier: GPL-2.0-or-later
"""Trees with base patches: what a host's kernel was built from, where that is a source with patches on top.

The patches are applied as the host applied them, by GNU patch with its own tolerance. The result is a tree of its own
that shares every file it did not change with the pristine one.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

from elivepatch.build import unpack
from elivepatch.build.store import remove_tree
from elivepatch.errors import Diagnosis, DoesNotApplyError, InvalidPatchError
from elivepatch.process import run
from elivepatch.progress import Progress
from elivepatch.sources.archives import stays_inside
from elivepatch.toolchains.roots import Root
from elivepatch.toolchains.sandbox import JOB, Overlay, Sandbox, give_to_sandbox

#: Raised when the same patches give another tree.
FORMAT = 1
#: What GNU patch says of a patch that does not apply; where it leaves the rest is nobody's concern here.
_TELLING = ("FAILED", "can't find", "malformed", "Only garbage", "unexpected")
_REJECTS = re.compile(r" -- saving rejects to file .*")
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")


def make(source: Path, patches: Sequence[tuple[str, bytes]], root: Root, progress: Progress, work: Path) -> None:
    """Fill ``work`` with the tree of ``source`` and the patches on top of it, in their order.

    Raises DoesNotApplyError, naming the patch, with what `patch` said, and InvalidPatchError for links out of the tree.
    """
    progress.step(f"applying {len(patches)} base patches")
    scratch = Path(tempfile.mkdtemp(prefix=f"{work.name}.base.", dir=work.parent))
    scratch.chmod(0o755)
    try:
        upper, job = scratch / "upper", scratch / "job"
        overlay = Overlay((source,), upper, scratch / "work", scratch / "tree")
        for directory in (overlay.upper, overlay.work, overlay.mountpoint, job):
            directory.mkdir()
            give_to_sandbox(directory)
        sandbox = Sandbox(root.path, overlay, job)
        for number, (name, data) in enumerate(patches, start=1):
            before = [earlier for earlier, same in patches[: number - 1] if same == data]
            _apply(sandbox, job, f"{number}", name, data, before)
        # a hard link for each file: some seconds, and no room
        run(["cp", "-a", "-l", "--no-target-directory", source, work], timeout=600)
        links: list[Path] = []
        _merge(upper, work, links)
        _check_links(work, links)
    finally:
        remove_tree(scratch)
    unpack.own(work)


def _apply(sandbox: Sandbox, job: Path, place: str, name: str, data: bytes, same: Sequence[str]) -> None:
    """Apply one; ``same`` are those before it with the same content."""
    (job / place).write_bytes(data)
    # as portage's eapply does it: no questions, no file from a version control system, no backups
    words = ["patch", "-p1", "-f", "-g0", "-i", f"{JOB}/{place}"]
    done = sandbox.run([*words, "--no-backup-if-mismatch"], check=False)
    if done.returncode == 0:
        return
    said = (done.stdout + done.stderr).strip()
    lines = [_REJECTS.sub("", line) for line in said.splitlines() if any(part in line for part in _TELLING)]
    hint = "Give the patches that the host's kernel was built with, all of them, in their order, against this source."
    if sandbox.run([*words, "--dry-run", "-R"], check=False).returncode == 0:
        lines = ["the source has its change already"]
        hint = "Leave it out, or name a source without it: the distributor's own patches are in its source."
    if same:
        hint = f"It is the same patch as {same[0]}, which was applied before it: name it once."
    raise DoesNotApplyError(
        f"The base patch {name} does not apply: {'; '.join(lines[:3]) or said[-500:]}",
        hint=hint,
        diagnosis=[
            Diagnosis(rule="base-patch", message=line, file=name, hint=hint) for line in (lines[:50] or [said[-2000:]])
        ],
    )


def _check_links(tree: Path, links: Sequence[Path]) -> None:
    """Refuse links that lead out of a tree: what reads it would read files of this machine."""
    top = os.path.realpath(tree)
    for link in links:
        if not stays_inside(Path(top) / link.relative_to(tree), top):
            raise InvalidPatchError(
                f"A base patch makes {link.relative_to(tree)} a link that leads out of the kernel's tree.",
                hint="Leave the link out of the patch: no kernel needs one.",
            )


def _merge(upper: Path, target: Path, links: list[Path]) -> None:
    """Carry what a writable layer of overlayfs holds over to a tree (Documentation/filesystems/overlayfs.rst).

    ``links`` takes up the symbolic links that it has.
    """
    for entry in os.scandir(upper):
        path, place = Path(entry.path), target / entry.name
        facts = path.lstat()
        if stat.S_ISDIR(facts.st_mode):
            if place.is_symlink() or not place.is_dir() or _is_opaque(path):
                _remove(place)
                place.mkdir()
            _merge(path, place, links)
        else:
            _remove(place)  # the file itself may be shared: it is never written to
            if stat.S_ISREG(facts.st_mode):
                shutil.copyfile(path, place)
                place.chmod(facts.st_mode & 0o755)
            elif stat.S_ISLNK(facts.st_mode):
                place.symlink_to(path.readlink())
                links.append(place)
            # else a character device 0/0: the file was removed


def _is_opaque(path: Path) -> bool:
    for name in _OPAQUE:
        try:
            if os.getxattr(path, name) == b"y":
                return True
        except OSError:
            continue
    return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)
