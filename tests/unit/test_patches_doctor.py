# SPDX-License-Identifier: GPL-2.0-or-later
"""The early rules: what a change touches, and what is said about it before anything is compiled."""

from __future__ import annotations

import pytest

from elivepatch.errors import CannotLivepatchError, NothingToPatchError
from elivepatch.patches.csource import ItemKind, read_source
from elivepatch.patches.doctor import Examination, SourceChange, examine, require_code, require_possible

DRIVER = b"""// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>
#define LIMIT 16
#define CLAMP(x) \\
	((x) > LIMIT ? LIMIT : (x))

struct thing {
	int a;	/* first */
	struct list_head list;
};

typedef struct {
	u8 flags;
} thing_t;

static DEFINE_MUTEX(thing_lock);
static int limit = LIMIT;
static int counts[4];
static const char * const names[] = { "a", "b" };
static struct file_operations thing_fops __ro_after_init = {
	.owner = THIS_MODULE,
	.open = thing_open,
};

/* Says how many. */
static noinline int how_many(struct thing __user *t, int n)
	__must_hold(&thing_lock)
{
	static int seen = 1;
	struct thing *pos;

	list_for_each_entry(pos, &t->list, list) {
		if (pos->a)
			seen++;
	}
	return CLAMP(n) + seen;
}

SYSCALL_DEFINE2(thing, int, fd, char __user *, buf)
{
	return how_many((void *)buf, fd);
}

static char * __init thing_name(void)
{
	return "thing";
}

static int __init thing_init(void)
{
	pr_info("%s\\n", thing_name());
	return 0;
}

static void __exit thing_exit(void)
{
	limit = 0;
}

static int __net_init thing_net_init(struct net *net)
{
	return 0;
}

#ifdef CONFIG_THING
static int option = 1;
int thing_option(void)
{
	return 1;
}
#else
int thing_option(void)
{
	return 2;
}
static int __init late(void)
{
	return 3;
}
#endif
EXPORT_SYMBOL_GPL(thing_option);
module_init(thing_init);

BTF_ID_LIST(thing_ids)
BTF_ID(struct, thing)
enum { FIRST };

static void last(void)
{
	mb();
}
"""


def change(*edits: tuple[bytes, bytes], path: str = "drivers/thing.c") -> Examination:
    patched = DRIVER
    for old, new in edits:
        assert patched.count(old) == 1, old
        patched = patched.replace(old, new)
    return examine([SourceChange(path, DRIVER, patched)])


def rules(examination: Examination) -> list[tuple[str, str, str | None]]:
    return [(finding.rule, finding.severity, finding.function) for finding in examination.findings]


def line_of(text: bytes) -> int:
    return DRIVER[: DRIVER.index(text)].count(b"\n") + 1


def test_the_parts_of_a_file() -> None:
    items = read_source(DRIVER).items
    assert [item.name for item in items if item.kind is ItemKind.FUNCTION] == [
        *("how_many", "SYSCALL_DEFINE2(thing)", "thing_name", "thing_init", "thing_exit", "thing_net_init"),
        *("thing_option", "thing_option", "late", "last"),
    ]
    assert [item.name for item in items if item.kind is ItemKind.DATA] == [
        *("limit", "counts", "names", "thing_fops", "option"),
    ]
    assert [item.name for item in items if item.kind is ItemKind.TYPE] == ["struct thing", "struct thing_t"]
    assert [item.name for item in items if item.kind is ItemKind.MACRO] == ["LIMIT", "CLAMP"]
    assert read_source(DRIVER).exports == {"thing_option"}


def test_a_changed_function_is_named_with_its_lines() -> None:
    examination = change((b"\t\t\tseen++;\n", b"\t\t\tseen += 2;\n\t\tcond_resched();\n"))
    (function,) = examination.functions
    first = line_of(b"static noinline int how_many")
    assert (function.name, function.file, function.kind) == ("how_many", "drivers/thing.c", "changed")
    assert function.old_lines == (first, first + 11)
    assert function.new_lines == (first, first + 12)
    assert examination.code
    assert not examination.findings


