# SPDX-License-Identifier: GPL-2.0-or-later
"""The directory in which a host's kernel was built: whether it is that of the running kernel, and what to send of it.

With the standard library and, for modules that are compressed with zstd, the program of that name. The build may be in
the source tree or beside it (``make O=DIRECTORY``, whose ``source`` leads to the tree).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import lzma
import mmap
import tempfile
import zlib
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from elivepatch import process
from elivepatch.errors import (
    BuildIdMismatchError,
    DiskFullError,
    InputTooLargeError,
    InvalidInputError,
    KernelUnavailableError,
    NotFoundError,
    UnavailableError,
)
from elivepatch.kernel import archive
from elivepatch.kernel.archive import Facts, check_vmlinuz, elf_build_id, module_name, opened_elf
from elivepatch.kernel.host_configuration import read_configuration
from elivepatch.kernel.running import RELEASE, kernel_build_id
from elivepatch.kernel.sections import ET_EXEC, Buffer, read_sections
from elivepatch.kernel.slim import slim
from elivepatch.kernel.thin_archive import objects_of_vmlinux, source_of
from elivepatch.kernel.units import compile_units
from elivepatch.progress import Progress

_MB = 1024**2
_TEXT_LIMIT = 64 * _MB
#: Bytes of a module with its DWARF, uncompressed; amdgpu has some 500 MB.
_MODULE_LIMIT = 2048 * _MB
_SUFFIXES = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")
_HINT = (
    "Build the kernel that runs again in that directory, boot the one that was built there, or name the directory of "
    "the running kernel."
)


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What was written: the digest and size of the packed bytes, and the members in order."""

    sha256: str
    size: int
    facts: Facts
    members: tuple[str, ...] = field(repr=False)


def find_build_directory(release: str, root: Path = Path("/")) -> Path | None:
    """Where a host has the build of a kernel, with its vmlinux; None where it keeps none.

    The first of /lib/modules/RELEASE/build and /usr/src/linux-RELEASE and /usr/src/linux that holds a vmlinux with a
    symbol table (distributions' packages of headers may hold one with types only).
    """
    if not RELEASE.fullmatch(release):
        return None
    for place in (f"lib/modules/{release}/build", f"usr/src/linux-{release}", "usr/src/linux"):
        vmlinux = root / place / "vmlinux"
        with contextlib.suppress(InvalidInputError, OSError):
            data, elf = opened_elf(vmlinux, str(vmlinux))
            with data:
                if elf.kind == ET_EXEC and elf.section(".symtab") is not None:
                    return (root / place).resolve()
    return None


def check_build_directory(build_directory: Path, release: str, root: Path = Path("/")) -> str:
    """Check that a directory holds the build of the running kernel; gives the build ID.

    Raises KernelUnavailableError where there is no vmlinux, or nothing to compare it with; BuildIdMismatchError where
    it is another build.
    """
    vmlinux = build_directory / "vmlinux"
    if not vmlinux.is_file():
        raise KernelUnavailableError(
            f"{build_directory} holds no vmlinux: it is not the directory of a kernel build, or it was cleaned.",
            hint="Name the directory in which the running kernel was built; the server can also build the kernel.",
        )
    running = kernel_build_id(root)
    if running is None:
        raise KernelUnavailableError(
            f"The running kernel {release} shows no build ID in /sys/kernel/notes.",
            hint="Mount /sys; without a build ID nothing tells whether a build directory is that of this kernel.",
        )
    data, elf = opened_elf(vmlinux, str(vmlinux))
    with data:
        found = elf_build_id(data, elf)
    if found != running:
        built = _text(build_directory / "include/config/kernel.release").strip()
        what = f"the kernel {built}" if built and built != release else "another build"
        raise BuildIdMismatchError(
            f"{vmlinux} is {what}: its build ID is {found or 'none'}, "
            f"that of the running kernel {release} is {running}.",
            hint=_HINT,
        )
    return running


