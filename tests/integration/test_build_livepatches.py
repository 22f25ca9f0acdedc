# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds of real patches for a real kernel, without a boot test: what comes out, and that it is always the same."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from build_support import ENGINES, LIVEPATCHES, Builder, livepatch_file, livepatch_names, mounts
from elivepatch.build.prepared import PreparedKernel
from elivepatch.kernel.elf import ElfImage
from elivepatch.kernel.release import parse_release
from elivepatch.protocol.models import BuildStatus
from elivepatch.workshop import Workshop

pytestmark = pytest.mark.integration

#: What each livepatch of tests/data is to change: object, function, kind.
EXPECTED = {
    "string": {("vmlinux", "meminfo_proc_show", "changed")},
    "static-local": {("vmlinux", "show_interrupts", "changed")},
    "new-function": {("vmlinux", "version_proc_show", "changed"), ("vmlinux", "version_show_note", "new")},
    "new-static-variable": {("vmlinux", "loadavg_proc_show", "changed")},
    "two-files": {("vmlinux", "uptime_proc_show", "changed"), ("vmlinux", "loadavg_proc_show", "changed")},
    "header": {
        ("vmlinux", "do_task_stat", "changed"),
        ("vmlinux", "uptime_proc_show", "changed"),
        ("vmlinux", "do_sysinfo.isra.0", "changed"),
        ("vmlinux", "get_boottime_timespec", "changed"),
        ("vmlinux", "posix_get_boottime_timespec", "changed"),
    },
    "new-file": {
        ("vmlinux", "uptime_proc_show", "changed"),
        ("vmlinux", "version_proc_show", "changed"),
        ("vmlinux", "version_note", "new"),
        ("vmlinux", "count", "new"),
    },
    "shadow-variable": {
        ("vmlinux", "mounts_open_common", "changed"),
        ("vmlinux", "show_vfsmnt", "changed"),
        ("vmlinux", "mounts_release", "changed"),
    },
    "same-names": {("vmlinux", "type_show", "changed"), ("vmlinux", "timer_list_show", "changed")},
    "same-names-module": {("md_mod", "metadata_show", "changed")},
    "module": {("xfs", "xfs_stats_format", "changed")},
    "module-and-vmlinux": {("xfs", "xfs_stats_format", "changed"), ("vmlinux", "meminfo_proc_show", "changed")},
}


#: The same where the kernels of an engine need another patch for it.
EXPECTED_OF = {("static-local", "klp"): {("vmlinux", "proc_do_uuid", "changed")}}


@pytest.fixture
def builder_of(
    workshop: Workshop, kernel_of: Callable[[str], PreparedKernel], tmp_path: Path
) -> Callable[[str], Builder]:
    """Builds for the kernel of an engine."""
    return lambda engine: Builder(workshop, kernel_of(engine), tmp_path)


