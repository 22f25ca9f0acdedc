# SPDX-License-Identifier: GPL-2.0-or-later
"""``elivepatch cve``: the CVE mode step by step."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from elivepatch.client.command import FILE, subcommand
from elivepatch.errors import InvalidInputError

if TYPE_CHECKING:
    from elivepatch.client.command import Command
    from elivepatch.client.cve_mode import CveOutcome
    from elivepatch.client.outcome import Outcome
    from elivepatch.client.output import Output

_JSON = click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON on stdout.")
_VEX = click.option("--vex", type=FILE, metavar="FILE", help="Write it as OpenVEX too, for scanners.")
_ONLY = click.option("--only", metavar="CVE", multiple=True, help="Only this one; may be given several times.")
_SCORE = click.option("--min-score", type=click.FloatRange(0, 10), metavar="SCORE", help="None that is scored lower.")


@click.group("cve")
def cve_group() -> None:
    """The vulnerabilities of the running kernel, and closing them."""


def _run(
    command: Command, vex: Path | None, until: Literal["list", "plan", "apply"], **more: Any
) -> NoReturn:  # Any: the fields of the choice
    from elivepatch.client.cve_mode import CveChoice, CveOutcome, CveRun
    from elivepatch.client.state import check_output, write_whole

    if vex is not None:
        check_output(vex)
    choice = CveChoice(until, **more)
    ended = CveRun(choice, command.settings, command.host, command.output, command.warnings).run()
    if vex is not None and isinstance(ended, CveOutcome):
        from elivepatch.client.vex import open_vex
        from elivepatch.kernel.running import running_kernel

        document = open_vex(ended, running_kernel(command.host.root))
        write_whole(vex, document.encode(), mode=0o644)
        command.output.line(f"OpenVEX: {vex}")
    end_cve_run(ended, command.output)


def end_cve_run(ended: CveOutcome | Outcome, output: Output) -> NoReturn:
    """Print how it ended, and leave with its exit status."""
    from elivepatch.client.outcome import Outcome
    from elivepatch.client.summary import summary, tell

    if isinstance(ended, Outcome):  # no plan was made
        tell(ended, output)
        sys.exit(ended.exit_status)
    output.data(ended.dump())
    outcome = ended.outcome
    if outcome is not None and outcome.error is not None:
        report = outcome.build.report if outcome.build else None
        output.failure(outcome.error.message, outcome.error.hint, report.diagnosis if report else ())
    elif outcome is not None:
        output.result(summary(outcome))
    if ended.status == "applied":
        output.result(f"closed: {', '.join(ended.closed)}")
    sys.exit(ended.exit_status)


def _name(text: str) -> str:
    from elivepatch.protocol.cves import CVE_ID

    name = text.upper()
    if not CVE_ID.fullmatch(name):
        raise InvalidInputError(f"'{text[:40]}' is not the name of a vulnerability.", hint="Like CVE-2026-46300.")
    return name


@cve_group.command("list")
@_VEX
@_JSON
@click.pass_context
def list_command(context: click.Context, vex: Path | None, as_json: bool) -> None:
    """List the vulnerabilities of the running kernel; nothing is tried."""
    with subcommand(context, as_json=as_json) as command:
        _run(command, vex, "list")


@cve_group.command("plan")
@_ONLY
@_SCORE
@_VEX
@_JSON
@click.pass_context
def plan_command(
    context: click.Context, only: tuple[str, ...], min_score: float | None, vex: Path | None, as_json: bool
) -> None:
    """Say which of them can be closed now: the server tries the fixes. Nothing is loaded."""
    with subcommand(context, as_json=as_json) as command:
        _run(command, vex, "plan", only=tuple(map(_name, only)), min_score=min_score)


@cve_group.command("apply")
@_ONLY
@_SCORE
@click.option("-y", "--yes", is_flag=True, help="Load without asking.")
@click.option("--accept-warnings", is_flag=True, help="Load even where a fix changes the layout of data.")
@_VEX
@_JSON
@click.pass_context
def apply_command(
    context: click.Context,
    only: tuple[str, ...],
    min_score: float | None,
    yes: bool,
    accept_warnings: bool,
    vex: Path | None,
    as_json: bool,
) -> None:
    """Close what can be closed: one livepatch with all fixes that work, and what is in force already."""
    with subcommand(context, as_json=as_json) as command:
        _run(
            command,
            vex,
            "apply",
            only=tuple(map(_name, only)),
            min_score=min_score,
            yes=yes,
            accept_warnings=accept_warnings,
        )


@cve_group.command("show")
@click.argument("name", metavar="CVE")
@_JSON
@click.pass_context
def show_command(context: click.Context, name: str, as_json: bool) -> None:
    """Show what is known of one vulnerability: where it came in, where it is fixed, which files have it."""
    from elivepatch.client.connection import Connection
    from elivepatch.protocol.cves import CveDetails

    with subcommand(context, as_json=as_json) as command:
        settings, output = command.settings, command.output
        wanted = _name(name)
        with Connection(settings.url, command.host.clock, ca_certificate=settings.ca_certificate) as connection:
            found = connection.get(f"/cves/{wanted}", CveDetails)
        output.data(found.dump())
        output.result(f"{found.id}  {found.title}")
        if found.score is not None:
            output.result(f"  CVSS {found.score} {found.vector or ''}".rstrip())
        output.result(f"  files: {', '.join(found.files) or 'none named'}")
        for span in found.spans:
            fixed = f"fixed in {span.fixed} ({(span.fixed_commit or '')[:12]})" if span.fixed else "not fixed"
            output.result(f"  since {span.since or 'ever'}: {fixed}")
        output.result(f"  data of {found.data_date}")
