# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``objtool klp`` says becomes the right findings and the right error.

The lines are of the form of include/objtool/warn.h, with the texts of tools/objtool/klp-*.c of Linux 7.3.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elivepatch.build.klp_messages import new_functions, notes_of, tool_error, unchanged
from elivepatch.build.rules import KLP_RULES, RULES
from elivepatch.errors import CannotLivepatchError, InternalError, NoChangeError, ToolCrashedError

SOURCE = "fs/proc/demo.c"
#: Text → rule, function, what the message has in it.
REFUSED: list[tuple[str, str, str | None, str]] = [
    ("changed data: demo_table", "data-object-changed", None, "'demo_table'"),
    ("demo_init: can't patch or reference init code/data", "init-code", None, "'demo_init'"),
    ("can't find symbol demo_lock in orig vmlinux", "symbol-not-found", None, "'demo_lock'"),
    ("no .klp.symid entry for symbol show in orig vmlinux.o", "symbol-ambiguous", None, "'show'"),
    ("no .klp.symid entry for symbol show in orig vmlinux", "symbol-ambiguous", None, "'show'"),
    (
        "show+0x12: unsupported static branch key demo_key.  Use static_key_enabled() instead",
        "jump-label-module",
        "show",
        "'demo_key'",
    ),
    (
        "show()+0x12: unsupported static call key demo_key.  Use KLP_STATIC_CALL() instead",
        "static-call-module",
        "show",
        "'demo_key'",
    ),
    (
        "nfs_demo: new reference to nfs_demo (exported by nfs) would create an undeclared module dependency",
        "module-dependency",
        None,
        "module nfs",
    ),
    ("show+0x4: failed to convert reloc sym '.bss' to its proper format", "unresolved-reference", "show", "'.bss'"),
]
OURS: list[tuple[str, str]] = [
    ("FILE symbol mismatch: a.c != b.c", "object-malformed"),
    ("missing .modinfo section", "object-malformed"),
    (
        "'vmlinux.o' missing .discard.sym_checksum section, file not processed by 'objtool klp checksum'?",
        "object-malformed",
    ),
    ("__bug_table: missing special section entsize or annotations", "object-malformed"),
    (".klp.symid address mismatch for symbol show, stale orig vmlinux?", "image-mismatch"),
    ("vmlinux: missing .klp.symid section, kernel not built with CONFIG_KLP_BUILD?", "image-mismatch"),
    ("malformed Module.symvers (mod) at line 3", "symbol-table-unreadable"),
    ("malformed __klp_relocs.vmlinux section", "module-malformed"),
    ("elf_open_read: calloc failed: Cannot allocate memory", "tool-out-of-memory"),
    ("elf_write: elf_update failed: no space", "tool-io"),
    ("no clone for show", "tool-inconsistent"),
]


def line(text: str, severity: str = "error") -> str:
    return f"vmlinux.o: {severity}: objtool: {text}\n"


@pytest.mark.parametrize(("text", "rule", "function", "part"), REFUSED)
def test_a_refusal_is_explained(text: str, rule: str, function: str | None, part: str) -> None:
    output = "vmlinux.o: changed function: show\n" + line("no correlation: gone", "warning") + line(text)
    error = tool_error(output, 255, source=SOURCE, original=False)
    assert type(error) is CannotLivepatchError
    assert error.message.startswith(SOURCE)
    assert error.hint
    (found,) = error.diagnosis
    assert (found.rule, found.severity, found.function, found.file) == (rule, "error", function, SOURCE)
    assert part in found.message
    assert found.hint == RULES[rule].hint


@pytest.mark.parametrize(("text", "rule"), OURS)
def test_a_mistake_of_ours_is_no_refusal(text: str, rule: str) -> None:
    error = tool_error(line(text), 255, source=SOURCE, original=False)
    assert type(error) is ToolCrashedError
    assert [found.rule for found in error.diagnosis] == [rule]
    assert text in error.message


@pytest.mark.parametrize("status", [-11, 139, 134])
def test_a_crash_is_our_fault_whatever_was_said_before(status: int) -> None:
    error = tool_error(line("changed data: demo_table"), status, source=SOURCE, original=False)
    assert type(error) is ToolCrashedError
    assert [found.rule for found in error.diagnosis] == ["tool-crashed"]


def test_what_no_rule_knows_is_carried_along() -> None:
    error = tool_error(line("the moon is full"), 255, source=SOURCE, original=False)
    assert type(error) is InternalError
    assert "the moon is full" in error.message
    silent = tool_error("", 1, source=SOURCE, original=False)
    assert type(silent) is InternalError
    assert "nothing" in silent.message


def test_no_original_is_refused() -> None:
    assert type(tool_error(line("changed data: x"), 255, source=SOURCE, original=True)) is InternalError


def test_warnings_are_notes_of_a_build_that_went_through() -> None:
    output = (
        line("show: disabling unsupported tracepoint demo_event", "warning")
        + line("show: disabling unsupported pr_debug()", "warning")
        + line("no correlation: gone", "warning")
        + line("show() falls through to next function hide()", "warning")
    )
    found = notes_of(output, source=SOURCE)
    assert [(each.rule, each.severity, each.function) for each in found] == [
        ("tracepoint-off", "warning", "show"),
        ("tracepoint-off", "warning", "show"),
        ("objtool", "warning", None),
    ]


def test_functions_that_come_along() -> None:
    output = "vmlinux.o: new function: note\nvmlinux.o: new function: note.cold\nvmlinux.o: changed function: show\n"
    assert new_functions(output) == ["note"]


def test_no_change() -> None:
    error = unchanged(SOURCE)
    assert type(error) is NoChangeError
    assert [found.rule for found in error.diagnosis] == ["no-functional-change"]


def test_every_rule_of_the_tool_is_one_that_some_output_leads_to() -> None:
    assert set(KLP_RULES) <= {rule for _, rule, _, _ in REFUSED} | {"tracepoint-off"}


@given(st.text(), st.integers(-64, 255).filter(bool), st.booleans())
def test_any_output_gives_an_error(output: str, status: int, original: bool) -> None:
    for text in (output, line(output)):
        error = tool_error(text, status, source=SOURCE, original=original)
        assert error.message
        assert error.as_diagnosis()
