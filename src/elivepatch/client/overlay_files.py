# SPDX-License-Identifier: GPL-2.0-or-later
"""What authors of overlays do with the files of one: make it, add a patch, and what ``lint`` tells."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from elivepatch.client.inputs import read_file, read_patch
from elivepatch.client.state import write_whole
from elivepatch.errors import Diagnosis, InvalidInputError
from elivepatch.overlay.edit import NewEntry, add_entry, new_description
from elivepatch.overlay.findings import DESCRIPTION, Findings
from elivepatch.overlay.licences import is_expression
from elivepatch.overlay.lint import parse_description
from elivepatch.overlay.repository import PATCHES, DirectoryFiles
from elivepatch.overlay.schema import PATH
from elivepatch.patches.series import parse_patch
from elivepatch.protocol import limits
from elivepatch.protocol.models import Model

_WORLD_READABLE = 0o644


class LintReport(Model):
    """What lint found; ``clean`` is true where that is nothing. ``patches`` is how many the overlay has."""

    overlay: str
    clean: bool
    patches: int
    findings: tuple[Diagnosis, ...] = ()

    def lines(self) -> Iterator[str]:
        """The findings for a person, and for programs that read ``file:line: message``."""
        for one in self.findings:
            yield f"{one.file}:{one.line}: {one.severity} [{one.rule}] {one.message}"
            if one.hint:
                yield f"  hint: {one.hint}"
        count = len(self.findings)
        yield f"{count} finding{'s' if count != 1 else ''}" if count else f"clean, {self.patches} patches"


@dataclass(frozen=True)
class NewFiles:
    """The files of a new entry on this machine: a patch or a commit, and a check script maybe."""

    patch: Path | None
    check: Path | None


def init_overlay(directory: Path, title: str, licence: str) -> Path:
    """Make a new overlay; gives its description.

    Raises InvalidInputError where there is one already, and for a title or licence that lint would not take.
    """
    description = directory / DESCRIPTION
    if description.is_symlink() or description.exists():
        raise InvalidInputError(f"{description} is there already.", hint="Name another directory.")
    if not is_expression(licence):
        raise InvalidInputError(
            f"'{licence[:80]}' is not the expression of a licence that the kernel's tree knows.",
            hint="As SPDX has it: GPL-2.0-only, for instance.",
        )
    text = new_description(title, licence).encode()
    findings = Findings()
    parse_description(text, findings)
    if findings.errors:
        raise InvalidInputError(findings.errors[0].message, hint=findings.errors[0].hint)
    try:
        (directory / PATCHES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(
            f"{directory / PATCHES} cannot be made: {error.strerror}.", hint="Name another directory."
        ) from error
    write_whole(description, text, mode=_WORLD_READABLE)
    return description


def add_patch(directory: Path, files: NewFiles, entry: NewEntry) -> tuple[Path, ...]:
    """Put the files of an entry below patches/ and the entry into the description; gives what was written.

    Raises InvalidInputError and what reading a patch raises; then nothing was written.
    """
    there = DirectoryFiles(directory, Findings())
    if DESCRIPTION not in there.sizes:
        raise InvalidInputError(
            f"{directory} is no overlay.", hint=f"Make one with 'elivepatch overlay init {directory}'."
        )
    new: dict[str, bytes] = {}
    if files.patch and entry.patch:
        data = read_patch(files.patch).data
        parse_patch(entry.patch, data)
        new[entry.patch] = data
    if files.check and entry.check:
        new[entry.check] = read_file(files.check, "check script", limits.CHECK_BYTES).data
    for name, data in new.items():
        path = f"{PATCHES}/{name}"
        if path in there.sizes and there.read(path) != data:
            raise InvalidInputError(f"{path} is another file already.", hint="Name it otherwise (--name).")
    text = add_entry(there.read(DESCRIPTION).decode(), entry)
    written: list[Path] = []
    for name, data in new.items():
        target = directory / PATCHES / name
        _make_directory(directory, target.parent)
        write_whole(target, data, mode=_WORLD_READABLE)
        written.append(target)
    write_whole(directory / DESCRIPTION, text.encode(), mode=_WORLD_READABLE)
    return (*written, directory / DESCRIPTION)


def _make_directory(root: Path, wanted: Path) -> None:
    """Make a directory below patches/; no link may stand on the way there."""
    at = root
    for part in wanted.relative_to(root).parts:
        at /= part
        try:
            at.mkdir(exist_ok=True)
            if not stat.S_ISDIR(at.lstat().st_mode):
                raise InvalidInputError(f"{at} is no directory.", hint="Put the directory itself there.")
        except OSError as error:
            raise InvalidInputError(f"{at} cannot be made: {error.strerror}.", hint="Look at it.") from error


def file_name(path: Path) -> str:
    """The name below patches/ for a file of this machine."""
    name = re.sub(r"[^A-Za-z0-9._+-]", "-", path.name).lstrip(".+-")[:100]
    return name if PATH.fullmatch(name) else "a.patch"


def entry_id(name: str) -> str:
    """The id for a patch by the name of its file."""
    stem = name.rpartition("/")[2].removesuffix(".patch").removesuffix(".diff").lower()
    return re.sub(r"[^a-z0-9._-]", "-", stem).lstrip("._-")[:64] or "patch"


def lint_report(directory: Path, patches: int, findings: Sequence[Diagnosis]) -> LintReport:
    """What to print of a lint."""
    return LintReport(overlay=str(directory), clean=not findings, patches=patches, findings=tuple(findings))
