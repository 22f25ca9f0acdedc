# SPDX-License-Identifier: GPL-2.0-or-later
"""Version 0.1 of the description, as the first elivepatch published it.

It is no YAML, although it looks like it: a list follows a mapping on the same level, and the patches of a kernel stand
indented below it without a colon. Its authors meant this, and so it is read, line by line: a line ``- VERSION`` begins
a kernel, ``- patch_id: N`` below it a patch of that kernel, ``KEY: VALUE`` says something about the patch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from elivepatch.git import OBJECT
from elivepatch.overlay import licences
from elivepatch.overlay.findings import Findings, shown
from elivepatch.overlay.kernels import KernelSyntaxError, parse_kernels
from elivepatch.overlay.model import CommitSource, Entry, Overlay
from elivepatch.overlay.schema import CVE, ENTRIES, PATH, REPOSITORY_URL, TEXT_CHARACTERS

_VERSION_LINE = re.compile(r"elivepatch_version\s*:\s*(\S+)\s*")
_KERNEL_LINE = re.compile(r"\s*-\s+(\d\S*?):?\s*")
_PATCH_LINE = re.compile(r"\s*-\s+patch_id\s*:\s*(\S{1,40})\s*")
_FIELD_LINE = re.compile(r"\s+([A-Za-z_]{1,40})\s*:\s*(.*?)\s*")
_FIELDS = ("cve_id", "commit_id", "repository", "path", "comment", "license", "licence")
_HINT = "Say it in schema 1 (docs/overlays.md)."
_OUTSIDE = "Put the patch below patches/ of the overlay and name it there."


def is_old(text: str) -> bool:
    """Whether a description is of that format."""
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#") and line.strip() != "---":
            return _VERSION_LINE.fullmatch(line) is not None
    return False


@dataclass
class _Patch:
    kernel: str
    number: str
    line: int
    fields: dict[str, tuple[str, int]] = field(default_factory=dict[str, tuple[str, int]])


class _Reader:
    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._entries: dict[str, Entry] = {}

    def overlay(self, text: str) -> Overlay:
        for patch in self._patches(text.splitlines()):
            path, line = patch.fields.get("path", ("", 0))
            if path.startswith("/"):
                self._warn(line, f"{shown(path)} is a file of its author's machine: this patch is left out.", _OUTSIDE)
                continue
            entry = self._entry(patch)
            if entry.id in self._entries:
                message = (
                    f"A second patch_id {shown(patch.number)} for {patch.kernel}: read as {entry.id}-{patch.line}."
                )
                self._warn(patch.line, message, "Give each patch of a kernel a number of its own.")
                entry = replace(entry, id=f"{entry.id}-{patch.line}")
            self._entries[entry.id] = entry
        return Overlay(0, None, tuple(self._entries.values()))

    def _warn(self, line: int, message: str, hint: str = _HINT) -> None:
        self._findings.add("old-format", line, message, hint, severity="warning")

    def _patches(self, lines: list[str]) -> list[_Patch]:
        found: list[_Patch] = []
        kernel: str | None = None
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#") or line.strip() == "---":
                continue
            if match := _VERSION_LINE.fullmatch(line):
                self._version(match[1], number)
            elif match := _PATCH_LINE.fullmatch(line):
                if kernel is None:
                    self._findings.add("old-format", number, "A patch stands before every kernel.", _HINT)
                elif len(found) < ENTRIES:
                    found.append(_Patch(kernel, match[1], number))
            elif match := _KERNEL_LINE.fullmatch(line):
                kernel = str(match[1])
                self._warn(number, f"Read as the kernel {shown(kernel)}, whose patches stand below it.")
            elif (match := _FIELD_LINE.fullmatch(line)) and found and match[1] in _FIELDS:
                if match[1] in found[-1].fields:
                    self._findings.add("duplicate-key", number, f"'{match[1]}' comes twice.", "Keep one of them.")
                found[-1].fields[match[1]] = (match[2].strip("\"'"), number)
            else:
                self._findings.add("old-format", number, f"This line is not understood: {shown(line.strip())}.", _HINT)
        return found

    def _version(self, said: str, line: int) -> None:
        if said == "0.1":
            self._warn(line, "This is the old format 0.1, read as its authors meant it.")
        else:
            self._findings.add("schema-version", line, f"{shown(said)} is no version of the old format.", _HINT)

    def _entry(self, patch: _Patch) -> Entry:
        try:
            kernels = (parse_kernels(patch.kernel),)
        except KernelSyntaxError as error:
            self._findings.add("kernel-range", patch.line, f"{shown(patch.kernel)} {error}.", _HINT)
            kernels = ()
        title = patch.fields.get("comment", ("", 0))[0]
        if len(title) > TEXT_CHARACTERS or not title.isprintable():
            self._findings.add("text", patch.line, "The comment is no line of text.", "One line, printable.")
            title = ""
        path, commit = self._path(patch), self._commit(patch)
        if (path is None) == (commit is None) and not self._findings.errors:
            what = "both a path and a commit" if path else "neither a path nor a commit"
            self._findings.add("patch-source", patch.line, f"The patch has {what}.", "Name one of them.")
        name = re.sub(r"[^a-z0-9._-]", "-", f"{patch.kernel}-{patch.number}".lower())[:64]
        return Entry(
            id=name,
            kernels=kernels,
            title=title or None,
            path=path,
            commit=commit,
            cves=self._cves(patch),
            licence=self._licence(patch),
            line=patch.line,
        )

    def _cves(self, patch: _Patch) -> tuple[str, ...]:
        text, line = patch.fields.get("cve_id", ("", 0))
        names = [name for name in re.split(r"[,\s]+", text) if name]
        for name in names:
            if not CVE.fullmatch(name):
                self._findings.add("cve-id", line, f"{shown(name)} is no id of a CVE.", "For instance CVE-2026-12345.")
        return tuple(name for name in names if CVE.fullmatch(name))

    def _path(self, patch: _Patch) -> str | None:
        if "path" not in patch.fields:
            return None
        text, line = patch.fields["path"]
        path = text.removeprefix("./").removeprefix("patches/")
        if not PATH.fullmatch(path):
            self._findings.add("patch-path", line, f"{shown(text)} is no file of the overlay.", _OUTSIDE)
            return None
        if path != text:
            self._warn(line, f"Read as the file {path} below patches/.")
        return path

    def _commit(self, patch: _Patch) -> CommitSource | None:
        if "commit_id" not in patch.fields:
            return None
        commit, line = patch.fields["commit_id"]
        url, where = patch.fields.get("repository", ("", line))
        if not OBJECT.fullmatch(commit):
            self._findings.add("commit-id", line, f"{shown(commit)} is not the full id of a commit.", _HINT)
        elif not REPOSITORY_URL.fullmatch(url):
            self._findings.add("repository-url", where, f"{shown(url)} is no URL of a repository.", "https://…")
        else:
            return CommitSource(url, url, commit)
        return None

    def _licence(self, patch: _Patch) -> str | None:
        text, line = patch.fields.get("license") or patch.fields.get("licence") or ("", 0)
        if not text or licences.is_expression(text):
            return text or None
        meant = licences.meant(text)
        if meant is None:
            self._findings.add("licence", line, f"{shown(text)} is no SPDX id that the kernel knows.", _HINT)
            return None
        self._warn(line, f"The licence {shown(text)} is read as {meant}.")
        return meant


def read_old(text: str, findings: Findings) -> Overlay:
    """Read a description of version 0.1. What had to be guessed is a warning, with the line and what was read."""
    return _Reader(findings).overlay(text)
