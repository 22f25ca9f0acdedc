# SPDX-License-Identifier: GPL-2.0-or-later
"""The manual pages: every flag, command and setting is in them, and groff has nothing to say about them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import man_pages
import pytest

ROOT = Path(__file__).parents[2]


def rendered(source: str) -> str:
    """The page as it is read on a terminal, without its line ends; every warning of groff is an error."""
    argv = ["groff", "-man", "-Tascii", "-P-cbou", "-Kutf8", "-ww", "-rLL=300n", "-rHY=0"]
    done = subprocess.run(argv, input=source, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return done.stdout


def flags(command: click.Command) -> Iterator[str]:
    for one in command.get_params(click.Context(command, **command.context_settings)):
        if isinstance(one, click.Option) and not one.hidden:
            yield from (*one.opts, *one.secondary_opts)


def commands(command: click.Command, words: str = "") -> Iterator[tuple[str, click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command, **command.context_settings)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, f"{words} {name}".strip())


@pytest.fixture(scope="module", params=man_pages.PROGRAMS)
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def page(program: str) -> str:
    return rendered(man_pages.page(program, *man_pages.parts(program)))


def section(page: str, title: str) -> str:
    """The text under a heading; ``title`` is that of a section or, with three spaces before it, of a part of one."""
    found = re.search(rf"^{re.escape(title)}\n(.*?)(?=^\S|^   \S|\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"no {title!r}"
    return found[1]


def test_every_flag_of_every_command_is_in_its_place(program: str, page: str) -> None:
    for words, command in commands(man_pages.parts(program)[0]):
        text = section(page, f"   {words}" if words else "OPTIONS")
        for flag in flags(command):
            assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", text), f"{program} {words} {flag}"
        assert words in " ".join(section(page, "SYNOPSIS").split())


def test_every_setting_is_there_with_its_default(program: str, page: str) -> None:
    text = section(page, "SETTINGS")
    for name, field in man_pages.parts(program)[1].model_fields.items():
        assert re.search(rf"^ +{name}\b", text, re.MULTILINE), name
        if isinstance(field.default, int | float | str):
            assert str(field.default).lower() in text.lower(), name


def test_the_sections_are_those_of_a_manual_page(page: str) -> None:
    found = re.findall(r"^([A-Z][A-Z ]+)$", page, re.MULTILINE)
    assert found == (
        "NAME SYNOPSIS DESCRIPTION OPTIONS COMMANDS SETTINGS FILES|EXIT STATUS|EXAMPLES|SEE ALSO".replace(" ", "|", 6)
    ).split("|")


def test_exit_statuses_are_those_of_the_documentation(program: str, page: str) -> None:
    documented = set(re.findall(r"^\| (\d+) \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE))
    said = set(re.findall(r"^ +(\d+) ", section(page, "EXIT STATUS"), re.MULTILINE))
    assert said <= documented
    assert documented - said == (set[str]() if program == "elivepatch" else {"7", "8", "130", "141"})


def test_text_is_never_taken_for_a_command() -> None:
    assert rendered(".TH X 8\n.SH A\n" + man_pages.escaped(".so /etc/passwd\n'x \\n(.c -- a\\b")).count("passwd") == 1
    assert "\\n(.c -- a\\b" in rendered(".TH X 8\n.SH A\n" + man_pages.escaped("a \\n(.c -- a\\b"))


def test_the_date_is_that_of_the_source(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert "1970-01-01" in man_pages.page(program, *man_pages.parts(program))


def test_the_program_writes_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(man_pages.sys, "argv", ["man_pages.py", str(tmp_path / "man")])
    man_pages.main()
    assert sorted(path.name for path in (tmp_path / "man").iterdir()) == ["elivepatch-server.8", "elivepatch.8"]
