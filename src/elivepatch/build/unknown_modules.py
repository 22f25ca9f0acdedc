# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels of which only the image is known: what of a patch their modules may have, and would keep as it was.

An image from debuginfod, or one that was sent alone, comes without modules, but its configuration and its makefiles say
that there are some. A changed structure or function in a header would then reach half of those who use it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from posixpath import dirname, normpath

from elivepatch.build.elsewhere import module_objects
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.rules import finding
from elivepatch.errors import Diagnosis

#: Headers that any file may include; others serve the files that lie beside and below them.
_PUBLIC = ("include/", "arch/x86/include/")
_MAKEFILES = ("Kbuild", "Makefile")
#: Directories whose makefiles are asked for one patch, half a second each.
_ASKED_LIMIT = 40


def modules_unknown(kernel: PreparedKernel) -> bool:
    """Whether a kernel has modules by its configuration, and none is known."""
    if kernel.modules:
        return False
    options = kernel.config().options
    return options.get("MODULES") == "y" and "m" in options.values()


def parts_of_unknown_modules(
    kernel: PreparedKernel, sources: Iterable[str], headers: Iterable[str], units: Collection[str], work: Path
) -> list[Diagnosis]:
    """The refusals of files that unknown modules may have, or may include.

    ``sources`` are C files that the image does not contain, ``headers`` those that change in more than comments,
    ``units`` what the image contains; ``work`` is a directory that does not exist yet.
    """
    asked = _Makefiles(kernel, work)
    found = [
        _refusal(kernel, file, f"{file} is part of a module of {kernel.release}")
        for file in sources
        if asked.makes_module_of(file)
    ]
    for file in headers:
        if file.startswith(_PUBLIC):
            found.append(_refusal(kernel, file, f"Modules of {kernel.release} may include {file}"))
        elif file.endswith(".h") and (user := asked.module_below(dirname(file), units)):
            found.append(_refusal(kernel, file, f"{user}, part of a module of {kernel.release}, may include {file}"))
    return found


def _refusal(kernel: PreparedKernel, file: str, said: str) -> Diagnosis:
    origin = "debuginfod gave its image alone" if kernel.image == "debuginfod" else "its image came alone"
    return finding("modules-unknown", f"{said}, whose modules are not known: {origin}.", file=file)


class _Makefiles:
    """What the makefiles of a kernel make modules of, asked of kbuild once for each directory."""

    def __init__(self, kernel: PreparedKernel, work: Path) -> None:
        self._kernel = kernel
        self._work = work
        self._known: dict[str, frozenset[str]] = {}

    def makes_module_of(self, file: str) -> bool:
        """Whether the nearest makefile above a C file, in this configuration, makes it a part of a module."""
        if not (self._kernel.source / file).is_file():
            return False
        place = dirname(file)
        while place and not any((self._kernel.source / place / name).is_file() for name in _MAKEFILES):
            place = dirname(place)
        if not place:
            return False
        if place not in self._known:
            self._work.mkdir(exist_ok=True)
            listed = module_objects(self._kernel, place, self._work / str(len(self._known)))
            self._known[place] = frozenset(map(normpath, listed))
        return f"{file.removesuffix('.c')}.o" in self._known[place]

    def module_below(self, place: str, units: Collection[str]) -> str | None:
        """A C file in a directory, or below it, that is part of a module; the directory where it is too large."""
        top = str(self._kernel.source)
        for directory, _, names in os.walk(f"{top}/{place}"):
            below = directory[len(top) + 1 :]
            for name in sorted(name for name in names if name.endswith(".c")):
                file = f"{below}/{name}"
                if file in units:
                    continue
                if len(self._known) > _ASKED_LIMIT:
                    return f"{place}/"
                if self.makes_module_of(file):
                    return file
        return None
