# SPDX-License-Identifier: GPL-2.0-or-later
"""The patch author's page and the code name the same rules."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from elivepatch.patches import limits

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/patches.md").read_text(encoding="utf-8")
RULE = re.compile(r"[a-z]+(?:-[a-z]+)*")


def makers_of(tree: ast.Module) -> set[str]:
    """What makes a finding or an error: whatever takes a ``rule``; a class by its own name."""
    found = {"Diagnosis"}
    for node in ast.walk(tree):
        for part in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(part, ast.FunctionDef) and any(word.arg == "rule" for word in part.args.args[:3]):
                found.add(node.name if isinstance(node, ast.ClassDef) and part.name == "__init__" else part.name)
    return found


def rules_of(tree: ast.Module, makers: set[str]) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        values: list[ast.expr] = []
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in makers:
                values = [*node.args[:2], *(word.value for word in node.keywords if word.arg == "rule")]
        elif isinstance(node, ast.Assign) and "rule" in ast.unparse(node.targets[0]):  # rule, message = "x", …
            choices = [node.value.body, node.value.orelse] if isinstance(node.value, ast.IfExp) else [node.value]
            values = [choice.elts[0] for choice in choices if isinstance(choice, ast.Tuple)]
        elif isinstance(node, ast.For) and "rule" in ast.unparse(node.target):  # a table of rules
            rows = node.iter.elts if isinstance(node.iter, ast.Tuple) else []
            values = [row.elts[0] for row in rows if isinstance(row, ast.Tuple)]
        texts = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        found.update(text for text in texts if RULE.fullmatch(text))
    return found


def test_every_rule_has_its_section_and_every_section_its_rule() -> None:
    documented = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)
    assert len(documented) == len(set(documented))
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "src/elivepatch/patches").glob("*.py")]
    makers = set[str]().union(*(makers_of(tree) for tree in trees))
    assert {"_finding", "_fail", "NameProblem", "Diagnosis"} <= makers
    assert set[str]().union(*(rules_of(tree, makers) for tree in trees)) == set(documented)


def test_the_limits_are_those_of_the_code() -> None:
    assert f"up to {limits.PATCH_BYTES // 1024**2} MiB each, up to {limits.PATCHES} patches" in PAGE
    assert f"and {limits.FILES} files" in PAGE
    assert f"larger than {limits.PATCH_BYTES // 1024**2} MiB" in PAGE
    assert f"more than {limits.PATCHES} patches" in PAGE
    assert f"more than {limits.FILES} files" in PAGE
