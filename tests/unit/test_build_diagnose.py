# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tools of a build say becomes the right findings and the right error.

The files in data/diagnose are real output: kpatch's create-diff-object 0.9.10 and a version after 0.9.11, run on small
pairs of objects (only the names of the blocks are ours, each with its exit status), and GCC 14, binutils and modpost.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elivepatch.build.diagnose import (
    RULES,
    diagnose_compiler,
    diagnose_differ,
    diagnose_link,
    differ_error,
    link_error,
)
from elivepatch.build.rules import KERNEL_RULES, KLP_RULES
from elivepatch.errors import (
    CannotLivepatchError,
    Diagnosis,
    ElivepatchError,
    InternalError,
    NoChangeError,
    ToolCrashedError,
)

DATA = Path(__file__).parent / "data/diagnose"
DOC = Path(__file__).parents[2] / "docs/refusals.md"
SOURCE = "fs/proc/demo.c"
OLD, NEW = "create-diff-object-0.9.10.txt", "create-diff-object-after-0.9.11.txt"


def samples(name: str) -> dict[str, tuple[int, str]]:
    found: dict[str, tuple[int, str]] = {}
    for block in re.split(r"^=== ", (DATA / name).read_text(), flags=re.MULTILINE)[1:]:
        head, _, output = block.partition("\n")
        label, status = head.split()
        found[label] = (int(status), output)
    return found


def brief(findings: tuple[Diagnosis, ...]) -> list[tuple[str, str, str | None]]:
    return [(finding.severity, finding.rule, finding.function) for finding in findings]


#: Block → the class of the error (None where a difference was written); severity, rule and function of the findings.
REFUSED, OURS = CannotLivepatchError, ToolCrashedError
DIFFER: dict[str, tuple[type[ElivepatchError] | None, list[tuple[str, str, str | None]]]] = {
    "changed": (None, []),
    "new-function": (None, []),
    "cold-part": (None, []),
    "static-new": (None, [("warning", "static-local-new", "demo")]),
    "force": (None, [("warning", "forced-function", "demo")]),
    "callback": (None, [("note", "callbacks", "pre")]),
    "ignore-function": (None, [("warning", "ignored-change", "demo")]),
    "comment-only": (NoChangeError, [("note", "no-functional-change", None)]),
    "function-removed": (NoChangeError, [("note", "no-functional-change", None)]),
    "notrace": (REFUSED, [("error", "no-fentry", "demo")]),
    "init": (REFUSED, [("error", "init-code", None)]),
    "initcall": (REFUSED, [("error", "init-code", None)]),
    "sched-text": (REFUSED, [("error", "shared-text-section", None)]),
    "data-value": (REFUSED, [("error", "data-object-changed", None)]),
    "data-value-and-function": (REFUSED, [("error", "data-object-changed", None)]),
    "data-pointer": (REFUSED, [("error", "data-object-changed", None)]),
    "constant-table": (REFUSED, [("error", "data-object-changed", None)]),
    "percpu": (REFUSED, [("error", "data-object-changed", None)]),
    "ro-after-init": (REFUSED, [("error", "data-object-changed", None)]),
    "data-size": (REFUSED, [("error", "data-size-changed", None)]),
    "zeroed-to-initialised": (REFUSED, [("error", "symbol-moved", None)]),
    "variable-becomes-const": (REFUSED, [("error", "symbol-moved", None)]),
    "function-becomes-init": (REFUSED, [("error", "symbol-moved", None)]),
    "static-becomes-global": (REFUSED, [("error", "symbol-kind-changed", None)]),
    "function-becomes-weak": (REFUSED, [("error", "symbol-kind-changed", None)]),
    "static-removed": (REFUSED, [("error", "static-local-changed", "demo")]),
    "static-ref": (REFUSED, [("error", "static-local-changed", "demo")]),
    "static-two": (REFUSED, [("error", "static-local-changed", "other")]),
    "export": (REFUSED, [("error", "export-changed", None)]),
    "altinstr-aux": (REFUSED, [("error", "alternative-aux", None)]),
    "tracepoint": (REFUSED, [("error", "tracepoint-changed", None)]),
    "btf": (REFUSED, [("error", "btf-ids-changed", None)]),
    "modinfo": (REFUSED, [("error", "module-parameter", None)]),
    "group": (REFUSED, [("error", "section-changed", "grp"), ("error", "section-group", None)]),
    "group-new": (REFUSED, [("error", "section-group", None), ("error", "section-group", None)]),
    "jump-label": (REFUSED, [("error", "jump-label-module", "demo")]),
    "jump-label-klp-arch": (REFUSED, [("error", "jump-label-unsupported", "demo")]),
    "static-call": (REFUSED, [("error", "static-call-module", "demo")]),
    "ignore-section": (REFUSED, [("error", "kpatch-macro", None)]),
    "absent-function": (REFUSED, [("error", "symbol-not-found", "gone")]),
    "duplicate-global": (REFUSED, [("error", "symbol-ambiguous", None)]),
    "absent-locals": (OURS, [("error", "image-mismatch", None)]),
    "no-sizes": (OURS, [("error", "struct-sizes", None)]),
    "wrong-jump-size": (OURS, [("error", "struct-sizes", None)]),
    "wrong-static-call-size": (OURS, [("error", "struct-sizes", None)]),
    "usage": (OURS, [("error", "tool-misused", None)]),
    "no-object": (OURS, [("error", "tool-io", None)]),
    "not-elf": (OURS, [("error", "object-malformed", None)]),
    "stripped": (OURS, [("error", "object-malformed", None)]),
    "no-symtab": (OURS, [("error", "symbol-table-unreadable", None)]),
    "bad-symvers": (OURS, [("error", "symbol-table-unreadable", None)]),
    "elf-32": (OURS, [("error", "architecture-unsupported", None)]),
}


