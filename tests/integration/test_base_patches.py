# SPDX-License-Identifier: GPL-2.0-or-later
"""Trees with base patches: the same files as the patches leave when they are applied by hand."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from elivepatch.build import based, unpack
from elivepatch.errors import DoesNotApplyError, InvalidPatchError
from elivepatch.progress import Progress
from elivepatch.toolchains.roots import Root
from elivepatch.workshop import Workshop

pytestmark = pytest.mark.integration

FILES = {
    "Makefile": "VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 1\nEXTRAVERSION =\n",
    "kernel/a.c": "".join(f"line {number}\n" for number in range(40)),
    "kernel/b.c": "int b;\n",
    "kernel/old/c.c": "int c;\n",
    "drivers/only/d.c": "int d;\n",
}


@pytest.fixture
def some_root(workshop: Workshop) -> Root:
    return workshop.roots.installed()[0]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    top = tmp_path / "source"
    for name, text in FILES.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    (top / "link").symlink_to("kernel/b.c")
    (top / "kernel/b.c").chmod(0o755)
    unpack.own(top)  # as a source is kept
    return top


def difference(before: Path, after: Path) -> bytes:
    done = subprocess.run(
        ["diff", "-ruN", before.name, after.name], cwd=before.parent, stdout=subprocess.PIPE, check=False
    )
    assert done.returncode == 1
    return done.stdout


def contents(top: Path) -> dict[str, tuple[str, object]]:
    found: dict[str, tuple[str, object]] = {}
    for base, _, files in os.walk(top):
        for name in files:
            path = Path(base) / name
            where = str(path.relative_to(top))
            if path.is_symlink():
                found[where] = ("link", str(path.readlink()))
            else:
                found[where] = ("file", (path.read_bytes(), path.stat().st_mode & 0o100))
    return found


def changed(source: Path, name: str) -> Path:
    copy = source.parent / name
    shutil.copytree(source, copy, symlinks=True)
    return copy


def test_the_tree_is_what_patch_makes_of_it_and_the_pristine_one_stays(
    source: Path, some_root: Root, tmp_path: Path
) -> None:
    first = changed(source, "first")
    (first / "kernel/a.c").write_text(FILES["kernel/a.c"].replace("line 20\n", "line twenty\n"))
    (first / "kernel/new/e.c").parent.mkdir()
    (first / "kernel/new/e.c").write_text("int e;\n")
    shutil.rmtree(first / "drivers/only")
    second = changed(first, "second")
    (second / "kernel/a.c").write_text((first / "kernel/a.c").read_text().replace("line 21\n", ""))
    (second / "Makefile").write_text(FILES["Makefile"].replace("EXTRAVERSION =", "EXTRAVERSION = -mine"))
    before = contents(source)
    patches = [("1.patch", difference(source, first)), ("2.patch", difference(first, second))]
    work = tmp_path / "work"
    work.mkdir()
    based.make(source, patches, some_root, Progress(), work)
    assert contents(work) == contents(second)
    assert contents(source) == before
    untouched = work / "kernel/old/c.c"
    assert untouched.stat().st_ino == (source / "kernel/old/c.c").stat().st_ino, "untouched files are shared"
    assert [path.name for path in tmp_path.glob("work.*")] == [], "nothing is left beside the tree"


def test_a_file_that_becomes_a_directory(source: Path, some_root: Root, tmp_path: Path) -> None:
    patched = changed(source, "patched")
    (patched / "kernel/b.c").unlink()
    (patched / "kernel/b.c").mkdir()
    (patched / "kernel/b.c/x").write_text("x\n")
    removed = b"--- a/kernel/b.c\n+++ /dev/null\n@@ -1 +0,0 @@\n-int b;\n"
    added = b"--- /dev/null\n+++ b/kernel/b.c/x\n@@ -0,0 +1 @@\n+x\n"
    work = tmp_path / "work"
    work.mkdir()
    based.make(source, [("1", removed), ("2", added)], some_root, Progress(), work)
    assert contents(work) == contents(patched)


def test_fuzz_is_what_the_host_had_too(source: Path, some_root: Root, tmp_path: Path) -> None:
    patch = (
        b"--- a/kernel/a.c\n+++ b/kernel/a.c\n@@ -3,5 +3,5 @@\n other\n line 3\n-line 4\n+line four\n line 5\n line 6\n"
    )
    work = tmp_path / "work"
    work.mkdir()
    based.make(source, [("fuzzy.patch", patch)], some_root, Progress(), work)
    assert "line four" in (work / "kernel/a.c").read_text()


@pytest.mark.parametrize(
    ("patch", "error", "says"),
    [
        (
            b"--- a/kernel/a.c\n+++ b/kernel/a.c\n@@ -1,2 +1,2 @@\n-nothing\n+else\n like this\n",
            DoesNotApplyError,
            "hunk",
        ),
        (b"--- a/none.c\n+++ b/none.c\n@@ -1 +1 @@\n-a\n+b\n", DoesNotApplyError, "find file"),
        (b"--- a/../../escape\n+++ b/../../escape\n@@ -0,0 +1 @@\n+x\n", DoesNotApplyError, "1.patch"),
    ],
)
def test_a_patch_that_does_not_apply_is_named(
    source: Path, some_root: Root, tmp_path: Path, patch: bytes, error: type[Exception], says: str
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(error) as caught:
        based.make(source, [("1.patch", patch)], some_root, Progress(), work)
    assert "1.patch" in str(caught.value)
    assert says.lower() in str(caught.value).lower()
    assert contents(source)
    assert not list(tmp_path.glob("escape"))
    assert [path.name for path in tmp_path.glob("work.*")] == []


def test_the_same_patch_twice_is_said(source: Path, some_root: Root, tmp_path: Path) -> None:
    patch = b"--- a/kernel/a.c\n+++ b/kernel/a.c\n@@ -1,2 +1,2 @@\n-line 0\n+line none\n line 1\n"
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(DoesNotApplyError) as caught:
        based.make(source, [("1.patch", patch), ("2.patch", patch)], some_root, Progress(), work)
    assert "2.patch does not apply" in caught.value.message
    assert "already" in caught.value.message
    assert "saving rejects" not in caught.value.message
    assert "the same patch as 1.patch" in (caught.value.hint or "")


def link_to(target: str, name: str = "kernel/link") -> bytes:
    return (
        f"diff --git a/{name} b/{name}\nnew file mode 120000\nindex 0000000..1111111\n--- /dev/null\n+++ b/{name}\n"
        f"@@ -0,0 +1 @@\n+{target}\n\\ No newline at end of file\n"
    ).encode()


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside", "../kernel/../../x", "/dev/zero"])
def test_a_link_that_leads_out_is_refused(source: Path, some_root: Root, tmp_path: Path, target: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(InvalidPatchError, match="kernel/link"):
        based.make(source, [("1.patch", link_to(target))], some_root, Progress(), work)


def test_a_link_inside_of_the_tree_is_made(source: Path, some_root: Root, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    based.make(source, [("1.patch", link_to("../drivers/only/d.c"))], some_root, Progress(), work)
    assert (work / "kernel/link").read_text() == "int d;\n"
