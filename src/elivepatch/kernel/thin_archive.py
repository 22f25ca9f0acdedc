# SPDX-License-Identifier: GPL-2.0-or-later
"""Which objects a kernel was linked from, read from the thin archives that a build leaves behind.

A thin archive (``!<thin>``) holds the paths of its members only, relative to its own directory; the kernel's
built-in.a and, since 6.1, vmlinux.a are such (scripts/Makefile.build, Makefile). Format: ar(5) as GNU binutils extend
it: headers of 60 bytes, ``//`` holds long names, ``/N`` is the name at offset N there, ``/`` and ``/SYM64/`` are symbol
indices.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from elivepatch.errors import InvalidInputError

_MAGIC = b"!<thin>\n"
_HEADER = re.compile(rb"(?P<name>.{16})[ 0-9-]{12}[ 0-9-]{6}[ 0-9-]{6}[ 0-7]{8}(?P<size>[0-9 ]{10})`\n", re.DOTALL)
_HEADER_BYTES = 60
_OFFSET = re.compile(rb"/(\d+)")
_SOURCE = re.compile(r"^source_\S+ := (\S+)$", re.MULTILINE)
_SOURCE_SUFFIXES = (".c", ".S", ".rs")


def members(archive: Path) -> list[str]:
    """The members of a thin archive in order, as it names them: paths relative to the archive's directory.

    Raises InvalidInputError where it is no thin archive.
    """
    data = archive.read_bytes()
    if not data.startswith(_MAGIC):
        raise InvalidInputError(f"{archive} is not a thin archive.", hint="Name the built-in.a of a kernel build.")
    names = b""
    found: list[str] = []
    at = len(_MAGIC)
    while at < len(data):
        header = _HEADER.fullmatch(data, at, min(at + _HEADER_BYTES, len(data)))
        if header is None or not header["size"].strip().isdigit():
            raise InvalidInputError(f"{archive} is damaged at byte {at}.", hint="Build the kernel again.")
        name, size = header["name"].rstrip(b" "), int(header["size"])
        at += _HEADER_BYTES
        if name in (b"//", b"/", b"/SYM64/"):  # only these have their content here
            if name == b"//":
                names = data[at : at + size]
            at += size + size % 2
        else:
            found.append(_member(name, names, archive))
    return found


def _member(name: bytes, names: bytes, archive: Path) -> str:
    if name[:1] != b"/":
        return name.removesuffix(b"/").decode(errors="replace")
    # behind the digits may be more: ``:OFFSET``, or a ``/`` in the last column, which ar leaves where it moves members
    number = _OFFSET.match(name)
    end = names.find(b"/\n", int(number[1])) if number is not None else -1
    if number is None or end < 0:
        raise InvalidInputError(f"{archive} names a member that its list of names does not hold.")
    return names[int(number[1]) : end].decode(errors="replace")


def objects_of_vmlinux(build_directory: Path) -> list[str]:
    """The objects that vmlinux was linked from, as paths in the build directory, sorted; empty where it does not tell.

    Archives inside archives are followed.
    """
    tops = [build_directory / "vmlinux.a"]
    if not tops[0].is_file():
        tops = sorted({*build_directory.glob("*built-in.a"), *build_directory.glob("*/built-in.a")})
        tops += [build_directory / name for name in ("lib/lib.a", "arch/x86/lib/lib.a", "arch/x86/built-in.a")]
    found: set[str] = set()
    seen: set[Path] = set()
    for top in tops:
        if top.is_file():
            found.update(_walk(top, build_directory, seen))
    return sorted(found)


def _walk(archive: Path, top: Path, seen: set[Path]) -> Iterator[str]:
    if archive in seen:
        return
    seen.add(archive)
    for name in members(archive):
        path = Path(os.path.normpath(archive.parent / name))
        if path.suffix == ".a":
            if path.is_file():
                yield from _walk(path, top, seen)
        elif path.is_relative_to(top):
            yield str(PurePosixPath(path.relative_to(top)))


def source_of(obj: str, build_directory: Path, source_directory: Path) -> str | None:
    """The source file of an object, by its path in the tree.

    kbuild notes it in ``.NAME.o.cmd`` (scripts/basic/fixdep.c); without that it is the file of that name.
    """
    path = build_directory / obj
    note = path.with_name(f".{path.name}.cmd")
    if note.is_file() and (match := _SOURCE.search(note.read_text(errors="replace"))):
        named = Path(os.path.normpath(build_directory / match[1]))
        for top in (source_directory, build_directory):
            if named.is_relative_to(top):
                return str(named.relative_to(top))
        return match[1]
    stem = str(PurePosixPath(obj).with_suffix(""))
    return next((stem + suffix for suffix in _SOURCE_SUFFIXES if (source_directory / (stem + suffix)).is_file()), None)
