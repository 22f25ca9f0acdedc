# SPDX-License-Identifier: GPL-2.0-or-later
"""``elivepatch completion``: what a shell needs to complete the command line."""

from __future__ import annotations

import click

from elivepatch.completion import SHELLS, script

#: Names that only the host knows, by the argument that takes them; fixed words for a shell.
_NAMES = {"name": "ls /sys/kernel/livepatch 2>/dev/null"}


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print the completion of the command line for SHELL: bash, zsh or fish."""
    click.echo(script(context.find_root().command, "elivepatch", shell, _NAMES), nl=False)