def test_a_function_that_the_parser_loses_is_found_by_its_layout() -> None:
    text = b"""
static int __init one(int a,
	int b)
{
#ifdef A
	if (a) {
#else
	if (b) {
#endif
		f();
	}
	return 1;
}

static int __init two(void)
{
	return 1;
}
"""
    assert [item.name for item in read_source(text).items] == ["one", "two"]
    examination = examine([SourceChange("x.c", text, text.replace(b"f();", b"g();"))])
    assert [(function.name, function.new_lines) for function in examination.functions] == [("one", (2, 13))]
    assert rules(examination) == [("init-code", "warning", "one")]


def test_new_and_removed_functions() -> None:
    examination = change(
        (b"static char * __init thing_name", b"static void fresh(void)\n{\n}\n\nstatic char * __init thing_name"),
        (b"SYSCALL_DEFINE2(thing, int, fd", b"SYSCALL_DEFINE2(other, int, fd"),
    )
    assert {(function.name, function.kind) for function in examination.functions} == {
        ("fresh", "new"),
        ("SYSCALL_DEFINE2(thing)", "removed"),
        ("SYSCALL_DEFINE2(other)", "new"),
    }


def test_one_of_two_conditional_versions() -> None:
    (function,) = change((b"\treturn 2;", b"\treturn 4;")).functions
    assert function.new_lines is not None
    assert function.new_lines[0] == line_of(b"int thing_option(void)\n{\n\treturn 2")


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([(b'"%s\\n", th', b'"%s!\\n", th')], [("init-code", "error", "thing_init")]),
        ([(b'return "thing"', b'return "other"')], [("init-code", "error", "thing_name")]),
        ([(b"\tlimit = 0;", b"\tlimit = 1;")], [("init-code", "error", "thing_exit")]),
        (
            [(b"(struct net *net)\n{\n", b"(struct net *net)\n{\n\tmb();\n")],
            [("init-code", "warning", "thing_net_init")],
        ),
        ([(b"\treturn 3;", b"\treturn 5;")], [("init-code", "warning", "late")]),
        ([(b"int __init thing_init", b"int thing_init")], [("init-code", "warning", "thing_init")]),
        ([(b"limit = LIMIT;", b"limit = 8;")], [("data-initialiser", "error", None)]),
        ([(b".open = thing_open", b".open = other_open")], [("data-initialiser", "error", None)]),
        ([(b'{ "a", "b" }', b'{ "a", "c" }')], [("data-initialiser", "warning", None)]),
        ([(b"option = 1;", b"option = 2;")], [("data-initialiser", "warning", None)]),
        ([(b"static int seen = 1;", b"static int seen = 2;")], [("data-initialiser", "warning", "how_many")]),
        ([(b"counts[4]", b"counts[8]")], [("data-layout", "warning", None)]),
        ([(b"\tint a;", b"\tlong a;")], [("struct-layout", "warning", None)]),
        ([(b"\tu8 flags;", b"\tu16 flags;")], [("struct-layout", "warning", None)]),
        ([(b"#define LIMIT 16", b"#define LIMIT 17")], [("macro-change", "note", None)]),
        ([(b"EXPORT_SYMBOL_GPL(thing_option);\n", b"")], [("export-change", "warning", None)]),
        ([(b"<linux/module.h>\n", b"<linux/module.h>\n#include <linux/fs.h>\n")], [("unclear-change", "note", None)]),
        (
            [(b"static int counts[4];\n", b"static int counts[4];\nstatic int fresh = 3;\n")],
            [("unclear-change", "note", None)],
        ),
        ([(b"struct thing *pos;", b"struct thing *pos;\n\tstatic int new_one = 3;")], []),
    ],
)
def test_rules_of_c(edits: list[tuple[bytes, bytes]], expected: list[tuple[str, str, str | None]]) -> None:
    examination = change(*edits)
    assert rules(examination) == expected
    for finding in examination.findings:
        assert finding.file == "drivers/thing.c"
        assert finding.hint or finding.severity == "note"


