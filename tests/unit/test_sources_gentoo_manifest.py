# SPDX-License-Identifier: GPL-2.0-or-later
"""Manifests: both digests or none, and nothing that is not understood."""

from __future__ import annotations

import hashlib

import pytest

from elivepatch.errors import KernelUnavailableError, SourceRejectedError
from elivepatch.sources.gentoo.manifest import ManifestEntry, parse_manifest
from gentoo_support import manifest_line

BLAKE2B, SHA512 = "BLAKE2B " + "a1" * 64, "SHA512 " + "b2" * 64


def entry(line: str) -> ManifestEntry:
    return parse_manifest(line, "the Manifest").distfile("x.tar.xz")


def test_an_entry() -> None:
    found = entry(f"DIST x.tar.xz 123 {SHA512} {BLAKE2B}\nDIST other 1 {BLAKE2B}\n\n")
    assert found == ManifestEntry("x.tar.xz", 123, {"blake2b": "a1" * 64, "sha512": "b2" * 64})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "has no entry for the distfile x.tar.xz"),
        (f"EBUILD x.tar.xz 1 {BLAKE2B} {SHA512}", "has no entry for the distfile x.tar.xz"),
        (f"DIST x.tar.xz 1 {BLAKE2B}", "has no SHA512"),
        (f"DIST x.tar.xz 1 {SHA512}", "has no BLAKE2B"),
        ("DIST x.tar.xz 1", "has no BLAKE2B and no SHA512"),
        (f"DIST x.tar.xz 1 {BLAKE2B} {SHA512} WHIRLPOOL 00", "has the hash WHIRLPOOL, which is not known"),
        (f"DIST x.tar.xz 1 {BLAKE2B[:-1]} {SHA512}", "has a BLAKE2B that is none"),
        (f"DIST x.tar.xz 1 {BLAKE2B.upper()} {SHA512}", "has a BLAKE2B that is none"),
        (f"DIST x.tar.xz 1 {BLAKE2B} {BLAKE2B} {SHA512}", "has a hash twice"),
        (f"DIST x.tar.xz 1 {BLAKE2B} {SHA512} SHA512", "one without its value"),
        (f"DIST x.tar.xz -1 {BLAKE2B} {SHA512}", "has the size '-1'"),
        (f"DIST x.tar.xz 1 {BLAKE2B} {SHA512}\nDIST x.tar.xz 2 {BLAKE2B} {SHA512}", "line 2: x.tar.xz has two entries"),
        (f"WHAT x.tar.xz 1 {BLAKE2B} {SHA512}", "line 1: 'WHAT' is no type"),
        (f"DIST ../x 1 {BLAKE2B} {SHA512}", "line 1 is not an entry"),
        ("<<<<<<< HEAD", "line 1: '<<<<<<<' is no type"),
    ],
)
def test_an_entry_that_cannot_be_used(line: str, message: str) -> None:
    with pytest.raises(KernelUnavailableError) as caught:
        entry(line)
    assert message in caught.value.message
    assert caught.value.message.startswith("the Manifest")
    assert caught.value.hint


def test_data_is_held_against_an_entry() -> None:
    found = entry(manifest_line("x.tar.xz", b"data"))
    found.check(b"data", "x")
    assert found.digests["blake2b"] == hashlib.blake2b(b"data").hexdigest()
    with pytest.raises(SourceRejectedError, match="x has 5 bytes; its Manifest says 4"):
        found.check(b"data!", "x")
    with pytest.raises(SourceRejectedError, match="x has another blake2b"):
        found.check(b"date", "x")
    changed = ManifestEntry("x", 4, {**found.digests, "sha512": "0" * 128})
    with pytest.raises(SourceRejectedError, match="x has another sha512"):
        changed.check(b"data", "x")
