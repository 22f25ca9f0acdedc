# SPDX-License-Identifier: GPL-2.0-or-later
"""What a Gentoo host knows of its kernel's source: the package it is of, and the user's patches that went into it.

The rules of /etc/portage/patches are those of portage's eapply_user and __readdir (bin/phase-helpers.sh, 2026). The
database of installed packages is /var/db/pkg/CATEGORY/PF/, a file for each variable, and environment.bz2 with all that
the ebuild had set, as bash prints it. Everything is read below a root, so that a tree of plain files can be a host.
"""

from __future__ import annotations

import bz2
import errno
import os
import re
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from elivepatch.client.inputs import InputFile
from elivepatch.errors import InputTooLargeError, InvalidInputError
from elivepatch.kernel.running import RELEASE
from elivepatch.protocol import limits

CATEGORY = "sys-kernel"
#: What of a package's environment decides its tree, or tells whether another ebuild made it.
VARIABLES = (
    "UNIPATCH_EXCLUDE",
    "UNIPATCH_LIST",
    "KV_FULL",
    "EXTRAVERSION",
    "K_GENPATCHES_VER",
    "K_WANT_GENPATCHES",
)
#: Bytes of environment.bz2, of what is in it, and of a value that is taken from it.
_PACKED_BYTES, _ENVIRONMENT_BYTES, _VALUE_BYTES = 4 * 1024**2, 32 * 1024**2, 64 * 1024
_FACT_BYTES = 64 * 1024
#: Package Manager Specification, sections 3.1.2 and 3.2: the name ends before the last thing that is a version.
_PF = re.compile(
    r"(?P<pn>[A-Za-z0-9_][A-Za-z0-9+_-]*?)-"
    r"(?P<pv>\d+(?:\.\d+)*[a-z]?(?:_(?:alpha|beta|pre|rc|p)\d*)*)(?:-(?P<pr>r\d+))?",
    re.ASCII,
)
_SLOT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9+_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9+_.-]*)?", re.ASCII)
_DECLARATION = re.compile(r"declare -(?P<flags>[-A-Za-z]+) (?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<equals>=)?")
_FUNCTION = re.compile(r"\S+ \(\)\s*$")


@dataclass(frozen=True)
class InstalledKernel:
    """An installed package with a kernel. ``pr`` is ``r0`` where it has no revision; ``slot`` has no subslot.

    ``variables`` are those of VARIABLES that the package's environment has.
    """

    pn: str
    pv: str
    pr: str
    slot: str
    use: tuple[str, ...] = ()
    repository: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def pf(self) -> str:
        """Name and version, as the package's directory is called: ``gentoo-sources-6.12.60-r1``."""
        return f"{self.pn}-{self.pv}" + ("" if self.pr == "r0" else f"-{self.pr}")

    @property
    def full_version(self) -> str:
        """What the release begins with: as the package's environment says, or by the rule of kernel-2.eclass."""
        made = f"{self.pv}-{self.pn.partition('-')[0]}" + ("" if self.pr == "r0" else f"-{self.pr}")
        return self.variables.get("KV_FULL") or made


# -- the user's patches


def collect_patches(
    kernel: InstalledKernel, *, root: Path = Path("/"), environment: Mapping[str, str] | None = None
) -> tuple[InputFile, ...]:
    """The patches of /etc/portage/patches that portage applies to a package, in the order in which it does.

    ``environment`` is that of portage: PORTAGE_CONFIGROOT moves /etc/portage. Raises InvalidInputError where portage
    would end with an error, and InputTooLargeError for more than can be sent.
    """
    base = _moved(root, environment, "PORTAGE_CONFIGROOT") / "etc/portage/patches" / CATEGORY
    chosen: dict[bytes, Path] = {}
    for name in (kernel.pn, f"{kernel.pn}-{kernel.pv}", f"{kernel.pn}-{kernel.pv}-{kernel.pr}"):
        for directory in (base / name, base / f"{name}:{kernel.slot}"):
            for entry in _entries(directory):
                # what is empty once links are followed cancels, and so does a link that leads nowhere
                if _size(directory / os.fsdecode(entry)):
                    chosen[entry] = directory / os.fsdecode(entry)
                else:
                    chosen.pop(entry, None)
    if len(chosen) > limits.PATCHES:
        raise InputTooLargeError(
            f"{base} has {len(chosen)} patches for {kernel.pf}; the limit is {limits.PATCHES}.",
            hint="Join some of them.",
        )
    return tuple(InputFile(os.fsdecode(name), _read_patch(chosen[name])) for name in sorted(chosen))


