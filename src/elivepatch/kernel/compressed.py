# SPDX-License-Identifier: GPL-2.0-or-later
"""Module files as they lie on a disk: plain, or compressed as CONFIG_MODULE_COMPRESS_* says."""

from __future__ import annotations

import gzip
import lzma
import tempfile
import zlib
from pathlib import Path

from elivepatch import process
from elivepatch.errors import InputTooLargeError, InvalidInputError

_HINT = "Get the kernel's package again: what was unpacked of it is damaged."


def read_module(path: Path) -> bytes:
    """The ELF file in a ``.ko``, ``.ko.xz``, ``.ko.gz`` or ``.ko.zst``.

    Raises InvalidInputError for one that cannot be decompressed, ToolUnavailableError where zstd is needed and absent.
    """
    try:
        if path.suffix == ".xz":
            return lzma.decompress(path.read_bytes())
        if path.suffix == ".gz":
            return gzip.decompress(path.read_bytes())
        if path.suffix == ".zst":
            return _unzstd(path)
    except (lzma.LZMAError, gzip.BadGzipFile, EOFError, process.ProgramError) as error:
        raise InvalidInputError(f"{path} cannot be decompressed: {error}", hint=_HINT) from error
    return path.read_bytes()


def gunzip(data: bytes, limit_bytes: int, what: str) -> bytes:
    """What gzip packed. Raises InputTooLargeError beyond the limit, InvalidInputError for what cannot be unpacked."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        found = unpacker.decompress(data, limit_bytes + 1)
    except zlib.error as error:
        raise InvalidInputError(f"{what} cannot be unpacked: {error}.", hint="Give it uncompressed.") from error
    if len(found) > limit_bytes:
        raise InputTooLargeError(f"{what} is larger than {limit_bytes} bytes when unpacked.")
    if not unpacker.eof:
        raise InvalidInputError(f"{what} is cut off.", hint="Copy it again.")
    if unpacker.unused_data.strip(b"\0"):  # what follows would be left out without a word
        raise InvalidInputError(f"{what} goes on behind the end of its gzip data.", hint="Give it uncompressed.")
    return found


def _unzstd(path: Path) -> bytes:
    # Python reads zstd from 3.14 on; the program's output goes through a file because it is not text
    zstd = process.find_program("zstd", hint="Install zstd: the modules of this kernel are compressed with it.")
    with tempfile.TemporaryDirectory(prefix="elivepatch-zstd-") as name:
        output = Path(name) / "module"
        process.run([zstd, "-dcq", "--", path], stdout=output, timeout=60)
        return output.read_bytes()
