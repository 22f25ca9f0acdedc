# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from elivepatch.errors import InternalError
from elivepatch.vm import initramfs


def read_archive(data: bytes) -> dict[str, tuple[int, int, bytes]]:
    """Each entry's mode, modification time and content: a reader of its own, written from the format's description."""
    found: dict[str, tuple[int, int, bytes]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        numbers = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, mtime, size, name_size = numbers[1], numbers[5], numbers[6], numbers[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        content_at = (at + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, mtime, data[content_at : content_at + size])
        at = (content_at + size + 3) // 4 * 4


def example() -> initramfs.Tree:
    tree = initramfs.Tree()
    tree.file("/z/deep/file", b"12345", 0o600)
    tree.file("/init", b"#!/bin/sh\n", 0o755)
    tree.link("/bin/sh", "busybox")
    tree.directory("/tmp", 0o1777)
    return tree


def test_entries_have_their_modes_and_content() -> None:
    entries = read_archive(example().archive())
    assert entries["init"] == (0o100755, 0, b"#!/bin/sh\n")
    assert entries["z/deep/file"] == (0o100600, 0, b"12345")
    assert entries["bin/sh"] == (0o120777, 0, b"busybox")
    assert entries["tmp"] == (0o041777, 0, b"")


def test_parents_come_before_their_children() -> None:
    names = list(read_archive(example().archive()))
    assert names == sorted(names)
    assert {"z", "z/deep", "bin"} <= set(names)


def test_same_content_in_another_order_is_the_same_archive() -> None:
    other = initramfs.Tree()
    other.directory("/tmp", 0o1777)
    other.link("/bin/sh", "busybox")
    other.file("/init", b"#!/bin/sh\n", 0o755)
    other.file("/z/deep/file", b"12345", 0o600)
    assert other.archive() == example().archive()


def test_archives_can_follow_each_other(tmp_path: Path) -> None:
    second = initramfs.Tree()
    second.file("/second", b"2")
    first = example().archive()
    assert len(first) % 512 == 0
    joined = initramfs.write(tmp_path / "initrd", first, second.archive()).read_bytes()
    assert read_archive(joined[len(first) :])["second"][2] == b"2"


@pytest.mark.skipif(shutil.which("cpio") is None, reason="compares with the program cpio, which is not installed")
def test_cpio_reads_the_archive() -> None:
    done = subprocess.run(["cpio", "-t"], input=example().archive(), capture_output=True, check=True)
    assert b"z/deep/file" in done.stdout.split()


@pytest.mark.parametrize("path", ["relative", "/a/../../etc/passwd", "/", "/with\0zero"])
def test_names_that_are_no_paths_are_refused(path: str) -> None:
    with pytest.raises(InternalError):
        initramfs.Tree().file(path, b"")


def test_a_program_that_needs_libraries_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "busybox"
    program.write_bytes(b"\x7fELF" + bytes(100) + b"/lib64/ld-linux-x86-64.so.2\0")
    with pytest.raises(InternalError, match="not a static program"):
        initramfs.base(program)