def _entries(directory: Path) -> list[bytes]:
    """The names in a directory that portage takes for patches; none where there is no such directory.

    Hidden ones are left out: the shell's ``*`` does not find them.
    """
    try:
        names = os.listdir(os.fsencode(directory))  # noqa: PTH208  # as bytes: the order is that of bytes
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR} and not _exists(directory):
            return []
        raise InvalidInputError(
            f"{directory} exists, and cannot be read as a directory: {error.strerror}.",
            hint="Portage refuses it too. Remove it, or make it a directory that you may read.",
        ) from error
    return [name for name in names if name.endswith((b".patch", b".diff")) and not name.startswith(b".")]


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        if error.errno == errno.ELOOP:
            return 0
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}.", hint="Check its permissions.") from error


def _read_patch(path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):
        raise InvalidInputError(
            f"{path} is called a patch and is no file.", hint="Portage fails on it too. Call it something else."
        )
    return _read(path, limits.PATCH_BYTES)


# -- the installed package


def installed_kernels(
    *, root: Path = Path("/"), environment: Mapping[str, str] | None = None
) -> tuple[InstalledKernel, ...]:
    """The installed packages of the category sys-kernel that bring a kernel, by name.

    ``environment`` is that of portage: ROOT moves the database. Raises InvalidInputError for an entry of the database
    that is damaged.
    """
    database = _moved(root, environment, "ROOT") / "var/db/pkg" / CATEGORY
    found: list[InstalledKernel] = []
    for directory in sorted(database.glob("*")) if database.is_dir() else ():
        match = _PF.fullmatch(directory.name)  # what portage is about to remove is called -MERGING-…
        if match is None:
            continue
        inherited = (_fact(directory / "INHERITED") or "").split()
        if not {"kernel-2", "kernel-install"} & set(inherited) or match["pn"] == "linux-headers":
            continue
        slot = _fact(directory / "SLOT") or ""
        if not _SLOT.fullmatch(slot):
            raise InvalidInputError(
                f"{directory} is damaged: its SLOT is {slot[:60]!r}.", hint=f"Merge ={CATEGORY}/{directory.name} again."
            )
        found.append(
            InstalledKernel(
                pn=match["pn"],
                pv=match["pv"],
                pr=match["pr"] or "r0",
                slot=slot.partition("/")[0],
                use=tuple((_fact(directory / "USE") or "").split()),
                repository=_fact(directory / "repository"),
                variables=_environment(directory / "environment.bz2"),
            )
        )
    return tuple(found)


def find_installed_kernel(
    release: str, *, root: Path = Path("/"), environment: Mapping[str, str] | None = None
) -> InstalledKernel | None:
    """The installed package that a release was built from; None where none is.

    The directory that the modules' link to their source leads to decides; a dist kernel says there which package it is
    of. Without one it is the package with the longest version that the release begins with. Raises InvalidInputError
    where several are as good.
    """
    if not RELEASE.fullmatch(release):
        return None
    kernels = installed_kernels(root=root, environment=environment)
    tree = source_directory(release, root=root)
    if tree is not None:
        said = (_fact(tree / "dist-kernel") or "").partition(":")[0]
        named = [kernel for kernel in kernels if said == f"{CATEGORY}/{kernel.pf}"]
        named = named or [kernel for kernel in kernels if tree.name == f"linux-{kernel.full_version}"]
        if named:
            return _only(named, release)
    fitting = [kernel for kernel in kernels if _begins(release, kernel.full_version)]
    longest = max((len(kernel.full_version) for kernel in fitting), default=0)
    fitting = [kernel for kernel in fitting if len(kernel.full_version) == longest]
    return _only(fitting, release) if fitting else None


