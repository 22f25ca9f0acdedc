# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian packages of the client and of the server.

    packages.py deb --suite trixie --output DIR

Each package is made in a clean root of its suite, and checked there by lintian. It brings the Python packages that the
program needs as a virtual environment for that suite's python3, so it depends on nothing that the suite has too old;
they are those of requirements/, at its versions and digests.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import click
from debian_copyright import copyright_file, files_of
from guest_image import CLIENT_REQUIREMENTS, build_wheel, install_wheel

from elivepatch import process
from elivepatch.errors import ElivepatchError, InternalError
from elivepatch.progress import Progress, to_terminal
from elivepatch.server import settings as server_settings
from elivepatch.toolchains.roots import Root, Roots, RootSpec
from elivepatch.toolchains.sandbox import Limits, Sandbox, give_to_sandbox
from elivepatch.version import installed_version

PROJECT = Path(__file__).resolve().parent.parent
#: The suites that packages are made for, with the version of their python3 and their number.
SUITES = {"bookworm": ("3.11", "12"), "trixie": ("3.13", "13")}
_TOOLS = ("build-essential", "debhelper", "fakeroot", "lintian", "python3-minimal")
_LIMITS = Limits(processes=512, seconds=900.0)
_PROGRAM = """\
#!/usr/lib/elivepatch/{part}/bin/python3 -I
import sys

from {module} import {function}

sys.exit({function}())
"""
_BUILD = r"""
set -e
cd /elivepatch/job/elivepatch
dpkg-buildpackage -b -us -uc -d >../build.log 2>&1 || { cat ../build.log; exit 1; }
cd ..
lintian --tag-display-limit 0 --fail-on error,warning *.changes >&2
"""


#: Where Debian's shells look for completions (bash-completion, zsh, fish).
_COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/{}",
    "zsh": "usr/share/zsh/vendor-completions/_{}",
    "fish": "usr/share/fish/vendor_completions.d/{}.fish",
}


@dataclass(frozen=True)
class Part:
    """A program and the package that brings it; ``requirements`` names the Python packages that it needs.

    ``surplus`` are Python packages that come with it and are never imported.
    """

    name: str
    program: str
    requirements: Path
    surplus: tuple[str, ...] = ()


#: Rich colours source code and Markdown with these, and the client shows neither.
_RICH = ("pygments", "pygments-*.dist-info", "markdown_it", "markdown_it_py-*.dist-info", "mdurl", "mdurl-*.dist-info")
#: PyYAML's binding to a copy of libyaml: overlays are read with its parser in Python.
_YAML = ("_yaml", "yaml/_yaml*.so")
_SERVER_ROOMS = tuple(f"elivepatch/{room}" for room in ("build", "cves", "server", "sources", "toolchains", "vm"))
CLIENT = Part("client", "elivepatch", CLIENT_REQUIREMENTS, surplus=_RICH + _YAML + _SERVER_ROOMS)
PARTS = (CLIENT, Part("server", "elivepatch-server", PROJECT / "requirements/server.txt", surplus=_YAML))


# -- Debian packages


def make_debs(suite: str, output: Path, roots: Path, mirror: str | None, progress: Progress) -> list[Path]:
    """Make the packages for a suite, and check them with lintian; gives their files.

    Raises ProgramError where a program fails, or lintian finds something.
    """
    python, number = SUITES[suite]
    root = packaging_root(suite, roots, mirror, progress)
    with tempfile.TemporaryDirectory(prefix="elivepatch-packages-") as scratch:
        work = Path(scratch)
        work.chmod(0o755)
        job = work / "job"
        source = job / "elivepatch"
        shutil.copytree(PROJECT / "packaging/debian", source / "debian")
        (source / "debian/changelog").write_text(_changelog(suite, number))
        for package, directory in (("elivepatch", "systemd"), ("elivepatch-server", "server")):
            for unit in (PROJECT / "packaging" / directory).iterdir():
                shutil.copyfile(unit, source / f"debian/{package}.{unit.name}")
        wheel = build_wheel(PROJECT, work)
        for part in PARTS:
            progress.step(f"{suite}: the Python packages of {part.program}")
            terms = stage(wheel, part, python, source / "stage" / part.name)
            (source / f"debian/{part.program}.copyright").write_text(terms)
            stage_texts(part, source / "stage" / part.name)
        major, minor = python.split(".")
        (source / "stage/python-depends").write_text(f"python3 (>= {python}~), python3 (<< {major}.{int(minor) + 1}~)")
        for path in (job, *job.rglob("*")):
            give_to_sandbox(path)
        progress.step(f"{suite}: building the packages")
        Sandbox(root.path, job=job, limits=_LIMITS).run(["sh", "-c", _BUILD], sink=progress.log)
        output.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy(deb, output)) for deb in sorted(job.glob("*.deb"))]


def packaging_root(suite: str, roots: Path, mirror: str | None, progress: Progress) -> Root:
    """A root of the suite with the tools that make packages."""
    name = f"packages-{suite}"
    return Roots(roots, mirror, {name: RootSpec(suite, _TOOLS)}).ensure(name, progress)


