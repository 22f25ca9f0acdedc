# SPDX-License-Identifier: GPL-2.0-or-later
"""Initial file systems for guests: cpio archives in the "newc" format.

The kernel unpacks several archives that lie one after the other in one file, later entries over earlier ones
(Documentation/driver-api/early-userspace/buffer-format.rst in the kernel's source, which specifies the format too).
So an archive that many guests share is made once and each guest adds its own. The same content gives the same bytes.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from elivepatch.errors import InternalError

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
#: Archives begin at a multiple of 512 bytes, as cpio itself leaves them.
_BLOCK = 512
#: A field of the header holds eight hexadecimal digits.
_FIELD_LIMIT = 1 << 32


@dataclass
class Tree:
    """The files that go into an archive, by absolute path; parents of a path are made as needed."""

    _entries: dict[str, tuple[int, bytes]] = field(default_factory=dict[str, tuple[int, bytes]])

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory."""
        self._add(path, stat.S_IFDIR | mode, b"")

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a file with this content."""
        self._add(path, stat.S_IFREG | mode, data)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def _add(self, path: str, mode: int, data: bytes) -> None:
        pure = PurePosixPath(path)
        if not pure.is_absolute() or ".." in pure.parts or "\0" in path or len(pure.parts) < 2:
            raise InternalError(f"not a path for an initramfs: {path!r}")
        if len(data) >= _FIELD_LIMIT:
            raise InternalError(f"{path} is too large for an initramfs ({len(data)} bytes)")
        for parent in pure.parents:
            if len(parent.parts) > 1:
                self._entries.setdefault(str(parent)[1:], (stat.S_IFDIR | 0o755, b""))
        self._entries[str(pure)[1:]] = (mode, data)

    def archive(self) -> bytes:
        """The archive: owned by root, dated 1970, in the order of the names, padded to a whole block."""
        out = bytearray()
        for number, (name, (mode, data)) in enumerate(sorted(self._entries.items()), start=1):
            out += _entry(name, mode, data, number)
        out += _entry(_TRAILER, 0, b"", 0)
        return bytes(out) + bytes(-len(out) % _BLOCK)


def _entry(name: str, mode: int, data: bytes, number: int) -> bytes:
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    values = (number, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    header = _MAGIC + b"".join(b"%08X" % value for value in values) + encoded
    header += bytes(-len(header) % 4)
    return header + data + bytes(-len(data) % 4)


def base(busybox: Path) -> Tree:
    """The common part of all guests: a static busybox, a shell, and the places where file systems are mounted.

    Raises InternalError where ``busybox`` is not a static program: it would only end in a panic of the guest.
    """
    program = busybox.read_bytes()
    if not program.startswith(b"\x7fELF") or b"/ld-linux" in program[:4096]:
        raise InternalError(f"{busybox} is not a static program; a guest has no libraries to run it with")
    tree = Tree()
    for name in ("/proc", "/sys", "/dev", "/run", "/etc", "/lib/modules"):
        tree.directory(name)
    tree.directory("/tmp", 0o1777)  # noqa: S108 - inside the guest
    tree.file("/bin/busybox", program, 0o755)
    tree.link("/bin/sh", "busybox")
    return tree


def write(path: Path, *archives: bytes) -> Path:
    """Write archives one after the other into a file that a kernel takes as its initramfs."""
    with path.open("wb") as stream:
        for archive in archives:
            stream.write(archive)
    return path
