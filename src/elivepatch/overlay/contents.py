# SPDX-License-Identifier: GPL-2.0-or-later
"""What the entries of an overlay hold: their patches and check scripts, and one script of several."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from elivepatch.errors import InputTooLargeError, InvalidInputError
from elivepatch.overlay.commits import CommitPatches
from elivepatch.overlay.model import Entry
from elivepatch.overlay.repository import PATCHES, OverlayFiles
from elivepatch.protocol import limits

_SCRIPT = """\
#!/bin/sh
# the check scripts of {names}, one after the other: each must succeed
"""
_ONE = """\
cat >/tmp/elivepatch-check.{number} <<'{mark}'
{text}{mark}
chmod 700 /tmp/elivepatch-check.{number}
{call}/tmp/elivepatch-check.{number} || exit 1
"""


def patch_of(entry: Entry, files: OverlayFiles, commits: CommitPatches) -> bytes:
    """The patch of an entry. Raises InvalidInputError where it has none, and what `CommitPatches.patch` raises."""
    if entry.commit is not None:
        return commits.patch(entry.commit)
    if entry.path is None:
        raise InvalidInputError(f"The entry {entry.id} has no patch.", hint="Tell whoever runs the overlay.")
    return files.read(f"{PATCHES}/{entry.path}")


def script_of(entry: Entry, files: OverlayFiles) -> bytes | None:
    """The check script of an entry, if it has one. Raises InputTooLargeError."""
    if entry.check is None:
        return None
    data = files.read(f"{PATCHES}/{entry.check}")
    if len(data) > limits.CHECK_BYTES:
        raise InputTooLargeError(
            f"The check script of {entry.id} is larger than {limits.CHECK_BYTES} bytes.",
            hint="Tell whoever runs the overlay.",
        )
    return data


def joined_check(scripts: Sequence[tuple[str, bytes]]) -> bytes | None:
    """One check script of several, each named after its entry. Raises InputTooLargeError.

    It fails where one of them fails, so on the kernel without the livepatch one failure is enough.
    """
    if not scripts:
        return None
    if len(scripts) == 1:
        return scripts[0][1]
    digest = hashlib.sha256(b"".join(script for _, script in scripts)).hexdigest()
    text = _SCRIPT.format(names=", ".join(name for name, _ in scripts)).encode()
    for number, (_, script) in enumerate(scripts):
        data = script if script.endswith(b"\n") else script + b"\n"
        call = "" if data.startswith(b"#!") else "sh "
        head, _, tail = _ONE.format(number=number, mark=f"END-{digest}", text="\0", call=call).partition("\0")
        text += head.encode() + data + tail.encode()
    if len(text) > limits.CHECK_BYTES:
        raise InputTooLargeError(
            f"The check scripts together are larger than {limits.CHECK_BYTES} bytes.",
            hint="Apply some of the patches at a time, with --only or --skip.",
        )
    return text