def collect(
    build_directory: Path,
    release: str,
    out: BinaryIO,
    progress: Progress,
    *,
    root: Path = Path("/"),
    modules: Collection[str] | None = None,
) -> Collected:
    """Write the archive (see `elivepatch.kernel.archive`) of the running kernel, whose build lies in a directory.

    ``modules`` are the names of those to send, all where it is None. Memory stays within some megabytes beside the
    largest compressed module. Raises what `check_build_directory` raises; NotFoundError for a module that is not
    installed; InvalidInputError for a file of the build that is not what it should be; ToolUnavailableError where
    modules are compressed with zstd and it is not installed; UnavailableError for what cannot be read, DiskFullError.
    """
    try:
        return _collect(build_directory, release, out, progress, root, modules)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError("No space is left for the archive of the kernel.") from error
        raise UnavailableError(
            f"{error.filename or 'A file of the kernel'} cannot be read: {error.strerror or error}.",
            hint="Run as root.",
        ) from error


def _collect(
    build_directory: Path,
    release: str,
    out: BinaryIO,
    progress: Progress,
    root: Path,
    modules: Collection[str] | None,
) -> Collected:
    build_id = check_build_directory(build_directory, release, root)
    source = build_directory / "source"
    facts = Facts(
        release=release,
        build_id=build_id,
        version=_text(root / "proc/version").strip(),
        build_directory=_seen_by_host(build_directory, root),
        source_directory=_seen_by_host(source if source.is_dir() else build_directory, root),
    )
    job = _Collector(build_directory, root, facts, progress)
    packer = _Packer(out)
    members = job.members(modules)
    for number, name in enumerate(sorted(members, key=str.encode)):
        progress.step(f"sending {name}" if name == "vmlinux" else "packing the kernel", number / len(members))
        with members[name].opened() as (data, size, chunks):
            archive.write_member(packer.write, name, size, chunks)
            del data
    archive.write_end(packer.write)
    packer.close()
    return Collected(
        sha256=packer.sha256.hexdigest(),
        size=packer.size,
        facts=facts,
        members=tuple(sorted(members, key=str.encode)),
    )


def _seen_by_host(path: Path, root: Path) -> str:
    path = path.resolve()
    return "/" + str(path.relative_to(root.resolve())) if path.is_relative_to(root.resolve()) else str(path)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(64 * 1024).decode(errors="replace")
    except OSError:
        return ""


