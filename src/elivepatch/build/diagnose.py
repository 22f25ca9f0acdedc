# SPDX-License-Identifier: GPL-2.0-or-later
"""From what the tools of a build say to findings that the author of a patch can act on.

Nothing that a tool says about an error is lost: what no rule knows is carried along as it is.
"""

from __future__ import annotations

import dataclasses
import re
import signal
from collections.abc import Iterable, Sequence

from elivepatch.build.compiler_messages import diagnose_compiler, diagnose_link
from elivepatch.build.differ_messages import MESSAGES, Message, section_meaning
from elivepatch.build.rules import DOC, FINDINGS_LIMIT, LINE_LIMIT, RULES, Rule, finding
from elivepatch.errors import (
    CannotLivepatchError,
    Diagnosis,
    ElivepatchError,
    InternalError,
    NoChangeError,
    ToolCrashedError,
)

__all__ = [
    "DOC",
    "RULES",
    "Rule",
    "diagnose_compiler",
    "diagnose_differ",
    "diagnose_link",
    "differ_error",
    "link_error",
    "signal_name",
]

#: kpatch-build/kpatch.h: the exit status for a file without a functional change.
_NO_CHANGE = 3
_UNKNOWN = "tool-unknown-message"
_TAIL_LINES = 25
#: How the tools begin a line: the program's name, ERROR, the object, then function and line of the tool's source.
_LINE = re.compile(
    r"(?P<tool>create-(?:diff-object|klp-module): )?(?P<error>ERROR: )?"
    r"(?P<child>[^\s:]+: (?=\w+: \d+: )|[^\s:]+\.o: )?(?:(?P<origin>\w+): \d+: )?(?P<text>.+)"
)
#: What the compiler appends to the name of a function that it has copied or split.
_CLONE = re.compile(r"(?:\.(?:isra|constprop|part|cold|llvm|lto_priv)(?:\.\d+)?)+$")
#: What it appends to a static variable of a function.
_NUMBER = re.compile(r"\.\d+$")
#: The tool's own function that looks up the changed functions: what it does not find is a function.
_LOOKS_UP_FUNCTIONS = "kpatch_create_patches_sections"
_NO_NAME = "(null)"


def diagnose_differ(output: str, returncode: int, *, source: str) -> tuple[Diagnosis, ...]:
    """What create-diff-object said about a source file, as findings.

    ``output`` is all that it wrote, standard output and standard error; ``returncode`` is negative or 128 + n for a
    signal; ``source`` is the path in the kernel tree. With exit status 0 and 3 there are only warnings and notes,
    otherwise at least one error.
    """
    if name := signal_name(returncode):
        return (finding("tool-crashed", f"create-diff-object was ended by {name}.", file=source),)
    found = _read(output.splitlines(), source)
    if returncode == 0:
        return tuple(_soften(found))[:FINDINGS_LIMIT]
    if returncode == _NO_CHANGE:
        message = "It compiles to the same code as before."
        unchanged = finding("no-functional-change", message, file=source, severity="note")
        return (unchanged, *_soften(found))[:FINDINGS_LIMIT]
    if not _errors(found):
        said = _tail(output)
        message = f"create-diff-object ended with exit status {returncode} and said: {said or 'nothing'}"
        found = [other for other in found if other.rule != _UNKNOWN] + [finding(_UNKNOWN, message, file=source)]
    # a system call brings trace events of its own along: it is the reason, they are not
    found.sort(key=lambda each: (each.severity != "error", each.rule != "system-call"))
    return tuple(found[:FINDINGS_LIMIT])


def differ_error(output: str, returncode: int, *, source: str) -> ElivepatchError:
    """The error for a file that create-diff-object gave no difference for; arguments as for diagnose_differ().

    NoChangeError, CannotLivepatchError with the reasons, ToolCrashedError for a signal and for a mistake of ours, and
    InternalError for what is not known. The last two carry the end of the output in their message.
    """
    found = diagnose_differ(output, returncode, source=source)
    if returncode == 0:
        return InternalError(f"create-diff-object succeeded with {source}, and was taken to have failed.")
    if returncode == _NO_CHANGE:
        unchanged = dataclasses.replace(found[0], severity="error")
        return NoChangeError(f"{source}: {unchanged.message}", hint=unchanged.hint, diagnosis=(unchanged, *found[1:]))
    return _error(found, f"create-diff-object cannot handle {source}", output)


