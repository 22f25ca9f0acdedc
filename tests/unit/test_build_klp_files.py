# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that the kernel's own tools cannot change, told by their paths and the makefiles of their directories."""

from __future__ import annotations

from pathlib import Path

import pytest

from elivepatch.build.engines.klp_files import untraced

MAKEFILES = {
    "lib": "ccflags-remove-$(CONFIG_FUNCTION_TRACER) += $(CC_FLAGS_FTRACE)\nobj-y += vsprintf.o zlib/\n",
    "lib/zlib": "obj-y += inflate.o\n",
    "kernel": "ifdef CONFIG_FUNCTION_TRACER\n# not these\nCFLAGS_REMOVE_irq_work.o = $(CC_FLAGS_FTRACE)\nendif\n",
    "kernel/trace": (
        "ccflags-remove-$(CONFIG_FUNCTION_TRACER) += \\\n\t$(CC_FLAGS_FTRACE)\n"
        "ifdef CONFIG_FTRACE_SELFTEST\nCFLAGS_trace_seq.o = $(CC_FLAGS_FTRACE)\nendif\n"
    ),
    "mm": "ifdef CONFIG_SOMETHING\nCFLAGS_REMOVE_slub.o = $(CC_FLAGS_FTRACE)\nelse\nendif\n"
    "CFLAGS_REMOVE_page.o := -O2 $(CC_FLAGS_FTRACE)\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for directory, text in MAKEFILES.items():
        (tmp_path / directory).mkdir(parents=True, exist_ok=True)
        (tmp_path / directory / "Makefile").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("lib/vsprintf.c", True),
        ("lib/zlib/inflate.c", False),
        ("kernel/irq_work.c", True),
        ("kernel/fork.c", False),
        ("kernel/trace/trace.c", True),
        ("kernel/trace/trace_seq.c", False),
        ("mm/slub.c", False),
        ("mm/page.c", True),
        ("nowhere/file.c", False),
    ],
)
def test_what_the_makefile_leaves_the_calls_out_of(tree: Path, path: str, expected: bool) -> None:
    assert untraced(tree, path) is expected
