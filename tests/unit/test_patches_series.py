# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading patches: what is taken, in which form it comes out, and what is refused under which rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from unidiff.patch import PatchSet

from elivepatch.errors import InputTooLargeError, InvalidPatchError
from elivepatch.patches import limits
from elivepatch.patches.model import FilePatch, Kind
from elivepatch.patches.series import normalise, parse_patch, parse_series
from elivepatch.protocol import limits as protocol_limits

HUNK = b"@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n three\n"
CANONICAL = b"diff --git a/fs/x.c b/fs/x.c\n--- a/fs/x.c\n+++ b/fs/x.c\n" + HUNK
FORMAT_PATCH = (
    b"From 0123456789abcdef0123456789abcdef01234567 Mon Sep 17 00:00:00 2001\n"
    b"From: A Person <a@example.org>\nSubject: [PATCH] fs: x\n\n- an item\n+ another\n\n"
    b"--- not a header\n---\n fs/x.c | 2 +-\n 1 file changed, 1 insertion(+), 1 deletion(-)\n\n"
    b"diff --git a/fs/x.c b/fs/x.c\nindex 1111111..2222222 100644\n--- a/fs/x.c\n+++ b/fs/x.c\n"
    + HUNK.replace(b"@@\n", b"@@ int f(void)\n")
    + b"-- \n2.39.5\n\n"
)


def plain(old: bytes, new: bytes, hunk: bytes = HUNK) -> bytes:
    return b"--- " + old + b"\n+++ " + new + b"\n" + hunk


def git(head: bytes, *, old: bytes = b"a/fs/x.c", new: bytes = b"b/fs/x.c", body: bytes = b"") -> bytes:
    return b"diff --git " + old + b" " + new + b"\n" + head + body


def only(data: bytes, exists: Callable[[str], bool] | None = None) -> FilePatch:
    (file,) = parse_patch("p", data, exists=exists).files
    return file


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(git(b"", body=plain(b"a/fs/x.c", b"b/fs/x.c")), id="git"),
        pytest.param(
            git(b"", old=b"fs/x.c", new=b"fs/x.c", body=plain(b"fs/x.c", b"fs/x.c")), id="git with diff.noprefix"
        ),
        pytest.param(
            git(b"index 11111..22222 100644\n", old=b"i/fs/x.c", new=b"w/fs/x.c", body=plain(b"i/fs/x.c", b"w/fs/x.c")),
            id="git with diff.mnemonicPrefix",
        ),
        pytest.param(FORMAT_PATCH, id="format-patch"),
        pytest.param(FORMAT_PATCH.split(b"diff --git")[0] + plain(b"a/fs/x.c", b"b/fs/x.c"), id="mail, plain diff"),
        pytest.param(
            b"diff -ru linux.orig/fs/x.c linux/fs/x.c\n"
            + plain(b"linux.orig/fs/x.c\t2024-05-01 10:00:00.5 +0200", b"linux/fs/x.c\t2024-05-01 10:01:00.5 +0200"),
            id="diff -ru",
        ),
        pytest.param(
            b"Index: linux-6.12/fs/x.c\n" + b"=" * 67 + b"\n" + plain(b"linux-6.12.orig/fs/x.c", b"linux-6.12/fs/x.c"),
            id="quilt",
        ),
        pytest.param(plain(b"fs/x.c", b"fs/x.c"), id="p0"),
        pytest.param(plain(b"fs/x.c.orig", b"fs/x.c"), id="p0, backup beside the file"),
        pytest.param(plain(b"./fs/x.c.orig", b"./fs/x.c"), id="dot as prefix"),
        pytest.param(plain(b"linux/fs/x.c", b"linux/fs/x.c"), id="p1, the same prefix twice"),
        pytest.param(plain(b'"a/fs/\\170.c"', b'"b/fs/x.c"'), id="quoted"),
        pytest.param(plain(b"a/fs/x.c", b"b/fs/x.c", HUNK.replace(b"+1,3", b"+77,3")), id="wrong new start"),
        pytest.param(plain(b"a/fs/x.c", b"b/fs/x.c", HUNK) + b"\n\n", id="blank lines at the end"),
    ],
)
def test_every_form_gives_the_same_canonical_text(data: bytes) -> None:
    assert normalise("p", data) == CANONICAL
    assert normalise("again", normalise("p", data)) == CANONICAL


