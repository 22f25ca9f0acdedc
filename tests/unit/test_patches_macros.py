# SPDX-License-Identifier: GPL-2.0-or-later
"""Macros for authors of patches: those of the wrong tools are refused, and the page shows what is tried."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from elivepatch.errors import CannotLivepatchError
from elivepatch.patches.doctor import SourceChange, examine, require_possible
from elivepatch.patches.macros import foreign_macros, macros_without_header

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/macros.md").read_text()
SOURCE = b"""#include "internal.h"
/* KPATCH_PRE_PATCH_CALLBACK(f); KLP_PRE_PATCH_CALLBACK(f); */
static int limit = 3;
"""


def changed(text: str, original: bytes = SOURCE) -> list[SourceChange]:
    return [SourceChange("fs/a.c", original, original + text.encode())]


@pytest.mark.parametrize(
    ("engine", "text", "name", "instead"),
    [
        ("klp", "KPATCH_PRE_PATCH_CALLBACK(f);\n", "KPATCH_PRE_PATCH_CALLBACK", "KLP_PRE_PATCH_CALLBACK"),
        ("klp", "KPATCH_SYSCALL_DEFINE3(f, int, a)\n", "KPATCH_SYSCALL_DEFINE3", "KLP_SYSCALL_DEFINE3"),
        ("klp", '#include "kpatch-macros.h"\n', '"kpatch-macros.h"', "<linux/livepatch_helpers.h>"),
        ("klp", '# include "../kpatch-syscall.h"\n', '"kpatch-syscall.h"', "<linux/livepatch_helpers.h>"),
        ("klp", 'KPATCH_IGNORE_SECTION(".data.x");\n', "KPATCH_IGNORE_SECTION", "Leave it out"),
        ("kpatch", "KLP_POST_UNPATCH_CALLBACK(f);\n", "KLP_POST_UNPATCH_CALLBACK", "KPATCH_POST_UNPATCH_CALLBACK"),
        ("kpatch", "KLP_SYSCALL_DEFINE1(f, int, a)\n", "KLP_SYSCALL_DEFINE1", "KPATCH_SYSCALL_DEFINE1"),
        ("kpatch", "#include <linux/livepatch_helpers.h>\n", "<linux/livepatch_helpers.h>", '"kpatch-macros.h"'),
    ],
)
def test_a_macro_of_the_other_tools_is_refused_by_its_name(engine: str, text: str, name: str, instead: str) -> None:
    (found,) = foreign_macros(changed(text), engine)
    assert (found.rule, found.severity, found.file, found.line) == ("foreign-macro", "error", "fs/a.c", 4)
    assert found.message.startswith(f"{name} is for ")
    assert instead in (found.hint or "")
    with pytest.raises(CannotLivepatchError) as caught:
        require_possible(examine(changed(text)), [found])
    assert caught.value.hint == found.hint
    (other,) = {"kpatch", "klp"} - {engine}
    assert foreign_macros(changed(text), other) == []


@pytest.mark.parametrize("engine", ["kpatch", "klp", "another"])
def test_what_is_no_use_of_the_other_macros(engine: str) -> None:
    old = b'#include "kpatch-macros.h"\nKPATCH_STATIC_CALL(x)(1);\nKLP_STATIC_CALL(x)(1);\n#define KPATCH_PRINTK(a) a\n'
    texts = [
        *changed("static int KLP_PRE_PATCHES;\n/* KLP_STATIC_CALL(x) KPATCH_STATIC_CALL(x) */\n"),
        *changed("static int more;\n", old),  # they were there before
        *changed("#define KPATCH_PRINTK(a) printk(a)\n#define KLP_STATIC_CALL(a) a\nKPATCH_PRINTK(1);\n"),
    ]
    assert foreign_macros(texts, engine) == []


def test_an_initial_value_that_the_patch_leaves_out_is_a_warning() -> None:
    new = SOURCE.replace(b"= 3", b"= 4")
    findings = examine([SourceChange("fs/a.c", SOURCE, new)]).findings
    assert [(each.rule, each.severity) for each in findings] == [("data-initialiser", "error")]
    for section, severity in ((b".data.limit", "warning"), (b".data.limits", "error"), (b".data.other", "error")):
        text = new + b'KPATCH_IGNORE_SECTION("%s");\n' % section
        findings = examine([SourceChange("fs/a.c", SOURCE, text)]).findings
        assert ("data-initialiser", severity) in [(each.rule, each.severity) for each in findings]


def test_the_examples_of_the_page_are_the_patches_that_are_tried() -> None:
    # an empty line of context has no space there, as it may have none in a patch
    blocks = [
        re.sub(r"^ {4}", "", block, flags=re.M).strip() for block in re.findall(r"(?:^(?: {4}.*)?\n)+", PAGE, re.M)
    ]
    named = re.findall(r"\(`(tests/data/\S+\.patch)`\)", PAGE)
    assert {ROOT / name for name in named} >= set((ROOT / "tests/data").glob("*-macros/*.patch"))
    for name in named:
        assert re.sub(r"[ \t]+$", "", (ROOT / name).read_text(), flags=re.M).strip() in blocks, name


def test_the_patches_for_each_kernel_have_the_macros_of_its_tools() -> None:
    for engine, other in (("kpatch", "klp"), ("klp", "kpatch")):
        patches = sorted((ROOT / f"tests/data/{engine}-macros").glob("*.patch"))
        assert patches
        for path in patches:
            added = "".join(f"{line[1:]}\n" for line in path.read_text().splitlines() if line.startswith("+"))
            change = [SourceChange("fs/a.c", b"", added.encode())]
            assert foreign_macros(change, engine) == []
            assert len(foreign_macros(change, other)) >= 2


HEADERS = {"kpatch": '"kpatch-macros.h"', "klp": "<linux/livepatch_helpers.h>"}
MACROS = {"kpatch": "KPATCH_PRE_PATCH_CALLBACK", "klp": "KLP_PRE_PATCH_CALLBACK"}


@pytest.mark.parametrize("engine", ["kpatch", "klp"])
def test_a_macro_without_its_header_is_told_before_the_compiler_sees_it(engine: str) -> None:
    use, header = f"{MACROS[engine]}(f);\n", f"#include {HEADERS[engine]}\n"
    (found,) = macros_without_header(changed(use), engine)
    assert (found.rule, found.severity, found.file, found.line) == ("macro-header", "error", "fs/a.c", 4)
    assert found.message.startswith(f"{MACROS[engine]} is used")
    assert found.hint == f"Add to the includes of the file: #include {HEADERS[engine]}"
    assert macros_without_header(changed(header + use), engine) == []
    assert macros_without_header(changed(f"#define {MACROS[engine]}(f)\n{use}"), engine) == []
    assert macros_without_header(changed(f"/* {use} */"), engine) == []
    own = SourceChange("fs/internal.h", b"", header.encode())
    assert macros_without_header([*changed(use), own], engine) == []
    other = SourceChange("fs/b.c", b"", header.encode())
    assert len(macros_without_header([*changed(use), other], engine)) == 1


@pytest.mark.parametrize("engine", ["kpatch", "klp"])
def test_shadow_variables_of_the_old_core_module_have_a_successor(engine: str) -> None:
    (found,) = foreign_macros(changed("p = kpatch_shadow_alloc(o, 1, 8, GFP_KERNEL);\n"), engine)
    assert (found.rule, found.line) == ("foreign-macro", 4)
    assert found.hint == "Use klp_shadow_alloc() of <linux/livepatch.h>."
