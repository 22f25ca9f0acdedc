# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests with real kernels share: the workshop, the kernel they build for, and a way to build.

The workshop lies where the Makefile puts it (ELIVEPATCH_CACHE); what is missing there is made, which the first run
tells about. ELIVEPATCH_TEST_KERNEL names another kernel than the newest 6.12 of the cloud flavour.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from _pytest.capture import CaptureManager

from build_support import Builder
from elivepatch.build.prepared import PreparedKernel
from elivepatch.kernel.release import Release, parse_release
from elivepatch.progress import Event, Progress
from elivepatch.workshop import Workshop, find_kernel, newest_kernel

_SUITE = "trixie"


def cache_directory() -> Path:
    """The cache, by the rule of the Makefile."""
    if named := os.environ.get("ELIVEPATCH_CACHE"):
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/cache/elivepatch")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "elivepatch"


#: The home of every program that `process` starts, unless it is told another: it is not there and must stay so.
NO_HOME = Path("/nonexistent")


@pytest.fixture(scope="session", autouse=True)
def no_home() -> Generator[None]:
    """Fail where something makes the home that programs do not have; as root it can be made."""
    before = NO_HOME.exists()
    yield
    made = sorted(map(str, NO_HOME.rglob("*")))[:5] if NO_HOME.exists() else []
    assert before or not NO_HOME.exists(), f"a program that was started without HOME made {made}"


@pytest.fixture(scope="session")
def progress(request: pytest.FixtureRequest) -> Progress:
    """Progress that is seen although pytest keeps the output: making a kernel takes minutes."""
    manager = request.config.pluginmanager.getplugin("capturemanager")
    assert isinstance(manager, CaptureManager)

    began = time.time()

    def sink(event: Event) -> None:
        if event.kind != "log":
            with manager.global_and_fixture_disabled():
                since = event.time - began
                print(
                    f"\n[{event.phase or 'workshop'} {since:5.1f} s] {event.message}",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )

    return Progress(sink)


@pytest.fixture(scope="session")
def workshop(progress: Progress) -> Workshop:
    """The workshop on the cache, with its build root."""
    shop = Workshop(cache_directory())
    shop.roots.ensure(_SUITE, progress)
    return shop


@pytest.fixture(scope="session")
def release(workshop: Workshop, progress: Progress) -> Release:
    """The kernel that the tests build for."""
    if named := os.environ.get("ELIVEPATCH_TEST_KERNEL"):
        return parse_release(named)
    return newest_kernel(workshop, progress)


@pytest.fixture(scope="session")
def kernel_of(workshop: Workshop, release: Release, progress: Progress) -> Generator[Callable[[str], PreparedKernel]]:
    """A kernel by the name of its engine, prepared and held: that one for ``kpatch``, the newest 7.x for ``klp``."""
    known: dict[str, PreparedKernel] = {}
    with ExitStack() as held:

        def find(engine: str) -> PreparedKernel:
            if engine not in known:
                wanted = release if engine == "kpatch" else newest_klp_kernel(workshop, progress)
                files, root, source = find_kernel(wanted, workshop, progress)
                download = partial(source.download, files, progress)
                made = workshop.kernels.prepared(files, root, download, progress)
                known[engine] = held.enter_context(made)[0]
            return known[engine]

        yield find


def newest_klp_kernel(workshop: Workshop, progress: Progress) -> Release:
    """The newest cloud kernel that the kernel's own tools are for; ELIVEPATCH_TEST_KLP_KERNEL names another."""
    if named := os.environ.get("ELIVEPATCH_TEST_KLP_KERNEL"):
        return parse_release(named)
    sources = workshop.kernel_sources(workshop.roots.get(_SUITE))
    offered = [one for source in sources for one in source.offered(progress)]
    return max(one for one in offered if (one.major, one.minor) >= (6, 19) and one.text.endswith("-cloud-amd64"))


@pytest.fixture(scope="session")
def kernel(kernel_of: Callable[[str], PreparedKernel]) -> PreparedKernel:
    """The kernel that the tests build for, prepared, and held so that nothing removes it."""
    return kernel_of("kpatch")


@pytest.fixture
def builder(workshop: Workshop, kernel: PreparedKernel, tmp_path: Path) -> Builder:
    """Builds for that kernel, each in a directory of its own below ``tmp_path``."""
    return Builder(workshop, kernel, tmp_path)
