# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a change of preprocessed C text can change the object that is made of it.

A header brings many functions to a file that uses few of them. An inline function that nothing emitted uses leaves no
trace in the object, and so does a change of it. The text is taken apart into its top-level declarations; from those
that differ, their names are followed to whatever mentions them. Only what is surely without effect is told so:
anything that is not understood counts as a change.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence

_LITERAL = rb'"(?:[^"\\]|\\.)*"|' + rb"'(?:[^'\\]|\\.)*'"
_TOP = re.compile(rb"[;{(}=#]|" + _LITERAL, re.DOTALL)
_BRACES = re.compile(rb"[{}]|" + _LITERAL, re.DOTALL)
_PARENTHESES = re.compile(rb"[()]|" + _LITERAL, re.DOTALL)


def _nested(depth: int) -> bytes:
    """A pattern for text with balanced parentheses, so deep."""
    return rb"[^()]*+" if not depth else rb"(?:[^()]++|\(" + _nested(depth - 1) + rb"\))*+"


_INNER = _nested(8)
#: What may stand between the parts of a declaration without belonging to its grammar.
_ATTRIBUTE = re.compile(rb"\b(?:__attribute__|__attribute|__asm__|__asm|asm)\s*\(" + _INNER + rb"\)")
_WORD = re.compile(rb"[A-Za-z_]\w*")
#: A number that differs with every use of a macro before it (include/linux/compiler.h, __UNIQUE_ID).
_UNIQUE = re.compile(rb"(__UNIQUE_ID_\w*?)\d+\b")
_TAG = re.compile(rb"\b(?:struct|union|enum)\s+([A-Za-z_]\w*)\s*\{")
_DECLARED_ANYWHERE = re.compile(rb"([A-Za-z_]\w*)\s*(?=[;,\[:)=}])")
_DECLARED_HERE = re.compile(rb"([A-Za-z_]\w*)\s*(?=[;,\[=:(])")
_KEYWORDS = frozenset(
    b"auto break case char const continue default do double else enum extern float for goto if inline int long register"
    b" restrict return short signed sizeof static struct switch typedef union unsigned void volatile while _Bool"
    b" __inline __inline__ __extension__ __signed__ __volatile__ __const typeof __typeof__ __typeof __int128".split()
)
_TYPEOF = re.compile(rb"\b(?:typeof|__typeof__|__typeof)\s*\(" + _INNER + rb"\)")
#: More names than this are followed no further: a type that everything uses has changed.
_NAMES_LIMIT = 500


class NotUnderstoodError(Exception):
    """The text is not of the form that is known here; never leaves this module."""


def may_change(original: bytes, patched: bytes) -> bool:
    """Whether an object made of the patched text can differ from that of the original one.

    Both are the output of the preprocessor without line markers (``-E -P``).
    """
    if original == patched:
        return False
    try:
        return _changes(original, patched)
    except NotUnderstoodError:
        return True


def _changes(original: bytes, patched: bytes) -> bool:
    ends = split(original)
    head = _common(original, patched)
    tail = _common_end(original, patched, head)
    # the declarations that the difference lies in: from the last end before it to the first one after it
    first = bisect_right(ends, head)
    start = ends[first - 1] if first else 0
    last = bisect_left(ends, max(len(original) - tail, start))
    shift = len(patched) - len(original)
    end = ends[last] if last < len(ends) else len(original)
    before = _pieces(original, start, split(original[start:end]))
    after = _pieces(patched, start, split(patched[start : end + shift]))
    counted = Counter(_plain(piece) for piece in before)
    counted.subtract(_plain(piece) for piece in after)
    changed = [piece for piece in (*before, *after) if counted[_plain(piece)]]
    names: set[bytes] = set()
    for piece in changed:
        if _emitted(piece):
            return True
        names |= _introduces(piece)
    all_ends = [*ends[:first], *(start + at for at in split(patched[start : end + shift]))]
    all_ends += [at + shift for at in ends[last + 1 :]]
    return _reaches_emitted(patched, all_ends, names, {_plain(piece) for piece in changed})


