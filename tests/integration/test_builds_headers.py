# SPDX-License-Identifier: GPL-2.0-or-later
"""Headers and new files, on a real kernel: the include index against the compiler, and what is refused."""

from __future__ import annotations

import random
import time
from pathlib import Path
from posixpath import normpath

import pytest

from build_support import Builder, change, diff
from elivepatch.build.compiler import Compiler
from elivepatch.build.contents import kernel_index
from elivepatch.build.engines.kpatch import KpatchEngine
from elivepatch.build.kbuild import saved_command
from elivepatch.build.lines import keep_lines
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.preprocess import compare
from elivepatch.kernel.elf import STB_LOCAL, ElfImage
from elivepatch.protocol.models import BuildStatus
from elivepatch.workshop import TOOLS_ROOT, Workshop

pytestmark = pytest.mark.integration

SAMPLE = 40
#: These make trace points, which are headers that have themselves read again and again.
TRACING = (
    "kernel/sched/core.c",
    "net/core/net-traces.c",
    "fs/xfs/xfs_trace.c",
    "fs/ext4/super.c",
    "arch/x86/kvm/x86.c",
)


def test_the_index_misses_nothing_that_the_compiler_reads(kernel: PreparedKernel, tmp_path: Path) -> None:
    index = kernel_index(kernel)
    sources = sorted(unit for unit in index.units if unit.endswith(".c") and (kernel.source / unit).exists())
    drawn = sorted({*random.Random(6).sample(sources, SAMPLE), *(unit for unit in TRACING if unit in sources)})
    tmp_path.chmod(0o755)
    work = tmp_path / "work"
    with kernel.sandbox(work) as sandbox:
        kernel.kbuild.objects(sandbox, [f"{unit.removesuffix('.c')}.i" for unit in drawn], parallel=2)
    reached: dict[str, set[str]] = {}
    missed: set[tuple[str, str]] = set()
    dependencies = 0
    looked_at: set[str] = set()
    for unit in drawn:
        saved = work / "upper" / saved_command(f"{unit.removesuffix('.c')}.i")
        if not saved.exists():
            assert index.units[unit] != ("vmlinux",), f"{unit} is not preprocessed"
            continue
        looked_at.add(unit)
        # fixdep's form (scripts/basic/fixdep.c): one name a line, and what $(wildcard) names are options
        for line in saved.read_text().partition("deps_")[2].splitlines()[1:]:
            name = line.strip().removesuffix("\\").strip()
            if not name or name.startswith(("$(", "/", "deps_")) or ":" in name or "=" in name:
                continue
            if not ((kernel.source / name).exists() or (kernel.products / name).exists()):
                continue  # generated beside the object, in this very run
            name = normpath(name)
            dependencies += 1
            if name not in reached:
                reached[name] = set(index.includers([name]))
            if unit not in reached[name]:
                missed.add((unit, name))
    assert len(looked_at) > SAMPLE * 0.9
    assert dependencies > 200 * len(looked_at)
    assert not missed


def test_a_header_that_everything_includes_is_refused_at_once(builder: Builder) -> None:
    kernel_index(builder.kernel)
    began = time.monotonic()
    built = builder(
        builder.change("include/linux/list.h", ("return list->next == head;", "return head == list->next;"))
    )
    assert time.monotonic() - began < 30
    assert (built.report.status, built.report.exit_status) == (BuildStatus.REFUSED, 3)
    (finding,) = [each for each in built.report.diagnosis if each.severity == "error"]
    assert (finding.rule, finding.file) == ("header-fan-out", "include/linux/list.h")
    assert "drivers/net (" in finding.message


def test_only_what_uses_the_change_is_left_after_preprocessing(kernel: PreparedKernel, tmp_path: Path) -> None:
    header = "include/linux/time_namespace.h"
    text = (kernel.source / header).read_bytes()
    patched = text.replace(b"*ts = timespec64_sub(*ts, ns_offsets->boottime);", b"*ts = (struct timespec64){};")
    assert patched != text
    tmp_path.chmod(0o755)
    files = ["fs/proc/stat.c", "fs/proc/uptime.c", "kernel/sys.c"]
    found = {each.file: each for each in compare(kernel, files, {header: patched}, tmp_path / "work", 2)}
    assert {file: each.changed for file, each in found.items()} == dict(zip(files, (True, False, False), strict=True))
    assert {each.parent for each in found.values()} == {"vmlinux"}


