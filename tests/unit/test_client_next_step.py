# SPDX-License-Identifier: GPL-2.0-or-later
"""Every error that the client raises itself names the next step."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import elivepatch.client
from elivepatch.errors import error_classes

_PLACE = Path(elivepatch.client.__file__).parent
#: Names of errors whose class brings no hint of its own.
_BARE = {cls.__name__ for cls in error_classes() if cls.default_hint is None}


def raised(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            yield node.exc


@pytest.mark.parametrize("path", sorted(_PLACE.glob("*.py")), ids=lambda path: path.name)
def test_every_error_has_a_hint(path: Path) -> None:
    without = [
        f"{path.name}:{call.lineno} {ast.unparse(call.func)}"
        for call in raised(ast.parse(path.read_text()))
        if ast.unparse(call.func) in _BARE and not any(word.arg == "hint" for word in call.keywords)
    ]
    assert not without
