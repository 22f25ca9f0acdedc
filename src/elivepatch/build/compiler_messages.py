# SPDX-License-Identifier: GPL-2.0-or-later
"""What gcc, the assembler, objtool, ld and modpost say, as findings with file, line and function.

The forms are those of GCC's plain diagnostics, of binutils, and of the kernel's scripts/mod/modpost.c and
tools/objtool/include/objtool/warn.h.
"""

from __future__ import annotations

import dataclasses
import re

from elivepatch.build.rules import FINDINGS_LIMIT, LINE_LIMIT, finding
from elivepatch.errors import Diagnosis

_COLOUR = re.compile(r"\x1b\[[0-9;]*[mK]")
#: Quotation marks: typographic ones in a UTF-8 locale, plain ones elsewhere.
_OPEN, _CLOSE = r"[\u2018'`]", r"[\u2019']"
_QUOTED = rf"{_OPEN}(?P<name>[^\u2019'`]+){_CLOSE}"
_FUNCTION = re.compile(rf"(?:(?P<file>[^\s:]+): )?In function {_QUOTED}[:,]?")
_TOP_LEVEL = re.compile(r"(?:(?P<file>[^\s:]+): )?At top level:")
_INLINED = re.compile(rf"\s+inlined from {_QUOTED} at (?P<file>[^\s:]+):\d+(?::\d+)?[:,]?")
_PLACED = re.compile(
    r"(?P<file>[^\s:]+):(?P<line>\d+)(?::\d+)?: "
    r"(?P<kind>fatal error|internal compiler error|error|warning|Error|Warning|Fatal error): (?P<text>.+)"
)
_EXPANSION = re.compile(r"(?P<file>[^\s:]+):(?P<line>\d+)(?::\d+)?: note: in expansion of macro .*")
#: Errors without a place: cc1, gcc, the assembler, and make where it cannot even begin.
_PLACELESS = re.compile(
    r"(?:\S*/)?(?:cc1|gcc\S*|\S*-gcc\S*|as|\S+-as|collect2): (?:fatal error: |error: )?"
    r"(?P<text>(?<=error: ).+|internal compiler error: .+)|"
    r"make(?:\[\d+\])?: \*\*\* (?P<text2>.+?)(?:\.  Stop\.)?"
)
_RULES = {"warning": "compile-warning", "internal compiler error": "compiler-crashed"}
_CRASH = re.compile(
    r"internal compiler error|Killed signal terminated program|\] (?:Killed|Terminated|Segmentation fault)"
)
#: What only repeats that something has failed.
_ECHO = re.compile(
    r"all warnings being treated as errors|ld returned \d+ exit status|\[.*\] (?:Error \d+|Deleting file).*|"
    r"Waiting for unfinished jobs.*|Deleting file .*"
)
_OBJTOOL = re.compile(r"(?P<object>[^\s:]+\.k?o): (?P<kind>warning|error): objtool: (?P<text>.+)")
_OBJTOOL_PLACE = re.compile(r"(?P<function>[\w.]+)(?:\+0x[0-9a-f]+|\(\))[: ]")

_LINK_MESSAGES: tuple[tuple[re.Pattern[str], str, str, str | None], ...] = (
    (
        re.compile(rf".*: multiple definition of {_QUOTED}.*"),
        "duplicate-definition",
        "'{name}' is defined by more than one of the patched files.",
        None,
    ),
    (
        re.compile(rf".*: undefined reference to {_QUOTED}.*"),
        "undefined-symbol",
        "The patched code uses '{name}', which is defined nowhere.",
        None,
    ),
    (
        re.compile(
            r"(?:ERROR|WARNING): modpost: (?:\S+: symbol (?=')|(?=\"))[\"'](?P<name>[^\"']+)[\"']"
            r"(?: \[[^\]]*\])? undefined!"
        ),
        "undefined-symbol",
        "The patched code uses '{name}', which this kernel offers to no module.",
        None,
    ),
    (
        re.compile(
            r"(?:ERROR|WARNING): modpost: (?:module \S+|\S+: module) uses symbol '?(?P<name>[^\s']+)'? from namespace "
            r"'?(?P<space>[^\s']+?)'?, but does not import it\."
        ),
        "symbol-namespace",
        "The patched code uses '{name}' from the namespace {space}.",
        None,
    ),
    (
        re.compile(
            r"(?:ERROR|WARNING): modpost: \S+: section mismatch in reference: (?P<function>[^\s+]+)\S* "
            r"\(section: \S+\) -> (?P<name>\S+) \(section: (?P<section>\S+)\)"
        ),
        "section-mismatch",
        "'{function}' refers to '{name}' in {section}, which is freed after the boot.",
        "function",
    ),
    (re.compile(r"ERROR: modpost: (?P<name>.+)"), "module-malformed", "modpost refuses the module: {name}", None),
    (
        re.compile(r"(?:\S*/)?ld(?:\.bfd)?: (?!warning: )(?P<name>.*(?:error|cannot|failed|not recognized).*)"),
        "module-malformed",
        "The linker refuses the objects: {name}",
        None,
    ),
)


