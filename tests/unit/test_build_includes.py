# SPDX-License-Identifier: GPL-2.0-or-later
"""The include index, on trees of a few files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from elivepatch.build.includes import (
    IncludeIndex,
    SearchPath,
    Tree,
    load_index,
    make_index,
    save_index,
    scan,
)

LINUXINCLUDE = (
    "-I./arch/x86/include -I./arch/x86/include/generated  -I./include -I./include/uapi "
    "-include ./include/linux/compiler-version.h -include ./include/linux/kconfig.h"
)
FILES = {
    "include/linux/kconfig.h": "#include <generated/autoconf.h>\n",
    "include/linux/compiler-version.h": "",
    "include/linux/compiler_types.h": "#include <linux/types.h>\n",
    "include/linux/types.h": "",
    "include/linux/list.h": "#include <linux/types.h>\n",
    "include/linux/sched.h": '#include "list.h"\n# include <asm/current.h>\n',
    "include/linux/only_uapi_below.h": "#include <uapi/linux/fs.h>\n",
    "include/uapi/linux/fs.h": "",
    "arch/x86/include/asm/current.h": "",
    "arch/arm/include/asm/current.h": "",
    "arch/arm/include/asm/arm_only.h": "",
    # a file beside the includer goes first for quotes, and is not looked at for angles
    "fs/a/list.h": "",
    "fs/a/quoted.c": '#include "list.h"\n',
    "fs/a/angled.c": "#include <list.h>\n#include <linux/list.h>\n",
    "fs/a/above.c": '  #  include "../b/deep/x.h"\n',
    "fs/b/deep/x.h": '#include "y.h"\n',
    "fs/b/deep/y.h": '#include "x.h"\n',  # in a circle
    # found with -I of a makefile: the name alone says where
    "drivers/d/Makefile": "ccflags-y += -I$(src)/inc -include $(src)/forced/all.h\n",
    "drivers/d/inc/special.h": "",
    "drivers/d/inc/sub/nested.h": "",
    "drivers/d/forced/all.h": '#include "more.h"\n',
    "drivers/d/forced/more.h": "",
    "drivers/d/core.c": "#include <special.h>\n",
    "drivers/d/x/y.c": '#include <sub/nested.h>\n#include "arm_only.h"\n',
    # the trace headers include themselves through a macro
    "include/trace/define_trace.h": "#include TRACE_INCLUDE(TRACE_INCLUDE_FILE)\n",
    "include/trace/events/foo.h": "#include <linux/list.h>\n#include <trace/define_trace.h>\n",
    "fs/t/trace_t.h": "#define TRACE_INCLUDE_PATH .\n#define TRACE_INCLUDE_FILE trace_t\n"
    "#include <trace/define_trace.h>\n#include <linux/sched.h>\n",
    "fs/t/t.c": '#include "trace_t.h"\n',
    "fs/m/magic.c": '#define MAGIC "magic_body.h"\n#include "user.h"\n',
    "fs/m/user.h": "#include MAGIC\n",
    "fs/m/magic_body.h": "",
    "fs/m/unknown.c": "#include FROM_THE_COMMAND_LINE\n",
    "kernel/idle.c": "#include <linux/sched.h>\n",
    "kernel/policy.c": '#include "idle.c"\n',
    "kernel/off.c": "#if 0\n#include <linux/list.h>\n#endif\n",
    "kernel/commented.c": '/* x */\n#/* c */include /* d */ "idle.c"\n#include \\\n  <linux/only_uapi_below.h>\n',
    "kernel/generated.c": "#include <generated/asm-offsets.h>\n",
}
GENERATED = {
    "include/generated/autoconf.h": "",
    "include/generated/asm-offsets.h": "",
    "arch/x86/include/generated/asm/wrapped.h": "#include <asm-generic/wrapped.h>\n",
}
UNITS = sorted(name for name in FILES if name.endswith(".c") and name != "kernel/idle.c")
OPAQUE = {"fs/m/unknown.c"}


def write(top: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    return top


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree((write(tmp_path / "products", GENERATED), write(tmp_path / "source", FILES)))


@pytest.fixture
def index(tree: Tree) -> IncludeIndex:
    return make_index(tree, SearchPath.of(LINUXINCLUDE), {unit: ["vmlinux"] for unit in UNITS})


def users(index: IncludeIndex, *wanted: str) -> set[str]:
    return set(index.includers(wanted)) - OPAQUE


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("fs/a/list.h", {"fs/a/quoted.c", "fs/a/angled.c"}),  # the second cannot be told from -I of a makefile
        (
            "include/linux/list.h",
            {"fs/a/angled.c", "kernel/policy.c", "kernel/commented.c", "kernel/off.c", "fs/t/t.c"},
        ),
        ("include/uapi/linux/fs.h", {"kernel/commented.c"}),
        ("arch/x86/include/asm/current.h", {"kernel/policy.c", "kernel/commented.c", "fs/t/t.c"}),
        ("arch/arm/include/asm/current.h", set[str]()),
        ("arch/arm/include/asm/arm_only.h", set[str]()),
        ("fs/b/deep/x.h", {"fs/a/above.c"}),
        ("fs/b/deep/y.h", {"fs/a/above.c"}),
        ("drivers/d/inc/special.h", {"drivers/d/core.c"}),
        ("drivers/d/inc/sub/nested.h", {"drivers/d/x/y.c"}),
        ("drivers/d/forced/all.h", {"drivers/d/core.c", "drivers/d/x/y.c"}),
        ("drivers/d/forced/more.h", {"drivers/d/core.c", "drivers/d/x/y.c"}),
        ("include/trace/define_trace.h", {"fs/t/t.c"}),
        ("fs/t/trace_t.h", {"fs/t/t.c"}),
        ("fs/m/magic_body.h", {"fs/m/magic.c"}),
        ("kernel/idle.c", {"kernel/policy.c", "kernel/commented.c"}),
        ("include/generated/asm-offsets.h", {"kernel/generated.c"}),
        ("include/linux/nothing.h", set[str]()),
    ],
)
def test_users(index: IncludeIndex, header: str, expected: set[str]) -> None:
    assert users(index, header) == expected


@pytest.mark.parametrize("header", ["include/linux/kconfig.h", "include/linux/types.h", "include/generated/autoconf.h"])
def test_what_every_file_gets(index: IncludeIndex, header: str) -> None:
    assert set(index.includers([header])) == set(UNITS)


def test_what_includes_something_unknown_counts_always(index: IncludeIndex) -> None:
    assert set(index.includers(["include/linux/nothing.h"])) == OPAQUE
    assert set(index.includers([])) == OPAQUE


def test_includes_of_the_patched_texts(index: IncludeIndex, tree: Tree) -> None:
    texts: dict[str, bytes | None] = {
        "kernel/off.c": b'#include "fresh.h"\n',
        "kernel/fresh.h": b"#include <linux/fresh.h>\n",
        "include/linux/fresh.h": b"",
        "fs/a/list.h": None,  # its user gets another one instead
    }
    patched = index.patched(Tree(tree.layers, texts))
    assert users(patched, "kernel/fresh.h") == {"kernel/off.c"}
    assert users(patched, "include/linux/fresh.h") == {"kernel/off.c"}
    assert "fs/a/quoted.c" in users(patched, "include/linux/list.h")
    assert "kernel/off.c" not in users(patched, "include/linux/list.h")
    assert users(index, "kernel/fresh.h") == set()


def test_a_new_file_that_goes_before_an_old_one(index: IncludeIndex, tree: Tree) -> None:
    patched = index.patched(Tree(tree.layers, {"arch/x86/include/linux/list.h": b""}))
    assert users(patched, "arch/x86/include/linux/list.h") == {"fs/a/angled.c", "kernel/off.c"}


def test_an_index_is_kept(index: IncludeIndex, tmp_path: Path) -> None:
    save_index(index, tmp_path / "index.gz")
    assert load_index(tmp_path / "index.gz") == index
    assert [path.name for path in tmp_path.glob("*index*")] == ["index.gz"]


@pytest.mark.parametrize("data", [None, b"", b"not gzip", b"\x1f\x8b\x08"])
def test_an_index_that_is_none(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "index.gz").write_bytes(data)
    assert load_index(tmp_path / "index.gz") is None


def test_scan() -> None:
    said = scan(b'#include <a.h>\n #\tinclude "b/c.h" // x\n#include_next <d.h>\n#define F <f.h>\n#include F\n')
    assert said.includes == ("<a.h>", '"b/c.h"', "<d.h>", "=F")
    assert said.macros == (("F", "<f.h>"),)
