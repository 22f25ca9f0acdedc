# SPDX-License-Identifier: GPL-2.0-or-later
"""gentoo-sources and its like: trees that kernel-2.eclass makes from Linux and genpatches.

Read from eclass/kernel-2.eclass of gentoo/gentoo as of 2026: handle_genpatches, detect_version, universal_unpack,
unipatch, unpack_set_extraversion, install_universal. Two edits it makes with sed (INSTALL_PATH, and TOUT in
arch/powerpc) have found nothing to change for many years, and are left out, as is patches.txt, which it writes where a
directory of the tree happens to be called docs.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from elivepatch.errors import KernelUnavailableError, SourceRejectedError
from elivepatch.sources.gentoo import recipe
from elivepatch.sources.gentoo.distfiles import Distfile, genpatches_urls, kernel_org_url
from elivepatch.sources.gentoo.ebuild import Ebuild, KernelVersion
from elivepatch.sources.gentoo.package import KernelPackage
from elivepatch.sources.gentoo.recipe import Host, Work
from elivepatch.sources.gentoo.repository import PackageFiles

GENPATCHES = ("base", "extras", "experimental")
#: What the environment of the host's package must agree with: a difference is another tree.
_COMPARED = ("KV_FULL", "EXTRAVERSION", "K_GENPATCHES_VER", "K_WANT_GENPATCHES")
_NOT_KNOWN = (
    "K_NODRYRUN",
    "K_FROM_GIT",
    "K_BASE_VER",
    "K_LONGTERM",
    "K_EXP_GENPATCHES_PULL",
    "PATCHES",
    "UNIPATCH_LIST_DEFAULT",
    "UNIPATCH_LIST_GENPATCHES",
    "UNIPATCH_DROP",
    "KPATCH_DIR",
)
_HARMLESS = ("pkg_pretend", "pkg_preinst", "pkg_postinst", "pkg_prerm", "pkg_postrm")
_REMOVAL = re.compile(r'rm (?:-f )?"?\$\{S\}"?/"?(?P<path>[A-Za-z0-9._+/-]+)"?(?: \|\| die)?', re.ASCII)
#: Experimental patches that are for compilers of old, left out for every kernel since (kernel-2.eclass, unipatch).
_OLD_GCC = (
    "5010_enable-additional-cpu-optimizations-for-gcc.patch",
    "5010_enable-additional-cpu-optimizations-for-gcc-4.9.patch",
    "5011_enable-cpu-optimizations-for-gcc8.patch",
    "5012_enable-cpu-optimizations-for-gcc91.patch",
    "5013_enable-cpu-optimizations-for-gcc10.patch",
)
_GCC_9 = "5010_enable-cpu-optimizations-universal.patch"
_DEPTHS = 5


@dataclass(frozen=True)
class _Item:
    """One thing of the list that unipatch gets: a distfile, or the content of a file that lies beside the ebuild."""

    name: str
    file: Distfile | None = None
    data: bytes = b""

    @property
    def is_tarball(self) -> bool:
        return any(mark in self.name for mark in (".tar", ".tbz", ".tgz"))

    def as_inputs(self) -> Sequence[str]:
        return (self.name, hashlib.sha256(self.data).hexdigest()) if self.file is None else (self.name,)


@dataclass(frozen=True)
class UnipatchRecipe:
    """A tree by kernel-2.eclass. ``guard`` is what some patch's name must contain; ``extraversion`` None: untouched."""

    package: KernelPackage
    version: KernelVersion
    linux: Distfile
    items: tuple[_Item, ...]
    drops: tuple[str, ...]
    strict_order: bool
    guard: str | None
    extraversion: str | None
    removals: tuple[str, ...]

    @property
    def release(self) -> str:
        """See `Recipe`."""
        numbers = (*self.version.numbers, 0)[:3]
        return ".".join(map(str, numbers)) + (self.extraversion or "")

    @property
    def distfiles(self) -> Sequence[Distfile]:
        """See `Recipe`."""
        return [self.linux, *(item.file for item in self.items if item.file)]

    def inputs(self) -> Mapping[str, Any]:  # Any: goes into JSON
        """See `Recipe`."""
        return {
            "kind": "kernel-2",
            "items": [item.as_inputs() for item in self.items],
            "drops": self.drops,
            "strict_order": self.strict_order,
            "guard": self.guard,
            "extraversion": self.extraversion,
            "removals": self.removals,
        }

    def patches(self, work: Work) -> Sequence[Path]:
        """See `Recipe`."""
        return [path for directory in self._collect(work) for path in _patches_of(directory)]

    def compose(self, work: Work) -> None:
        """See `Recipe`."""
        recipe.unpack_linux(work.files(self.linux), work)
        _remove_backups(work.tree)
        patches = self.patches(work)
        depth = 0
        for number, path in enumerate(patches, start=1):
            work.progress.step(f"applying {path.name}", number / len(patches))
            depth = _apply(path, work.tree, depth)
        if self.extraversion is not None:
            recipe.set_extraversion(work.tree, self.extraversion)
        recipe.check_version(work.tree, self.release)
        for name in self.removals:
            (work.tree / name).unlink(missing_ok=True)
        recipe.settle_modes(work.tree)

    def _collect(self, work: Work) -> list[Path]:
        """Lay out all patches, without the excluded ones; gives their directories in order."""
        top = work.scratch / "patches"
        top.mkdir()
        for number, item in enumerate(self.items, start=1):
            place = top / f"{number:06d}" if self.strict_order else top
            place.mkdir(exist_ok=True)
            source = work.files(item.file) if item.file else work.scratch / "beside"
            if item.file is None:
                source.write_bytes(item.data)
            if item.is_tarball:
                recipe.unpack(source, place)
            elif Path(item.name).suffix in {".xz", ".bz2", ".gz"}:
                recipe.decompress(source, place / f"{Path(item.name).stem}.patch")
            else:
                (place / f"{Path(item.name).stem}.patch").write_bytes(source.read_bytes())
            if self.guard is not None and not any(self.guard in path.name for path in top.glob("[!.]*")):
                raise SourceRejectedError(
                    f"No patch for Linux {self.guard} is in {item.name}.",
                    hint="Check K_GENPATCHES_VER in the ebuild; renew the ebuild repository.",
                )
        # os.walk goes through no symbolic link, as find -type d finds none
        directories = sorted((Path(at) for at, _, _ in os.walk(top)), key=os.fsencode)
        for directory in directories:
            for path in directory.iterdir():
                if path.is_file() and any(fnmatch.fnmatchcase(path.name, f"{drop}*") for drop in self.drops):
                    path.unlink()
        return directories


