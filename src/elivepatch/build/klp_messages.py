# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel's own differ (``objtool klp``) can say, and which rule each message falls under.

The texts are those of tools/objtool/klp-{checksum,diff,sympos,post-link}.c and elf.c of Linux 7.3. A line of objtool is
``OBJECT: error: objtool: TEXT`` or ``OBJECT: warning: objtool: TEXT`` (include/objtool/warn.h); where the tool itself
is at fault, ``[FILE:LINE]`` of its source stands before the text. Other than kpatch's differ it stops at the first
error.
"""

from __future__ import annotations

import re

from elivepatch.build.diagnose import signal_name
from elivepatch.build.differ_messages import Message
from elivepatch.build.rules import FINDINGS_LIMIT, LINE_LIMIT, RULES, finding
from elivepatch.errors import (
    CannotLivepatchError,
    Diagnosis,
    ElivepatchError,
    InternalError,
    NoChangeError,
    ToolCrashedError,
)

_UNKNOWN = "tool-unknown-message"
_TAIL_LINES = 25
_LINE = re.compile(
    r"(?:\S+: )?(?P<severity>error|warning): objtool(?P<origin> \[[^]]+\])?: (?P<text>.+)",
)
_NEW = re.compile(r"^\S+: new function: (\S+)$", re.MULTILINE)
_N = r"(?P<name>\S+)"
_AT = r"(?P<function>[^\s+()]+)(?:\(\))?(?:\+0x[0-9a-f]+)?"


def _message(says: str, rule: str | None = None, template: str = "") -> Message:
    return Message(re.compile(says), rule, template)


MESSAGES: tuple[Message, ...] = (
    # -- progress
    _message(r"no correlation: \S+"),
    _message(r"file already has \.discard\.sym_checksum section, skipping"),
    # -- what a livepatch cannot do
    _message(rf"changed data: {_N}", "data-object-changed", "The value of the variable '{name}' has changed."),
    _message(
        rf"{_N}: can't patch or reference init code/data",
        "init-code",
        "'{name}' is code or data for the boot, or for the load of a module.",
    ),
    _message(
        rf"can't find symbol {_N} in orig vmlinux",
        "symbol-not-found",
        "'{name}' is not found among the symbols that this file has in the kernel or module that is to be patched.",
    ),
    _message(
        rf"no \.klp\.symid entry for symbol {_N} in orig vmlinux(?:\.o)?",
        "symbol-ambiguous",
        "The kernel has more than one symbol '{name}', and it cannot be told which one is meant.",
    ),
    _message(
        rf"{_AT}: unsupported static branch key {_N}\.  Use static_key_enabled\(\) instead",
        "jump-label-module",
        "'{function}' tests the static key '{name}', which belongs to a module.",
    ),
    _message(
        rf"{_AT}: unsupported static call key {_N}\.  Use KLP_STATIC_CALL\(\) instead",
        "static-call-module",
        "'{function}' makes a static call with the key '{name}', which belongs to a module.",
    ),
    _message(
        rf"{_N}: new reference to \S+ \(exported by (?P<module>\S+)\) would create an undeclared module dependency",
        "module-dependency",
        "The change uses '{name}' of the module {module}, which the patched module does not need so far.",
    ),
    _message(
        rf"{_AT}: failed to convert reloc sym '{_N}' to its proper format",
        "unresolved-reference",
        "'{function}' refers to a place in '{name}' that belongs to no known variable.",
    ),
    _message(
        rf"{_AT}: disabling unsupported tracepoint {_N}",
        "tracepoint-off",
        "The tracepoint '{name}' in '{function}' is without effect: it belongs to a module.",
    ),
    _message(
        rf"{_AT}: disabling unsupported pr_debug\(\)",
        "tracepoint-off",
        "A pr_debug() in '{function}' cannot be switched on: it belongs to a module.",
    ),
    # -- our side
    _message(
        r"FILE symbol mismatch: .*|missing \.modinfo section|missing \.symtab|no \.symtab|"
        r"'\S+' missing \.discard\.sym_checksum section.*|missing reloc section for \.discard\.sym_checksum|"
        r"can't find reloc for sym_checksum\[\d+\]|not sure how to handle section \S+|"
        r"\S+: missing special section (?:relocations|entsize or annotations)|section entry mismatch|"
        r"couldn't find section for symbol \S+|can't find base section for reloc section \S+",
        "object-malformed",
    ),
    _message(
        r"\.klp\.symid address mismatch for symbol \S+, stale orig vmlinux\?|.*: missing \.klp\.symid section.*|"
        r".*: missing reloc for \.klp\.symid entry|.*\.klp\.symid: struct klp_symid size mismatch|"
        r".*: missing symbol table",
        "image-mismatch",
    ),
    _message(r"malformed Module\.symvers .*|can't open 'Module\.symvers'.*", "symbol-table-unreadable"),
    _message(r"malformed \S+ section", "module-malformed"),
    _message(r"\w+: \w*(?:alloc|strdup)\w* failed: .*", "tool-out-of-memory"),
    _message(r"\w+: .+ failed: .*", "tool-io"),
    _message(
        r"no clone for \S+|unexpected klp reloc for new symbol \S+|can't find sympos for \S+|"
        r"struct sym_checksum size mismatch|duplicate reloc|section '\S+' already exists",
        "tool-inconsistent",
    ),
)


def new_functions(output: str) -> list[str]:
    """The functions that the patch brings along; parts that the compiler split off are not functions of their own."""
    return [name for name in _NEW.findall(output) if not re.search(r"\.cold(?:\.\d+)?$", name)]


def unchanged(source: str) -> NoChangeError:
    """The error for a file that compiles to the same code."""
    found = finding("no-functional-change", "It compiles to the same code as before.", file=source, severity="error")
    return NoChangeError(f"{source}: {found.message}", hint=found.hint, diagnosis=(found,))


def notes_of(output: str, *, source: str) -> tuple[Diagnosis, ...]:
    """What was said of a file that has a difference."""
    return tuple(said for said in _read(output, source) if said.severity != "error")


def tool_error(output: str, returncode: int, *, source: str, original: bool) -> ElivepatchError:
    """The error for a file that ``objtool klp`` failed with; ``original``: with what the patch has not touched.

    CannotLivepatchError with the reasons, ToolCrashedError for a signal and for a mistake of ours, and InternalError
    for what is not known. The last two carry the end of the output in their message.
    """
    what, tail = f"objtool klp cannot handle {source}", _tail(output)
    if name := signal_name(returncode):
        crashed = finding("tool-crashed", f"objtool klp was ended by {name}.", file=source)
        return ToolCrashedError(f"{what}: {crashed.message}\n{tail}".rstrip(), hint=crashed.hint, diagnosis=[crashed])
    found = _read(output, source)
    errors = [each for each in found if each.severity == "error"]
    ours = next((each for each in errors if RULES[each.rule].ours), None)
    if ours is not None and ours.rule != _UNKNOWN:
        return ToolCrashedError(f"{what}: {ours.message}\n{tail}".rstrip(), hint=ours.hint, diagnosis=found)
    if original or not errors or errors[0].rule == _UNKNOWN:
        unknown = finding(_UNKNOWN, f"objtool klp ended with exit status {returncode} and said: {tail or 'nothing'}")
        return InternalError(f"{what}:\n{tail or 'it said nothing'}", diagnosis=errors or [unknown])
    first = errors[0]
    return CannotLivepatchError(f"{source}: {first.message}", hint=first.hint, diagnosis=found)


def _read(output: str, source: str) -> list[Diagnosis]:
    """The findings in the order in which they were said, each once."""
    found: dict[Diagnosis, None] = {}
    for raw in output.splitlines():
        line = _LINE.fullmatch(raw[:LINE_LIMIT].strip())
        if line is None:
            continue
        error = line["severity"] == "error"
        for message in MESSAGES:
            if said := message.says.fullmatch(line["text"]):
                if message.rule is not None:
                    found[_explain(message, said, line["text"], source, error=error)] = None
                break
        else:
            rule = _UNKNOWN if error else "objtool"
            found[finding(rule, f"objtool: {line['text']}", file=source)] = None
    return list(found)[:FINDINGS_LIMIT]


def _explain(message: Message, said: re.Match[str], text: str, source: str, *, error: bool) -> Diagnosis:
    rule = message.rule or _UNKNOWN
    names = {"function": "?", "name": "?", **said.groupdict()}
    told = message.template.format_map(names) if message.template else f"{RULES[rule].title}: {text}"
    function = said.groupdict().get("function")
    severity = None if error else RULES[rule].severity if RULES[rule].severity != "error" else "warning"
    return finding(rule, told, file=source, function=function, severity=severity)


def _tail(output: str) -> str:
    return "\n".join(line[:LINE_LIMIT] for line in output.strip().splitlines()[-_TAIL_LINES:])