def test_an_independent_reader_sees_the_same_change() -> None:
    data = FORMAT_PATCH + git(
        b"new file mode 100755\n", body=plain(b"/dev/null", b"b/fs/x.c", b"@@ -0,0 +1 @@\n+new\n")
    )
    data = data.replace(b"diff --git a/fs/x.c b/fs/x.c\nnew", b"diff --git a/fs/new.c b/fs/new.c\nnew")
    data = data.replace(b"+++ b/fs/x.c\n@@ -0", b"+++ b/fs/new.c\n@@ -0")
    patch = parse_patch("p", data)
    read = PatchSet(patch.canonical.decode())
    assert [file.path for file in read] == ["fs/x.c", "fs/new.c"]
    assert [(file.added, file.removed, file.is_added_file) for file in read] == [(1, 1, False), (1, 0, True)]
    for mine, theirs in zip(patch.files, read, strict=True):
        assert [(h.old_start, h.old_count, h.new_start, h.new_count) for h in mine.hunks] == [
            (h.source_start, h.source_length, h.target_start, h.target_length) for h in theirs
        ]


EPOCH = b"\t1970-01-01 01:00:00.000000000 +0100"


@pytest.mark.parametrize(
    ("data", "kind", "old", "new", "modes"),
    [
        (git(b"new file mode 100644\nindex 0000000..e69de29\n"), Kind.ADDED, None, "fs/x.c", (None, "100644")),
        (git(b"deleted file mode 100755\nindex e69de29..0000000\n"), Kind.DELETED, "fs/x.c", None, ("100755", None)),
        (git(b"old mode 100644\nnew mode 100755\n"), Kind.MODIFIED, "fs/x.c", "fs/x.c", ("100644", "100755")),
        (
            git(b"similarity index 100%\nrename from fs/x.c\nrename to fs/y.c\n", new=b"b/fs/y.c"),
            Kind.RENAMED,
            "fs/x.c",
            "fs/y.c",
            (None, None),
        ),
        (plain(b"/dev/null", b"b/fs/x.c", b"@@ -0,0 +1 @@\n+new\n"), Kind.ADDED, None, "fs/x.c", (None, "100644")),
        (plain(b"a/fs/x.c", b"/dev/null", b"@@ -1 +0,0 @@\n-old\n"), Kind.DELETED, "fs/x.c", None, ("100644", None)),
        (
            plain(b"l.orig/fs/x.c" + EPOCH, b"l/fs/x.c\t2024-01-01 00:00:00 +0000", b"@@ -0,0 +1 @@\n+new\n"),
            Kind.ADDED,
            None,
            "fs/x.c",
            (None, "100644"),
        ),
        (
            plain(b"l.orig/fs/x.c\t2024-01-01 00:00:00 +0000", b"l/fs/x.c" + EPOCH, b"@@ -1 +0,0 @@\n-old\n"),
            Kind.DELETED,
            "fs/x.c",
            None,
            ("100644", None),
        ),
        (
            plain(b"l.orig/fs/x.c", b"l/fs/x.c\t2024-01-01 00:00:00 +0000", b"@@ -1 +0,0 @@\n-old\n"),
            Kind.MODIFIED,
            "fs/x.c",
            "fs/x.c",
            (None, None),
        ),
    ],
)
def test_what_happens_to_a_file(
    data: bytes, kind: Kind, old: str | None, new: str | None, modes: tuple[str | None, str | None]
) -> None:
    file = only(data)
    assert (file.kind, file.old_path, file.new_path, (file.old_mode, file.new_mode)) == (kind, old, new, modes)
    assert only(parse_patch("p", data).canonical) == file


def test_bytes_of_any_encoding_are_kept() -> None:
    hunk = b"@@ -1,2 +1,2 @@\n caf\xe9\f \x85\n-\xff\xfe\r \n+\x80\n\\ Pas de fin\n"
    text = normalise("p", plain(b"a/fs/x.c", b"b/fs/x.c", hunk))
    assert text.endswith(hunk.replace(b"\\ Pas de fin", b"\\ No newline at end of file"))
    assert normalise("p", text) == text


