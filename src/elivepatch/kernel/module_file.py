# SPDX-License-Identifier: GPL-2.0-or-later
"""What a module file (.ko) says about itself, read with the standard library alone: a host has no ELF tools.

ELF as in elf(5); ``.modinfo`` is a sequence of ``key=value`` strings, each ended by NUL (linux/moduleparam.h).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from elivepatch.errors import ModuleRejectedError

#: include/linux/module_signature.h: what stands at the very end of a signed module.
_SIGNATURE_MAGIC = b"~Module signature appended~\n"
#: The module's own struct module (include/linux/module.h), whose name is what the kernel goes by.
_THIS_MODULE = b".gnu.linkonce.this_module"
#: Of which the kernel reads one, and which one depends on its version.
_SINGLE = {b".modinfo", _THIS_MODULE}
_ET_REL = 1
_SHT_NOBITS = 8
_SHN_XINDEX = 0xFFFF
#: e_machine (include/uapi/linux/elf-em.h) by the name that `uname -m` gives.
_MACHINES = {
    "x86_64": 62,
    "aarch64": 183,
    "ppc64le": 21,
    "ppc64": 21,
    "s390x": 22,
    "riscv64": 243,
    "loongarch64": 258,
}


@dataclass(frozen=True)
class ModuleFile:
    """A module file. ``fields`` is its modinfo in order (keys may repeat), ``elf_machine`` is e_machine."""

    fields: tuple[tuple[str, str], ...]
    elf_machine: int
    signed: bool

    def value(self, key: str) -> str | None:
        """The first value of a key of modinfo."""
        return next((value for name, value in self.fields if name == key), None)

    @property
    def name(self) -> str | None:
        """The name the kernel knows it by."""
        return self.value("name")

    @property
    def vermagic(self) -> str | None:
        """Release and options of the kernel it was built for (include/linux/vermagic.h)."""
        return self.value("vermagic")

    @property
    def release(self) -> str | None:
        """The release in vermagic: its first word."""
        words = (self.vermagic or "").split(" ", 1)
        return words[0] or None

    @property
    def livepatch(self) -> bool:
        """Whether the kernel takes it for a livepatch (MODULE_INFO(livepatch, "Y"))."""
        return self.value("livepatch") == "Y"

    def is_for_machine(self, machine: str) -> bool | None:
        """Whether it is for a machine as `uname -m` names it; None for a machine not known here."""
        known = _MACHINES.get(machine)
        return None if known is None else known == self.elf_machine


def read_module(data: bytes) -> ModuleFile:
    """Read a module file. Raises ModuleRejectedError where it is none, with what is wrong with it."""
    layout = _header(data)
    sections = _sections(data, layout)
    info = sections.get(b".modinfo")
    if info is None:
        raise _rejected("it has no .modinfo section")
    fields: list[tuple[str, str]] = []
    for entry in info.split(b"\0"):
        key, equals, value = entry.decode("utf-8", errors="replace").partition("=")
        if equals:
            fields.append((key, value))
    module = ModuleFile(tuple(fields), layout.machine, signed=data.endswith(_SIGNATURE_MAGIC))
    itself = sections.get(_THIS_MODULE)
    if itself is not None and f"\0{module.name}\0".encode() not in itself:
        raise _rejected(f"its .modinfo calls it {module.name}, and the kernel would call it something else")
    return module


@dataclass(frozen=True)
class _Layout:
    order: Literal["<", ">"]
    wide: bool
    machine: int
    table: int
    entry_size: int
    count: int
    names: int


def _rejected(reason: str) -> ModuleRejectedError:
    return ModuleRejectedError(
        f"This is not a kernel module: {reason}.",
        hint="Ask for it again; if that does not help, look at the log of the server.",
    )


def _header(data: bytes) -> _Layout:
    if data[:4] != b"\x7fELF":
        raise _rejected("it is not an ELF file")
    if len(data) < 64 or data[4] not in {1, 2} or data[5] not in {1, 2}:
        raise _rejected("its ELF header is cut off or of an unknown kind")
    wide = data[4] == 2
    order: Literal["<", ">"] = "<" if data[5] == 1 else ">"
    # e_type, e_machine, e_version, e_entry, e_phoff, e_shoff, e_flags, then six half words
    values = struct.unpack_from(order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"), data, 16)
    kind, machine, table = values[0], values[1], values[5]
    entry_size, count, names = values[10], values[11], values[12]
    if kind != _ET_REL:
        raise _rejected("it is not a relocatable object")
    if entry_size != (64 if wide else 40) or count == 0 or names == _SHN_XINDEX or names >= count:
        raise _rejected("its section table is malformed")
    if table + entry_size * count > len(data):
        raise _rejected("it is cut off before the end of its section table")
    return _Layout(order, wide, machine, table, entry_size, count, names)


def _sections(data: bytes, layout: _Layout) -> dict[bytes, bytes]:
    """The content of each section by name; for a name that repeats, the first."""
    fields = struct.Struct(
        layout.order + ("IIQQQQ" if layout.wide else "IIIIII")
    )  # name, type, flags, addr, offset, size
    rows: list[tuple[int, bytes]] = []
    for index in range(layout.count):
        name, kind, _, _, offset, size = fields.unpack_from(data, layout.table + index * layout.entry_size)
        if kind == _SHT_NOBITS:
            offset = size = 0
        if offset + size > len(data):
            raise _rejected(f"section {index} reaches beyond the end of the file")
        rows.append((name, data[offset : offset + size]))
    names = rows[layout.names][1]
    found: dict[bytes, bytes] = {}
    for name, content in rows:
        end = names.find(b"\0", name)
        if name >= len(names) or end < 0:
            raise _rejected("a section's name lies outside the table of names")
        if names[name:end] in _SINGLE & found.keys():
            raise _rejected(f"it has more than one section {names[name:end].decode()}")
        found.setdefault(names[name:end], content)
    return found
