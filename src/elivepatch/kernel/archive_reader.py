# SPDX-License-Identifier: GPL-2.0-or-later
"""Taking in the archive of a self-built kernel; `elivepatch.kernel.archive` says what its format is.

What is sent is not trusted: it is read as a stream, within limits, and each header must be the very one that our own
writer would have made. So no link, no path, no owner, no extension of tar can be in it.
"""

from __future__ import annotations

import errno
import hashlib
import lzma
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from elivepatch.errors import DiskFullError, InputTooLargeError, InvalidInputError
from elivepatch.kernel.archive import (
    BLOCK,
    NEEDED,
    TEXTS,
    Facts,
    allowed,
    check_vmlinuz,
    elf_build_id,
    header,
    module_name,
    opened_elf,
)
from elivepatch.kernel.host_configuration import check_configuration
from elivepatch.kernel.sections import ET_EXEC, ET_REL, content

_MB = 1024**2
_CHUNK = _MB
#: Bytes that decompressing may need; see PRESET.
_READER_MEMORY = 64 * _MB
_SYMVERS = re.compile(rb"0x[0-9a-f]{8}\t[!-~]{1,511}\t[!-~]{1,255}\tEXPORT_[A-Z_]{1,32}\t[!-~]{0,255}")
_UNIT = re.compile(r"[^\x00-\x1f\x7f]{1,1024}")
_AGAIN = "Let the client make and send it again."
_SMALLER = "Let the client send only the modules that are to be patched, or raise the limit of the server."


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much is taken in. All are bytes but ``modules``, a number; ``text`` is for each member that is text."""

    packed: int = 1024 * _MB
    total: int = 6144 * _MB
    vmlinux: int = 1024 * _MB
    vmlinuz: int = 128 * _MB
    module: int = 128 * _MB
    text: int = 64 * _MB
    modules: int = 16_384

    def of(self, name: str) -> int:
        """The limit of a member."""
        if name == "vmlinux":
            return self.vmlinux
        if name == "vmlinuz":
            return self.vmlinuz
        return self.text if name in TEXTS else self.module


@dataclass(frozen=True, kw_only=True)
class KernelArchive:
    """An archive that was taken in, laid out in ``directory`` under the names of its members.

    ``sha256`` is of the packed bytes. ``modules`` maps the names that the kernel knows modules by to their files.
    ``units`` is as the host's build names them, None where it does not tell; ``symvers`` and ``vmlinuz`` likewise.
    """

    directory: Path
    sha256: str
    size: int
    facts: Facts
    modules: Mapping[str, Path] = field(repr=False)
    units: frozenset[str] | None = field(repr=False)

    @property
    def vmlinux(self) -> Path:
        """The image, without DWARF."""
        return self.directory / "vmlinux"

    @property
    def config(self) -> Path:
        """The configuration."""
        return self.directory / ".config"

    @property
    def symvers(self) -> Path | None:
        """The exported symbols."""
        return self._there("Module.symvers")

    @property
    def vmlinuz(self) -> Path | None:
        """What boots."""
        return self._there("vmlinuz")

    @property
    def modules_directory(self) -> Path:
        """The modules, as below /lib/modules/RELEASE; need not exist."""
        return self.directory / "modules"

    def _there(self, name: str) -> Path | None:
        path = self.directory / name
        return path if path.exists() else None


class _Unpacked:
    """The decompressed stream; never holds more than a chunk, whatever the data claims."""

    def __init__(self, stream: BinaryIO, limits: Limits) -> None:
        self._stream = stream
        self._limits = limits
        self._unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_READER_MEMORY)
        self._packed = hashlib.sha256()
        self.packed_size = 0
        self.total = 0

    def sha256(self) -> str:
        return self._packed.hexdigest()

    def read(self, size: int) -> bytes:
        """So many bytes; fewer at the end only."""
        out = bytearray()
        while len(out) < size:
            chunk = self._more(size - len(out))
            if not chunk:
                break
            out += chunk
        self.total += len(out)
        if self.total > self._limits.total:
            raise InputTooLargeError(
                f"The archive is larger than {self._limits.total // _MB} MB when it is unpacked.", hint=_SMALLER
            )
        return bytes(out)

    def _more(self, size: int) -> bytes:
        while not self._unpacker.eof:
            data = b""
            if self._unpacker.needs_input:
                data = self._stream.read(_CHUNK)
                if not data:
                    raise InvalidInputError("The archive is cut off.", hint=_AGAIN)
                self._count(data)
            try:
                chunk = self._unpacker.decompress(data, min(size, _CHUNK))
            except lzma.LZMAError as error:
                raise InvalidInputError(f"The archive is not xz data: {error}.", hint=_AGAIN) from error
            if chunk:
                return chunk
        return b""

    def _count(self, data: bytes) -> None:
        self._packed.update(data)
        self.packed_size += len(data)
        if self.packed_size > self._limits.packed:
            raise InputTooLargeError(f"The archive is larger than {self._limits.packed // _MB} MB.", hint=_SMALLER)

    def finish(self) -> None:
        if self._more(1) or self._unpacker.unused_data or self._stream.read(1):
            raise InvalidInputError("The archive has something behind its end.", hint=_AGAIN)


def read_archive(source: Path | BinaryIO, target: Path, limits: Limits | None = None) -> KernelArchive:
    """Take an archive in: lay its members out below ``target``, an empty directory of the caller's, and check them.

    Nothing is written but what the format allows, under its own names; what is left of a bad archive is the caller's
    to remove. Raises InvalidInputError for whatever is not of the format, InputTooLargeError beyond the limits, and
    DiskFullError.
    """
    if isinstance(source, Path):
        with source.open("rb") as stream:
            return read_archive(stream, target, limits)
    limits = limits or Limits()
    unpacked = _Unpacked(source, limits)
    try:
        names = _unpack(unpacked, target, limits)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"No space is left for the kernel that is sent, in {target}.") from error
        raise
    for name in NEEDED:
        if name not in names:
            raise InvalidInputError(f"The archive holds no {name}.", hint=_AGAIN)
    facts = Facts.from_json((target / "facts.json").read_bytes())
    check_configuration((target / ".config").read_bytes(), ".config")
    _check_vmlinux(target / "vmlinux", facts)
    if "Module.symvers" in names:
        _check_symvers(target / "Module.symvers")
    if "vmlinuz" in names:
        check_vmlinuz(target / "vmlinuz", facts.release, facts.version)
    return KernelArchive(
        directory=target,
        sha256=unpacked.sha256(),
        size=unpacked.packed_size,
        facts=facts,
        modules=_check_modules(target, names, facts),
        units=_read_units(target / "units") if "units" in names else None,
    )


def _unpack(unpacked: _Unpacked, target: Path, limits: Limits) -> list[str]:
    names: list[str] = []
    modules = 0
    while True:
        block = unpacked.read(BLOCK)
        if block == bytes(BLOCK):
            break
        name, size = _parse(block)
        if names and name.encode() <= names[-1].encode():
            raise InvalidInputError(f"The member {name} of the archive is out of order.", hint=_AGAIN)
        modules += name.startswith("modules/")
        if size > limits.of(name):
            raise InputTooLargeError(f"{name} is {size} bytes; the limit is {limits.of(name)}.", hint=_SMALLER)
        if modules > limits.modules:
            raise InputTooLargeError(f"The archive holds more than {limits.modules} modules.", hint=_SMALLER)
        _extract(unpacked, target / name, size)
        names.append(name)
    if unpacked.read(BLOCK) != bytes(BLOCK):
        raise InvalidInputError("The archive does not end as it must.", hint=_AGAIN)
    unpacked.finish()
    return names


def _parse(block: bytes) -> tuple[str, int]:
    """Name and size in a header. Whatever else it says is refused: it must be the one that we would write."""
    last, prefix, octal = block[:100].rstrip(b"\0"), block[345:500].rstrip(b"\0"), block[124:135]
    if len(block) == BLOCK and re.fullmatch(rb"[0-7]{11}", octal):
        name = (prefix + b"/" + last if prefix else last).decode("ascii", errors="replace")
        if allowed(name) and block == header(name, int(octal, 8)):
            return name, int(octal, 8)
    shown = last[:80].decode("ascii", errors="replace")
    raise InvalidInputError(
        f"The archive holds something that cannot be in one (a member called {shown!r}).", hint=_AGAIN
    )


def _extract(unpacked: _Unpacked, path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as out:
        left = size
        while left:
            chunk = unpacked.read(min(left, _CHUNK))
            if not chunk:
                raise InvalidInputError("The archive is cut off.", hint=_AGAIN)
            if chunk.count(0) == len(chunk):
                out.seek(len(chunk), 1)  # two fifths of an image are zeros: a sparse file does not keep them
            else:
                out.write(chunk)
            left -= len(chunk)
        out.truncate(size)
    if any(unpacked.read(-size % BLOCK)):
        raise InvalidInputError(f"{path.name} is not padded with zeros in the archive.", hint=_AGAIN)


# -- checking


def _check_vmlinux(path: Path, facts: Facts) -> None:
    data, elf = opened_elf(path, "vmlinux")
    with data:
        found = elf_build_id(data, elf)
        if elf.kind != ET_EXEC or elf.section(".text") is None:
            raise InvalidInputError("vmlinux is not the image of a kernel.", hint=_AGAIN)
        if elf.section(".symtab") is None or elf.section(".strtab") is None:
            raise InvalidInputError("vmlinux has no symbol table.", hint="Do not strip the build directory's vmlinux.")
        if found != facts.build_id:
            raise InvalidInputError(
                f"vmlinux has the build ID {found or 'none'}, facts.json says {facts.build_id}.", hint=_AGAIN
            )


def _check_modules(target: Path, names: Iterable[str], facts: Facts) -> dict[str, Path]:
    modules: dict[str, Path] = {}
    for name in names:
        if not name.startswith("modules/"):
            continue
        path = target / name
        data, elf = opened_elf(path, name)
        with data:
            info = content(data, elf.section(".modinfo"))
        entries = (entry.partition(b"=") for entry in reversed(info.split(b"\0")))
        fields = {key: value for key, _, value in entries}
        if elf.kind != ET_REL or not info:
            raise InvalidInputError(f"{name} is not a kernel module.", hint=_AGAIN)
        release = fields.get(b"vermagic", b"").split(b" ")[0].decode(errors="replace")
        if release != facts.release:
            raise InvalidInputError(f"{name} is for the kernel {release!r}, not for {facts.release}.", hint=_AGAIN)
        known = module_name(path.name)
        if known in modules:
            raise InvalidInputError(f"The archive holds two modules called {known}.", hint=_AGAIN)
        modules[known] = path
    return modules


def _check_symvers(path: Path) -> None:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not _SYMVERS.fullmatch(line.removesuffix(b"\n")):
                raise InvalidInputError(f"Module.symvers has a line {number} that cannot be in one: {line[:80]!r}.")


def _read_units(path: Path) -> frozenset[str]:
    try:
        lines = path.read_bytes().decode().split("\n")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"The list of compile units is not text: {error}.", hint=_AGAIN) from error
    if lines.pop() != "" or sorted(set(lines)) != lines or not all(map(_UNIT.fullmatch, lines)):
        raise InvalidInputError("The list of compile units is not one: a name a line, sorted, each once.", hint=_AGAIN)
    return frozenset(lines)