def stage(wheel: Path, part: Part, python: str, target: Path) -> str:
    """The tree of a package: a virtual environment for the suite's python3, and the program. Gives its copyright."""
    place = target / "usr/lib/elivepatch" / part.name
    packages = place / f"lib/python{python}/site-packages"
    install_wheel(wheel, part.requirements, python, packages)
    shutil.rmtree(packages / "bin", ignore_errors=True)
    files = files_of(packages)
    without_surplus(packages, part.surplus)
    _without_interpreters(packages)
    (place / "bin").mkdir()
    (place / "bin/python3").symlink_to(f"/usr/bin/python{python}")
    (place / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {python}\n")
    program = place / "bin" / part.program
    module, function = _entry_point(packages, part.program)
    program.write_text(_PROGRAM.format(part=part.name, module=module, function=function))
    program.chmod(0o755)
    (target / "usr/bin").mkdir(parents=True)
    (target / "usr/bin" / part.program).symlink_to(f"../lib/elivepatch/{part.name}/bin/{part.program}")
    own = (PROJECT / "packaging/debian/copyright").read_text()
    return copyright_file(own, packages, str(packages.relative_to(target)), files)


def stage_texts(part: Part, target: Path) -> None:
    """The manual page, and the completion of each shell where Debian's shells look for it."""
    manual = target / "usr/share/man/man8"
    with tempfile.TemporaryDirectory() as scratch:
        pages = [sys.executable, PROJECT / "scripts/man_pages.py", scratch]
        process.run(pages, env={"SOURCE_DATE_EPOCH": str(source_date())}, timeout=120)
        manual.mkdir(parents=True)
        shutil.copy(Path(scratch) / f"{part.program}.8", manual)
    for shell, place in _COMPLETIONS.items():
        file = target / place.format(part.program)
        file.parent.mkdir(parents=True)
        program = Path(sys.executable).parent / part.program
        file.write_text(process.run([program, "completion", shell], timeout=60).stdout)


def without_surplus(packages: Path, surplus: Sequence[str]) -> None:
    """Remove what the program does not need: caches, tests of Python packages, records of their installation."""
    usual = ("**/__pycache__", "**/tests", "**/test", "*/.agents", ".lock")
    usual += ("*.dist-info/RECORD", "*.dist-info/direct_url.json", "*.dist-info/uv_cache.json")
    for pattern in (*usual, *surplus):
        for path in list(packages.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _without_interpreters(packages: Path) -> None:
    """Remove the first lines that name an interpreter from modules, which nobody runs as programs."""
    for path in packages.rglob("*.py"):
        text = path.read_bytes()
        if text.startswith(b"#!"):
            path.write_bytes(text.partition(b"\n")[2])
            path.chmod(0o644)


def _entry_point(packages: Path, program: str) -> tuple[str, str]:
    (file,) = packages.glob("elivepatch-*.dist-info/entry_points.txt")
    found = re.search(rf"^{program} *= *([\w.]+):(\w+)$", file.read_text(), re.MULTILINE)
    if not found:
        raise InternalError(f"The wheel has no program '{program}'.")
    return found[1], found[2]


def debian_version(number: str) -> str:
    """The version of the packages for a Debian release: what comes later sorts later, for dpkg too."""
    return re.sub(r"\.?(a|b|rc|dev)(\d+)", r"~\1\2", installed_version()) + f"+deb{number}"


def source_date() -> int:
    """When the source was last changed, in seconds since 1970: packages of the same source are the same, byte for byte.

    It is SOURCE_DATE_EPOCH where that is set (reproducible-builds.org), else the date of the last commit.
    """
    if said := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(said)
    log = process.run(["git", "-C", PROJECT, "log", "-1", "--format=%ct"], check=False)
    return int(log.stdout) if log.stdout.strip() else int(time.time())


def _changelog(suite: str, number: str) -> str:
    return (
        f"elivepatch ({debian_version(number)}) {suite}; urgency=medium\n\n  * Packages of this version.\n\n"
        f" -- elivepatch developers <developers@elivepatch.invalid>  {formatdate(source_date())}\n"
    )


# -- by hand


@click.group(help="Make packages.")
def main() -> None:
    pass


@main.command("deb", help="Debian packages of client and server.")
@click.option("--suite", "suites", type=click.Choice(list(SUITES)), multiple=True, default=list(SUITES))
@click.option("--output", type=click.Path(path_type=Path), default=PROJECT / "dist")
def deb_command(suites: tuple[str, ...], output: Path) -> None:
    settings = server_settings.load()
    progress = Progress(to_terminal(sys.stderr))
    for suite in suites:
        for deb in make_debs(suite, output, settings.cache / "roots", settings.workshop.mirror, progress):
            click.echo(deb)


if __name__ == "__main__":
    try:
        main()
    except (ElivepatchError, process.ProgramError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
