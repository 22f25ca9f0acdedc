# SPDX-License-Identifier: GPL-2.0-or-later
"""Applying a series with GNU patch: what comes out, and what is said where it does not fit."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from elivepatch.errors import DoesNotApplyError, ElivepatchError, InputTooLargeError, InvalidPatchError
from elivepatch.patches import limits
from elivepatch.patches.apply import Applied, apply_series
from elivepatch.patches.doctor import changes_of, examine
from elivepatch.patches.model import Kind
from elivepatch.patches.series import parse_series
from elivepatch.patches.tree import Tree

pytestmark = pytest.mark.integration

FILE = b"".join(b"line %d\n" % number for number in range(1, 41))
Apply = Callable[..., Applied]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "linux"
    (root / "fs/deep").mkdir(parents=True)
    (root / "fs/x.c").write_bytes(FILE)
    (root / "fs/latin.c").write_bytes(b"/* caf\xe9 */\n\f\nint a;\nint b;")
    (root / "fs/deep/old.c").write_bytes(b"one\ntwo\nthree\n")
    (root / "fs/tool.sh").write_bytes(b"#!/bin/sh\n")
    (root / "fs/tool.sh").chmod(0o755)
    (root / "fs/empty.c").write_bytes(b"")
    return root


@pytest.fixture
def apply(tree: Path, tmp_path: Path) -> Apply:
    def run(*patches: bytes, fuzz: int = 0, prefix: tuple[str, ...] = ()) -> Applied:
        number = len(list(tmp_path.glob("target*")))
        series = parse_series([(f"{n}.patch", data) for n, data in enumerate(patches, 1)], exists=Tree(tree).exists)
        return apply_series(series, tree, tmp_path / f"target{number}", fuzz=fuzz, prefix=prefix)

    return run


def edit(
    old: int, *, first: int | None = None, path: bytes = b"fs/x.c", to: bytes = b"LINE", why: bytes = b""
) -> bytes:
    """A hunk with three lines of context around line ``old`` of FILE, said to begin at line ``first``."""
    first = first or old - 3
    lines = [b" line %d\n" % number for number in range(old - 3, old)]
    lines += [b"-line %d\n" % old, b"+%s %d\n" % (to, old)]
    lines += [b" line %d\n" % number for number in range(old + 1, old + 4)]
    head = b"--- a/%s\n+++ b/%s\n" % (path, path) if path else b""
    return head + b"@@ -%d,7 +%d,7 @@%s\n" % (first, first, why) + b"".join(lines)


def git_diff(tree: Path, change: Callable[[Path], None], *options: str) -> bytes:
    """What git says about a change to the tree, which is undone again."""
    git = ["git", "-C", str(tree), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "base"], check=True)
    change(tree)
    subprocess.run([*git, "add", "-A"], check=True)
    diff = subprocess.run([*git, "diff", "--cached", *options], check=True, capture_output=True).stdout
    subprocess.run([*git, "reset", "-q", "--hard"], check=True)
    subprocess.run(["rm", "-rf", str(tree / ".git")], check=True)
    return diff


def test_a_change_where_it_says(apply: Apply, tree: Path) -> None:
    applied = apply(edit(10) + edit(30, path=b""))
    (file,) = applied.files
    assert (file.path, file.kind) == ("fs/x.c", Kind.MODIFIED)
    assert applied.findings == ()
    assert file.original is not None
    assert file.patched is not None
    assert file.original.read_bytes() == FILE == (tree / "fs/x.c").read_bytes()
    assert file.patched.read_bytes() == FILE.replace(b"line 10\n", b"LINE 10\n").replace(b"line 30\n", b"LINE 30\n")
    assert sorted(path.name for path in applied.patched.rglob("*")) == ["fs", "x.c"]
    assert sorted(path.name for path in applied.patched.parent.iterdir()) == ["original", "patched"]


def test_offsets_are_noted(apply: Apply) -> None:
    applied = apply(edit(10, first=5) + edit(30, first=25, path=b""))
    assert [(f.rule, f.severity, f.file, f.line) for f in applied.findings] == [
        ("offset", "note", "fs/x.c", 7),
        ("offset", "note", "fs/x.c", 27),
    ]
    assert "2 lines after" in applied.findings[0].message


def test_an_offset_among_equal_places_is_a_warning(apply: Apply, tree: Path) -> None:
    (tree / "fs/x.c").write_bytes(b"{\n\tf();\n}\n" * 9)
    applied = apply(b"--- a/fs/x.c\n+++ b/fs/x.c\n@@ -8,3 +8,3 @@\n {\n-\tf();\n+\tg();\n }\n")
    (finding,) = applied.findings
    assert (finding.rule, finding.severity) == ("offset", "warning")
    assert "9 places" in finding.message


def test_a_series_builds_on_itself(apply: Apply) -> None:
    second = edit(10).replace(b"-line 10\n+LINE 10\n", b"-LINE 10\n+Line 10\n")
    applied = apply(edit(10), second)
    assert b"\nLine 10\n" in (applied.patched / "fs/x.c").read_bytes()
    with pytest.raises(DoesNotApplyError, match=r"1\.patch: .*line 10 should be 'LINE 10'"):
        apply(second, edit(10))


def test_the_hunk_that_fails_is_named_with_what_the_tree_has(apply: Apply) -> None:
    bad = edit(30, path=b"").replace(b" line 31\n", b" other 31\n").replace(b" line 29\n", b" other 29\n")
    bad = bad.replace(b" line 28\n", b" other 28\n").replace(b" line 32\n", b" other 32\n")
    with pytest.raises(DoesNotApplyError) as caught:
        apply(edit(10, first=4) + bad)
    (finding,) = caught.value.diagnosis
    assert (finding.rule, finding.file, finding.line) == ("hunk-failed", "fs/x.c", 28)
    assert "hunk 2 of 2 (@@ -27,7 +27,7 @@)" in finding.message
    assert "line 28 should be 'other 28', the tree has 'line 28'" in finding.message
    assert "| other 28" in finding.message
    assert "| line 28" in finding.message
    assert finding.hint
    assert "1.patch" in caught.value.message
    assert caught.value.exit_status == 3


def test_every_failing_hunk_of_a_patch_is_found(apply: Apply) -> None:
    nowhere = b"@@ -60,1 +60,1 @@\n-nothing like it\n+x\n"
    with pytest.raises(DoesNotApplyError, match=r"and 2 more") as caught:
        apply(edit(10) + nowhere + edit(3 + 3, path=b"fs/gone.c") + b"--- a/fs/latin.c\n+++ b/fs/latin.c\n" + nowhere)
    assert [(f.rule, f.file) for f in caught.value.diagnosis] == [
        ("hunk-failed", "fs/x.c"),
        ("file-missing", "fs/gone.c"),
        ("hunk-failed", "fs/latin.c"),
    ]


def test_many_hunks_are_summed_up(apply: Apply, tree: Path) -> None:
    text = b"".join(b"%d\n" % number for number in range(200))
    (tree / "fs/x.c").write_bytes(b"first\n" + text)
    hunks = b"".join(b"@@ -%d +%d @@\n-%%s%d\n+x\n" % (n + 1, n + 1, n) for n in range(0, 60, 2))
    applied = apply(b"--- a/fs/x.c\n+++ b/fs/x.c\n" + hunks.replace(b"%s", b""))
    assert len(applied.findings) == 21
    assert "10 more" in applied.findings[-1].message
    with pytest.raises(DoesNotApplyError) as caught:
        apply(b"--- a/fs/x.c\n+++ b/fs/x.c\n" + hunks.replace(b"%s", b"-"))
    assert len(caught.value.diagnosis) == 21
    assert "10 more" in caught.value.diagnosis[-1].message


def test_fuzz_is_refused_and_shown(apply: Apply) -> None:
    fuzzy = edit(10).replace(b" line 7\n", b" line seven\n")
    with pytest.raises(DoesNotApplyError, match="only with fuzz 1") as caught:
        apply(fuzzy)
    (finding,) = caught.value.diagnosis
    assert (finding.rule, finding.line) == ("fuzz", 7)
    assert "should be 'line seven', the tree has 'line 7'" in finding.message
    applied = apply(fuzzy, fuzz=1)
    assert [(f.rule, f.severity) for f in applied.findings] == [("fuzz", "warning")]
    assert b"\nLINE 10\n" in (applied.patched / "fs/x.c").read_bytes()


def test_what_is_there_already_is_said(apply: Apply, tree: Path) -> None:
    (tree / "fs/x.c").write_bytes(FILE.replace(b"line 10\n", b"LINE 10\n"))
    with pytest.raises(DoesNotApplyError, match="already") as caught:
        apply(edit(10))
    assert [f.rule for f in caught.value.diagnosis] == ["already-applied"]
    with pytest.raises(DoesNotApplyError) as caught:
        apply(edit(10) + edit(30, path=b""))
    assert [(f.rule, f.line) for f in caught.value.diagnosis] == [("hunk-applied", 7)]


def test_files_that_come_and_go(apply: Apply, tree: Path) -> None:
    def change(root: Path) -> None:
        (root / "fs/deep/old.c").unlink()
        (root / "fs/new").mkdir()
        (root / "fs/new/n.c").write_bytes(b"int n;")
        (root / "fs/x.c").rename(root / "fs/y.c")
        (root / "fs/y.c").write_bytes(FILE.replace(b"line 9\n", b"nine\n"))
        (root / "fs/latin.c").write_bytes(b"/* caf\xe8 */\n\f\nint a;\nint c;\n")
        (root / "fs/tool.sh").chmod(0o644)
        (root / "fs/empty.c").unlink()

    applied = apply(git_diff(tree, change, "-M"))
    assert {(file.path, file.kind, file.old_path) for file in applied.files} == {
        ("fs/deep/old.c", Kind.DELETED, None),
        ("fs/empty.c", Kind.DELETED, None),
        ("fs/new/n.c", Kind.ADDED, None),
        ("fs/y.c", Kind.RENAMED, "fs/x.c"),
        ("fs/latin.c", Kind.MODIFIED, None),
        ("fs/tool.sh", Kind.MODIFIED, None),
    }
    assert (applied.patched / "fs/new/n.c").read_bytes() == b"int n;"
    assert (applied.patched / "fs/latin.c").read_bytes() == b"/* caf\xe8 */\n\f\nint a;\nint c;\n"
    assert b"\nnine\n" in (applied.patched / "fs/y.c").read_bytes()
    assert not (applied.patched / "fs/x.c").exists()
    assert not os.access(applied.patched / "fs/tool.sh", os.X_OK) or os.geteuid() == 0
    assert (applied.patched / "fs/tool.sh").stat().st_mode & 0o111 == 0
    assert (applied.original / "fs/tool.sh").stat().st_mode & 0o111
    assert not (applied.original / "fs/new").exists()
    paths = {change.path for change in changes_of(applied)}
    assert paths == {file.path for file in applied.files} | {"fs/x.c"}
    assert examine(changes_of(applied)).code


def test_the_same_bytes_as_git_apply(apply: Apply, tree: Path, tmp_path: Path) -> None:
    def change(root: Path) -> None:
        text = (
            FILE.replace(b"line 1\n", b"").replace(b"line 20\n", b"line 20\nmore\nmore\n").replace(b"line 40\n", b"end")
        )
        (root / "fs/x.c").write_bytes(text)

    diff = git_diff(tree, change)
    ours = (apply(diff).patched / "fs/x.c").read_bytes()
    subprocess.run(["git", "apply", "-"], cwd=tree, input=diff, check=True)
    assert ours == (tree / "fs/x.c").read_bytes()


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"--- a/fs/gone.c\n+++ b/fs/gone.c\n@@ -1 +1 @@\n-a\n+b\n", "file-missing"),
        (b"--- a/fs/gone.c\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n", "file-missing"),
        (b"--- /dev/null\n+++ b/fs/x.c\n@@ -0,0 +1 @@\n+a\n", "file-exists"),
        (b"--- /dev/null\n+++ b/fs/deep/old.c\n@@ -0,0 +1,3 @@\n+one\n+two\n+three\n", "already-applied"),
        (b"--- a/fs/deep/old.c\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-one\n-two\n", "hunk-failed"),
        (b"diff --git a/fs/x.c b/fs/tool.sh\nrename from fs/x.c\nrename to fs/tool.sh\n", "file-exists"),
        (b"diff --git a/fs/x.c b/fs/x.c\ndeleted file mode 100644\nindex e69de29..0000000\n", "hunk-failed"),
    ],
)
def test_files_that_are_not_as_the_patch_says(apply: Apply, data: bytes, rule: str) -> None:
    with pytest.raises(DoesNotApplyError) as caught:
        apply(data)
    assert [f.rule for f in caught.value.diagnosis] == [rule]


def test_renames_in_a_row(apply: Apply) -> None:
    move = b"diff --git a/fs/%s b/fs/%s\nsimilarity index 100%%\nrename from fs/%s\nrename to fs/%s\n"
    (file,) = apply(move % (b"x.c", b"y.c", b"x.c", b"y.c"), move % (b"y.c", b"z.c", b"y.c", b"z.c")).files
    assert (file.path, file.old_path, file.kind) == ("fs/z.c", "fs/x.c", Kind.RENAMED)
    (file,) = apply(move % (b"x.c", b"y.c", b"x.c", b"y.c"), move % (b"y.c", b"x.c", b"y.c", b"x.c")).files
    assert (file.path, file.old_path, file.kind) == ("fs/x.c", None, Kind.MODIFIED)
    gone = b"--- a/fs/deep/old.c\n+++ /dev/null\n@@ -1,3 +0,0 @@\n-one\n-two\n-three\n"
    applied = apply(gone, move % (b"x.c", b"deep/old.c", b"x.c", b"deep/old.c"))
    assert [(file.path, file.kind) for file in applied.files] == [
        ("fs/deep/old.c", Kind.MODIFIED),
        ("fs/x.c", Kind.DELETED),
    ]
    assert (applied.patched / "fs/deep/old.c").read_bytes() == FILE


def test_an_empty_file_may_be_filled(apply: Apply) -> None:
    applied = apply(b"--- a/fs/empty.c\n+++ b/fs/empty.c\n@@ -0,0 +1 @@\n+int a;\n")
    (file,) = applied.files
    assert file.kind is Kind.MODIFIED
    assert (applied.patched / "fs/empty.c").read_bytes() == b"int a;\n"


def test_a_file_removed_by_one_patch_and_made_by_the_next(apply: Apply) -> None:
    gone = b"--- a/fs/deep/old.c\n+++ /dev/null\n@@ -1,3 +0,0 @@\n-one\n-two\n-three\n"
    back = b"--- /dev/null\n+++ b/fs/deep/old.c\n@@ -0,0 +1 @@\n+other\n"
    (file,) = apply(gone, back).files
    assert file.kind is Kind.MODIFIED
    made = b"--- /dev/null\n+++ b/fs/new.c\n@@ -0,0 +1 @@\n+x\n"
    unmade = b"--- a/fs/new.c\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n"
    assert apply(made, unmade).files == ()


def test_symbolic_links_are_never_followed(apply: Apply, tree: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.c"
    secret.write_bytes(FILE)
    (tree / "fs/link.c").symlink_to(secret)
    (tree / "fs/inside.c").symlink_to("x.c")
    (tree / "fs/up").symlink_to(tmp_path)
    (tree / "fs/dangling").symlink_to("/nonexistent/x")
    new = b"--- /dev/null\n+++ b/%s\n@@ -0,0 +1 @@\n+x\n"
    for data in (
        edit(10, path=b"fs/link.c"),
        edit(10, path=b"fs/inside.c"),
        edit(10, path=b"fs/up/secret.c"),
        new % b"fs/up/fresh.c",
        new % b"fs/up",
        new % b"fs/dangling",
        new % b"fs/dangling/x.c",
    ):
        with pytest.raises(InvalidPatchError, match="symbolic link") as caught:
            apply(data)
        assert caught.value.diagnosis[0].rule == "symlink"
    assert secret.read_bytes() == FILE
    assert not (tmp_path / "fresh.c").exists()
    assert not Path("/nonexistent").exists()


def test_what_is_no_file_is_refused(apply: Apply, tree: Path) -> None:
    os.mkfifo(tree / "fs/fifo.c")
    for path in (b"fs/fifo.c", b"fs/deep", b"fs/x.c/y.c"):
        with pytest.raises(InvalidPatchError) as caught:
            apply(edit(10, path=path))
        assert caught.value.diagnosis[0].rule == "not-a-file"


def test_a_large_file_is_refused(apply: Apply, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FILE_BYTES", len(FILE) - 1)
    with pytest.raises(InputTooLargeError):
        apply(edit(10))


def test_gnu_patch_never_sees_what_the_user_wrote(
    apply: Apply, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers that make GNU patch do something else, around a change that is fine."""
    proof = tmp_path / "proof"
    monkeypatch.setenv("PATCH_GET", "1")
    monkeypatch.setenv("POSIXLY_CORRECT", "1")
    monkeypatch.setenv("QUOTING_STYLE", "c")
    data = (
        b"Index: ../../evil.c\nPrereq: no-such-word\n0a\n!touch %s\n.\n" % os.fsencode(proof)
        + edit(10, why=b" ; touch " + os.fsencode(proof))
        + b"Index: /etc/evil\nPrereq: no\n"
    )
    applied = apply(data)
    assert [file.path for file in applied.files] == ["fs/x.c"]
    assert not proof.exists()
    assert b"\nLINE 10\n" in (applied.patched / "fs/x.c").read_bytes()


