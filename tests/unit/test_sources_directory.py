# SPDX-License-Identifier: GPL-2.0-or-later
"""Trees on the server, untouched, built in place, and in git."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from elivepatch.errors import InvalidInputError, SourceRejectedError
from elivepatch.progress import Progress
from elivepatch.sources.directory import directory_tree
from elivepatch.sources.trees import SourceTree

#: What a tree holds, by what it is: .gitignore files as the kernel has them, files that look like products, links.
SOURCES = {
    "Makefile": "VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 60\nEXTRAVERSION = -mine\n",
    "Kconfig": 'mainmenu "Linux"\n',
    ".gitignore": ".*\n*.o\n*.patch\n*.s\n!.gitignore\n!.mailmap\n/vmlinux\ntags\n",
    ".mailmap": "A <a@example.org>\n",
    ".clang-format": "x\n",
    "MAINTAINERS": "all\n",
    "arch/x86/.gitignore": "boot/compressed/vmlinux\ntools/relocs\n",
    "arch/x86/boot/compressed/.gitignore": "vmlinux.lds\npiggy.S\n",
    "arch/x86/boot/compressed/head_64.S": "ret\n",
    "arch/x86/boot/compressed/vmlinux.lds.S": "lds\n",
    "arch/x86/kernel/vmlinux.lds.S": "lds\n",
    "arch/x86/kernel/.gitignore": "vsyscall.lds\nvmlinux.lds\n",
    "arch/x86/include/asm/page.h": "#define PAGE\n",
    "arch/x86/configs/x86_64_defconfig": "CONFIG_X=y\n",
    "include/linux/config.h": "h\n",
    "include/config.h": "h\n",
    "drivers/vmlinux/linux": "not at the top\n",
    "drivers/clk/.kunitconfig": "CONFIG_KUNIT=y\n",
    "drivers/gpu/patches": "not at the top\n",
    "fs/unicode/utf8data.c_shipped": "shipped\n",
    "kernel/configs/debug.config": "CONFIG_DEBUG=y\n",
    "scripts/.gitignore": "/kallsyms\n/module.lds\n",
    "scripts/kallsyms.c": "int main;\n",
    "scripts/module.lds.S": "lds\n",
    "scripts/checkpatch.pl": "#!/usr/bin/perl\n",
    "tools/testing/selftests/arm64/tags/tags_test.c": "int x;\n",
    "usr/.gitignore": "/gen_init_cpio\n/initramfs_data.cpio\n",
    "usr/gen_init_cpio.c": "int main;\n",
    "usr/name with spaces": "x\n",
}
PROGRAMS = {"scripts/checkpatch.pl"}
LINKS = {"arch/x86/boot/dts": "../include/asm", "scripts/dangling": "nothing/here", "Documentation": "usr"}
ELF = "\x7fELF\x02\x01\x01" + "\0" * 40
#: What a build makes of it, and what people leave there.
PRODUCTS = {
    "vmlinux": ELF,
    "vmlinux.o": ELF,
    "vmlinux.unstripped": ELF,
    "vmlinux.symvers": "x\n",
    "System.map": "x\n",
    "Module.symvers": "x\n",
    "modules.order": "x\n",
    "modules.builtin": "x\n",
    "modules.builtin.modinfo": "x\n",
    ".config": "CONFIG_X=y\n",
    ".config.old": "CONFIG_X=y\n",
    ".version": "1\n",
    ".vmlinux.cmd": "x\n",
    ".tmp_vmlinux1": ELF,
    ".tmp_versions/x.mod": "x\n",
    "arch/x86/boot/bzImage": ELF,
    "arch/x86/boot/compressed/vmlinux": ELF,
    "arch/x86/boot/compressed/vmlinux.lds": "lds\n",
    "arch/x86/boot/compressed/piggy.S": ".incbin\n",
    "arch/x86/kernel/vmlinux.lds": "lds\n",
    "arch/x86/kernel/.head_64.o.cmd": "x\n",
    "arch/x86/kernel/head_64.o": ELF,
    "arch/x86/tools/relocs": ELF,
    "arch/x86/include/generated/asm/syscalls_64.h": "x\n",
    "arch/x86/include/generated/uapi/asm/types.h": "x\n",
    "include/config/auto.conf": "CONFIG_X=y\n",
    "include/config/X": "",
    "include/generated/autoconf.h": "x\n",
    "drivers/x.ko": ELF,
    "drivers/x.mod": "x\n",
    "drivers/x.mod.c": "x\n",
    "drivers/x.mod.o": ELF,
    "drivers/.x.mod.cmd": "x\n",
    "drivers/built-in.a": "!<thin>\n",
    "drivers/lib.a": "!<arch>\n",
    "drivers/zconf.tab.c": "x\n",
    "drivers/zconf.lex.c": "x\n",
    "drivers/x.asn1.h": "x\n",
    "drivers/x.dtb.S": "x\n",
    "drivers/x.c.orig": "x\n",
    "drivers/x.c.rej": "x\n",
    "drivers/asm.s": "x\n",
    "scripts/kallsyms": ELF,
    "scripts/a_host_program_that_nothing_ignores": ELF,
    "scripts/module.lds": "x\n",
    "usr/gen_init_cpio": ELF,
    "usr/initramfs_data.cpio": "x\n",
    "certs/signing_key.pem": "x\n",
    "debian/changelog": "x\n",
    "linux-6.12.60.tar.gz": "x\n",
    "0001-mine.patch": "x\n",
    "tags": "x\n",
    ".pc/applied-patches": "x\n",
}
#: As Debian puts at the end of the tree's .gitignore: all of it is ignored.
DEBIAN = "\n/*\n!/debian/\n"


def write(top: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("latin-1"))
        path.chmod(0o775 if name in PROGRAMS or text == ELF else 0o664)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "linux"
    write(top, SOURCES)
    for name, target in LINKS.items():
        (top / name).symlink_to(target)
    return top


def built(top: Path) -> Path:
    write(top, PRODUCTS)
    (top / "source").symlink_to(top)  # as an external build directory has it: it leads out by its text
    (top / "outside").symlink_to("../../etc")
    return top


def composed(tree: SourceTree, target: Path) -> dict[str, tuple[str, bool]]:
    """Path to content and whether it is a program; links by their target."""
    target.mkdir()
    tree.fetch(Progress())
    tree.compose(target, Progress())
    found: dict[str, tuple[str, bool]] = {}
    for directory, below, files in os.walk(target):
        for path in (Path(directory) / name for name in [*files, *below]):
            name = str(path.relative_to(target))
            if path.is_symlink():
                found[name] = (f"-> {path.readlink()}", False)
            elif path.is_file():
                mode = path.stat().st_mode & 0o7777
                assert mode in {0o644, 0o755}
                found[name] = (path.read_bytes().decode("latin-1"), mode == 0o755)
    return found


EXPECTED = {name: (text, name in PROGRAMS) for name, text in SOURCES.items()} | {
    name: (f"-> {target}", False) for name, target in LINKS.items()
}


def git(top: Path, *words: str) -> None:
    settings = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *settings, *words], cwd=top, check=True, capture_output=True)


def test_a_tree_that_was_never_built(tree: Path, tmp_path: Path) -> None:
    source = directory_tree(tree, Progress())
    assert source.origin == f"dir:{tree} (Linux 6.12.60-mine)"
    assert composed(source, tmp_path / "x") == EXPECTED


@pytest.mark.parametrize("ignored", ["as it is", "debian", "without"])
def test_a_tree_that_was_built_in_place_is_the_same(tree: Path, tmp_path: Path, ignored: str) -> None:
    expected = dict(EXPECTED)
    if ignored == "debian":
        (tree / ".gitignore").write_text(SOURCES[".gitignore"] + DEBIAN)
        expected[".gitignore"] = (SOURCES[".gitignore"] + DEBIAN, False)
    before = directory_tree(tree, Progress())
    built(tree)
    after = directory_tree(tree, Progress())
    assert after.identity == before.identity
    assert composed(after, tmp_path / "x") == expected
    if ignored == "without":
        for path in tree.rglob(".gitignore"):
            path.unlink()
        found = composed(directory_tree(tree, Progress()), tmp_path / "y")
        left = {name for name in found if name not in EXPECTED}
        # only texts that nothing but their directory's .gitignore tells apart
        assert left == {
            "arch/x86/boot/compressed/vmlinux.lds", "arch/x86/boot/compressed/piggy.S", "arch/x86/kernel/vmlinux.lds",
            "usr/initramfs_data.cpio",
        }  # fmt: skip
        assert {name for name in EXPECTED if name not in found} == {n for n in EXPECTED if n.endswith(".gitignore")}


def test_a_git_work_tree_with_changes_of_every_kind(tree: Path, tmp_path: Path) -> None:
    git(tree, "init", "-q")
    (tree / "drivers/firmware.bin").write_text("tracked although it looks like a product\n")
    git(tree, "add", "-A")
    git(tree, "add", "-f", "drivers/firmware.bin", ".clang-format", "tools", "drivers")
    git(tree, "commit", "-qm", "all")
    (tree / "MAINTAINERS").write_text("changed, not committed\n")
    (tree / "scripts/kallsyms.c").unlink()
    (tree / "drivers/new.c").write_text("not added yet\n")
    built(tree)
    found = composed(directory_tree(tree, Progress()), tmp_path / "x")
    expected = dict(EXPECTED)
    del expected["scripts/kallsyms.c"]
    expected["MAINTAINERS"] = ("changed, not committed\n", False)
    expected["drivers/new.c"] = ("not added yet\n", False)
    expected["drivers/firmware.bin"] = ("tracked although it looks like a product\n", False)
    assert found == expected
    assert not (tmp_path / "x/.git").exists()


def test_programs_of_the_repository_are_not_run(tree: Path, tmp_path: Path) -> None:
    git(tree, "init", "-q")
    git(tree, "add", "-A")
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    trap.chmod(0o755)
    git(tree, "config", "core.fsmonitor", str(trap))
    git(tree, "config", "core.hooksPath", str(tmp_path))
    assert composed(directory_tree(tree, Progress()), tmp_path / "x") == EXPECTED
    assert not (tmp_path / "ran").exists()


def test_the_identity_follows_what_is_copied(tree: Path, tmp_path: Path) -> None:
    seen = {directory_tree(tree, Progress()).identity}

    def now() -> str:
        return directory_tree(tree, Progress()).identity

    os.utime(tree / "Makefile", (1, 1))
    (tree / "vmlinux").write_text(ELF)
    (tree / "empty").mkdir()
    assert now() in seen
    shutil.copytree(tree, tmp_path / "copy", symlinks=True)
    assert directory_tree(tmp_path / "copy", Progress()).identity in seen, "the place is part of it"
    for change in (
        lambda: (tree / "MAINTAINERS").write_text("other\n"),
        lambda: (tree / "MAINTAINERS").chmod(0o755),
        lambda: (tree / "MAINTAINERS").rename(tree / "MAINTAINER"),
        lambda: (tree / "drivers/new.c").write_text(""),
        lambda: ((tree / "Documentation").unlink(), (tree / "Documentation").symlink_to("fs")),
        lambda: ((tree / "Documentation").unlink(), (tree / "Documentation").write_text("fs")),
    ):
        change()
        identity = now()
        assert identity not in seen
        seen.add(identity)


def test_a_tree_that_changes_meanwhile(tree: Path, tmp_path: Path) -> None:
    source = directory_tree(tree, Progress())
    (tree / "MAINTAINERS").write_text("other\n")
    (tmp_path / "x").mkdir()
    with pytest.raises(SourceRejectedError, match="changed while it was read"):
        source.compose(tmp_path / "x", Progress())


def test_what_is_no_kernel_tree(tree: Path, tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "none", "No such file"),
        (tree / "Makefile", "Not a directory"),
        (tree / "drivers", "no Makefile or no Kconfig"),
        (Path("linux"), "not an absolute path"),
    ):
        with pytest.raises(InvalidInputError, match=words) as caught:
            directory_tree(path, Progress())
        assert str(path) in caught.value.message
        assert caught.value.hint
    (tree / "Makefile").write_text("all:\n")
    with pytest.raises(InvalidInputError, match="VERSION"):
        directory_tree(tree, Progress())


def test_a_repository_inside_the_tree_is_named(tree: Path) -> None:
    (tree / "drivers/mine").mkdir()
    git(tree / "drivers/mine", "init", "-q")
    (tree / "drivers/mine/x.c").write_text("int x;\n")
    git(tree / "drivers/mine", "add", "-A")
    git(tree / "drivers/mine", "commit", "-qm", "x")
    with pytest.raises(InvalidInputError, match="drivers/mine"):
        directory_tree(tree, Progress())
    git(tree, "init", "-q")
    git(tree, "add", "-A")
    with pytest.raises(InvalidInputError, match="drivers/mine"):
        directory_tree(tree, Progress())


def test_pipes_and_sockets_are_not_read(tree: Path, tmp_path: Path) -> None:
    os.mkfifo(tree / "drivers/pipe")
    assert composed(directory_tree(tree, Progress()), tmp_path / "x") == EXPECTED


def test_the_tree_that_is_read_is_left_as_it_was(tree: Path, tmp_path: Path) -> None:
    built(tree)
    before = sorted((str(path), path.lstat().st_mtime_ns) for path in tree.rglob("*"))
    composed(directory_tree(tree, Progress()), tmp_path / "x")
    assert sorted((str(path), path.lstat().st_mtime_ns) for path in tree.rglob("*")) == before
