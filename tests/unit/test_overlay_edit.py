# SPDX-License-Identifier: GPL-2.0-or-later
"""`overlay init` and `overlay add`: what is made is clean, and what people wrote stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from elivepatch.client.cli import cli
from elivepatch.errors import ElivepatchError
from elivepatch.overlay.edit import NewEntry, add_entry, new_description, quoted
from elivepatch.overlay.findings import Findings
from elivepatch.overlay.lint import lint, parse_description
from elivepatch.overlay.yaml_reader import Fields, Scalar, read_yaml
from overlay_support import COMMIT, DESCRIPTION, FILES, OLD, PATCH, make_overlay

ENTRY = NewEntry(id="new", kernels=(">=6.1.1",), patch="new.patch", title="a: b # c")


def overlay(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["overlay", *(str(word) for word in words)])


def test_from_nothing_to_a_clean_overlay(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    assert overlay("init", root, "--title", 'A "title": with # everything').exit_code == 0
    assert overlay("lint", root).exit_code == 0
    (tmp_path / "Fix it.patch").write_text(PATCH)
    (tmp_path / "fix.sh").write_text("#!/bin/sh\nfalse\n")
    words = [
        "--kernel",
        ">=6.12.1 <6.13",
        "--kernel",
        "6.1.*",
        "--distribution",
        "debian:13",
        "--cve",
        "CVE-2026-12345",
    ]
    words += [
        "--check",
        str(tmp_path / "fix.sh"),
        "--tested-with",
        "6.12.117+deb13-cloud-amd64",
        "--author",
        "A <a@b.c>",
    ]
    done = overlay("add", root, tmp_path / "Fix it.patch", *words, "--title", "yes", "--licence", "MIT", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["id"] == "fix-it"
    (tmp_path / "other.patch").write_text(PATCH.replace("VMALLOC", "VmAlloc"))
    words = [
        "--kernel",
        "6.12.3",
        "--requires",
        "fix-it",
        "--after",
        "fix-it",
        "--name",
        "proc/other.patch",
        "--id",
        "two",
    ]
    assert overlay("add", root, tmp_path / "other.patch", *words).exit_code == 0
    found, findings = lint(root)
    assert findings == ()
    assert found is not None
    first, second = found.entries
    assert (first.id, first.path, first.check, first.title) == ("fix-it", "Fix-it.patch", "fix.sh", "yes")
    assert (first.licence, first.author, first.cves) == ("MIT", "A <a@b.c>", ("CVE-2026-12345",))
    assert (second.id, second.path, second.requires) == ("two", "proc/other.patch", ("fix-it",))
    assert (root / "patches/Fix-it.patch").read_text() == PATCH


def test_a_commit_is_added_by_its_repository(tmp_path: Path) -> None:
    root = make_overlay(tmp_path)
    before = (root / "elivepatch.yml").read_text()
    assert overlay("add", root, "--commit", f"stable:{COMMIT}", "--id", "c", "--kernel", "6.12.9").exit_code == 0
    assert (root / "elivepatch.yml").read_text().startswith(before)
    assert lint(root)[1] == ()
    assert overlay("add", root, "--commit", f"other:{COMMIT}", "--id", "d", "--kernel", "6.12.9").exit_code == 2
    assert overlay("add", root, "--commit", "stable:main", "--id", "d", "--kernel", "6.12.9").exit_code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{tmp}/no.patch", "--kernel", "6.1.1"], "cannot be read"),
        (["{tmp}/text", "--kernel", "6.1.1"], "is not a patch"),
        (["{tmp}/good.patch", "--kernel", "newest"], "neither a release"),
        (["{tmp}/good.patch", "--kernel", "6.1.1", "--id", "first"], "'first'"),
        (["{tmp}/good.patch", "--kernel", "6.1.1", "--id", "--x"], "form"),
        (["{tmp}/good.patch", "--kernel", "6.1.1", "--name", "../x"], "form"),
        (["{tmp}/good.patch", "--kernel", "6.1.1", "--name", "third.patch"], "another file already"),
        (["{tmp}/good.patch", "--kernel", "6.1.1", "--requires", "nothing"], "no such patch"),
        (["{tmp}/good.patch", "--kernel", "6.1.1", "--title", "a\nb"], "line"),
        (["{tmp}/good.patch"], "--kernel"),
        (["--kernel", "6.1.1"], "Either PATCH or --commit"),
    ],
)
def test_what_cannot_be_added_leaves_all_as_it_was(tmp_path: Path, words: list[str], said: str) -> None:
    root = make_overlay(tmp_path / "o")
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "good.patch").write_text(PATCH.replace("VMALLOC", "VmAlloc"))
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    done = overlay("add", root, *(word.format(tmp=tmp_path) for word in words))
    assert done.exit_code == 2
    assert said in done.output
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_an_overlay_is_not_made_twice_nor_added_to_where_there_is_none(tmp_path: Path) -> None:
    root = make_overlay(tmp_path / "o")
    assert overlay("init", root).exit_code == 2
    (tmp_path / "good.patch").write_text(PATCH)
    assert overlay("add", tmp_path, tmp_path / "good.patch", "--kernel", "6.1.1").exit_code == 2


@pytest.mark.parametrize("title", ["", "two\nlines", "x" * 301])
def test_what_lint_would_not_take_is_not_made(tmp_path: Path, title: str) -> None:
    done = overlay("init", tmp_path / "o", "--title", title)
    assert (done.exit_code, "'title'" in done.output, (tmp_path / "o").exists()) == (2, True, False)


def test_no_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    root = make_overlay(tmp_path / "o", files={})
    (root / "patches").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "good.patch").write_text(PATCH)
    assert overlay("add", root, tmp_path / "good.patch", "--kernel", "6.1.1").exit_code == 2
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        new_description("x", "MIT"),
        "schema: 1\npatches: []   # none yet",
        "schema: 1\npatches:\n- id: a\n  kernels: 6.1.1\n  patch: a.patch   # the end",
        "schema: 1\npatches:\n    - id: a\n      kernels:\n        - 6.1.1\n      patch: a.patch\n\n\n# the end\n",
        "schema: 1\npatches:\n  -\n    id: a\n    kernels: 6.1.1\n    patch: 'a.patch'\n\nlicence: MIT\n",
        "patches:\n- {id: a, kernels: 6.1.1, patch: a.patch}\nschema: 1\n",
        "schema: 1\npatches:\n- id: a\n  kernels: 6.1.1\n  patch: a.patch\n  title: >-\n    folded\n    text\n",
        DESCRIPTION,
    ],
)
def test_an_entry_goes_behind_the_others_and_all_else_stays(text: str) -> None:
    changed = add_entry(text, ENTRY)
    findings = Findings()
    overlay = parse_description(changed.encode(), findings)
    assert not findings.errors
    assert overlay is not None
    assert overlay.entries[-1].id == "new"
    assert overlay.entries[-1].title == "a: b # c"
    lines = iter(changed.splitlines())
    kept = [line.replace("[]", "").rstrip() for line in text.splitlines()]
    assert all(any(line.replace("[]", "").rstrip() == old for line in lines) for old in kept)  # in the same order


@pytest.mark.parametrize(
    "text",
    [
        "schema: 1\npatches: [{id: a, kernels: 6.1.1, patch: a.patch}]\n",
        "{schema: 1, patches: []}\n",
        "schema: 1\npatches:\n  []\n",
        "schema: 1\n",
        OLD,
    ],
)
def test_where_an_entry_cannot_be_added_that_is_said(text: str) -> None:
    with pytest.raises(ElivepatchError) as error:
        add_entry(text, ENTRY)
    assert error.value.hint


@given(st.text(max_size=60))
def test_what_is_quoted_is_read_as_it_was(text: str) -> None:
    if not text.isprintable() or not text.strip():
        return
    findings = Findings()
    node = read_yaml(f"key: {quoted(text)}\n", findings)
    assert findings.found == []
    assert isinstance(node, Fields)
    value = node.get("key")
    assert isinstance(value, Scalar)
    assert (value.text, value.type) == (text, None)


def test_files_of_the_support_are_what_they_seem(tmp_path: Path) -> None:
    assert lint(make_overlay(tmp_path, DESCRIPTION, FILES))[1] == ()
