# SPDX-License-Identifier: GPL-2.0-or-later
"""Read the files that a build is made from, within their limits, before anything is sent."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from elivepatch.errors import InputTooLargeError, InvalidInputError
from elivepatch.patches.files import PATCH_LINE, require_patch
from elivepatch.protocol import limits

#: The identifier of a vulnerability: https://www.cve.org/About/Process, "CVE ID".
_CVE = re.compile(r"CVE-[0-9]{4}-[0-9]{4,19}(?![0-9])")
#: Lines with which a patch says what it is for: subjects, tags of distributors, and those that hold nothing but names.
_SAYS = re.compile(
    r"(?:CVEs?:|(?:Subject|Title|Description|References|Fix(?:es)?|Closes|Resolves|Addresses)\b).*"
    r"|(?:[\s,;&()\[\]-]|and|CVE-[0-9]{4}-[0-9]{4,19})+",
    re.ASCII,
)
_TAKES_BACK = re.compile(r"(?im)^(?:subject: *)?(?:\[[^]]*\] *)*revert\b|^This reverts commit ")


@dataclass(frozen=True)
class Part:
    """A file to send: the part of the request that it is, its name (for people) and its content."""

    part: str
    name: str
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class InputFile:
    """A file to send. ``name`` is its last part, for people."""

    name: str
    data: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        """Digest of the content, in hex."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Wish:
    """What the command line asks for, beside the settings.

    ``given`` are patches that have been read already, behind those of ``patches``, and ``script`` is a check script
    likewise; ``cves`` are what they close beside those that they name, ``overlays`` where they come from.
    """

    patches: tuple[Path, ...]
    output: Path | None = None
    check: Path | None = None
    accept_warnings: bool = False
    drop_earlier: bool = False
    force: bool = False
    given: tuple[InputFile, ...] = ()
    script: InputFile | None = None
    cves: tuple[str, ...] = ()
    overlays: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inputs:
    """Everything that is sent besides the request itself."""

    patches: tuple[InputFile, ...]
    base_patches: tuple[InputFile, ...]
    config: InputFile | None
    check: InputFile | None

    def parts(self) -> list[Part]:
        """As parts of the request, in the order that counts. Raises InputTooLargeError for too much in all."""
        named = [("patch", file) for file in self.patches] + [("base_patch", file) for file in self.base_patches]
        named += [("config", self.config)] if self.config else []
        named += [("check", self.check)] if self.check else []
        total = sum(len(file.data) for _, file in named)
        if total > limits.REQUEST_BYTES - 64 * 1024:  # less what the form itself takes
            raise InputTooLargeError(
                f"All files together have {total} bytes; the limit is {limits.REQUEST_BYTES} bytes.",
                hint="A livepatch is made from a small change; send only the patches that it needs.",
            )
        return [Part(part, file.name, file.data) for part, file in named]


def named_cves(files: Iterable[InputFile]) -> tuple[str, ...]:
    """The CVEs that patches say they are for: in the name of the file, the first line, or a line made for that.

    What is told in passing (``the fix of CVE-2026-10000 broke this``) counts as little as a patch that takes another
    one back: the CVE mode takes what is named for closed.
    """
    found: set[str] = set()
    for file in files:
        change = PATCH_LINE.search(file.data)
        text = file.data[: change.start() if change else 0].decode(errors="replace")
        if _TAKES_BACK.search(text) or "revert" in file.name.lower():
            continue
        first, *rest = text.strip().splitlines() or [""]
        lines = [file.name.upper(), first, *(line for line in rest if _SAYS.fullmatch(line.strip()))]
        found.update(_CVE.findall("\n".join(lines)))
    return tuple(sorted(found))


def read_patches(paths: Sequence[Path]) -> tuple[InputFile, ...]:
    """Read patches in their order. Raises InvalidPatchError, InputTooLargeError and InvalidInputError."""
    if len(paths) > limits.PATCHES:
        raise InputTooLargeError(
            f"{len(paths)} patches are more than the limit of {limits.PATCHES}.", hint="Join some of them."
        )
    return tuple(read_patch(path) for path in paths)


def read_patch(path: Path) -> InputFile:
    """Read one patch. For what it raises see `read_patches`."""
    file = read_file(path, "patch", limits.PATCH_BYTES)
    require_patch(str(path), file.data)
    return file


def read_file(path: Path, what: str, limit_bytes: int) -> InputFile:
    """Read a file of at most ``limit_bytes``; ``what`` it is goes into messages.

    Raises InvalidInputError and InputTooLargeError.
    """
    try:
        if path.exists() and not path.is_file():
            raise InvalidInputError(f"The {what} {path} is not a file.", hint="Name a file.")
        with path.open("rb") as stream:
            data = stream.read(limit_bytes + 1)
    except OSError as error:
        raise InvalidInputError(
            f"The {what} {path} cannot be read: {error.strerror}.", hint="Check the name and its permissions."
        ) from error
    if len(data) > limit_bytes:
        raise InputTooLargeError(
            f"The {what} {path} is larger than {limit_bytes} bytes.",
            hint="A livepatch is made from a small change; send only what it needs.",
        )
    return InputFile(name=_for_people(path.name), data=data)


def _for_people(name: str) -> str:
    """A file's name without what a terminal, a line of a list or JSON could not bear."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name)
