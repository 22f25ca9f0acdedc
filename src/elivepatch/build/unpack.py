# SPDX-License-Identifier: GPL-2.0-or-later
"""Taking Debian's packages apart into the layers and facts of a prepared kernel.

What is in which package: engineering facts of Debian's ``linux`` source package (linux-image, linux-headers,
linux-kbuild, linux-source, and the -dbg package).
"""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
import shutil
import struct
import tarfile
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from elivepatch.build.store import remove_tree
from elivepatch.errors import InternalError, KernelUnavailableError
from elivepatch.kernel.elf import STT_FILE, Symbol, readelf_symbols, unpack_symbols
from elivepatch.kernel.units import compile_units
from elivepatch.process import run
from elivepatch.progress import Progress
from elivepatch.sources.linux_source import unpack_package
from elivepatch.sources.provider import KernelFiles
from elivepatch.toolchains.roots import Root
from elivepatch.toolchains.sandbox import JOB, Sandbox, give_to_sandbox, sandbox_owner


def source(package: Path, work: Path, progress: Progress) -> None:
    """Unpack the source that a linux-source package holds into a directory, as the sandbox's owner."""
    unpack_package(package, work, progress)
    own(work)


def own(top: Path) -> None:
    """Give a whole layer to the sandbox's owner: what overlayfs copies up keeps its owner."""
    if os.geteuid() == 0:
        user, group = sandbox_owner()
        run(["chown", "-R", "-h", f"{user}:{group}", top], timeout=600)


def products(headers: Path, kbuild: Path, target: Path) -> None:
    """The layer of configuration, generated headers and host tools, from the headers and kbuild packages."""
    with TemporaryDirectory(prefix=".deb.", dir=target.parent) as scratch:
        for package in (headers, kbuild):
            run(["dpkg-deb", "--extract", package, scratch], timeout=600)
        trees = [path for path in Path(scratch).glob("usr/src/linux-headers-*") if (path / ".config").exists()]
        tools = sorted(Path(scratch).glob("usr/lib/linux-kbuild-*"))
        if len(trees) != 1 or len(tools) != 1:
            raise KernelUnavailableError(f"{headers.name} and {kbuild.name} do not hold what Debian's packages hold.")
        trees[0].rename(target)
        for name in ("vmlinux", "Makefile", "scripts", "tools"):
            # what the package calls vmlinux holds BTF only; Makefile, scripts and tools lead into the system
            _remove(target / name)
        for name in ("scripts", "tools"):
            (tools[0] / name).rename(target / name)
    settle_configuration(target)
    own(target)


def settle_configuration(layer: Path) -> None:
    """Keep kbuild from making the configuration of a layer anew.

    It does so when .config or a Kconfig file is newer than auto.conf, and in a root without one of the tools that the
    configuration asks for (rustc) the result is another. So auto.conf is the newest, and depends on nothing.
    """
    (layer / "include/config/auto.conf.cmd").write_text("")
    later = time.time() + 1
    for name in ("include/config/auto.conf.cmd", "include/config/auto.conf", "include/generated/autoconf.h"):
        os.utime(layer / name, (later, later))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def make_variables(products_layer: Path) -> dict[str, str]:
    """CROSS_COMPILE and CC as Debian's makers set them, from ``.kernelvariables``."""
    text = (products_layer / ".kernelvariables").read_text()
    # literal only: in 6.1 it is set for cross builds, to a variable of the package's build
    cross = re.search(r"^override CROSS_COMPILE = ([a-z0-9_-]+)$", text, re.MULTILINE)
    compiler = re.search(r"^CC = .*\$\(CROSS_COMPILE\)(\S+)$", text, re.MULTILINE)
    if compiler is None:
        raise InternalError(f"The headers' .kernelvariables name no compiler: {text[:500]}")
    prefix = cross[1] if cross else ""
    return {"CROSS_COMPILE": prefix, "CC": f"{prefix}{compiler[1]}"}


