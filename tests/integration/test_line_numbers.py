# SPDX-License-Identifier: GPL-2.0-or-later
"""Line numbers of a real kernel's files: a patch that moves lines changes no function that it does not touch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from build_support import Builder, diff
from elivepatch.build.compiler import Compiler
from elivepatch.build.lines import keep_lines
from elivepatch.build.prepared import PreparedKernel
from elivepatch.kernel.elf import ElfImage
from elivepatch.protocol.models import BuildStatus

pytestmark = pytest.mark.integration

MANAGE = "kernel/irq/manage.c"
#: Lines that come and go in front of, and within, functions that tell their line (WARN, might_sleep), with one change.
MOVED = (
    ("// SPDX-License-Identifier: GPL-2.0\n", "/* new */\n// SPDX-License-Identifier: GPL-2.0\n/* and new */\n"),
    (" * This file contains driver APIs to the irq subsystem.\n", ""),
    ('#include "internals.h"\n', '#include "internals.h"\n\nstatic_assert(sizeof(int) == 4);\nstatic_assert(true);\n'),
    (
        "	static_branch_enable(&force",
        "	/* in a part that this kernel has, or has not */\n	static_branch_enable(&force",
    ),
    ("	if (WARN(!desc->irq_data.chip,", "	if (WARN(/* within a macro */\n!desc->irq_data.chip,"),
    ("	if (WARN_ON_ONCE(!secondary))\n", "	/* right\n	 * before */\n	if (WARN_ON_ONCE(!secondary))\n"),
    ("Unbalanced IRQ %d wake disable", "Unbalanced IRQ %d WAKE disable"),
)


def functions(path: Path) -> dict[str, bytes]:
    """The code of each function that has a section of its own."""
    with ElfImage(path) as image:
        return {each.name: image.data(each) for each in image.sections if each.name.startswith(".text.")}


#: The same where the macros of a journal hand the line down as an argument, so that it stands in the code.
JOURNAL = "fs/ext4/migrate.c"
MOVED_JOURNAL = (
    ('#include "ext4_extents.h"\n', '#include "ext4_extents.h"\n\nstatic_assert(sizeof(int) == 4);\n'),
    (
        "handle = ext4_journal_start(inode, EXT4_HT_MIGRATE,\n",
        "handle = ext4_journal_start(inode,\n /* more */\nEXT4_HT_MIGRATE,\n",
    ),
    ("	/*\n	 * In order to get correct extent info", "\n\n	/*\n	 * To get correct extent info"),
    (
        "		return -EINVAL;\n\n	if (ext4_has_feature_bigalloc",
        "		return -EUCLEAN;\n\n	if (ext4_has_feature_bigalloc",
    ),
)


@pytest.mark.parametrize(
    ("file", "moved", "function"),
    [(MANAGE, MOVED, "irq_set_irq_wake"), (JOURNAL, MOVED_JOURNAL, "ext4_ind_migrate")],
)
def test_only_the_function_that_changes_is_replaced(
    builder: Builder, file: str, moved: Sequence[tuple[str, str]], function: str
) -> None:
    built = builder(builder.change(file, *moved))
    assert built.report.status is BuildStatus.DONE, built.told
    assert {(each.function, each.kind) for each in built.report.changed} == {(function, "changed")}
    assert "line-numbers" not in built.rules


def test_without_it_others_would_be_other_code(kernel: PreparedKernel, tmp_path: Path) -> None:
    plain: dict[str, bytes] = {}
    kept: dict[str, bytes] = {}
    for file, moved in ((MANAGE, MOVED), (JOURNAL, MOVED_JOURNAL)):
        old = new = (kernel.source / file).read_text()
        for before, after in moved[:-1]:
            assert before in new
            new = new.replace(before, after, 1)
        plain[file], kept[file] = new.encode(), keep_lines(old.encode(), new.encode()).text
    tmp_path.chmod(0o755)
    objects = [f"{file.removesuffix('.c')}.o" for file in plain]
    for each in Compiler(kernel, tmp_path / "kept", 2).compile(objects, kept)[0]:
        assert each.original.read_bytes() == each.patched.read_bytes(), each.path
    interrupts, journal = Compiler(kernel, tmp_path / "plain", 2).compile(objects, plain)[0]
    assert functions(interrupts.original) == functions(interrupts.patched)
    with ElfImage(interrupts.original) as before, ElfImage(interrupts.patched) as after:
        assert before.data_of("__bug_table") != after.data_of("__bug_table")
    before, after = functions(journal.original), functions(journal.patched)
    altered = {name for name in before if before[name] != after[name]}
    assert {".text.ext4_ext_migrate", ".text.ext4_ind_migrate"} <= altered


#: Objects in which lines come and go at random places, and a header of one of them.
DRAWN = 12
HEADER, ITS_USER = "kernel/sched/sched.h", "kernel/sched/core.c"


def with_moved_lines(text: str, drawn: random.Random) -> str:
    """The text with comments put between its lines and empty lines taken out, which changes nothing of its code."""
    out: list[str] = []
    comment = continued = False
    for line in text.split("\n"):
        if not (comment or continued):
            if drawn.random() < 0.05:
                out += [f"/* {number} */" for number in range(drawn.randint(1, 4))]
            if not line.strip() and drawn.random() < 0.3:
                continue
        out.append(line)
        comment = line.rfind("/*") > line.rfind("*/") if "/*" in line or "*/" in line else comment
        continued = line.rstrip().endswith("\\")
    return "\n".join(out)


def test_lines_that_come_and_go_anywhere_leave_the_object_as_it_is(kernel: PreparedKernel, tmp_path: Path) -> None:
    drawn = random.Random(7)
    units = sorted(
        unit
        for unit in kernel.compile_units()
        if unit.endswith(".c")
        and (kernel.source / unit).exists()
        and unit.startswith(("kernel/", "fs/", "mm/", "net/"))
    )
    units = [*drawn.sample([unit for unit in units if unit != ITS_USER], DRAWN), ITS_USER]
    files: dict[str, bytes] = {}
    told = 0
    for unit in [*units, HEADER]:
        text = (kernel.source / unit).read_text()
        moved = with_moved_lines(text, drawn)
        kept = keep_lines(text.encode(), moved.encode())
        assert kept.whole
        files[unit] = kept.text
        told += kept.text.count(b"#line ")
    assert told > 20 * len(units)
    tmp_path.chmod(0o755)
    objects = [f"{unit.removesuffix('.c')}.o" for unit in units]
    compiled, findings = Compiler(kernel, tmp_path / "compile", 2).compile(objects, files)
    assert not findings
    assert len(compiled) == DRAWN + 1
    assert [each.path for each in compiled if each.original.read_bytes() != each.patched.read_bytes()] == []


LOADAVG = "fs/proc/loadavg.c"
PADDING = ('#include "internal.h"\n', '#include "internal.h"\n/*\n *\n *\n *\n */\n')


@pytest.mark.parametrize(
    ("wrong", "status"),
    [("	return 0;\n}", BuildStatus.DONE), ("	return nothing;\n}", BuildStatus.REFUSED)],
    ids=["warning", "error"],
)
def test_what_the_compiler_says_is_about_the_lines_of_the_patch(
    builder: Builder, wrong: str, status: BuildStatus
) -> None:
    warned = ("	unsigned long avnrun[3];\n", "	unsigned long avnrun[3];\n	int here;\n")
    built = builder(builder.change(LOADAVG, PADDING, warned, ("	return 0;\n}", wrong), ("%u/%d %d", "%u/%d pid %d")))
    assert built.report.status is status, built.told
    old = (builder.source / LOADAVG).read_text()
    lines = old.replace(*PADDING).replace(*warned).replace("	return 0;\n}", wrong, 1).split("\n")
    rule = "compile-warning" if status is BuildStatus.DONE else "compile-error"
    said = {each.line or 0: each for each in built.report.diagnosis if each.rule == rule}
    line, name = ("	int here;", "here") if status is BuildStatus.DONE else ("	return nothing;", "nothing")
    assert min(said) == lines.index(line) + 1
    assert max(said) <= lines.index("}") + 1
    assert f"'{name}'" in said[lines.index(line) + 1].message.translate({0x2018: "'", 0x2019: "'"})


def test_numbers_that_cannot_be_kept_are_said(builder: Builder) -> None:
    # two new variables are named after lines that have the same number where the old lines keep theirs
    text = (builder.source / LOADAVG).read_text()
    name = "static int __maybe_unused __PASTE(elivepatch_, __LINE__) = 1;\n"
    include = '#include "internal.h"\n'
    new = text.replace(include, f"/* one more */\n{name}{include}{name}")
    built = builder(diff(LOADAVG, text, new.replace("%u/%d %d", "%u/%d pid %d")))
    assert built.report.status is BuildStatus.DONE, built.told
    (note,) = [each for each in built.report.diagnosis if each.rule == "line-numbers"]
    assert (note.severity, note.file) == ("note", LOADAVG)
