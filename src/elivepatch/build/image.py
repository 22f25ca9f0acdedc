# SPDX-License-Identifier: GPL-2.0-or-later
"""The image of a kernel that nobody publishes: vmlinux, its symbols and compile units, and its modules.

It is taken from a build of ours, or from files that its host sent or a debuginfod server has. Such files are read with
the root's binutils in the sandbox, or by readers that check what they read.
"""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from elivepatch.build import unpack
from elivepatch.errors import InvalidInputError, KernelUnavailableError
from elivepatch.kernel.compressed import read_module
from elivepatch.kernel.elf import ElfImage, file_names, readelf_symbols
from elivepatch.kernel.units import compile_units
from elivepatch.process import run
from elivepatch.progress import Progress
from elivepatch.toolchains.roots import Root
from elivepatch.toolchains.sandbox import JOB, Limits, Sandbox, give_to_sandbox

#: vmlinux with all of its debug information is a gigabyte, and objcopy holds it.
_LIMITS = Limits(memory_bytes=8 * 1024**3, total_memory_bytes=8 * 1024**3, file_bytes=4 * 1024**3)
_LIBRARIES = ("lib/lib.a", "arch/x86/lib/lib.a")
#: Code of its own, linked or copied into the image as data.
_NOT_LINKED = ("arch/x86/boot/", "arch/x86/realmode/", "arch/x86/entry/vdso/", "arch/x86/purgatory/", "usr/")
_NO_KERNEL_CODE = ("Documentation", "rust", "samples", "scripts", "tools")


@dataclass(frozen=True)
class HostImage:
    """Files of a kernel that was built elsewhere.

    ``kind`` is how they came here, ``digest`` a digest of all of them. Where ``symvers`` is None, the image itself says
    what it exports. ``modules`` is a directory as below ``/lib/modules/RELEASE``; ``units`` are the source files that
    vmlinux was made from, where that is known better than from its debug information.
    """

    kind: Literal["uploaded", "debuginfod"]
    digest: str
    vmlinux: Path
    symvers: Path | None = None
    vmlinuz: Path | None = None
    modules: Path | None = None
    units: Sequence[str] = field(default=(), repr=False)
    config: Path | None = None


@dataclass(frozen=True)
class Image:
    """What is known of an image beside its files: the source files that vmlinux was made from."""

    units: Sequence[str]


def take(given: HostImage, root: Root, source: Path, work: Path, progress: Progress) -> Image:
    """Fill ``image``, ``modules`` and ``symbols`` of an entry from the files of a host.

    Without debug information an image names its files without their directories, or not at all. Then each file of
    ``source`` that has one of these names, or each file there is, is taken for a unit: the proof tells which of them
    really is.
    """
    progress.step("reading the host's image")
    target = work / "image"
    target.mkdir()
    job = work / ".image"
    job.mkdir()
    give_to_sandbox(job)
    units = list(given.units)
    check_image(given.vmlinux)
    if not units:
        units = unpack.in_tree(compile_units(given.vmlinux))
    shutil.copyfile(given.vmlinux, job / "given")
    _strip(Sandbox(root.path, job=job, limits=_LIMITS), f"{JOB}/given", job, target / "vmlinux")
    shutil.rmtree(job)
    names = _describe(target)
    if not units:
        units = _named(source, names) if names else _possible(source)
    if given.vmlinuz is not None:
        shutil.copyfile(given.vmlinuz, target / "vmlinuz")
    (work / "symbols").mkdir()
    (work / "modules/kernel").mkdir(parents=True)
    if given.modules is not None:
        shutil.copytree(given.modules, work / "modules", dirs_exist_ok=True)
        for name, path in unpack.module_names(work / "modules").items():
            _symbols(work / "modules" / path, work / "symbols" / f"{name}.z")
    return Image(units)


def of_build(sandbox: Sandbox, built: Path, work: Path, progress: Progress) -> Image:
    """Fill ``image``, ``modules`` and ``symbols`` of an entry from a build; ``built`` is what make wrote."""
    progress.step("taking the image out of the build")
    target = work / "image"
    target.mkdir()
    job = sandbox.job
    if job is None or not (built / "vmlinux").is_file() or not (built / "arch/x86/boot/bzImage").is_file():
        raise KernelUnavailableError("The build made no vmlinux and no bzImage.", hint="Only x86-64 kernels are built.")
    units = _built_units(sandbox, built)
    _strip(sandbox, "vmlinux", job, target / "vmlinux")
    _describe(target)
    shutil.copyfile(built / "arch/x86/boot/bzImage", target / "vmlinuz")
    modules, symbols = work / "modules", work / "symbols"
    (modules / "kernel").mkdir(parents=True)
    symbols.mkdir()
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        if (built / name).is_file():
            shutil.copyfile(built / name, modules / name)
    for path in _module_files(built):
        _symbols(built / path, symbols / f"{unpack.module_name(path.name)}.z")
        place = modules / "kernel" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        _strip(sandbox, str(path), job, place)
    return Image(units)


