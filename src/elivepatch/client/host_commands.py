# SPDX-License-Identifier: GPL-2.0-or-later
"""The subcommands that look at this host's livepatches, or change which of them are in force.

Each reads in what it needs when it is run, before it begins: 'status' must not take the time that a request takes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from elivepatch.client.command import FILE, subcommand
from elivepatch.errors import HostError, InvalidInputError

_JSON_HELP = "Print the outcome as JSON on stdout."
_TIMEOUT_HELP = "How long a transition may take."


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print the status as JSON on stdout.")
@click.option("--prometheus", type=FILE, metavar="FILE", help="Write it to FILE too, as text for Prometheus.")
@click.pass_context
def status_command(context: click.Context, as_json: bool, prometheus: Path | None) -> None:
    """Show which livepatches the kernel holds and where they come from.

    Exit status: 0 all is as it should be; 7 somebody should look; 8 a livepatch is in transition, or being changed.
    """
    from elivepatch.client.metrics import write_metrics
    from elivepatch.client.status import host_status, status_lines

    with subcommand(context, as_json=as_json) as command:
        found = host_status(command.host, command.settings.state_dir, guard=command.settings.crash_guard)
        if prometheus:
            write_metrics(prometheus, found)
        command.output.data(found.dump())
        for line in status_lines(found):
            command.output.result(line)
        sys.exit(found.exit_status)


@click.command("history")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON on stdout.")
@click.pass_context
def history_command(context: click.Context, name: str | None, as_json: bool) -> None:
    """Show what was asked for, loaded and reverted on this host, or all of it that is about the livepatch NAME."""
    from elivepatch.client.history import history_lines, told_history
    from elivepatch.client.state import StateDirectory

    with subcommand(context, as_json=as_json) as command:
        found = told_history(StateDirectory(command.settings.state_dir, command.host.user), name)
        command.output.data(found.dump())
        for line in history_lines(found):
            command.output.result(line)


@click.command("info")
@click.argument("module")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON on stdout.")
@click.pass_context
def info_command(context: click.Context, module: str, as_json: bool) -> None:
    """Show all that is known of MODULE: the name of a livepatch of this host, or a module file."""
    from elivepatch.client.history import info, info_lines
    from elivepatch.client.state import StateDirectory

    with subcommand(context, as_json=as_json) as command:
        found = info(module, command.host, StateDirectory(command.settings.state_dir, command.host.user))
        command.output.data(found.dump())
        for line in info_lines(found):
            command.output.result(line)


@click.command("load")
@click.argument("module", type=FILE)
@click.argument("parameters", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--report", type=FILE, metavar="FILE", help="The report of its build, as JSON.")
@click.option("--no-report", is_flag=True, help="Load what elivepatch did not build, until the host goes down.")
@click.option(
    "-p",
    "--patch",
    "patches",
    type=FILE,
    metavar="PATCH",
    multiple=True,
    help="Patch that the module was made from, so that later livepatches can contain it; may be repeated.",
)
@click.option("--drop-earlier", is_flag=True, help="Let the effects of livepatches that are in force end.")
@click.option("--beside", is_flag=True, help="With --no-report: leave livepatches that are in force as they are.")
@click.option("--no-verify", is_flag=True, help="Load what was not tried in a VM.")
@click.option("--accept-warnings", is_flag=True, help="Load although the layout of memory in use changes.")
@click.option("--force", is_flag=True, help="End a transition that does not finish in time by force. Dangerous.")
@click.option("--kpatch", is_flag=True, default=None, help="Load through the program kpatch.")
@click.option("--timeout", type=float, metavar="SECONDS", help=_TIMEOUT_HELP)
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
@click.pass_context
def load_command(
    context: click.Context,
    module: Path,
    parameters: tuple[str, ...],
    report: Path | None,
    no_report: bool,
    patches: tuple[Path, ...],
    drop_earlier: bool,
    beside: bool,
    no_verify: bool,
    accept_warnings: bool,
    force: bool,
    kpatch: bool | None,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Check and load the file MODULE, which was built elsewhere.

    Without a report, parameters of the module may follow.
    """
    from elivepatch.client.load_file import FileLoad, FileWish
    from elivepatch.client.summary import summary

    if (report is None) != no_report:
        raise click.UsageError("Either --report FILE or --no-report.", context)
    if report and (parameters or beside):
        raise click.UsageError("Parameters and --beside are for modules without a report (--no-report).", context)
    if beside and drop_earlier:
        raise click.UsageError("Either --beside or --drop-earlier.", context)

    flags = {"verify": False if no_verify else None, "kpatch": kpatch, "transition_timeout": timeout}
    with subcommand(context, as_json=as_json, **flags) as command:
        wish = FileWish(module, report, patches, parameters, accept_warnings, drop_earlier, beside, force)
        done = FileLoad(wish, command.settings, command.host, command.output, command.warnings).run()
        command.output.data(done.dump())
        command.output.result(summary(done))