def _remove_backups(tree: Path) -> None:
    for directory, _, names in os.walk(tree):
        for name in names:
            if name.endswith("~"):
                Path(directory, name).unlink()


def _patches_of(directory: Path) -> list[Path]:
    """The patches directly in a directory, in the order of their bytes (LC_ALL=C)."""
    named = [path for path in directory.iterdir() if re.search(r"\.(patch|diff)", path.name, re.IGNORECASE)]
    return sorted(named, key=lambda path: os.fsencode(path.name))


def _apply(path: Path, tree: Path, previous: int) -> int:
    """Apply one patch at the first depth at which it goes in without complaint; gives that depth.

    The depth begins at the digits behind ``.patch``, at 0 without them. A ``.diff`` has no such digits, and the eclass
    then begins where the patch before it ended.
    """
    depth = previous
    if ".patch" in path.name:
        digits = path.name.rpartition(".patch")[2]
        if not re.fullmatch(r"\d?", digits, re.ASCII):
            raise SourceRejectedError(f"The patch {path.name} has a name that kernel-2.eclass cannot use.")
        depth = int(digits or 0)
    common = ("--no-backup-if-mismatch", "-f")
    said = None
    while depth < _DEPTHS:
        tried = recipe.run_patch(tree, path, (f"-p{depth}", *common, "--dry-run"))
        if tried.returncode == 0:
            done = recipe.run_patch(tree, path, (f"-p{depth}", *common))
            if done.returncode != 0:
                raise recipe.does_not_apply(path.name, done, f"with -p{depth}")
            return depth
        said = tried if depth == 1 or said is None else said
        depth += 1
    if said is None:
        raise SourceRejectedError(f"The patch {path.name} asks for a depth of {depth}; the limit is {_DEPTHS - 1}.")
    raise recipe.does_not_apply(path.name, said, "at any depth")


# -- from the ebuild to the recipe


