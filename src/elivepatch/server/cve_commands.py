# SPDX-License-Identifier: GPL-2.0-or-later
"""``elivepatch-server cve``: the vulnerabilities of a kernel, from the command line."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import click
from pydantic import ValidationError

from elivepatch.cves.feed import ArchiveFeed, open_feed
from elivepatch.cves.fixes import open_fixes
from elivepatch.cves.index import Index
from elivepatch.cves.plan import Planner
from elivepatch.cves.scan import scan
from elivepatch.cves.versions import version_of
from elivepatch.errors import InvalidInputError, UnavailableError
from elivepatch.job import Job, read_base_patches, read_inputs
from elivepatch.progress import Progress, printable, to_terminal
from elivepatch.protocol import limits
from elivepatch.protocol.cves import CVE_ID, CveEntry, CvePlan, CveScan, CveWish
from elivepatch.server import settings as server_settings
from elivepatch.server.build_command import make_request, read_configuration
from elivepatch.server.cve_sync import sync as cve_sync
from elivepatch.server.scratch import scratch
from elivepatch.server.settings import Settings

_FEED = click.option("--feed", metavar="FEED", help="Directory, archive or git address of the CVE data.")
_PATH = click.Path(path_type=Path)
_CONFIG = click.option("--config", "-k", type=_PATH, metavar="FILE", help="Configuration it was built with.")
_BASE_PATCH = click.option(
    "--base-patch",
    "base_patches",
    multiple=True,
    type=_PATH,
    metavar="FILE|DIR",
    help="Patch, or directory of patches, that the kernel was built with; several apply in order.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")

#: proc(5): name, size, users, who they are, state, address, and taint in brackets.
_MODULE_LINE = re.compile(r"\w+ \d+ \d+ \S+ (?:Live|Loading|Unloading) 0x[0-9a-f]+(?: \(\w+\))?", re.ASCII)


@click.group("cve")
def cve() -> None:
    """What the kernel's CVE data says of a kernel."""


@cve.command("sync")
@_FEED
@_JSON
def sync(feed: str | None, as_json: bool) -> None:
    """Bring the index of the CVE data up to date."""
    settings = server_settings.load()
    place = feed or settings.cve_feed
    if place is None:
        raise InvalidInputError("No feed is configured.", hint="Set 'cve_feed', or name one with --feed.")
    cve_sync(settings.model_copy(update={"cve_feed": place}), _progress())
    state = settings.cve_index.state()
    if as_json:
        click.echo(json.dumps(asdict(state)))
    else:
        unreadable = f" ({state.unreadable} cannot be read)" if state.unreadable else ""
        click.echo(f"{state.entries} CVEs of {state.date}, from {printable(state.source)}{unreadable}")


@cve.command("scan")
@click.option("--version", "version", metavar="X.Y.Z", help="Upstream version to look up; nothing is prepared.")
@click.option("--kernel", metavar="KERNEL", help="Kernel to look up: release or source, as for 'build'.")
@_CONFIG
@_BASE_PATCH
@click.option("--loaded", metavar="FILE", type=click.Path(path_type=Path), help="What /proc/modules says on the host.")
@_FEED
@_JSON
def scan_command(
    version: str | None,
    kernel: str | None,
    config: Path | None,
    base_patches: tuple[Path, ...],
    loaded: Path | None,
    feed: str | None,
    as_json: bool,
) -> None:
    """Say which CVEs a kernel has.

    By its version alone (--version), or by what it is made of too (--kernel): which of them the distributor has fixed,
    and whether their code is in the kernel at all.
    """
    if (version is None) == (kernel is None):
        raise InvalidInputError("Name either a version or a kernel.", hint="--version 6.1.170, or --kernel RELEASE.")
    alone = [flag for flag, given in (("--loaded", loaded), ("-k", config), ("--base-patch", base_patches)) if given]
    if alone and kernel is None:
        raise InvalidInputError(
            f"{' and '.join(alone)} goes with --kernel.", hint="Of a version alone only its number is looked at."
        )
    settings, progress = server_settings.load(), _progress()
    with _index(settings, feed, progress) as index:
        if version is not None:
            looked_up = version_of(version)
            if version not in {str(looked_up), f"{looked_up}.0"}:  # Debian's 6.1.0-47 says nothing of its version
                told = printable(
                    f"of '{version[:60]}' only {looked_up} is looked at; for a kernel by its release: --kernel"
                )
                click.echo(f"note: {told}", err=True)
            found = scan(index, looked_up)
        else:
            job = _job(str(kernel), config, base_patches, CveWish())
            found = _scan_kernel(job, loaded, index, settings, progress)
    click.echo(found.dump_json()) if as_json else show_scan(found)


