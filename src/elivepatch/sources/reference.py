# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person may name as a kernel: a release, or where its source comes from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from elivepatch.errors import InvalidInputError, SourceRejectedError
from elivepatch.kernel.release import Release, parse_release

#: Where kernel.org hands out its files.
KERNEL_ORG = "https://cdn.kernel.org/pub/linux/kernel"
FORMS = (
    "a release as 'uname -r' prints it (6.12.117+deb13-cloud-amd64)",
    "kernel.org:VERSION (kernel.org:6.12.60)",
    "git:URL#REF (git:https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git#v6.12.60)",
    "dir:PATH (dir:/usr/src/linux)",
    "debian:SERIES or debian:VERSION (debian:6.12, debian:6.12.117-1)",
    "gentoo:PACKAGE-VERSION (gentoo:gentoo-sources-6.12.60-r1)",
)
NAMES = f"A kernel is named by one of: {'; '.join(FORMS)}."
_LONGEST = 4096
_VERSION = re.compile(r"(\d{1,3})\.(\d{1,4})(?:\.(\d{1,5}))?", re.ASCII)
_SERIES = re.compile(r"\d{1,3}\.\d{1,4}", re.ASCII)
_CANDIDATE = re.compile(r"\d{1,3}\.\d{1,4}-rc\d{1,3}", re.ASCII)
#: An address for git: no user or host that could be an option, nothing that a shell or a terminal reads.
_GIT_URL = re.compile(
    r"(?:(?:https|ssh|git)://(?:[A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9_\[][A-Za-z0-9.:_\[\]-]*|file://)"
    r"/[A-Za-z0-9._~+%@:,=/-]*",
    re.ASCII,
)
_GIT_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+/@-]{0,254}", re.ASCII)
_DEBIAN = re.compile(r"\d{1,3}\.\d{1,4}(?:[.~+-][A-Za-z0-9.+~-]{1,100})?", re.ASCII)
_GENTOO = re.compile(
    r"(?:sys-kernel/)?(?P<package>[a-z][a-z0-9+_-]{0,60}?)-"
    r"(?P<version>\d{1,3}\.\d{1,4}(?:\.\d{1,5})?)(?:-r(?P<revision>\d{1,4}))?",
    re.ASCII,
)
#: The top of a kernel's Makefile is where its version stands.
_MAKEFILE_BYTES = 16 * 1024


@dataclass(frozen=True)
class ReleaseReference:
    """A kernel by its release."""

    release: Release


@dataclass(frozen=True)
class KernelOrgReference:
    """A version as kernel.org publishes it; ``6.12``, never ``6.12.0``."""

    version: str


@dataclass(frozen=True)
class GitReference:
    """A branch, tag or commit of a repository."""

    url: str
    ref: str


@dataclass(frozen=True)
class DirectoryReference:
    """A tree on the server, by its absolute path."""

    path: Path


@dataclass(frozen=True)
class DebianReference:
    """Debian's linux-source: the newest of a series (``6.12``), or one version (``6.12.117-1``)."""

    version: str

    @property
    def series(self) -> str:
        """The series, as in the name of the package."""
        return re.match(r"\d+\.\d+", self.version)[0]  # type: ignore[index]  # pyright: ignore[reportOptionalSubscript]  # what is parsed begins so


@dataclass(frozen=True)
class GentooReference:
    """A package of Gentoo's sys-kernel category: its name, its version, and its revision (0 where it has none)."""

    package: str
    version: str
    revision: int

    @property
    def full_version(self) -> str:
        """The version with its revision, as the name of the ebuild has it."""
        return f"{self.version}-r{self.revision}" if self.revision else self.version


Reference = (
    ReleaseReference | KernelOrgReference | GitReference | DirectoryReference | DebianReference | GentooReference
)


def parse_reference(text: str) -> Reference:
    """What is named; raises InvalidInputError, whose hint lists the forms, for anything else."""
    if len(text) > _LONGEST or not text.isprintable():
        raise InvalidInputError("This is not the name of a kernel.", hint=NAMES)
    kind, colon, rest = text.partition(":")
    if not colon and _SERIES.fullmatch(text):
        raise InvalidInputError(
            f"'{text}' is a series of kernels, not a release.",
            hint=f"Name a release, as 'uname -r' prints it; debian:{text} is the newest source that Debian has of it, "
            f"kernel.org:{text} the first one of kernel.org.",
        )
    if not colon:
        try:
            return ReleaseReference(parse_release(text))
        except InvalidInputError as error:
            raise InvalidInputError(f"'{text}' is not a kernel release.", hint=NAMES) from error
    match kind:
        case "kernel.org":
            return KernelOrgReference(kernel_org_version(rest))
        case "git":
            return _git(rest)
        case "dir":
            return _directory(rest)
        case "debian":
            if not _DEBIAN.fullmatch(rest):
                raise InvalidInputError(f"'{rest}' is neither a series nor a version of linux-source.", hint=NAMES)
            return DebianReference(rest)
        case "gentoo":
            found = _GENTOO.fullmatch(rest)
            if found is None:
                raise InvalidInputError(f"'{rest}' is not a Gentoo package with its version.", hint=NAMES)
            return GentooReference(found["package"], found["version"], int(found["revision"] or 0))
        case _:
            raise InvalidInputError(f"'{kind}' is not a source of kernels.", hint=NAMES)


