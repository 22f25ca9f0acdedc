# SPDX-License-Identifier: GPL-2.0-or-later
"""YAML as an overlay may use it: mappings, lists and text, each with its line; and nothing that can do harm.

Only the scanner and parser of PyYAML are used, no constructor: nothing is made of a file but the nodes below. Anchors,
aliases and tags are findings, and no alias is ever expanded. What stands there is text, whatever type other readers of
YAML give it; where they give it one (``6.10`` is the number 6.1 to them), that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import yaml

from elivepatch.overlay.findings import Findings, shown

#: Bytes of a description: some thousand patches. PyYAML reads 100 kB in about a second.
DESCRIPTION_BYTES = 256 * 1024
#: How deep mappings and lists may lie in one another; the schema needs 5.
DEPTH = 8
_TEXT = "tag:yaml.org,2002:str"
_NOTHING = "tag:yaml.org,2002:null"
_QUOTE = (
    'Text that begins with one of > * & ! % @ ` [ {, or holds ": " or " #", must be in quotes: ">=6.1.100 <6.1.175"'
)


@dataclass(frozen=True)
class Scalar:
    """A text. ``type`` is what other readers of YAML take it for, where that is no text; lines count from 1."""

    text: str
    line: int
    last: int
    type: str | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing stands there (also ``null`` and ``~``)."""
        return not self.text.strip() or self.type == "null"


@dataclass(frozen=True)
class Items:
    """A list. ``column`` is where its first item begins (from 0), ``flow`` whether it is written in brackets."""

    items: tuple[Node, ...]
    line: int
    last: int
    column: int = 0
    flow: bool = False


@dataclass(frozen=True)
class Fields:
    """A mapping, in its order."""

    pairs: tuple[tuple[Scalar, Node], ...]
    line: int
    last: int

    def get(self, name: str) -> Node | None:
        """The value of a key."""
        return next((value for key, value in self.pairs if key.text == name), None)


Node = Scalar | Items | Fields


class _StopReadingError(Exception):
    """What follows cannot be understood."""


def read_yaml(text: str, findings: Findings) -> Node | None:
    """The document of a file; None where it cannot be understood, and then there is a finding that says why."""
    try:
        return _Reader(text, findings).document()
    except _StopReadingError:
        return None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        findings.add("yaml-syntax", line, f"This is not YAML: {' '.join(str(error.problem).split())}.", _QUOTE)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        findings.add("yaml-syntax", line, "There is a character that YAML does not allow.", "Remove it.")
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # numbers of an escape, of a directive
        findings.add("yaml-syntax", 1, f"This is not YAML: {type(error).__name__}.", "Write it in a simpler way.")
    return None


class _Reader:
    def __init__(self, text: str, findings: Findings) -> None:
        self._findings = findings
        self._loader = yaml.SafeLoader(text)
        self._events: Iterator[yaml.Event] = iter(self._loader.get_event, None)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]

    def document(self) -> Node | None:
        next(self._events)  # the stream begins
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            self._findings.add("missing-key", 1, "The file is empty.", "'elivepatch overlay init' makes one.")
            return None
        if isinstance(event, yaml.DocumentStartEvent) and (event.version or event.tags):
            self._stop("yaml-directive", event, "There is a directive (%YAML, %TAG).", "Remove the line.")
        node = self._node(next(self._events), 0)
        next(self._events)  # the document ends
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            self._stop("yaml-documents", event, "A second document begins here.", "Keep one; remove the line '---'.")
        return node

    def _stop(self, rule: str, event: yaml.Event, message: str, hint: str) -> None:
        self._findings.add(rule, _line(event), message, hint)
        raise _StopReadingError

    def _node(self, event: yaml.Event, depth: int) -> Node:
        if depth > DEPTH:
            self._stop("yaml-depth", event, f"This lies more than {DEPTH} levels deep.", "No overlay needs that.")
        line = _line(event)
        if isinstance(event, yaml.AliasEvent):
            self._findings.add("yaml-alias", line, f"There is an alias, *{event.anchor[:40]}.", "Write it out.")
            return Scalar("", line, line, "null")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            if event.anchor is not None:
                self._findings.add("yaml-anchor", line, f"There is an anchor, &{event.anchor[:40]}.", "Remove it.")
            if event.tag is not None:
                self._findings.add("yaml-tag", line, f"There is a tag, {shown(event.tag)}.", "Remove it.")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, line)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._items(event, line, depth)
        return self._fields(line, depth)

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> Scalar:
        end = event.end_mark
        last = max(line, end.line + (1 if end.column or event.style not in ("|", ">") else 0))
        plain = event.tag is None and event.implicit[0] and len(event.value) < 200
        resolve: Callable[..., str] = self._loader.resolve  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        tag = resolve(yaml.ScalarNode, event.value, (True, False)) if plain else _TEXT
        kind = None if tag == _TEXT else "null" if tag == _NOTHING else tag.rpartition(":")[2]
        return Scalar(event.value, line, last, kind)

    def _items(self, start: yaml.SequenceStartEvent, line: int, depth: int) -> Items:
        items: list[Node] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, depth + 1))
        flow = bool(start.flow_style)
        last = event.end_mark.line + 1 if flow else max((item.last for item in items), default=line)
        return Items(tuple(items), line, last, start.start_mark.column, flow)

    def _fields(self, line: int, depth: int) -> Fields:
        pairs: list[tuple[Scalar, Node]] = []
        seen: dict[str, int] = {}
        last = line
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._node(event, depth + 1)
            value = self._node(next(self._events), depth + 1)
            last = max(last, key.last, value.last)
            if not isinstance(key, Scalar):
                self._findings.add("yaml-key", key.line, "A key is no text.", "Write 'key: value'.")
            elif key.text in seen:
                where = f"it is on line {seen[key.text]} already"
                self._findings.add(
                    "duplicate-key", key.line, f"The key {shown(key.text)} comes twice; {where}.", "Keep one of them."
                )
            else:
                seen[key.text] = key.line
                pairs.append((key, value))
        if event.end_mark.column and event.end_mark.index > event.start_mark.index:  # a closing brace
            last = max(last, event.end_mark.line + 1)
        return Fields(tuple(pairs), line, last)


def _line(event: yaml.Event) -> int:
    return int(event.start_mark.line) + 1
