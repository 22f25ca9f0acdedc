# SPDX-License-Identifier: GPL-2.0-or-later
"""From the files of an overlay to what it says, and to all that is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from elivepatch.errors import Diagnosis, InputTooLargeError, InvalidPatchError
from elivepatch.overlay.findings import DESCRIPTION, Findings, require_usable
from elivepatch.overlay.model import Entry, Overlay
from elivepatch.overlay.old_format import is_old, read_old
from elivepatch.overlay.repository import PATCHES, DirectoryFiles, OverlayFiles
from elivepatch.overlay.schema import read_schema
from elivepatch.overlay.yaml_reader import read_yaml
from elivepatch.patches.by_name import findings_by_name
from elivepatch.patches.series import parse_patch
from elivepatch.protocol.limits import CHECK_BYTES


def read_overlay(files: OverlayFiles, findings: Findings) -> Overlay | None:
    """What the description of an overlay says; None, and a finding, where that cannot be told at all."""
    if DESCRIPTION not in files.sizes:
        if not any(finding.file == DESCRIPTION for finding in findings.found):
            hint = "'elivepatch overlay init' makes one."
            findings.add("no-description", 1, f"There is no {DESCRIPTION}: this is no overlay.", hint)
        return None
    return parse_description(files.read(DESCRIPTION), findings)


def parse_description(data: bytes, findings: Findings) -> Overlay | None:
    """What a description says; see `read_overlay`."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        findings.add("encoding", line, "The file is not UTF-8.", "Save it as UTF-8.")
        return None
    if text.startswith("\ufeff"):
        findings.add("encoding", 1, "The file begins with a byte order mark.", "Save it without one.")
        text = text[1:]
    if is_old(text):
        return read_old(text, findings)
    root = read_yaml(text, findings)
    return read_schema(root, findings) if root is not None else None


def usable_overlay(files: OverlayFiles, what: str, findings: Findings) -> Overlay:
    """An overlay whose description has no errors; ``what`` it is goes into messages. Raises OverlayRejectedError."""
    overlay = read_overlay(files, findings)
    require_usable(what, findings)
    return overlay or Overlay(1, None, ())


def lint(root: Path) -> tuple[Overlay | None, tuple[Diagnosis, ...]]:
    """The overlay in a directory, and all findings about it. Raises InvalidInputError where that is no directory."""
    findings = Findings()
    files = DirectoryFiles(root, findings)
    overlay = read_overlay(files, findings)
    if overlay is not None:
        used: dict[str, list[Entry]] = {}
        for entry in overlay.entries:
            for path in (entry.path, entry.check):
                if path is not None:
                    used.setdefault(f"{PATCHES}/{path}", []).append(entry)
            _check_files(entry, files, findings)
        for path in {f"{PATCHES}/{entry.path}": None for entry in overlay.entries if entry.path}:
            if path in files.sizes:
                findings.found += _patch_findings(path, files.read(path))
        for path in files.sizes:
            if path not in used and path != DESCRIPTION and not findings.errors:
                message = "No patch of the overlay uses this file."
                findings.add("unused-file", 1, message, "Remove it.", file=path, severity="warning")
    return overlay, findings.in_order()


def _check_files(entry: Entry, files: OverlayFiles, findings: Findings) -> None:
    """Whether the files that an entry names are there, and can be what they are named for."""
    for path, what in ((entry.path, "patch"), (entry.check, "check script")):
        if path is not None and f"{PATCHES}/{path}" not in files.sizes:
            message = f"The {what} {PATCHES}/{path} of '{entry.id}' is not there."
            findings.add("missing-file", entry.line, message, "Add the file, or mend its name.")
    path = f"{PATCHES}/{entry.check}"
    if path in files.sizes:
        script = files.read(path)
        if not script.strip() or len(script) > CHECK_BYTES or b"\r\n" in script or b"\0" in script:
            message = f"The script is empty, larger than {CHECK_BYTES} bytes, no text, or has lines that end in CR LF."
            findings.add("check-script", 1, message, "docs/patches.md says what a check script is.", file=path)


def _patch_findings(path: str, data: bytes) -> Iterator[Diagnosis]:
    """What is wrong with a patch, as far as that can be told without a kernel."""
    try:
        patch = parse_patch(path, data)
    except (InvalidPatchError, InputTooLargeError) as error:
        yield from (replace(finding, file=path, line=finding.line or 1) for finding in error.as_diagnosis())
        return
    code = False
    for file in patch.files:
        found = findings_by_name(file.new_path or file.old_path or "")
        code = code or found is not None
        for finding in found or ():
            if finding.severity != "note":
                yield replace(finding, file=path, line=max(file.patch_line, 1))
    if not code:
        yield Diagnosis(
            rule="only-documentation",
            message="The patch changes no code: only documentation.",
            file=path,
            line=1,
            hint="Send the patch with the code that is to change in the running kernel.",
            doc="docs/patches.md#only-documentation",
        )
