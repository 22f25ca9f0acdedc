# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from elivepatch.errors import InvalidInputError, NotFoundError
from elivepatch.vm.modules import ModuleDirectory, modinfo, module_name, read_module


def module(*strings: str) -> bytes:
    """A relocatable ELF file with nothing in it but .modinfo."""
    info = b"".join(text.encode() + b"\0" for text in strings)
    names = b"\0.modinfo\0.shstrtab\0"
    info_at, names_at = 64, 64 + len(info)
    table_at = names_at + len(names)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 1, 62, 1, 0, 0, table_at, 0, 64, 0, 0, 64, 3, 2)
    section = struct.Struct("<IIQQQQIIQQ")
    table = bytes(64)
    table += section.pack(1, 1, 2, 0, info_at, len(info), 0, 0, 1, 0)
    table += section.pack(10, 3, 0, 0, names_at, len(names), 0, 0, 1, 0)
    return header + info + names + table


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Modules as a package holds them: compressed, and depmod was not run."""
    base = tmp_path / "6.12.1-test" / "kernel"
    for name, strings in {
        "fs/top.ko": ["depends=mid-one,other", "softdep=pre: soft builtin-name post: late"],
        "fs/late.ko": ["depends="],
        "lib/mid-one.ko": ["depends=base"],
        "lib/other.ko": ["depends=base"],
        "lib/base.ko": ["depends="],
        "lib/soft.ko": ["depends="],
        "lib/digest.ko": ["depends=", "softdep=pre: crypto-sum"],
        "crypto/sum_generic.ko": ["depends="],
        "lib/ring_a.ko": ["depends=ring_b"],
        "lib/ring_b.ko": ["depends=ring_a"],
    }.items():
        path = base / f"{name}.xz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(module(*strings)))
    return base.parent


def test_a_module_comes_after_all_it_needs(directory: Path) -> None:
    names = [m.name for m in ModuleDirectory(directory).load_order(["top"])]
    assert names == ["soft", "base", "mid_one", "other", "top"]


def test_an_algorithm_that_is_wished_for_by_its_alias_is_found(directory: Path) -> None:
    names = [m.name for m in ModuleDirectory(directory).load_order(["digest"])]
    assert names == ["sum_generic", "digest"]


def test_what_is_loaded_is_uncompressed(directory: Path) -> None:
    (only,) = ModuleDirectory(directory).load_order(["base"])
    assert only.elf == module("depends=")


def test_modules_dep_is_believed_where_it_is(directory: Path) -> None:
    (directory / "modules.dep").write_text(
        "kernel/fs/top.ko.xz: kernel/lib/other.ko.xz\nkernel/lib/other.ko.xz:\n", encoding="utf-8"
    )
    names = [m.name for m in ModuleDirectory(directory).load_order(["top"])]
    assert names == ["soft", "other", "top"]


def test_a_ring_of_dependencies_ends(directory: Path) -> None:
    assert len(ModuleDirectory(directory).load_order(["ring_a"])) == 2


def test_a_module_that_is_not_there(directory: Path) -> None:
    with pytest.raises(NotFoundError, match="no module 'nowhere'") as caught:
        ModuleDirectory(directory).load_order(["nowhere"])
    assert caught.value.hint


def test_dashes_and_underscores_are_the_same_module(directory: Path) -> None:
    modules = ModuleDirectory(directory)
    assert "mid-one" in modules
    assert [m.name for m in modules.load_order(["mid-one", "mid_one"])] == ["base", "mid_one"]


@pytest.mark.parametrize(
    ("file", "name"), [("a/snd-hda-intel.ko.xz", "snd_hda_intel"), ("x.ko", "x"), ("x.ko.zst", "x"), ("x", "x")]
)
def test_module_names(file: str, name: str) -> None:
    assert module_name(file) == name


def test_every_compression_is_read(tmp_path: Path) -> None:
    data = module("depends=", "name=x")
    (tmp_path / "x.ko").write_bytes(data)
    (tmp_path / "x.ko.gz").write_bytes(gzip.compress(data))
    (tmp_path / "x.ko.xz").write_bytes(lzma.compress(data))
    files = ["x.ko", "x.ko.gz", "x.ko.xz"]
    if shutil.which("zstd"):
        subprocess.run(["zstd", "-q", tmp_path / "x.ko"], check=True)
        files.append("x.ko.zst")
    assert [read_module(tmp_path / name) == data for name in files] == [True] * len(files)


def test_a_damaged_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.ko.xz").write_bytes(b"not xz at all")
    with pytest.raises(InvalidInputError, match=r"x\.ko\.xz cannot be decompressed"):
        read_module(tmp_path / "x.ko.xz")


def test_modinfo_keeps_repeated_keys_in_order() -> None:
    assert modinfo(module("alias=a", "depends=", "alias=b")) == {"alias": ("a", "b"), "depends": ("",)}


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"text", bytes(200)])
def test_what_is_no_module_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError, match="not a kernel module"):
        modinfo(data)


def test_what_is_built_in_is_not_loaded(directory: Path) -> None:
    (directory / "modules.builtin").write_text("kernel/drivers/block/virtio-blk.ko\n", encoding="utf-8")
    modules = ModuleDirectory(directory)
    assert [m.name for m in modules.load_order(["virtio_blk", "base"])] == ["base"]
    with pytest.raises(NotFoundError):
        modules.load_order(["virtio_net"])
