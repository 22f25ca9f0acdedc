# SPDX-License-Identifier: GPL-2.0-or-later
"""The client as a single file, for hosts without our packages: a zip archive that python3 runs as it is.

    single_file.py --output DIR

It holds the client, and the Python packages that it needs at the versions and digests of requirements/client.txt. One
of them, pydantic-core, is compiled: that is there once for each version of Python. For the versions that Debian has,
all modules are byte code, made by the python3 of that release: nothing can be written beside a module in an archive,
and compiling them with each start takes a second. For the other versions they are source.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
from guest_image import CLIENT_REQUIREMENTS, build_wheel, install_pinned
from packages import CLIENT, PROJECT, SUITES, packaging_root, without_surplus

from elivepatch import process
from elivepatch.errors import ElivepatchError, InternalError
from elivepatch.progress import Progress, to_terminal
from elivepatch.server import settings as server_settings
from elivepatch.toolchains.sandbox import Limits, Sandbox, give_to_sandbox

#: The versions of CPython that it runs with.
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
#: Where the units are told that the file lies.
PLACE = "/usr/local/sbin/elivepatch"
_SHEBANG = b"#!/usr/bin/python3 -I\n"
_LIMITS = Limits(processes=64, seconds=600.0)
#: All dates in the archive, so that the same inputs give the same bytes: the first that a zip archive can have.
_DATE = (1980, 1, 1, 0, 0, 0)
#: Byte code as it is looked for in archives: beside, or in place of, the source, and never compared with it.
_COMPILE = (
    *("python3", "-m", "compileall", "-q", "-b", "-o", "0", "--invalidation-mode", "unchecked-hash"),
    *("-s", "/elivepatch/job", "/elivepatch/job/code"),
)


def make_single_file(output: Path, roots: Path, mirror: str | None, progress: Progress) -> Path:
    """Make ``elivepatch.pyz`` in a directory, and beside it the units that run it; gives the file.

    Raises ProgramError where a program fails.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="elivepatch-single-file-") as scratch:
        work = Path(scratch)
        work.chmod(0o755)
        stage = work / "stage"
        wheel = build_wheel(PROJECT, work)
        for python in PYTHONS:
            progress.step(f"the Python packages of the client, for Python {python}")
            _stage_compiled(work / f"packages{python}", python, stage)
        _stage_sources(work / f"packages{PYTHONS[0]}", wheel, stage / "lib")
        for suite, (python, _) in SUITES.items():
            progress.step(f"the byte code for Python {python}")
            root = packaging_root(suite, roots, mirror, progress)
            _stage_byte_code(root.path, work / f"job{python}", stage / "lib", stage / _tag(python))
        begin = (PROJECT / "packaging/single-file/__main__.py").read_text()
        for metadata in (stage / "lib").glob("*.dist-info"):
            metadata.rename(stage / metadata.name)  # importlib.metadata looks at the top of an archive only
        versions = f"{', '.join(PYTHONS[:-1])} or {PYTHONS[-1]}"
        (stage / "__main__.py").write_text(begin.replace("@VERSIONS@", versions))
        file = output / "elivepatch.pyz"
        _pack(stage, file)
    _write_units(output / "single-file")
    return file


def _tag(python: str) -> str:
    return "py" + python.replace(".", "")


def _stage_compiled(packages: Path, python: str, stage: Path) -> None:
    """The compiled modules for a version of Python, and an index of them."""
    install_pinned(CLIENT_REQUIREMENTS, python, packages)
    without_surplus(packages, CLIENT.surplus)
    place = stage / _tag(python)
    place.mkdir(parents=True)
    index: list[str] = []
    for path in sorted(packages.rglob("*.so")):
        name = path.relative_to(packages)
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place / name)
        module = ".".join((*name.parent.parts, name.name.partition(".")[0]))
        index.append(f"{module} {_tag(python)}/{name}\n")
    (place / "compiled").write_text("".join(index))


def _stage_sources(packages: Path, wheel: Path, lib: Path) -> None:
    """What is the same for every version of Python."""
    shutil.copytree(packages, lib, ignore=shutil.ignore_patterns("*.so", "bin", "*.pyi", "py.typed"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(lib)
    without_surplus(lib, CLIENT.surplus)
    for path in lib.rglob("*.dist-info/*"):
        if path.is_file() and path.name != "METADATA" and not re.match(r"LICEN[CS]E|COPYING", path.name.upper()):
            path.unlink()


def _stage_byte_code(root: Path, job: Path, lib: Path, place: Path) -> None:
    """The modules as byte code of the python3 in a root."""
    shutil.copytree(lib, job / "code")
    for path in (job, *job.rglob("*")):
        give_to_sandbox(path)
    Sandbox(root, job=job, limits=_LIMITS).run(list(_COMPILE))
    for path in sorted((job / "code").rglob("*.pyc")):
        target = place / path.relative_to(job / "code")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    if not (place / "elivepatch/client/entry.pyc").is_file():
        raise InternalError(f"There is no byte code in {place}.")


def _pack(stage: Path, file: Path) -> None:
    aside = file.with_name(f".{file.name}.new")
    with aside.open("wb") as stream:
        stream.write(_SHEBANG)
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name, path in _members(stage):
                member = zipfile.ZipInfo(name, _DATE)
                member.compress_type = zipfile.ZIP_DEFLATED
                member.external_attr = 0o100644 << 16
                archive.writestr(member, path.read_bytes())
    aside.chmod(0o755)
    aside.replace(file)


def _members(stage: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(stage.rglob("*")):
        if path.is_file():
            yield path.relative_to(stage).as_posix(), path


def _write_units(place: Path) -> None:
    """The units of the packages, with the place of the file in them."""
    shutil.rmtree(place, ignore_errors=True)
    for directory in ("systemd", "openrc"):
        (place / directory).mkdir(parents=True)
        for unit in (PROJECT / "packaging" / directory).iterdir():
            target = place / directory / unit.name
            target.write_text(unit.read_text().replace("/usr/bin/elivepatch", PLACE))
            shutil.copymode(unit, target)


@click.command(help="Make the client as a single file.")
@click.option("--output", type=click.Path(path_type=Path), default=PROJECT / "dist")
def main(output: Path) -> None:
    settings = server_settings.load()
    progress = Progress(to_terminal(sys.stderr))
    click.echo(make_single_file(output, settings.cache / "roots", settings.workshop.mirror, progress))


if __name__ == "__main__":
    try:
        main()
    except (ElivepatchError, process.ProgramError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