def image(files: KernelFiles, work: Path, root: Root, progress: Progress) -> str:
    """Fill ``image``, ``modules`` and ``symbols`` from the image and debug packages; gives the name of the vmlinux."""
    target = work / "image"
    target.mkdir()
    with TemporaryDirectory(prefix=".deb.", dir=work) as scratch:
        for package in files.images:
            run(["dpkg-deb", "--extract", files.path(package), scratch], timeout=600)
        modules = [path for path in Path(scratch).glob("*/lib/modules/*") if (path / "kernel").is_dir()]
        modules += [path for path in Path(scratch).glob("lib/modules/*") if (path / "kernel").is_dir()]
        if len(modules) != 1:
            raise KernelUnavailableError(f"{files.images[-1].file} does not hold what Debian's packages hold.")
        for name in ("vmlinuz", "config"):
            # up to 6.x in /boot; later beside the modules, from where a hook of the package copies them
            found = [*Path(scratch).glob(f"boot/{name}-*"), *modules[0].glob(name)]
            if len(found) != 1:
                raise KernelUnavailableError(f"{files.images[0].file} and what belongs to it hold no {name}.")
            found[0].rename(target / name)
        modules[0].rename(work / "modules")
    with ThreadPoolExecutor(1) as beside, TemporaryDirectory(prefix=".deb.", dir=work) as scratch:
        packed = beside.submit(pack_modules, work / "modules")
        Path(scratch).chmod(0o755)
        archive = Path(scratch) / "debug.tar"
        strip = Path(scratch) / "strip"
        strip.mkdir()
        give_to_sandbox(strip)
        progress.step(f"taking {files.debug.file} apart")
        run(["dpkg-deb", "--fsys-tarfile", files.path(files.debug)], stdout=archive, timeout=1800)
        name = _debug_files(archive, strip, work / "symbols")
        units = compile_units(strip / "vmlinux.debug")
        if not units:
            raise KernelUnavailableError(
                f"{files.debug.file} does not say from which files vmlinux was made.",
                hint="Debug information that is compressed, or of another format than DWARF 4 or 5, cannot be read.",
            )
        (target / "units.json").write_text(json.dumps(in_tree(units)))
        Sandbox(root.path, job=strip).run(
            [
                "objcopy",
                "--strip-debug",
                "--keep-file-symbols",
                f"{JOB}/vmlinux.debug",
                f"{JOB}/vmlinux",
            ]
        )
        # two fifths of an image are zeros between its sections, which a sparse file does not keep
        run(["cp", "--sparse=always", strip / "vmlinux", target / "vmlinux"])
        packed.result()
    with (target / "vmlinux").open("rb") as stream:
        tables = raw_tables(memoryview(stream.read()))
    listing = readelf_symbols(tables.symtab, tables.strtab).encode()
    (target / "vmlinux.symtab.gz").write_bytes(gzip.compress(listing, 6, mtime=0))
    return name


def in_tree(units: Sequence[str]) -> list[str]:
    """The compile units by their paths in the tree, wherever the tree lay when it was built.

    Debian builds its rt flavour in a directory below the top (``debian/build/source_rt/init/main.c``), and names what
    it assembles by its absolute path.
    """
    anchor = "init/main.c"
    tops = sorted((unit.removesuffix(anchor) for unit in units if unit.endswith(f"/{anchor}")), key=len)
    found: list[str] = []
    for unit in units:
        top = next((top for top in tops if unit.startswith(top)), "")
        found.append(unit.removeprefix(top))
    return found


def _debug_files(archive: Path, target: Path, symbols: Path) -> str:
    """Take vmlinux and the symbol tables of all modules out of the debug package."""
    symbols.mkdir()
    vmlinux = ""
    with tarfile.open(archive) as tar, archive.open("rb") as stream:
        for member in tar:
            if not member.isreg():
                continue
            name = Path(member.name).name
            if name == "vmlinux" or name.startswith("vmlinux-"):
                with tar.extractfile(member) or _missing(name) as data, (target / "vmlinux.debug").open("wb") as out:
                    shutil.copyfileobj(data, out, 1024 * 1024)
                vmlinux = name
            elif name.endswith((".ko", ".ko.debug")):
                stream.seek(member.offset_data)
                tables = raw_tables(memoryview(stream.read(member.size)))
                write_symbols(symbols / f"{module_name(name)}.z", tables)
    if not vmlinux:
        raise KernelUnavailableError(f"{archive.name} of the debug package holds no vmlinux.")
    return vmlinux


