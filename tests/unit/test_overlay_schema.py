# SPDX-License-Identifier: GPL-2.0-or-later
"""The published JSON Schema, the page and the reader say the same."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from click.testing import CliRunner

from elivepatch.client.cli import cli
from elivepatch.overlay import schema
from elivepatch.overlay.findings import Findings
from elivepatch.overlay.json_schema import json_schema
from elivepatch.overlay.lint import parse_description
from elivepatch.process import run
from overlay_support import COMMIT, DESCRIPTION

DOCS = Path(__file__).parents[2] / "docs"


def data(text: str) -> Any:
    return yaml.safe_load(text)


def test_it_is_published_as_the_command_prints_it() -> None:
    printed = CliRunner().invoke(cli, ["overlay", "schema"]).stdout
    assert (DOCS / "overlay-schema.json").read_text() == printed


def test_it_knows_the_keys_that_the_reader_knows() -> None:
    root = json_schema()["properties"]
    assert tuple(root) == schema.ROOT_KEYS
    entry = root["patches"]["items"]["properties"]
    assert tuple(entry) == schema.ENTRY_KEYS
    assert tuple(entry["commit"]["properties"]) == schema.COMMIT_KEYS
    page = (DOCS / "overlays.md").read_text()
    rows = {
        key for row in re.findall(r"^\| (`[^|]+`) \|", page, re.MULTILINE) for key in re.findall(r"`([a-z-]+)`", row)
    }
    assert set(schema.ROOT_KEYS) | set(schema.ENTRY_KEYS) <= rows


def test_the_example_of_the_page_is_good() -> None:
    page = (DOCS / "overlays.md").read_text()
    example = re.search(r"^    schema: 1\n(?:(?:    .*)?\n)+", page, re.MULTILINE)
    assert example is not None
    text = re.sub(r"^    ", "", example[0], flags=re.MULTILINE)
    findings = Findings()
    overlay = parse_description(text.encode(), findings)
    assert findings.found == []
    assert overlay is not None
    assert len(overlay.entries) == 2
    jsonschema_rs.validate(json_schema(), data(text))


def test_a_good_description_is_good_to_both() -> None:
    jsonschema_rs.validate(json_schema(), data(DESCRIPTION))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("schema: 1", "schema: 2"),
        ("schema: 1\n", ""),
        ("licence: GPL-2.0-only", "license: GPL-2.0-only"),
        ("- id: third", "- id: Third"),
        ("- id: third\n  kernels", "- kernels"),
        ("  patch: third.patch\n", ""),
        ("  requires: [first]", "  patch: third.patch"),
        ("patch: third.patch", "patch: ../third.patch"),
        ("patch: third.patch", "patch: /etc/passwd"),
        ("patch: third.patch", "patch: --output"),
        (COMMIT, COMMIT[:12]),
        ("CVE-2026-12345", "CVE-26-1"),
        ("https://git.example.org/linux.git", "file:///etc"),
        ("cves: [CVE-2026-12345]", "cves: []"),
    ],
)
def test_what_is_wrong_is_wrong_to_both(old: str, new: str) -> None:
    text = DESCRIPTION.replace(old, new, 1)
    assert text != DESCRIPTION
    findings = Findings()
    parse_description(text.encode(), findings)
    assert findings.errors
    assert not jsonschema_rs.is_valid(json_schema(), data(text))


def test_other_commands_do_not_wait_for_yaml_to_be_read_in() -> None:
    code = "import sys, elivepatch.client.cli; print(sorted({'yaml', 'tree_sitter', 'sqlalchemy'} & set(sys.modules)))"
    assert run([sys.executable, "-c", code], timeout=60).stdout.strip() == "[]"
