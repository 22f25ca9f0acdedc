# SPDX-License-Identifier: GPL-2.0-or-later
"""Schema version 1: from the nodes of ``elivepatch.yml`` to an overlay, or to findings that say what is wrong where.

docs/overlays.md describes it for people, `json_schema` for editors; a test holds the three together.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from elivepatch.git import OBJECT
from elivepatch.overlay import licences
from elivepatch.overlay.findings import Findings, shown
from elivepatch.overlay.kernels import (
    Distribution,
    Fit,
    KernelIdentity,
    KernelRange,
    KernelSyntaxError,
    parse_distribution,
    parse_kernels,
    upstream_version,
)
from elivepatch.overlay.model import CommitSource, Entry, Overlay
from elivepatch.overlay.references import check_references
from elivepatch.overlay.yaml_reader import Fields, Items, Node, Scalar

ROOT_KEYS = ("schema", "title", "licence", "author", "repositories", "patches")
ENTRY_KEYS = (
    "id",
    "title",
    "kernels",
    "distributions",
    "patch",
    "commit",
    "cves",
    "requires",
    "after",
    "replaced-by",
    "licence",
    "author",
    "tested-with",
    "check",
)
COMMIT_KEYS = ("repository", "id")
#: Patches of one overlay.
ENTRIES = 2000
#: Items of one list of an entry.
LIST_ITEMS = 200
TEXT_CHARACTERS = 300
ENTRY_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)
#: A file below patches/: nothing hidden, nothing that a program could take for an option, no way out.
PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}(?:/[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}){0,6}", re.ASCII)
REPOSITORY_URL = re.compile(r"(?:https|ssh|git)://[A-Za-z0-9][A-Za-z0-9._~:/@%+-]{0,300}", re.ASCII)
#: https://www.cve.org/About/Process, "CVE ID".
CVE = re.compile(r"CVE-[0-9]{4}-[0-9]{4,19}", re.ASCII)
_RELEASE = re.compile(r"[0-9]{1,3}\.[0-9]{1,4}[A-Za-z0-9.+~_-]{0,120}", re.ASCII)


_Parsed = TypeVar("_Parsed", KernelRange, Distribution)


@dataclass(frozen=True)
class Reference:
    """An id of an entry that another one names, with its line."""

    key: str
    id: str
    line: int


@dataclass
class _Reader:
    findings: Findings
    licence: str | None = None
    author: str | None = None
    repositories: dict[str, tuple[str, int]] = field(default_factory=dict[str, tuple[str, int]])
    used: set[str] = field(default_factory=set[str])
    references: dict[str, list[Reference]] = field(default_factory=dict[str, list[Reference]])

    def overlay(self, root: Node) -> Overlay | None:
        if not isinstance(root, Fields):
            self.findings.add("wrong-type", root.line, "The file is no mapping.", "Begin with the line 'schema: 1'.")
            return None
        version = root.get("schema")
        if not isinstance(version, Scalar) or version.text != "1":
            self._wrong_version(root, version)
            return None
        self._known(root, ROOT_KEYS)
        title = self._text(root, "title")
        self.licence = self._licence(root)
        self.author = self._text(root, "author")
        self._repositories(root.get("repositories"))
        entries = self._entries(root)
        check_references(entries, self.references, self.findings)
        for name, (_, line) in self.repositories.items():
            if name not in self.used:
                self.findings.add(
                    "unused-repository", line, f"No patch is a commit of {name}.", "Remove it.", severity="warning"
                )
        return Overlay(1, title, tuple(entries))

    def _wrong_version(self, root: Fields, version: Node | None) -> None:
        hint = "Write 'schema: 1'; other versions need another elivepatch."
        if version is None:
            self.findings.add("missing-key", root.line, "The key 'schema' is missing.", hint)
        else:
            said = shown(version.text) if isinstance(version, Scalar) else "what stands there"
            self.findings.add("schema-version", version.line, f"{said} is no version of the schema.", hint)

    # -- keys and their values

    def _known(self, fields: Fields, keys: Sequence[str]) -> None:
        for key, _ in fields.pairs:
            if key.text not in keys and not self.findings.full:
                close = difflib.get_close_matches(key.text[:40], keys, 1)
                hint = f"Is '{close[0]}' meant?" if close else f"Known here are {', '.join(keys)}."
                self.findings.add("unknown-key", key.line, f"The key {shown(key.text)} is not known here.", hint)

    def _wrong(self, node: Node, key: str, what: str) -> None:
        self.findings.add("wrong-type", node.line, f"'{key}' must be {what}.", "docs/overlays.md has an example.")

    def _scalar(self, node: Node, key: str) -> Scalar | None:
        """A text that can be shown and is a text to other readers of YAML too."""
        if not isinstance(node, Scalar):
            self._wrong(node, key, "a text")
        elif node.empty:
            self.findings.add("empty-value", node.line, f"'{key}' is empty.", "Say it, or remove the key.")
        elif len(node.text) > TEXT_CHARACTERS or not node.text.isprintable():
            what = (
                f"longer than {TEXT_CHARACTERS} characters" if node.text.isprintable() else "more than a line of text"
            )
            self.findings.add("text", node.line, f"'{key}' is {what}.", "One line of printable characters.")
        else:
            if node.type is not None:
                self.findings.add(
                    "unquoted",
                    node.line,
                    f"{shown(node.text)} is no text to other readers of YAML ({node.type}).",
                    f'Put it in quotes: "{node.text}"',
                    severity="warning",
                )
            return node
        return None

    def _text(self, fields: Fields, key: str) -> str | None:
        node = fields.get(key)
        scalar = self._scalar(node, key) if node is not None else None
        return scalar.text if scalar else None

    def _list(self, fields: Fields, key: str) -> list[Scalar]:
        """The texts of a list; one alone counts as a list of one."""
        node = fields.get(key)
        if node is None:
            return []
        if not isinstance(node, Items):
            scalar = self._scalar(node, key) if isinstance(node, Scalar) else self._wrong(node, key, "a list of texts")
            return [scalar] if scalar else []
        if not node.items:
            self.findings.add("empty-value", node.line, f"'{key}' is empty.", "Say it, or remove the key.")
        if len(node.items) > LIST_ITEMS:
            self.findings.add("text", node.line, f"'{key}' has more than {LIST_ITEMS} items.", "Split the entry.")
        found: dict[str, Scalar] = {}
        for item in node.items[:LIST_ITEMS]:
            scalar = self._scalar(item, key)
            if scalar and scalar.text in found:
                message = f"{shown(scalar.text)} comes twice in '{key}'."
                self.findings.add("duplicate-value", scalar.line, message, "Keep one of them.", severity="warning")
            elif scalar:
                found[scalar.text] = scalar
        return list(found.values())

    def _matching(self, scalars: Sequence[Scalar], pattern: re.Pattern[str], rule: str, hint: str) -> tuple[str, ...]:
        for scalar in scalars:
            if not pattern.fullmatch(scalar.text):
                self.findings.add(
                    rule, scalar.line, f"{shown(scalar.text)} is not of the form that it must have.", hint
                )
        return tuple(scalar.text for scalar in scalars if pattern.fullmatch(scalar.text))

    def _one(self, fields: Fields, key: str, pattern: re.Pattern[str], rule: str, hint: str) -> str | None:
        node = fields.get(key)
        scalar = self._scalar(node, key) if node is not None else None
        return next(iter(self._matching([scalar], pattern, rule, hint)), None) if scalar else None

    def _licence(self, fields: Fields) -> str | None:
        text = self._text(fields, "licence")
        node = fields.get("licence")
        if text is not None and node is not None and not licences.is_expression(text):
            meant = licences.meant(text)
            hint = f"Write '{meant}'." if meant else "For instance GPL-2.0-only or GPL-2.0-or-later."
            self.findings.add("licence", node.line, f"{shown(text)} is no SPDX id that the kernel knows.", hint)
        return text

    def _repositories(self, node: Node | None) -> None:
        if node is None:
            return
        if not isinstance(node, Fields):
            self._wrong(node, "repositories", "a mapping of names to URLs")
            return
        for key, value in node.pairs:
            url = self._scalar(value, "repositories")
            if not ENTRY_ID.fullmatch(key.text):
                hint = "Small letters, digits and . _ - only."
                self.findings.add("entry-id", key.line, f"{shown(key.text)} is no name of a repository.", hint)
            elif url and self._matching([url], REPOSITORY_URL, "repository-url", "https://, ssh:// or git://"):
                self.repositories[key.text] = (url.text, key.line)

    # -- entries

    def _entries(self, root: Fields) -> list[Entry]:
        node = root.get("patches")
        if node is None:
            hint = "Write 'patches: []' where there are none yet."
            self.findings.add("missing-key", root.line, "The key 'patches' is missing.", hint)
            return []
        if not isinstance(node, Items):
            self._wrong(node, "patches", "a list")
            return []
        if len(node.items) > ENTRIES:
            message = f"There are {len(node.items)} patches; the limit is {ENTRIES}."
            self.findings.add("too-many-patches", node.line, message, "Make two overlays of it.")
        found: dict[str, Entry] = {}
        for item in node.items[:ENTRIES]:
            entry = self._entry(item)
            if entry is None:
                continue
            if entry.id in found:
                message = f"The id '{entry.id}' is that of the patch on line {found[entry.id].line} already."
                self.findings.add("duplicate-id", entry.line, message, "Give each patch an id of its own.")
            else:
                found[entry.id] = entry
        return list(found.values())

    def _entry(self, node: Node) -> Entry | None:
        if not isinstance(node, Fields):
            self._wrong(node, "patches", "a list of mappings")
            return None
        self._known(node, ENTRY_KEYS)
        for key in ("id", "kernels"):
            if node.get(key) is None:
                self.findings.add("missing-key", node.line, f"The patch has no '{key}'.", "Add it.")
        name = self._one(node, "id", ENTRY_ID, "entry-id", "Small letters, digits and . _ - only, at most 64.")
        kernels = self._parsed(node, "kernels", parse_kernels, "kernel-range", _KERNELS_HINT)
        path = self._one(node, "patch", PATH, "patch-path", _PATH_HINT)
        commit = self._commit(node.get("commit"))
        self._check_source(node)
        if name is None:
            return None
        distributions = self._parsed(node, "distributions", parse_distribution, "distribution", _DISTRIBUTION_HINT)
        successor = self._references(name, node, "replaced-by")
        return Entry(
            id=name,
            kernels=kernels,
            distributions=distributions,
            title=self._text(node, "title"),
            path=path,
            commit=commit,
            cves=self._matching(self._list(node, "cves"), CVE, "cve-id", "For instance CVE-2026-12345."),
            requires=self._references(name, node, "requires"),
            after=self._references(name, node, "after"),
            replaced_by=successor[0] if successor else None,
            licence=self._licence(node) or self.licence,
            author=self._text(node, "author") or self.author,
            tested_with=self._tested(node, kernels),
            check=self._one(node, "check", PATH, "patch-path", _PATH_HINT),
            line=node.line,
        )

    def _parsed(
        self, fields: Fields, key: str, parse: Callable[[str], _Parsed], rule: str, hint: str
    ) -> tuple[_Parsed, ...]:
        found: list[_Parsed] = []
        for scalar in self._list(fields, key):
            try:
                found.append(parse(scalar.text))
            except KernelSyntaxError as error:
                self.findings.add(rule, scalar.line, f"{shown(scalar.text)} {error}.", hint)
        return tuple(found)

    def _commit(self, node: Node | None) -> CommitSource | None:
        if node is None:
            return None
        if not isinstance(node, Fields):
            self._wrong(node, "commit", "a mapping of 'repository' and 'id'")
            return None
        self._known(node, COMMIT_KEYS)
        for key in COMMIT_KEYS:
            if node.get(key) is None:
                self.findings.add("missing-key", node.line, f"The commit has no '{key}'.", "Add it.")
        found = self._one(node, "id", OBJECT, "commit-id", "All 40 digits: short ids change their meaning.")
        repository = self._text(node, "repository")
        place = node.get("repository")
        if repository is None or place is None:
            return None
        self.used.add(repository)
        if repository not in self.repositories:
            hint = "Name it with its URL below 'repositories'."
            self.findings.add("unknown-repository", place.line, f"There is no repository {shown(repository)}.", hint)
            return None
        return CommitSource(repository, self.repositories[repository][0], found) if found else None

    def _check_source(self, node: Fields) -> None:
        given = [key for key in ("patch", "commit") if node.get(key) is not None]
        if len(given) != 1:
            message = (
                "The patch has both 'patch' and 'commit'." if given else "The patch has no 'patch' and no 'commit'."
            )
            self.findings.add("patch-source", node.line, message, "Name a file below patches/, or a commit.")

    def _references(self, entry: str, node: Fields, key: str) -> tuple[str, ...]:
        if key == "replaced-by" and isinstance(value := node.get(key), Items):
            self._wrong(value, key, "one id")
            return ()
        scalars = self._list(node, key)
        self.references.setdefault(entry, []).extend(Reference(key, one.text, one.line) for one in scalars)
        return tuple(one.text for one in scalars)

    def _tested(self, node: Fields, kernels: Sequence[KernelRange]) -> tuple[str, ...]:
        scalars = self._list(node, "tested-with")
        for scalar in scalars:
            kernel = KernelIdentity(scalar.text, upstream_version(scalar.text))
            if kernels and all(one.fit(kernel) is Fit.NO for one in kernels):
                message = f"'kernels' does not include {shown(scalar.text)}, which it was tested with."
                self.findings.add("tested-with", scalar.line, message, "Mend one of the two.", severity="warning")
        return self._matching(scalars, _RELEASE, "tested-with", "A release as 'uname -r' prints it.")


_KERNELS_HINT = (
    'For instance ">=6.1.100 <6.1.175" (all bounds hold), "6.1.*", "6.1.100", or a release: 6.12.117+deb13-cloud-amd64.'
)
_PATH_HINT = (
    "A path below patches/, without 'patches/' before it: letters, digits and . _ + -, no '..', nothing hidden."
)
_DISTRIBUTION_HINT = "For instance debian, or debian:13."


def read_schema(root: Node, findings: Findings) -> Overlay | None:
    """The overlay that nodes describe; None where not even its version can be told. What is wrong goes to findings."""
    return _Reader(findings).overlay(root)
