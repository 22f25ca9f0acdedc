# SPDX-License-Identifier: GPL-2.0-or-later
"""Lint: what is wrong with an overlay is found, with rule, file and line."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner

from elivepatch.client.cli import cli
from elivepatch.overlay.findings import Findings
from elivepatch.overlay.lint import lint, parse_description
from elivepatch.overlay.schema import ENTRIES
from elivepatch.overlay.yaml_reader import DESCRIPTION_BYTES
from elivepatch.patches.limits import PATCH_BYTES
from overlay_support import COMMIT, DESCRIPTION, FILES, OLD, PATCH, make_overlay

ROOT = Path(__file__).parents[2]
YML = "elivepatch.yml"
FIRST, THIRD, SCRIPT = "patches/proc/first.patch", "patches/third.patch", "patches/proc/first.sh"


@dataclass(frozen=True)
class Case:
    """What is changed of the good overlay (its description, from ``old`` to ``new``; ``files``), and what is found."""

    rule: str
    line: int
    old: str = ""
    new: str = ""
    file: str = YML
    files: dict[str, str | bytes] = field(default_factory=dict[str, "str | bytes"])
    severity: str = "error"


CASES = {
    # the file as such
    "not YAML": Case("yaml-syntax", 11, '["6.12.*", ">=6.1.100 <6.1.175"]', '["6.12.*"'),
    "a range without quotes": Case("yaml-syntax", 24, '[">=6.12.100"]', ">=6.12.100"),
    "a tab": Case("yaml-syntax", 24, '  kernels: [">=6.12.100"]', "\tkernels: x"),
    "a control character": Case("yaml-syntax", 3, "Patches of", "Patches\x01of"),
    "an escape that is no character": Case("yaml-syntax", 1, "title: Patches of the tests", r'title: "\UFFFFFFFF"'),
    "an anchor": Case("yaml-anchor", 9, "title: Say it louder", "title: &a Say it louder"),
    "an alias": Case("yaml-alias", 9, "title: Say it louder", "title: *a"),
    "a tag": Case("yaml-tag", 9, "title: Say", "title: !!python/object/apply:os.system Say"),
    "a directive": Case("yaml-directive", 1, "# the overlay of the tests", "%YAML 1.1\n---"),
    "two documents": Case("yaml-documents", 23, "- id: third", "---\n- id: third"),
    "too deep": Case("yaml-depth", 9, "title: Say it louder", "title: [[[[[[[[[[x]]]]]]]]]]"),
    "a key that is no text": Case("yaml-key", 9, "  title: Say it louder", "  [a, b]: x"),
    "a key twice": Case("duplicate-key", 10, "  title: Say it louder", "  title: Say it louder\n  title: x"),
    "not UTF-8": Case("encoding", 3, files={YML: DESCRIPTION.encode().replace(b"Patches of", b"Patches\xff of")}),
    "a byte order mark": Case("encoding", 1, "# the overlay", "\ufeff# the overlay"),
    "empty": Case("missing-key", 1, DESCRIPTION, ""),
    "too large": Case("file-size", 1, "# the", "#" * DESCRIPTION_BYTES),
    # keys and values
    "a list only": Case("wrong-type", 1, DESCRIPTION, "- a\n- b\n"),
    "no schema": Case("missing-key", 2, "schema: 1\n", ""),
    "another schema": Case("schema-version", 2, "schema: 1", "schema: 2"),
    "no patches": Case("missing-key", 1, DESCRIPTION, "schema: 1\ntitle: x\n"),
    "patches that are no list": Case("wrong-type", 2, DESCRIPTION, "schema: 1\npatches: none\n"),
    "a patch that is a text": Case("wrong-type", 8, DESCRIPTION[DESCRIPTION.index("- id: first") :], "- x\n"),
    "an unknown key": Case("unknown-key", 4, "licence: GPL-2.0-only", "license: GPL-2.0-only"),
    "an unknown key of a patch": Case("unknown-key", 9, "  title: Say", "  tilte: Say"),
    "an unknown key of a commit": Case("unknown-key", 21, f'    id: "{COMMIT}"', f'    ident: "{COMMIT}"'),
    "no id": Case("missing-key", 23, "- id: third\n  kernels", "- kernels"),
    "no kernels": Case("missing-key", 23, '  kernels: [">=6.12.100"]\n', ""),
    "an empty value": Case("empty-value", 9, "title: Say it louder", "title:"),
    "an empty list": Case("empty-value", 13, "cves: [CVE-2026-12345]", "cves: []"),
    "a list for a text": Case("wrong-type", 9, "title: Say it louder", "title: [a]"),
    "a mapping for a list": Case("wrong-type", 13, "cves: [CVE-2026-12345]", "cves: {a: b}"),
    "a text of many lines": Case("text", 9, "title: Say it louder", "title: |\n    a\n    b"),
    "a text without end": Case("text", 9, "Say it louder", "x" * 301),
    "a number for a text": Case(
        "unquoted", 10, 'kernels: ["6.12.*", ">=6.1.100 <6.1.175"]', "kernels: 6.10", severity="warning"
    ),
    "a value twice": Case(
        "duplicate-value", 13, "cves: [CVE-2026-12345]", "cves: [CVE-2026-12345, CVE-2026-12345]", severity="warning"
    ),
    "an id with capitals": Case("entry-id", 23, "- id: third", "- id: Third"),
    "an id like an option": Case("entry-id", 23, "- id: third", "- id: --third"),
    "an id twice": Case("duplicate-id", 23, "- id: third", "- id: first"),
    "no licence of that name": Case("licence", 4, "licence: GPL-2.0-only", "licence: GPLv2"),
    "a wrong licence of a patch": Case("licence", 27, "GPL-2.0-or-later", "Proprietary"),
    "no CVE": Case("cve-id", 13, "CVE-2026-12345", "CVE-26-1"),
    # kernels
    "not a kernel": Case("kernel-range", 24, '">=6.12.100"', "newest"),
    "half a bound": Case("kernel-range", 24, '">=6.12.100"', '">= 6.12.100"'),
    "an empty range": Case("kernel-range", 24, '">=6.12.100"', '">=6.13 <6.12"'),
    "an operator that there is not": Case("kernel-range", 24, '">=6.12.100"', '"~6.12"'),
    "not a distribution": Case("distribution", 11, '"debian:13"', "Debian 13"),
    "tested with another kernel": Case(
        "tested-with", 15, "6.12.117+deb13-cloud-amd64", "5.10.1-gentoo", severity="warning"
    ),
    "tested with no kernel": Case("tested-with", 15, '"6.12.117+deb13-cloud-amd64"]\n  check', "yesterday]\n  check"),
    # patches and commits
    "neither patch nor commit": Case("patch-source", 23, "  patch: third.patch\n", ""),
    "both patch and commit": Case(
        "patch-source", 17, "  requires: [first]", "  patch: third.patch\n  requires: [first]"
    ),
    "a short commit": Case("commit-id", 21, COMMIT, COMMIT[:12]),
    "a branch for a commit": Case("commit-id", 21, f'"{COMMIT}"', "main"),
    "a commit without a repository": Case("missing-key", 20, "    repository: stable\n", ""),
    "a repository that is not there": Case("unknown-repository", 20, "repository: stable", "repository: other"),
    "a URL that is none": Case("repository-url", 6, "https://git.example.org/linux.git", "--upload-pack=x"),
    "a local repository": Case("repository-url", 6, "https://git.example.org/linux.git", "file:///etc"),
    "a repository that nobody needs": Case(
        "unused-repository", 7, "linux.git\n", "linux.git\n  other: https://git.example.org/x\n", severity="warning"
    ),
    "a path out of it": Case("patch-path", 25, "patch: third.patch", "patch: ../third.patch"),
    "an absolute path": Case("patch-path", 25, "patch: third.patch", "patch: /etc/passwd"),
    "a hidden path": Case("patch-path", 25, "patch: third.patch", "patch: .git/config"),
    "a path like an option": Case("patch-path", 25, "patch: third.patch", "patch: --output=x"),
    "a check script out of it": Case("patch-path", 16, "check: proc/first.sh", "check: ../../x"),
    "a patch that is not there": Case("missing-file", 23, "patch: third.patch", "patch: fourth.patch"),
    "a check that is not there": Case("missing-file", 8, "check: proc/first.sh", "check: proc/second.sh"),
    # references
    "requires nothing that is there": Case("unknown-entry", 22, "requires: [first]", "requires: [zeroth]"),
    "after nothing that is there": Case("unknown-entry", 26, "after: [second]", "after: [zeroth]"),
    "replaced by nothing that is there": Case("unknown-entry", 26, "after: [second]", "replaced-by: zeroth"),
    "replaced by two": Case("wrong-type", 26, "after: [second]", "replaced-by: [first, second]"),
    "requires itself": Case("cycle", 22, "requires: [first]", "requires: [second]"),
    "a circle of requires": Case("cycle", 8, "  check: proc/first.sh", "  check: proc/first.sh\n  requires: [second]"),
    "a circle of after and requires": Case(
        "cycle", 8, "  check: proc/first.sh", "  check: proc/first.sh\n  after: [third]"
    ),
    "requires what it replaces": Case(
        "cycle",
        18,
        "  check: proc/first.sh",
        "  check: proc/first.sh\n  replaced-by: second",
        severity="warning",
    ),
    "a circle where what is replaced is left out": Case(
        "cycle",
        18,
        "  check: proc/first.sh",
        "  check: proc/first.sh\n  replaced-by: third",
        severity="warning",
    ),
    "a circle of replacements": Case(
        "cycle",
        8,
        "  check: proc/first.sh\n- id: second",
        "  check: proc/first.sh\n  replaced-by: second\n- id: second\n  replaced-by: first",
    ),
    # files
    "no description": Case("no-description", 1, files={YML: b"-"}),
    "a file that nobody uses": Case(
        "unused-file", 1, file="patches/x.patch", files={"patches/x.patch": PATCH}, severity="warning"
    ),
    "a file name with a blank": Case("file-name", 1, file="patches", files={"patches/a b.patch": PATCH}),
    "a file name with a newline": Case("file-name", 1, file="patches", files={"patches/a\nb.patch": PATCH}),
    "a hidden file": Case("file-name", 1, file="patches", files={"patches/.git/config": "x"}),
    "a file name like an option": Case("file-name", 1, file="patches", files={"patches/-rf": "x"}),
    "a patch that is too large": Case("file-size", 1, file=THIRD, files={THIRD: b"x" * (PATCH_BYTES + 1)}),
    "an empty check script": Case("check-script", 1, file=SCRIPT, files={SCRIPT: "\n"}),
    "a check script of Windows": Case("check-script", 1, file=SCRIPT, files={SCRIPT: "#!/bin/sh\r\ntrue\r\n"}),
    # what is in a patch
    "no patch": Case("not-a-patch", 1, file=THIRD, files={THIRD: "hello\n"}),
    "an empty patch": Case("empty", 1, file=THIRD, files={THIRD: ""}),
    "a patch with a wrong count": Case("hunk-count", 9, file=THIRD, files={THIRD: PATCH.replace("-129,3", "-129,2")}),
    "a patch that leads out": Case(
        "escaping-name", 3, file=THIRD, files={THIRD: PATCH.replace("/fs/proc/meminfo.c", "/../../etc/passwd")}
    ),
    "a patch of assembly": Case("assembly", 3, file=THIRD, files={THIRD: PATCH.replace("meminfo.c", "meminfo.S")}),
    "a patch of a Makefile": Case(
        "build-file", 3, file=THIRD, files={THIRD: PATCH.replace("meminfo.c", "Makefile")}, severity="warning"
    ),
    "a patch of documentation": Case(
        "only-documentation", 1, file=THIRD, files={THIRD: PATCH.replace("fs/proc/meminfo.c", "Documentation/x.rst")}
    ),
}


def found(root: Path) -> list[tuple[str, str | None, int | None, str]]:
    return [(one.rule, one.file, one.line, one.severity) for one in lint(root)[1]]


def test_a_good_overlay_is_clean(tmp_path: Path) -> None:
    overlay, findings = lint(make_overlay(tmp_path))
    assert findings == ()
    assert overlay is not None
    assert [entry.id for entry in overlay.entries] == ["first", "second", "third"]
    first, second, third = overlay.entries
    assert (first.path, first.check, first.cves) == ("proc/first.patch", "proc/first.sh", ("CVE-2026-12345",))
    assert second.commit is not None
    assert (second.commit.url, second.commit.id) == ("https://git.example.org/linux.git", COMMIT)
    assert (second.licence, third.licence) == ("GPL-2.0-only", "GPL-2.0-or-later")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_is_wrong_is_found(case: Case, tmp_path: Path) -> None:
    assert not case.old or case.old in DESCRIPTION
    text = DESCRIPTION.replace(case.old, case.new, 1) if case.old else DESCRIPTION
    root = make_overlay(tmp_path, text, {**FILES, **case.files})
    if case.files.get(YML) == b"-":
        (root / YML).unlink()
    findings = lint(root)[1]
    assert (case.rule, case.file, case.line, case.severity) in found(root), findings
    for finding in findings:
        assert finding.message
        assert finding.hint
        assert finding.line
        assert finding.message.isprintable()
    same = [finding for finding in findings if finding.file == case.file and finding.line == case.line]
    assert len(same) == len({(one.rule, one.message) for one in same})


def test_there_are_enough_cases_and_each_rule_of_the_page_has_one() -> None:
    assert len(CASES) >= 40
    page = (ROOT / "docs/overlays.md").read_text()
    documented = set(re.findall(r'<a id="([a-z-]+)"></a>', page))
    source = "".join(path.read_text() for path in (ROOT / "src/elivepatch/overlay").glob("*.py"))
    rules = set(re.findall(r'\.add\(\s*"([a-z-]+)"', source))
    rules |= set(re.findall(r'_stop\("([a-z-]+)"', source))
    rules |= set(re.findall(r'(?:, [A-Z_]+|, parse_\w+), "([a-z-]+)"', source))
    assert rules <= documented
    elsewhere = {"too-many-files", "too-many-patches", "file-kind", "old-format"}  # tests of their own, below
    assert documented - elsewhere <= {case.rule for case in CASES.values()}


def test_the_command_tells_it_to_people_and_to_programs(tmp_path: Path) -> None:
    root = make_overlay(tmp_path / "good")
    done = CliRunner().invoke(cli, ["overlay", "lint", str(root), "--json"])
    assert (done.exit_code, json.loads(done.stdout)) == (
        0,
        {"overlay": str(root), "clean": True, "patches": 3, "findings": []},
    )
    bad = make_overlay(tmp_path / "bad", DESCRIPTION.replace("schema: 1", "schema: 7"))
    done = CliRunner().invoke(cli, ["overlay", "lint", str(bad), "--json"])
    assert done.exit_code == 3
    (finding,) = json.loads(done.stdout)["findings"]
    assert {"file", "line", "rule", "message", "hint"} <= set(finding)
    done = CliRunner().invoke(cli, ["overlay", "lint", str(bad)])
    assert done.exit_code == 3
    assert "elivepatch.yml:2: error [schema-version] '7' is no version of the schema." in done.stdout
    assert CliRunner().invoke(cli, ["overlay", "lint", str(tmp_path / "none")]).exit_code == 2


def test_laughs_in_any_number_take_neither_time_nor_memory(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 60)]
    began = time.monotonic()
    rules = {rule for rule, *_ in found(make_overlay(tmp_path, "schema: 1\npatches: []\n" + "\n".join(levels)))}
    assert {"yaml-anchor", "yaml-alias"} <= rules
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{" * 100_000,
        "- " * 100_000,
        "? " * 100_000,
        "a: " * 80_000,
        "schema: 1\npatches:\n" + "- {}\n" * 50_000,
        "schema: 1\npatches: []\n" + "".join(f"k{n}: 1\n" for n in range(20_000)),
        "x: '" + "\\" * 200_000,
        'x: "' + "\\x41" * 50_000 + '"',
        "#" * 250_000,
        "%YAML " + "9" * 10_000 + ".1\n---\nx: y\n",
        "\n" * 250_000,
        "x: |\n" + " \n" * 100_000,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_a_strange_description_ends_soon_and_with_findings(text: str) -> None:
    findings = Findings()
    began = time.monotonic()
    parse_description(text[:DESCRIPTION_BYTES].encode(), findings)
    assert findings.errors
    assert len(findings.found) <= 500
    assert time.monotonic() - began < 20


def test_long_chains_of_references_are_no_burden() -> None:
    entries = [
        f"- id: e{n}\n  kernels: 6.12.1\n  patch: a.patch\n  requires: [e{n + 1}]\n  after: [e{n + 2}]"
        for n in range(ENTRIES - 2)
    ]
    entries += [f"- id: e{n}\n  kernels: 6.12.1\n  patch: a.patch" for n in range(ENTRIES - 2, ENTRIES)]
    findings = Findings()
    began = time.monotonic()
    overlay = parse_description(("schema: 1\npatches:\n" + "\n".join(entries) + "\n").encode(), findings)
    assert overlay is not None
    assert findings.found == []
    assert time.monotonic() - began < 20


def test_more_patches_than_there_may_be() -> None:
    findings = Findings()
    text = "schema: 1\npatches:\n" + "".join(f"- {{id: e{n}, kernels: 6.1.1, patch: a}}\n" for n in range(ENTRIES + 1))
    overlay = parse_description(text.encode(), findings)
    assert [one.rule for one in findings.found] == ["too-many-patches"]
    assert overlay is not None
    assert len(overlay.entries) == ENTRIES


# -- what a directory can hold


def test_links_and_special_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(PATCH)
    root = make_overlay(tmp_path / "overlay")
    (root / "patches/link.patch").symlink_to(tmp_path / "secret")
    (root / "patches/up").symlink_to("..")
    os.mkfifo(root / "patches/pipe")
    rules = found(root)
    for name in ("link.patch", "up", "pipe"):
        assert ("file-kind", f"patches/{name}", 1, "error") in rules
    (root / YML).rename(root / "other")
    (root / YML).symlink_to("other")
    assert ("file-kind", YML, 1, "error") in found(root)


def test_a_link_in_place_of_patches_is_not_followed(tmp_path: Path) -> None:
    other = make_overlay(tmp_path / "other")
    root = make_overlay(tmp_path / "overlay", files={})
    (root / "patches").symlink_to(other / "patches")
    rules = found(root)
    assert ("file-kind", "patches", 1, "error") in rules
    assert ("missing-file", YML, 8, "error") in rules


@pytest.mark.parametrize("depth", [7, 40])
def test_a_directory_without_end(tmp_path: Path, depth: int) -> None:
    deep = "patches/" + "d/" * depth + "x.patch"
    rules = {rule for rule, *_ in found(make_overlay(tmp_path, files={**FILES, deep: PATCH}))}
    assert rules & {"too-many-files", "file-name"}


def test_more_files_than_there_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elivepatch.overlay.repository.FILES", 10)
    files: dict[str, str | bytes] = {f"patches/f{n}": "x" for n in range(30)}
    rules = [rule for rule, *_ in found(make_overlay(tmp_path, files={**FILES, **files}))]
    assert rules.count("too-many-files") == 1


# -- the old format


def test_the_old_format_is_read_as_it_was_meant(tmp_path: Path) -> None:
    overlay, findings = lint(make_overlay(tmp_path, OLD, {"patches/5.10.3/shout.patch": PATCH}))
    assert overlay is not None
    assert {(one.rule, one.severity) for one in findings} == {("old-format", "warning")}
    said = {one.line: one.message for one in findings}
    assert "0.1" in said[1]
    assert "5.10.3" in said[3]
    assert "5.10.3/shout.patch" in said[10]
    assert "GPL-2.0-only" in said[12]
    assert [entry.id for entry in overlay.entries] == ["5.10.3-1", "5.10.3-2", "5.10.4-1"]
    first, second, _ = overlay.entries
    assert first.commit is not None
    assert (first.commit.id, first.commit.url) == (COMMIT, "https://git.example.org/linux")
    assert (first.title, first.cves) == ("net: close a hole: twice", ("CVE-2020-99999",))
    assert (second.path, second.licence, second.kernels[0].text) == ("5.10.3/shout.patch", "GPL-2.0-only", "5.10.3")


@pytest.mark.parametrize(
    ("old", "new", "rule", "line"),
    [
        ("elivepatch_version: 0.1", "elivepatch_version: 0.3", "schema-version", 1),
        ("- 5.10.3\n", "", "old-format", 3),
        ("patches/5.10.3/shout.patch", "patches/../../shout.patch", "patch-path", 10),
        (COMMIT, COMMIT[:10], "commit-id", 6),
        ("https://git.example.org/linux", "--upload-pack=x", "repository-url", 7),
        ("CVE-2020-99999", "CVE-none", "cve-id", 5),
        ("comment: Say it louder", "remark: Say it louder", "old-format", 11),
        ("        path: patches/5.10.3/shout.patch\n        comment", "        comment", "patch-source", 9),
        ("license: GPLv2", "license: mine", "licence", 12),
        ("- 5.10.3\n", "- 5.10.3\n- 5.x\n", "kernel-range", 5),
        ("        comment: Say", "        path: x\n        comment: Say", "duplicate-key", 11),
    ],
)
def test_what_is_wrong_in_the_old_format_too(old: str, new: str, rule: str, line: int) -> None:
    findings = Findings()
    assert old in OLD
    parse_description(OLD.replace(old, new, 1).encode(), findings)
    assert (rule, line) in [(one.rule, one.line) for one in findings.errors]


def test_a_patch_of_its_author_s_machine_is_left_out() -> None:
    findings = Findings()
    text = OLD.replace("patches/5.10.3/shout.patch", "/home/me/shout.patch", 1)
    overlay = parse_description(text.encode(), findings)
    assert overlay is not None
    assert [entry.id for entry in overlay.entries] == ["5.10.3-1", "5.10.4-1"]
    assert not findings.errors
    assert any(one.line == 10 and "/home/me/shout.patch" in one.message for one in findings.found)


def test_the_same_number_twice_gives_two_patches() -> None:
    findings = Findings()
    overlay = parse_description(OLD.replace("patch_id: 2", "patch_id: 1").encode(), findings)
    assert overlay is not None
    assert [entry.id for entry in overlay.entries] == ["5.10.3-1", "5.10.3-1-9", "5.10.4-1"]
    assert not findings.errors