@cve.command("plan")
@click.option("--kernel", metavar="KERNEL", required=True, help="Kernel: release or source, as for 'build'.")
@_CONFIG
@_BASE_PATCH
@click.option("--loaded", metavar="FILE", type=click.Path(path_type=Path), help="What /proc/modules says on the host.")
@click.option("--only", metavar="CVE", multiple=True, help="Try the fix of this CVE; may be given several times.")
@click.option("--min-score", type=click.FloatRange(0, 10), metavar="SCORE", help="Leave out what is scored lower.")
@click.option("-o", "--output", metavar="DIR", type=click.Path(path_type=Path), help="Write the patches there.")
@_FEED
@_JSON
def plan_command(
    kernel: str,
    config: Path | None,
    base_patches: tuple[Path, ...],
    loaded: Path | None,
    only: tuple[str, ...],
    min_score: float | None,
    output: Path | None,
    feed: str | None,
    as_json: bool,
) -> None:
    """Say which CVEs of a kernel can be closed by a livepatch: each fix is built, and all of them together.

    Minutes: seconds for each fix. What was tried before is remembered. Exit status: 0 tried, whatever came of it, 2
    wrong input, 6 no fix could be had, or the kernel or the data are not there.
    """
    if output is not None:
        _make(output)  # now: a plan can take hours
    settings, progress = server_settings.load(), _progress()
    wish = _wish(only=tuple(map(_name, only)), min_score=min_score, loaded=_module_names(loaded))
    job = _job(kernel, config, base_patches, wish)
    source = open_fixes(settings.stable_git, settings.stable_http, settings.cache)
    with _index(settings, feed, progress) as index, scratch(settings.cache) as place:
        source.update(progress)
        found = Planner(index, source, settings.workshop).plan(job, place, progress)
        if output is not None:
            _write_series(found, output)
    click.echo(found.dump_json()) if as_json else show_plan(found, wish.only)
    states = {entry.trial.state for entry in found.scan.cves if entry.trial is not None}
    if states == {"unavailable"}:
        raise UnavailableError(
            "No fix could be had: nothing was tried.",
            hint="Check the setting 'stable_git' (a repository with the kernel's stable branches), or 'stable_http'.",
        )