@click.command("revert")
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="Revert all livepatches of this kernel.")
@click.option("--dry-run", is_flag=True, help="Tell what would be done; change nothing.")
@click.option("--timeout", type=float, metavar="SECONDS", help="How long the transition back may take.")
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
@click.pass_context
def revert_command(
    context: click.Context, name: str | None, everything: bool, dry_run: bool, timeout: float | None, as_json: bool
) -> None:
    """Disable the livepatch NAME, or the only one that there is, and unload its module."""
    from elivepatch.client.dry_revert import RevertingDry, dry_revert_lines
    from elivepatch.client.revert import Reverting, revert_lines

    if name and everything:
        raise click.UsageError("Either NAME or --all.", context)
    with subcommand(context, as_json=as_json, transition_timeout=timeout) as command:
        if dry_run:
            told = RevertingDry(command.settings, command.host, command.output).tell(name, everything=everything)
            command.output.data(told.dump())
            for line in dry_revert_lines(told):
                command.output.result(line)
            return
        reverting = Reverting(command.settings, command.host, command.output)
        if everything:
            done = reverting.all()
            command.output.data(done.dump())
            reverted, exit_status = done.reverted, done.exit_status
        else:
            one = reverting.one(name)
            command.output.data(one.dump())
            reverted, exit_status = (one,), one.exit_status
        for line in revert_lines(reverted) if reverted or exit_status == 0 else ():
            command.output.result(line)
        sys.exit(exit_status)


@click.command("boot")
@click.option("--timeout", type=float, metavar="SECONDS", help=_TIMEOUT_HELP)
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
@click.pass_context
def boot_command(context: click.Context, timeout: float | None, as_json: bool) -> None:
    """Load what was in force for this kernel when the host went down. For the init system."""
    from elivepatch.client.boot import Boot, boot_line

    with subcommand(context, as_json=as_json, transition_timeout=timeout) as command:
        done = Boot(command.settings, command.host, command.output, command.warnings).run()
        command.output.data(done.dump())
        command.output.result(boot_line(done))
        sys.exit(done.exit_status)


@click.command("allow")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
@click.pass_context
def allow_command(context: click.Context, name: str, as_json: bool) -> None:
    """Let the livepatch NAME be loaded again at boot, although the host went down with it."""
    from elivepatch.client.boot import Boot

    with subcommand(context, as_json=as_json) as command:
        done = Boot(command.settings, command.host, command.output, command.warnings).allow(name)
        command.output.data(done.dump())
        command.output.result(f"{done.name} is loaded again when the host comes up; 'elivepatch boot' does it now")


@click.command("mark")
@click.argument("what", type=click.Choice(["alive", "shutdown"]))
@click.option("--json", "as_json", is_flag=True, help="Print errors as JSON on stdout.")
@click.pass_context
def mark_command(context: click.Context, what: str, as_json: bool) -> None:
    """Write down that the host is up, or that it goes down in an orderly way. For the init system."""
    from elivepatch.client.boot import Boot

    with subcommand(context, as_json=as_json) as command:
        Boot(command.settings, command.host, command.output, command.warnings).mark(shutdown=what == "shutdown")


@click.command("repair")
@click.option("--json", "as_json", is_flag=True, help="Print the status afterwards as JSON on stdout.")
@click.pass_context
def repair_command(context: click.Context, as_json: bool) -> None:
    """Make good what a crash or a kill left unfinished. Every command that changes something does so first."""
    from elivepatch.client.settle import Settling
    from elivepatch.client.state import StateDirectory
    from elivepatch.client.status import host_status, status_lines
    from elivepatch.kernel.running import running_kernel

    with subcommand(context, as_json=as_json) as command:
        if command.host.user != 0:
            raise HostError("The journal belongs to root.", hint="Run this with sudo.")
        state = StateDirectory(command.settings.state_dir, command.host.user)
        if state.path.exists():
            with state.locked():
                settling = Settling(command.host, command.settings, state, command.output)
                if not settling.run(running_kernel(command.host.root)):
                    command.output.line("nothing was left unfinished")
        found = host_status(command.host, command.settings.state_dir, guard=command.settings.crash_guard)
        command.output.data(found.dump())
        for line in status_lines(found):
            command.output.result(line)
        sys.exit(found.exit_status)


@click.command("uninstall")
@click.option("--keep-loaded", is_flag=True, help="Leave the livepatches in the kernel, until the host goes down.")
@click.option("--yes", is_flag=True, help="Do it; without this flag it is only told what would be done.")
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
@click.pass_context
def uninstall_command(context: click.Context, keep_loaded: bool, yes: bool, as_json: bool) -> None:
    """Revert this client's livepatches and remove all that it keeps on this host."""
    from elivepatch.client.uninstall import Uninstalling

    with subcommand(context, as_json=as_json) as command:
        uninstalling = Uninstalling(command.settings, command.host, command.output, keep_loaded=keep_loaded)
        if not yes:
            for line in uninstalling.plan():
                command.output.line(line)
            raise InvalidInputError("Nothing was done.", hint="With --yes it is done.")
        done = uninstalling.run()
        command.output.data(done.dump())
        command.output.result(f"{done.removed} is removed")


COMMANDS = (
    status_command,
    history_command,
    info_command,
    load_command,
    revert_command,
    boot_command,
    allow_command,
    mark_command,
    repair_command,
    uninstall_command,
)