def test_an_empty_context_line_may_have_lost_its_space() -> None:
    file = only(plain(b"a/x.c", b"b/x.c", b"@@ -1,3 +1,3 @@\n one\n\n-three\n+3\n"))
    assert file.hunks[0].lines == (b" one", b" ", b"-three", b"+3")


@pytest.mark.parametrize(
    ("old", "new", "tree", "path"),
    [
        (b"lib/lib/x.c", b"lib/lib/x.c", {"lib/x.c"}, "lib/x.c"),
        (b"lib/lib/x.c", b"lib/lib/x.c", {"lib/lib/x.c"}, "lib/lib/x.c"),
        (b"lib/lib/x.c", b"lib/lib/x.c", set[str](), "lib/lib/x.c"),
        (b"my-tree/lib/x.c", b"my-tree/lib/x.c", set[str](), "lib/x.c"),
        (b"a/lib/x.c", b"b/lib/x.c", {"a/lib/x.c"}, "lib/x.c"),
        (b"Makefile", b"Makefile", set[str](), "Makefile"),
    ],
)
def test_the_tree_decides_where_the_names_leave_the_prefix_open(
    old: bytes, new: bytes, tree: set[str], path: str
) -> None:
    assert only(plain(old, new), exists=tree.__contains__).path == path


def test_a_later_patch_sees_the_files_of_an_earlier_one() -> None:
    first = git(b"new file mode 100644\n", old=b"a/lib/lib/n.c", new=b"b/lib/lib/n.c", body=b"")
    second = plain(b"lib/lib/n.c", b"lib/lib/n.c")
    series = parse_series([("1", first), ("2", second)], exists=lambda path: path == "lib/n.c2")
    assert series.paths == ("lib/lib/n.c",)


def test_digests_are_those_of_the_change() -> None:
    one, two = parse_patch("one", FORMAT_PATCH), parse_patch("two", plain(b"x/fs/x.c", b"y/fs/x.c"))
    assert one == two
    assert one.digest == two.digest
    assert parse_series([("a", FORMAT_PATCH)]).digest != parse_series([("a", FORMAT_PATCH)] * 2).digest


def test_a_mailbox_of_two_patches_to_one_file() -> None:
    second = FORMAT_PATCH.replace(b"-two\n+TWO", b"-TWO\n+Two")
    patch = parse_patch("mbox", FORMAT_PATCH + second)
    assert [file.path for file in patch.files] == ["fs/x.c", "fs/x.c"]