def test_what_is_left_out_would_have_come_out_the_same(kernel: PreparedKernel, tmp_path: Path) -> None:
    header = "include/linux/time_namespace.h"
    text = (kernel.source / header).read_bytes()
    patched = text.replace(
        b"*ts = timespec64_add(*ts, ns_offsets->boottime);",
        b"if (ts)\n*ts = timespec64_add(*ts, ns_offsets->boottime);",
    )
    files = {header: keep_lines(text, patched).text}
    assert patched != text
    tmp_path.chmod(0o755)
    users = sorted(unit for unit in kernel_index(kernel).includers([header]) if unit.endswith(".c"))
    changed = {each.file: each.changed for each in compare(kernel, users, files, tmp_path / "work", 2)}
    assert 3 <= sum(changed.values()) < len(users) - 3
    objects = [f"{unit.removesuffix('.c')}.o" for unit in users]
    compiled, _ = Compiler(kernel, tmp_path / "compile", 2).compile(objects, files)
    altered = {each.source for each in compiled if each.original.read_bytes() != each.patched.read_bytes()}
    assert altered <= {file for file, may in changed.items() if may}
    assert altered


MAKEFILE = "fs/proc/Makefile"
NEW = "fs/proc/elivepatch_new.c"
LINE = "proc-y	+= version.o\n"
PROTOTYPE = "#include <linux/types.h>\nint elivepatch_new(void);\n"


def new_file(builder: Builder, text: str, *, line: str = "proc-y += elivepatch_new.o\n", use: bool = True) -> bytes:
    patch = diff(NEW, "", PROTOTYPE + text) + builder.change(MAKEFILE, (LINE, LINE + line))
    if use:
        call = ("	return 0;\n", '	seq_printf(m, "%d\\n", elivepatch_new());\n	return 0;\n')
        declared = ("static int version_proc_show", "int elivepatch_new(void);\n\nstatic int version_proc_show")
        patch += builder.change("fs/proc/version.c", declared, call)
    return patch


