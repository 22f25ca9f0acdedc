# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel whose packages are not offered: its image comes from debuginfod, by the build ID that the host tells."""

from __future__ import annotations

import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from build_support import LIVEPATCHES
from elivepatch import pipeline, process
from elivepatch.build.prepared import PreparedKernel
from elivepatch.job import InputFile, Job
from elivepatch.progress import Progress
from elivepatch.protocol.models import BuildRequest, BuildStatus, HostFacts, Report
from elivepatch.workshop import SourcePolicy, Workshop

pytestmark = [pytest.mark.guest, pytest.mark.slow]


@pytest.fixture(scope="module")
def debuginfod(kernel: PreparedKernel, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """A server that has the image of the kernel, and nothing else of it."""
    work = tmp_path_factory.mktemp("debuginfod")
    indexed = work / "indexed"
    indexed.mkdir()
    process.run(["cp", "--sparse=always", kernel.vmlinux, indexed / "vmlinux"])
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = int(listening.getsockname()[1])
    argv = ["debuginfod", f"--port={port}", "--database=:memory:", "--scan-file-dir", indexed]
    url = f"http://127.0.0.1:{port}"
    with process.started(argv, log=work / "log", cwd=work, env={"HOME": str(work)}) as server:
        deadline = time.monotonic() + 120
        while not _has(f"{url}/buildid/{kernel.build_id}/executable"):
            assert server.poll() is None and time.monotonic() < deadline, (work / "log").read_text()
            time.sleep(0.5)
        yield url


def _has(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10):
            return True
    except (urllib.error.URLError, OSError):
        return False


def build(workshop: Workshop, kernel: PreparedKernel, name: str, output: Path, progress: Progress) -> Report:
    version = re.search(r"linux (\S+) ", kernel.origin)
    assert version is not None
    job = Job(
        request=BuildRequest(
            kernel=f"debian:{version[1]}", host=HostFacts(release=kernel.release, build_id=kernel.build_id)
        ),
        patches=(InputFile(f"{name}.patch", (LIVEPATCHES / f"{name}.patch").read_bytes()),),
        config=(kernel.path / "image/config").read_bytes(),  # the host's /boot/config-RELEASE
        check=(LIVEPATCHES / f"{name}.sh").read_bytes(),
    )
    output.mkdir()
    return pipeline.build(job, workshop, output, progress)


@pytest.mark.parametrize("name", ["string", "two-files"])
def test_the_image_is_found_by_its_build_id(
    debuginfod: str, workshop: Workshop, kernel: PreparedKernel, tmp_path: Path, progress: Progress, name: str
) -> None:
    shop = replace(workshop, sources=SourcePolicy(debuginfod=(debuginfod,)))
    report = build(shop, kernel, name, tmp_path / "output", progress)
    assert report.status is BuildStatus.DONE, report.dump_json()
    assert report.kernel is not None
    assert (report.kernel.image, report.kernel.build_id) == ("debuginfod", kernel.build_id)
    assert report.kernel.release == kernel.release
    assert report.proof is not None
    assert report.proof.level == "exact"
    assert report.verification is not None
    assert report.verification.check_after
    assert report.verification.check_reverted is False