def kernel_org_version(text: str) -> str:
    """A version of kernel.org as its files are named: ``6.12`` for 6.12.0. Raises InvalidInputError."""
    if _CANDIDATE.fullmatch(text):
        raise InvalidInputError(
            f"kernel.org publishes no tarball of {text}: release candidates are in git only.",
            hint=f"Name git:https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git#v{text}",
        )
    found = _VERSION.fullmatch(text)
    if found is None:
        raise InvalidInputError(f"'{text}' is not a version of kernel.org.", hint="For instance 6.12 or 6.12.60.")
    major, minor, patch = (int(number or 0) for number in found.groups())
    if major < 3:
        raise InvalidInputError(f"Linux {text} is too old: elivepatch knows 3.0 and later.", hint=NAMES)
    return f"{major}.{minor}.{patch}" if patch else f"{major}.{minor}"


def _git(text: str) -> GitReference:
    url, mark, ref = text.partition("#")
    if not mark or not ref:
        raise InvalidInputError("A git reference needs '#' and a branch, tag or commit.", hint=NAMES)
    check_git(url, ref)
    return GitReference(url, ref)


def check_git(url: str, ref: str) -> None:
    """Raise InvalidInputError for an address or a ref that git might take for something else."""
    if "@" in url.partition("://")[2].partition("/")[0] and not url.startswith("ssh:"):
        shown = re.sub(r"://[^/]*@", "://…@", url)
        raise InvalidInputError(
            f"'{shown}' holds a name or a password, which would be told to others.",
            hint="Leave it out, and give git on the server a credential helper (/etc/gitconfig).",
        )
    if not _GIT_URL.fullmatch(url):
        raise InvalidInputError(f"'{url}' is not an address of a git repository.", hint="https://, ssh:// or git://")
    wrong = not _GIT_REF.fullmatch(ref) or any(part in ref for part in ("..", "//", "@{", "/.")) or ref == "@"
    if wrong or ref.endswith((".lock", "/", ".")):  # git-check-ref-format(1)
        raise InvalidInputError(f"'{ref}' is not the name of a branch, tag or commit.", hint=NAMES)


def _directory(text: str) -> DirectoryReference:
    path = PurePosixPath(text)
    if not path.is_absolute() or ".." in path.parts:
        raise InvalidInputError(f"'{text}' is not an absolute path.", hint="For instance dir:/usr/src/linux")
    return DirectoryReference(Path(path))


def tree_version(tree: Path) -> tuple[str, str]:
    """The version of a tree (``6.12.60``) and its EXTRAVERSION (``-gentoo``, or nothing), from its Makefile.

    Raises SourceRejectedError where there is no Makefile of a kernel.
    """
    try:
        with (tree / "Makefile").open("rb") as stream:
            text = stream.read(_MAKEFILE_BYTES).decode(errors="replace")
    except OSError as error:
        raise SourceRejectedError(
            f"{tree} is not a kernel tree: its Makefile cannot be read ({error.strerror}).",
            hint="Name the directory with the kernel's Makefile and Kconfig.",
        ) from error
    values: dict[str, str] = {}
    for found in re.finditer(
        r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION)[ \t]*=[ \t]*(.*?)[ \t]*$", text, re.MULTILINE
    ):
        values.setdefault(found[1], found[2])
    numbers = [values.get(name, "") for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL")]
    extra = values.get("EXTRAVERSION", "")
    if not all(re.fullmatch(r"\d{1,5}", number, re.ASCII) for number in numbers):
        raise SourceRejectedError(
            f"{tree} is not a kernel tree: its Makefile says no VERSION, PATCHLEVEL and SUBLEVEL.",
            hint="Name the directory with the kernel's Makefile and Kconfig.",
        )
    if not re.fullmatch(r"[A-Za-z0-9.+~_-]{0,64}", extra, re.ASCII):
        raise SourceRejectedError(f"{tree}: its Makefile's EXTRAVERSION is not part of a release: {extra[:80]!r}.")
    return ".".join(numbers), extra