@pytest.mark.parametrize("version", [OLD, NEW])
def test_output_of_the_real_differ(version: str) -> None:
    blocks = samples(version)
    if version == NEW:
        assert blocks.pop("modinfo")[0] == 0  # later versions take no offence at it
    assert set(blocks) <= set(DIFFER)
    for label, (status, output) in blocks.items():
        cls, expected = DIFFER[label]
        findings = diagnose_differ(output, status, source=SOURCE)
        assert brief(findings) == expected, label
        assert all(found.file == SOURCE and found.hint for found in findings), label
        assert all(found.doc == f"docs/refusals.md#{found.rule}" for found in findings), label
        if cls is not None:
            error = differ_error(output, status, source=SOURCE)
            assert type(error) is cls, label
            assert SOURCE in error.message, label
            assert error.hint, label
            assert [found.rule for found in error.diagnosis] == [rule for _, rule, _ in expected], label


def test_every_recorded_block_of_the_version_in_use_is_expected() -> None:
    assert set(samples(OLD)) == set(DIFFER)


#: Messages that the real tool is hard to bring to: the form is that of its source, the names are made up.
FORMS: list[tuple[str, str, str | None, str]] = [
    ("demo.o: function show.part.0 has no fentry/mcount call, unable to patch", "no-fentry", "show", "show.part.0"),
    ("ERROR: function show within section .text.show has invalid padding", "no-fentry", "show", "show"),
    (
        "create-diff-object: ERROR: demo.o: kpatch_create_ftrace_callsite_sections: 4083: show: unexpected instruction "
        "at the start of the function",
        "no-fentry",
        "show",
        "show",
    ),
    (
        'ERROR: Found an unsupported sibling call at show()+0x10.  Add __attribute__((optimize("'
        '-fno-optimize-sibling-calls"))) to show() definition.',
        "sibling-call",
        "show",
        "show",
    ),
    (
        "create-diff-object: ERROR: demo.o: kpatch_detect_child_functions: 369: failed to find parent function for "
        "show.cold",
        "parent-function-missing",
        None,
        "show.cold",
    ),
    ("demo.o: changed section .rela.text.show not selected for inclusion", "section-changed", "show", ".text.show"),
    ("demo.o: changed section .text.unlikely.show.cold not selected for inclusion", "section-changed", "show", "show"),
    ("demo.o: changed section _kprobe_blacklist not selected for inclusion", "section-changed", None, "_kprobe"),
    ("demo.o: changed section .noinstr.text not selected for inclusion", "shared-text-section", None, ".noinstr.text"),
    ("demo.o: changed section .text..refcount not selected for inclusion", "shared-text-section", None, "refcount"),
    ("demo.o: changed section .text not selected for inclusion", "shared-text-section", None, ".text"),
    ("demo.o: changed section .init.data not selected for inclusion", "init-code", None, ".init.data"),
    ("demo.o: changed section .exit.text not selected for inclusion", "init-code", None, ".exit.text"),
    ("demo.o: changed section ___ksymtab_gpl+show not selected for inclusion", "export-changed", None, "___ksymtab"),
    ("demo.o: changed section .rela__param not selected for inclusion", "module-parameter", None, "__param"),
    ("demo.o: changed section .rela_ftrace_events not selected for inclusion", "tracepoint-changed", None, "_ftrace"),
    ("demo.o: changed section __syscalls_metadata not selected for inclusion", "system-call", None, "none can be"),
    (
        "demo.o: changed section .relaruntime_ptr_USER_PTR_MAX not selected for inclusion",
        "runtime-constant",
        None,
        "'USER_PTR_MAX'",
    ),
    ("demo.o: data section .data.rel.ro.local.ops selected for inclusion", "data-object-changed", None, "'ops'"),
    ("demo.o: changed section .bss.state not selected for inclusion", "data-object-changed", None, "'state'"),
    (
        "ERROR: demo.o: .data.table section header details differ from .data.table",
        "section-attributes-changed",
        None,
        "",
    ),
    (
        "ERROR: demo.o: static local seen.2 has been correlated with seen.3, but patched show is missing a "
        "reference to it",
        "static-local-changed",
        "show",
        "'seen'",
    ),
    (
        "create-diff-object: ERROR: demo.o: kpatch_correlate_static_local_variables: 1546: bundle mismatch for symbol "
        "seen.1",
        "static-local-changed",
        None,
        "'seen'",
    ),
    (
        "create-diff-object: ERROR: demo.o: kpatch_correlate_static_local_variables: 1548: sections .data.a and .bss.a "
        "aren't correlated for symbol seen.1",
        "static-local-changed",
        None,
        "'seen'",
    ),
    (
        "ERROR: demo.o: reference to static local variable seen.2 in (null) was removed",
        "static-local-changed",
        None,
        "",
    ),
    (
        "create-diff-object: ERROR: demo.o: need_klp_reloc: 3591: can't find local symbol 'state' in symbol table",
        "symbol-not-found",
        None,
        "'state'",
    ),
    (
        "create-diff-object: ERROR: demo.o: find_local_syms: 204: found duplicate matches for demo.c local symbols in "
        "vmlinux symbol table",
        "symbol-ambiguous",
        None,
        "'demo.c'",
    ),
    (
        "create-diff-object: ERROR: demo.o: lookup_exported_symbol: 548: duplicate exported symbol found for show",
        "symbol-ambiguous",
        None,
        "'show'",
    ),
    (
        "create-diff-object: ERROR: demo.o: kpatch_replace_sections_syms: 1819: .text.show+0x1c: can't find "
        "replacement symbol for .data.table+-8 reference",
        "unresolved-reference",
        None,
        ".data.table",
    ),
    (
        "create-diff-object: ERROR: demo.o: kpatch_check_relocations: 3027: .text.show+0x1c: out-of-range relocation "
        "table+7f",
        "unresolved-reference",
        None,
        "'table'",
    ),
    (
        "create-diff-object: ERROR: demo.o: kpatch_create_intermediate_sections: 3770: unsupported klp relocation "
        "reference to symbol 'clear_page_erms' in module-specific special section '.altinstructions'",
        "special-section-reference",
        None,
        "'clear_page_erms'",
    ),
    (
        "create-diff-object: ERROR: demo.o: kpatch_mark_ignored_functions_same: 3183: expected bundled symbol",
        "kpatch-macro",
        None,
        "",
    ),
]
OUR_FORMS: list[tuple[str, str]] = [
    ("kpatch_regenerate_orc_sections: 2942: bad .orc_unwind size", "struct-sizes"),
    ("kpatch_bundle_symbols: 319: symbol show at offset 16 within section .text.show, expected 0", "object-malformed"),
    ("kpatch_link_prefixed_functions: 523: missing func for __pfx_show", "object-malformed"),
    ("kpatch_create_symbol_list: 571: couldn't find section for symbol show", "object-malformed"),
    ("kpatch_create_rela_list: 352: could not lookup rela string for .rodata.str1.1+8", "object-malformed"),
    ("symtab_read: 340: unknown symbol bind UNIQUE", "symbol-table-unreadable"),
    ("lookup_open: 447: malloc table", "tool-out-of-memory"),
    ("kpatch_lookup_parent: 338: strndup", "tool-out-of-memory"),
    ("kpatch_write_output_elf: 1189: elf_update", "tool-io"),
    ("rela_equal: 638: .toc entry not found .toc + 8", "architecture-unsupported"),
    (
        "kpatch_line_macro_change_only: 949: no instruction changes detected for changed section .text.show",
        "tool-inconsistent",
    ),
    ("kpatch_rebuild_rela_section_data: 1111: size mismatch in rebuilt rela section", "tool-inconsistent"),
]


