# SPDX-License-Identifier: GPL-2.0-or-later
"""The archive of a self-built kernel: what a client sends of it once, and what a server takes in.

A tar archive (POSIX ustar) compressed with xz. Its members are regular files of mode 0644, owner 0, dated 0, without
directories, in the order of their names (as bytes), each once; two blocks of zeros end it, and nothing follows:

    .config                  the configuration
    Module.symvers           what vmlinux and the modules export (absent where the build does not have it)
    facts.json               release, build ID, /proc/version, and the directories it was built in: see `Facts`
    modules.builtin, modules.builtin.modinfo, modules.dep, modules.order      as below /lib/modules/RELEASE
    modules/kernel/….ko      the modules, uncompressed, without DWARF and signature, where they are installed
    units                    the compile units of vmlinux, one a line, sorted (absent where nothing tells)
    vmlinux                  without DWARF, with its symbol table, FILE symbols and BTF
    vmlinuz                  what boots (absent where it was not found)

The same build gives the same bytes. What `write_member` writes is taken in header for header, and everything else is
refused (`elivepatch.kernel.archive_reader`). .config, facts.json and vmlinux must be there.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from elivepatch.errors import InvalidInputError
from elivepatch.kernel.running import RELEASE, build_id_of
from elivepatch.kernel.sections import Buffer, ElfFile, content, read_sections

FORMAT = 1
BLOCK = 512
#: xz preset 1 takes a tenth of the time of 6 for a sixth more bytes; readers need 1 MB for it.
PRESET = 1

MODULE = re.compile(r"modules/(kernel/(?:[A-Za-z0-9_][A-Za-z0-9_.+,-]*/)*[A-Za-z0-9_][A-Za-z0-9_.+,-]*\.ko)", re.ASCII)
LISTS = ("modules.builtin", "modules.builtin.modinfo", "modules.dep", "modules.order")
TEXTS = (".config", "Module.symvers", "facts.json", "units", *LISTS)
NEEDED = (".config", "facts.json", "vmlinux")
_BUILD_ID = re.compile(r"[0-9a-f]{16,64}")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the host says of the kernel. ``version`` is /proc/version; the directories are where it was built."""

    release: str
    build_id: str
    version: str
    build_directory: str
    source_directory: str

    def as_json(self) -> bytes:
        """The member facts.json."""
        return json.dumps({"format": FORMAT, **self.__dict__}, sort_keys=True, ensure_ascii=False).encode() + b"\n"

    @staticmethod
    def from_json(data: bytes) -> Facts:
        """Read facts.json; raises InvalidInputError for what it cannot be."""
        try:
            read: Any = json.loads(data)  # Any: checked below
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"facts.json is not JSON: {error}.") from error
        names = list(Facts.__dataclass_fields__)
        fields = cast("dict[str, Any]", read) if isinstance(read, dict) else {}
        if fields.get("format") != FORMAT:
            raise InvalidInputError(f"facts.json is not of format {FORMAT}.", hint="Use a client of this version.")
        values: dict[str, str] = {}
        for name in names:
            value: Any = fields.get(name)
            if not isinstance(value, str) or len(value) > 4096 or not value.isprintable():
                raise InvalidInputError(f"facts.json has no usable {name}.")
            values[name] = value
        if len(fields) != len(names) + 1:
            raise InvalidInputError("facts.json holds more than it should.")
        if not RELEASE.fullmatch(values["release"]) or not _BUILD_ID.fullmatch(values["build_id"]):
            raise InvalidInputError("facts.json names no release, or no build ID.")
        return Facts(**values)


# -- the form of a member


def allowed(name: str) -> bool:
    """Whether a member may have that name."""
    if name in TEXTS or name in ("vmlinux", "vmlinuz"):
        return True
    return MODULE.fullmatch(name) is not None and _split(name) is not None


