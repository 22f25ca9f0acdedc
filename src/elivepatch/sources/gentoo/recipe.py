# SPDX-License-Identifier: GPL-2.0-or-later
"""What it takes to make the tree of a Gentoo kernel, and the steps that all kinds of packages share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from elivepatch.errors import DiskFullError, SourceRejectedError
from elivepatch.process import NO_SPACE, Completed, find_program, run
from elivepatch.progress import Progress
from elivepatch.sources.gentoo.distfiles import Distfile
from elivepatch.sources.gentoo.package import KernelPackage

#: Counts with every change of these modules that changes a tree: it is part of a tree's identity.
RECIPE_VERSION = 1
_UNPACK_SECONDS, _PATCH_SECONDS = 1800.0, 600.0
_MEMORY_BYTES = 2 * 1024**3
_MAKEFILE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Host:
    """What the host says about how its package was made.

    ``use`` are the flags that were on, ``variables`` those of the package's environment that change a tree, as
    /var/db/pkg has them (UNIPATCH_EXCLUDE, and for comparison KV_FULL, K_GENPATCHES_VER, …). ``arch`` is Gentoo's name
    of the machine. ``gcc_major`` is the major version of the GCC that was in use at the merge, None where it is not
    known or another compiler.
    """

    use: frozenset[str] = frozenset()
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    arch: str = "amd64"
    gcc_major: int | None = None


@dataclass(frozen=True)
class Work:
    """A tree while it is composed.

    ``tree`` is empty at first, ``scratch`` a directory beside it, ``files`` finds a verified distfile.
    """

    tree: Path
    scratch: Path
    files: Callable[[Distfile], Path]
    progress: Progress


class Recipe(Protocol):
    """How the tree of a package is made."""

    @property
    def package(self) -> KernelPackage:
        """The package."""
        ...

    @property
    def release(self) -> str:
        """What the release of a kernel made from the tree begins with."""
        ...

    @property
    def distfiles(self) -> Sequence[Distfile]:
        """All that has to be downloaded."""
        ...

    def inputs(self) -> Mapping[str, Any]:  # Any: goes into JSON
        """Everything that decides the tree, besides the distfiles and the version of the recipe."""
        ...

    def patches(self, work: Work) -> Sequence[Path]:
        """Lay out the patches below the scratch directory, and give them in the order in which they apply."""
        ...

    def compose(self, work: Work) -> None:
        """Lay out the tree. Raises SourceRejectedError where the files are not what they should be."""
        ...


def unpack(archive: Path, target: Path, *, strip: int = 0) -> None:
    """Unpack a tarball; ``strip`` is how many leading directories of its names are left out."""
    find_program("tar")
    find_program("xz", hint="Install xz-utils.")
    run(
        ["tar", "-x", "--no-same-owner", "--no-same-permissions", f"--strip-components={strip}", "-f", archive],
        cwd=target,
        timeout=_UNPACK_SECONDS,
        memory_bytes=_MEMORY_BYTES,
    )


def unpack_linux(archive: Path, work: Work) -> None:
    """Unpack ``linux-X.Y.tar.xz`` as the tree, and check that it is one."""
    work.progress.step(f"unpacking {archive.name}")
    unpack(archive, work.tree, strip=1)
    if not (work.tree / "Makefile").is_file():
        raise SourceRejectedError(f"{archive.name} holds no kernel: it has no Makefile.")


def decompress(archive: Path, target: Path) -> None:
    """Decompress a single file by its suffix."""
    programs = {".xz": "xz", ".bz2": "bzip2", ".gz": "gzip"}
    run(
        [programs[archive.suffix], "-dc", archive],
        stdout=target,
        timeout=_UNPACK_SECONDS,
        memory_bytes=_MEMORY_BYTES,
    )


def run_patch(tree: Path, file: Path, options: Sequence[str]) -> Completed:
    """Run GNU patch in a tree, and give what came of it: it decides, so its exit status is for the caller."""
    find_program("patch")
    done = run(
        ["patch", *options, "-i", file],
        cwd=tree,
        env={"LC_ALL": "C"},
        timeout=_PATCH_SECONDS,
        memory_bytes=_MEMORY_BYTES,
        check=False,
    )
    if done.returncode != 0 and NO_SPACE.search(done.stderr):
        raise DiskFullError(f"No space is left to apply {file.name} in {tree}.")
    return done


def does_not_apply(name: str, done: Completed, where: str) -> SourceRejectedError:
    """The error of a patch that does not apply, with what patch said."""
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    failed = [line for line in said if re.search(r"FAILED|can't find|garbage|malformed|rejects|ignored|fuzz", line)]
    return SourceRejectedError(
        f"{name} does not apply {where}: {'; '.join((failed or said)[:4])}",
        hint="The patches and the kernel do not belong together: renew the ebuild repository, and compare what the "
        "client reports of the package (USE flags, UNIPATCH_EXCLUDE).",
    )


def set_extraversion(tree: Path, extraversion: str) -> None:
    """Write EXTRAVERSION into the top Makefile, as the ebuilds' sed does: the word, a space, the value."""
    makefile = tree / "Makefile"
    data = makefile.read_bytes()
    if len(data) > _MAKEFILE_BYTES:
        raise SourceRejectedError(f"The Makefile of the kernel is larger than {_MAKEFILE_BYTES} bytes.")
    changed, count = re.subn(rb"(?m)^(EXTRAVERSION =).*$", rb"\1 " + extraversion.encode(), data)
    if not count:
        raise SourceRejectedError("The Makefile of the kernel has no EXTRAVERSION.")
    makefile.write_bytes(changed)


def check_version(tree: Path, release: str) -> None:
    """Raise SourceRejectedError where the Makefile says another version than a release begins with."""
    data = (tree / "Makefile").read_bytes()[:_MAKEFILE_BYTES].decode(errors="replace")
    values = {
        name: match[1].strip()
        for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL")
        if (match := re.search(rf"^{name} =(.*)$", data, re.MULTILINE))
    }
    found = ".".join(values.get(name, "?") for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL"))
    expected = re.match(r"\d+\.\d+(\.\d+)?", release)
    if expected is None or found not in {expected[0], f"{expected[0]}.0"}:
        raise SourceRejectedError(
            f"The tree is of Linux {found}, and {release} was asked for.",
            hint="Check K_GENPATCHES_VER in the ebuild; renew the ebuild repository.",
        )


def settle_modes(tree: Path) -> None:
    """Give files and directories the modes that an installed package has, whatever was in the tarballs.

    kernel-2.eclass, install_universal: all may read, only the owner writes, and who may execute, all may.
    """
    run(["chmod", "-R", "a+r-w+X,u+w", tree], timeout=_UNPACK_SECONDS)
