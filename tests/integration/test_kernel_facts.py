# SPDX-License-Identifier: GPL-2.0-or-later
"""Image facts of a published kernel: what it exports, and a host made of it whose kernel is sent and taken in."""

from __future__ import annotations

import lzma
import shutil
from pathlib import Path, PurePosixPath

import pytest

from elivepatch import process
from elivepatch.build.prepared import PreparedKernel
from elivepatch.kernel.archive_reader import KernelArchive, read_archive
from elivepatch.kernel.build_directory import collect, find_build_directory
from elivepatch.kernel.elf import ElfImage
from elivepatch.kernel.exports import exports_of_image, exports_of_module, module_owner
from elivepatch.kernel.layout import from_vmlinux
from elivepatch.kernel.sections import ET_EXEC, ET_REL
from elivepatch.kernel.slim import slim
from elivepatch.kernel.thin_archive import objects_of_vmlinux, source_of
from elivepatch.kernel.units import compile_units
from elivepatch.progress import Progress
from elivepatch.toolchains.sandbox import JOB, Sandbox, give_to_sandbox

pytestmark = pytest.mark.integration


def module_data(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


# -- exports


def published(kernel: PreparedKernel, owner: str) -> set[str]:
    lines = kernel.symvers.read_text().splitlines()
    return {line for line in lines if line.split("\t")[2] == owner}


def test_exports_of_the_image_are_those_published(kernel: PreparedKernel) -> None:
    with ElfImage(kernel.vmlinux) as image:
        exports = exports_of_image(image)
    assert {export.line() for export in exports} == published(kernel, "vmlinux")
    assert len(exports) > 5000


@pytest.mark.parametrize("name", ["dm_mod", "nf_tables", "libcrc32c"])
def test_exports_of_a_module_are_those_published(kernel: PreparedKernel, name: str) -> None:
    owner = module_owner(PurePosixPath(kernel.modules[name]))
    with ElfImage(module_data(kernel.module_path(name))) as module:
        exports = exports_of_module(module, owner)
    assert {export.line() for export in exports} == published(kernel, owner)
    assert exports


# -- sending a kernel

MODULES = ("dm_mod", "nf_tables")


@pytest.fixture(scope="module")
def taken(kernel: PreparedKernel, tmp_path_factory: pytest.TempPathFactory) -> KernelArchive:
    """A host that runs this kernel, its build directory made of what is published; what was sent of it, taken in."""
    work = tmp_path_factory.mktemp("host")
    root, build = work / "root", work / "root/usr/src/linux"
    for place in (build, root / "sys/kernel", root / "proc", root / "boot"):
        place.mkdir(parents=True)
    shutil.copy(kernel.vmlinux, build / "vmlinux")
    shutil.copy(kernel.symvers, build / "Module.symvers")
    shutil.copy(kernel.path / "image/config", build / ".config")
    shutil.copy(kernel.vmlinuz, root / f"boot/vmlinuz-{kernel.release}")
    installed = root / "lib/modules" / kernel.release
    for name in MODULES:
        target = installed / kernel.modules[name]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(kernel.module_path(name), target)
    (installed / "build").symlink_to("/usr/src/linux-headers")  # leads out of this host: the next place is asked
    with ElfImage(kernel.vmlinux) as image:
        (root / "sys/kernel/notes").write_bytes(image.data_of(".notes"))
    head = kernel.vmlinuz.read_bytes()[:0x10000]
    at = int.from_bytes(head[0x20E:0x210], "little") + 0x200
    number = head[at : head.index(b"\0", at)].decode().partition("#")[2]
    (root / "proc/version").write_text(f"Linux version {kernel.release} (a@b) (gcc 14, GNU ld 2.44) #{number}\n")
    assert find_build_directory(kernel.release, root) == build
    with (work / "sent").open("wb") as out:
        sent = collect(build, kernel.release, out, Progress(), root=root)
    (work / "taken").mkdir()
    archive = read_archive(work / "sent", work / "taken")
    assert (archive.sha256, archive.size) == (sent.sha256, sent.size)
    return archive


def test_what_was_taken_in_is_that_kernel(taken: KernelArchive, kernel: PreparedKernel) -> None:
    assert taken.facts.build_id == kernel.build_id
    assert set(taken.modules) == set(MODULES)
    assert taken.vmlinuz is not None
    assert taken.vmlinuz.read_bytes() == kernel.vmlinuz.read_bytes()
    with ElfImage(taken.vmlinux) as ours, ElfImage(kernel.vmlinux) as theirs:
        assert ours.build_id() == kernel.build_id
        for name in (".text", ".rodata", ".data", ".symtab", ".strtab", ".BTF", ".orc_unwind"):
            assert ours.data_of(name) == theirs.data_of(name) != b""
    assert from_vmlinux(taken.vmlinux).digest() == from_vmlinux(kernel.vmlinux).digest()


def test_its_modules_are_those_installed(taken: KernelArchive, kernel: PreparedKernel) -> None:
    for name in MODULES:
        with ElfImage(taken.modules[name]) as ours, ElfImage(module_data(kernel.module_path(name))) as theirs:
            for section in theirs.sections:
                mine = ours.sections[section.index]
                assert (mine.name, mine.type, mine.size) == (section.name, section.type, section.size)
                assert ours.data(mine) == theirs.data(section)
            assert ours.symbol_table() == theirs.symbol_table()


def test_binutils_read_what_was_taken_in(taken: KernelArchive, tmp_path: Path) -> None:
    process.run(["objcopy", "--strip-debug", "--keep-file-symbols", taken.vmlinux, tmp_path / "stripped"])
    with ElfImage(taken.vmlinux) as ours, ElfImage(tmp_path / "stripped") as theirs:
        assert theirs.data_of(".text") == ours.data_of(".text")
    for path in (taken.vmlinux, *taken.modules.values()):
        done = process.run(["readelf", "--sections", "--segments", "--notes", "--wide", path])
        assert done.stderr == ""


# -- objects and programs with DWARF, from the compiler

SOURCE = """\
static volatile int number = 40;
static __attribute__((noinline)) int add(int a) { return a + number; }
int main_value(void) { return add(2); }
void _start(void) { int status = main_value(); __asm__ volatile("syscall" :: "a"(60), "D"(status)); __builtin_trap(); }
"""


@pytest.fixture(scope="module")
def built(kernel: PreparedKernel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An object, a static program with its relocations left in, and thin archives of objects in a directory."""
    job = tmp_path_factory.mktemp("built") / "job"
    for name in ("init", "lib"):
        (job / name).mkdir(parents=True)
    (job / "init/main.c").write_text(SOURCE)
    (job / "lib/a-rather-long-name-of-a-file.c").write_text("int long_name(void) { return 1; }\n")
    for place in (job, job / "init", job / "lib"):
        give_to_sandbox(place)
    compiler = kernel.variables["CC"]
    sandbox = Sandbox(kernel.root.path, job=job)
    for source in ("init/main.c", "lib/a-rather-long-name-of-a-file.c"):
        target = source.replace(".c", ".o")
        sandbox.run([compiler, "-g3", "-O2", "-fno-pie", "-c", "-o", target, source], cwd=JOB)
    program = ["-static", "-nostdlib", "-no-pie", "-Wl,--emit-relocs,--build-id", "-o", "vmlinux", "init/main.o"]
    sandbox.run([compiler, *program], cwd=JOB)
    sandbox.run(["ar", "cDPrST", "init/built-in.a", "init/main.o"], cwd=JOB)
    sandbox.run(["ar", "cDPrST", "lib/built-in.a", "lib/a-rather-long-name-of-a-file.o"], cwd=JOB)
    sandbox.run(["ar", "cDPrST", "vmlinux.a", "init/built-in.a", "lib/built-in.a"], cwd=JOB)
    return job


def slimmed(path: Path, target: Path) -> Path:
    data = path.read_bytes()
    plan = slim(data, str(path))
    target.write_bytes(b"".join(plan.chunks()))
    assert target.stat().st_size == plan.size < len(data)
    return target


def test_a_program_without_its_dwarf_still_runs(built: Path, tmp_path: Path) -> None:
    program = slimmed(built / "vmlinux", tmp_path / "program")
    program.chmod(0o755)
    assert process.run([built / "vmlinux"], check=False).returncode == 42
    assert process.run([program], check=False).returncode == 42
    assert compile_units(built / "vmlinux") == ["init/main.c"]
    assert compile_units(program) == []
    with ElfImage(program) as ours, ElfImage(built / "vmlinux") as theirs:
        assert ours.symbols() == theirs.symbols()
        assert ours.build_id() == theirs.build_id() is not None
        assert theirs.data_of(".rela.text")
        assert not ours.data_of(".rela.text")
        assert not any(ours.data(section) for section in ours.sections if section.name.startswith(".debug"))
    assert int.from_bytes(program.read_bytes()[16:18], "little") == ET_EXEC


def test_an_object_without_its_dwarf_still_links(built: Path, kernel: PreparedKernel, tmp_path: Path) -> None:
    obj = slimmed(built / "init/main.o", tmp_path / "main.o")
    assert int.from_bytes(obj.read_bytes()[16:18], "little") == ET_REL
    process.run(["ld", "-static", "-o", tmp_path / "program", obj])
    assert process.run([tmp_path / "program"], check=False).returncode == 42
    again = slim(obj.read_bytes(), "again")
    assert b"".join(again.chunks()) == obj.read_bytes()


def test_thin_archives_name_the_objects(built: Path) -> None:
    objects = ["init/main.o", "lib/a-rather-long-name-of-a-file.o"]
    assert objects_of_vmlinux(built) == objects
    assert [source_of(obj, built, built) for obj in objects] == ["init/main.c", "lib/a-rather-long-name-of-a-file.c"]
    (built / "vmlinux.a").unlink()
    assert objects_of_vmlinux(built) == objects
