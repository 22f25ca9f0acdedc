# SPDX-License-Identifier: GPL-2.0-or-later
"""The manual pages of both programs, made from their commands, their settings, and the texts in man_texts.py.

    man_pages.py DIR [PROGRAM…]      writes DIR/PROGRAM.8, for both programs unless some are named

They are in the language of man(7). For the client's page alone nothing of the server's Python packages is needed. The
version is that of the installation, or ELIVEPATCH_VERSION where nothing is installed yet. The date is that of
SOURCE_DATE_EPOCH where it is set, so that a package is built the same twice.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from man_texts import CLIENT, SERVER, Text
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from elivepatch.version import installed_version

SECTION = 8


def escaped(text: str) -> str:
    """Text as roff prints it: no character of it is a command, and a hyphen can be copied as one."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line[:1] in {".", "'"} else line for line in text.split("\n"))


def bold(text: str) -> str:
    """Text to be typed as it is."""
    return f"\\fB{escaped(text)}\\fR"


def italic(text: str) -> str:
    """Text that stands for something."""
    return f"\\fI{escaped(text)}\\fR"


def page(program: str, command: click.Command, settings: type[BaseModel], text: Text) -> str:
    """One page."""
    version = os.environ.get("ELIVEPATCH_VERSION") or installed_version()
    when = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))
    date = time.strftime("%Y-%m-%d", when)
    lines = [
        f'.\\" Made by scripts/man_pages.py from {program} and man_texts.py; do not edit.',
        f'.TH {escaped(program.upper())} {SECTION} {date} "elivepatch {escaped(version)}" "System administration"',
        ".SH NAME",
        f"{escaped(program)} \\- {escaped(text.summary)}",
        ".SH SYNOPSIS",
        *_synopsis(program, command),
        ".SH DESCRIPTION",
        *_paragraphs(text.description),
        ".SH OPTIONS",
        *_options(command),
        ".SH COMMANDS",
        *_commands(command, ""),
        ".SH SETTINGS",
        *_paragraphs(text.settings),
        *_settings(settings),
        ".SH FILES",
        *_terms((italic(name), escaped(meaning)) for name, meaning in text.files),
        ".SH EXIT STATUS",
        *_terms((bold(status), escaped(meaning)) for status, meaning in text.exits),
        ".SH EXAMPLES",
        *_examples(text.examples),
        ".SH SEE ALSO",
        ",\n".join(re.sub(r"(.+)\((\d)\)", lambda one: f"{bold(one[1])}({one[2]})", name) for name in text.see_also),
    ]
    return "\n".join(lines) + "\n"


def _paragraphs(texts: Iterable[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        if number:
            yield ".PP"
        yield escaped(text)


def _terms(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, meaning in pairs:
        yield from (".TP", term, meaning)


def _examples(examples: Iterable[tuple[str, str]]) -> Iterator[str]:
    for what, line in examples:
        yield from (".PP", escaped(what), ".PP", ".RS", ".nf", bold(line), ".fi", ".RE")


def _children(command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command, **command.context_settings)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                yield name, found


def _usage(words: str, command: click.Command) -> str:
    pieces = command.collect_usage_pieces(click.Context(command, **command.context_settings))
    return f"{bold(words)} {' '.join(italic(piece) for piece in pieces)}"


def _synopsis(words: str, command: click.Command) -> Iterator[str]:
    yield _usage(words, command)
    for name, child in _children(command):
        yield ".br"
        yield from _synopsis(f"{words} {name}", child)


def _metavar(option: click.Option) -> str:
    if option.is_flag or option.count:
        return ""
    if option.metavar:
        return option.metavar
    if isinstance(option.type, click.Choice):
        return "|".join(str(one) for one in option.type.choices)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]  # of any kind
    return option.type.name.upper()


def _options(command: click.Command) -> Iterator[str]:
    for option in command.get_params(click.Context(command, **command.context_settings)):
        if isinstance(option, click.Option) and not option.hidden:
            names = ", ".join(bold(name) for name in (*option.opts, *option.secondary_opts))
            metavar = _metavar(option)
            term = f"{names} {italic(metavar)}" if metavar else names
            yield from (".TP", term, escaped(" ".join((option.help or "Show the usage.").split())))


def _commands(command: click.Command, words: str) -> Iterator[str]:
    for name, child in _children(command):
        called = f"{words} {name}".strip()
        yield f'.SS "{escaped(called)}"'
        yield _usage(called, child)
        yield ".PP"
        yield escaped(" ".join((child.help or "").split()))
        yield from _options(child)
        yield from _commands(child, called)


def _settings(settings: type[BaseModel]) -> Iterator[str]:
    for name, field in settings.model_fields.items():
        default: object = field.default
        shown = "" if default in (None, (), PydanticUndefined) else f" Default: {_value(default)}."
        yield from (".TP", bold(name), escaped(f"{(field.description or '').rstrip('.')}.{shown}"))


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


PROGRAMS = ("elivepatch", "elivepatch-server")


def parts(program: str) -> tuple[click.Command, type[BaseModel], Text]:
    """What the page of a program is made from."""
    if program == "elivepatch":
        from elivepatch.client.cli import cli as client
        from elivepatch.client.settings import Settings as ClientSettings

        return client, ClientSettings, CLIENT
    from elivepatch.server.cli import cli as server
    from elivepatch.server.settings import Settings as ServerSettings

    return server, ServerSettings, SERVER


def main() -> None:
    programs = sys.argv[2:] or PROGRAMS
    if len(sys.argv) < 2 or not set(programs) <= set(PROGRAMS):
        sys.exit("usage: man_pages.py DIR [PROGRAM…]")
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for program in programs:
        path = directory / f"{program}.{SECTION}"
        path.write_text(page(program, *parts(program)), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
