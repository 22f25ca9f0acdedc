# SPDX-License-Identifier: GPL-2.0-or-later
"""Gentoo's kernels: from a package and what the host says of it to the tree that its kernel was built from."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from elivepatch.errors import DiskFullError
from elivepatch.progress import Progress
from elivepatch.sources.gentoo import dist_kernel, kernel_2
from elivepatch.sources.gentoo.distfiles import Distfiles
from elivepatch.sources.gentoo.package import KernelPackage
from elivepatch.sources.gentoo.recipe import RECIPE_VERSION, Host, Recipe, Work
from elivepatch.sources.gentoo.repository import Place, find_package
from elivepatch.sources.trees import SourceTree


@dataclass(frozen=True)
class GentooKernel:
    """A tree of Gentoo's, and what the release of every kernel made from it begins with (``6.12.60-gentoo-r1``).

    Where the release goes on, the configuration says how (LOCALVERSION).
    """

    package: KernelPackage
    tree: SourceTree
    release: str

    def makes(self, release: str) -> bool:
        """Whether a kernel of that release can be made from the tree."""
        rest = release.removeprefix(self.release)
        return release.startswith(self.release) and not rest[:1].isalnum()


@dataclass(frozen=True)
class GentooSource:
    """Kernel packages of Gentoo.

    ``repositories`` are asked in their order; the first that has the ebuild gives it. ``distfiles`` says where files
    lie and come from.
    """

    repositories: Sequence[Place] = field(default_factory=tuple)
    distfiles: Distfiles = field(default_factory=lambda: Distfiles(Path("distfiles")))

    def kernel(self, package: KernelPackage, host: Host, progress: Progress) -> GentooKernel:
        """The tree of a package as that host has it; reads the ebuild and its Manifest, and downloads nothing.

        Raises KernelUnavailableError where no repository has the ebuild, or it is of a form that is not known, or
        another than the host's; SourceRejectedError where the ebuild is not what its Manifest says.
        """
        recipe = self._recipe(package, host, progress)

        def fetch(progress: Progress) -> None:
            self.distfiles.fetch(recipe.distfiles, progress)

        def compose(target: Path, progress: Progress) -> None:
            # named after the target, so that what a kill leaves of it is cleaned with that
            with TemporaryDirectory(prefix=f"{target.name}.gentoo.", dir=target.parent) as scratch, _no_space(target):
                recipe.compose(Work(target, Path(scratch), self.distfiles.checked, progress))

        def patches(progress: Progress) -> list[tuple[str, bytes]]:
            with TemporaryDirectory(prefix="elivepatch-gentoo.") as scratch:
                work = Work(Path(scratch) / "no-tree", Path(scratch), self.distfiles.checked, progress)
                return [(path.name, path.read_bytes()) for path in recipe.patches(work)]

        tree = SourceTree(f"gentoo:{package}", identity(recipe), fetch, compose, patches)
        return GentooKernel(package, tree, recipe.release)

    def _recipe(self, package: KernelPackage, host: Host, progress: Progress) -> Recipe:
        files = find_package(self.repositories, package, progress)
        inherits = files.ebuild.inherits
        if "kernel-2" in inherits:
            return kernel_2.plan(files, host)
        if inherits & {"kernel-build", "kernel-install"}:
            return dist_kernel.plan(files, host)
        raise files.ebuild.error(1, "it inherits neither kernel-2 nor kernel-build, so it is no kernel that is known")


@contextlib.contextmanager
def _no_space(target: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError(f"No space is left to compose a kernel's tree in {target.parent}.") from error
        raise


def identity(recipe: Recipe) -> str:
    """A digest of all that decides the tree of a recipe."""
    parts = {
        "recipe": RECIPE_VERSION,
        "distfiles": [(file.name, file.entry.size, dict(file.entry.digests)) for file in recipe.distfiles],
        **recipe.inputs(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
