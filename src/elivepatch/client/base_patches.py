# SPDX-License-Identifier: GPL-2.0-or-later
"""The patches that the running kernel already has: those of the host's package manager, then those that are named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elivepatch.client.inputs import InputFile, read_patch
from elivepatch.client.portage_patches import CATEGORY, collect_patches, find_installed_kernel
from elivepatch.errors import InputTooLargeError, InvalidInputError
from elivepatch.kernel.running import RunningKernel
from elivepatch.patches.files import patch_files
from elivepatch.protocol import limits


@dataclass(frozen=True)
class BasePatch:
    """A base patch and, for people, where it was found."""

    file: InputFile
    origin: str


def base_patches(
    kernel: RunningKernel | None, root: Path, *, named: Sequence[Path], collect: bool
) -> tuple[BasePatch, ...]:
    """The base patches of a request, in the order in which they apply.

    ``named`` are files, and directories of which every ``*.patch`` and ``*.diff`` counts, in C-locale order, those
    below them not. ``collect`` puts before them what the host's package manager applies when it builds ``kernel``
    (None: not the running one, and nothing is collected). Raises InvalidPatchError, InputTooLargeError and
    InvalidInputError.
    """
    found = list(_collected(kernel, root)) if collect and kernel else []
    for path in named:
        found += [BasePatch(read_patch(file), str(file)) for file in patch_files(path)]
        if len(found) > limits.PATCHES:
            break
    if len(found) > limits.PATCHES:
        raise InputTooLargeError(
            f"There are more than {limits.PATCHES} base patches.",
            hint="Join some of them; they only have to be the same change.",
        )
    return tuple(found)


def _collected(kernel: RunningKernel, root: Path) -> Sequence[BasePatch]:
    """What the package manager of this host applies to its kernel: portage is the one that does so by itself."""
    try:
        package = find_installed_kernel(kernel.release, root=root)
        files = collect_patches(package, root=root) if package else ()
    except InvalidInputError as error:
        raise type(error)(
            error.message, hint=f"{error.hint} Or leave the patches of portage out with --no-base-patches."
        ) from error
    if package is None:
        return ()
    return [BasePatch(file, f"{file.name} (portage, {CATEGORY}/{package.pf})") for file in files]
