# SPDX-License-Identifier: GPL-2.0-or-later
"""Making and changing descriptions as text, so that comments and layout of what people wrote stay."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from elivepatch.errors import InvalidInputError
from elivepatch.overlay.findings import Findings, OverlayRejectedError
from elivepatch.overlay.lint import parse_description
from elivepatch.overlay.yaml_reader import Fields, Items, read_yaml

#: What needs no quotes: begins with a letter, and is nothing that YAML has a meaning for.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9._+/-]*(?: [A-Za-z0-9._+/(-][A-Za-z0-9._+/()-]*)*")
_WORDS = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null"))
_EMPTY = re.compile(r"patches:[ ]*\[[ ]*\][ ]*(#.*)?")

TEMPLATE = """\
# An overlay of elivepatch: patches for livepatches, and which kernels they are for. Its format is described in
# docs/overlays.md of elivepatch; 'elivepatch overlay lint' checks it, 'elivepatch overlay add' adds a patch.
schema: 1
title: {title}
licence: {licence}

# Repositories that commits are of, by a name of your choice:
# repositories:
#   stable: https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git

patches: []
"""


@dataclass(frozen=True, kw_only=True)
class NewEntry:
    """An entry to write; the fields are the keys of the schema."""

    id: str
    kernels: tuple[str, ...]
    title: str | None = None
    distributions: tuple[str, ...] = ()
    patch: str | None = None
    commit: tuple[str, str] | None = None
    cves: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    licence: str | None = None
    author: str | None = None
    tested_with: tuple[str, ...] = ()
    check: str | None = None

    def lines(self) -> list[str]:
        """The entry as YAML, not indented; the first line begins the item of the list."""
        found = [f"id: {quoted(self.id)}"]
        found += [f"title: {quoted(self.title)}"] if self.title else []
        found.append(f"kernels: {_list(self.kernels)}")
        found += [f"distributions: {_list(self.distributions)}"] if self.distributions else []
        found += [f"patch: {quoted(self.patch)}"] if self.patch else []
        if self.commit:
            found += ["commit:", f"  repository: {quoted(self.commit[0])}", f"  id: {quoted(self.commit[1])}"]
        for key, values in (("cves", self.cves), ("requires", self.requires), ("after", self.after)):
            found += [f"{key}: {_list(values)}"] if values else []
        for key, value in (("licence", self.licence), ("author", self.author)):
            found += [f"{key}: {quoted(value)}"] if value else []
        found += [f"tested-with: {_list(self.tested_with)}"] if self.tested_with else []
        found += [f"check: {quoted(self.check)}"] if self.check else []
        return [f"- {found[0]}", *(f"  {line}" for line in found[1:])]


def quoted(text: str) -> str:
    """A text as YAML: plain where that is safe, or else in double quotes, which are read as those of JSON are."""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return json.dumps(text, ensure_ascii=False)


def _list(values: tuple[str, ...]) -> str:
    return f"[{', '.join(quoted(value) for value in values)}]"


def new_description(title: str, licence: str) -> str:
    """The description of a new overlay, without patches."""
    return TEMPLATE.format(title=quoted(title), licence=quoted(licence))


def add_entry(text: str, entry: NewEntry) -> str:
    """A description with one more entry behind the others; all else stays as it is.

    Raises OverlayRejectedError where the description, or the new entry, has errors, and InvalidInputError where it is
    written so that nothing can be added.
    """
    before = Findings()
    known = parse_description(text.encode(), before)
    if before.errors or known is None or known.schema != 1:
        raise OverlayRejectedError(
            "The description has errors, or is of the old format.", diagnosis=before.in_order(), hint="Mend it first."
        )
    changed = _inserted(text, entry.lines())
    findings = Findings()
    read = parse_description(changed.encode(), findings)
    if findings.errors:
        raise OverlayRejectedError(
            f"The new entry has errors: {findings.errors[0].message}",
            hint=findings.errors[0].hint,
            diagnosis=findings.errors,
        )
    names = [one.id for one in read.entries] if read else []
    if names != [*(one.id for one in known.entries), entry.id]:
        raise _by_hand(entry)
    return changed


def _inserted(text: str, new: list[str]) -> str:
    root = read_yaml(text, Findings())
    patches = root.get("patches") if isinstance(root, Fields) else None
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if not isinstance(patches, Items):
        raise OverlayRejectedError("The description has no list of patches.")
    if not patches.items and _EMPTY.fullmatch(lines[patches.line - 1]):
        lines[patches.line - 1] = lines[patches.line - 1].replace("[", "", 1).replace("]", "", 1).rstrip()
        at, indent = patches.line, ""
    else:
        at, indent = patches.last, " " * patches.column
        if at > patches.line:  # a line between entries, where there is one between those before
            new = ["", *new] if "" in lines[patches.line - 1 : at] else new
    lines[at:at] = [f"{indent}{line}" if line else "" for line in new]
    return "\n".join(lines) + "\n"


def _by_hand(entry: NewEntry) -> InvalidInputError:
    return InvalidInputError(
        "The description is written so that no entry can be added to it.",
        hint="Write 'patches' as a list with dashes, or add this by hand:\n" + "\n".join(entry.lines()),
    )
