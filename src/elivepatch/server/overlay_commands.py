# SPDX-License-Identifier: GPL-2.0-or-later
"""``elivepatch-server overlay``: the overlays that the server watches. They work with the server running or not."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from elivepatch.errors import ElivepatchError, InvalidInputError
from elivepatch.overlay.findings import Findings
from elivepatch.overlay.mirror import Synced
from elivepatch.progress import printable
from elivepatch.server import settings as server_settings
from elivepatch.server.overlay_mirrors import mirror_of, write
from elivepatch.server.settings import Settings

_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")


@click.group("overlay")
def overlay() -> None:
    """The overlays that the server watches and builds ahead."""


@overlay.command("list")
@_JSON
def list_command(as_json: bool) -> None:
    """List the overlays of the settings, and which commit of each is in force."""
    settings = server_settings.load()
    rows = [_row(settings, name) for name in settings.overlays]
    if as_json:
        click.echo(json.dumps(rows))
        return
    if not rows:
        click.echo("no overlay is configured")
    for row in rows:
        click.echo(printable(_line(row)))


@overlay.command("sync")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--allow-rewind", is_flag=True, help="Take a head that does not follow from what is here, this once.")
@_JSON
def sync_command(names: tuple[str, ...], allow_rewind: bool, as_json: bool) -> None:
    """Fetch what the overlays have now, check it, and put it in force; all of them without a name.

    A server that runs takes it over the next time it looks. Exit status: 0 all are up to date, else that of the first
    that is not.
    """
    settings = server_settings.load()
    if not settings.overlays:
        raise InvalidInputError("No overlay is configured.", hint="Add a table [overlays.NAME] with its url.")
    if allow_rewind and len(names) != 1:
        raise InvalidInputError("--allow-rewind is for one overlay.", hint="Name the one whose history was rewritten.")
    rows: list[dict[str, Any]] = []  # Any: JSON
    status = 0
    for name in names or tuple(settings.overlays):
        try:
            done = _sync(settings, name, allow_rewind=allow_rewind)
        except ElivepatchError as error:
            status = status or error.exit_status
            rows.append({"name": name, "error": {"code": error.code, "message": error.message, "hint": error.hint}})
            click.echo(f"elivepatch-server: {printable(error.message)}", err=True)
            if error.hint:
                click.echo(f"hint: {printable(error.hint)}", err=True)
            continue
        rows.append(_row(settings, name) | {"before": done.before})
        if not as_json:
            what = "now at" if done.changed else "unchanged at"
            click.echo(f"{name}: {what} {done.state.commit[:12]}, {len(done.overlay.entries)} entries")
    if as_json:
        click.echo(json.dumps(rows))
    sys.exit(status)


def _sync(settings: Settings, name: str, *, allow_rewind: bool) -> Synced:
    findings = Findings()
    done = mirror_of(settings, name).sync(name, write, findings, allow_rewind=allow_rewind)
    for found in findings.found:
        click.echo(f"warning: {name}: {found.file}, line {found.line}: {printable(found.message)}", err=True)
    return done


def _row(settings: Settings, name: str) -> dict[str, Any]:  # Any: JSON
    one = settings.overlays[name]
    row: dict[str, Any] = {"name": name, "url": one.url, "branch": one.branch}
    try:
        state = mirror_of(settings, name).state()
    except ElivepatchError as error:
        return row | {"problem": error.message}
    if state is None:
        return row | {"commit": None}
    return row | {"commit": state.commit, "synced": state.synced, "signer": state.signer}


def _line(row: dict[str, Any]) -> str:
    place = f"{row['name']:12}  {row['url']} {row['branch']}"
    if "problem" in row:
        return f"{place}  {row['problem']}"
    if row["commit"] is None:
        return f"{place}  not here yet"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["synced"]))
    signed = f"  signed by {row['signer']}" if row["signer"] else ""
    return f"{place}  {row['commit'][:12]} of {when}{signed}"