def test_names_with_odd_characters_are_no_options(apply: Apply, tree: Path) -> None:
    name = b"--output=x;$(touch y)'\"#.c"
    (tree / os.fsdecode(name)).write_bytes(FILE)
    quoted = name.replace(b'"', b'\\"').replace(b" ", b"\\040")
    with pytest.raises(InvalidPatchError, match="characters"):
        apply(edit(10).replace(b"a/fs/x.c", b'"a/%s"' % quoted).replace(b"b/fs/x.c", b'"b/%s"' % quoted))
    name = b"--output=x;$(touch)'\"#\xc3\xa4.c"
    (tree / os.fsdecode(name)).write_bytes(FILE)
    quoted = name.replace(b'"', b'\\"')
    (file,) = apply(edit(10).replace(b"a/fs/x.c", b'"a/%s"' % quoted).replace(b"b/fs/x.c", b'"b/%s"' % quoted)).files
    assert file.patched is not None
    assert b"\nLINE 10\n" in file.patched.read_bytes()


def test_the_sandbox_stands_before_the_command(apply: Apply, tmp_path: Path) -> None:
    log = tmp_path / "calls"
    script = f'printf "%s\\n" "$*" >> {shlex.quote(str(log))}; exec "$@"'
    apply(edit(10), prefix=("sh", "-c", script, "sandbox"))
    (call,) = log.read_text().splitlines()
    assert call.startswith("patch -p1 ")
    assert call.endswith(" ./fs/x.c")


