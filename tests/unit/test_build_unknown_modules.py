# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels of which the image is known, and not the modules that its configuration makes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from elivepatch.build import fanout, unknown_modules
from elivepatch.build.objects import Change, Objects, affected_objects
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.preprocess import Preprocessed
from elivepatch.errors import CannotLivepatchError
from elivepatch.progress import Progress
from elivepatch.toolchains.roots import Root

FILES = {
    "fs/proc/Makefile": "obj-y += meminfo.o\n",
    "fs/proc/meminfo.c": '#include <linux/fs.h>\n#include "internal.h"\n',
    "fs/proc/unselected.c": "int unselected;\n",
    "fs/proc/internal.h": "int internal;\n",
    "fs/xfs/Makefile": "obj-$(CONFIG_XFS_FS) += xfs.o\n",
    "fs/xfs/libxfs/xfs_btree.c": "int btree;\n",
    "fs/xfs/xfs.h": "int xfs;\n",
    "include/linux/fs.h": "int fs;\n",
}
#: What the makefiles of directories make modules of.
MODULES = {"fs/xfs": ["fs/xfs/./xfs_log.o", "fs/xfs/libxfs/xfs_btree.o"]}


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedKernel:
    source, entry = tmp_path / "source", tmp_path / "entry"
    for name, text in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    (entry / "image").mkdir(parents=True)
    (entry / "image/units.json").write_text(json.dumps(["fs/proc/meminfo.c"]))
    (entry / "image/config").write_text("CONFIG_MODULES=y\nCONFIG_XFS_FS=m\n")

    def listed(kernel: PreparedKernel, place: str, work: Path) -> list[str]:
        assert (kernel.source / place / "Makefile").exists()
        assert work.parent.is_dir()
        assert not work.exists()
        return MODULES.get(place, [])

    def compare(kernel: PreparedKernel, files: Sequence[str], *_: object) -> list[Preprocessed]:
        return [Preprocessed(file, "vmlinux", changed=True) for file in files]

    monkeypatch.setattr(unknown_modules, "module_objects", listed)
    monkeypatch.setattr(fanout, "compare", compare)
    return PreparedKernel(
        path=entry,
        source=source,
        root=Root("test", tmp_path, "", 0, 0.0, None),
        release="6.12.1",
        origin="",
        image="debuginfod",
        build_id="",
        config_sha256="",
        compiler="",
        variables={},
        environment={"LINUXINCLUDE": "-I./include"},
        sizes={},
        modules={},
    )


def lookup(kernel: PreparedKernel, *touched: str, text: str = "int more;\n") -> Objects:
    originals = {path: FILES[path].encode() for path in touched}
    patched = {path: (FILES[path] + text).encode() for path in touched}
    work = kernel.path.parent / "work"
    return affected_objects(kernel, Change(originals, patched), work, 1, Progress(lambda _: None))


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("fs/xfs/libxfs/xfs_btree.c", "is part of a module"),  # the makefile of the directory above makes it
        ("include/linux/fs.h", "Modules of 6.12.1 may include"),
        ("fs/xfs/xfs.h", "fs/xfs/libxfs/xfs_btree.c, part of a module"),
    ],
)
def test_what_modules_may_have_is_refused(kernel: PreparedKernel, file: str, said: str) -> None:
    with pytest.raises(CannotLivepatchError, match=said) as caught:
        lookup(kernel, "fs/proc/meminfo.c", file)
    assert [(each.rule, each.severity, each.file) for each in caught.value.diagnosis] == [
        ("modules-unknown", "error", file)
    ]


def test_what_modules_cannot_have(kernel: PreparedKernel) -> None:
    assert list(lookup(kernel, "fs/proc/internal.h").paths) == ["fs/proc/meminfo.o"]
    assert list(lookup(kernel, "fs/proc/meminfo.c", "fs/proc/unselected.c").paths) == ["fs/proc/meminfo.o"]


def test_comments(kernel: PreparedKernel) -> None:
    assert list(lookup(kernel, "fs/proc/meminfo.c", "include/linux/fs.h", text="/* more */\n").paths)


@pytest.mark.parametrize("config", ["CONFIG_XFS_FS=y\nCONFIG_MODULES=y\n", "CONFIG_XFS_FS=m\n"])
def test_a_kernel_without_modules(kernel: PreparedKernel, config: str) -> None:
    (kernel.path / "image/config").write_text(config)
    assert list(lookup(kernel, "include/linux/fs.h").paths) == ["fs/proc/meminfo.o"]


def test_a_kernel_whose_modules_are_known(kernel: PreparedKernel) -> None:
    known = replace(kernel, modules={"xfs": "kernel/fs/xfs/xfs.ko"})
    assert list(lookup(known, "include/linux/fs.h").paths) == ["fs/proc/meminfo.o"]


def test_a_directory_with_too_many_makefiles(kernel: PreparedKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unknown_modules, "_ASKED_LIMIT", -1)
    with pytest.raises(CannotLivepatchError, match="fs/proc/, part of a module"):
        lookup(kernel, "fs/proc/internal.h")
