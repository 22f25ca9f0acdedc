# SPDX-License-Identifier: GPL-2.0-or-later
"""debuginfod: the image of any distribution's kernel, asked for by its build ID.

The protocol is that of elfutils (debuginfod(8), "WEBAPI"): ``/buildid/HEX/debuginfo``, ``/buildid/HEX/executable`` and
``/buildid/HEX/section/NAME``; 404 says that there is no such thing. Nothing is signed: what comes is held against the
build ID that was asked for, which finds what is mistaken and not what is forged, since a build ID can be written into
any file. So servers are named by whoever runs elivepatch, and trusted like an archive. Comparing the host's symbol
layout (`elivepatch.kernel.layout`) with the image's narrows what a forged one could do.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import quote

from elivepatch.errors import DownloadFailedError, InvalidInputError, NotFoundError, SourceRejectedError
from elivepatch.kernel.elf import build_id_of_notes
from elivepatch.kernel.sections import ET_EXEC, SHT_NOBITS, SHT_NOTE, ElfFile, content, read_sections
from elivepatch.progress import Progress
from elivepatch.sources.download import check_url, download

#: Bytes of an image with its DWARF: the largest that distributions publish have 1 GB.
IMAGE_LIMIT = 4 * 1024**3
SECTION_LIMIT = 256 * 1024**2
_BUILD_ID = re.compile(r"[0-9a-f]{16,64}", re.ASCII)
_SECTION_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,64}", re.ASCII)
_Kind = Literal["debuginfo", "executable"]
_Found = TypeVar("_Found")


@dataclass(frozen=True, kw_only=True)
class FoundImage:
    """A vmlinux that was found by its build ID: with its code, and with a symbol table or DWARF, or both."""

    path: Path
    build_id: str
    server: str
    dwarf: bool
    symbols: bool


class Debuginfod:
    """debuginfod servers, asked one after the other; what they gave is kept below ``cache``.

    ``servers`` are addresses as in DEBUGINFOD_URLS. Raises InvalidSettingError for one that is no address.
    """

    def __init__(self, servers: Sequence[str], cache: Path) -> None:
        for server in servers:
            check_url(server)
        self._servers = [server.rstrip("/") for server in servers]
        self._cache = cache / "debuginfod"

    def vmlinux(self, build_id: str, progress: Progress) -> FoundImage | None:
        """The image of the kernel with that build ID; None where no server has it.

        It is what servers give as debuginfo, which for kernels is the whole vmlinux, or else as executable. Raises
        InvalidInputError for what is no build ID, SourceRejectedError where what came is not that vmlinux, or holds no
        code, DownloadFailedError where a server that may have it could not be asked, DiskFullError.
        """
        rejected: SourceRejectedError | None = None
        for kind in ("debuginfo", "executable"):
            try:
                found = self._image(build_id, kind, progress)
            except SourceRejectedError as error:
                rejected = error
                continue
            if found is not None:
                return found
        if rejected is not None:
            raise rejected
        return None

    def section(self, build_id: str, name: str, progress: Progress) -> bytes | None:
        """A section of it, as servers since elfutils 0.188 give it; None where none does.

        Nothing ties its bytes to the build ID: take it as a hint only. Raises as `vmlinux` does.
        """
        if not _SECTION_NAME.fullmatch(name):
            raise InvalidInputError(f"{name!r} is not the name of a section.")
        target = self._place(build_id) / f"section-{name}"

        def get(server: str) -> bytes | None:
            url = f"{server}/buildid/{build_id}/section/{quote(name)}"
            what = f"section {name} of the kernel {build_id}"
            return target.read_bytes() if _fetch(url, target, what, SECTION_LIMIT, progress) else None

        return self._ask(get)

    def _image(self, build_id: str, kind: _Kind, progress: Progress) -> FoundImage | None:
        target = self._place(build_id) / kind

        def get(server: str) -> FoundImage | None:
            url = f"{server}/buildid/{build_id}/{kind}"
            if not _fetch(url, target, f"the {kind} of the kernel {build_id}", IMAGE_LIMIT, progress):
                return None
            try:
                return _checked(target, build_id, server)
            except SourceRejectedError:
                target.unlink(missing_ok=True)
                raise

        return self._ask(get)

    def _place(self, build_id: str) -> Path:
        if not _BUILD_ID.fullmatch(build_id):
            raise InvalidInputError(
                f"{build_id!r} is not a build ID.", hint="Give it as lower case hexadecimal digits."
            )
        return self._cache / build_id

    def _ask(self, get: Callable[[str], _Found | None]) -> _Found | None:
        """Ask each server. What one of them has counts; then what one should not have given, then what failed."""
        rejected: SourceRejectedError | None = None
        failed: list[str] = []
        for server in self._servers:
            try:
                found = get(server)
            except SourceRejectedError as error:
                rejected = error
            except DownloadFailedError as error:
                failed.append(error.message)
            else:
                if found is not None:
                    return found
        if rejected is not None:
            raise rejected
        if failed:
            raise DownloadFailedError(
                " ".join(failed), hint="Try again, or check the addresses of the debuginfod servers and the network."
            )
        return None


def _fetch(url: str, target: Path, what: str, limit_bytes: int, progress: Progress) -> bool:
    """Download a file unless it is there; whether the server has it."""
    missing = NotFoundError(f"{url} does not exist.")
    try:
        download(url, target, digests={}, limit_bytes=limit_bytes, progress=progress, what=what, missing=missing)
    except NotFoundError as error:
        if error is not missing:
            raise
        return False
    return True


def _checked(path: Path, build_id: str, server: str) -> FoundImage:
    """What a file is; raises SourceRejectedError where it is not a vmlinux with that build ID."""
    what = f"What {server} gave for the build ID {build_id}"
    if path.stat().st_size == 0:
        raise SourceRejectedError(f"{what} is empty.")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            elf = read_sections(data, what)
        except InvalidInputError as error:
            raise SourceRejectedError(error.message) from error
        found = _build_id(data, elf)
    if found != build_id:
        raise SourceRejectedError(f"{what} has the build ID {found or 'none'}.")
    if elf.kind != ET_EXEC:
        raise SourceRejectedError(f"{what} is not an image of a kernel.")
    text = elf.section(".text")
    if text is None or text.type == SHT_NOBITS or not text.size:
        raise SourceRejectedError(f"{what} holds no code: it is only what was stripped from the image.")
    dwarf = any(section.name == ".debug_info" and section.file_size for section in elf.sections)
    symbols = any(section.name == ".symtab" and section.file_size for section in elf.sections)
    if not dwarf and not symbols:
        raise SourceRejectedError(f"{what} has neither a symbol table nor DWARF.")
    return FoundImage(path=path, build_id=build_id, server=server, dwarf=dwarf, symbols=symbols)


def _build_id(data: mmap.mmap, elf: ElfFile) -> str | None:
    for section in elf.sections:
        if section.type == SHT_NOTE and (found := build_id_of_notes(content(data, section))):
            return found
    return None
