# SPDX-License-Identifier: GPL-2.0-or-later
"""What a livepatch refers to and must not, and what the tools say of a build that goes through."""

from __future__ import annotations

import pytest

from build_support import Builder
from elivepatch.protocol.models import BuildStatus

pytestmark = pytest.mark.integration

LOADAVG = "fs/proc/loadavg.c"
HEAD = "static int loadavg_proc_show(struct seq_file *m, void *v)\n{\n"
FIRST = "\tget_avenrun(avnrun, FIXED_1/200, 0);\n"


def test_initialisation_code_of_another_file_is_refused(builder: Builder) -> None:
    patch = builder.change(
        LOADAVG, (HEAD, f"void proc_tty_init(void);\n{HEAD}"), (FIRST, f"{FIRST}\tproc_tty_init();\n")
    )
    report = builder(patch).report
    assert (report.status, report.exit_status, report.error) == (BuildStatus.REFUSED, 3, "cannot-livepatch")
    assert {(each.rule, each.severity) for each in report.diagnosis} == {("init-reference", "error")}
    assert "proc_tty_init" in (report.message or "")
    assert report.module is None


def test_initialisation_code_of_the_same_file_is_refused(builder: Builder) -> None:
    call = "\tif (!avnrun[0] && m->count > 1 << 30)\n\t\tproc_loadavg_init();\n"
    declared = f"static int __init proc_loadavg_init(void);\n{HEAD}"
    report = builder(builder.change(LOADAVG, (HEAD, declared), (FIRST, f"{FIRST}{call}"))).report
    assert (report.exit_status, report.diagnosis[0].rule) == (3, "init-reference")


def test_initialisation_data_is_refused(builder: Builder) -> None:
    declared = f"extern char boot_command_line[];\n{HEAD}"
    used = f'{FIRST}\tseq_printf(m, "%c ", boot_command_line[0]);\n'
    report = builder(builder.change(LOADAVG, (HEAD, declared), (FIRST, used))).report
    assert (report.exit_status, report.diagnosis[0].rule) == (3, "init-reference")


def test_a_new_static_key_is_refused_before_it_fails_to_load(builder: Builder) -> None:
    declared = f"#include <linux/jump_label.h>\nstatic DEFINE_STATIC_KEY_FALSE(elivepatch_key);\n{HEAD}"
    used = f'{FIRST}\tif (static_branch_unlikely(&elivepatch_key))\n\t\tseq_puts(m, "key ");\n'
    report = builder(builder.change(LOADAVG, (HEAD, declared), (FIRST, used))).report
    assert (report.exit_status, report.diagnosis[0].rule) == (3, "undefined-symbol")
    assert "elivepatch_key" in (report.message or "")
    assert "static" in (report.diagnosis[0].hint or "")


def test_a_global_name_that_the_kernel_has_is_refused(builder: Builder) -> None:
    # all code that is not patched would go on to use the kernel's
    declared = "char *kstrdup(const char *s, gfp_t gfp);\nnoinline char *kstrdup(const char *s, gfp_t gfp)\n{\n"
    declared += f'\tpr_info("mine\\n");\n\treturn NULL;\n}}\n\n{HEAD}'
    used = f'{FIRST}\tif (kstrdup("x", GFP_KERNEL))\n\t\tseq_puts(m, "copy ");\n'
    report = builder(builder.change(LOADAVG, (HEAD, declared), (FIRST, used))).report
    assert (report.exit_status, report.diagnosis[0].rule) == (3, "duplicate-definition"), report
    assert "kstrdup" in (report.message or "")
    static = declared.replace("char *kstrdup(const char *s, gfp_t gfp);\nnoinline ", "static noinline ")
    renamed = static.replace("kstrdup", "livepatch_copy")
    built = builder(builder.change(LOADAVG, (HEAD, renamed), (FIRST, used.replace("kstrdup", "livepatch_copy"))))
    assert built.report.status is BuildStatus.DONE, built.told


