# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions that are called otherwise after a patch, and who would go on as before."""

from __future__ import annotations

from pathlib import Path

import pytest

from elivepatch.build.signatures import callers_left, changed_signatures, exported_signatures

BODY = b"\n{\n\treturn 0;\n}\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"int act(int a)", b"int act(int a, int b)"),
        (b"int act(void)", b"int act(int a)"),
        (b"int act(int a)", b"int act(long a)"),
        (b"int act(int a)", b"bool act(int a)"),
        (b"int act(struct file *f)", b"int act(struct inode *f)"),
        (b"int act(int a, long b)", b"int act(long a, int b)"),
        (b"int act(void (*f)(int), int a)", b"int act(void (*f)(long), int a)"),
    ],
)
def test_changed(before: bytes, after: bytes) -> None:
    assert changed_signatures(before + BODY, after + BODY) == ["act"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"int act(int a)", b"int act(int b)"),
        (b"int act(unsigned int)", b"int act(unsigned int mode)"),
        (b"int act(struct file *f)", b"noinline int act(\n\tstruct file  *file /* which */)"),
        (b"static int act(int a)", b"static int act(int a, int b)"),
        (b"int act(int a)", b"int other(int a, int b)"),
        (b"SYSCALL_DEFINE1(act, int, a)", b"SYSCALL_DEFINE1(act, long, a)"),
    ],
)
def test_not_changed(before: bytes, after: bytes) -> None:
    assert changed_signatures(before + BODY, after + BODY) == []


def test_callers_that_would_go_on_as_before(tmp_path: Path) -> None:
    files = {
        "a.c": "extern int act(int a);\nint f(void) { return act(1); }\n",
        "entry.S": "\tcall act\n",
        "static.c": "static int act(int a) { return a; }\nint g(void) { return act(1); }\n",
        "macro.c": "#define act(a) (a)\nint g(void) { return act(1); }\n",
        "field.c": "int g(struct ops *o) { o->act(1); return o.act(2) + x_act(1); }\n",
        "pointer.c": "int g(int (*act)(int)) { return act(1); }\\nint h(act_fn *act, int a) { return act(a); }\\n",
        "comment.c": "/* act(1) */\nint act_more(int act);\n",
        "compiled.c": "int h(void) { return act(1); }\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    units = [*files, "generated.c"]
    (found,) = callers_left(tmp_path, {"fs/act.c": ["act"]}, units, {"compiled.c"})
    assert (found.rule, found.severity, found.file, found.function) == ("callers-left", "error", "fs/act.c", "act")
    assert "a.c, entry.S would" in found.message
    assert callers_left(tmp_path, {"fs/act.c": ["act"]}, units, {"compiled.c", "a.c", "entry.S"}) == []
    assert callers_left(tmp_path, {}, units, set()) == []


def test_exported_functions() -> None:
    text = b"int act(int a)" + BODY + b"EXPORT_SYMBOL_GPL(act);\nint own(int a)" + BODY
    (found,) = exported_signatures(text, "fs/act.c", ["act", "own"])
    assert (found.rule, found.severity, found.file, found.function) == (
        "exported-signature",
        "warning",
        "fs/act.c",
        "act",
    )