def link_error(output: str, returncode: int) -> ElivepatchError:
    """The error for a livepatch module that ld, create-klp-module, modpost or kbuild did not put together.

    CannotLivepatchError where the patch is the reason, otherwise as differ_error().
    """
    what = f"The livepatch module was not linked (exit status {returncode})"
    if name := signal_name(returncode):
        return _error((finding("tool-crashed", f"A linking tool was ended by {name}."),), what, output)
    own = [line for line in output.splitlines() if line.startswith(("create-klp-module: ", "Usage: create-"))]
    found = (*diagnose_link(output), *_read(own, None))
    if not _errors(found):
        found = (*found, finding(_UNKNOWN, f"{what}: {_tail(output) or 'nothing was said'}"))
    return _error(found, what, output)


def _error(found: Sequence[Diagnosis], what: str, output: str) -> ElivepatchError:
    errors = _errors(found)
    first, tail = errors[0], _tail(output)
    ours = next((each for each in errors if RULES[each.rule].ours and each.rule != _UNKNOWN), None)
    if ours:
        return ToolCrashedError(f"{what}: {ours.message}\n{tail}".rstrip(), hint=ours.hint, diagnosis=found)
    if first.rule == _UNKNOWN:
        return InternalError(f"{what}:\n{tail or 'it said nothing'}", diagnosis=found)
    place = f"{first.file}: " if first.file else ""
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return CannotLivepatchError(f"{place}{first.message}{more}", hint=first.hint, diagnosis=found)


def _read(lines: Iterable[str], source: str | None) -> list[Diagnosis]:
    """The findings in the order in which the tool said them, each once; what no rule knows becomes a note."""
    reasons: dict[Diagnosis, None] = {}
    totals: dict[Diagnosis, None] = {}
    for raw in lines:
        line = raw[:LINE_LIMIT].strip()
        parts = _LINE.fullmatch(line)
        if parts is None:
            continue
        for message in MESSAGES:
            if found := message.says.fullmatch(parts["text"]):
                if message.rule is not None:
                    explained = _explain(message.rule, message, found, parts, source)
                    (totals if message.total else reasons)[explained] = None
                break
        else:
            if parts["tool"] or parts["error"] or parts["child"]:
                reasons[finding(_UNKNOWN, f"The tool also said: {line}", file=source, severity="note")] = None
    if not _errors(reasons):
        reasons.update(totals)
    return list(reasons)


def _explain(rule: str, message: Message, found: re.Match[str], parts: re.Match[str], source: str | None) -> Diagnosis:
    names = {key.removesuffix("2"): value for key, value in found.groupdict().items() if value and value != _NO_NAME}
    function = names.get("function")
    text = message.template
    if section := names.get("section"):
        names["section"] = section.removeprefix(".rela")
        if not text:
            rule, text = section_meaning(section)
            function = _function_of(names["section"])
    if parts["origin"] == _LOOKS_UP_FUNCTIONS:
        function = names.get("name")
    if rule == "static-local-changed" or rule == "static-local-new":
        names["name"] = _NUMBER.sub("", names.get("name", "?"))
    if not text:
        text = f"{RULES[rule].title}: {parts['text']}"
    else:
        text = text.format_map({"function": "some function", "name": "?", **names})
    return finding(rule, text, file=source, function=_CLONE.sub("", function) if function else None)


def _function_of(section: str) -> str | None:
    """The function of a section of its own (.text.NAME, .text.unlikely.NAME), as -ffunction-sections makes them."""
    name = re.sub(r"^\.text\.(?:(?:unlikely|hot|startup|exit)\.)?", "", section)
    return name if name != section and not name.startswith(".") else None


def _errors(found: Iterable[Diagnosis]) -> list[Diagnosis]:
    return [each for each in found if each.severity == "error"]


def _soften(found: Iterable[Diagnosis]) -> Iterable[Diagnosis]:
    """No finding of a run that succeeded is an error."""
    return (dataclasses.replace(each, severity="warning") if each.severity == "error" else each for each in found)


def signal_name(returncode: int) -> str | None:
    """The name of the signal that ended a program, seen directly or through a sandbox's exit status (128 + n)."""
    number = -returncode if returncode < 0 else returncode - 128
    if number <= 0 or number >= signal.NSIG:
        return None
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _tail(output: str) -> str:
    return "\n".join(line[:LINE_LIMIT] for line in output.strip().splitlines()[-_TAIL_LINES:])
