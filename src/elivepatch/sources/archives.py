# SPDX-License-Identifier: GPL-2.0-or-later
"""Unpacking trees that come from elsewhere, and bringing them into one form.

What a composed tree consists of: directories, regular files (0644 or 0755) and symbolic links that stay inside.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from elivepatch.errors import SourceRejectedError
from elivepatch.process import ProgramError, run


def unpack(archive: Path, target: Path, what: str | None = None) -> None:
    """Unpack a compressed tar archive that holds one directory: what is in that comes into ``target``.

    GNU tar itself takes no absolute names and no ``..``, and makes links last; the rest is looked at by `settle`.
    Raises SourceRejectedError for an archive that is damaged or holds what no source tree holds, DiskFullError.
    """
    program = {".xz": "xz -T2 -d", ".gz": "gzip -d", ".bz2": "bzip2 -d", ".zst": "zstd -d"}.get(archive.suffix)
    compression = [f"--use-compress-program={program}"] if program else []
    options = ["--no-same-owner", "--no-same-permissions", "--no-overwrite-dir", "--delay-directory-restore"]
    name = what or archive.name
    try:
        run(["tar", "-x", "-C", target, "--strip-components=1", *compression, *options, "-f", archive], timeout=1800)
    except ProgramError as error:
        raise SourceRejectedError(f"{name} is rejected, it cannot be unpacked:\n{error.message}") from error
    settle(target, name)


def settle(tree: Path, what: str) -> None:
    """Check what a tree consists of, and give its files and directories the modes 0644 and 0755.

    Raises SourceRejectedError for devices, pipes, hard links, and symbolic links that lead out of the tree.
    """
    top = os.path.realpath(tree)
    paths = list(_walk(Path(top)))
    for path, info in paths:
        name = path.relative_to(top)
        if stat.S_ISLNK(info.st_mode):
            if not stays_inside(path, top):
                raise SourceRejectedError(f"{what} is rejected: {name} is a link that leads out of it.")
        elif not stat.S_ISDIR(info.st_mode) and not stat.S_ISREG(info.st_mode):
            raise SourceRejectedError(f"{what} is rejected: {name} is neither a file, a directory nor a link.")
        elif stat.S_ISREG(info.st_mode) and info.st_nlink != 1:
            raise SourceRejectedError(f"{what} is rejected: {name} is a hard link.")
    if not paths:
        raise SourceRejectedError(f"{what} is rejected: it holds nothing.")
    for path, info in paths:
        if not stat.S_ISLNK(info.st_mode):
            executable = stat.S_ISDIR(info.st_mode) or info.st_mode & stat.S_IXUSR
            wanted = 0o755 if executable else 0o644
            if stat.S_IMODE(info.st_mode) != wanted:
                path.chmod(wanted)


def stays_inside(link: Path, top: str) -> bool:
    """Whether a symbolic link leads to a place below ``top`` (a real path), by its text and through other links."""
    target = os.readlink(link)  # noqa: PTH115  # the text as it stands
    by_text = os.path.normpath(os.path.join(link.parent, target))  # noqa: PTH118
    places = (by_text, os.path.realpath(link))
    return not target.startswith("/") and all(place.startswith(f"{top}/") for place in places)


def _walk(top: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything below a directory, no link followed."""
    todo = [top]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                info = entry.stat(follow_symlinks=False)
                path = Path(entry.path)
                yield path, info
                if stat.S_ISDIR(info.st_mode):
                    todo.append(path)
