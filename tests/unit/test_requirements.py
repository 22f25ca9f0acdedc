# SPDX-License-Identifier: GPL-2.0-or-later
"""The pinned Python packages: what is packed is what is tested here, each with its digests, and nothing is left out."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import packages
import pytest

ROOT = Path(__file__).parents[2]
PACKED = {part.name: part.requirements for part in packages.PARTS}


def pins(file: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", file.read_text(), re.MULTILINE))


@pytest.mark.parametrize("part", PACKED)
def test_what_is_packed_is_what_is_tested(part: str) -> None:
    found = pins(PACKED[part])
    development = pins(ROOT / "requirements/dev.txt")
    assert found
    assert {name: version for name, version in found.items() if development.get(name) != version} == {}


@pytest.mark.parametrize("part", PACKED)
def test_all_that_the_project_names_is_pinned(part: str) -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = project["dependencies"] + (project["optional-dependencies"]["server"] if part == "server" else [])
    wanted = {re.split(r"[^A-Za-z0-9_-]", one)[0].lower() for one in named}
    assert wanted <= pins(PACKED[part]).keys()


@pytest.mark.parametrize("part", PACKED)
def test_every_pin_has_digests(part: str) -> None:
    for pin in re.split(r"\n(?=\S)", PACKED[part].read_text().strip()):
        assert "--hash=sha256:" in pin, pin