def test_a_failing_tool_is_not_the_fault_of_the_patch(apply: Apply) -> None:
    for prefix in (("sh", "-c", "kill -SEGV $$"), ("sh", "-c", "exit 2"), ("true",)):
        with pytest.raises(ElivepatchError) as caught:
            apply(edit(10), prefix=prefix)
        assert caught.value.exit_status == 1


def test_a_patch_named_twice_is_not_blamed_on_the_kernel(apply: Apply) -> None:
    with pytest.raises(DoesNotApplyError) as caught:
        apply(edit(10), edit(10))
    assert [finding.rule for finding in caught.value.diagnosis] == ["already-applied"]
    assert caught.value.message == "2.patch: fs/x.c: with 1.patch the file has this change already (all 1 hunks)."
    assert "name one of them" in (caught.value.hint or "")
    with pytest.raises(DoesNotApplyError) as caught:
        apply(edit(10), edit(10) + edit(30, path=b""))
    assert "with 1.patch the file has this change already" in caught.value.message
    new = b"--- /dev/null\n+++ b/fs/new.c\n@@ -0,0 +1 @@\n+int new;\n"
    with pytest.raises(DoesNotApplyError, match=r"there already, from 1\.patch, with the same content"):
        apply(new, new)


def test_what_the_kernel_has_is_said_even_where_an_earlier_patch_changes_the_file(apply: Apply) -> None:
    has = edit(30).replace(b"-line 30\n+LINE 30\n", b"-not this\n+line 30\n")
    with pytest.raises(DoesNotApplyError, match="the tree has this change already"):
        apply(edit(10), has)


def test_patches_that_contradict_each_other_are_both_named(apply: Apply) -> None:
    with pytest.raises(DoesNotApplyError) as caught:
        apply(edit(10), edit(10, to=b"Line"))
    assert "with 1.patch the file has 'LINE 10'" in caught.value.message
    assert "1.patch, which comes before it, changes the same file" in (caught.value.hint or "")
