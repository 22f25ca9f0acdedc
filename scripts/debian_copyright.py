# SPDX-License-Identifier: GPL-2.0-or-later
"""The copyright file of a Debian package that brings Python packages, in the machine-readable format (DEP 5).

Debian's policy (12.5) wants the terms of all that a package has in that one file. They are taken from what each Python
package says of itself: its metadata, and the texts beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from email import message_from_string
from email.message import Message
from pathlib import Path

from elivepatch.errors import InternalError

_TEXTS = ("LICEN*", "COPYING*", "NOTICE*", "licenses/**/LICEN*", "licenses/**/COPYING*", "licenses/**/NOTICE*")
_APACHE = "On Debian systems the text of the Apache License 2.0 is in\n/usr/share/common-licenses/Apache-2.0."
#: A line that says whose a work is: with a year, unlike the lines of a licence that speak of copyright.
_HOLDER = re.compile(r"^\W*Copyright\b\W*(?:\(c\))?\W*(\d{4}\b.*)$", re.IGNORECASE | re.MULTILINE)


def files_of(site: Path) -> Mapping[str, Sequence[str]]:
    """What of a directory of Python packages belongs to which, by the names of their records (``*.dist-info``)."""
    found: dict[str, Sequence[str]] = {}
    for record in sorted(site.glob("*.dist-info")):
        lines = (record / "RECORD").read_text().splitlines()
        tops = {line.partition(",")[0].partition("/")[0] for line in lines}
        found[record.name] = sorted(top for top in tops if top and not top.startswith((".", '"')))
    return found


def copyright_file(own: str, site: Path, place: str, files: Mapping[str, Sequence[str]]) -> str:
    """The file: ``own`` is what it says of our part, ``site`` has the Python packages, which go to ``place``.

    ``files`` is what `files_of` said when they were installed. Raises InternalError for a Python package that has no
    text of its licence.
    """
    stanzas = [own.rstrip("\n") + "\n"]
    for record in sorted(site.glob("*.dist-info")):
        name = record.name.partition("-")[0]
        if name != "elivepatch":
            there = [top for top in files[record.name] if (site / top).exists()]
            stanzas.append(_stanza(record, name, [f"{place}/{top}{'/*' * (site / top).is_dir()}" for top in there]))
    return "\n".join(stanzas)


def _stanza(record: Path, name: str, files: Sequence[str]) -> str:
    metadata = message_from_string((record / "METADATA").read_text())
    paths = {path for pattern in _TEXTS for path in record.glob(pattern) if path.is_file()}
    texts = [path.read_text() for path in sorted(paths)]
    if not texts:
        raise InternalError(f"The Python package '{name}' has no text of its licence.")
    holders = list(dict.fromkeys(holder.strip() for text in texts for holder in _HOLDER.findall(text)))
    holders = holders or [metadata.get("Author") or metadata.get("Author-email") or f"the authors of {name}"]
    body = "\n\n".join([_terms(metadata), *(_APACHE if _is_apache(text) else text.strip() for text in texts)])
    indented = (f" {line.rstrip()}" if line.strip() else " ." for line in body.splitlines())
    return f"Files: {_list(files)}\nCopyright: {_list(holders)}\nLicense: {name}\n" + "\n".join(indented) + "\n"


def _list(values: Sequence[str]) -> str:
    return "\n ".join(values)


def _terms(metadata: Message) -> str:
    """What the metadata call the licence."""
    said = metadata.get("License-Expression") or metadata.get("License")
    if not said or "\n" in said:
        said = "; ".join(value for value in metadata.get_all("Classifier", []) if value.startswith("License ::"))
    return f"Its metadata say: {said}." if said else "Its metadata say nothing."


def _is_apache(text: str) -> bool:
    return "Apache License" in text and "TERMS AND CONDITIONS FOR USE" in text
