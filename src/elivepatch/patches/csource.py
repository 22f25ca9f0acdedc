# SPDX-License-Identifier: GPL-2.0-or-later
"""What a C file of the kernel consists of, without a compiler: functions, data, types, macros, exports.

tree-sitter reads the file as it stands, macros and all conditional branches included, so this is a view for people and
for early answers; what the compiler makes of it is decided elsewhere.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import tree_sitter_c
from tree_sitter import Language, Node, Parser

#: Bytes of the largest file that is read in detail. Larger than this are only generated tables, and the worst that a
#: file can be made of takes the parser some 7 s a megabyte.
PARSE_BYTES = 1024 * 1024

_LANGUAGE = Language(tree_sitter_c.language())
_COMMENT = rb"//[^\n]*|/\*.*?(?:\*/|\Z)"
_LITERAL = rb"""(?P<literal>"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)"""
_COMMENTS = re.compile(_LITERAL + b"|" + _COMMENT, re.DOTALL)
_GAPS = re.compile(_LITERAL + rb"|(?:\s|" + _COMMENT + b")++", re.DOTALL)
_EXPORT = re.compile(rb"^[ \t]*EXPORT_(?:PER_CPU_)?(?:SYMBOL|STATIC_CALL)\w*[ \t]*\([ \t]*(\w+)", re.MULTILINE)
#: Annotations that take no part in the grammar but confuse a parser that does not expand macros.
_ANNOTATION = re.compile(
    rb"\b(?:__(?:mem|net_|cpu|dev|ref)?(?:init|exit)(?:data|const)?|__ref|__sched|__cpuidle|__always_inline|__must_check"
    rb"|__maybe_unused|__read_mostly|__ro_after_init|__percpu|__user|__iomem|__rcu|__cold|__weak|__used|__bpf_kfunc"
    rb"|noinline|noinline_for_stack|notrace|noinstr|asmlinkage)\b"
    rb"|\b__(?:printf|scanf|acquires|releases|must_hold|attribute|attribute__|aligned|section|alloc_size)[ \t]*"
    rb"\((?:[^();{}]|\([^();{}]*\))*\)"
)
#: A macro called at the left margin without a semicolon (``BTF_ID(func, f)``): it would draw in what follows.
_BARE_CALL = re.compile(rb"^[A-Z][A-Z0-9_]*\([^;{}\n]*\)[ \t]*$(?!\s*\{)", re.MULTILINE)
_HEAD = re.compile(rb"([A-Za-z_]\w*)[ \t]*\(\s*(\w*)")
_HEAD_LINES = 12
_NAME = re.compile(rb"[A-Za-z_]\w*")
_CONDITIONALS = frozenset({"preproc_if", "preproc_ifdef", "preproc_elif", "preproc_elifdef", "preproc_else"})
_CONTAINERS = frozenset({"translation_unit", "ERROR", "linkage_specification", "declaration_list", *_CONDITIONALS})
_TYPES = frozenset({"struct_specifier", "union_specifier", "enum_specifier"})
_MACROS = frozenset({"preproc_def", "preproc_function_def"})


class ItemKind(StrEnum):
    """What an item is."""

    FUNCTION = "function"
    DATA = "data"
    TYPE = "type"
    MACRO = "macro"


@dataclass(frozen=True)
class Item:
    """One definition. Lines count from 1, both ends included.

    ``code`` is its text without comments and with white space evened out; ``head`` is what stands before a function's
    body; ``value`` is the initialiser of a data object. ``conditional`` says that it stands in a ``#if``,
    ``unsure`` that the parser had to skip something in it. ``static_data`` are the static locals of a function with
    their initialisers.
    """

    kind: ItemKind
    name: str
    first: int
    last: int
    code: bytes
    head: bytes = b""
    value: bytes = b""
    conditional: bool = False
    unsure: bool = False
    constant: bool = False
    static_data: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class CSource:
    """A file, taken apart. ``code`` is the whole of it without comments and with white space evened out."""

    code: bytes
    items: tuple[Item, ...]
    exports: frozenset[str]


def code_of(text: bytes) -> bytes:
    """The text without comments, runs of white space as one space; string literals stay as they are."""
    return _GAPS.sub(lambda match: match["literal"] or b" ", text).strip(b" ")


def without_comments(text: bytes) -> bytes:
    """The text with comments blanked out; every byte keeps its place."""

    def blank(match: re.Match[bytes]) -> bytes:
        return match["literal"] or re.sub(rb"[^\n]", b" ", match[0])

    return _COMMENTS.sub(blank, text)


def read_source(text: bytes) -> CSource:
    """Take a file apart. Never fails: what is not understood is left out, or marked as unsure."""
    plain = without_comments(text)
    items: list[Item] = []
    if len(plain) <= PARSE_BYTES:
        parsed = plain
        for pattern in (_BARE_CALL, _ANNOTATION):
            parsed = pattern.sub(lambda match: re.sub(rb"[^\n]", b" ", match[0]), parsed)  # every byte keeps its place
        root = Parser(_LANGUAGE).parse(parsed).root_node
        items = list(_items(root, plain))
        items = sorted([*items, *_by_layout(plain, items)], key=lambda item: item.first)
    exports = frozenset(match[1].decode() for match in _EXPORT.finditer(plain))
    return CSource(code=code_of(plain), items=tuple(items), exports=exports)


def _by_layout(text: bytes, items: Sequence[Item]) -> Iterator[Item]:
    """Functions that the parser lost (a macro ended a loop, say), by the kernel's layout: braces at the left margin.

    Whether they stand in a ``#if`` is not known, so they count as conditional.
    """
    lines = text.split(b"\n")
    covered = bytearray(len(lines) + 2)
    for item in items:
        covered[item.first : item.last + 1] = b"\1" * (item.last + 1 - item.first)
    ends = [at for at, line in enumerate(lines) if line.startswith(b"}")]
    number = 0
    while number < len(lines):
        number += 1
        if lines[number - 1].rstrip() != b"{" or covered[number]:
            continue
        first = number
        while first > 1 and number - first < _HEAD_LINES and lines[first - 2].strip():
            if lines[first - 2].rstrip().endswith((b";", b"}", b"\\")) or lines[first - 2].startswith(b"#"):
                break
            first -= 1
        head = b"\n".join(lines[first - 1 : number - 1])
        match = _HEAD.search(_ANNOTATION.sub(b" ", head))
        end = bisect_left(ends, number)
        if match is None or end == len(ends) or b"=" in head:
            continue
        last = ends[end]
        name = match[1].decode()
        if name.isupper():
            name = f"{name}({match[2].decode()})"
        code = code_of(b"\n".join(lines[first - 1 : last + 1]))
        yield Item(ItemKind.FUNCTION, name, first, last + 1, code, head=head, conditional=True, unsure=True)
        number = last + 1


def _items(root: Node, text: bytes) -> Iterator[Item]:
    todo: list[tuple[Node, bool]] = [(root, False)]
    while todo:
        container, conditional = todo.pop()
        previous: Node | None = None
        for node in container.children:
            if node.type in _CONTAINERS:
                todo.append((node, conditional or node.type in _CONDITIONALS))
            else:
                yield from _item(node, previous, text, conditional)
            if node.type != ";":
                previous = node


def _item(node: Node, previous: Node | None, text: bytes, conditional: bool) -> Iterator[Item]:
    if node.type == "function_definition":
        body = node.child_by_field_name("body")
        name = _declared_name(node.child_by_field_name("declarator"))
        if body is not None and name:
            first = previous if previous is not None and _is_annotation(previous) else node
            before = previous.end_byte if previous is not None and first is node else first.start_byte
            yield _function(name, (first, node, body), before, text, conditional)
    elif node.type == "compound_statement" and previous is not None and previous.type == "expression_statement":
        name = _macro_call(previous)  # SYSCALL_DEFINE3(read, …) { … }
        if name:
            yield _function(name, (previous, node, node), previous.start_byte, text, conditional)
    elif node.type in _MACROS:
        yield from _named(ItemKind.MACRO, node, text, conditional)
    elif node.type in _TYPES:
        yield from _type(node, text, conditional)
    elif node.type in ("declaration", "type_definition"):
        inner = node.child_by_field_name("type")
        if inner is not None and inner.type in _TYPES:
            yield from _type(inner, text, conditional, typedef=node if node.type == "type_definition" else None)
        if node.type == "declaration":
            yield from _data(node, text, conditional)


def _is_annotation(node: Node) -> bool:
    """Whether something not understood can only be words in front of a definition, and not a part of the file."""
    return node.type == "ERROR" and not any(mark in (node.text or b"") for mark in (b";", b"{", b"}", b"#"))


def _function(name: str, nodes: tuple[Node, Node, Node], before: int, text: bytes, conditional: bool) -> Item:
    """A function of its first node, its last and its body; its annotations may stand from byte ``before`` on."""
    first, last, body = nodes
    return Item(
        kind=ItemKind.FUNCTION,
        name=name,
        first=first.start_point.row + 1,
        last=last.end_point.row + 1,
        code=code_of(text[first.start_byte : last.end_byte]),
        head=text[before : body.start_byte],
        conditional=conditional,
        unsure=body.has_error,
        static_data=tuple(_static_locals(body)),
    )


def _named(kind: ItemKind, node: Node, text: bytes, conditional: bool) -> Iterator[Item]:
    name = node.child_by_field_name("name")
    if name is not None:
        yield _plain(kind, _text(name), node, text, conditional)


def _type(node: Node, text: bytes, conditional: bool, typedef: Node | None = None) -> Iterator[Item]:
    if node.child_by_field_name("body") is None:
        return
    name = node.child_by_field_name("name")
    label = _text(name) if name is not None else ""
    if not label and typedef is not None:
        label = _declared_name(typedef.child_by_field_name("declarator"))
    if label:
        yield _plain(ItemKind.TYPE, f"{node.type.removesuffix('_specifier')} {label}", node, text, conditional)


def _plain(kind: ItemKind, name: str, node: Node, text: bytes, conditional: bool) -> Item:
    return Item(
        kind=kind,
        name=name,
        first=node.start_point.row + 1,
        last=max(node.start_point.row + 1, node.end_point.row + (node.end_point.column > 0)),
        code=code_of(text[node.start_byte : node.end_byte]),
        conditional=conditional,
        unsure=node.has_error,
    )


def _data(node: Node, text: bytes, conditional: bool) -> Iterator[Item]:
    """The data objects that a declaration at file scope defines (not what it only declares)."""
    words = {_text(child) for child in node.children if child.type in ("storage_class_specifier", "type_qualifier")}
    if "extern" in words or "typedef" in words:
        return
    for declarator in node.children_by_field_name("declarator"):
        value = declarator.child_by_field_name("value") if declarator.type == "init_declarator" else None
        if value is None and (_is_function(declarator) or declarator.type == "parenthesized_declarator"):
            continue
        name = _declared_name(declarator)
        if name:
            yield Item(
                kind=ItemKind.DATA,
                name=name,
                first=node.start_point.row + 1,
                last=node.end_point.row + 1,
                code=code_of(text[node.start_byte : node.end_byte]),
                value=code_of(text[value.start_byte : value.end_byte]) if value is not None else b"",
                conditional=conditional,
                unsure=node.has_error,
                constant="const" in words,
            )


def _static_locals(body: Node) -> Iterator[tuple[str, bytes]]:
    todo = [body]
    while todo:
        node = todo.pop()
        if node.type == "declaration":
            if any(child.type == "storage_class_specifier" and child.text == b"static" for child in node.children):
                for declarator in node.children_by_field_name("declarator"):
                    value = declarator.child_by_field_name("value")
                    yield _declared_name(declarator), code_of((value.text or b"") if value is not None else b"")
        elif node.type.endswith(("_statement", "_clause")) or node.type in _CONTAINERS:
            todo.extend(reversed(node.children))


def _is_function(declarator: Node) -> bool:
    node: Node | None = declarator
    while node is not None:
        if node.type == "function_declarator":
            inner = node.child_by_field_name("declarator")
            return inner is None or inner.type != "parenthesized_declarator"  # (*pointer)(…) is data
        node = node.child_by_field_name("declarator")
    return False


def _declared_name(declarator: Node | None) -> str:
    """The name in a declarator: through pointers, arrays, parameters and parentheses."""
    node = declarator
    while node is not None:
        if node.type in ("identifier", "type_identifier", "field_identifier"):
            return _text(node)
        inner = node.child_by_field_name("declarator")
        if inner is None and node.type in ("parenthesized_declarator", "attributed_declarator"):
            inner = next((child for child in node.named_children), None)
        node = inner
    return ""


def _macro_call(statement: Node) -> str:
    """``MACRO(argument)`` of a statement that is the call of a macro in capitals, else nothing."""
    call = next((child for child in statement.children if child.type == "call_expression"), None)
    function = call.child_by_field_name("function") if call is not None else None
    arguments = call.child_by_field_name("arguments") if call is not None else None
    if function is None or arguments is None or not _text(function).isupper():
        return ""
    first = _NAME.search(arguments.text or b"")
    return f"{_text(function)}({first[0].decode() if first else ''})"


def _text(node: Node) -> str:
    return (node.text or b"").decode(errors="replace")