@pytest.mark.parametrize(("line", "rule", "function", "named"), FORMS)
def test_other_messages_of_the_differ(line: str, rule: str, function: str | None, named: str) -> None:
    output = f"ERROR: demo.o: 1 unsupported section change(s)\ncreate-diff-object: unreconcilable difference\n{line}\n"
    (found,) = diagnose_differ(output, 2, source=SOURCE)
    assert (found.severity, found.rule, found.function) == ("error", rule, function)
    assert named in found.message
    assert "{" not in found.message
    assert isinstance(differ_error(output, 2, source=SOURCE), CannotLivepatchError)


@pytest.mark.parametrize(("said", "rule"), OUR_FORMS)
def test_our_own_mistakes_are_never_the_patchs(said: str, rule: str) -> None:
    output = f"create-diff-object: ERROR: demo.o: {said}\n"
    (found,) = diagnose_differ(output, 1, source=SOURCE)
    assert found.rule == rule
    error = differ_error(output, 1, source=SOURCE)
    assert type(error) is ToolCrashedError
    assert said in error.message


@pytest.mark.parametrize(("status", "name"), [(-signal.SIGSEGV, "SIGSEGV"), (128 + 6, "SIGABRT"), (137, "SIGKILL")])
def test_a_signal_is_our_fault_whatever_was_said_before(status: int, name: str) -> None:
    output = "demo.o: changed section .init.text not selected for inclusion\n"
    (found,) = diagnose_differ(output, status, source=SOURCE)
    assert (found.rule, found.severity) == ("tool-crashed", "error")
    error = differ_error(output, status, source=SOURCE)
    assert type(error) is ToolCrashedError
    assert name in error.message
    assert ".init.text" in error.message


