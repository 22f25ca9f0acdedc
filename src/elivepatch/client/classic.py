# SPDX-License-Identifier: GPL-2.0-or-later
"""What scripts and files of the first version say, and what it means here.

The first client read its command line with argparse and its file with configparser (its argsparser.py): the file's
section ``[Defaults]`` has the long names of the flags, and the command line counts over it.
"""

from __future__ import annotations

import configparser
import contextlib
import re
import sys
from collections.abc import Generator
from typing import Any

import click

from elivepatch.client.interruption import READER_GONE
from elivepatch.client.output import Output, give_up_stdout, unwritten
from elivepatch.kernel.running import RunningKernel

#: The long names of the classic flags, which are the keys of the file, and which setting each is.
_SETTINGS = {
    "config": "config",
    "kernel_version": "kernel_version",
    "patch": "patch",
    "url": "url",
    "debug": "debug",
    "cve": "cve",
    "clear": "clear",
    "log_output": "log_output",
}
#: Keys that the first client took and that mean nothing in a file.
_WITHOUT_MEANING = {"conf_file", "version"}
#: What its -d took: the names of the levels of Python's logging and its own, or a number. True: the build's output too.
_LEVELS = {"debug": True, "info": False, "notice": False, "warning": False, "error": False, "critical": False}
_DEBUG_NUMBER = 10
_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)?", re.ASCII)


def is_defaults(text: str) -> bool:
    """Whether a file is one of the first version: whether it has its section."""
    return re.search(r"(?m)^\[Defaults\]", text) is not None


def read_defaults(text: str) -> dict[str, object]:
    """The settings of a classic file. Raises configparser.Error, which names the key or the line.

    As the first client did it reads ``%(name)s`` as the value of another key, ``%%`` as ``%``, and the section
    ``[DEFAULT]`` as values for all; a ``%`` that is none of these stays what it is.
    """
    parser = configparser.ConfigParser()
    parser.read_string(text)
    if "Defaults" not in parser:  # the line goes on behind its bracket
        raise configparser.NoSectionError("Defaults")
    section = parser["Defaults"]
    inherited = parser.defaults()
    found: dict[str, object] = {}
    for key in section:
        setting = _SETTINGS.get(key)
        if setting is None:
            if key in inherited or key in _WITHOUT_MEANING:
                continue
            raise configparser.Error(f"'{key}' is none of {', '.join(sorted(_SETTINGS))}")
        try:
            value = section[key]
        except configparser.InterpolationSyntaxError:
            value = parser.get("Defaults", key, raw=True)
        if value:
            level = debug_level(value) if setting == "debug" else None
            found[setting] = value if level is None else level
    return found


def debug_level(word: str) -> bool | None:
    """Whether a level of the classic ``-d`` means to show everything; None for what is no level."""
    if word.isascii() and word.isdigit():
        return 0 < int(word[:4]) <= _DEBUG_NUMBER
    return _LEVELS.get(word.lower())


def names_running(version: str, kernel: RunningKernel) -> bool:
    """Whether what was typed after ``-a`` is the running kernel: its release, or the version that it was made from.

    The classic flag takes ``5.1.6`` on a host that runs 5.1.6-gentoo. Debian's release has the version of its source
    where /proc/version has it: ``6.1.192`` is 6.1.0-56-amd64.
    """
    if version == kernel.release:
        return True
    if not _VERSION.fullmatch(version):
        return False
    rest = kernel.release.removeprefix(version)
    if rest != kernel.release and not rest[:1].isalnum() and rest[:1] != ".":
        return True
    return re.search(rf"\bDebian {re.escape(version)}-\d", kernel.version) is not None


@contextlib.contextmanager
def _stdout_may_end() -> Generator[None]:
    """Usage, version and the like are written outside of what `ending_well` covers; it marks what is a bug."""
    try:
        yield
    except BrokenPipeError:
        give_up_stdout()
        sys.exit(READER_GONE)
    except OSError as error:
        if error.filename is not None or hasattr(error, "__notes__"):
            raise
        failure = unwritten(error)
        Output().error(failure)
        sys.exit(failure.exit_status)


class ClassicGroup(click.Group):
    """The program: it also understands ``-d LEVEL``, the classic way to say how much is told."""

    def make_context(  # Any: as click has it
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Begin; flags that only show something do it here."""
        with _stdout_may_end():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:  # Any: as click has it
        """Do what was asked for."""
        with _stdout_may_end():
            return super().invoke(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words of the command line."""
        return super().parse_args(ctx, self._modern(args))

    def _modern(self, args: list[str]) -> list[str]:
        words: list[str] = []
        at = 0
        while at < len(args):
            word = args[at]
            if word in self.commands or word == "--":
                return words + args[at:]
            flag, mark, level = word.partition("=")
            if flag in {"-d", "--debug"}:
                level = level if mark else args[at + 1] if at + 1 < len(args) else ""
                meant = debug_level(level)
                if meant is not None:
                    at += 1 if mark else 2
                    words += [flag] if meant else []
                    continue
            words.append(word)
            at += 1
        return words
