# SPDX-License-Identifier: GPL-2.0-or-later
"""Collecting a self-built kernel on a host made of plain files, and taking in what was sent: the good and the bad."""

from __future__ import annotations

import errno
import gzip
import io
import json
import lzma
import os
import re
import struct
import sys
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elf_builder import ALLOC, EXEC, FILE, FUNC, GLOBAL, NOTE, NOTYPE, Part, Sym, elf, note
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
from elivepatch.kernel.archive import Facts, allowed, header, write_end, write_member
from elivepatch.kernel.archive_reader import KernelArchive, Limits, read_archive
from elivepatch.kernel.build_directory import Collected, collect, find_build_directory
from elivepatch.kernel.elf import ElfImage
from elivepatch.progress import Progress

RELEASE = "6.12.60-own"
NUMBER = "#3 SMP Mon Nov 2 10:00:00 2026"
VERSION = f"Linux version {RELEASE} (me@here) (gcc (Debian 14.2.0-19) 14.2.0, GNU ld 2.44) {NUMBER}"
BUILD_ID = bytes(range(20))
CONFIG = b"# Linux/x86 6.12.60\nCONFIG_LIVEPATCH=y\n"
SYMVERS = b"0x12345678\tprintk\tvmlinux\tEXPORT_SYMBOL\t\n0x00000001\tf\tfs/xfs/xfs\tEXPORT_SYMBOL_GPL\tXFS\n"


def executable(data: bytes) -> bytes:
    """The ELF file as a linked one: e_type is ET_EXEC."""
    return data[:16] + struct.pack("<H", 2) + data[18:]


def vmlinux(build_id: bytes = BUILD_ID, *, debug: bytes = b"d" * 5000) -> bytes:
    parts = [
        Part(".text", b"\x90" * 4096, ALLOC | EXEC, address=0xFFFFFFFF81000000, relocations=[(0, 2, 2, 0)]),
        Part(".notes", note(b"GNU\0", 3, build_id), ALLOC, NOTE, address=0xFFFFFFFF81001000),
        Part(".debug_info", debug, 0, relocations=[(0, 1, 2, 0)]),
    ]
    symbols = [Sym("main.c", FILE, section=0xFFF1), Sym("start_kernel", value=0xFFFFFFFF81000000, size=16)]
    return executable(elf(parts, [*symbols, Sym("_stext", NOTYPE, GLOBAL, value=0xFFFFFFFF81000000)]))


def module(release: str = RELEASE, *, local: bool = True, build_id: bytes = b"m" * 20, modinfo: bool = True) -> bytes:
    info = b"name=xfs\0vermagic=" + release.encode() + b" SMP mod_unload \0"
    parts = [
        Part(".text", b"\xc3" * 64, ALLOC | EXEC, relocations=[(1, 2, 2, -4)]),
        Part(".modinfo" if modinfo else ".comment", info),
        Part(".debug_str", b"s" * 3000, 0),
        Part(".note.gnu.build-id", note(b"GNU\0", 3, build_id), ALLOC, NOTE),
    ]
    symbols = [Sym("xfs.c", FILE, section=0xFFF1), Sym("xfs_local", value=8, size=8)] if local else []
    return elf(parts, [*symbols, Sym("xfs_init", FUNC, GLOBAL, size=8)])


def bzimage(release: str = RELEASE, number: str = NUMBER) -> bytes:
    data = bytearray(0x1000)
    data[0x1FE:0x200] = b"\x55\xaa"
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x20E, 0x300)
    text = f"{release} (me@here) {number}".encode() + b"\0"
    data[0x500 : 0x500 + len(text)] = text
    return bytes(data)


@dataclass
class HostTree:
    """A host: its root, and the directory its kernel was built in."""

    root: Path
    build: Path

    def write(self, place: str, data: bytes) -> Path:
        path = self.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def collect(self, target: Path, modules: list[str] | None = None) -> Collected:
        with target.open("wb") as out:
            return collect(self.build, RELEASE, out, Progress(), root=self.root, modules=modules)


