# SPDX-License-Identifier: GPL-2.0-or-later
"""The lines of a patch, read strictly: from bytes to sections, one for each file, that nobody has judged yet.

Formats: GNU diffutils, "Detailed Description of Unified Format"; git, "Generating patch text with -p"; mbox and mail
around them as `git format-patch` writes it. What stands before the first file, and between one mail and the next, is
text; what stands between two files of one diff is text too, but no line of it may look like a part of a hunk: such a
line is what a wrong count leaves over, and dropping it would drop a change.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NoReturn

from elivepatch.errors import Diagnosis, InvalidPatchError
from elivepatch.patches.model import NO_NEWLINE, Hunk
from elivepatch.patches.names import NameProblem, take_name

DOC = "docs/patches.md"
_HUNK = re.compile(rb"@@ -(\d{1,8})(?:,(\d{1,8}))? \+(\d{1,8})(?:,(\d{1,8}))? @@(?: (.*))?")
_EPOCH = re.compile(rb"\s*(?:1970-01-01|1969-12-31)[ T]\d\d:\d\d:\d\d(?:\.0+)? [+-]\d{4}\s*")
_MBOX = re.compile(rb"From [0-9a-f]{40}(?:[0-9a-f]{24})? ")
_ENCODING = re.compile(rb"content-transfer-encoding:\s*(quoted-printable|base64)", re.IGNORECASE)
_BINARY = re.compile(rb"GIT binary patch|(?:Binary files|Files) .+ differ")
_INDEX = re.compile(rb"index ([0-9a-f]{4,64})\.\.([0-9a-f]{4,64})(?: (\d+))?")
_SIMILARITY = re.compile(rb"(?:dis)?similarity index \d{1,3}%")
_NORMAL_DIFF = re.compile(rb"\d+(?:,\d+)?[acd](?:\d+(?:,\d+)?)?")
_GIT = "Make it with 'git diff', 'git format-patch' or 'diff -ruN'."
_WHOLE = (
    "Get the patch again as a file (not through an editor or a terminal); its end or some of its lines are missing."
)


@dataclass
class Section:
    """What a patch says about one file, as it stands there. Names still have their prefix."""

    line: int
    git: tuple[str, str] | None = None
    old: str | None = None
    new: str | None = None
    old_epoch: bool = False
    new_epoch: bool = False
    old_mode: str | None = None
    new_mode: str | None = None
    added: bool = False
    deleted: bool = False
    rename_from: str | None = None
    rename_to: str | None = None
    index: tuple[str, str] | None = None
    hunks: list[Hunk] = field(default_factory=list[Hunk])


def refuse(patch: str, rule: str, message: str, hint: str, line: int | None = None) -> InvalidPatchError:
    """The error for something wrong in a patch; ``line`` counts from 1 in the patch."""
    place = f"{patch}, line {line}" if line else patch
    finding = Diagnosis(rule=rule, message=message, file=patch, line=line, hint=hint, doc=f"{DOC}#{rule}")
    return InvalidPatchError(f"{place}: {message}", hint=hint, diagnosis=[finding])


class Reader:
    """Reads the sections of one patch. Raises InvalidPatchError, and nothing else, for whatever it is given."""

    def __init__(self, name: str, data: bytes) -> None:
        self._name = name
        self._lines = data.split(b"\n")
        if self._lines[-1] == b"":
            self._lines.pop()
        self._at = 0

    def _fail(self, rule: str, message: str, hint: str, at: int | None = None) -> NoReturn:
        raise refuse(self._name, rule, message, hint, (self._at if at is None else at) + 1)

    def _line(self, ahead: int = 0) -> bytes:
        at = self._at + ahead
        return self._lines[at] if at < len(self._lines) else b""

    def sections(self) -> list[Section]:
        """Every section of the patch, in order."""
        found: list[Section] = []
        text = True  # mail, message or anything else that is not a diff
        while self._at < len(self._lines):
            line = self._line()
            if line.startswith(b"diff --git "):
                found.append(self._git_section())
                text = False
            elif self._at_names():
                section = Section(line=self._at + 1)
                self._names(section)
                found.append(section)
                text = False
            else:
                text = self._between(line, text=text)
                self._at += 1
        if not found:
            self._no_patch()
        return found

    def _between(self, line: bytes, *, text: bool) -> bool:
        """Judge a line outside of every section; whether what follows is text."""
        if line.startswith((b"diff --cc ", b"diff --combined ", b"@@@")):
            self._fail("combined-diff", "This is the combined diff of a merge.", "Take the diff against one parent.")
        if _HUNK.match(line):
            self._fail("hunk-header", "A hunk stands where no file was named.", _WHOLE)
        if _BINARY.fullmatch(line):
            self._fail("binary", "The patch changes a binary file.", "Leave binary files out of the patch.")
        if line.startswith(b"***************") or (line.startswith(b"*** ") and self._line(1).startswith(b"--- ")):
            self._fail("not-unified", "This is a context diff.", _GIT)
        if text and _ENCODING.match(line):
            self._fail(
                "mail-encoding",
                "The mail is encoded (quoted-printable or base64).",
                "Save the patch decoded: 'b4 am', the archive's raw view, or 'git format-patch' after 'git am'.",
            )
        if _MBOX.match(line) or line.rstrip() == b"--":
            return True
        if not text and line.startswith(b"Only in "):
            self._fail(
                "only-in",
                "diff found a file on one side only, and the patch does not hold it.",
                "Make the patch with 'diff -ruN', or remove this line if the file does not belong to the change.",
            )
        if not text and line[:1] in (b" ", b"+", b"-"):
            self._fail("hunk-count", "A line of a change stands outside of every hunk.", _WHOLE)
        return text

    def _no_patch(self) -> NoReturn:
        lines = [line for line in self._lines if line.strip()]
        if lines and (_NORMAL_DIFF.fullmatch(lines[0]) or (lines[0].startswith(b"diff ") and len(lines) > 1)):
            self._fail("not-unified", "This is no unified diff (an ed script, or plain diff output).", _GIT, at=0)
        self._fail("not-a-patch", "This is not a patch: there is no unified diff in it.", _GIT, at=0)

    def _at_names(self) -> bool:
        return self._line().startswith(b"--- ") and self._line(1).startswith(b"+++ ")

    def _name_here(self, rest: bytes) -> tuple[str, bytes]:
        try:
            return take_name(rest)
        except NameProblem as problem:
            self._fail(problem.rule, str(problem), problem.hint)

    def _git_section(self) -> Section:
        section = Section(line=self._at + 1)
        old, rest = self._name_here(self._line()[len(b"diff --git ") :])
        new, rest = self._name_here(rest[1:])
        if rest:
            self._fail("file-name", "More than two file names follow 'diff --git'.", "File names hold no white space.")
        section.git = (old, new)
        self._at += 1
        seen: set[bytes] = set()
        while self._at < len(self._lines) and self._git_header(section, seen):
            self._at += 1
        if _BINARY.fullmatch(self._line()):
            self._fail("binary", f"The patch changes a binary file ({new}).", "Leave binary files out of the patch.")
        if self._at_names():
            self._names(section)
        return section

    def _git_header(self, section: Section, seen: set[bytes]) -> bool:
        """Take one extended header line; false where the headers end."""
        line = self._line()
        key = next((key for key in _GIT_HEADERS if line.startswith(key)), None)
        if key is None:
            return False
        if b"index " in seen:
            self._fail("header-mismatch", "The 'index' line is not the last of the headers.", _WHOLE)
        if key in seen:
            self._fail("header-mismatch", f"The header '{key.decode().strip()}' stands there twice.", _WHOLE)
        seen.add(key)
        rest = line[len(key) :]
        if key in (b"copy from ", b"copy to "):
            self._fail("copy", "The patch copies a file.", "Make it without -C (git diff --no-renames).")
        elif key == b"rename from ":
            section.rename_from = self._whole_name(rest)
        elif key == b"rename to ":
            section.rename_to = self._whole_name(rest)
        elif key == b"index ":
            match = _INDEX.fullmatch(line)
            if match is None:
                self._fail("header-mismatch", "The 'index' line of a git diff is damaged.", _WHOLE)
            section.index = (match[1].decode(), match[2].decode())
            if match[3] is not None:
                if section.old_mode or section.new_mode:
                    self._fail("header-mismatch", "The mode of the file is given twice.", _WHOLE)
                section.old_mode = section.new_mode = self._mode(match[3])
        elif key in (b"old mode ", b"deleted file mode "):
            section.old_mode = self._mode(rest)
            section.deleted = key == b"deleted file mode "
        elif key in (b"new mode ", b"new file mode "):
            section.new_mode = self._mode(rest)
            section.added = key == b"new file mode "
        elif not _SIMILARITY.fullmatch(line):
            self._fail("header-mismatch", "A header line of a git diff is damaged.", _WHOLE)
        return True

    def _whole_name(self, rest: bytes) -> str:
        name, more = self._name_here(rest)
        if more:
            self._fail("file-name", "File names hold no white space.", "Rename the file.")
        return name

    def _mode(self, raw: bytes) -> str:
        hint = "Leave this file out of the patch: only regular files with mode 100644 or 100755 can be changed."
        rule, message = "file-mode", f"The patch gives a file the mode {raw[:20].decode('latin-1')!a}."
        if raw in (b"100644", b"100755"):
            return raw.decode()
        if raw == b"120000":
            rule, message = "symlink", "The patch makes or changes a symbolic link."
        elif raw == b"160000":
            rule, message = "submodule", "The patch changes a submodule."
        raise refuse(self._name, rule, message, hint, self._at + 1)

    def _names(self, section: Section) -> None:
        section.old, stamp = self._name_here(self._line()[4:])
        section.old_epoch = _EPOCH.fullmatch(stamp) is not None
        self._at += 1
        section.new, stamp = self._name_here(self._line()[4:])
        section.new_epoch = _EPOCH.fullmatch(stamp) is not None
        self._at += 1
        while self._line().startswith(b"@@"):
            section.hunks.append(self._hunk())
        if not section.hunks:
            self._fail("truncated", f"No hunk follows the names of {section.new}.", _WHOLE, at=self._at - 1)

    def _hunk(self) -> Hunk:
        began, line = self._at, self._line()
        if line.startswith(b"@@@"):
            self._fail("combined-diff", "This is the combined diff of a merge.", "Take the diff against one parent.")
        match = _HUNK.fullmatch(line)
        if match is None:
            self._fail("hunk-header", "The header of a hunk is damaged.", _WHOLE)
        old_start, new_start = int(match[1]), int(match[3])
        old, new = (1 if match[n] is None else int(match[n]) for n in (2, 4))
        header = match[0].split(b" @@")[0].decode()[3:]
        if (old and not old_start) or (new and not new_start) or not old + new:
            self._fail("hunk-header", f"The hunk {header} has a range that no file has.", _WHOLE)
        self._at += 1
        lines: list[bytes] = []
        left = {b"-": old, b"+": new}
        ended: set[bytes] = set()
        while left[b"-"] or left[b"+"] or self._line().startswith(b"\\ "):
            if self._at >= len(self._lines):
                self._fail("truncated", f"The patch ends inside the hunk {header}.", _WHOLE, at=self._at - 1)
            line = self._line() or b" "  # an editor took the space of an empty context line; GNU patch and git agree
            mark = line[:1]
            sides = {b" ": {b"-", b"+"}, b"-": {b"-"}, b"+": {b"+"}}.get(mark)
            if mark == b"\\" and lines and lines[-1] != NO_NEWLINE:
                last = lines[-1][:1]
                ended |= {b"-", b"+"} if last == b" " else {last}
                line = NO_NEWLINE
            elif sides is None:
                self._fail("hunk-count", f"The hunk {header} has fewer lines than its header says.", _WHOLE)
            elif sides & ended:
                self._fail("no-newline-marker", "Lines follow the one that has no newline at its end.", _WHOLE)
            else:
                for side in sides:
                    left[side] -= 1
                    if left[side] < 0:
                        self._fail("hunk-count", f"The hunk {header} has other lines than its header says.", _WHOLE)
            lines.append(line)
            self._at += 1
        if ended and any(left[side] for side in ended):
            self._fail("no-newline-marker", "The file ends before the hunk does.", _WHOLE)
        return Hunk(
            old_start=old_start,
            old_count=old,
            new_start=new_start,
            new_count=new,
            lines=tuple(lines),
            section=(match[5] or b"").decode(errors="replace").strip(),
            patch_line=began + 1,
        )


_GIT_HEADERS = (
    b"old mode ",
    b"new mode ",
    b"deleted file mode ",
    b"new file mode ",
    b"copy from ",
    b"copy to ",
    b"rename from ",
    b"rename to ",
    b"similarity index ",
    b"dissimilarity index ",
    b"index ",
)
