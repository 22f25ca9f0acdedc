# SPDX-License-Identifier: GPL-2.0-or-later
"""``elivepatch-server build``: one build from the command line, with no server running."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import click
from pydantic import ValidationError

from elivepatch import pipeline
from elivepatch.build.image import HostImage
from elivepatch.errors import CancelledError, DiskFullError, ElivepatchError, InvalidInputError
from elivepatch.job import Job, read_base_patches, read_inputs, read_patches
from elivepatch.kernel.compressed import gunzip
from elivepatch.progress import Progress, Sink, printable, to_terminal
from elivepatch.protocol import limits
from elivepatch.protocol.models import BuildRequest, EngineName, HostFacts, ProofLevel, Report
from elivepatch.server import settings as server_settings
from elivepatch.server.scratch import scratch
from elivepatch.sources.reference import NAMES, parse_reference

_FILE = click.Path(path_type=Path)


@click.command("build")
@click.option("--kernel", required=True, help="Release of the kernel ('uname -r'), or its source: see docs/sources.md.")
@click.option("--patch", "patches", required=True, multiple=True, type=_FILE, help="Patch; several apply in order.")
@click.option(
    "--base-patch",
    "base_patches",
    multiple=True,
    type=_FILE,
    help="Patch, or directory of patches, that the kernel was built with; several apply in order.",
)
@click.option("--config", "-k", type=_FILE, help="Configuration that the kernel was built with; may be gzipped.")
@click.option("--vmlinux", type=_FILE, help="Image of the kernel, for kernels that nobody publishes.")
@click.option("--symvers", type=_FILE, help="Module.symvers of that kernel.")
@click.option("--image", type=_FILE, help="Archive of the host's build, as 'elivepatch image' writes it.")
@click.option("--host-facts", type=_FILE, help="What 'elivepatch facts' prints on the host; its kernel is built for.")
@click.option(
    "--proof",
    type=click.Choice(["exact", "layout", "none"]),
    default="layout",
    show_default=True,
    help="The weakest proof that is accepted.",
)
@click.option(
    "--engine",
    type=click.Choice(["kpatch", "klp"]),
    help="The differ, where the one for the kernel is not to be taken.",
)
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
    image: Path | None,
    host_facts: Path | None,
    proof: ProofLevel,
    engine: EngineName | None,
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
        target = (output or Path("x.ko")).absolute()
        if target.is_dir() or (target.exists() and not target.is_file()) or not os.access(target.parent, os.W_OK):
            raise InvalidInputError(
                f"The module cannot be written to {output or target.parent}.",
                hint="Give the path of a file in a directory that exists and that you may write to (-o FILE).",
            )
        job = Job(
            request=make_request(kernel, verify=not no_verify, proof=proof, engine=engine, host=_host(host_facts)),
            patches=read_patches(patches),
            base_patches=read_base_patches(base_patches),
            config=read_configuration(config),
            check=_one(check, limits.CHECK_BYTES, "check script"),
            image=_image(vmlinux, symvers),
        )
        if image is not None:
            job = _with_archive(job, image)
        report = _build(job, output, Progress(_unfinished(to_terminal(sys.stderr, verbose=debug))))
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


def _unfinished(sink: Sink) -> Sink:
    """A sink without the last event, which says what the report says: that is shown, or printed, in full."""
    return lambda event: None if event.kind == "done" else sink(event)


def _build(job: Job, output: Path | None, progress: Progress) -> Report:
    settings = server_settings.load()
    with scratch(settings.cache) as place:
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


def make_request(
    kernel: str,
    *,
    verify: bool,
    proof: ProofLevel = "layout",
    engine: EngineName | None = None,
    host: HostFacts | None = None,
) -> BuildRequest:
    """The request; raises InvalidInputError, whose hint lists the forms, for what cannot be the name of a kernel."""
    parse_reference(kernel)
    try:
        return BuildRequest(kernel=kernel, verify=verify, proof=proof, engine=engine, host=host)
    except ValidationError as error:
        raise InvalidInputError(
            f"'{kernel[:100]}' is not the name of a kernel: {error.errors()[0]['msg']}.", hint=NAMES
        ) from error


def _host(path: Path | None) -> HostFacts | None:
    if path is None:
        return None
    (file,) = read_inputs([path], limits.FACTS_BYTES, "host facts")
    try:
        return HostFacts.model_validate_json(file.data)
    except ValidationError as error:
        raise InvalidInputError(
            f"{path} does not hold the facts of a host: {_place(error)}{error.errors()[0]['msg']}.",
            hint="Write it on the host with: elivepatch facts -o FILE",
        ) from error


def _place(error: ValidationError) -> str:
    """The field that is wrong, and a colon; nothing where it is all of it."""
    place = ".".join(str(part) for part in error.errors()[0]["loc"])
    return f"{place}: " if place else ""


def read_configuration(path: Path | None) -> bytes | None:
    """A configuration that a user named, plain or gzip. Raises InvalidInputError, InputTooLargeError."""
    data = _one(path, limits.CONFIG_BYTES, "configuration")
    if data is None or not data.startswith(b"\x1f\x8b"):
        return data
    return gunzip(data, limits.CONFIG_BYTES, f"The configuration {path}")


def _image(vmlinux: Path | None, symvers: Path | None) -> HostImage | None:
    """The image of a kernel as files on this machine."""
    if vmlinux is None and symvers is None:
        return None
    if vmlinux is None:
        raise InvalidInputError(
            "--symvers goes with --vmlinux.", hint="Both are in the directory that the kernel was built in."
        )
    digests: list[str] = []
    for path in (vmlinux, *([symvers] if symvers is not None else [])):
        try:
            with path.open("rb") as stream:
                if path == vmlinux and stream.read(4) != b"\x7fELF":
                    raise InvalidInputError(
                        f"{path} is not an image of a kernel: it is no ELF file.",
                        hint="Name vmlinux of the directory that the kernel was built in, not bzImage or vmlinuz.",
                    )
                stream.seek(0)
                digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
        except OSError as error:
            raise InvalidInputError(f"{path} cannot be read: {error.strerror}.", hint="Name a file.") from error
    digest = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return HostImage("uploaded", digest, vmlinux.absolute(), symvers.absolute() if symvers is not None else None)


def _with_archive(job: Job, path: Path) -> Job:
    """The job with the archive of its host's build, which is kept as one that a host has sent."""
    if job.image is not None:
        raise InvalidInputError("--image and --vmlinux are two images.", hint="Give one of them.")
    try:
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}.", hint="Name a file.") from error
    try:
        server_settings.load().workshop.images.add(path, sha256)
    except InvalidInputError as error:
        raise InvalidInputError(
            f"{path} is not the archive of a host's build: {error.message}",
            hint="Make it again on the host: elivepatch image -o FILE",
        ) from error
    return replace(job, request=job.request.model_copy(update={"image": sha256}))


def _one(path: Path | None, limit_bytes: int, what: str) -> bytes | None:
    if path is None:
        return None
    (file,) = read_inputs([path], limit_bytes, what)
    return file.data


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
        if verification.not_run:
            _say(f"not run  {', '.join(verification.not_run)}: no device for it in the VM")
    if report.module is not None:
        _say(f"module   {report.module.path or report.module.name} ({report.module.size} bytes)")


def _say(text: str, *, err: bool = False) -> None:
    click.echo(printable(text), err=err)