@pytest.mark.parametrize(
    ("status", "output"),
    [
        (1, "create-diff-object: ERROR: demo.o: kpatch_new_check: 99: the moon is full\n"),
        (2, "ERROR: demo.o: the moon is full\ncreate-diff-object: unreconcilable difference\n"),
        (127, "create-diff-object: error while loading shared libraries: the moon is full\n"),
        (1, "bwrap: the moon is full\n"),
    ],
)
def test_what_is_not_known_is_kept_and_not_the_patchs_fault(status: int, output: str) -> None:
    (found,) = diagnose_differ(output, status, source=SOURCE)
    assert (found.rule, found.severity) == ("tool-unknown-message", "error")
    assert "the moon is full" in found.message
    error = differ_error(output, status, source=SOURCE)
    assert type(error) is InternalError
    assert "the moon is full" in error.message


def test_silence_is_an_internal_error() -> None:
    error = differ_error("", 1, source=SOURCE)
    assert type(error) is InternalError
    assert "nothing" in error.diagnosis[0].message


def test_an_unknown_message_beside_a_known_reason_is_a_note() -> None:
    output = "ERROR: demo.o: the moon is full\ndemo.o: changed section .init.text not selected for inclusion\n"
    findings = diagnose_differ(output, 2, source=SOURCE)
    assert brief(findings) == [("error", "init-code", None), ("note", "tool-unknown-message", None)]
    assert isinstance(differ_error(output, 2, source=SOURCE), CannotLivepatchError)