REFUSED: list[tuple[str, bytes, str, int | None]] = [
    ("nothing", b"", "empty", None),
    ("blank", b" \n\n\t\n", "empty", None),
    ("prose", b"Dear maintainer,\nplease fix.\n", "not-a-patch", 1),
    ("elf", b"\x7fELF\x02\x01\x01\0\0\0", "binary", 1),
    ("gzip", b"\x1f\x8b\x08\x08\xff\n\xfe", "not-a-patch", 1),
    ("CRLF", CANONICAL.replace(b"\n", b"\r\n"), "crlf", 1),
    ("CRLF in the content only", CANONICAL.replace(b"+TWO\n", b"+TWO\r\n"), "crlf", 7),
    ("NUL in a hunk", CANONICAL.replace(b"+TWO", b"+T\0WO"), "binary", 7),
    ("context diff", b"*** a/fs/x.c\n--- b/fs/x.c\n***************\n*** 1,3 ****\n  one\n! two\n", "not-unified", 1),
    ("ed script", b"2c\nTWO\n.\n", "not-unified", 1),
    ("plain diff output", b"2c2\n< two\n---\n> TWO\n", "not-unified", 1),
    ("diff -r without -u", b"diff -r a/x.c b/x.c\n2c2\n< two\n---\n> TWO\n", "not-unified", 1),
    (
        "combined",
        b"diff --cc fs/x.c\nindex 1,2..3\n--- a/fs/x.c\n+++ b/fs/x.c\n@@@ -1,1 -1,1 +1,1 @@@\n",
        "combined-diff",
        1,
    ),
    ("combined hunk", plain(b"a/x.c", b"b/x.c", b"@@@ -1 -1 +1 @@@\n"), "combined-diff", 3),
    ("git binary", git(b"index 11111..22222 100644\nGIT binary patch\nliteral 3\nabc\n"), "binary", 3),
    ("git binary named", git(b"index 11111..22222\nBinary files a/fs/x.c and b/fs/x.c differ\n"), "binary", 3),
    ("diff binary", CANONICAL + b"Binary files a/l.png and b/l.png differ\n", "binary", 9),
    ("only in", CANONICAL + b"Only in linux/fs: y.c\n", "only-in", 9),
    ("quoted-printable", b"Content-Transfer-Encoding: quoted-printable\n\n" + CANONICAL, "mail-encoding", 1),
    ("absolute", plain(b"/etc/passwd", b"/etc/passwd"), "absolute-name", 1),
    ("absolute after the prefix", plain(b"a//etc/passwd", b"b//etc/passwd"), "file-name", 1),
    ("parent", plain(b"a/../../etc/passwd", b"b/../../etc/passwd"), "escaping-name", 1),
    ("parent as prefix", plain(b"../fs/x.c", b"../fs/x.c"), "escaping-name", 1),
    ("parent in quotes", plain(b'"a/\\056\\056/x"', b'"b/\\056\\056/x"'), "escaping-name", 1),
    ("parent in a rename", git(b"rename from fs/x.c\nrename to ../y.c\n", new=b"b/fs/y.c"), "escaping-name", 3),
    ("new name only", plain(b"a/fs/x.c", b"b/../x.c"), "escaping-name", 2),
    ("dot", plain(b"a/./x.c", b"b/./x.c"), "file-name", 1),
    (".git", plain(b"a/.git/config", b"b/.git/config"), "file-name", 1),
    (".GIT", plain(b"a/fs/.GIT/hooks/x", b"b/fs/.GIT/hooks/x"), "file-name", 1),
    ("backslash", plain(b"a/fs\\x.c", b"b/fs\\x.c"), "file-name", 1),
    ("escape sequence", plain(b"a/fs/\x1b[31m.c", b"b/fs/\x1b[31m.c"), "file-name", 1),
    ("newline in quotes", plain(b'"a/x\\n.c"', b'"b/x\\n.c"'), "file-name", 1),
    ("NUL in quotes", plain(b'"a/x\\000.c"', b'"b/x\\000.c"'), "file-name", 1),
    ("space in quotes", plain(b'"a/x y.c"', b'"b/x y.c"'), "file-name", 1),
    ("direction override", plain("a/x\u202ec.c".encode(), "b/x\u202ec.c".encode()), "file-name", 1),
    ("no UTF-8", plain(b"a/x\xff.c", b"b/x\xff.c"), "file-name", 1),
    ("unknown escape", plain(b'"a/\\q.c"', b'"b/\\q.c"'), "file-name", 1),
    ("open quote", plain(b'"a/x.c', b'"b/x.c'), "file-name", 1),
    ("three names", b"diff --git a/x b/x b/y\n", "file-name", 1),
    ("long name", plain(b"a/" + b"x" * 256, b"b/" + b"x" * 256), "file-name", 1),
    ("names that differ", plain(b"a/fs/x.c", b"b/fs/y.c"), "strip-level", 1),
    ("two prefixes too many", plain(b"a/b/fs/x.c", b"c/d/fs/x.c"), "strip-level", 1),
    (
        "symlink",
        git(b"new file mode 120000\n", body=plain(b"/dev/null", b"b/fs/x.c", b"@@ -0,0 +1 @@\n+/etc\n")),
        "symlink",
        2,
    ),
    ("symlink in index", git(b"index 11111..22222 120000\n", body=CANONICAL[36:]), "symlink", 2),
    ("submodule", git(b"new file mode 160000\n"), "submodule", 2),
    ("setuid", git(b"old mode 100644\nnew mode 104755\n"), "file-mode", 3),
    ("copy", git(b"copy from fs/x.c\ncopy to fs/y.c\n", new=b"b/fs/y.c"), "copy", 2),
    ("half a rename", git(b"rename from fs/x.c\n", new=b"b/fs/y.c"), "header-mismatch", 1),
    ("half a mode", git(b"new mode 100755\n"), "header-mismatch", 1),
    ("new and deleted", git(b"new file mode 100644\ndeleted file mode 100644\n"), "header-mismatch", 1),
    ("header twice", git(b"new file mode 100644\nnew file mode 100644\n"), "header-mismatch", 3),
    ("names in two ways", git(b"", body=plain(b"a/fs/x.c", b"b/fs/y.c")), "header-mismatch", 1),
    ("new with old lines", git(b"new file mode 100644\n", body=plain(b"/dev/null", b"b/fs/x.c")), "header-mismatch", 1),
    ("both null", plain(b"/dev/null", b"/dev/null"), "header-mismatch", 1),
    ("no hunk", b"--- a/x.c\n+++ b/x.c\n", "truncated", 2),
    ("git without hunks", git(b"index 11111..22222 100644\n"), "truncated", 1),
    ("new without hunks", git(b"new file mode 100644\nindex 0000000..1234567\n"), "truncated", 1),
    ("cut", CANONICAL[: CANONICAL.index(b" three")], "truncated", 7),
    ("cut before the second name", b"--- a/x.c\n", "not-a-patch", 1),
    ("too few lines", CANONICAL.replace(b" three\n", b"diff --git a/y b/y\n"), "hunk-count", 8),
    ("too many lines", CANONICAL + b" four\n", "hunk-count", 9),
    ("added line left over", CANONICAL + b"\n+four\n", "hunk-count", 10),
    ("count of one side", CANONICAL.replace(b"+1,3", b"+1,2"), "hunk-count", 8),
    ("damaged range", CANONICAL.replace(b"-1,3", b"-1;3"), "hunk-header", 4),
    ("huge range", CANONICAL.replace(b"-1,3", b"-1,999999999"), "hunk-header", 4),
    ("range of nothing", plain(b"a/x.c", b"b/x.c", b"@@ -1,0 +1,0 @@\n"), "hunk-header", 3),
    ("line zero", CANONICAL.replace(b"-1,3", b"-0,3"), "hunk-header", 4),
    ("hunk without a file", HUNK, "hunk-header", 1),
    ("hunks upside down", CANONICAL.replace(b"-1,3 +1,3", b"-9,3 +9,3") + HUNK, "hunk-order", 9),
    ("hunks that overlap", CANONICAL + HUNK.replace(b"-1,3 +1,3", b"-3,3 +3,3"), "hunk-order", 9),
    ("text after the end", CANONICAL.replace(b"+TWO\n", b"+TWO\n\\ No newline\n"), "no-newline-marker", 9),
    ("changed after removal", git(b"deleted file mode 100644\n") + CANONICAL, "file-order", 3),
    ("made twice", git(b"new file mode 100644\n") * 2, "file-order", 3),
    ("file and directory", CANONICAL + CANONICAL.replace(b"fs/x.c", b"fs/x.c/y.c"), "file-order", None),
]


