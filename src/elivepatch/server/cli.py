# SPDX-License-Identifier: GPL-2.0-or-later
"""The command ``elivepatch-server``: the server itself, one-shot builds, administration.

Without a subcommand it serves, with the flags that it always had. Commands live in modules of their own and are
loaded when they are called: a one-shot build needs no web framework.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import sys
from pathlib import Path
from typing import Any

import click

from elivepatch.errors import ElivepatchError
from elivepatch.version import installed_version

#: Subcommands: where each lives, as module and name.
_COMMANDS = {
    "build": ("elivepatch.server.build_command", "build"),
    "completion": ("elivepatch.server.completion_command", "completion_command"),
    "cve": ("elivepatch.server.cve_commands", "cve"),
    "gc": ("elivepatch.server.admin_commands", "gc"),
    "kernel": ("elivepatch.server.admin_commands", "kernel"),
    "overlay": ("elivepatch.server.overlay_commands", "overlay"),
    "proof": ("elivepatch.server.proof_command", "proof"),
    "root": ("elivepatch.server.admin_commands", "root"),
    "serve": ("elivepatch.server.serve_command", "serve"),
}


class _Lazy(click.Group):
    """A group whose commands are loaded when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands."""
        del ctx
        return sorted(name for name, (module, _) in _COMMANDS.items() if importlib.util.find_spec(module))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module, name = _COMMANDS[cmd_name]
        command: object = getattr(importlib.import_module(module), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{name} is not a command.")
        return command


@click.group(cls=_Lazy, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-j", "--jobs", "parallel", type=int, metavar="JOBS", help="Programs that one build runs at once.")
@click.option("-H", "--host", metavar="HOST", help="Address to listen on; 127.0.0.1 by default.")
@click.option("-P", "--port", type=int, metavar="PORT", help="TCP port to listen on; 5000 by default.")
@click.option("-T", "--threaded", is_flag=True, help="Accepted for compatibility: requests never wait for each other.")
@click.option("-d", "--debug", is_flag=True, default=None, help="Log everything.")
@click.option(
    "-C",
    "--cert",
    "--ssl-cert",
    type=click.Path(path_type=Path),
    metavar="CERT",
    help="PEM certificate chain, for HTTPS; 'adhoc' makes one that nobody vouches for.",
)
@click.option(
    "-K",
    "--key",
    "--ssl-key",
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="PEM private key of the certificate.",
)
@click.version_option(installed_version(), prog_name="elivepatch-server")
@click.pass_context
def cli(
    ctx: click.Context,
    parallel: int | None,
    host: str | None,
    port: int | None,
    threaded: bool,
    debug: bool | None,
    cert: Path | None,
    key: Path | None,
) -> None:
    """Build live patches for the kernels that hosts run. Without a command: serve them over HTTP."""
    del threaded
    given: dict[str, Any] = {  # Any: of many types, each checked by the settings
        "parallel": parallel,
        "host": host,
        "port": port,
        "debug": debug,
        "tls_certificate": cert,
        "tls_key": key,
    }
    if ctx.invoked_subcommand is not None:
        named = [name for name, value in given.items() if value is not None]
        if named and ctx.invoked_subcommand != "serve":
            raise click.UsageError(f"-j, -H, -P, -d, -C and -K are for serving, not for '{ctx.invoked_subcommand}'.")
        ctx.obj = given
        return
    from elivepatch.server.serve_command import run  # only now: see the module

    run(**given)


def main() -> None:
    """Run the command; the exit status is that of the error tree."""
    try:
        status: object = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except ElivepatchError as error:
        if logging.getLogger().isEnabledFor(logging.DEBUG):
            logging.getLogger(__name__).debug("Where it came from:", exc_info=True)
        click.echo(f"elivepatch-server: {error.message}", err=True)
        for finding in error.diagnosis:
            place = ":".join(str(part) for part in (finding.file, finding.line) if part is not None)
            click.echo(f"  {place + ': ' if place else ''}{finding.message}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
        if "--json" in sys.argv[1:]:  # whoever reads JSON gets some, however it ends
            told = {"code": error.code, "message": error.message, "hint": error.hint}
            click.echo(json.dumps({"status": "error", "exit_status": error.exit_status, "error": told}))
        sys.exit(error.exit_status)
    sys.exit(status if isinstance(status, int) else 0)
