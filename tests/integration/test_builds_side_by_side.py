# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds for several kernels, two at a time: the same bytes as one after the other."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from build_support import LIVEPATCHES
from elivepatch import pipeline
from elivepatch.job import InputFile, Job
from elivepatch.kernel.release import Release
from elivepatch.progress import Progress
from elivepatch.protocol.models import BuildRequest, BuildStatus
from elivepatch.workshop import Workshop

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PATCHES = ("string", "static-local", "new-function", "two-files")


@pytest.fixture(scope="module")
def releases(workshop: Workshop, progress: Progress) -> list[Release]:
    """The two newest cloud kernels of Debian 13 and its newest for real time: two sources, two flavours."""
    offered = workshop.source(workshop.roots.ensure("trixie", progress)).offered(progress)
    cloud = sorted(one for one in offered if one.text.endswith("-cloud-amd64") and one.series == "6.12")
    real_time = max(one for one in offered if one.text.endswith("-rt-amd64") and one.series == "6.12")
    return [*cloud[-2:], real_time]


def digest(workshop: Workshop, release: Release, patch: str, output: Path) -> str:
    output.mkdir()
    request = BuildRequest(kernel=str(release), verify=False)
    data = (LIVEPATCHES / f"{patch}.patch").read_bytes()
    report = pipeline.build(Job(request, (InputFile(patch, data),)), workshop, output, Progress())
    assert report.status is BuildStatus.DONE, report.message
    assert report.module is not None
    made = (output / f"{report.module.name}.ko").read_bytes()
    assert hashlib.sha256(made).hexdigest() == report.module.sha256
    return report.module.sha256


def test_two_at_a_time_give_the_bytes_of_one_by_one(
    workshop: Workshop, releases: list[Release], tmp_path: Path
) -> None:
    builds = [(releases[number % 3], PATCHES[number % 4]) for number in range(8)]
    assert len(set(builds)) == 8
    one_by_one = [
        digest(workshop, release, patch, tmp_path / f"one-{number}") for number, (release, patch) in enumerate(builds)
    ]

    def again(number: int) -> str:
        release, patch = builds[number]
        return digest(workshop, release, patch, tmp_path / f"two-{number}")

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(again, reversed(range(8))))
    assert list(reversed(together)) == one_by_one
    assert len(set(one_by_one)) == 8