def test_several_reasons_are_all_given_and_each_once() -> None:
    output = (
        "demo.o: changed section .init.text not selected for inclusion\n"
        "demo.o: changed section .data.table not selected for inclusion\n"
        "demo.o: changed section .rela.data.table not selected for inclusion\n"
        "ERROR: demo.o: 3 unsupported section change(s)\n"
    )
    assert [found.rule for found in diagnose_differ(output, 2, source=SOURCE)] == ["init-code", "data-object-changed"]
    assert "(and 1 more)" in differ_error(output, 2, source=SOURCE).message


def test_a_count_alone_is_still_a_reason() -> None:
    output = "ERROR: demo.o: 2 function(s) can not be patched\ncreate-diff-object: unreconcilable difference\n"
    assert brief(diagnose_differ(output, 2, source=SOURCE)) == [("error", "no-fentry", None)]


@pytest.mark.parametrize("name", ["__do_sys_demo", "__se_sys_demo.isra.0", "__x64_sys_demo", "__do_compat_sys_demo"])
def test_the_body_of_a_system_call_gets_a_hint_of_its_own(name: str) -> None:
    output = f"demo.o: function {name} has no fentry/mcount call, unable to patch\n"
    (found,) = diagnose_differ(output, 2, source=SOURCE)
    assert found.rule == "no-fentry"
    assert "'demo' is a system call" in (found.hint or "")
    assert "noinline" in (found.hint or "")


def test_a_function_of_a_like_name_is_no_system_call() -> None:
    output = "demo.o: function do_sys_demo has no fentry/mcount call, unable to patch\n"
    (found,) = diagnose_differ(output, 2, source=SOURCE)
    assert found.hint == RULES["no-fentry"].hint


def test_a_new_system_call_is_the_first_reason_not_its_trace_events() -> None:
    output = (
        "demo.o: changed section _ftrace_events not selected for inclusion\n"
        "demo.o: changed section .rela__syscalls_metadata not selected for inclusion\n"
        "ERROR: demo.o: 2 unsupported section change(s)\n"
    )
    assert [found.rule for found in diagnose_differ(output, 2, source=SOURCE)] == ["system-call", "tracepoint-changed"]
    assert "none can be added" in differ_error(output, 2, source=SOURCE).message


def test_there_are_never_too_many_findings() -> None:
    output = "".join(f"demo.o: changed section .data.v{n} not selected for inclusion\n" for n in range(500))
    assert len(diagnose_differ(output, 2, source=SOURCE)) == 50


@given(st.text(), st.integers(-70, 300))
def test_no_output_upsets_it(output: str, status: int) -> None:
    findings = diagnose_differ(output, status, source=SOURCE)
    assert any(found.severity == "error" for found in findings) is (status not in (0, 3))
    assert differ_error(output, status, source=SOURCE).exit_status in (1, 3)
    diagnose_compiler(output)
    link_error(output, status)


# -- the compiler