def _missing(name: str) -> tarfile.ExFileObject:
    raise InternalError(f"{name} cannot be read from the debug package.")


# -- modules


def pack_modules(directory: Path) -> None:
    """Compress the modules that are shipped uncompressed, as later kernels ship them: they are most of what is kept.

    The lowest level: a fifth is left, and higher ones take three times as long for a twentieth less.
    """
    for path in directory.rglob("*.ko"):
        packed = path.with_name(f"{path.name}.xz")
        packed.write_bytes(lzma.compress(path.read_bytes(), check=lzma.CHECK_CRC32, preset=0))
        path.unlink()


def module_name(file: str) -> str:
    """The name the kernel knows a module by: without directory and suffixes, ``-`` as ``_``."""
    return re.sub(r"\.ko(\.debug|\.xz|\.zst|\.gz)?$", "", Path(file).name).replace("-", "_")


def module_names(directory: Path) -> dict[str, str]:
    """The shipped modules: name to path below the directory."""
    paths = sorted(path for path in directory.rglob("*.ko*") if path.is_file())
    return {module_name(path.name): str(path.relative_to(directory)) for path in paths}


@dataclass(frozen=True)
class RawTables:
    """The section names of an ELF file by index, and its symbol table as it stands there."""

    sections: Sequence[str]
    symtab: bytes
    strtab: bytes


def raw_tables(view: memoryview) -> RawTables:
    """Section names and symbol table of a 64-bit little-endian ELF file (gABI chapter 4); fast, for 1000 modules."""
    if bytes(view[:6]) != b"\x7fELF\x02\x01":
        raise InternalError("A debug file is not a 64-bit ELF file.")
    (offset,) = struct.unpack_from("<Q", view, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", view, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", view, offset + index * size) for index in range(count)]

    def content(header: tuple[int, ...]) -> bytes:
        return bytes(view[header[4] : header[4] + header[5]])

    names = content(headers[names_index])
    sections = [names[header[0] : names.index(b"\0", header[0])].decode() for header in headers]
    for header in headers:
        if header[1] == 2:  # SHT_SYMTAB, its strings are at sh_link
            return RawTables(sections, content(header), content(headers[header[6]]))
    return RawTables(sections, b"", b"\0")


@dataclass(frozen=True)
class ModuleSymbols:
    """The full symbol table of a module; section indices are those of its debug file, ``sections`` has their names."""

    sections: Sequence[str]
    symtab: bytes
    strtab: bytes

    def symbols(self) -> list[Symbol]:
        """The symbols, without FILE ones."""
        return [symbol for symbol in unpack_symbols(self.symtab, self.strtab) if symbol.type != STT_FILE]

    def readelf(self) -> str:
        """The table in the form of readelf."""
        return readelf_symbols(self.symtab, self.strtab)


def write_symbols(path: Path, tables: RawTables) -> None:
    """Write a symbol table, compressed."""
    names = "\n".join(tables.sections).encode()
    head = struct.pack("<III", len(names), len(tables.symtab), len(tables.strtab))
    path.write_bytes(zlib.compress(head + names + tables.symtab + tables.strtab, 6))


def read_symbols(path: Path) -> ModuleSymbols:
    """Read what `write_symbols` wrote."""
    data = zlib.decompress(path.read_bytes())
    names, symtab, strtab = struct.unpack_from("<III", data)
    at = 12
    return ModuleSymbols(
        data[at : at + names].decode().split("\n"),
        data[at + names : at + names + symtab],
        data[at + names + symtab : at + names + symtab + strtab],
    )