def _built_units(sandbox: Sandbox, built: Path) -> list[str]:
    """The source files of the objects that went into vmlinux, from the archives that it was linked from."""
    archives = [name for name in ("vmlinux.a", *_LIBRARIES) if (built / name).is_file()]
    if "vmlinux.a" not in archives:
        raise KernelUnavailableError(
            "The build left no vmlinux.a, which says what vmlinux was made from.", hint="Linux 6.1 or newer is needed."
        )
    listed = sandbox.run(["sh", "-c", 'for archive; do ar t "$archive" || exit; done', "units", *archives]).stdout
    lower = sandbox.tree.lower if sandbox.tree is not None else ()
    units: list[str] = []
    for line in dict.fromkeys(listed.splitlines()):
        stem = line.removesuffix(".o")
        for archive in _LIBRARIES:  # members of a plain archive have no directory
            if "/" not in stem and archive in archives and (built / Path(archive).parent / line).is_file():
                stem = f"{PurePosixPath(archive).parent}/{stem}"
                break
        unit = next(
            (f"{stem}{end}" for end in (".c", ".S") if any((top / f"{stem}{end}").exists() for top in lower)), None
        )
        if unit is not None and not unit.startswith(_NOT_LINKED):
            units.append(unit)
    return units


def _module_files(built: Path) -> list[Path]:
    order = built / "modules.order"
    if not order.is_file():
        return []
    # objects since 6.3, modules before
    return [Path(line).with_suffix(".ko") for line in dict.fromkeys(order.read_text().splitlines()) if line]


def _strip(sandbox: Sandbox, inside: str, job: Path, target: Path) -> None:
    """A copy without debug information."""
    sandbox.run(["objcopy", "--strip-debug", "--keep-file-symbols", inside, f"{JOB}/stripped"])
    # two fifths of an image are zeros between its sections, which a sparse file does not keep
    run(["cp", "--sparse=always", "--no-preserve=mode,ownership", job / "stripped", target])
    (job / "stripped").unlink()


def _describe(target: Path) -> list[str]:
    """Write the symbol table beside vmlinux, and give the names of its files."""
    with (target / "vmlinux").open("rb") as stream:
        tables = unpack.raw_tables(memoryview(stream.read()))
    listing = readelf_symbols(tables.symtab, tables.strtab).encode()
    (target / "vmlinux.symtab.gz").write_bytes(gzip.compress(listing, 6, mtime=0))
    return sorted(name for name in file_names(tables.symtab, tables.strtab) if name.endswith((".c", ".S")))


def _named(source: Path, names: Sequence[str]) -> list[str]:
    wanted = set(names)
    found: list[str] = []
    for base, _, files in os.walk(source):
        found += [str((Path(base) / file).relative_to(source)) for file in wanted.intersection(files)]
    return sorted(found)


def _possible(source: Path) -> list[str]:
    """What an image may be made of that names no file at all, as one that was linked without debug information."""
    found: list[str] = []
    for base, directories, files in os.walk(source):
        inside = Path(base).relative_to(source)
        if inside == Path():
            directories[:] = [name for name in directories if name not in _NO_KERNEL_CODE]
        elif inside == Path("arch"):
            directories[:] = ["x86"]
        found += [str(inside / file) for file in files if file.endswith((".c", ".S"))]
    return sorted(unit for unit in found if not unit.startswith(_NOT_LINKED))


def _symbols(module: Path, target: Path) -> None:
    unpack.write_symbols(target, unpack.raw_tables(memoryview(read_module(module))))


def check_image(path: Path) -> None:
    """Raise InvalidInputError for what is no image of a kernel, with symbols and a build ID."""
    with ElfImage(path) as image:
        if image.section("__ex_table") is None:  # where each kernel looks faults up
            raise InvalidInputError(
                f"{path.name} is not the image of a Linux kernel: it has no section __ex_table.",
                hint="Name vmlinux of the directory that the kernel was built in.",
            )
        if image.build_id() is None:
            raise InvalidInputError(
                f"{path.name} has no build ID.", hint="Link it with --build-id, as the kernel's makefile does."
            )
        if image.section(".symtab") is None:
            raise InvalidInputError(
                f"{path.name} has no symbol table.", hint="Give the vmlinux of the build itself, not a stripped one."
            )
