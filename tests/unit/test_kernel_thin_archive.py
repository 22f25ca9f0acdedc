# SPDX-License-Identifier: GPL-2.0-or-later
"""The objects of a build, from thin archives that were made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elivepatch.errors import InvalidInputError
from elivepatch.kernel.thin_archive import members, objects_of_vmlinux, source_of


def header(name: str, size: int) -> bytes:
    return f"{name:<16}{0:<12}{0:<6}{0:<6}{644:<8}{size:<10}`\n".encode()


def thin(names: Sequence[str], index: bytes = b"") -> bytes:
    """A thin archive as GNU ar writes it: all names in the list of long names."""
    table = b"".join(f"{name}/\n".encode() for name in names)
    out = b"!<thin>\n"
    if index:
        out += header("/", len(index)) + index + bytes(len(index) % 2)
    out += header("//", len(table)) + table + b"\n" * (len(table) % 2)
    at = 0
    for name in names:
        out += header(f"/{at}", 123456)  # the size of the object, which is not here
        at += len(name) + 2
    return out


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_members(tmp_path: Path) -> None:
    names = ["main.o", "a-name/that-is/longer-than-sixteen.o", "x.o"]
    assert members(write(tmp_path / "a", thin(names))) == names
    assert members(write(tmp_path / "a", thin(names, b"index"))) == names
    assert members(write(tmp_path / "a", thin([]))) == []
    assert members(write(tmp_path / "a", b"!<thin>\n" + header("short.o/", 7))) == ["short.o"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"!<arch>\n" + header("x.o/", 0),
        b"!<thin>\n" + header("x.o/", 7)[:-1],
        b"!<thin>\n" + header("x.o/", 7) + b"x",
        b"!<thin>\n" + header("/7", 7),  # no list of names
        thin(["x.o"]) + header("/99", 7),
        thin(["x.o"]).replace(b"123456", b"12 456"),
    ],
)
def test_what_is_no_thin_archive(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        members(write(tmp_path / "a", data))


@given(st.binary(max_size=300))
def test_nothing_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "thin"
    path.write_bytes(b"!<thin>\n" + data)
    try:
        found = members(path)
    except InvalidInputError:
        return
    assert all(isinstance(name, str) for name in found)


def test_the_objects_of_vmlinux(tmp_path: Path) -> None:
    write(tmp_path / "vmlinux.a", thin(["init/main.o", "fs/proc/built-in.a", "../outside.o"]))
    write(tmp_path / "fs/proc/built-in.a", thin(["meminfo.o", "../../lib/lib.a", "built-in.a"]))
    write(tmp_path / "lib/lib.a", thin(["sort.o"]))
    assert objects_of_vmlinux(tmp_path) == ["fs/proc/meminfo.o", "init/main.o", "lib/sort.o"]


def test_before_there_was_vmlinux_a(tmp_path: Path) -> None:
    write(tmp_path / "init/built-in.a", thin(["main.o"]))
    write(tmp_path / "fs/built-in.a", thin(["proc/built-in.a"]))
    write(tmp_path / "fs/proc/built-in.a", thin(["meminfo.o"]))
    write(tmp_path / "arch/x86/lib/lib.a", thin(["copy_user_64.o"]))
    assert objects_of_vmlinux(tmp_path) == ["arch/x86/lib/copy_user_64.o", "fs/proc/meminfo.o", "init/main.o"]
    assert objects_of_vmlinux(tmp_path / "nowhere") == []


def test_the_source_of_an_object(tmp_path: Path) -> None:
    tree, build = tmp_path / "tree", tmp_path / "build"
    write(tree / "init/main.c", b"")
    write(tree / "arch/x86/entry/entry.S", b"")
    write(
        build / "lib/.crc.o.cmd", f"savedcmd_lib/crc.o := gcc\n\nsource_lib/crc.o := {tree}/lib/crc/main.c\n".encode()
    )
    write(build / "lib/.table.o.cmd", b"source_lib/table.o := lib/table-generated.c\n")
    write(build / "lib/.relative.o.cmd", b"source_lib/relative.o := ../tree/lib/relative.c\n")
    assert source_of("init/main.o", build, tree) == "init/main.c"
    assert source_of("arch/x86/entry/entry.o", build, tree) == "arch/x86/entry/entry.S"
    assert source_of("lib/crc.o", build, tree) == "lib/crc/main.c"
    assert source_of("lib/table.o", build, tree) == "lib/table-generated.c"
    assert source_of("lib/relative.o", build, tree) == "lib/relative.c"
    assert source_of("lib/none.o", build, tree) is None


def test_ar_leaves_a_slash_in_the_last_column_where_it_moves_members(tmp_path: Path) -> None:
    data = thin(["main.o", "head.o"]).replace(b"/8              0", b"/8             /0")
    assert b"/8             /0" in data
    assert members(write(tmp_path / "a", data)) == ["main.o", "head.o"]