@pytest.fixture
def host(tmp_path: Path) -> HostTree:
    root = tmp_path / "host"
    tree = HostTree(root, root / "usr/src/linux")
    tree.write("sys/kernel/notes", note(b"GNU\0", 3, BUILD_ID))
    tree.write("proc/version", VERSION.encode() + b"\n")
    tree.write("boot/vmlinuz-" + RELEASE, bzimage())
    tree.write("usr/src/linux/vmlinux", vmlinux())
    tree.write("usr/src/linux/.config", CONFIG)
    tree.write("usr/src/linux/Module.symvers", SYMVERS)
    tree.write("usr/src/linux/fs/xfs/xfs.ko", module())
    installed = f"lib/modules/{RELEASE}"
    tree.write(f"{installed}/kernel/fs/xfs/xfs.ko", module(local=False) + b"signature")
    tree.write(f"{installed}/kernel/drivers/net/dummy-net.ko.xz", lzma.compress(module(build_id=b"n" * 20)))
    tree.write(f"{installed}/kernel/drivers/net/veth.ko.gz", gzip.compress(module(build_id=b"o" * 20)))
    tree.write(f"{installed}/modules.order", b"kernel/fs/xfs/xfs.ko\n")
    (root / installed / "build").symlink_to(tree.build)
    return tree


def take_in(data: bytes | Path, tmp_path: Path, limits: Limits | None = None) -> KernelArchive:
    target = tmp_path / f"taken-{len(list(tmp_path.iterdir()))}"
    target.mkdir()
    return read_archive(data if isinstance(data, Path) else io.BytesIO(data), target, limits)


# -- the way there and back


