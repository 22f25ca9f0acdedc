# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the code of a vulnerability is in a kernel: by the objects that the kernel consists of.

What a kernel contains is read from its image and its modules (`elivepatch.build.contents`), not guessed from its
makefiles. A header counts for every object that includes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from elivepatch.build.contents import kernel_index, source_tree
from elivepatch.build.includes import IncludeIndex
from elivepatch.build.prepared import PreparedKernel

#: What becomes code of a kernel if a makefile names it.
_UNITS = (".c", ".S", ".rs")
#: Directories that no kernel is made from.
_BESIDE = ("Documentation/", "tools/", "samples/", "LICENSES/", "usr/", "scripts/")
#: What goes into the image of a kernel beside vmlinux, so that no symbol names it: the boot code, which links the EFI
#: stub and the decompressors (arch/x86/boot/compressed/Makefile), the vDSO, and the code that kexec starts.
_BESIDE_VMLINUX = (
    *("arch/x86/boot/", "arch/x86/entry/vdso/", "arch/x86/purgatory/", "arch/x86/realmode/", "lib/vdso/"),
    *("drivers/firmware/efi/libstub/", "lib/decompress", "lib/lz4/", "lib/xz/", "lib/zlib_inflate/", "lib/zstd/"),
)
#: Files that say how a kernel is built.
_BUILD = ("Kconfig", "Makefile", "Kbuild")

Place = Literal["contained", "not-built", "beside", "unknown"]


@dataclass(frozen=True)
class FilePlace:
    """Where a file is in a kernel.

    ``parents`` are vmlinux and the modules that are made from it, if it is contained; ``beside`` is what no kernel is
    made from (documentation, tools). ``why`` is for people.
    """

    file: str
    place: Place
    parents: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Contents:
    """A kernel's files. Made once for all vulnerabilities that are looked at."""

    kernel: PreparedKernel

    @cached_property
    def _index(self) -> IncludeIndex:
        return kernel_index(self.kernel)

    @cached_property
    def _files(self) -> frozenset[str]:
        return frozenset(source_tree(self.kernel).files())

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in self._files:
            found.setdefault(path.rpartition("/")[2], []).append(path)
        return found

    @cached_property
    def _known(self) -> dict[str, FilePlace]:
        return {}

    def place(self, file: str) -> FilePlace:
        """Where a file is, named by its path here or in mainline."""
        if file not in self._known:
            self._known[file] = self._place(file)
        return self._known[file]

    def _place(self, file: str) -> FilePlace:
        known = file in self._index.units or file in self._index.scanned
        if file.startswith(_BESIDE) and not known:  # the kernel includes a few files of tools/
            return FilePlace(file, "beside", why="not a part of a kernel")
        if known or file in self._files:
            return self._in_tree(file, file)
        elsewhere = [path for path in self._by_name.get(file.rpartition("/")[2], ()) if _akin(path, file)]
        if len(elsewhere) == 1:
            found = self._in_tree(elsewhere[0], file)
            # that it is the same file is a guess: good enough to look at it, not to leave it out
            place = found.place if found.place == "contained" else "unknown"
            return FilePlace(file, place, found.parents, f"here it may be {elsewhere[0]}; {found.why}")
        if file.startswith("arch/") and not file.startswith("arch/x86/"):
            return FilePlace(file, "not-built", why="of another architecture")
        return FilePlace(file, "unknown", why="the tree of this kernel has no such file; mainline's may be newer")

    def _in_tree(self, path: str, asked: str) -> FilePlace:
        owners = self._index.units.get(path)
        if owners:
            return FilePlace(asked, "contained", tuple(owners), f"in {_list(owners)}")
        if path.startswith("arch/") and not path.startswith(("arch/x86/", "arch/Kconfig")):
            return FilePlace(asked, "not-built", why="of another architecture")
        if path in self._index.scanned:
            users = self._index.includers([path])
            found = tuple(dict.fromkeys(owner for parents in users.values() for owner in parents))
            return FilePlace(asked, "contained", found, f"included by {len(users)} files of {_list(found)}")
        name = path.rpartition("/")[2]
        if name.startswith(_BUILD):
            return FilePlace(asked, "unknown", why="it says how the kernel is built")
        if name.endswith(".S") or (name.endswith(".rs") and self.kernel.config().enabled("RUST")):
            # neither the symbols of a module nor every image name what is not C
            return FilePlace(asked, "unknown", why="whether it is built the image does not say")
        if path.startswith(_BESIDE_VMLINUX):
            return FilePlace(asked, "unknown", why="boot code and vDSO are beside vmlinux, whose symbols name none")
        if name.endswith((*_UNITS, ".h")):
            return FilePlace(asked, "not-built", why="nothing of this kernel is made from it")
        return FilePlace(asked, "unknown", why="neither C nor a header")


def _akin(path: str, file: str) -> bool:
    """Whether two paths of files of one name are likely those of one file that was moved."""
    here, there = set(path.split("/")[:-1]), set(file.split("/")[:-1])
    return path.split("/")[0] == file.split("/")[0] and len(here & there) >= min(2, len(there))


def _list(names: Collection[str]) -> str:
    ordered = sorted(names, key=lambda name: (name != "vmlinux", name))
    return ", ".join(ordered[:4]) + (f" and {len(ordered) - 4} more" if len(ordered) > 4 else "")


@dataclass(frozen=True)
class Reach:
    """Whether a vulnerability can be reached in a kernel: by all its files together.

    ``state``: ``built-in`` (in vmlinux), ``module`` (in modules only), ``not-built``, ``undecided``.
    """

    state: Literal["built-in", "module", "not-built", "undecided"]
    parents: tuple[str, ...]
    why: str


def reach(files: Iterable[str], contents: Contents) -> Reach:
    """Judge the files of a vulnerability; one that is contained decides, and one that is not known keeps it open.

    Source files count before headers: a header of a driver reaches further than the fault in the driver does. Where no
    source file is contained and a header is, it cannot be told.
    """
    places = [contents.place(file) for file in files]
    code = [place for place in places if place.file.endswith(_UNITS) and place.place != "beside"]
    if code:
        headers = [place for place in places if place not in code and place.place == "contained"]
        if headers and all(place.place == "not-built" for place in code):
            why = f"its source files are not built, but a header of it is used: {_why(headers)}"
            return Reach("undecided", tuple(dict.fromkeys(one for place in headers for one in place.parents)), why)
        places = [place for place in places if place in code or place.place == "unknown"]
    parents = tuple(dict.fromkeys(parent for place in places for parent in place.parents))
    contained = [place for place in places if place.place == "contained"]
    if "vmlinux" in parents:
        return Reach("built-in", parents, _why(place for place in contained if "vmlinux" in place.parents))
    unknown = [place for place in places if place.place == "unknown"]
    if contained and not unknown:
        return Reach("module", parents, _why(contained))
    if unknown or not any(place.place == "not-built" for place in places):
        why = _why(unknown) or "its record names no file that a kernel is made from"
        return Reach("undecided", parents, why)
    return Reach("not-built", (), _why(place for place in places if place.place == "not-built"))


def _why(places: Iterable[FilePlace]) -> str:
    return "; ".join(f"{place.file}: {place.why}" for place in list(places)[:3])
