# SPDX-License-Identifier: GPL-2.0-or-later
"""The subcommands of ``elivepatch overlay``.

What they need is imported when they run: reading YAML would take a sixth of the start of every other command.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from elivepatch.client.command import FILE, subcommand

#: Exit status of lint where there is something to mend (the contract of docs/overlays.md).
FINDINGS = 3
_JSON_HELP = "Print the outcome as JSON on stdout."


@click.group("overlay")
def overlay_command() -> None:
    """Overlays: repositories in which people keep and share patches."""


@overlay_command.command("init")
@click.argument("directory", type=FILE)
@click.option("--title", default="Patches for livepatches", help="What the overlay is for, in a line.")
@click.option("--licence", default="GPL-2.0-only", help="SPDX id for patches that say none.")
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
@click.pass_context
def init_command(context: click.Context, directory: Path, title: str, licence: str, as_json: bool) -> None:
    """Make a new overlay in DIRECTORY."""
    from elivepatch.client.overlay_files import init_overlay

    with subcommand(context, as_json=as_json) as command:
        description = init_overlay(directory, title, licence)
        command.output.data({"written": [str(description)]})
        command.output.result(f"{description} is written; add a patch with 'elivepatch overlay add {directory} PATCH'")


@overlay_command.command("add")
@click.argument("directory", type=FILE)
@click.argument("patch", type=FILE, required=False)
@click.option("--commit", metavar="REPOSITORY:ID", help="A commit in place of PATCH, of a repository of the overlay.")
@click.option("--id", "name", help="Id of the patch; made of the file's name otherwise.")
@click.option("--name", "path", help="Name of the file below patches/; that of PATCH otherwise.")
@click.option("--title", help="What it does, in a line.")
@click.option("--kernel", "kernels", multiple=True, required=True, help="Kernels that it is for; may be repeated.")
@click.option("--distribution", "distributions", multiple=True, help="ID or ID:VERSION_ID; may be repeated.")
@click.option("--cve", "cves", multiple=True, help="CVE that it closes; may be repeated.")
@click.option("--requires", multiple=True, help="Id of a patch that must be applied before; may be repeated.")
@click.option("--after", multiple=True, help="Id of a patch that goes before it, where applied; may be repeated.")
@click.option("--licence", help="SPDX id, if not that of the overlay.")
@click.option("--author", help="Who wrote it.")
@click.option("--tested-with", multiple=True, metavar="RELEASE", help="Kernel it was tested with; may be repeated.")
@click.option("--check", type=FILE, metavar="SCRIPT", help="Check script for the boot test.")
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
@click.pass_context
def add_command(
    context: click.Context,
    directory: Path,
    patch: Path | None,
    commit: str | None,
    name: str | None,
    path: str | None,
    title: str | None,
    kernels: tuple[str, ...],
    distributions: tuple[str, ...],
    cves: tuple[str, ...],
    requires: tuple[str, ...],
    after: tuple[str, ...],
    licence: str | None,
    author: str | None,
    tested_with: tuple[str, ...],
    check: Path | None,
    as_json: bool,
) -> None:
    """Add the file PATCH, or a commit, to the overlay in DIRECTORY."""
    from elivepatch.client.overlay_files import NewFiles, add_patch, entry_id, file_name
    from elivepatch.overlay.edit import NewEntry

    if (patch is None) == (commit is None):
        raise click.UsageError("Either PATCH or --commit.", context)
    with subcommand(context, as_json=as_json) as command:
        stored = path or (file_name(patch) if patch else None)
        repository, _, commit_id = (commit or "").rpartition(":")
        entry = NewEntry(
            id=name or entry_id(stored or commit_id),
            title=title,
            kernels=kernels,
            distributions=distributions,
            patch=stored,
            commit=(repository, commit_id) if commit else None,
            cves=cves,
            requires=requires,
            after=after,
            licence=licence,
            author=author,
            tested_with=tested_with,
            check=file_name(check) if check else None,
        )
        written = add_patch(directory, NewFiles(patch, check), entry)
        command.output.data({"id": entry.id, "written": [str(file) for file in written]})
        for file in written:
            command.output.result(f"{file} is written")


@overlay_command.command("lint")
@click.argument("directory", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON on stdout.")
@click.pass_context
def lint_command(context: click.Context, directory: Path, as_json: bool) -> None:
    """Check the overlay in DIRECTORY. Exit status: 0 clean; 3 there are findings."""
    from elivepatch.client.overlay_files import lint_report
    from elivepatch.overlay.lint import lint

    with subcommand(context, as_json=as_json) as command:
        overlay, findings = lint(directory)
        report = lint_report(directory, len(overlay.entries) if overlay else 0, findings)
        command.output.data(report.dump())
        for line in report.lines():
            command.output.result(line)
        sys.exit(FINDINGS if findings else 0)


@overlay_command.command("schema")
@click.pass_context
def schema_command(_context: click.Context) -> None:
    """Print the JSON Schema of elivepatch.yml."""
    from elivepatch.overlay.json_schema import json_schema_text

    click.echo(json_schema_text(), nl=False)
