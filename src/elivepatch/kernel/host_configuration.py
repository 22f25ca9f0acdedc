# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a host keeps the configuration of its kernels, and whether a file is one at all."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from elivepatch.errors import InputTooLargeError, InvalidInputError
from elivepatch.kernel.running import RELEASE


@dataclass(frozen=True)
class Configuration:
    """A kernel configuration, decompressed, and the file it was found in."""

    data: bytes
    origin: Path


def find_configuration(
    release: str, *, limit_bytes: int, running: bool = True, given: Path | None = None, root: Path = Path("/")
) -> Configuration | None:
    """The configuration of a kernel: the given file, or else wherever a host keeps it; None where it keeps none.

    ``running`` says that ``release`` is the running kernel, whose own /proc/config.gz counts first. Compressed or not
    is seen from the content. Raises InvalidInputError for a file that is no kernel configuration, InputTooLargeError
    for one whose text, decompressed, is larger than ``limit_bytes``.
    """
    if given is not None:
        return read_configuration(given, limit_bytes=limit_bytes)
    if not RELEASE.fullmatch(release):
        return None
    modules = root / "lib/modules" / release
    places = [root / "proc/config.gz"] if running else []
    places += [root / f"boot/config-{release}", modules / "config", modules / "build/.config"]
    for place in places:
        if place.is_file():
            return read_configuration(place, limit_bytes=limit_bytes)
    return None


def read_configuration(path: Path, *, limit_bytes: int) -> Configuration:
    """Read a kernel configuration, plain or gzip. For what it raises see `find_configuration`."""
    try:
        if path.exists() and not path.is_file():
            raise InvalidInputError(f"The configuration {path} is not a file.", hint="Name a readable file with -k.")
        with path.open("rb") as stream:
            data = stream.read(limit_bytes + 1)
    except OSError as error:
        raise InvalidInputError(
            f"The configuration {path} cannot be read: {error.strerror}.", hint="Name a readable file with -k."
        ) from error
    if data[:2] == b"\x1f\x8b":
        data = _gunzip(data, path, limit_bytes)
    if len(data) > limit_bytes:
        raise InputTooLargeError(
            f"The configuration {path} is larger than {limit_bytes} bytes.",
            hint="A kernel's .config has some 300 kB.",
        )
    check_configuration(data, str(path))
    return Configuration(data=data, origin=path)


def _gunzip(data: bytes, path: Path, limit_bytes: int) -> bytes:
    inflate = zlib.decompressobj(wbits=31)
    try:
        text = inflate.decompress(data, limit_bytes + 1)  # never more in memory than that, whatever it claims
    except zlib.error as error:
        raise InvalidInputError(
            f"The configuration {path} is damaged gzip data: {error}.", hint="Copy it again."
        ) from error
    if not inflate.eof and len(text) <= limit_bytes:
        raise InvalidInputError(f"The configuration {path} is cut off.", hint="Copy it again.")
    if inflate.unused_data.strip(b"\0"):  # what follows would be left out without a word
        raise InvalidInputError(
            f"The configuration {path} goes on behind the end of its gzip data.", hint="Give it uncompressed."
        )
    return text


def check_configuration(data: bytes, name: str) -> None:
    """Check that this is the text of a kernel configuration; ``name`` is for the message.

    Raises InvalidInputError with the first line that cannot be part of one.
    """
    hint = "Name the .config of this kernel with -k; distributions keep it as /boot/config-RELEASE."
    options = 0
    for number, line in enumerate(data.decode("utf-8", errors="replace").split("\n"), start=1):
        if re.match(r"CONFIG_[A-Za-z0-9_]+=\S", line):
            options += 1
        elif line.strip() and not line.startswith("#"):
            raise InvalidInputError(f"{name} is not a kernel configuration: line {number} is {line[:60]!r}.", hint=hint)
    if not options:
        raise InvalidInputError(f"{name} sets no kernel option at all.", hint=hint)
