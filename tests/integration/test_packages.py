# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian packages, made and checked by lintian, installed in a clean root of their suite, removed and purged."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import packages
import pytest
from guest_image import build_wheel

from clean_host import CleanHost, clean_host
from elivepatch import process
from elivepatch.progress import Progress
from elivepatch.workshop import Workshop

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

#: What the packages depend on, so that dpkg alone can install them; a host's apt would bring it.
_NEEDED = (
    *("python3", "kmod", "adduser", "binutils", "bubblewrap", "bzip2", "ca-certificates", "cpio", "e2fsprogs", "git"),
    *("gpgv", "mmdebstrap", "patch", "qemu-system-x86", "systemd", "uidmap", "xz-utils", "zstd"),
)
_LIMIT_MB = 25
_START_SECONDS = 0.3
#: Starts the client ten times and prints the processor time of the quickest: what it takes on a machine that does
#: nothing else. By the clock it would be what others do here that is measured.
_TIMED = """
import resource, subprocess
def spent():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
def once():
    before = spent()
    subprocess.run(["elivepatch", "status"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return spent() - before
print(min(once() for _ in range(10)))
"""


@pytest.fixture(scope="module", params=list(packages.SUITES))
def suite(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def debs(
    suite: str, workshop: Workshop, progress: Progress, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    output = tmp_path_factory.mktemp("debs")
    made = packages.make_debs(suite, output, workshop.cache / "roots", workshop.mirror, progress)
    return {path.name.partition("_")[0]: path for path in made}


@pytest.fixture
def host(suite: str, workshop: Workshop, progress: Progress, tmp_path: Path) -> Iterator[CleanHost]:
    with clean_host(suite, _NEEDED, tmp_path, workshop, progress) as made:
        yield made


def start_up(host: CleanHost) -> float:
    """Seconds of a processor that 'elivepatch status' takes."""
    return float(host.run("python3", "-c", _TIMED))


def verified(host: CleanHost, units: Sequence[str]) -> str:
    """What systemd finds wrong with units of ours; it speaks of those of others too, of which a root has not all."""
    paths = [f"/usr/lib/systemd/system/{unit}" for unit in units]
    # a clean root leaves manuals out; as the first process, which it must not be, systemd speaks to the kernel's log
    verify = ("sh", "-c", 'systemd-analyze --man=no verify "$@"; true', "sh")
    told = host.run(*verify, *paths)
    broken = host.root / "etc/systemd/system/elivepatch-broken.service"
    broken.write_text("[Service]\nExecStart=/usr/bin/elivepatch\nNoSuchThing=1\n")
    assert "NoSuchThing" in host.run(*verify, f"/{broken.relative_to(host.root)}")
    broken.unlink()
    return "".join(line for line in told.splitlines() if "elivepatch" in line)


def test_the_client_is_installed_and_removed_without_a_trace(host: CleanHost, debs: dict[str, Path]) -> None:
    before = host.files()
    shutil.copy(debs["elivepatch"], host.root / "client.deb")
    host.run("dpkg", "-i", "/client.deb")
    (host.root / "client.deb").unlink()
    added = {name: size for name, size in host.files().items() if name not in before}
    assert sum(added.values()) < _LIMIT_MB * 1024**2, sum(added.values()) / 1024**2
    assert "elivepatch" in host.run("elivepatch", "--version")
    assert "kernel " in host.run("elivepatch", "status", check=False)
    assert start_up(host) < _START_SECONDS
    assert verified(host, [unit.name for unit in (packages.PROJECT / "packaging/systemd").iterdir()]) == ""
    for unit in ("elivepatch.service", "elivepatch-shutdown.service"):
        assert (host.root / f"etc/systemd/system/multi-user.target.wants/{unit}").is_symlink()
    assert (host.root / "etc/systemd/system/timers.target.wants/elivepatch-alive.timer").is_symlink()
    assert (host.root / "usr/share/bash-completion/completions/elivepatch").is_file()
    (host.root / "var/lib/elivepatch-client/journal").mkdir(parents=True)
    host.run("dpkg", "--purge", "elivepatch")
    left = set(host.files()) - set(before)
    assert not {name for name in left if "elivepatch" in name}


def test_the_server_is_installed_with_a_user_of_its_own(host: CleanHost, debs: dict[str, Path]) -> None:
    # what podman gives to the user of --userns=auto: the last ids there are, numbers that awk prints in its own way
    (host.root / "etc/subuid").write_text("containers:2147483647:2147483648\n")
    before = host.files()
    shutil.copy(debs["elivepatch-server"], host.root / "server.deb")
    host.run("dpkg", "-i", "/server.deb")
    ids = [(host.root / "etc" / file).read_text() for file in ("subuid", "subgid")]
    host.run("dpkg", "-i", "/server.deb")  # as an update does: nothing is given twice
    assert [(host.root / "etc" / file).read_text() for file in ("subuid", "subgid")] == ids
    (host.root / "server.deb").unlink()
    assert re.search(r"^elivepatch:", (host.root / "etc/passwd").read_text(), re.MULTILINE)
    for file in ("subuid", "subgid"):
        given = re.findall(r"^elivepatch:(\d+):(\d+)$", (host.root / "etc" / file).read_text(), re.MULTILINE)
        assert [count for _, count in given] == ["65536"]
    assert (host.root / "etc/systemd/system/multi-user.target.wants/elivepatch-server.service").is_symlink()
    told = host.run("su", "-s", "/bin/sh", "elivepatch", "-c", "elivepatch-server root list")
    assert "trixie" in told
    settings = "from elivepatch.server.settings import load; print(load().host)"
    assert host.run("/usr/lib/elivepatch/server/bin/python3", "-I", "-c", settings).strip() == "127.0.0.1"
    assert (host.root / "etc/elivepatch").is_dir()
    assert verified(host, ["elivepatch-server.service"]) == ""
    host.run("dpkg", "--purge", "elivepatch-server")
    left = {name for name in set(host.files()) - set(before) if "elivepatch" in name}
    assert not left


def test_the_packages_are_for_this_python(debs: dict[str, Path], suite: str) -> None:
    version = packages.SUITES[suite][0]
    for deb in debs.values():
        needs = process.run(["dpkg-deb", "--field", deb, "Depends"]).stdout
        assert f"python3 (>= {version}~)" in needs
        assert "man8" in process.run(["dpkg-deb", "--contents", deb]).stdout


def test_the_terms_of_all_that_is_brought_are_told(debs: dict[str, Path], tmp_path: Path) -> None:
    for part in packages.PARTS:
        place = tmp_path / part.name
        process.run(["dpkg-deb", "-x", debs[part.program], place])
        told = (place / f"usr/share/doc/{part.program}/copyright").read_text()
        patterns = re.findall(r"^(?:Files:)? (usr/\S+)$", told, re.MULTILINE)
        (site,) = place.glob("usr/lib/elivepatch/*/lib/python3*/site-packages")
        brought = [str(path.relative_to(place)) for path in site.rglob("*") if path.is_file()]
        ours = [name for name in brought if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        assert ours
        assert {
            name.removeprefix(f"{site.relative_to(place)}/").partition("/")[0].partition("-")[0] for name in ours
        } == {"elivepatch"}


def test_the_python_packages_are_those_that_are_pinned(debs: dict[str, Path]) -> None:
    for part in packages.PARTS:
        contents = process.run(["dpkg-deb", "--contents", debs[part.program]]).stdout
        packed = set(re.findall(r"site-packages/([a-z0-9_.]+)-([^/-]+)\.dist-info/METADATA$", contents, re.MULTILINE))
        pinned = re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", part.requirements.read_text(), re.MULTILINE)
        others = packed - {(name.replace("-", "_"), version) for name, version in pinned}
        assert {name for name, _ in others} == {"elivepatch"}, others
        assert len(packed) > 5


def test_a_python_package_with_another_digest_is_not_packed(tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    pinned = packages.CLIENT.requirements.read_text()
    requirements.write_text(re.sub(r"(?<=sha256:)[0-9a-f]{8}", "00000000", pinned))
    wheel = build_wheel(packages.PROJECT, tmp_path)
    part = dataclasses.replace(packages.CLIENT, requirements=requirements)
    with pytest.raises(process.ProgramError, match=r"(?i)hash"):
        packages.stage(wheel, part, "3.13", tmp_path / "stage")