def diagnose_compiler(stderr: str) -> tuple[Diagnosis, ...]:
    """What gcc, the assembler and objtool say about the objects of a change; at most FINDINGS_LIMIT, errors first kept.

    The place of a message from within a macro is where the macro was used. Output of several compilers that run at the
    same time may be mixed, line by line.
    """
    reader = _Reader()
    for line in stderr.splitlines():
        reader.read(_COLOUR.sub("", line[:LINE_LIMIT]).rstrip())
    return _limit(list(dict.fromkeys(reader.findings)))


def diagnose_link(output: str) -> tuple[Diagnosis, ...]:
    """What ld, modpost, gcc and objtool say when the livepatch module is put together."""
    found: dict[Diagnosis, None] = {}
    rest: list[str] = []
    for raw in output.splitlines():
        line = raw[:LINE_LIMIT].strip()
        for pattern, rule, template, function in _LINK_MESSAGES:
            if match := pattern.fullmatch(line):
                names = match.groupdict()
                found[finding(rule, template.format_map(names), function=names[function] if function else None)] = None
                break
        else:
            rest.append(raw)
    return _limit([*found, *diagnose_compiler("\n".join(rest))])


class _Reader:
    """Reads a compiler's output line by line and remembers which function it is in, for each file."""

    def __init__(self) -> None:
        self.findings: list[Diagnosis] = []
        self._functions: dict[str, str | None] = {}
        self._bare: str | None = None

    def read(self, line: str) -> None:
        if found := _PLACED.fullmatch(line):
            self._placed(found)
        elif found := _EXPANSION.fullmatch(line):
            self._expanded(found)
        elif found := _FUNCTION.fullmatch(line):
            if found["file"]:
                self._functions[_path(found["file"])] = found["name"]
            else:
                self._bare = found["name"]
        elif found := _INLINED.fullmatch(line):
            self._bare = found["name"]
        elif found := _TOP_LEVEL.fullmatch(line):
            self._functions[_path(found["file"] or "")] = None
        elif found := _OBJTOOL.fullmatch(line):
            self._objtool(found)
        elif found := _PLACELESS.fullmatch(line):
            text = found["text"] or found["text2"]
            if not _ECHO.fullmatch(text):
                rule = "compiler-crashed" if _CRASH.search(text) else "compile-error"
                self.findings.append(finding(rule, text))

    def _placed(self, found: re.Match[str]) -> None:
        file = _path(found["file"])
        rule = _RULES.get(found["kind"].lower(), "compile-error")
        function = self._bare or self._functions.get(file)
        self._bare = None
        self.findings.append(finding(rule, found["text"], file=file, line=int(found["line"]), function=function))

    def _expanded(self, found: re.Match[str]) -> None:
        """The chain of expansions ends where the source uses the outermost macro: that is what the author wrote."""
        if self.findings and self.findings[-1].line is not None:
            self.findings[-1] = dataclasses.replace(
                self.findings[-1], file=_path(found["file"]), line=int(found["line"])
            )

    def _objtool(self, found: re.Match[str]) -> None:
        place = _OBJTOOL_PLACE.match(found["text"])
        source = re.sub(r"\.o$", ".c", _path(found["object"]))
        self.findings.append(
            finding(
                "objtool",
                found["text"],
                file=source,
                function=place["function"] if place else None,
                severity="error" if found["kind"] == "error" else None,
            )
        )


def _path(name: str) -> str:
    return re.sub(r"^(?:\./)+", "", name)


def _limit(found: list[Diagnosis]) -> tuple[Diagnosis, ...]:
    """Where there are too many, errors are kept rather than warnings; the order stays."""
    if len(found) <= FINDINGS_LIMIT:
        return tuple(found)
    kept = sorted(range(len(found)), key=lambda index: (found[index].severity != "error", index))[:FINDINGS_LIMIT]
    return tuple(found[index] for index in sorted(kept))