def test_a_write_to_what_is_read_only_by_then_is_refused(builder: Builder) -> None:
    # it compiles, loads and is reverted: only whoever runs that line would see the fault
    used = f"{FIRST}\tif (m->count == 7)\n\t\tsaved_command_line++;\n"
    declared = f"#include <linux/init.h>\n{HEAD}"
    other_file = builder(builder.change(LOADAVG, (HEAD, declared), (FIRST, used))).report
    assert (other_file.exit_status, other_file.diagnosis[0].rule) == (3, "read-only-written"), other_file
    assert "saved_command_line" in (other_file.message or "")
    line = "\tset_nlink(inode, nlink_tid);\n"
    same_file = builder(builder.change("fs/proc/base.c", (line, f"\tnlink_tid++;\n{line}"))).report
    assert [(each.rule, each.function) for each in same_file.diagnosis if each.severity == "error"] == [
        ("read-only-written", "proc_task_instantiate")
    ], same_file


def test_a_variable_under_another_name_is_warned_of(builder: Builder) -> None:
    declared, used = "static DECLARE_WORK(poweroff_work, poweroff_work_func);", "schedule_work(&poweroff_work);"
    patch = builder.change(
        "kernel/reboot.c",
        (declared, declared.replace("(poweroff_work,", "(livepatch_work,")),
        (used, "schedule_work(&livepatch_work);"),
    )
    report = builder(patch).report
    assert report.status is BuildStatus.DONE, report
    found = [each for each in report.diagnosis if each.rule == "variable-renamed"]
    assert [(each.severity, each.file) for each in found] == [("warning", "kernel/reboot.c")], report
    assert all(name in found[0].message for name in ("poweroff_work", "livepatch_work"))


def test_what_the_differ_notes_is_in_the_report(builder: Builder) -> None:
    counted = f'{FIRST}\t{{ static unsigned long calls; seq_printf(m, "%lu ", ++calls); }}\n'
    report = builder(builder.change(LOADAVG, (FIRST, counted))).report
    assert report.status is BuildStatus.DONE
    assert ("static-local-new", "warning") in {(each.rule, each.severity) for each in report.diagnosis}


def test_a_compilation_that_takes_all_memory_is_the_sandboxs_limit(builder: Builder) -> None:
    report = builder(builder.change(LOADAVG, (HEAD, f'#include "/dev/zero"\n{HEAD}'))).report
    assert (report.exit_status, report.error) == (3, "sandbox-limit")


def test_a_constant_that_changes_for_one_of_its_readers_is_refused(builder: Builder) -> None:
    # of the two functions that go through the table, one changes; the other would keep the kernel's
    table = ("{ SECCOMP_LOG_TRAP, SECCOMP_RET_TRAP_NAME },", "{ SECCOMP_LOG_LOG, SECCOMP_RET_TRAP_NAME },")
    head = "static bool seccomp_action_logged_from_name(u32 *action_logged,\n\t\t\t\t\t    const char *name)\n{\n"
    reader = (head, f"{head}\tif (*name == 0x7f)\n\t\treturn false;\n")
    report = builder(builder.change("kernel/seccomp.c", table, reader)).report
    assert (report.exit_status, report.diagnosis[0].rule) == (3, "data-object-changed"), report
    assert "seccomp_log_names" in (report.message or "")
    assert builder(builder.change("kernel/seccomp.c", reader)).report.status is BuildStatus.DONE


def test_assembly_that_would_call_the_old_way_is_refused(builder: Builder) -> None:
    name = "struct pt_regs *sync_regs(struct pt_regs *eregs"
    report = builder(builder.change("arch/x86/kernel/traps.c", (f"{name})\n", f"{name}, int more)\n"))).report
    assert (report.exit_status, report.diagnosis[0].rule) == (3, "callers-left"), report
    assert "arch/x86/entry/entry_64.S" in (report.message or "")
