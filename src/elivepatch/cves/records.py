# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel's CVE team publishes of a vulnerability: its dyads and its record.

The formats are those of the vulns repository of kernel.org, ``cve/published/YYYY/CVE-N.dyad`` and ``.json``
(CVE record format 5.1: https://github.com/CVEProject/cve-schema). A dyad is a line
``VULNERABLE_VERSION:COMMIT:FIXED_VERSION:COMMIT``; a version or commit of ``0`` is one that nobody knows, or a fix that
is not there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from elivepatch.cves.versions import KernelVersion, parse_version
from elivepatch.errors import InvalidInputError

_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_FIELDS = 4
#: More files than a fix changes; a record with more says nothing about where the fault is.
_FILES = 2000


class FeedFormatError(Exception):
    """An entry of the feed cannot be read; never leaves this room."""


@dataclass(frozen=True)
class Dyad:
    """From where to where a branch has the fault.

    ``vulnerable`` None: since ever. ``fixed`` None: there is no fix in that branch. Commits are None where unknown.
    """

    vulnerable: KernelVersion | None
    vulnerable_commit: str | None
    fixed: KernelVersion | None
    fixed_commit: str | None


@dataclass(frozen=True)
class Vulnerability:
    """A published vulnerability. ``files`` are those of the first mainline fix, by their paths in mainline.

    ``score`` is the CVSS 3.1 base score with its ``vector``, where the record has one.
    """

    name: str
    title: str
    dyads: tuple[Dyad, ...]
    files: tuple[str, ...] = ()
    score: float | None = None
    vector: str | None = None


def parse_dyads(text: str, name: str) -> tuple[Dyad, ...]:
    """Read the text of a ``.dyad`` file. Raises FeedFormatError that names the line."""
    found: list[Dyad] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.strip().split(":")
        try:
            if len(fields) != _FIELDS:
                raise InvalidInputError(f"{len(fields)} fields instead of {_FIELDS}")
            found.append(Dyad(_version(fields[0]), _commit(fields[1]), _version(fields[2]), _commit(fields[3])))
        except InvalidInputError as error:
            raise FeedFormatError(f"{name}: line {number} of its dyads cannot be read: {error}") from error
    if not found:
        raise FeedFormatError(f"{name} has no dyads: which versions have it nobody says.")
    return tuple(found)


def _version(text: str) -> KernelVersion | None:
    return None if text == "0" else parse_version(text)


def _commit(text: str) -> str | None:
    if text == "0":
        return None
    if not _COMMIT.fullmatch(text):
        raise InvalidInputError(f"'{text[:60]}' is not the id of a commit")
    return text


class _Lenient(BaseModel):
    """A part of a record of which only some fields are of use here."""

    model_config = ConfigDict(extra="ignore")


class _Score(_Lenient):
    baseScore: float = Field(ge=0, le=10)  # noqa: N815  # the name in the format
    vectorString: str = Field(max_length=200)  # noqa: N815


class _Metric(_Lenient):
    cvssV3_1: _Score | None = None  # noqa: N815


class _Affected(_Lenient):
    programFiles: Sequence[str] = Field(default=(), max_length=_FILES)  # noqa: N815


class _Container(_Lenient):
    title: str = Field(default="", max_length=4096)
    affected: Sequence[_Affected] = ()
    metrics: Sequence[_Metric] = ()


class _Containers(_Lenient):
    cna: _Container


class _Metadata(_Lenient):
    cveId: str | None = None  # noqa: N815


class _Record(_Lenient):
    containers: _Containers
    cveMetadata: _Metadata = _Metadata()  # noqa: N815


def parse_record(data: bytes, dyads: tuple[Dyad, ...], name: str) -> Vulnerability:
    """Read a ``.json`` file; the versions are those of the dyads. Raises FeedFormatError."""
    try:
        record = _Record.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FeedFormatError(f"{name}: its record cannot be read: {where}: {first['msg']}") from error
    said = record.cveMetadata.cveId
    if said not in (None, name):
        raise FeedFormatError(f"{name}: its record is that of {said[:40]}.")
    container = record.containers.cna
    files = dict.fromkeys(path for part in container.affected for path in part.programFiles if _is_path(path))
    scores = [metric.cvssV3_1 for metric in container.metrics if metric.cvssV3_1 is not None]
    return Vulnerability(
        name=name,
        title=" ".join(container.title.split()),
        dyads=dyads,
        files=tuple(files),
        score=scores[0].baseScore if scores else None,
        vector=scores[0].vectorString if scores else None,
    )


def _is_path(path: str) -> bool:
    """Whether it is a path in a source tree; anything else is of no use, and could be meant to harm."""
    parts = path.split("/")
    return bool(path) and len(path) < 1024 and path.isprintable() and not {"", ".", ".."} & set(parts)