COMPILER: dict[str, list[tuple[str, str | None, int | None, str | None]]] = {
    "syntax-error": [
        ("compile-warning", "fs/proc/meminfo.c", 2, "unused_thing"),
        ("compile-error", "fs/proc/meminfo.c", 6, "meminfo_proc_show"),
        ("compile-warning", "fs/proc/meminfo.c", 5, "meminfo_proc_show"),
        ("compile-error", "fs/proc/meminfo.c", 11, "other"),
        ("compile-error", "fs/proc/meminfo.c", 12, "other"),
        ("compile-warning", "fs/proc/meminfo.c", 11, "other"),
        ("compile-warning", "fs/proc/meminfo.c", 7, "meminfo_proc_show"),
        ("compile-warning", "fs/proc/meminfo.c", 8, None),
        ("compile-warning", "fs/proc/meminfo.c", 2, None),
    ],
    "error-in-header": [
        ("compile-error", "include/linux/inner.h", 1, "inner"),
        ("compile-error", "fs/proc/a.c", 2, None),
    ],
    "missing-header": [("compile-error", "fs/proc/b.c", 1, None)],
    "types": [
        ("compile-error", "fs/proc/c.c", 1, "f"),
        ("compile-error", "fs/proc/c.c", 1, "f"),
        ("compile-warning", "fs/proc/c.c", 1, "f"),
    ],
    "make": [("compile-error", "fs/proc/b.c", 1, None)],
    "build-bug": [
        ("compile-error", "fs/proc/c.c", 9, "h"),
        ("compile-error", "fs/proc/c.c", 2, "g"),
        ("compile-error", "fs/proc/c.c", 2, "h"),
    ],
    "static-assertion": [("compile-error", "fs/proc/d.c", 1, "h"), ("compile-error", "fs/proc/d.c", 1, "h")],
    "assembler": [("compile-error", "fs/proc/e.c", 2, None)],
    "objtool": [("objtool", "ob.c", None, "fine"), ("objtool", "ob.c", None, "bad"), ("objtool", "ob.c", None, "bad2")],
}


def test_output_of_the_real_compiler() -> None:
    blocks = samples("gcc-14.txt")
    assert set(blocks) == set(COMPILER)
    for label, (_, output) in blocks.items():
        findings = diagnose_compiler(output)
        assert [(f.rule, f.file, f.line, f.function) for f in findings] == COMPILER[label], label


def test_a_compiler_message_keeps_its_text() -> None:
    status, output = samples("gcc-14.txt")["missing-header"]
    (found,) = diagnose_compiler(output)
    assert (status, found.message) == (1, "linux/absent.h: No such file or directory")


def test_compilers_that_run_at_the_same_time_keep_their_functions() -> None:
    output = (
        "./fs/a.c: In function 'one':\n./fs/b.c: In function ‘two’:\n"  # noqa: RUF001 - as gcc writes them
        "\x1b[01m\x1b[K./fs/a.c:3:1:\x1b[m\x1b[K error: first\nfs/b.c:4:1: error: second\n"
    )
    assert [(f.file, f.function) for f in diagnose_compiler(output)] == [("fs/a.c", "one"), ("fs/b.c", "two")]


@pytest.mark.parametrize(
    "line",
    [
        "fs/a.c:3:1: internal compiler error: Segmentation fault",
        "gcc-14: fatal error: Killed signal terminated program cc1",
        "make[2]: *** [scripts/Makefile.build:229: fs/a.o] Killed",
    ],
)
def test_a_crash_of_the_compiler_is_not_the_patchs_fault(line: str) -> None:
    (found,) = diagnose_compiler(line + "\n")
    assert found.rule == "compiler-crashed"
    assert RULES[found.rule].ours


def test_what_make_repeats_is_dropped_and_what_it_says_itself_is_kept() -> None:
    output = (
        "make[1]: *** [scripts/Makefile.build:229: fs/a.o] Error 1\nmake: Target 'x' not remade because of errors.\n"
        "make: *** No rule to make target 'fs/absent.o'.  Stop.\ncc1: all warnings being treated as errors\n"
    )
    assert [f.message for f in diagnose_compiler(output)] == ["No rule to make target 'fs/absent.o'"]


