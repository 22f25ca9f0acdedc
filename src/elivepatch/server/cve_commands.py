# SPDX-License-Identifier: GPL-2.0-or-later
"""``elivepatch-server cve``: the vulnerabilities of a kernel, from the command line."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import click

from elivepatch.cves.feed import ArchiveFeed, open_feed
from elivepatch.cves.index import Index
from elivepatch.cves.kernel import upstream_version, vendor_fixes
from elivepatch.cves.reach import Contents
from elivepatch.cves.scan import scan
from elivepatch.cves.versions import version_of
from elivepatch.errors import InvalidInputError
from elivepatch.progress import Progress, printable, to_terminal
from elivepatch.protocol.cves import CveEntry, CveScan
from elivepatch.selection import WantedKernel, hold_kernel
from elivepatch.server import settings as server_settings
from elivepatch.server.settings import Settings

_FEED = click.option("--feed", metavar="FEED", help="Directory, archive or git address of the CVE data.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")


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
    state = settings.cve_index.update(open_feed(place, settings.cache), _progress())
    if as_json:
        click.echo(
            f'{{"source": "{state.source}", "date": "{state.date}", "identity": "{state.identity}", '
            f'"entries": {state.entries}}}'
        )
    else:
        click.echo(f"{state.entries} CVEs of {state.date}, from {printable(state.source)}")


@cve.command("scan")
@click.option("--version", "version", metavar="X.Y.Z", help="Upstream version to look up; nothing is prepared.")
@click.option("--kernel", metavar="KERNEL", help="Kernel to look up: release or source, as for 'build'.")
@click.option("--loaded", metavar="FILE", type=click.Path(path_type=Path), help="What /proc/modules says on the host.")
@_FEED
@_JSON
def scan_command(version: str | None, kernel: str | None, loaded: Path | None, feed: str | None, as_json: bool) -> None:
    """Say which CVEs a kernel has.

    By its version alone (--version), or by what it is made of too (--kernel): which of them the distributor has fixed,
    and whether their code is in the kernel at all.
    """
    if (version is None) == (kernel is None):
        raise InvalidInputError("Name either a version or a kernel.", hint="--version 6.1.170, or --kernel RELEASE.")
    if loaded is not None and kernel is None:
        raise InvalidInputError("--loaded goes with --kernel.", hint="A version alone says nothing about modules.")
    settings, progress = server_settings.load(), _progress()
    with _index(settings, feed, progress) as index:
        if version is not None:
            found = scan(index, version_of(version))
        else:
            found = _scan_kernel(str(kernel), loaded, index, settings, progress)
    click.echo(found.dump_json()) if as_json else show_scan(found)


def _scan_kernel(kernel: str, loaded: Path | None, index: Index, settings: Settings, progress: Progress) -> CveScan:
    workshop = settings.workshop
    names = None if loaded is None else [line.split()[0] for line in loaded.read_text().splitlines() if line.strip()]
    with hold_kernel(WantedKernel(kernel), workshop, progress) as (held, _):
        vendor = vendor_fixes(held, (), workshop, progress)
        return scan(index, upstream_version(held), vendor=vendor, contents=Contents(held), loaded=names)


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
    for state, number in sorted(found.counts.items(), key=lambda pair: -pair[1]):
        click.echo(f"  {state:12} {number:5}")
    for entry in sorted(found.cves, key=_worst):
        if entry.state in {"affected", "undecided"}:
            click.echo(_line(entry))


def _worst(entry: CveEntry) -> tuple[float, str]:
    return (-(entry.score or 0.0), entry.id)


def _line(entry: CveEntry) -> str:
    score = "   -" if entry.score is None else f"{entry.score:4.1f}"
    return printable(f"{entry.id:16} {score} {entry.state:10} {entry.fix_version or '-':9} {entry.title}")


def _progress() -> Progress:
    return Progress(to_terminal(sys.stderr))