FUNCTION = "int elivepatch_new(void) { return 7; }\n"
REFUSED = {
    "an initcall": (
        f"#include <linux/init.h>\n{FUNCTION}static int __init now(void) {{ return 0; }}\nlate_initcall(now);\n",
        "proc-y += elivepatch_new.o\n",
        "new-file-init",
    ),
    "an export": (
        f"#include <linux/export.h>\n{FUNCTION}EXPORT_SYMBOL(elivepatch_new);\n",
        "proc-y += elivepatch_new.o\n",
        "new-file-export",
    ),
    "module information": (
        f'#include <linux/module.h>\n{FUNCTION}MODULE_LICENSE("GPL");\n',
        "proc-y += elivepatch_new.o\n",
        "new-file-init",
    ),
    "a module of its own": (FUNCTION, "obj-m += elivepatch_new.o\n", "new-file"),
    "no line in a makefile": (FUNCTION, "proc-y += \n", "new-file"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_new_files_that_cannot_come(builder: Builder, name: str) -> None:
    text, line, rule = REFUSED[name]
    built = builder(new_file(builder, text, line=line))
    assert (built.report.status, built.report.exit_status) == (BuildStatus.REFUSED, 3), built.told
    assert {each.rule for each in built.report.diagnosis if each.severity == "error"} == {rule}


def test_a_new_file_that_does_not_compile(builder: Builder) -> None:
    built = builder(new_file(builder, "int elivepatch_new(void) { return nothing; }\n"))
    assert (built.report.status, built.report.error) == (BuildStatus.REFUSED, "does-not-compile"), built.told
    assert {each.file for each in built.report.diagnosis if each.severity == "error"} == {NEW}


def test_a_new_file_that_nothing_of_its_module_calls(builder: Builder) -> None:
    patch = new_file(builder, FUNCTION, use=False) + builder.change(
        "fs/xfs/xfs_stats.c", ("	return len;\n", "	len = len + 0 * PATH_MAX;\n	return len;\n")
    )
    built = builder(patch)
    assert (built.report.status, built.report.exit_status) == (BuildStatus.REFUSED, 3), built.told
    assert "nothing would ever call it" in built.told


def test_a_new_header_and_a_new_file_that_is_included(builder: Builder) -> None:
    source = builder.change(
        "fs/proc/version.c",
        (
            '#include "internal.h"\n',
            '#include "internal.h"\n#include "elivepatch_new.h"\n#include "elivepatch_inc.c"\n',
        ),
        ("	return 0;\n", '	seq_printf(m, "%d\\n", included(LEVEL));\n	return 0;\n'),
    )
    patch = source + diff("fs/proc/elivepatch_new.h", "", "#define LEVEL 3\n")
    patch += diff(
        "fs/proc/elivepatch_inc.c", "", "static __attribute__((__noipa__)) int included(int a) { return a * 5; }\n"
    )
    built = builder(patch)
    assert built.report.status is BuildStatus.DONE, built.told
    assert {(each.function.partition(".")[0], each.kind) for each in built.report.changed} == {
        ("version_proc_show", "changed"),
        ("included", "new"),
    }


@pytest.mark.parametrize("file", ["fs/proc/Makefile", "fs/proc/Kconfig"])
def test_a_build_file_is_never_ignored_in_silence(builder: Builder, file: str) -> None:
    text = (builder.source / file).read_text()
    build_file = diff(file, text, f"{text}\n# nothing\n")
    alone = builder(build_file)
    assert (alone.report.status, alone.report.error) == (BuildStatus.REFUSED, "nothing-to-patch"), alone.told
    assert "build-file-ignored" in alone.rules
    beside = builder(build_file + change(builder.source, "fs/proc/meminfo.c", ("VmallocChunk:", "VMALLOCCHUNK:")))
    assert beside.report.status is BuildStatus.DONE, beside.told
    assert "build-file-ignored" in beside.rules


def test_a_file_that_another_directory_compiles(builder: Builder) -> None:
    replacement = ("created_vcpus >= kvm->max_vcpus", "created_vcpus + 1 > kvm->max_vcpus")
    built = builder(builder.change("virt/kvm/kvm_main.c", replacement))
    assert built.report.status is BuildStatus.DONE, built.told
    assert {(each.object, each.function) for each in built.report.changed} == {("kvm", "kvm_vm_ioctl")}
    assert built.report.proof is not None
    assert (built.report.proof.level, (built.report.proof.compared or 0) > 100) == ("exact", True)


def test_a_header_of_files_that_another_directory_compiles(builder: Builder) -> None:
    replacement = ("rwlock_init(&(kvm)->mmu_lock)", "({ rwlock_init(&(kvm)->mmu_lock); smp_mb(); })")
    built = builder(builder.change("virt/kvm/kvm_mm.h", replacement))
    assert built.report.status is BuildStatus.DONE, built.told
    assert {(each.object, each.function) for each in built.report.changed} == {("kvm", "kvm_dev_ioctl")}


def test_a_module_with_a_dash_in_its_name(builder: Builder) -> None:
    replacement = ('ti->error = "Invalid stripe count";', 'ti->error = "Invalid stripe number";')
    built = builder(builder.change("drivers/md/dm-stripe.c", replacement))
    assert built.report.status is BuildStatus.DONE, built.told
    assert {(each.object, each.function) for each in built.report.changed} == {("dm_mod", "stripe_ctr")}


def test_one_object_in_two_modules(builder: Builder, workshop: Workshop, tmp_path: Path) -> None:
    # no kernel at hand has one: the diff of a global function comes twice, as it does from two modules
    kernel = builder.kernel
    tmp_path.chmod(0o755)
    text = (kernel.source / "fs/xfs/xfs_stats.c").read_bytes()
    patched = text.replace(b"debug %u", b"DEBUG %u")
    assert patched != text
    compiled, _ = Compiler(kernel, tmp_path / "compile", 2).compile(
        ["fs/xfs/xfs_stats.o"], {"fs/xfs/xfs_stats.c": patched}
    )
    engine = KpatchEngine(kernel, workshop.roots.get(TOOLS_ROOT))
    (tmp_path / "link").mkdir()
    (diff_object,) = engine.diff(compiled, tmp_path / "diff")
    module = engine.link([diff_object, diff_object], "elivepatch_twice", tmp_path / "link")
    with ElfImage(module) as image:
        functions = [symbol for symbol in image.symbols() if symbol.name == "xfs_stats_format"]
    assert [symbol.bind for symbol in functions if symbol.section] == [STB_LOCAL, STB_LOCAL]


def test_a_removed_source_file(builder: Builder) -> None:
    text = (builder.source / "fs/proc/version.c").read_text()
    lines = "".join(f"-{line}\n" for line in text.splitlines())
    patch = f"--- a/fs/proc/version.c\n+++ /dev/null\n@@ -1,{len(text.splitlines())} +0,0 @@\n{lines}"
    built = builder(patch.encode())
    assert (built.report.status, built.report.exit_status) == (BuildStatus.REFUSED, 3), built.told
    assert {each.rule for each in built.report.diagnosis if each.severity == "error"} == {"file-removed"}
