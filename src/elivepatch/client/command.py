# SPDX-License-Identifier: GPL-2.0-or-later
"""What every command of ``elivepatch`` begins and ends with: host, output and settings; errors and interruptions."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from elivepatch.client.host import Host
from elivepatch.client.interruption import INTERRUPTED, begin
from elivepatch.client.output import Output, printable
from elivepatch.errors import ElivepatchError, HostError, InternalError, InvalidSettingError

if TYPE_CHECKING:
    from elivepatch.client.settings import Settings

FILE = click.Path(path_type=Path)
#: Where the flags of the program itself are kept for its subcommands.
FLAGS = "elivepatch.flags"


@contextlib.contextmanager
def ending_well(output: Output) -> Generator[list[str]]:
    """Errors of ours as message, hint and exit status; anything else is a bug and shows where.

    The list takes the warnings of the way there, which are part of the outcome however it ends.
    """
    begin()
    warnings: list[str] = []
    try:
        yield warnings
    except (ElivepatchError, PermissionError) as raised:
        error = raised if isinstance(raised, ElivepatchError) else _denied(raised)
        output.error(error)
        tell_failure(output, error.exit_status, error.code, error.message, error.hint, warnings)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        tell_failure(output, INTERRUPTED, "interrupted", "It was interrupted.", None, warnings)
        output.line(
            "elivepatch: interrupted. A load under way was undone; a build goes on at the server: ask again to get it."
        )
        sys.exit(INTERRUPTED)
    except (click.ClickException, click.Abort, BrokenPipeError):
        raise
    except Exception as error:
        bug = f"{InternalError().message} {type(error).__name__}: {error}"
        tell_failure(output, InternalError.exit_status, InternalError.code, bug, None, warnings)
        error.add_note(InternalError().message)
        raise


def _denied(error: PermissionError) -> HostError:
    """Directories that only root may look into are usual: /sys is one on hosts that hide what they are made of."""
    return HostError(
        f"{error.filename or 'What is needed'} may not be used: {error.strerror}.",
        hint="Run this with sudo, or name another place. Where root may not, see the audit log: a security module "
        "forbids it.",
    )


def tell_failure(
    output: Output, exit_status: int, code: str, message: str, hint: str | None, warnings: Sequence[str]
) -> None:
    """The outcome as JSON, where that was asked for."""
    if not output.as_json:
        return
    from elivepatch.client.outcome import Failure, Outcome

    # a file may be called anything; what is not UTF-8 in that cannot be JSON
    failure = Failure(code=code, message=printable(message), hint=hint and printable(hint))
    outcome = Outcome(status="error", exit_status=exit_status, error=failure, warnings=tuple(warnings))
    with contextlib.suppress(ElivepatchError):  # that stdout takes nothing is what went wrong, or comes behind that
        output.data(outcome.dump())


def settings_for(host: Host, output: Output, file: Path | None, flags: dict[str, object]) -> Settings:
    """The settings with the flags that were given; ``file`` takes the place of the usual one."""
    from elivepatch.client.settings import load_settings

    given = {name: value for name, value in flags.items() if value not in (None, ())}
    settings = load_settings(file=file, environment=os.environ, flags=given, user=host.user)
    output.debug_wanted = settings.debug
    if settings.log_output:
        try:
            output.log_to(settings.log_output)
        except InvalidSettingError as error:
            if "log_output" in given:
                raise
            output.warn(error.message)  # a file of settings is for all users and commands, also at boot
    return settings


def shared_flags(flags: dict[str, Any]) -> dict[str, object]:
    """Those flags of the program itself that count for its subcommands too."""
    names = {"url": "url", "debug": "debug", "transition_timeout": "timeout", "log_output": "log_output"}
    return {setting: flags[flag] for setting, flag in names.items()}


@dataclass(frozen=True)
class Command:
    """A subcommand that runs."""

    host: Host
    output: Output
    settings: Settings
    warnings: list[str] = field(default_factory=list[str])


@contextlib.contextmanager
def subcommand(context: click.Context, *, as_json: bool, **flags: object) -> Generator[Command]:
    """Begin a subcommand; ``flags`` are its own that are settings.

    What it needs beside the settings is read in by itself before: only then is it answered as it should be when it is
    interrupted, and no command pays for what another needs.
    """
    import_module("elivepatch.client.settings")  # so that nothing is left to be read in behind `begin`

    host = context.ensure_object(Host)
    of_program: dict[str, Any] = context.meta[FLAGS]
    output = Output(as_json=as_json or of_program["as_json"])
    with ending_well(output) as warnings:
        own = {name: value for name, value in flags.items() if value is not None}
        settings = settings_for(host, output, of_program["conf_file"], shared_flags(of_program) | own)
        yield Command(host, output, settings, warnings)
