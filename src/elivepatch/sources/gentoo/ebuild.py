# SPDX-License-Identifier: GPL-2.0-or-later
"""An ebuild of a kernel, read without bash: what it assigns, in order, and the text of its functions.

Only straight assignments at the top level are followed, with the words that `shell` reads. A statement of another kind
is an error at once; a value that is computed in another way is an error when it is asked for. Both name the line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elivepatch.errors import KernelUnavailableError
from elivepatch.sources.gentoo.package import CATEGORY, KernelPackage
from elivepatch.sources.gentoo.shell import UnreadableError, expand, word_end

#: Bytes of an ebuild that are read.
LIMIT_BYTES = 256 * 1024
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\+?)=")
_FUNCTION = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)\s*\(\)\s*\{[ \t]*\n")
_COMMAND = re.compile(r"(inherit|detect_version|detect_arch)\b([^\n;&|]*)")
_HINT = (
    "This ebuild is of a form that is not known here. Give the tree itself instead, as dir:PATH (the host's "
    "/usr/src/linux-… is such a tree) or git:URL#REF."
)
#: Directories whose place does not matter: they stay as they are written.
_PLACES = ("DISTDIR", "FILESDIR", "WORKDIR", "S", "T")
#: Addresses that detect_version and detect_arch compute; nothing is read from them.
_ADDRESSES = ("KERNEL_URI", "KERNEL_BASE_URI", "GENPATCHES_URI", "ARCH_URI")


@dataclass(frozen=True)
class Statement:
    """A line of a function, without comment and indentation; ``line`` is its number in the ebuild."""

    line: int
    text: str


@dataclass(frozen=True)
class _Value:
    """A value, or why there is none."""

    line: int
    text: str | None
    reason: str = ""


@dataclass(frozen=True)
class KernelVersion:
    """What detect_version of kernel-2.eclass finds out. ``numbers`` are two or three; ``extraversion`` has its dash."""

    okv: str
    numbers: tuple[int, ...]
    extraversion: str

    @property
    def series(self) -> str:
        """The first two numbers, by which the tarballs are named."""
        return f"{self.numbers[0]}.{self.numbers[1]}"

    @property
    def full(self) -> str:
        """KV_FULL: the release, before what the configuration adds, and the name of the directory in /usr/src."""
        return f"{self.okv}{self.extraversion}"


class Ebuild:
    """An ebuild that has been read. ``file`` is its name, for messages."""

    def __init__(self, package: KernelPackage, text: str, *, file: str | None = None) -> None:
        self.package = package
        self.file = file or f"{package}.ebuild"
        self.inherits: set[str] = set()
        self.functions: dict[str, tuple[Statement, ...]] = {}
        self.version: KernelVersion | None = None
        self._text = text
        self._values = {
            "PN": package.name,
            "PV": package.pv,
            "PR": f"r{package.revision}",
            "PVR": package.pvr,
            "P": f"{package.name}-{package.pv}",
            "PF": str(package),
            "CATEGORY": CATEGORY,
            **{name: f"${{{name}}}" for name in _PLACES},
        }
        self._assigned: dict[str, _Value] = {}
        self._read()

    # -- what others ask

    def value(self, name: str) -> str:
        """The value of a variable at the end of the ebuild; empty where it is not set.

        Raises KernelUnavailableError, with the line, for one that is computed in a way that is not read here.
        """
        found = self._assigned.get(name)
        if found is None:
            return ""
        if found.text is None:
            raise self.error(found.line, f"the value of {name} is not understood: {found.reason}")
        return found.text

    def line(self, name: str) -> int:
        """The line of the last assignment to a variable, 0 where there is none."""
        found = self._assigned.get(name)
        return found.line if found else 0

    def error(self, line: int, message: str) -> KernelUnavailableError:
        """The error of a place in this ebuild."""
        return KernelUnavailableError(f"{self.file}, line {line}: {message}.", hint=_HINT)

    def refuse(self, names: Sequence[str], reason: str) -> None:
        """Raise the error of the first of these variables that is set to something."""
        for name in names:
            if name in self._assigned and self.value(name):
                raise self.error(self.line(name), f"{name} is set, {reason}")

    # -- reading

    def _read(self) -> None:
        at = 0
        while at < len(self._text):
            at = self._statement(at)

    def _number(self, at: int) -> int:
        return self._text.count("\n", 0, at) + 1

    def _statement(self, at: int) -> int:
        text = self._text
        if text[at] in " \t\n;":
            return at + 1
        if text[at] == "#":
            return self._line_end(at)
        if match := _FUNCTION.match(text, at):
            return self._function(match)
        if match := _ASSIGNMENT.match(text, at):
            return self._assignment(match)
        if match := _COMMAND.match(text, at):
            self._command(match[1], match[2].split(), self._number(at))
            return match.end()
        shown = text[at : self._line_end(at)].strip()
        raise self.error(self._number(at), f"the statement is not understood: {shown[:80]}")

    def _line_end(self, at: int) -> int:
        end = self._text.find("\n", at)
        return len(self._text) if end < 0 else end

    def _function(self, match: re.Match[str]) -> int:
        end = self._text.find("\n}\n", match.end() - 1)
        if end < 0 and self._text.endswith("\n}"):
            end = len(self._text) - 2
        if end < 0:
            raise self.error(self._number(match.start()), f"the function {match[1]} has no end")
        first = self._number(match.end())
        lines = self._text[match.end() : end].splitlines() if end >= match.end() else []
        self.functions[match[1]] = tuple(
            Statement(number, line.strip())
            for number, line in enumerate(lines, start=first)
            if line.strip() and not line.lstrip().startswith("#")
        )
        return min(end + 3, len(self._text))

    def _assignment(self, match: re.Match[str]) -> int:
        line, name, start = self._number(match.start()), match[1], match.end()
        if self._text[start : start + 1] == "(":
            end = self._array_end(start, line)
            self._assigned[name] = _Value(line, None, "it is an array")
        else:
            try:
                end = word_end(self._text, start)
            except UnreadableError as error:
                # where it ends is not known, so nothing after it is
                raise self.error(line, f"the value of {name} is not understood: {error}") from error
            self._assigned[name] = self._evaluated(name, self._text[start:end], line, append=bool(match[2]))
        rest = self._text[end : self._line_end(end)].strip()
        if rest and not rest.startswith(("#", ";")):
            raise self.error(line, f"the statement is not understood: {name}=… {rest[:60]}")
        return self._line_end(end) if rest.startswith("#") else end

    def _evaluated(self, name: str, word: str, line: int, *, append: bool) -> _Value:
        try:
            before = self._lookup(name) if append and name in self._assigned else ""
            return _Value(line, before + expand(word, self._lookup))
        except UnreadableError as error:
            return _Value(line, None, str(error))

    def _lookup(self, name: str) -> str:
        if name in self._values:
            return self._values[name]
        found = self._assigned.get(name)
        if found is None:
            raise UnreadableError(f"it uses {name}, which is not set here")
        if found.text is None:
            raise UnreadableError(f"it uses {name} of line {found.line}, which is not understood: {found.reason}")
        return found.text

    def _array_end(self, start: int, line: int) -> int:
        at = start + 1
        while at < len(self._text) and self._text[at] != ")":
            char = self._text[at]
            if char in "(;&|<>":
                raise self.error(line, "an array is not understood")
            try:
                at = at + 1 if char in " \t\n" else self._line_end(at) if char == "#" else word_end(self._text, at)
            except UnreadableError as error:
                raise self.error(line, f"an array is not understood: {error}") from error
        return min(at + 1, len(self._text))

    def _command(self, name: str, words: Sequence[str], line: int) -> None:
        if name == "inherit":
            if not words or not all(re.fullmatch(r"[A-Za-z0-9._+-]+", word) for word in words):
                raise self.error(line, f"the statement is not understood: inherit {' '.join(words)[:60]}")
            self.inherits |= set(words)
            return
        if words:
            raise self.error(line, f"the statement is not understood: {name} {' '.join(words)[:60]}")
        if name == "detect_version" and self.version is None:
            self.version = self._detect_version(line)
            self._values |= _version_values(self.version)
        self._values |= dict.fromkeys(_ADDRESSES, "")

    def _detect_version(self, line: int) -> KernelVersion:
        """What detect_version computes, for releases: no -rc, -pre or git snapshot, and no four numbers."""
        ckv = self.value("CKV") or self.package.pv
        okv = re.sub(r"_p\d*$", "", ckv)
        if not re.fullmatch(r"[3-9]\d?\.\d{1,4}(\.\d{1,5})?|[12]\d\.\d{1,4}(\.\d{1,5})?", okv, re.ASCII):
            raise self.error(line, f"the version {ckv} is not that of a release since 3.0, and others are not known")
        self.refuse(("OKV", "K_PREPATCHED", "KV_FULL", "EXTRAVERSION"), "and a version made of that is not known")
        if self.value("ETYPE") != "sources":
            raise self.error(self.line("ETYPE") or line, "ETYPE is not 'sources'")
        extra = "" if okv == ckv else ckv.removeprefix(okv).replace("_p", "-p")
        if extra:
            raise self.error(line, f"the version {ckv} has a suffix, and what kernel-2.eclass makes of it is not known")
        if not self.value("K_NOUSEPR"):
            extra += "" if self.value("K_NOUSENAME") else f"-{self.package.name.partition('-')[0]}"
            extra += f"-{self.package.pv.replace('_', '-')}" if self.value("K_USEPV") else ""
            extra += f"-r{self.package.revision}" if self.package.revision else ""
        return KernelVersion(okv, tuple(int(part) for part in okv.split(".")), extra)


def _version_values(version: KernelVersion) -> Mapping[str, str]:
    # with two numbers the eclass calls the second KV_PATCH and leaves KV_MINOR empty
    major, *rest = map(str, version.numbers)
    minor, patch = rest if len(rest) == 2 else ("", rest[0])
    return {
        "OKV": version.okv,
        "CKV": version.okv,
        "KV_MAJOR": major,
        "KV_MINOR": minor,
        "KV_PATCH": patch,
        "EXTRAVERSION": version.extraversion,
        "KV_FULL": version.full,
        "KV": version.full,
    }