class _Packer:
    """Compresses what is written to it, and digests what comes out."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._xz = lzma.LZMACompressor(format=lzma.FORMAT_XZ, preset=archive.PRESET)
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        self._pass_on(self._xz.compress(data))

    def close(self) -> None:
        self._pass_on(self._xz.flush())

    def _pass_on(self, data: bytes) -> None:
        self._out.write(data)
        self.sha256.update(data)
        self.size += len(data)


Content = tuple[Buffer, int, Iterator[bytes]]


@dataclass(frozen=True)
class _Member:
    """A member to be: bytes that are there, a file as it is, or an ELF file to be slimmed, perhaps compressed."""

    data: bytes | None = None
    file: Path | None = None
    elf: bool = False

    @contextlib.contextmanager
    def opened(self) -> Generator[Content]:
        if self.file is None:
            data = self.data or b""
            yield data, len(data), iter([data])
        elif not self.elf:
            with self.file.open("rb") as stream:
                size = self.file.stat().st_size
                yield b"", size, iter(lambda: stream.read(_MB), b"")
        else:
            with _elf_data(self.file) as data:
                plan = slim(data, str(self.file))
                yield data, plan.size, plan.chunks()


@contextlib.contextmanager
def _elf_data(path: Path) -> Generator[Buffer]:
    if path.suffix in (".xz", ".gz", ".zst"):
        yield _decompressed(path)
    elif path.stat().st_size == 0:
        raise InvalidInputError(f"{path} is empty.")
    else:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def _decompressed(path: Path) -> bytes:
    """A module as the kernel gets it (scripts/Makefile.modinst: xz, gzip or zstd)."""
    try:
        if path.suffix == ".xz":
            data = lzma.LZMADecompressor().decompress(path.read_bytes(), _MODULE_LIMIT + 1)
        elif path.suffix == ".gz":
            data = zlib.decompressobj(wbits=31).decompress(path.read_bytes(), _MODULE_LIMIT + 1)
        else:
            with tempfile.TemporaryDirectory(prefix="elivepatch-") as scratch:
                plain = Path(scratch) / "module"
                process.run(["zstd", "--decompress", "--stdout", "--quiet", path], stdout=plain)
                data = plain.read_bytes()
    except (lzma.LZMAError, zlib.error) as error:
        raise InvalidInputError(f"The module {path} is damaged: {error}.", hint="Install the modules again.") from error
    if len(data) > _MODULE_LIMIT:
        raise InputTooLargeError(f"The module {path} is larger than {_MODULE_LIMIT // _MB} MB.")
    return data


@dataclass(frozen=True)
class _Collector:
    build: Path
    root: Path
    facts: Facts
    progress: Progress

    def members(self, modules: Collection[str] | None) -> dict[str, _Member]:
        found = {
            ".config": _Member(data=self._configuration()),
            "facts.json": _Member(data=self.facts.as_json()),
            "vmlinux": _Member(file=self.build / "vmlinux", elf=True),
        }
        if (self.build / "Module.symvers").is_file():
            found["Module.symvers"] = _Member(file=self.build / "Module.symvers")
        if (boots := self._vmlinuz()) is not None:
            found["vmlinuz"] = _Member(file=boots)
        if units := self._units():
            found["units"] = _Member(data="".join(f"{unit}\n" for unit in units).encode())
        for name in archive.LISTS:
            if (self._installed / name).is_file():
                found[name] = _Member(file=self._installed / name)
        found.update(self._modules(modules))
        return found

    @property
    def _installed(self) -> Path:
        return self.root / "lib/modules" / self.facts.release

    def _configuration(self) -> bytes:
        """That of the running kernel if it tells, and that of the build otherwise."""
        for place in (self.root / "proc/config.gz", self.build / ".config"):
            if place.is_file():
                return read_configuration(place, limit_bytes=_TEXT_LIMIT).data
        raise KernelUnavailableError(
            f"{self.build} holds no .config, and the running kernel has no /proc/config.gz.",
            hint=f"Copy the configuration of {self.facts.release} there.",
        )

    def _vmlinuz(self) -> Path | None:
        """The image that boots, if it is that of the running kernel."""
        places = [self.root / f"boot/vmlinuz-{self.facts.release}", self.root / f"boot/kernel-{self.facts.release}"]
        places += [self._installed / "vmlinuz", self.build / "arch/x86/boot/bzImage"]
        for place in places:
            if place.is_file():
                try:
                    check_vmlinuz(place, self.facts.release, self.facts.version)
                except InvalidInputError as error:
                    self.progress.step(f"not used: {error.message}")
                else:
                    return place
        return None

    def _units(self) -> list[str]:
        units = {unit for unit in compile_units(self.build / "vmlinux") if unit.isprintable()}
        if not units:
            top = self.build / "source"
            source = top.resolve() if top.is_dir() else self.build
            for obj in objects_of_vmlinux(self.build):
                units.add(source_of(obj, self.build, source) or obj)
        return sorted(units)

    def _modules(self, wanted: Collection[str] | None) -> dict[str, _Member]:
        found: dict[str, _Member] = {}
        names = None if wanted is None else {name.replace("-", "_") for name in wanted}
        seen: set[str] = set()
        top = self._installed
        for path in sorted((top / "kernel").rglob("*.ko*")) if (top / "kernel").is_dir() else []:
            if not path.name.endswith(_SUFFIXES) or not path.is_file():
                continue
            known = module_name(path.name)
            if names is not None and known not in names:
                continue
            seen.add(known)
            inside = path.relative_to(top).with_name(path.name.partition(".ko")[0] + ".ko")
            name = f"modules/{inside}"
            if not archive.allowed(name):
                raise InvalidInputError(f"The module {path} has a name that cannot be sent.")
            found[name] = _Member(file=self._module(path, self.build / inside.relative_to("kernel")), elf=True)
        if names is not None and (missing := sorted(names - seen)):
            raise NotFoundError(
                f"{', '.join(missing)}: no such module in {top}/kernel.",
                hint="Name modules as 'lsmod' does; what is built into the kernel is part of vmlinux.",
            )
        return found

    def _module(self, installed: Path, built: Path) -> Path:
        """The file to send: that of the build, which has the full symbol table, if it is what is installed."""
        if not built.is_file():
            return installed
        with _elf_data(installed) as one, _elf_data(built) as two:
            same = elf_build_id(one, read_sections(one, str(installed)))
            if same is not None and same == elf_build_id(two, read_sections(two, str(built))):
                return built
        self.progress.step(f"{built} is not what is installed: {installed} is sent, which may lack local symbols")
        return installed
