# SPDX-License-Identifier: GPL-2.0-or-later
"""Manifest files of an ebuild repository (GLEP 74): which content each file has to have.

A line is ``TYPE name size HASH hex [HASH hex …]``. Gentoo demands BLAKE2B and SHA512 of each; so do we.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from elivepatch.errors import KernelUnavailableError, SourceRejectedError

#: Bytes of a Manifest that are read.
LIMIT_BYTES = 8 * 1024 * 1024
#: Hexadecimal digits of the two digests that every entry must have, and their names in hashlib.
_DIGESTS = {"BLAKE2B": ("blake2b", 128), "SHA512": ("sha512", 128)}
_TYPES = {"DIST", "EBUILD", "AUX", "MISC", "DATA", "MANIFEST", "IGNORE", "TIMESTAMP", "OPTIONAL", "COMPRESSED"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@=-]{0,199}", re.ASCII)
_HINT = "Renew the ebuild repository ('emerge --sync' or 'git pull' there); nothing is used without its digests."


@dataclass(frozen=True)
class ManifestEntry:
    """What a file must be: its ``size`` in bytes, and ``digests`` by their names in hashlib."""

    name: str
    size: int
    digests: Mapping[str, str]

    def check(self, data: bytes, what: str) -> None:
        """Raise SourceRejectedError where the data is not that."""
        if len(data) != self.size:
            raise SourceRejectedError(f"{what} has {len(data)} bytes; its Manifest says {self.size}.", hint=_HINT)
        for name, expected in self.digests.items():
            if hashlib.new(name, data).hexdigest() != expected:
                raise SourceRejectedError(f"{what} has another {name} than its Manifest says.", hint=_HINT)


@dataclass(frozen=True)
class Manifest:
    """A Manifest. ``where`` names it in messages; entries are the fields of each line, by type and name."""

    where: str
    entries: Mapping[tuple[str, str], tuple[str, ...]]

    def distfile(self, name: str) -> ManifestEntry:
        """The entry of a distfile. Raises KernelUnavailableError where it has none, or one that cannot be used."""
        entry = self.find("DIST", name)
        if entry is None:
            raise KernelUnavailableError(f"{self.where} has no entry for the distfile {name}.", hint=_HINT)
        return entry

    def find(self, kind: str, name: str) -> ManifestEntry | None:
        """The entry of that type and name, or None. Raises KernelUnavailableError for one that cannot be used."""
        fields = self.entries.get((kind, name))
        if fields is None:
            return None
        size, *pairs = fields
        digests: dict[str, str] = {}
        for hash_name, value in zip(pairs[::2], pairs[1::2], strict=False):
            if hash_name not in _DIGESTS:
                raise self._bad(name, f"has the hash {hash_name}, which is not known")
            key, digits = _DIGESTS[hash_name]
            if not re.fullmatch(rf"[0-9a-f]{{{digits}}}", value):
                raise self._bad(name, f"has a {hash_name} that is none")
            digests[key] = value
        if len(pairs) != 2 * len(digests):
            raise self._bad(name, "has a hash twice, or one without its value")
        if missing := [hash_name for hash_name, (key, _) in _DIGESTS.items() if key not in digests]:
            raise self._bad(name, f"has no {' and no '.join(missing)}")
        if not re.fullmatch(r"\d{1,12}", size, re.ASCII):
            raise self._bad(name, f"has the size {size[:20]!r}")
        return ManifestEntry(name, int(size), digests)

    def _bad(self, name: str, reason: str) -> KernelUnavailableError:
        return KernelUnavailableError(f"{self.where}: the entry of {name} {reason}.", hint=_HINT)


def parse_manifest(text: str, where: str) -> Manifest:
    """Read a Manifest. Raises KernelUnavailableError for a line that belongs to none, and for a second entry."""
    entries: dict[tuple[str, str], tuple[str, ...]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if fields[0] not in _TYPES:
            raise KernelUnavailableError(f"{where}, line {number}: {fields[0][:40]!r} is no type of entry.", hint=_HINT)
        if fields[0] not in {"DIST", "EBUILD", "AUX"}:
            continue
        if len(fields) < 3 or not _NAME.fullmatch(fields[1].replace("/", "-") if fields[0] == "AUX" else fields[1]):
            raise KernelUnavailableError(f"{where}, line {number} is not an entry of a file.", hint=_HINT)
        key = (fields[0], fields[1])
        if key in entries:
            raise KernelUnavailableError(f"{where}, line {number}: {fields[1]} has two entries.", hint=_HINT)
        entries[key] = tuple(fields[2:])
    return Manifest(where, entries)