def test_errors_are_kept_where_there_are_too_many_messages() -> None:
    output = "".join(f"fs/a.c:{n}:1: warning: no {n}\n" for n in range(1, 200)) + "fs/a.c:999:1: error: the one\n"
    findings = diagnose_compiler(output)
    assert len(findings) == 50
    assert findings[-1].message == "the one"


# -- the link


def test_output_of_real_linking_tools() -> None:
    blocks = samples("link.txt")
    rules = {label: [f.rule for f in diagnose_link(output)] for label, (_, output) in blocks.items()}
    assert rules == {
        "ld-duplicate": ["duplicate-definition", "duplicate-definition"],
        "ld-undefined": ["undefined-symbol"],
        "modpost": ["section-mismatch", "undefined-symbol", "module-malformed", "symbol-namespace", "module-malformed"],
        "modpost-7.3": ["undefined-symbol"],
        "klp-no-strings": [],
        "klp-usage": [],
    }
    errors = {label: type(link_error(output, status)) for label, (status, output) in blocks.items()}
    assert errors == {
        "ld-duplicate": CannotLivepatchError,
        "ld-undefined": CannotLivepatchError,
        "modpost": ToolCrashedError,  # a module without the GPL is nothing that a patch could do
        "modpost-7.3": CannotLivepatchError,
        "klp-no-strings": ToolCrashedError,
        "klp-usage": ToolCrashedError,
    }


def test_a_missing_symbol_is_named() -> None:
    error = link_error('ERROR: modpost: "nowhere" [livepatch-x.ko] undefined!\n', 2)
    assert isinstance(error, CannotLivepatchError)
    assert "'nowhere'" in error.message


def test_a_missing_namespace_is_named_in_the_words_of_newer_kernels_too() -> None:
    text = "ERROR: modpost: x.ko: module uses symbol 'thing' from namespace 'CRYPTO', but does not import it.\n"
    (found,) = link_error(text, 2).diagnosis
    assert found.rule == "symbol-namespace"
    assert found.message == "The patched code uses 'thing' from the namespace CRYPTO."


def test_an_unknown_failure_of_the_link_is_kept() -> None:
    error = link_error("the moon is full\n", 2)
    assert type(error) is InternalError
    assert "the moon is full" in error.message
    assert type(link_error("", -11)) is ToolCrashedError


# -- the rules


def test_every_rule_has_its_section_and_every_section_its_rule() -> None:
    sections = re.findall(r"^## (.+)\n\n\*\*(.+)\*\*", DOC.read_text(), flags=re.MULTILINE)
    assert len(sections) == len(re.findall(r"^## ", DOC.read_text(), flags=re.MULTILINE))
    assert {rule: title.removesuffix(".") for rule, title in sections} == {r: RULES[r].title for r in RULES}
    assert len(sections) == len(RULES)


def test_every_section_has_an_example_and_a_way_out() -> None:
    for section in re.split(r"^## ", DOC.read_text(), flags=re.MULTILINE)[1:]:
        assert "\nExample: " in section, section.split("\n")[0]
        assert "\nInstead: " in section, section.split("\n")[0]


def test_every_rule_is_one_that_some_output_leads_to() -> None:
    seen = {rule for _, expected in DIFFER.values() for _, rule, _ in expected}
    seen |= {rule for _, rule, _, _ in FORMS} | {rule for _, rule in OUR_FORMS}
    seen |= {rule for expected in COMPILER.values() for rule, *_ in expected}
    for _, output in samples("link.txt").values():
        seen |= {found.rule for found in diagnose_link(output)}
    assert set(RULES) - set(KERNEL_RULES) - set(KLP_RULES) - seen == {
        "tool-crashed",
        "tool-unknown-message",
        "compiler-crashed",
        "module-not-run",  # of the boot test, see test_livepatches.py
    }  # shown above
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", rule) for rule in RULES)
