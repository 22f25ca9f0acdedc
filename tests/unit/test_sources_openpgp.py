# SPDX-License-Identifier: GPL-2.0-or-later
"""Keyrings in their forms; signatures are in the integration tests, with keys made by gpg."""

from __future__ import annotations

import base64
import lzma
from pathlib import Path

import pytest

from elivepatch.sources.openpgp import AUTOSIGNER, GREGKH, NAMES, TORVALDS, dearmored, unpacked

KEYS = [b"\x99\x01\x0d\x04" + bytes(range(256)), b"\x98\x33" + b"k" * 100]


def armored(data: bytes, *headers: str, newline: str = "\n") -> bytes:
    text = base64.encodebytes(data).decode()
    lines = ["-----BEGIN PGP PUBLIC KEY BLOCK-----", *headers, "", *text.splitlines(), "=abcd"]
    return newline.join([*lines, "-----END PGP PUBLIC KEY BLOCK-----", ""]).encode()


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("headers", [[], ["Comment: Somebody, 1234"], ["Version: 1", "Comment: two"]])
def test_armored_blocks_become_one_binary_keyring(headers: list[str], newline: str) -> None:
    blocks = [armored(key, *headers, newline=newline) for key in KEYS]
    assert dearmored(b"".join(blocks)) == b"".join(KEYS)
    assert dearmored(b"text before\n" + blocks[0] + b"and between\n" + blocks[1]) == b"".join(KEYS)


def test_a_binary_keyring_stays_as_it_is() -> None:
    assert dearmored(b"".join(KEYS)) == b"".join(KEYS)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"nothing", armored(KEYS[0])[:-20], armored(KEYS[0]).replace(b"PUBLIC KEY", b"PRIVATE KEY"),
        armored(KEYS[0]).replace(b"mQEN", b"m?EN"), armored(KEYS[0], "no header"),
    ],
)  # fmt: skip
def test_what_is_no_keyring(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"no public key|damaged|do not belong"):
        dearmored(data)


def test_the_pinned_keys_are_fingerprints() -> None:
    assert set(NAMES) == {AUTOSIGNER, GREGKH, TORVALDS}
    for fingerprint in NAMES:
        assert len(bytes.fromhex(fingerprint)) == 20
        assert fingerprint == fingerprint.upper()


def test_what_an_archive_holds_comes_in_pieces_and_ends_where_it_is_damaged(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    path = tmp_path / "x.xz"
    path.write_bytes(lzma.compress(data))
    pieces = list(unpacked(path, piece=1000))
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) == 1000
    for broken in (path.read_bytes()[:-30], b"junk"):
        path.write_bytes(broken)
        assert data.startswith(b"".join(unpacked(path)))