def _make(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(
            f"{output} cannot be made: {error.strerror}.", hint="Name a directory for the patches; it is made."
        ) from error


def _write_series(found: CvePlan, output: Path) -> None:
    """The patches, and their order as quilt has it (a file ``series``). Raises InvalidInputError."""
    try:
        for patch in found.patches:
            (output / patch.name).write_text(patch.text)
        (output / "series").write_text("".join(f"{patch.name}\n" for patch in found.patches))
    except OSError as error:
        raise InvalidInputError(f"The patches cannot be written to {output}: {error.strerror}.") from error


def _wish(**given: object) -> CveWish:
    try:
        return CveWish.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidInputError(f"{first['input']!r}: {first['msg']}.") from error


def _name(text: str) -> str:
    name = text.upper()
    if not CVE_ID.fullmatch(name):
        raise InvalidInputError(f"'{text[:40]}' is not the name of a vulnerability.", hint="Like CVE-2026-46300.")
    return name


def _job(kernel: str, config: Path | None, base_patches: Sequence[Path], wish: CveWish) -> Job:
    """What asks about a kernel: its name, and what it was built with. Raises InvalidInputError."""
    return Job(
        request=make_request(kernel, verify=True).model_copy(update={"cves": wish}),
        patches=(),
        base_patches=read_base_patches(base_patches),
        config=read_configuration(config),
    )


def _module_names(path: Path | None) -> tuple[str, ...] | None:
    """The names in what /proc/modules says. Raises InvalidInputError."""
    if path is None:
        return None
    (file,) = read_inputs([path], limits.REQUEST_BYTES, "list of modules")
    lines = file.data.decode(errors="replace").splitlines()
    wrong = next((line for line in lines if not _MODULE_LINE.fullmatch(line)), None)
    if wrong is not None or not lines:
        said = f"{wrong[:60]!r} is no line of it" if wrong is not None else "it is empty"
        raise InvalidInputError(
            f"{path} is not what /proc/modules says: {said}.", hint="On the host: cat /proc/modules > FILE"
        )
    return tuple(line.split()[0] for line in lines)


def _scan_kernel(job: Job, loaded: Path | None, index: Index, settings: Settings, progress: Progress) -> CveScan:
    """The plan that tries nothing: what a host is told, and what is printed here, is the same."""
    wish = CveWish(loaded=_module_names(loaded), fixes=False)
    asked = replace(job, request=job.request.model_copy(update={"cves": wish}))
    source = open_fixes(settings.stable_git, None, settings.cache) if settings.stable_git else None
    with tempfile.TemporaryDirectory(prefix="elivepatch-scan.") as scratch:
        return Planner(index, source, settings.workshop).plan(asked, Path(scratch), progress).scan


@contextmanager
def _index(settings: Settings, feed: str | None, progress: Progress) -> Generator[Index]:
    """The index of a feed that was named, or the server's own."""
    if feed is None:
        yield settings.cve_index
        return
    found = open_feed(feed, settings.cache)
    if isinstance(found, ArchiveFeed):  # never changes: its index is kept by its digest
        index = Index(settings.cache / "cves" / f"{found.digest}.sqlite")
        if not index.path.exists():
            index.update(found, progress)
        yield index
        return
    with tempfile.TemporaryDirectory(prefix="elivepatch-cves.") as scratch:
        index = Index(Path(scratch) / "index.sqlite")
        index.update(found, progress)
        yield index


def show_scan(found: CveScan) -> None:
    """A scan in words: the counts, then what is affected and what is not known, the worst first."""
    about = f"{found.kernel}, made from {found.version}" if found.kernel else found.version
    click.echo(
        f"{about}: {found.affected} CVEs by its version, {found.fixed_in_branch} of them fixed later in its branch"
    )
    if found.lower_bound:
        known = f"only up to {found.newest_known}" if found.newest_known else "nothing"
        click.echo(f"  a lower bound: of this branch the data of {found.data_date} knows {known}")
    if found.unreadable:
        click.echo(f"  {len(found.unreadable)} entries of the data cannot be read: {', '.join(found.unreadable[:5])}")
    for state, number in sorted(found.counts.items(), key=lambda pair: -pair[1]):
        click.echo(f"  {state:12} {number:5}")
    for entry in sorted(found.cves, key=_worst):
        if entry.state in {"affected", "undecided"}:
            click.echo(_line(entry))


def show_plan(found: CvePlan, named: Sequence[str] = ()) -> None:
    """A plan in words: what can be closed, then what cannot, with the reason; of those named, why nothing was tried."""
    if found.problem:
        click.echo(found.problem, err=True)
    tried = [entry for entry in found.scan.cves if entry.trial is not None]
    works = [entry for entry in tried if entry.trial is not None and entry.trial.state == "works"]
    click.echo(f"{found.scan.kernel}: {len(works)} of {len(tried)} CVEs can be closed by {len(found.patches)} patches")
    for entry in sorted(works, key=_worst):
        click.echo(_line(entry))
    for entry in sorted(tried, key=_worst):
        if entry.trial is not None and entry.trial.state in {"refused", "unavailable"}:
            click.echo(f"{_line(entry)}\n    {entry.trial.state}: {printable(entry.trial.message or '')}")

    for name in sorted(set(named) - {entry.id for entry in tried}):
        entry = next((one for one in found.scan.cves if one.id == name), None)
        if entry is None:
            click.echo(f"{name}: the kernel does not have it by its version")
        else:
            why = entry.why or entry.state
            if entry.state == "affected":
                why = "it is scored lower than asked for" if entry.fixes else "its branch has no fix"
            click.echo(f"{_line(entry)}\n    not tried: {why}")


def _worst(entry: CveEntry) -> tuple[float, str]:
    return (-(entry.score or 0.0), entry.id)


def _line(entry: CveEntry) -> str:
    score = "   -" if entry.score is None else f"{entry.score:4.1f}"
    return printable(f"{entry.id:16} {score} {entry.state:10} {entry.fix_version or '-':9} {entry.title}")


def _progress() -> Progress:
    return Progress(to_terminal(sys.stderr))
