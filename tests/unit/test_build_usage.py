# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a change of preprocessed text can change an object."""

from __future__ import annotations

import pytest

from elivepatch.build.usage import may_change, split

INLINE = "static inline __attribute__((__gnu_inline__)) __attribute__((__unused__))"
HEADER = f"""
typedef unsigned int u32;
typedef u32 counter_t(int);
struct list {{ struct list *next, *prev; u32 (*get)(struct list *); }} __attribute__((__aligned__(8)));
struct other {{ int plain; }};
enum kind {{ KIND_A = 1, KIND_B }};
extern int registered(struct list *list) __attribute__((nonnull(1)));
extern struct other others[4];
extern struct list *(*chooser)(int);
_Static_assert(sizeof(u32) == 4, "u32 {{ ( }}");
{INLINE} int low(int value) {{ return value + 1; }}
{INLINE} int middle(int value)
{{
 asm volatile("nop {{ %0" : "+r" (value));
 return low(value) + '{{';
}}
{INLINE} int unused(struct other *other) {{ return other->plain; }}
static __attribute__((__always_inline__)) inline struct list *first(struct list *list) {{ return list->next; }}
"""
SOURCE = """
static const char *names[] = { "a;b", "}" };
static int counter;
struct list *head = &(struct list) { 0 };
int emitted(int value) { counter++; return middle(value); }
"""
QUIET = 'static const char *names[] = { "a" };\nint emitted(int value) { return value; }\n'


def change(before: str, after: str, source: str = SOURCE) -> bool:
    assert before in HEADER
    return may_change((HEADER + source).encode(), (HEADER.replace(before, after) + source).encode())


@pytest.mark.parametrize(
    ("before", "after", "source", "changes"),
    [
        ("value + 1", "value + 2", SOURCE, True),  # used by an inline function that is used
        ("value + 1", "value + 2", QUIET, False),
        ("low(value) +", "low(value) -", SOURCE, True),
        ("low(value) +", "low(value) -", QUIET, False),
        ("other->plain;", "other->plain + 1;", SOURCE, False),
        ("other->plain;", "other->plain + 1;", SOURCE + "int (*kept)(struct other *) = unused;", True),
        ("other->plain;", "other->plain + 1;", SOURCE + 'asm(".long unused");', True),
        ("other->plain;", "other->plain + 1;", SOURCE + "int x(void) { return unused(0); }", True),
        ("int plain;", "int plain, more;", SOURCE, False),
        ("int plain;", "int plain, more;", SOURCE + "int x(void) { return others[1].plain; }", True),
        ("int plain;", "int plain, more;", SOURCE + "int size = sizeof(others);", True),
        ("KIND_B", "KIND_B = 5", SOURCE, False),
        ("KIND_B", "KIND_B = 5", SOURCE + "int k = KIND_B;", True),
        ("typedef unsigned int u32;", "typedef unsigned long u32;", SOURCE, True),  # through struct list
        ("counter_t(int)", "counter_t(long)", SOURCE, False),
        ("counter_t(int)", "counter_t(long)", SOURCE + "extern counter_t f; int x(void) { return f(1); }", True),
        ("(*chooser)(int)", "(*chooser)(long)", SOURCE, False),
        ("(*chooser)(int)", "(*chooser)(long)", SOURCE + "void *x(void) { return chooser(1); }", True),
        ("nonnull(1)", "nonnull", SOURCE, False),
        ("nonnull(1)", "nonnull", SOURCE + "int x(void) { return registered(head); }", True),
        ("typedef u32 ", "extern int brand_new(void);\ntypedef u32 ", SOURCE, False),
        ("typedef u32 ", f"{INLINE} int brand_new(void) {{ return 1; }}\ntypedef u32 ", SOURCE, False),
        ("typedef u32 ", "static int made(void) { return 1; }\ntypedef u32 ", SOURCE, True),
        ("typedef u32 ", "int variable;\ntypedef u32 ", SOURCE, True),
        ("typedef u32 ", "typedef  u32\n", SOURCE, False),  # white space
    ],
)
def test_what_a_change_reaches(before: str, after: str, source: str, changes: bool) -> None:
    assert change(before, after, source) is changes


def test_the_source_itself() -> None:
    text = (HEADER + SOURCE).encode()
    assert not may_change(text, text)
    assert may_change(text, text.replace(b"counter++", b"counter--"))
    assert may_change(text, text.replace(b'"a;b"', b'"a;c"'))
    assert may_change(text, text + b"int last = 1;\n")


def test_numbers_that_only_count_uses_of_a_macro() -> None:
    text = f"{HEADER}{SOURCE}static int __UNIQUE_ID_license12;\n".encode()
    assert not may_change(text, text.replace(b"license12", b"license13"))
    assert may_change(text, text.replace(b"license12", b"licence12"))


@pytest.mark.parametrize(
    "text",
    [
        "int f(void) { return 1; } }",
        "int f(void) { return 1;",
        "int x = (1;",
        "static inline int (*h(void))(int) { return 0; }",
    ],
)
def test_what_is_not_understood_counts_as_a_change(text: str) -> None:
    assert may_change(text.encode(), text.replace("return", "return 1 +").replace("(1", "(2").encode())


def test_pragmas_and_attributes_do_not_confuse() -> None:
    text = (
        b'#pragma GCC diagnostic push\nint f(int a) __attribute__((alias("g")));\n'
        b"struct __attribute__((packed)) s { int x; } __attribute__((aligned((1UL) << 12)));\n"
        b"#pragma GCC diagnostic pop\nenum { A, B };\n"
        b"static int (*const table[])(int) = { f, [2] = ({ f; }) };\n"
    )
    ends = split(text)
    pieces = [text[start:end].split() for start, end in zip([0, *ends], ends, strict=False)]
    assert [words[0] for words in pieces if words] == [b"#pragma", b"struct", b"#pragma", b"static"]
