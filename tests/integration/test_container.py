# SPDX-License-Identifier: GPL-2.0-or-later
"""The container file of the server: its steps, performed in a clean root of the Debian release that it names.

No program that makes containers is needed for that. Of what a runtime forbids inside of a container only the rights
that it takes away are missing here; docs/install.md says what else a container needs, and what was tried in one.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import demo_host
import httpx2
import packages
import pytest

from clean_host import CleanHost, clean_host
from elivepatch import process
from elivepatch.progress import Progress
from elivepatch.server import settings
from elivepatch.workshop import Workshop

pytestmark = [pytest.mark.integration]

FILE = packages.PROJECT / "packaging/container/Containerfile"
KNOWN = {"FROM", "COPY", "RUN", "ENV", "VOLUME", "EXPOSE", "USER", "WORKDIR", "CMD"}


@dataclass
class Container:
    """What the file says."""

    base: str = ""
    copied: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    steps: list[str] = field(default_factory=list[str])
    environment: dict[str, str] = field(default_factory=dict[str, str])
    volumes: list[str] = field(default_factory=list[str])
    user: str = ""
    directory: str = ""
    program: list[str] = field(default_factory=list[str])
    port: str = ""


def read(text: str) -> Container:
    """Read a container file; one that does what is not known here is an error."""
    text = re.sub(r"(?m)^#.*\n", "", text)
    found = Container()
    for line in filter(None, map(str.strip, text.replace("\\\n", " ").splitlines())):
        instruction, _, rest = line.partition(" ")
        assert instruction in KNOWN, line
        if instruction == "FROM":
            found.base = rest
        elif instruction == "COPY":
            source, target = rest.split()
            found.copied.append((source, target))
        elif instruction == "RUN":
            found.steps.append(rest)
        elif instruction == "ENV":
            found.environment |= dict(word.split("=", 1) for word in rest.split())
        elif instruction == "VOLUME":
            found.volumes += json.loads(rest)
        elif instruction == "CMD":
            found.program = json.loads(rest)
        elif instruction == "USER":
            found.user = rest
        elif instruction == "WORKDIR":
            found.directory = rest
        else:
            found.port = rest
    return found


@pytest.fixture(scope="module")
def container() -> Container:
    return read(FILE.read_text())


def test_what_it_says_agrees_with_itself_and_with_the_server(container: Container) -> None:
    assert container.base == "docker.io/library/debian:trixie-slim"
    assert "trixie" in packages.SUITES
    assert container.user not in {"", "root", "0"}
    names = {name.removeprefix(settings.PREFIX).lower() for name in container.environment}
    assert names <= set(settings.Settings.model_fields)
    assert container.environment["ELIVEPATCH_PORT"] == container.port == "5000"
    places = {container.environment["ELIVEPATCH_DATA"], container.environment["ELIVEPATCH_CACHE"]}
    assert set(container.volumes) == places
    ((source, target),) = container.copied
    made = f"elivepatch-server_{packages.debian_version(packages.SUITES['trixie'][1])}_amd64.deb"
    assert fnmatch.fnmatch(f"dist/{made}", source)
    assert target in container.steps[0]


@pytest.fixture(scope="module")
def made(
    container: Container, workshop: Workshop, progress: Progress, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CleanHost]:
    """A root in which the steps of the file were performed."""
    suite = re.sub(r".*:(\w+)-slim", r"\1", container.base)
    dist = tmp_path_factory.mktemp("dist")
    debs = packages.make_debs(suite, dist, workshop.cache / "roots", workshop.mirror, progress)
    with clean_host(
        suite, ["util-linux"], tmp_path_factory.mktemp("container"), workshop, progress, name="container"
    ) as host:
        for source, target in container.copied:
            (file,) = [deb for deb in debs if fnmatch.fnmatch(f"dist/{deb.name}", source)]
            shutil.copy(file, host.root / target.lstrip("/"))
        for step in container.steps:
            progress.step(f"performing: {step[:60]}")
            host.run("sh", "-c", step)
        yield host


#: What podman leaves a container of root's rights (containers.conf(5), default_capabilities); docker leaves more.
CAPABILITIES = "chown,dac_override,fowner,fsetid,kill,net_bind_service,setfcap,setgid,setpcap,setuid,sys_chroot"


def as_user(container: Container, *words: str) -> list[str]:
    """The argv of a program as the container's user, with no more rights to gain than a container has."""
    kept, user = CAPABILITIES.replace(",", ",+"), container.user
    limited = ["setpriv", "--inh-caps=-all", "--bounding-set", f"-all,+{kept}", "--"]
    changed = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "env", "HOME=/var/lib/elivepatch"]
    return [*limited, *changed, *words]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_server_runs_in_it_as_its_user(made: CleanHost, container: Container, tmp_path: Path) -> None:
    port = demo_host.free_port()
    env = {**container.environment, "ELIVEPATCH_PORT": str(port)}
    argv = made.command(
        "sh", "-c", f'cd {container.directory}; exec "$@"', "-", *as_user(container, *container.program)
    )
    log = tmp_path / "server.log"
    with process.started(argv, log=log, env=env):
        health = wait_for(f"http://127.0.0.1:{port}/elivepatch/api/v2/health", log)
    assert "status" in health
    data = made.root / container.environment["ELIVEPATCH_DATA"].lstrip("/")
    assert (data / "db.sqlite").stat().st_uid == data.stat().st_uid != 0


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_roots_and_sandboxes_can_be_made_in_it(made: CleanHost, container: Container) -> None:
    """With no system call forbidden: that all programs are there, and the user has its ids."""
    listed = made.completed(*as_user(container, "elivepatch-server", "root", "list"), env=container.environment)
    assert "trixie" in listed.stdout, listed.stderr
    inside = ["bwrap", "--unshare-user", "--unshare-pid", "--unshare-net", "--ro-bind", "/", "/", "--proc", "/proc"]
    for words in (
        [*inside, "--dev", "/dev", "true"],
        ["unshare", "--user", "--map-auto", "--map-root-user", "--", "true"],
        ["mmdebstrap", "--version"],
        ["qemu-system-x86_64", "--version"],
    ):
        done = made.completed(*as_user(container, *words), env=container.environment)
        assert done.returncode == 0, done.stderr


def wait_for(url: str, log: Path) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx2.HTTPError):
            return httpx2.get(url, timeout=5).text
        time.sleep(0.5)
    pytest.fail(log.read_text())
