# SPDX-License-Identifier: GPL-2.0-or-later
"""The Gentoo overlay with the ebuild of this very version: its archive, and the digests of that in a Manifest.

    gentoo_overlay.py --output DIR

``packaging/gentoo`` has the live ebuild, and no other, for there is no published archive that a Manifest could name.
Here the archive is made, and the versioned ebuild, which has the same text.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import shutil
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
from guest_image import build_sdist

from elivepatch import process
from elivepatch.errors import ElivepatchError
from elivepatch.version import installed_version

PROJECT = Path(__file__).resolve().parent.parent
PACKAGE = "app-admin/elivepatch"
#: What PEP 440 puts behind a version, as the Package Manager Specification (chapter 3.2) writes it.
_SUFFIXES = {"a": "_alpha", "b": "_beta", "rc": "_rc", ".post": "_p", ".dev": "_alpha_pre"}


@dataclass(frozen=True)
class Overlay:
    """An overlay, and the archive that belongs into a host's DISTDIR."""

    place: Path
    archive: Path


def make_overlay(output: Path) -> Overlay:
    """Make ``gentoo/`` and the archive in a directory. Raises ProgramError where a program fails."""
    output.mkdir(parents=True, exist_ok=True)
    place = output / "gentoo"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(PROJECT / "packaging/gentoo", place)
    called = f"elivepatch-{gentoo_version(installed_version())}"
    archive = output / f"{called}.tar.gz"
    with tempfile.TemporaryDirectory(prefix="elivepatch-gentoo-") as scratch:
        _pack(build_sdist(PROJECT, Path(scratch)), called, archive)
    package = place / PACKAGE
    shutil.copyfile(package / "elivepatch-9999.ebuild", package / f"{called}.ebuild")
    (package / "Manifest").write_text(manifest_line(archive))
    return Overlay(place, archive)


def gentoo_version(version: str) -> str:
    """A version of ours as Gentoo writes it; it sorts there as it does here."""
    return re.sub(r"(a|b|rc|\.post|\.dev)(\d+)", lambda found: f"{_SUFFIXES[found[1]]}{found[2]}", version)


def manifest_line(file: Path) -> str:
    """A file as a thin Manifest names it (GLEP 74)."""
    data = file.read_bytes()
    blake2b, sha512 = hashlib.blake2b(data).hexdigest(), hashlib.sha512(data).hexdigest()
    return f"DIST {file.name} {len(data)} BLAKE2B {blake2b} SHA512 {sha512}\n"


def _pack(sdist: Path, called: str, archive: Path) -> None:
    """The source under the name that the ebuild expects; the same source gives the same bytes."""
    unzipped = io.BytesIO()
    with tarfile.open(sdist) as source, tarfile.open(fileobj=unzipped, mode="w", format=tarfile.USTAR_FORMAT) as target:
        for member in sorted(source.getmembers(), key=lambda one: one.name):
            member.name = f"{called}/{member.name.partition('/')[2]}"
            member.uid = member.gid = member.mtime = 0
            member.uname = member.gname = "root"
            member.pax_headers = {}
            target.addfile(member, source.extractfile(member) if member.isfile() else None)
    archive.write_bytes(gzip.compress(unzipped.getvalue(), mtime=0))


@click.command(help="Make the Gentoo overlay of this version, and its archive.")
@click.option("--output", type=click.Path(path_type=Path), default=PROJECT / "dist")
def main(output: Path) -> None:
    made = make_overlay(output)
    click.echo(made.place)
    click.echo(made.archive)


if __name__ == "__main__":
    try:
        main()
    except (ElivepatchError, process.ProgramError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