def source_directory(release: str, *, root: Path = Path("/")) -> Path | None:
    """The directory of the source that a release was built from, by the links that its modules have; None without."""
    modules = root / "lib/modules" / release
    for name in ("source", "build"):
        try:
            place = _followed(modules / name, root)
            # a directory that is itself a link, as /usr/src/linux is, counts by what it leads to
            place = _followed(place, root) if place.is_symlink() else place
            if place.is_dir():
                return place
        except OSError:  # no link, or one to a name that is longer than a name may be
            continue
    return None


def _followed(link: Path, root: Path) -> Path:
    """What a link of the host leads to, read from outside: it is below the root."""
    to = link.readlink()
    return root / str(to).lstrip("/") if to.is_absolute() else Path(os.path.normpath(link.parent / to))


def _begins(release: str, version: str) -> bool:
    return release.startswith(version) and not release[len(version) : len(version) + 1].isalnum()


def _only(kernels: list[InstalledKernel], release: str) -> InstalledKernel:
    if len(kernels) == 1:
        return kernels[0]
    names = ", ".join(f"{CATEGORY}/{kernel.pf}" for kernel in kernels)
    raise InvalidInputError(f"{release} can be of several installed packages: {names}.", hint="Name the one it is of.")


def _moved(root: Path, environment: Mapping[str, str] | None, variable: str) -> Path:
    """The directory that a variable of portage names, below ``root``."""
    where = (os.environ if environment is None else environment).get(variable, "")
    return root / where.lstrip("/") if where else root


def _fact(path: Path) -> str | None:
    """The text of a small file, without the white space around it; None where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(_FACT_BYTES).decode("utf-8", errors="replace").strip()
    except OSError:
        return None


def _read(path: Path, limit_bytes: int) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(limit_bytes + 1)
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}.", hint="Check its permissions.") from error
    if len(data) > limit_bytes:
        raise InputTooLargeError(f"{path} is larger than {limit_bytes} bytes.", hint="Is it what its name says?")
    return data


# -- environment.bz2


def _environment(path: Path) -> Mapping[str, str]:
    if not path.is_file():
        return {}
    unpack = bz2.BZ2Decompressor()
    try:
        data = unpack.decompress(_read(path, _PACKED_BYTES), _ENVIRONMENT_BYTES)  # never more in memory than that
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} is damaged: {error}.", hint="Merge the package again.") from error
    if not unpack.eof:
        raise InvalidInputError(
            f"{path} is cut off, or holds more than {_ENVIRONMENT_BYTES} bytes.", hint="Merge the package again."
        )
    return read_environment(data.decode("utf-8", errors="replace"), VARIABLES)


def read_environment(text: str, names: Collection[str]) -> dict[str, str]:
    """The values of these variables in what ``declare -p`` of bash prints; functions and arrays are passed over.

    Only what bash itself writes is read: ``"…"`` with backslashes, and ``$'…'`` where a value has control characters.
    """
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        match = _DECLARATION.match(text, at, end)
        if match is not None and match["equals"]:
            value, at = _value(text, match.end())
            if match["name"] in names and value is not None and len(value) <= _VALUE_BYTES:
                found[match["name"]] = value
        elif match is None and _FUNCTION.match(text, at, end):
            closing = text.find("\n}", end)
            at = len(text) if closing < 0 else closing + 2
        else:
            at = end
        at = text.find("\n", at)
        at = len(text) if at < 0 else at + 1
    return found


def _value(text: str, at: int) -> tuple[str | None, int]:
    """The value that begins there, and the position behind it; None for an array and for anything else."""
    if text.startswith('"', at):
        match = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL).match(text, at)
        if match is not None:
            return re.sub(r"\\([$`\"\\])", r"\1", match[1]), match.end()
    if text.startswith("$'", at):
        match = re.compile(r"\$'([^'\\]*(?:\\.[^'\\]*)*)'", re.DOTALL).match(text, at)
        if match is not None:
            return re.sub(r"\\(.)", _unescaped, match[1]), match.end()
    if text.startswith("(", at):
        match = re.compile(r"""\((?:[^()"'$]|"(?:[^"\\]|\\.)*"|\$?'(?:[^'\\]|\\.)*'|\$)*\)""", re.DOTALL).match(
            text, at
        )
        if match is not None:
            return None, match.end()
    return None, at


def _unescaped(match: re.Match[str]) -> str:
    return {"n": "\n", "t": "\t"}.get(match[1], match[1])
