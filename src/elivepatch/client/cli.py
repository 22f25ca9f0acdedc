# SPDX-License-Identifier: GPL-2.0-or-later
"""The program ``elivepatch``: the classic flags without a subcommand, and the subcommands beside them."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from elivepatch.client.classic import ClassicGroup
from elivepatch.client.command import FILE, FLAGS, ending_well, settings_for, shared_flags, subcommand, tell_failure
from elivepatch.client.completion_command import completion_command
from elivepatch.client.cve_commands import cve_group
from elivepatch.client.host import Host
from elivepatch.client.host_commands import COMMANDS
from elivepatch.client.interruption import INTERRUPTED
from elivepatch.client.output import Output, give_up_stderr
from elivepatch.client.overlay_commands import overlay_command
from elivepatch.client.overlay_host_commands import OVERLAY_COMMANDS
from elivepatch.errors import InvalidInputError
from elivepatch.version import installed_version

if TYPE_CHECKING:
    from elivepatch.client.settings import Settings

_FOR_SUBCOMMANDS = {"conf_file", "url", "debug", "timeout", "as_json", "log_output"}
_BUILD_DIRECTORY = "Where the running kernel was built; found by itself below /lib/modules and /usr/src otherwise."


def _version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        click.echo(f"elivepatch {installed_version()}")
        context.exit()


@click.group(
    cls=ClassicGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 done; 2 wrong usage or input; 3 refused; 4 does not fit, or not loaded; 5 boot test failed; "
    "6 server, kernel or source not available; 7 and 8 of status: look, and wait (7 of boot, too); "
    "130 interrupted; 1 a bug.",
)
@click.option(
    "-c",
    "--conf-file",
    "--conf_file",
    type=FILE,
    metavar="FILE",
    help="Settings to use instead of those in /etc/elivepatch/client.toml.",
)
@click.option(
    "-e",
    "--cve",
    is_flag=True,
    help="CVE mode: close the vulnerabilities that the running kernel has.",
)
@click.option(
    "-p",
    "--patch",
    type=FILE,
    metavar="PATCH",
    multiple=True,
    help="Patch to convert; may be repeated, in the order of application.",
)
@click.option(
    "-k",
    "--config",
    type=FILE,
    metavar="CONFIG",
    help="Configuration of the kernel, plain or gzip. Found by itself otherwise.",
)
@click.option(
    "-a",
    "--kernel-version",
    "--kernel_version",
    metavar="KERNEL_VERSION",
    help="Kernel to build for, if not the running one; then nothing is loaded.",
)
@click.option(
    "-l",
    "--clear",
    is_flag=True,
    help="Clear the record of closed CVEs. With caution: what is loaded stays.",
)
@click.option("-u", "--url", metavar="URL", help="Address of the build server.")
@click.option("-d", "--debug", is_flag=True, default=None, help="Show the output of the build too.")
@click.option(
    "--log-output", "--log_output", type=FILE, metavar="FILE", help="Write all that is told to this file too."
)
@click.option(
    "-v", "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version."
)
@click.option("-y", "--yes", is_flag=True, help="With -e: load without asking.")
@click.option(
    "--base-patch",
    type=FILE,
    metavar="FILE|DIR",
    multiple=True,
    help="Patch that the running kernel already has, or a directory of them; may be repeated.",
)
@click.option(
    "--no-base-patches",
    is_flag=True,
    help="Do not collect the patches that this host's package manager applies to its kernel.",
)
@click.option(
    "--kernel",
    "kernel_source",
    metavar="SOURCE",
    help="Source of the running kernel, if it is self-built: kernel.org:6.12.60, git:URL#REF, dir:PATH and the like.",
)
@click.option(
    "--drop-earlier",
    is_flag=True,
    help="Leave out the patches of livepatches that are in force: their effects end when the new one is loaded.",
)
@click.option("--build-directory", type=FILE, metavar="DIR", help=_BUILD_DIRECTORY)
@click.option("--no-image", is_flag=True, help="Do not send the image of a self-built kernel; the server builds it.")
@click.option("--dry-run", is_flag=True, help="Tell what would be sent and loaded; send and change nothing.")
@click.option("--no-load", is_flag=True, help="Fetch and check the module, do not load it.")
@click.option("-o", "--output", type=FILE, metavar="OUT", help="Write the module to this file too.")
@click.option(
    "--check",
    type=FILE,
    metavar="SCRIPT",
    help="Script for the boot test: must fail before the load, succeed after, fail after the revert.",
)
@click.option("--no-verify", is_flag=True, help="Do without the boot test, and load what was not tried.")
@click.option(
    "--proof",
    type=click.Choice(["exact", "layout"]),
    help="Weakest proof that is taken: layout (the default) also takes a kernel that the server had to build anew.",
)
@click.option(
    "--accept-warnings",
    is_flag=True,
    help="Load although the patch changes the layout of memory that the kernel has in use: it can corrupt data.",
)
@click.option(
    "--force",
    is_flag=True,
    help="End a transition that does not finish in time by force. Dangerous: tasks may meet old and new code.",
)
@click.option("--kpatch", is_flag=True, default=None, help="Load through the program kpatch.")
@click.option("--timeout", type=float, metavar="SECONDS", help="How long the transition may take before it is undone.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON on stdout.")
@click.pass_context
def cli(context: click.Context, /, **flags: Any) -> None:  # Any: click hands over what the options say
    """Make a livepatch of a PATCH for exactly the running kernel, and load it."""
    host = context.ensure_object(Host)
    output = Output(debug=bool(flags["debug"]), as_json=bool(flags["as_json"]))
    context.meta[FLAGS] = flags
    if context.invoked_subcommand is not None:
        _refuse_stray_flags(context, flags)
        return
    from elivepatch.client.dry_run import DryRun
    from elivepatch.client.inputs import Wish
    from elivepatch.client.request import RequestRun
    from elivepatch.client.summary import tell

    with ending_well(output) as warnings:
        settings = settings_for(host, output, flags["conf_file"], shared_flags(flags) | _request_flags(flags))
        if settings.clear:
            _clear(settings, host, output)
            if not settings.cve and not settings.patch:
                output.data({"status": "cleared", "exit_status": 0})
                return
        if settings.cve:
            _close_cves(flags, settings, host, output, warnings)
        if not settings.patch:
            raise InvalidInputError("There is nothing to do.", hint="Name a patch with -p; -h lists the rest.")
        wish = Wish(
            settings.patch,
            flags["output"],
            flags["check"],
            flags["accept_warnings"],
            flags["drop_earlier"],
            flags["force"],
        )
        kind = DryRun if flags["dry_run"] else RequestRun
        tell(kind(wish, settings, host, output, warnings).run(), output)


def _clear(settings: Settings, host: Host, output: Output) -> None:
    from elivepatch.client.cve_mode import clear_record
    from elivepatch.client.state import StateDirectory

    clear_record(StateDirectory(settings.state_dir, host.user), output)


def _close_cves(flags: dict[str, Any], settings: Settings, host: Host, output: Output, warnings: list[str]) -> NoReturn:
    from elivepatch.client.cve_commands import end_cve_run
    from elivepatch.client.cve_mode import CveChoice, CveRun

    for name in ("output", "check", "drop_earlier", "no_load"):
        if flags[name]:
            raise InvalidInputError(
                f"'--{name.replace('_', '-')}' has no meaning for the CVE mode (-e).",
                hint="'elivepatch cve plan' shows what would be loaded; 'elivepatch cve apply' has flags of its own.",
            )
    choice = CveChoice(
        until="plan" if flags["dry_run"] else "apply",
        yes=flags["yes"],
        patches=settings.patch,
        force=flags["force"],
        accept_warnings=flags["accept_warnings"],
    )
    end_cve_run(CveRun(choice, settings, host, output, warnings).run(), output)


def _refuse_stray_flags(context: click.Context, flags: dict[str, Any]) -> None:
    """A flag that a subcommand would pass over without a word is wrong usage."""
    for name, value in flags.items():
        if name not in _FOR_SUBCOMMANDS and value not in (None, False, ()):
            raise click.UsageError(
                f"'{name.replace('_', '-')}' has no meaning for '{context.invoked_subcommand}'.", context
            )


def _request_flags(flags: dict[str, Any]) -> dict[str, object]:
    return {
        "patch": flags["patch"],
        "config": flags["config"],
        "kernel_version": flags["kernel_version"],
        "kpatch": flags["kpatch"],
        "kernel_source": flags["kernel_source"],
        "proof": flags["proof"],
        "base_patches": flags["base_patch"],
        "collect_base_patches": False if flags["no_base_patches"] else None,
        "build_directory": flags["build_directory"],
        "send_image": False if flags["no_image"] else None,
        "load": False if flags["no_load"] else None,
        "verify": False if flags["no_verify"] else None,
        "cve": flags["cve"] or None,
        "clear": flags["clear"] or None,
    }


@cli.command("facts")
@click.option("-o", "--output", "file", type=FILE, metavar="OUT", help="Write them to this file instead.")
@click.option("--json", "as_json", is_flag=True, help="Print errors as JSON too; the facts always are.")
@click.pass_context
def facts_command(context: click.Context, file: Path | None, as_json: bool) -> None:
    """Print what a server is told about this host, as JSON: for a build that is asked for elsewhere."""
    from elivepatch.client.facts import host_facts
    from elivepatch.client.state import check_output, write_whole
    from elivepatch.kernel.running import running_kernel

    with subcommand(context, as_json=as_json) as command:
        root = command.host.root
        facts = host_facts(running_kernel(root), root)
        if file is None:
            command.output.data(facts.dump(), always=True)
        else:
            check_output(file)
            write_whole(file, (facts.dump_json() + "\n").encode(), mode=0o644)
            command.output.line(f"facts: {file}")


@cli.command("image")
@click.option("-o", "--output", "file", type=FILE, metavar="FILE", help="Where to; image-RELEASE.tar.xz otherwise.")
@click.option("--build-directory", type=FILE, metavar="DIR", help=_BUILD_DIRECTORY)
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON on stdout.")
@click.pass_context
def image_command(context: click.Context, file: Path | None, build_directory: Path | None, as_json: bool) -> None:
    """Write the image of the running kernel to a file: for a build that is made elsewhere."""
    from elivepatch.client.image import write_image
    from elivepatch.client.state import check_output
    from elivepatch.kernel.running import running_kernel

    with subcommand(context, as_json=as_json, build_directory=build_directory) as command:
        host, output, settings = command.host, command.output, command.settings
        kernel = running_kernel(host.root)
        path = file or Path(f"image-{kernel.release}.tar.xz")
        check_output(path)
        written = write_image(path, kernel, settings, host, output)
        output.data(written.dump())
        output.result(f"{written.path}: {written.size} bytes, SHA-256 {written.sha256}, {len(written.members)} members")
        for name in written.members:
            output.result(f"  {name}")


for _command in COMMANDS:
    cli.add_command(_command)


cli.add_command(cve_group)
for _command in OVERLAY_COMMANDS:
    overlay_command.add_command(_command)
cli.add_command(overlay_command)
cli.add_command(completion_command)


def main() -> None:
    """Run the program; being told to end is treated like Ctrl-C, so that a load under way is undone."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)
    try:
        _run()
    finally:
        give_up_stderr()


def _run() -> NoReturn:
    try:
        status = cli.main(standalone_mode=False)  # click's own way to end is 'Aborted!' and exit status 1
    except click.ClickException as error:
        with contextlib.suppress(OSError):
            error.show()
        wanted = Output(as_json="--json" in sys.argv[1:])
        tell_failure(wanted, error.exit_code, InvalidInputError.code, error.format_message(), None, ())
        sys.exit(error.exit_code)
    except click.Abort:  # outside of what `ending_well` covers, so before anything was begun
        click.echo("elivepatch: interrupted.", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(status)