@pytest.mark.parametrize(("data", "rule", "line"), [pytest.param(*case[1:], id=case[0]) for case in REFUSED])
def test_refused(data: bytes, rule: str, line: int | None) -> None:
    with pytest.raises(InvalidPatchError) as caught:
        parse_patch("bad.patch", data)
    (finding,) = caught.value.diagnosis
    assert (finding.rule, finding.line) == (rule, line)
    assert finding.file == "bad.patch"
    assert finding.hint
    assert "bad.patch" in caught.value.message
    assert caught.value.exit_status == 2


def test_sizes_are_limited() -> None:
    with pytest.raises(InputTooLargeError, match="more than the 10") as caught:
        parse_patch("big", CANONICAL, bytes_limit=10)
    assert caught.value.diagnosis[0].rule == "patch-too-large"
    with pytest.raises(InputTooLargeError) as caught:
        parse_series([("p", CANONICAL)] * (protocol_limits.PATCHES + 1))
    assert caught.value.diagnosis[0].rule == "too-many-patches"
    with pytest.raises(InputTooLargeError):
        parse_patch("big", b"x" * (protocol_limits.PATCH_BYTES + 1))
    many = b"".join(CANONICAL.replace(b"fs/x.c", b"fs/%d.c" % number) for number in range(limits.FILES + 1))
    with pytest.raises(InputTooLargeError) as caught:
        parse_series([("p", many)])
    assert caught.value.diagnosis[0].rule == "too-many-files"
    with pytest.raises(InvalidPatchError, match="no patch"):
        parse_series([])


def test_the_name_of_a_patch_is_only_shown() -> None:
    with pytest.raises(InvalidPatchError) as caught:
        parse_patch("../../evil\x1b[2J\n" + "x" * 500, b"")
    assert "\x1b" not in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300