def test_what_is_collected_is_taken_in(host: HostTree, tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    done = host.collect(sent)
    taken = take_in(sent, tmp_path)
    assert done.members == (
        ".config",
        "Module.symvers",
        "facts.json",
        "modules.order",
        "modules/kernel/drivers/net/dummy-net.ko",
        "modules/kernel/drivers/net/veth.ko",
        "modules/kernel/fs/xfs/xfs.ko",
        "vmlinux",
        "vmlinuz",
    )
    assert (done.sha256, done.size) == (taken.sha256, taken.size) == (taken.sha256, sent.stat().st_size)
    assert taken.facts == done.facts
    assert taken.facts == Facts(
        release=RELEASE,
        build_id=BUILD_ID.hex(),
        version=VERSION,
        build_directory="/usr/src/linux",
        source_directory="/usr/src/linux",
    )
    assert set(taken.modules) == {"dummy_net", "veth", "xfs"}
    assert taken.config.read_bytes() == CONFIG
    assert taken.symvers is not None
    assert taken.symvers.read_bytes() == SYMVERS
    assert taken.vmlinuz is not None
    assert taken.vmlinuz.read_bytes() == bzimage()
    assert taken.units is None


def test_dwarf_and_left_relocations_are_left_out_and_all_else_is_the_same(host: HostTree, tmp_path: Path) -> None:
    host.collect(tmp_path / "sent")
    taken = take_in(tmp_path / "sent", tmp_path)
    with ElfImage(taken.vmlinux) as slim, ElfImage(vmlinux()) as full:
        assert [s.name for s in slim.sections] == [s.name for s in full.sections]
        assert [s.address for s in slim.sections] == [s.address for s in full.sections]
        for name in (".text", ".notes", ".symtab", ".strtab", ".shstrtab"):
            assert slim.data_of(name) == full.data_of(name)
        for name in (".debug_info", ".rela.debug_info", ".rela.text"):
            assert full.data_of(name)
            assert not slim.data_of(name)
        assert slim.symbols() == full.symbols()
        assert slim.symbols()[1].file == "main.c"
    assert taken.vmlinux.stat().st_size < len(vmlinux()) - 5000


def test_a_module_keeps_its_relocations_and_comes_with_the_symbols_of_the_build(host: HostTree, tmp_path: Path) -> None:
    host.collect(tmp_path / "sent")
    taken = take_in(tmp_path / "sent", tmp_path)
    with ElfImage(taken.modules["xfs"]) as slim, ElfImage(module()) as full:
        text = slim.section(".text")
        assert text is not None
        assert slim.relocations(text) == full.relocations(text) != []
        assert slim.data(text) == full.data_of(".text")
        assert not slim.data_of(".debug_str")
        assert [s.name for s in slim.symbols()] == ["", "xfs_local", "xfs_init"]
    assert not taken.modules["xfs"].read_bytes().endswith(b"signature")


def test_a_module_that_was_built_anew_is_sent_as_it_is_installed(host: HostTree, tmp_path: Path) -> None:
    host.write("usr/src/linux/fs/xfs/xfs.ko", module(build_id=b"x" * 20))
    host.collect(tmp_path / "sent")
    with ElfImage(take_in(tmp_path / "sent", tmp_path).modules["xfs"]) as image:
        assert [symbol.name for symbol in image.symbols()] == ["", "xfs_init"]


def test_the_same_build_gives_the_same_bytes(host: HostTree, tmp_path: Path) -> None:
    first = host.collect(tmp_path / "first")
    for path in host.root.rglob("*"):
        if path.is_file():
            path.touch()
            path.chmod(0o600)
    second = host.collect(tmp_path / "second")
    assert first == second
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_modules_can_be_chosen(host: HostTree, tmp_path: Path) -> None:
    host.collect(tmp_path / "sent", modules=["dummy-net"])
    assert set(take_in(tmp_path / "sent", tmp_path).modules) == {"dummy_net"}
    with pytest.raises(NotFoundError, match="e1000: no such module"):
        host.collect(tmp_path / "again", modules=["xfs", "e1000"])


def test_any_tar_reads_it(host: HostTree, tmp_path: Path) -> None:
    done = host.collect(tmp_path / "sent")
    with tarfile.open(tmp_path / "sent", "r:xz") as tar:
        assert tuple(tar.getnames()) == done.members
        assert all(entry.isreg() and entry.mode == 0o644 and not entry.mtime for entry in tar)
        held = tar.extractfile(".config")
        assert held is not None
        assert held.read() == CONFIG


def test_a_build_beside_its_source(host: HostTree, tmp_path: Path) -> None:
    host.build.rename(host.root / "usr/src/build")
    (host.root / "usr/src/tree").mkdir()
    (host.root / "usr/src/build/source").symlink_to("../tree")
    host.build = host.root / "usr/src/build"
    facts = host.collect(tmp_path / "sent").facts
    assert (facts.build_directory, facts.source_directory) == ("/usr/src/build", "/usr/src/tree")


def test_where_a_build_is_looked_for(host: HostTree) -> None:
    assert find_build_directory(RELEASE, host.root) == host.build
    (host.root / f"lib/modules/{RELEASE}/build").unlink()
    assert find_build_directory(RELEASE, host.root) == host.build
    host.write("usr/src/linux/vmlinux", b"")
    assert find_build_directory(RELEASE, host.root) is None
    assert find_build_directory("../../etc", host.root) is None


# -- a directory that is not that of the running kernel


def test_another_build_is_told_with_both_build_ids(host: HostTree, tmp_path: Path) -> None:
    host.write("usr/src/linux/vmlinux", vmlinux(b"\xab" * 20))
    host.write("usr/src/linux/include/config/kernel.release", b"6.12.61-own\n")
    with pytest.raises(BuildIdMismatchError) as caught:
        host.collect(tmp_path / "sent")
    for part in ("the kernel 6.12.61-own", "ab" * 20, BUILD_ID.hex(), RELEASE):
        assert part in caught.value.message


def test_a_cleaned_directory_and_a_host_that_tells_nothing(host: HostTree, tmp_path: Path) -> None:
    (host.root / "sys/kernel/notes").unlink()
    with pytest.raises(KernelUnavailableError, match="shows no build ID"):
        host.collect(tmp_path / "sent")
    (host.build / "vmlinux").unlink()
    with pytest.raises(KernelUnavailableError, match="holds no vmlinux"):
        host.collect(tmp_path / "sent")


def test_the_configuration_that_runs_comes_first(host: HostTree, tmp_path: Path) -> None:
    host.write("proc/config.gz", gzip.compress(CONFIG + b"CONFIG_XFS_FS=m\n"))
    host.collect(tmp_path / "sent")
    assert b"XFS_FS" in take_in(tmp_path / "sent", tmp_path).config.read_bytes()
    (host.root / "proc/config.gz").unlink()
    (host.build / ".config").unlink()
    with pytest.raises(KernelUnavailableError, match=r"no \.config"):
        host.collect(tmp_path / "again")


@pytest.mark.parametrize("image", [bzimage("6.12.61-own"), bzimage(number="#4 SMP Tue"), b"\x7fELF" * 1000])
def test_an_image_in_boot_that_is_not_what_runs_is_left_out(host: HostTree, tmp_path: Path, image: bytes) -> None:
    host.write("boot/vmlinuz-" + RELEASE, image)
    host.collect(tmp_path / "sent")
    assert take_in(tmp_path / "sent", tmp_path).vmlinuz is None
    host.write("usr/src/linux/arch/x86/boot/bzImage", bzimage())
    host.collect(tmp_path / "again")
    assert take_in(tmp_path / "again", tmp_path).vmlinuz is not None


def test_a_damaged_module_is_named(host: HostTree, tmp_path: Path) -> None:
    damaged = host.write(f"lib/modules/{RELEASE}/kernel/drivers/net/dummy-net.ko.xz", b"\xfd7zXZ\0 and no more")
    with pytest.raises(InvalidInputError) as caught:
        host.collect(tmp_path / "sent")
    assert str(damaged) in caught.value.message


class Full(io.RawIOBase):
    """A disk without room."""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_and_a_file_that_cannot_be_read(host: HostTree, tmp_path: Path) -> None:
    with pytest.raises(DiskFullError):
        collect(host.build, RELEASE, cast("BinaryIO", Full()), Progress(), root=host.root)
    damaged = host.build / "Module.symvers"
    damaged.unlink()
    damaged.symlink_to("/proc/self/mem")  # may be opened, and gives an input/output error
    with pytest.raises(UnavailableError, match="cannot be read"):
        host.collect(tmp_path / "sent")


def test_a_host_needs_no_elf_library() -> None:
    modules = "layout, archive, archive_reader, build_directory"
    program = f"import sys; sys.modules['elftools'] = None; from elivepatch.kernel import {modules}"
    process.run([sys.executable, "-c", program], env={"PYTHONPATH": os.pathsep.join(sys.path)})


# -- what is taken in


def facts(**changed: object) -> bytes:
    whole: dict[str, object] = {
        "format": 1,
        "release": RELEASE,
        "build_id": BUILD_ID.hex(),
        "version": VERSION,
        "build_directory": "/usr/src/linux",
        "source_directory": "/usr/src/linux",
    }
    whole.update(changed)
    return json.dumps({name: value for name, value in whole.items() if value is not None}).encode()


GOOD: Mapping[str, bytes] = {
    ".config": CONFIG,
    "Module.symvers": SYMVERS,
    "facts.json": facts(),
    "modules/kernel/fs/xfs/xfs.ko": module(),
    "units": b"init/main.c\nkernel/fork.c\n",
    "vmlinux": vmlinux(),
}


def raw(members: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    for name, data in members.items():
        write_member(out.write, name, len(data), [data])
    write_end(out.write)
    return out.getvalue()


def sent(members: Mapping[str, bytes]) -> bytes:
    return lzma.compress(raw(members), preset=archive.PRESET)


def test_the_good_one(tmp_path: Path) -> None:
    taken = take_in(sent(GOOD), tmp_path)
    assert taken.units == {"init/main.c", "kernel/fork.c"}
    assert taken.modules == {"xfs": taken.directory / "modules/kernel/fs/xfs/xfs.ko"}
    assert taken.vmlinux.read_bytes() == vmlinux()


@pytest.mark.parametrize("missing", [".config", "facts.json", "vmlinux"])
def test_a_member_that_must_be_there(tmp_path: Path, missing: str) -> None:
    with pytest.raises(InvalidInputError, match=f"no {re.escape(missing)}"):
        take_in(sent({name: data for name, data in GOOD.items() if name != missing}), tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {".config": b"no configuration"},
        {"Module.symvers": b"printk\n"},
        {"Module.symvers": SYMVERS.replace(b"0x1", b"$(x")},
        {"facts.json": b"{"},
        {"facts.json": b"[" * 100_000},
        {"facts.json": b"[]"},
        {"facts.json": facts(format=2)},
        {"facts.json": facts(more="x")},
        {"facts.json": facts(version=None)},
        {"facts.json": facts(version=7)},
        {"facts.json": facts(version="a\nb")},
        {"facts.json": facts(release="../../etc")},
        {"facts.json": facts(release="6.12.61-own")},  # not that of the module
        {"facts.json": facts(build_id="ab" * 20)},  # not that of vmlinux
        {"facts.json": facts(build_id="xyz")},
        {"facts.json": facts(build_directory="x" * 5000)},
        {"units": b"b.c\na.c\n"},
        {"units": b"a.c\na.c\n"},
        {"units": b"a.c"},
        {"units": b"a.c\n\xff\n"},
        {"units": b"a.c\n\n"},
        {"vmlinux": b""},
        {"vmlinux": b"\x7fELF" + bytes(100)},
        {"vmlinux": vmlinux(b"\xab" * 20)},
        {"vmlinux": module()},
        {"vmlinux": vmlinux()[:-100]},
        {"vmlinuz": b"no image"},
        {"vmlinuz": bzimage("6.12.61-own")},
        {"modules/kernel/fs/xfs/xfs.ko": b""},
        {"modules/kernel/fs/xfs/xfs.ko": vmlinux()},
        {"modules/kernel/fs/xfs/xfs.ko": module(modinfo=False)},
        {"modules/kernel/fs/xfs/xfs.ko": module("6.12.61-own")},
        {"modules/kernel/fs/other/xfs.ko": module()},  # a second one of the name
    ],
)
def test_a_member_that_is_not_what_it_should_be(tmp_path: Path, changed: dict[str, bytes]) -> None:
    members = dict(sorted({**GOOD, **changed}.items(), key=lambda item: item[0].encode()))
    with pytest.raises(InvalidInputError):
        take_in(sent(members), tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd", "../x", "vmlinux/../x", "modules/kernel/../../x.ko", "modules/kernel//x.ko", "other", ""),
        *("modules/x.ko", "modules/kernel/x", "modules/kernel/.x.ko", "modules/kernel/.ssh/x.ko"),
        *("modules/kernel/x.ko/", "modules/kernel/-x.ko", "modules/kernel/x.ko\n", "modules/kernel/\xe9.ko"),
        "modules/kernel/" + "x" * 300 + ".ko",
    ],
)
def test_names_that_are_not_of_the_format(tmp_path: Path, name: str) -> None:
    assert not allowed(name)
    entry = tarfile.TarInfo(name or "./")
    entry.size = 4
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(entry, io.BytesIO(b"data"))
    with pytest.raises(InvalidInputError):
        take_in(lzma.compress(plain.getvalue()), tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


LONG = "modules/kernel/" + "d" * 100 + "/" + "x" * 90 + ".ko"


@pytest.mark.parametrize("name", ["modules/kernel/a/b-c_d,e+f.ko", LONG])
def test_names_of_modules(tmp_path: Path, name: str) -> None:
    assert allowed(name)
    members = dict(sorted({**GOOD, name: module()}.items()))
    taken = take_in(sent(members), tmp_path)
    assert taken.directory / name in taken.modules.values()


def entry(change: Callable[[tarfile.TarInfo], None]) -> bytes:
    """A tar with one member as the standard library writes it, changed."""
    info = tarfile.TarInfo(".config")
    info.size = len(CONFIG)
    change(info)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(CONFIG))
    return plain.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0},
        {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd", "size": 0},
        {"type": tarfile.DIRTYPE, "size": 0},
        {"type": tarfile.FIFOTYPE, "size": 0},
        {"type": tarfile.CHRTYPE, "size": 0},
        {"type": tarfile.XHDTYPE},
        {"type": tarfile.GNUTYPE_LONGNAME},
        {"type": tarfile.GNUTYPE_SPARSE},
        {"mode": 0o4755},
        {"uid": 7},
        {"mtime": 1},
        {"uname": "root"},
    ],
)
def test_members_of_another_kind(tmp_path: Path, change: dict[str, object]) -> None:
    def set_all(info: tarfile.TarInfo) -> None:
        for name, value in change.items():
            setattr(info, name, value)

    with pytest.raises(InvalidInputError, match="cannot be in one"):
        take_in(lzma.compress(entry(set_all)), tmp_path)