def plan(files: PackageFiles, host: Host) -> UnipatchRecipe:
    """The recipe of a package that uses kernel-2.eclass. Raises KernelUnavailableError for what is not known here."""
    ebuild, version = files.ebuild, files.ebuild.version
    if version is None:
        raise ebuild.error(1, "it does not call detect_version")
    if ebuild.value("EAPI") not in {"7", "8"}:
        raise ebuild.error(ebuild.line("EAPI") or 1, "kernel-2.eclass takes EAPI 7 and 8 only")
    ebuild.refuse(_NOT_KNOWN, "and what kernel-2.eclass does then is not known here")
    flags = set(ebuild.value("IUSE").replace("+", " ").split()) & host.use
    for flag in sorted(flags & {"vanilla", "deblob"}):
        raise ebuild.error(ebuild.line("IUSE"), f"USE={flag} is on, and the tree that it makes is not known here")
    _compare(ebuild, version, host)
    wanted, number = ebuild.value("K_WANT_GENPATCHES").split(), ebuild.value("K_GENPATCHES_VER")
    items = [*_default_items(files, version, wanted, number), *_genpatches(files, version, wanted, number, host)]
    items += _listed_items(files)
    _compare_list(ebuild, [item.name for item in items], host)
    is_new = _drops_old_gcc(version)
    drops = (ebuild.value("UNIPATCH_EXCLUDE") or host.variables.get("UNIPATCH_EXCLUDE", "")).split()
    if "experimental" in flags and not is_new:
        raise ebuild.error(ebuild.line("IUSE"), "USE=experimental with so old a kernel depends on GCC in ways unknown")
    drops += [*_OLD_GCC, *([_GCC_9] if host.gcc_major is not None and host.gcc_major < 9 else [])] if is_new else []
    if bad := [drop for drop in drops if not re.fullmatch(r"[A-Za-z0-9._+*?-]{1,200}", drop, re.ASCII)]:
        raise KernelUnavailableError(f"UNIPATCH_EXCLUDE names {bad[0][:200]!r}, which is no beginning of a file name.")
    return UnipatchRecipe(
        package=files.ebuild.package,
        version=version,
        linux=_from_kernel_org(files, _linux_name(version)),
        items=tuple(items),
        drops=tuple(dict.fromkeys(drops)),
        strict_order=bool(ebuild.value("UNIPATCH_STRICTORDER")),
        # a first release has no patch of its own: it is the tarball
        guard=version.okv if wanted and version.numbers[2:] not in {(), (0,)} else None,
        extraversion=None if ebuild.value("K_NOSETEXTRAVERSION") else version.extraversion,
        removals=_removals(ebuild),
    )


def _linux_name(version: KernelVersion) -> str:
    return f"linux-{version.series}.tar.xz"


def _from_kernel_org(files: PackageFiles, name: str) -> Distfile:
    return Distfile(files.manifest.distfile(name), (kernel_org_url(name),))


def _compare(ebuild: Ebuild, version: KernelVersion, host: Host) -> None:
    """Raise where the host's package was made by another ebuild than the one that is here."""
    for name in _COMPARED:
        if name not in host.variables:
            continue
        reported = " ".join(host.variables[name].split())
        ours = {"KV_FULL": version.full, "EXTRAVERSION": version.extraversion}.get(name)
        ours = " ".join(ebuild.value(name).split()) if ours is None else ours
        if reported != ours:
            raise KernelUnavailableError(
                f"The host's {ebuild.package} was made with {name}={reported[:200]!r}, and {ebuild.file} of the "
                f"configured repository says {ours!r}.",
                hint="The ebuild was changed since: configure a checkout of the repository as it was when the host's "
                "package was merged.",
            )


def _compare_list(ebuild: Ebuild, names: Sequence[str], host: Host) -> None:
    """Raise where the host's user added patches: unipatch leaves all it was given in UNIPATCH_LIST, as paths."""
    reported = [Path(word).name for word in host.variables.get("UNIPATCH_LIST", "").split()]
    if reported and reported != list(names):
        raise KernelUnavailableError(
            f"The host's {ebuild.package} was made from {' '.join(reported)[:300]}, and {ebuild.file} takes "
            f"{' '.join(names)}.",
            hint="Patches that UNIPATCH_LIST added on the host are not known here: put them into /etc/portage/patches.",
        )