def _reaches_emitted(text: bytes, ends: Sequence[int], names: set[bytes], changed: set[bytes]) -> bool:
    """Whether something emitted mentions one of the names, or what mentions them, and so on."""
    seen: set[int] = set()
    known = set(names)
    new = names
    while new:
        if len(known) > _NAMES_LIMIT:
            return True
        pattern = re.compile(rb"\b(?:" + b"|".join(sorted(new)) + rb")\b")
        found: set[bytes] = set()
        for match in pattern.finditer(text):
            at = bisect_right(ends, match.start())
            if at in seen:
                continue
            seen.add(at)
            piece = text[ends[at - 1] if at else 0 : ends[at] if at < len(ends) else len(text)]
            if _plain(piece) in changed:
                continue
            if _emitted(piece):
                return True
            found |= _introduces(piece)
        new = found - known
        known |= new
    return False


def _plain(piece: bytes) -> bytes:
    return _UNIQUE.sub(rb"\1", b" ".join(piece.split()))


def _common(left: bytes, right: bytes) -> int:
    """The length of the common beginning."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _common_end(left: bytes, right: bytes, head: int) -> int:
    """The length of the common end that does not overlap the common beginning."""
    low, high = 0, min(len(left), len(right)) - head
    while low < high:
        middle = (low + high + 1) // 2
        if left[len(left) - middle : len(left) - low] == right[len(right) - middle : len(right) - low]:
            low = middle
        else:
            high = middle - 1
    return low


def _pieces(text: bytes, start: int, ends: Iterable[int]) -> list[bytes]:
    found: list[bytes] = []
    at = start
    for end in ends:
        found.append(text[at : start + end])
        at = start + end
    return found


def split(text: bytes) -> list[int]:
    """The ends of the top-level declarations; raises NotUnderstoodError where they cannot be told."""
    ends: list[int] = []
    start = at = 0
    assigned = False
    while True:
        match = _TOP.search(text, at)
        if match is None:
            break
        at = match.end()
        mark = match[0]
        if mark == b";":
            ends.append(at)
            start, assigned = at, False
        elif mark == b"=":
            assigned = True
        elif mark == b"(":
            at = _closing(text, at, _PARENTHESES, b"(")
        elif mark == b"#":  # a pragma, to the end of its line
            line_end = text.find(b"\n", at)
            at = len(text) if line_end < 0 else line_end
        elif mark == b"{":
            head = text[start : match.start()]
            at = _closing(text, at, _BRACES, b"{")
            if not assigned and _ATTRIBUTE.sub(b" ", head).rstrip().endswith(b")"):
                ends.append(at)
                start = at
        elif mark == b"}":
            raise NotUnderstoodError
    if text[start:].strip():
        lines = [line for line in text[start:].split(b"\n") if line.strip()]
        if not all(line.lstrip().startswith(b"#") for line in lines):
            raise NotUnderstoodError
    if ends and ends[-1] != len(text):
        ends.append(len(text))
    return ends


def _closing(text: bytes, at: int, pattern: re.Pattern[bytes], opening: bytes) -> int:
    depth = 1
    for match in pattern.finditer(text, at):
        if match[0] == opening:
            depth += 1
        elif len(match[0]) == 1:
            depth -= 1
            if not depth:
                return match.end()
    raise NotUnderstoodError


def _function_head(piece: bytes) -> bytes | None:
    """What stands before the body, without attributes, of a function's definition; None for anything else."""
    opening = _first_brace(piece)
    if opening < 0 or not piece.rstrip().endswith(b"}"):
        return None
    head = _ATTRIBUTE.sub(b" ", piece[:opening]).strip()
    return head if head.endswith(b")") and b"=" not in head else None


def _first_brace(piece: bytes) -> int:
    """The first brace outside of parentheses."""
    at = 0
    while True:
        match = re.compile(rb"[{(]|" + _LITERAL, re.DOTALL).search(piece, at)
        if match is None:
            return -1
        if match[0] == b"{":
            return match.start()
        at = _closing(piece, match.end(), _PARENTHESES, b"(") if match[0] == b"(" else match.end()