def archives_of_another_form() -> list[bytes]:
    plain, data = raw(GOOD), sent(GOOD)
    greedy: list[dict[str, int]] = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 512 * 2**20}]
    return [
        *(data[:-1], data + b"x", data + data, data[: len(data) // 2], b"", b"x" * 1000),
        *(gzip.compress(plain), plain),
        *map(lzma.compress, (plain + bytes(512), plain[:-512], plain[:-1024], plain[:2000])),
        lzma.compress(plain.replace(CONFIG + b"\0", CONFIG + b"\1")),  # its padding
        lzma.compress(plain, format=lzma.FORMAT_ALONE),
        lzma.compress(plain, filters=greedy),  # takes too much memory
        sent(dict(reversed(list(GOOD.items())))),
    ]


@pytest.mark.parametrize("number", range(16))
def test_archives_of_another_form(tmp_path: Path, number: int) -> None:
    cases = archives_of_another_form()
    assert len(cases) == 16
    with pytest.raises(InvalidInputError):
        take_in(cases[number], tmp_path)


@given(st.binary(max_size=2000))
def test_nothing_breaks_the_reader(data: bytes) -> None:
    for whole in (data, lzma.compress(data)):
        with pytest.raises(InvalidInputError):
            read_archive(io.BytesIO(whole), Path("/nonexistent"))


@pytest.mark.parametrize(
    "limits",
    [
        Limits(packed=100),
        Limits(total=5000),
        Limits(vmlinux=5000),
        Limits(module=1000),
        Limits(text=30),
        Limits(modules=0),
    ],
)
def test_limits(tmp_path: Path, limits: Limits) -> None:
    with pytest.raises(InputTooLargeError):
        take_in(sent(GOOD), tmp_path, limits)


def test_a_decompression_bomb_is_not_unpacked(tmp_path: Path) -> None:
    bomb = lzma.compress(header("vmlinux", 8**11 - 1) + bytes(20_000_000))
    with pytest.raises(InputTooLargeError, match="vmlinux is 8589934591 bytes"):
        take_in(bomb, tmp_path)
    zeros = io.BytesIO(lzma.compress(header(".config", 60_000_000) + bytes(60_000_000)))
    with pytest.raises(InputTooLargeError, match="when it is unpacked"):
        read_archive(zeros, tmp_path, Limits(total=1_000_000))
    assert sum(path.stat().st_blocks for path in tmp_path.rglob("*")) < 5000
