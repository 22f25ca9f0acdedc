# SPDX-License-Identifier: GPL-2.0-or-later
"""From touched files to objects, in a kernel that is a handful of files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from elf_builder import FILE, FUNC, Sym, tables
from elivepatch.build import fanout
from elivepatch.build.compiler import CompiledObject
from elivepatch.build.objects import Change, Objects, affected_objects, in_parents
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.preprocess import Preprocessed
from elivepatch.build.unpack import RawTables, module_name, module_names, raw_tables, read_symbols, write_symbols
from elivepatch.errors import CannotLivepatchError, InternalError, NothingToPatchError
from elivepatch.progress import Progress
from elivepatch.toolchains.roots import Root

FILES = {
    "fs/proc/meminfo.c": "int meminfo;\n",
    "fs/proc/unselected.c": "int unselected;\n",
    "kernel/sched/build_policy.c": '#include "idle.c"\n#include "rt.c"\n',
    "kernel/sched/build_utility.c": '# include "debug.c" // too\n',
    "kernel/sched/idle.c": "int idle;\n",
    "kernel/sched/rt.c": '#include "inner.c"\n',
    "kernel/sched/inner.c": "int inner;\n",
    "kernel/sched/debug.c": "int debug;\n",
    "kernel/sched/lonely.c": '/* #include "nothing.c" */\n#include "loop.c"\n',
    "kernel/sched/loop.c": '#include "lonely.c"\n',
    "lib/both.c": "int both;\n",
    "lib/one.c": '#include "both.c"\n',
    "lib/two.c": '#include "../lib/both.c"\n',
    "fs/xfs/xfs_stats.c": "int stats;\n",
    "fs/xfs/scrub/stats.c": "int scrub;\n",
    "net/rds/stats.c": "int rds;\n",
    "include/linux/fs.h": "int fs;\n",
}
UNITS = ["fs/proc/meminfo.c", "kernel/sched/build_policy.c", "kernel/sched/build_utility.c", "lib/one.c", "lib/two.c"]


@pytest.fixture
def kernel(tmp_path: Path) -> PreparedKernel:
    source, entry = tmp_path / "source", tmp_path / "entry"
    for name, text in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    (entry / "image").mkdir(parents=True)
    (entry / "image/units.json").write_text(json.dumps(UNITS))
    (entry / "symbols").mkdir()
    names = [Sym("xfs_stats.c", FILE, section=0xFFF1), Sym("f", FUNC, size=1), Sym("stats.c", FILE, section=0xFFF1)]
    write_symbols(entry / "symbols/xfs.z", RawTables(["", ".text"], *tables([*names, Sym("g", FUNC, size=1)])))
    modules = {"xfs": "kernel/fs/xfs/xfs.ko.xz", "without_symbols": "kernel/net/rds/without_symbols.ko"}
    root = Root("test", tmp_path, "", 0, 0.0, None)
    return PreparedKernel(entry, source, root, "6.12.1", "", "", "", "", {}, {}, {}, modules)


def lookup(kernel: PreparedKernel, touched: list[str], added: list[str] | None = None) -> Objects:
    originals = {path: FILES.get(path, "").encode() for path in touched if path not in (added or [])}
    patched = {path: (FILES.get(path, "") + "int more;\n").encode() for path in touched}
    work = kernel.path.parent / "work"
    return affected_objects(kernel, Change(originals, patched), work, 1, Progress(lambda _: None))


@pytest.mark.parametrize(
    ("touched", "objects"),
    [
        (["fs/proc/meminfo.c"], ["fs/proc/meminfo.o"]),
        (["fs/proc/meminfo.c", "fs/proc/meminfo.c"], ["fs/proc/meminfo.o"]),
        (["kernel/sched/idle.c"], ["kernel/sched/build_policy.o"]),
        (["kernel/sched/inner.c", "kernel/sched/rt.c"], ["kernel/sched/build_policy.o"]),
        (["kernel/sched/debug.c"], ["kernel/sched/build_utility.o"]),
        (["lib/both.c"], ["lib/one.o", "lib/two.o"]),
        (["fs/xfs/xfs_stats.c"], ["fs/xfs/xfs_stats.o"]),
        (["fs/xfs/scrub/stats.c"], ["fs/xfs/scrub/stats.o"]),
        (["Documentation/x.rst", "fs/proc/Makefile", "fs/proc/meminfo.c"], ["fs/proc/meminfo.o"]),
    ],
)
def test_objects_of_files(kernel: PreparedKernel, touched: list[str], objects: list[str]) -> None:
    found = lookup(kernel, touched)
    assert sorted(found.paths) == objects
    assert all(note.rule == "build-file-ignored" for note in found.notes)


@pytest.mark.parametrize(
    ("file", "word"),
    [
        ("fs/proc/unselected.c", "configuration"),
        ("net/rds/stats.c", "configuration"),  # a module has a file of that name, elsewhere
        ("kernel/sched/lonely.c", "configuration"),  # includes that go round
        ("arch/none/gone.c", "source"),
    ],
)
def test_a_file_that_is_not_contained(kernel: PreparedKernel, file: str, word: str) -> None:
    with pytest.raises(NothingToPatchError) as caught:
        lookup(kernel, [file])
    (finding,) = caught.value.diagnosis
    assert (finding.rule, finding.severity, finding.file) == ("not-in-kernel", "error", file)
    assert word in finding.message
    beside = lookup(kernel, [file, "fs/proc/meminfo.c"])
    assert list(beside.paths) == ["fs/proc/meminfo.o"]
    assert [(note.rule, note.severity, note.file) for note in beside.notes] == [("not-in-kernel", "note", file)]


def test_nothing_that_is_code(kernel: PreparedKernel) -> None:
    with pytest.raises(NothingToPatchError) as caught:
        lookup(kernel, ["Documentation/x.rst", "fs/proc/Makefile"])
    assert caught.value.hint
    assert [each.rule for each in caught.value.diagnosis] == ["build-file-ignored"]


def test_what_a_patch_cannot_do_is_refused_all_at_once(kernel: PreparedKernel) -> None:
    touched = ["fs/proc/meminfo.c", "include/linux/fs.h", "fs/proc/new.c", "fs/proc/unselected.c"]
    with pytest.raises(CannotLivepatchError) as caught:
        lookup(kernel, touched, ["fs/proc/new.c"])
    assert [(each.rule, each.file) for each in caught.value.diagnosis] == [
        ("new-file", "fs/proc/new.c"),
        ("not-in-kernel", "include/linux/fs.h"),
        ("not-in-kernel", "fs/proc/unselected.c"),
    ]


def test_a_source_file_of_the_kernel_cannot_be_removed(kernel: PreparedKernel) -> None:
    gone = {"fs/proc/meminfo.c": b"int meminfo;\n"}
    with pytest.raises(CannotLivepatchError) as caught:
        affected_objects(kernel, Change(gone, {}), kernel.path.parent / "work", 1, Progress(lambda _: None))
    assert [(each.rule, each.file) for each in caught.value.diagnosis] == [("file-removed", "fs/proc/meminfo.c")]


def test_a_new_file_that_a_changed_one_includes_is_a_part_of_it(kernel: PreparedKernel) -> None:
    patched = {"fs/proc/meminfo.c": b'#include "helper.c"\n', "fs/proc/helper.c": b"static int help;\n"}
    change = Change({"fs/proc/meminfo.c": b"int meminfo;\n"}, patched)
    found = affected_objects(kernel, change, kernel.path.parent / "work", 1, Progress(lambda _: None))
    assert (list(found.paths), list(found.notes)) == (["fs/proc/meminfo.o"], [])
    assert found.files == patched


def parents(kernel: PreparedKernel, path: str, parent: str) -> list[str]:
    nowhere = Path("none.o")
    return [each.parent for each in in_parents(kernel, CompiledObject(path, nowhere, nowhere, nowhere, parent, False))]


def test_the_parent_that_kbuild_names_must_contain_the_object(kernel: PreparedKernel) -> None:
    assert parents(kernel, "fs/proc/meminfo.o", "vmlinux") == ["vmlinux"]
    assert parents(kernel, "fs/xfs/xfs_stats.o", "xfs") == ["xfs"]
    assert parents(kernel, "fs/xfs/xfs_stats.o", "other:xfs") == ["xfs"]  # the other is not selected
    for path, parent in (
        ("fs/proc/unselected.o", "vmlinux"),
        ("fs/xfs/xfs_stats.o", "vmlinux"),
        ("fs/xfs/xfs_stats.o", "other"),
        ("net/rds/stats.o", "xfs"),
    ):
        with pytest.raises(NothingToPatchError):
            parents(kernel, path, parent)


# -- headers


@pytest.fixture
def header_kernel(kernel: PreparedKernel, monkeypatch: pytest.MonkeyPatch) -> PreparedKernel:
    """The kernel with a header in three of its files; what is preprocessed changes, but for one of them."""
    for name in ("fs/proc/meminfo.c", "lib/one.c", "fs/xfs/xfs_stats.c"):
        (kernel.source / name).write_text('#include "../include/linux/fs.h"\n#include "../../include/linux/fs.h"\n')

    def compare(
        kernel: PreparedKernel,
        files: Sequence[str],
        patched: Mapping[str, bytes],
        work: Path,
        parallel: int,
        spelled: Mapping[str, str],
    ) -> Iterator[Preprocessed]:
        del kernel, work, parallel, spelled
        assert patched["include/linux/fs.h"]
        for file in files:
            yield Preprocessed(file, "xfs" if "xfs" in file else "vmlinux", changed=file != "lib/one.c")

    monkeypatch.setattr(fanout, "compare", compare)
    return kernel


def test_a_header_reaches_the_objects_that_change_with_it(header_kernel: PreparedKernel) -> None:
    found = lookup(header_kernel, ["include/linux/fs.h"])
    assert list(found.paths) == ["fs/proc/meminfo.o", "fs/xfs/xfs_stats.o"]
    (note,) = found.notes
    assert (note.rule, note.severity) == ("header-users", "note")
    assert "included by 3 source files" in note.message


@pytest.mark.parametrize(("limit", "count"), [("CANDIDATES_LIMIT", 3), ("OBJECTS_LIMIT", 2)])
def test_a_header_with_too_many_users(
    header_kernel: PreparedKernel, monkeypatch: pytest.MonkeyPatch, limit: str, count: int
) -> None:
    monkeypatch.setattr(fanout, limit, 1)
    with pytest.raises(CannotLivepatchError) as caught:
        lookup(header_kernel, ["include/linux/fs.h"])
    (finding,) = [each for each in caught.value.diagnosis if each.severity == "error"]
    assert (finding.rule, finding.file) == ("header-fan-out", "include/linux/fs.h")
    assert f"reaches {count} objects" in finding.message
    assert "fs/proc (1)" in finding.message
    assert "meminfo.c" in finding.message


# -- modules and their symbols


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("kernel/fs/xfs/xfs.ko.xz", "xfs"),
        ("nf-tables.ko", "nf_tables"),
        ("snd-hda-intel.ko.zst", "snd_hda_intel"),
        ("af_packet.ko.debug", "af_packet"),
        ("a.ko.gz", "a"),
    ],
)
def test_names_of_modules(file: str, name: str) -> None:
    assert module_name(file) == name


def test_shipped_modules(tmp_path: Path) -> None:
    for name in ("kernel/fs/xfs/xfs.ko.xz", "kernel/net/nf-tables.ko", "modules.dep"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert module_names(tmp_path) == {"xfs": "kernel/fs/xfs/xfs.ko.xz", "nf_tables": "kernel/net/nf-tables.ko"}


def test_symbols_are_kept_as_they_were(tmp_path: Path) -> None:
    symtab, strtab = tables([Sym("a.c", FILE, section=0xFFF1), Sym("f", FUNC, value=3, size=1)])
    write_symbols(tmp_path / "x.z", RawTables(["", ".text", ".data.once"], symtab, strtab))
    kept = read_symbols(tmp_path / "x.z")
    assert (list(kept.sections), kept.symtab, kept.strtab) == (["", ".text", ".data.once"], symtab, strtab)
    assert [symbol.name for symbol in kept.symbols() if symbol.name] == ["f"]
    assert "a.c" in kept.readelf()


def test_a_file_that_is_no_elf_file_has_no_tables() -> None:
    with pytest.raises(InternalError):
        raw_tables(memoryview(b"\x7fELF\x01\x01" + bytes(64)))
