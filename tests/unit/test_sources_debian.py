# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's sources: what needs no apt."""

from __future__ import annotations

import pytest

from elivepatch.errors import InvalidSettingError
from elivepatch.sources.debian import backports_list


def test_backports_come_from_where_the_suite_does() -> None:
    sources = (
        "deb http://mirror.example/debian trixie main\n"
        "deb http://mirror.example/debian trixie-updates main\n"
        "deb [signed-by=/k.gpg] https://other.example/d trixie main contrib\n"
        "deb-src http://mirror.example/debian trixie main\n"
    )
    assert backports_list(sources, "trixie") == (
        "deb http://mirror.example/debian trixie-backports main\n"
        "deb [signed-by=/k.gpg] https://other.example/d trixie-backports main contrib\n"
    )


def test_a_list_without_the_suite_has_no_backports() -> None:
    with pytest.raises(InvalidSettingError, match="trixie"):
        backports_list("deb http://mirror.example/debian bookworm main\n", "trixie")