def _default_items(files: PackageFiles, version: KernelVersion, wanted: Sequence[str], number: str) -> list[_Item]:
    """Without genpatches, the patch from kernel.org that leads from X.Y to X.Y.Z."""
    if wanted or number or len(version.numbers) < 3 or version.numbers[2] == 0:
        return []
    name = f"patch-{version.okv}.xz"
    return [_Item(name, _from_kernel_org(files, name))]


def _genpatches(
    files: PackageFiles, version: KernelVersion, wanted: Sequence[str], number: str, host: Host
) -> list[_Item]:
    ebuild = files.ebuild
    if not wanted and not number:
        return []
    if not wanted or not re.fullmatch(r"[0-9]{1,5}[a-z]?", number, re.ASCII):
        raise ebuild.error(
            ebuild.line("K_GENPATCHES_VER") or ebuild.line("K_WANT_GENPATCHES"),
            f"K_WANT_GENPATCHES is {' '.join(wanted)!r} and K_GENPATCHES_VER is {number!r}, which names no genpatches",
        )
    found: list[_Item] = []
    for part in wanted:
        if part not in GENPATCHES:
            raise ebuild.error(ebuild.line("K_WANT_GENPATCHES"), f"genpatches have no part {part!r}")
        if part == "experimental" and "experimental" not in host.use and not ebuild.value("K_EXP_GENPATCHES_NOUSE"):
            continue
        name = f"genpatches-{version.series}-{number}.{part}.tar.xz"
        found.append(_Item(name, Distfile(files.manifest.distfile(name), genpatches_urls(name))))
    return found


def _listed_items(files: PackageFiles) -> list[_Item]:
    """What the ebuild itself puts into UNIPATCH_LIST: distfiles, and files beside it."""
    found: list[_Item] = []
    ebuild = files.ebuild
    for word in ebuild.value("UNIPATCH_LIST").split():
        match = re.fullmatch(r"\$\{(DISTDIR|FILESDIR)\}/+([A-Za-z0-9][A-Za-z0-9._+/-]*)", word, re.ASCII)
        line = ebuild.line("UNIPATCH_LIST")
        if match is None or ".." in Path(match[2]).parts:
            raise ebuild.error(line, f"UNIPATCH_LIST has {word[:100]!r}, which is neither in DISTDIR nor in FILESDIR")
        kind: Literal["DISTDIR", "FILESDIR"] = "DISTDIR" if match[1] == "DISTDIR" else "FILESDIR"
        name = match[2]
        suffix = Path(name).suffix
        item = (
            _Item(name, Distfile(files.manifest.distfile(name)))
            if kind == "DISTDIR"
            else _Item(Path(name).name, None, files.aux(name))
        )
        if not item.is_tarball and suffix not in {".xz", ".bz2", ".gz", ".patch", ".diff"}:
            raise ebuild.error(line, f"UNIPATCH_LIST has {name!r}, which is of no kind that is known here")
        found.append(item)
    return found


def _drops_old_gcc(version: KernelVersion) -> bool:
    """Whether unipatch takes its newer branch, in which GCC counts only where it is older than 9."""
    major, minor, patch = (*version.numbers, 0)[:3]
    limits = {(4, 19): 189, (5, 4): 115, (5, 10): 33, (5, 11): 17, (5, 12): 0}
    return (major, minor) >= (5, 13) or patch > limits.get((major, minor), 10**6)


def _removals(ebuild: Ebuild) -> tuple[str, ...]:
    """What the ebuild's own functions do to the tree: nothing, or the removal of files in src_prepare."""
    removals: list[str] = []
    for name, statements in ebuild.functions.items():
        if name in _HARMLESS:
            continue
        for statement in statements:
            text = statement.text
            if name.startswith("pkg_") and re.fullmatch(rf"[a-z0-9-]+_{name}", text):
                continue
            if text == f"kernel-2_{name}" or (name == "src_prepare" and text in {"default", "eapply_user"}):
                continue
            removal = _REMOVAL.fullmatch(text) if name == "src_prepare" else None
            if removal is None or ".." in Path(removal["path"]).parts:
                raise ebuild.error(statement.line, f"{name} does something that is not understood: {text[:80]}")
            removals.append(removal["path"].lstrip("/"))
    return tuple(removals)