def _emitted(piece: bytes) -> bool:
    """Whether a declaration makes code or data in the object by itself."""
    piece = piece.strip().removeprefix(b"__extension__").lstrip()
    if piece in (b"", b";") or piece.startswith((b"_Static_assert", b"typedef")):
        return False
    if b"#" in piece and any(line.lstrip().startswith(b"#") for line in piece.split(b"\n")):
        raise NotUnderstoodError
    opening = _first_brace(piece)
    words = set(_WORD.findall(piece[:opening] if opening >= 0 else piece))
    head = _function_head(piece)
    if head is not None:
        if words & {b"used", b"__used__", b"constructor", b"__constructor__", b"destructor"}:
            return True
        inline = bool(words & {b"inline", b"__inline", b"__inline__"})
        return not (inline and (b"static" in words or (b"extern" in words and b"__gnu_inline__" in words)))
    if piece.startswith((b"asm", b"__asm")):
        return True
    plain = _ATTRIBUTE.sub(b" ", piece)
    if opening < 0:
        return not (b"extern" in words and b"=" not in plain) and not _is_prototype(plain) and not _only_tag(plain)
    outside = _without_bodies(plain)
    return not (b"extern" in words and b"=" not in outside) and not _only_tag(outside)


def _is_prototype(plain: bytes) -> bool:
    return b"=" not in plain and bool(re.search(rb"\w\s*\(", _TYPEOF.sub(b" int ", plain)))


def _only_tag(plain: bytes) -> bool:
    words = [word for word in _WORD.findall(plain) if word not in (b"const", b"volatile", b"__extension__")]
    return bool(words) and words[0] in (b"struct", b"union", b"enum") and len(words) <= 2 and b"*" not in plain


def _without_bodies(piece: bytes) -> bytes:
    out = bytearray()
    at = 0
    while (opening := piece.find(b"{", at)) >= 0:
        out += piece[at:opening] + b" "
        at = _closing(piece, opening + 1, _BRACES, b"{")
    return bytes(out + piece[at:])


def _introduces(piece: bytes) -> set[bytes]:
    """The names that a declaration gives a meaning to; raises NotUnderstoodError where they cannot be told."""
    piece = piece.strip()
    if piece in (b"", b";") or piece.startswith(b"_Static_assert"):
        return set()
    head = _function_head(piece)
    if head is not None:
        return {_function_name(head)}
    plain = _TYPEOF.sub(b" int ", _ATTRIBUTE.sub(b" ", piece))
    if b"{" in plain or plain.startswith(b"typedef"):
        names = set(_TAG.findall(plain)) | set(_DECLARED_ANYWHERE.findall(plain))
        if b"{" not in plain:  # the type of a function
            names |= set(_DECLARED_HERE.findall(_without_parentheses(plain)))
    else:
        names = set(_DECLARED_HERE.findall(_without_parentheses(plain)))
        if re.search(rb"\(\s*\*", plain):
            names |= set(_DECLARED_ANYWHERE.findall(plain))
    names -= _KEYWORDS
    if not names:
        raise NotUnderstoodError
    return names


def _function_name(head: bytes) -> bytes:
    """The identifier before the last pair of parentheses of a definition's head."""
    depth = 0
    for at in range(len(head) - 1, -1, -1):
        mark = head[at : at + 1]
        if mark == b")":
            depth += 1
        elif mark == b"(":
            depth -= 1
            if not depth:
                match = re.search(rb"([A-Za-z_]\w*)\s*$", head[:at])
                if match is None or match[1] in _KEYWORDS:
                    break
                return match[1]
    raise NotUnderstoodError


def _without_parentheses(plain: bytes) -> bytes:
    """The text with what stands in parentheses left out, the parentheses kept."""
    out = bytearray()
    at = 0
    while (opening := plain.find(b"(", at)) >= 0:
        out += plain[at : opening + 1]
        at = _closing(plain, opening + 1, _PARENTHESES, b"(") - 1
    return bytes(out + plain[at:])
