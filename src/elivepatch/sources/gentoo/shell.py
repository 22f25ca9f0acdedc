# SPDX-License-Identifier: GPL-2.0-or-later
"""The small part of bash's words that ebuilds of kernels assign, read without running anything.

Quotes, ``$NAME``, ``${NAME}``, removal of a prefix or suffix (``${NAME%PATTERN}``, ``${NAME##PATTERN}``), replacement
(``${NAME/PATTERN/TEXT}``), a sum of two numbers (``$(( … + … ))``) and ``$(ver_cut RANGE [VERSION])`` of the Package
Manager Specification (section 12.3.14). Whatever else there is makes the word unreadable; it is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable

#: Gives the value of a variable; raises UnreadableError for one that is not known.
Lookup = Callable[[str], str]
_ENDS = " \t\n;&|<>()"
_PARAMETER = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:(%%|%|##|#|//|/)(.*))?", re.DOTALL)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LIMIT = 256 * 1024


class UnreadableError(Exception):
    """A word that is computed in a way that is not read here; the text says in which."""


def word_end(text: str, start: int) -> int:
    """The position behind the word that begins at ``start``; raises UnreadableError where it has no end."""
    at = start
    while at < len(text) and text[at] not in _ENDS:
        at = _skip(text, at, in_quotes=False)
    return at


def _skip(text: str, at: int, *, in_quotes: bool) -> int:
    char = text[at]
    if char == "\\":
        return at + 2
    if char == "$":
        return _skip_dollar(text, at, in_quotes=in_quotes)
    if char == "`":
        raise UnreadableError("it runs a command")
    if not in_quotes and char == "'":
        return _find(text, "'", at + 1) + 1
    if not in_quotes and char == '"':
        at += 1
        while at < len(text) and text[at] != '"':
            at = _skip(text, at, in_quotes=True)
        if at >= len(text):
            raise UnreadableError("a quote is not closed")
        return at + 1
    return at + 1


def _skip_dollar(text: str, at: int, *, in_quotes: bool) -> int:
    following = text[at + 1 : at + 2]
    if (following and following in "@*#?$!-0123456789[") or (not in_quotes and following in {"'", '"'}):
        raise UnreadableError(f"it uses ${following}")
    if following in {"(", "{"}:
        closing, depth, at = {"(": ")", "{": "}"}[following], 1, at + 2
        while depth:
            if at >= len(text):
                raise UnreadableError(f"a {following} is not closed")
            if text[at] == closing:
                depth, at = depth - 1, at + 1
            elif text[at] == following:
                depth, at = depth + 1, at + 1
            else:
                at = _skip(text, at, in_quotes=False)
        return at
    match = _VARIABLE.match(text, at + 1)
    return match.end() if match else at + 1


def _find(text: str, what: str, start: int) -> int:
    found = text.find(what, start)
    if found < 0:
        raise UnreadableError("a quote is not closed")
    return found


def expand(word: str, lookup: Lookup) -> str:
    """The value of a word. Raises UnreadableError."""
    value = _expand(word, lookup, in_quotes=False)
    if len(value) > _LIMIT:
        raise UnreadableError(f"its value is longer than {_LIMIT} characters")
    return value


def _expand(text: str, lookup: Lookup, *, in_quotes: bool) -> str:
    parts: list[str] = []
    at = 0
    while at < len(text):
        char = text[at]
        end = _skip(text, at, in_quotes=in_quotes)
        if char == "\\":
            escaped = text[at + 1 : at + 2]
            # in double quotes a backslash stays, unless it stands before one of these (bash(1), QUOTING)
            parts.append(escaped if not in_quotes or escaped in '$`"\\' else f"\\{escaped}")
            if escaped == "\n":
                parts.pop()
        elif char == "$" and end > at + 1:
            parts.append(_substitute(text[at:end], lookup))
        elif char == "'" and not in_quotes:
            parts.append(text[at + 1 : end - 1])
        elif char == '"' and not in_quotes:
            parts.append(_expand(text[at + 1 : end - 1], lookup, in_quotes=True))
        elif not in_quotes and char == "~" and (at == 0 or text[at - 1] == ":"):
            raise UnreadableError("it has an unquoted '~'")
        else:
            parts.append(text[at:end])
        at = end
    return "".join(parts)


def _substitute(text: str, lookup: Lookup) -> str:
    if text.startswith("$((") and text.endswith("))"):
        return str(_sum(_expand(text[3:-2], lookup, in_quotes=True)))
    if text.startswith("$("):
        words = text[2:-1].split()
        if words[:1] != ["ver_cut"] or len(words) not in {2, 3}:
            raise UnreadableError(f"it runs a command: {text[:60]}")
        version = expand(words[2], lookup) if len(words) == 3 else lookup("PV")
        return ver_cut(words[1], version)
    if not text.startswith("${"):
        return lookup(text[1:])
    match = _PARAMETER.fullmatch(text[2:-1])
    if match is None:
        raise UnreadableError(f"it uses {text[:60]}")
    name, operator, rest = match.groups()
    value = lookup(name)
    if operator is None:
        return value
    if operator in {"/", "//"}:
        pattern, _, replacement = rest.partition("/")
        regex = _regex(_expand(pattern, lookup, in_quotes=True), greedy=True)
        text_in = _expand(replacement, lookup, in_quotes=True)
        return re.sub(regex, lambda _: text_in, value, count=0 if operator == "//" else 1, flags=re.DOTALL)
    regex = _regex(_expand(rest, lookup, in_quotes=True), greedy=len(operator) == 2)
    if operator[0] == "#":
        found = re.match(regex, value, re.DOTALL)
        return value[found.end() :] if found else value
    # the shortest suffix starts last, the longest first
    starts = range(len(value) + 1) if len(operator) == 2 else range(len(value), -1, -1)
    for start in starts:
        if re.fullmatch(regex, value[start:], re.DOTALL):
            return value[:start]
    return value


def _regex(pattern: str, *, greedy: bool) -> str:
    if not pattern or re.search(r"[\[\]()!@+\\]", pattern):
        raise UnreadableError(f"it uses the pattern {pattern[:40]!r}")
    star = ".*" if greedy else ".*?"
    return "".join(star if char == "*" else "." if char == "?" else re.escape(char) for char in pattern)


def _sum(text: str) -> int:
    # a leading 0 would make it octal
    match = re.fullmatch(r"\s*(0|[1-9]\d{0,8})\s*(?:([+-])\s*(0|[1-9]\d{0,8})\s*)?", text, re.ASCII)
    if match is None:
        raise UnreadableError(f"it computes {text[:60].strip()!r}")
    left, operator, right = match.groups()
    return int(left) + {"+": 1, "-": -1, None: 0}[operator] * int(right or 0)


def ver_cut(span: str, version: str) -> str:
    """The components of a version that ``span`` names (``1``, ``1-2``, ``2-``), with what stands between them."""
    match = re.fullmatch(r"([1-9]\d?)(-)?([1-9]\d?)?", span, re.ASCII)
    if match is None or (match[3] and not match[2]):
        raise UnreadableError(f"it cuts {span!r} out of a version")
    parts = [found.span() for found in re.finditer(r"\d+|[A-Za-z]+", version, re.ASCII)]
    first = int(match[1])
    last = int(match[3]) if match[3] else (len(parts) if match[2] else first)
    chosen = parts[first - 1 : last]
    return version[chosen[0][0] : chosen[-1][1]] if chosen else ""