def test_every_livepatch_of_the_data_is_expected() -> None:
    assert set(livepatch_names()) == set(EXPECTED)
    own = {path.stem for engine in ENGINES for path in (LIVEPATCHES / engine).glob("*.patch")}
    assert own <= set(EXPECTED)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_livepatch_is_built_and_proven(builder_of: Callable[[str], Builder], name: str, engine: str) -> None:
    before = mounts()
    builder = builder_of(engine)
    built = builder(livepatch_file(f"{name}.patch", engine).read_bytes())
    expected = EXPECTED_OF.get((name, engine), EXPECTED[name])
    report = built.report
    assert (report.status, report.exit_status) == (BuildStatus.DONE, 0), built.told
    assert report.engine is not None
    assert report.engine.name == engine
    assert {(each.object, each.function, each.kind) for each in report.changed} == expected
    assert report.proof is not None
    assert report.proof.level == "exact"
    assert report.proof.compared
    assert all(function.identical for function in report.proof.functions)
    proven = {(function.object, function.function) for function in report.proof.functions}
    assert {(obj, function) for obj, function, kind in expected if kind == "changed"} <= proven
    assert report.kernel is not None
    assert report.kernel.build_id == builder.kernel.build_id
    assert report.module is not None
    assert report.module.size == len(built.module)
    with ElfImage(built.module) as image:
        modinfo = image.data_of(".modinfo").split(b"\0")
        assert b"livepatch=Y" in modinfo
        assert any(entry.startswith(f"vermagic={report.kernel.release} ".encode()) for entry in modinfo)
    assert mounts() == before


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_inputs_give_the_same_bytes(builder_of: Callable[[str], Builder], tmp_path: Path, engine: str) -> None:
    builder = builder_of(engine)
    names = ("module-and-vmlinux", "new-static-variable")
    patches = [livepatch_file(f"{name}.patch", engine).read_bytes() for name in names]
    first = [builder(patch).module for patch in patches]
    assert [
        builder(patch, output=tmp_path / "elsewhere/deep" / str(at)).module for at, patch in enumerate(patches)
    ] == (first)

    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)

    def build(patch: bytes, output: Path) -> None:
        start.wait(60)
        builder(patch, output=output)

    # two at once, in processes of their own: of two patches, then of the same one
    for round_, pair in enumerate(((0, 1), (0, 0))):
        outputs = [tmp_path / f"at-once-{round_}-{number}" for number in range(2)]
        children = [
            context.Process(target=build, args=(patches[which], output))
            for which, output in zip(pair, outputs, strict=True)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(240)
            assert child.exitcode == 0
        for which, output in zip(pair, outputs, strict=True):
            (module,) = output.glob("*.ko")
            assert module.read_bytes() == first[which]


#: Functions whose code holds runtime constants, which only vmlinux has filled in: file, what to change, function.
RUNTIME_CONSTANTS = {
    "dentry hash": (
        "fs/dcache.c",
        (
            "		dentry->d_lockref.count++;\n		found = dentry;",
            "		found = dentry;\n		dentry->d_lockref.count += 2;",
        ),
        "__d_lookup",
    ),
    "put_user": (
        "kernel/sys.c",
        ("err |= put_user(cpu, cpup);", "err |= put_user(cpu + 1, cpup);"),
        "__x64_sys_getcpu",
    ),
}


@pytest.mark.parametrize("name", sorted(RUNTIME_CONSTANTS))
def test_functions_with_runtime_constants(builder: Builder, name: str) -> None:
    file, replacement, function = RUNTIME_CONSTANTS[name]
    for _ in range(2):  # the second one finds the original as it was kept
        built = builder(builder.change(file, replacement))
        assert built.report.status is BuildStatus.DONE, built.told
        assert built.report.proof is not None
        assert built.report.proof.level == "exact"
        assert function in {each.function for each in built.report.changed}
        with ElfImage(built.module) as image:
            sections = [section.name for section in image.sections]
        assert not [section for section in sections if "runtime_" in section], "a placeholder would stay in the module"


def test_a_macro_of_the_other_tools_is_refused_before_anything_is_compiled(builder: Builder) -> None:
    klp = parse_release(builder.kernel.release) >= parse_release("6.19")
    prefix, header = ("KPATCH", '"kpatch-macros.h"') if klp else ("KLP", "<linux/livepatch_helpers.h>")
    end = "fs_initcall(init_pipe_fs);\n"
    callback = f"static void after(struct klp_object *obj)\n{{\n}}\n{prefix}_POST_UNPATCH_CALLBACK(after);\n"
    include = '#include "internal.h"\n'
    built = builder(builder.change("fs/pipe.c", (include, f"{include}#include {header}\n"), (end, end + callback)))
    assert (built.report.status, built.report.exit_status) == (BuildStatus.REFUSED, 3), built.told
    errors = [each for each in built.report.diagnosis if each.severity == "error"]
    assert {(each.rule, each.file) for each in errors} == {("foreign-macro", "fs/pipe.c")}
    assert f"{'KLP' if klp else 'KPATCH'}_POST_UNPATCH_CALLBACK" in built.told
    assert built.report.timings is not None
    assert built.report.timings.compile is None


@pytest.mark.parametrize("engine", ENGINES)
def test_a_function_that_is_rarely_run_from_now_on(builder_of: Callable[[str], Builder], engine: str) -> None:
    # a message to the log is code that the compiler takes for cold: the function moves to .text.unlikely
    head = "char *kstrdup(const char *s, gfp_t gfp)\n{\n"
    builder = builder_of(engine)
    built = builder(builder.change("mm/util.c", (head, f'{head}\tpr_info("kstrdup\\n");\n')))
    assert built.report.status is BuildStatus.DONE, built.told
    assert ("kstrdup", "changed") in {(each.function, each.kind) for each in built.report.changed}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_system_call_without_parameters_that_gets_a_cold_part(
    builder_of: Callable[[str], Builder], engine: str
) -> None:
    # one function of three names, of which the cold part has the local one
    head = "SYSCALL_DEFINE0(getpid)\n{\n"
    builder = builder_of(engine)
    built = builder(builder.change("kernel/sys.c", (head, f'{head}\tif (!current->mm)\n\t\tpr_info("getpid\\n");\n')))
    assert built.report.status is BuildStatus.DONE, built.told
    assert {each.function.removeprefix("__do").removeprefix("__x64") for each in built.report.changed} == {
        "_sys_getpid"
    }


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("new", "said"),
    [
        ("void livepatch_news(void);\nvoid livepatch_news(void)\n{\n\tpr_info(KERN_CONT);\n}\n", "livepatch_news()"),
        ("extern int livepatch_news;\nint livepatch_news = 1;\n", ""),
    ],
    ids=["function", "data"],
)
def test_what_nothing_uses_is_no_change(builder_of: Callable[[str], Builder], new: str, said: str, engine: str) -> None:
    builder = builder_of(engine)
    end = "fs_initcall(init_pipe_fs);\n"
    built = builder(builder.change("fs/pipe.c", (end, f"{new}\n{end}")))
    assert (built.report.exit_status, built.report.error) == (3, "no-functional-change"), built.told
    assert "no-functional-change" in built.rules
    assert said in built.told
    assert built.report.module is None