def test_code_for_the_start_has_run_and_code_for_the_end_has_not() -> None:
    (start,) = change((b'"%s\\n", th', b'"%s!\\n", th')).findings
    (end,) = change((b"\tlimit = 0;", b"\tlimit = 1;")).findings
    assert "has run already" in start.message
    assert "__exit" not in start.message
    assert "has run already" not in end.message
    assert "when its module is unloaded (__exit)" in end.message


def test_a_finding_points_at_the_first_line_that_differs() -> None:
    (finding,) = change((b".open = thing_open", b".open = other_open")).findings
    assert finding.line == line_of(b"\t.open = thing_open")
    assert "thing_fops" in finding.message


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("include/linux/thing.h", [("header-change", "note", None)]),
        ("arch/x86/entry/entry_64.S", [("assembly", "error", None)]),
        ("fs/Makefile", [("build-file", "warning", None)]),
        ("fs/Kconfig", [("build-file", "warning", None)]),
        ("fs/Kconfig.binfmt", [("build-file", "warning", None)]),
        ("scripts/Makefile.build", [("build-file", "warning", None)]),
        ("rust/kernel/lib.rs", [("other-file", "warning", None)]),
    ],
)
def test_rules_of_names(path: str, expected: list[tuple[str, str, str | None]]) -> None:
    examination = change((b"\t\t\tseen++;", b"\t\t\tseen--;"), path=path)
    assert examination.code
    assert rules(examination) == expected
    require_code(examination)


@pytest.mark.parametrize(
    ("path", "original", "patched"),
    [
        ("Documentation/livepatch/x.rst", b"a\n", b"b\n"),
        ("fs/README", None, b"b\n"),
        ("MAINTAINERS", b"a\n", b"b\n"),
        ("fs/.gitignore", b"a\n", None),
        ("fs/x.c", b"int a; /* one */\n", b"int a; /* two */\n"),
        ("fs/x.c", b"int a;\n", b"// why\nint  a;\n\n"),
        ("include/x.h", b"/* a */\nint b;\n", b"int b;\n"),
        ("fs/x.c", b"int a;\n", b"int a;\n"),
    ],
)
def test_only_documentation(path: str, original: bytes | None, patched: bytes | None) -> None:
    examination = examine([SourceChange(path, original, patched)])
    with pytest.raises(NothingToPatchError, match="documentation") as caught:
        require_code(examination, [path])
    assert caught.value.diagnosis[0].rule == "only-documentation"
    assert caught.value.exit_status == 3
    assert path in caught.value.message


@pytest.mark.parametrize(
    ("original", "patched"),
    [
        (b'char *a = "/* one */";\n', b'char *a = "/* two */";\n'),
        (b'char *a = "x  y";\n', b'char *a = "x y";\n'),
        (b"int a = '\"'; // '\n", b"int a = '\"' + 1; // '\n"),
        (b"int a;\n", b"int a; /*\n"),
    ],
)
def test_what_looks_like_a_comment_and_is_code(original: bytes, patched: bytes) -> None:
    assert examine([SourceChange("fs/x.c", original, patched)]).code == (b"/*\n" not in patched)


def test_sure_findings_can_refuse() -> None:
    require_possible(change((b"counts[4]", b"counts[8]")))
    with pytest.raises(CannotLivepatchError, match="thing_init") as caught:
        require_possible(change((b'"%s\\n", th', b'"%s!\\n", th'), (b"counts[4]", b"counts[8]")))
    assert [finding.rule for finding in caught.value.diagnosis] == ["init-code", "data-layout"]
    assert caught.value.exit_status == 3