def _split(name: str) -> tuple[bytes, bytes] | None:
    """Prefix and name of a ustar header; None for a path that does not fit."""
    raw = name.encode("ascii", errors="replace")
    if len(raw) <= 100:
        return b"", raw
    cut = raw.find(b"/", len(raw) - 101)
    return (raw[:cut], raw[cut + 1 :]) if 0 < cut <= 155 else None


def header(name: str, size: int) -> bytes:
    """The block before a member (POSIX.1-2017, pax, "ustar Interchange Format")."""
    parts = _split(name)
    if parts is None or not 0 <= size < 8**11:
        raise InvalidInputError(f"{name} of {size} bytes cannot be a member of an archive.")
    prefix, last = parts
    fields = [
        *(last.ljust(100, b"\0"), b"0000644\0", b"0000000\0", b"0000000\0", b"%011o\0" % size, b"00000000000\0"),
        *(b" " * 8, b"0", bytes(100), b"ustar\0", b"00", bytes(32), bytes(32), b"0000000\0", b"0000000\0"),
        *(prefix.ljust(155, b"\0"), bytes(12)),
    ]
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def write_member(write: Callable[[bytes], object], name: str, size: int, chunks: Iterable[bytes]) -> None:
    """Write a member whose content is ``size`` bytes."""
    write(header(name, size))
    written = 0
    for chunk in chunks:
        write(chunk)
        written += len(chunk)
    if written != size:
        raise InvalidInputError(f"{name} changed while it was read.", hint="Wait for the build to end, and try again.")
    write(bytes(-size % BLOCK))


def write_end(write: Callable[[bytes], object]) -> None:
    """Write what ends an archive."""
    write(bytes(2 * BLOCK))


# -- what both sides look at


def opened_elf(path: Path, what: str) -> tuple[mmap.mmap, ElfFile]:
    """Map an ELF file and read its sections; raises InvalidInputError."""
    if path.stat().st_size == 0:
        raise InvalidInputError(f"{what} is empty.")
    with path.open("rb") as stream:
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return data, read_sections(data, what)
    except BaseException:
        data.close()
        raise


def elf_build_id(data: Buffer, elf: ElfFile) -> str | None:
    """The build ID of an ELF file, in hex: vmlinux has it among its other notes, a module in a section of its own."""
    for name in (".notes", ".note.gnu.build-id"):
        if (section := elf.section(name)) is not None and (found := build_id_of(content(data, section))):
            return found
    return None


def module_name(file: str) -> str:
    """The name the kernel knows a module by: its file's without suffixes, ``-`` as ``_`` (scripts/Makefile.lib)."""
    return re.sub(r"\.ko(\.xz|\.zst|\.gz)?\Z", "", file).replace("-", "_")


def check_vmlinuz(path: Path, release: str, version: str) -> None:
    """Raise InvalidInputError where a file is no bzImage of that release and build.

    Documentation/arch/x86/boot.rst: "HdrS" at 0x202; kernel_version at 0x20e is the place of a text, less 0x200. It
    reads ``RELEASE (USER@HOST) NUMBER-AND-TIME`` (arch/x86/boot/version.c), the last being the end of /proc/version.
    """
    with path.open("rb") as stream:
        head = stream.read(0x10000)
    if head[0x202:0x206] != b"HdrS" or head[0x1FE:0x200] != b"\x55\xaa":
        raise InvalidInputError(f"{path.name} is not a bzImage.", hint="Only x86-64 kernels can be booted.")
    at = int.from_bytes(head[0x20E:0x210], "little") + 0x200
    text = head[at : head.find(b"\0", at)].decode(errors="replace")
    if text.split(" ")[0] != release or text.partition("#")[2] != version.partition("#")[2]:
        raise InvalidInputError(
            f"{path.name} is another kernel ({text[:120]!r}) than the one that runs ({version[:200]!r}).",
            hint="Install the kernel that runs into /boot again, or build with its own directory.",
        )
