# SPDX-License-Identifier: GPL-2.0-or-later
"""The subcommands of ``elivepatch overlay`` for hosts that use one, and for who tries one.

As in `overlay_commands`, what they need is imported when they run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from elivepatch.client.command import FILE, subcommand
from elivepatch.client.overlay_commands import FINDINGS
from elivepatch.errors import ElivepatchError

_JSON_HELP = "Print the outcome as JSON on stdout."
_UPSTREAM_HELP = "Upstream version of that kernel, where its release does not tell it: 6.1.174."
_DISTRIBUTION_HELP = "Distribution that it is of: ID or ID:VERSION_ID of os-release."
_ONLY_HELP = "Only the patch with this id, and what it requires; may be repeated."


@click.command("list")
@click.argument("overlay", required=False)
@click.option("--for", "release", metavar="RELEASE", help="Say what becomes of each on this kernel.")
@click.option("--upstream", metavar="VERSION", help=_UPSTREAM_HELP)
@click.option("--distribution", metavar="ID", help=_DISTRIBUTION_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON on stdout.")
@click.pass_context
def list_command(
    context: click.Context,
    overlay: str | None,
    release: str | None,
    upstream: str | None,
    distribution: str | None,
    as_json: bool,
) -> None:
    """Show what the overlays of this host have, or OVERLAY: one of them, or a directory."""
    from elivepatch.client.overlay_list import list_lines, overlay_list
    from elivepatch.client.overlays import Overlays

    with subcommand(context, as_json=as_json) as command:
        overlays = Overlays(command.settings, command.host, command.output)
        kernel = overlays.kernel(release, upstream, distribution) if release else None
        unusable: dict[str, ElivepatchError] = {}
        found = overlay_list(overlays.open(overlay, unusable), kernel, unusable)
        command.output.data(found.dump())
        for line in list_lines(found):
            command.output.result(line)


@click.command("sync")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--allow-rewind", is_flag=True, help="Take a head that does not follow from what is here, this once.")
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
@click.pass_context
def sync_command(context: click.Context, names: tuple[str, ...], allow_rewind: bool, as_json: bool) -> None:
    """Fetch what the overlays of the settings have now, check it, and keep it. Nothing is loaded."""
    from elivepatch.client.overlays import Overlays

    with subcommand(context, as_json=as_json) as command:
        results = Overlays(command.settings, command.host, command.output).sync(names, allow_rewind=allow_rewind)
        told: list[dict[str, object]] = []
        status = 0
        for name, done in results:
            if isinstance(done, ElivepatchError):
                status = status or done.exit_status
                told.append({"name": name, "error": {"code": done.code, "message": done.message, "hint": done.hint}})
                command.output.error(done)
                continue
            state = done.state
            signed = f", signed by {state.signer}" if state.signer else ""
            how = f"now at {state.commit[:12]}" if done.changed else f"unchanged at {state.commit[:12]}"
            told.append(
                {
                    "name": name,
                    "commit": state.commit,
                    "before": done.before,
                    "signer": state.signer,
                    "patches": len(done.overlay.entries),
                }
            )
            command.output.result(f"{name}: {how}{signed}, {len(done.overlay.entries)} patches")
        command.output.data({"exit_status": status, "overlays": told})
        sys.exit(status)


@click.command("apply")
@click.argument("overlay", required=False)
@click.option("--only", metavar="ID", multiple=True, help=_ONLY_HELP)
@click.option("--skip", metavar="ID", multiple=True, help="Leave the patch with this id out; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Tell what would be sent and loaded; send and change nothing.")
@click.option("--no-load", is_flag=True, help="Fetch and check the module, do not load it.")
@click.option("-o", "--output", type=FILE, metavar="OUT", help="Write the module to this file too.")
@click.option("--no-verify", is_flag=True, help="Do without the boot test, and load what was not tried.")
@click.option("--accept-warnings", is_flag=True, help="Load although the layout of memory in use changes.")
@click.option("--drop-earlier", is_flag=True, help="Let the effects of livepatches that are in force end.")
@click.option("--force", is_flag=True, help="End a transition that does not finish in time by force. Dangerous.")
@click.option("--timeout", type=float, metavar="SECONDS", help="How long the transition may take.")
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
@click.pass_context
def apply_command(
    context: click.Context,
    overlay: str | None,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    dry_run: bool,
    no_load: bool,
    output: Path | None,
    no_verify: bool,
    accept_warnings: bool,
    drop_earlier: bool,
    force: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Load all that the overlays of this host have for its kernel, or OVERLAY: one of them, or a directory."""
    from elivepatch.client.overlay_apply import Applying, ApplyWish
    from elivepatch.client.overlays import Overlays
    from elivepatch.client.summary import tell

    flags = {
        "load": False if no_load else None,
        "verify": False if no_verify else None,
        "transition_timeout": timeout,
    }
    with subcommand(context, as_json=as_json, **flags) as command:
        wish = ApplyWish(overlay, only, skip, output, accept_warnings, drop_earlier, force, dry_run)
        overlays = Overlays(command.settings, command.host, command.output)
        tell(Applying(wish, overlays, command.warnings).run(), command.output)


@click.command("test")
@click.argument("overlay", required=False)
@click.option("--kernel", "release", metavar="RELEASE", help="Kernel to try it on; the running one otherwise.")
@click.option("--upstream", metavar="VERSION", help=_UPSTREAM_HELP)
@click.option("--distribution", metavar="ID", help=_DISTRIBUTION_HELP)
@click.option("--only", metavar="ID", multiple=True, help=_ONLY_HELP)
@click.option("--no-verify", is_flag=True, help="Build without the boot test.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON on stdout.")
@click.pass_context
def test_command(
    context: click.Context,
    overlay: str | None,
    release: str | None,
    upstream: str | None,
    distribution: str | None,
    only: tuple[str, ...],
    no_verify: bool,
    as_json: bool,
) -> None:
    """Let the server build and boot-test each patch that is for a kernel. Exit status: 0 all are good; 3 not all."""
    from elivepatch.client.overlay_trial import Trying, trial_lines
    from elivepatch.client.overlays import Overlays

    with subcommand(context, as_json=as_json) as command:
        overlays = Overlays(command.settings, command.host, command.output)
        kernel = overlays.kernel(release, upstream, distribution)
        trials = Trying(overlays, verify=not no_verify).run(overlay, kernel, only)
        command.output.data(trials.dump())
        for line in trial_lines(trials):
            command.output.result(line)
        sys.exit(0 if trials.good else FINDINGS)


OVERLAY_COMMANDS = (list_command, sync_command, apply_command, test_command)
