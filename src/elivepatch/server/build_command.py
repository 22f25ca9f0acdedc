# SPDX-License-Identifier: GPL-2.0-or-later
"""``elivepatch-server build``: one build from the command line, with no server running."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import click

from elivepatch import pipeline
from elivepatch.errors import CancelledError, DiskFullError, ElivepatchError, InputTooLargeError, InvalidInputError
from elivepatch.pipeline import InputFile, Job, read_inputs
from elivepatch.progress import Progress, printable, to_terminal
from elivepatch.protocol import limits
from elivepatch.protocol.models import BuildRequest, Report
from elivepatch.server import settings as server_settings

_FILE = click.Path(path_type=Path)


@click.command("build")
@click.option("--kernel", required=True, help="Release of the kernel, as 'uname -r' prints it.")
@click.option("--patch", "patches", required=True, multiple=True, type=_FILE, help="Patch; several apply in order.")
@click.option("--base-patch", "base_patches", multiple=True, type=_FILE, help="Patch the kernel was built with.")
@click.option("--config", type=_FILE, help="Configuration of the kernel, checked against the published one.")
@click.option("--vmlinux", type=_FILE, help="Image of the kernel, for kernels that nobody publishes.")
@click.option("--symvers", type=_FILE, help="Module.symvers of that kernel.")
@click.option("--check", type=_FILE, help="Script for the guest: fails without the livepatch, succeeds with it.")
@click.option("--no-verify", is_flag=True, help="Leave the boot test out.")
@click.option("-o", "--output", type=_FILE, help="Where to write the module; default: its name in this directory.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on standard output.")
@click.option("-d", "--debug", is_flag=True, help="Show the output of the programs that run.")
def build(
    kernel: str,
    patches: tuple[Path, ...],
    base_patches: tuple[Path, ...],
    config: Path | None,
    vmlinux: Path | None,
    symvers: Path | None,
    check: Path | None,
    no_verify: bool,
    output: Path | None,
    as_json: bool,
    debug: bool,
) -> None:
    """Build one livepatch and try it in a VM.

    Progress goes to standard error. Exit status: 0 done, 2 wrong input, 3 refused, 4 does not fit the kernel, 5 boot
    test failed, 6 kernel or tool not available, 1 a bug of ours.
    """
    signal.signal(signal.SIGTERM, _ended)
    try:
        if vmlinux is not None or symvers is not None:
            raise InvalidInputError(
                "Building from an image of your own (--vmlinux, --symvers) is not offered yet.",
                hint="Name the release of a kernel that Debian publishes.",
            )
        target = (output or Path("x.ko")).absolute()
        if target.is_dir() or (target.exists() and not target.is_file()) or not os.access(target.parent, os.W_OK):
            raise InvalidInputError(
                f"The module cannot be written to {output or target.parent}.",
                hint="Give the path of a file in a directory that exists and that you may write to (-o FILE).",
            )
        job = Job(
            request=make_request(kernel, verify=not no_verify),
            patches=read_inputs(patches, limits.PATCH_BYTES, "patch"),
            base_patches=read_inputs(base_patches, limits.PATCH_BYTES, "base patch"),
            config=_one(config, limits.CONFIG_BYTES, "configuration"),
            check=_one(check, limits.CHECK_BYTES, "check script"),
        )
        report = _build(job, output, Progress(to_terminal(sys.stderr, verbose=debug)))
    except ElivepatchError as error:
        if not as_json:
            raise
        report = pipeline.report_of(error)  # whoever reads reports gets one, however early it ended
        click.echo(f"elivepatch-server: {error.message}", err=True)
    if as_json:
        click.echo(report.dump_json())
    else:
        show(report)
    sys.exit(report.exit_status)


def _ended(*_: object) -> None:
    """SIGTERM: leave through the blocks that end programs and remove what is unfinished."""
    raise CancelledError("The build was ended by a signal.")


def _build(job: Job, output: Path | None, progress: Progress) -> Report:
    settings = server_settings.load()
    with tempfile.TemporaryDirectory(prefix="elivepatch-build-") as scratch:
        place = Path(scratch)
        place.chmod(0o755)
        report = pipeline.build(job, settings.workshop, place, progress)
        if report.module is None:
            return report
        made = place / f"{report.module.name}.ko"
        target = (output or Path(made.name)).resolve()
        aside = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            shutil.copyfile(made, aside)
            aside.replace(target)
        except OSError as error:
            aside.unlink(missing_ok=True)
            wrong = DiskFullError if error.errno == errno.ENOSPC else InvalidInputError
            raise wrong(f"The module cannot be written to {target}: {error.strerror}.") from error
        return report.model_copy(update={"module": report.module.model_copy(update={"path": str(target)})})


def make_request(kernel: str, *, verify: bool) -> BuildRequest:
    """The request; raises InvalidInputError for what cannot be the name of a kernel."""
    try:
        return BuildRequest(kernel=kernel, verify=verify)
    except ValueError as error:
        raise InvalidInputError(
            f"'{kernel[:100]}' is not the name of a kernel.", hint="Give what 'uname -r' prints on the host."
        ) from error


def _one(path: Path | None, limit_bytes: int, what: str) -> bytes | None:
    if path is None:
        return None
    (file,) = read_inputs([path], limit_bytes, what)
    _check_size(file, limit_bytes, what)
    return file.data


def _check_size(file: InputFile, limit_bytes: int, what: str) -> None:
    if len(file.data) > limit_bytes:
        raise InputTooLargeError(f"The {what} {file.name} is larger than {limit_bytes} bytes.")


def show(report: Report) -> None:
    """The report in words, for a terminal."""
    if report.message:
        _say(f"{report.status}: {report.message}", err=True)
    for finding in report.diagnosis:
        if finding.message not in (report.message or ""):
            place = ":".join(str(part) for part in (finding.file, finding.line) if part is not None)
            function = f"in {finding.function}()" if finding.function else ""
            where = " ".join(part for part in (place, function) if part)
            said = f"{where}: {finding.message}" if where else finding.message
            _say(f"  {finding.severity} [{finding.rule}] {said}", err=True)
        elif finding.file:
            line = f":{finding.line}" if finding.line is not None else ""
            _say(f"  at {finding.file}{line} [{finding.rule}]", err=True)
        if finding.hint:
            _say(f"    {finding.hint}", err=True)
    if report.hint and not any(finding.hint == report.hint for finding in report.diagnosis):
        _say(f"  {report.hint}", err=True)
    for change in report.changed:
        _say(f"{change.kind:8} {change.object}: {change.function}")
    if report.proof is not None:
        _say(f"proof    {report.proof.level}: {report.proof.compared} functions compared")
    if report.verification is not None:
        verification = report.verification
        if verification.reverted:
            _say(f"tried    loaded in {verification.transition_ms} ms, reverted and unloaded in a VM")
    if report.module is not None:
        _say(f"module   {report.module.path or report.module.name} ({report.module.size} bytes)")


def _say(text: str, *, err: bool = False) -> None:
    click.echo(printable(text), err=err)
