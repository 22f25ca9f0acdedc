# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys of builds: hosts that run the same kernel share what was built, and nobody else does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from elivepatch.errors import InvalidInputError
from elivepatch.job import InputFile, Job, request_key
from elivepatch.protocol.models import BuildRequest, HostFacts
from elivepatch.server.overlay_watch import identity_of
from elivepatch.workshop import Workshop

RELEASE = "6.12.118+deb13-cloud-amd64"
PATCHES = (InputFile("a.patch", b"a"), InputFile("b.patch", b"b"))


def job(kernel: str = RELEASE, *, build_id: str | None = None, **facts: str) -> Job:
    host = HostFacts.model_validate({"release": RELEASE, **facts}) if facts else None
    return Job(BuildRequest(kernel=kernel, build_id=build_id, host=host), PATCHES)


def key(one: Job, tmp_path: Path) -> str:
    return request_key(one, Workshop(tmp_path))


def test_of_a_published_kernel_the_build_id_says_all(tmp_path: Path) -> None:
    ahead = key(job(build_id="a" * 40), tmp_path)
    assert key(job(build_id="a" * 40, version="#1 SMP", symbols_sha256="b" * 64), tmp_path) == ahead
    assert key(job(build_id="c" * 40), tmp_path) != ahead
    assert key(job(), tmp_path) != ahead


@pytest.mark.parametrize("kernel", ["kernel.org:6.12.60", "debian:6.12.118-1", "6.12.60-gentoo", "dir:/usr/src/linux"])
def test_of_another_kernel_what_the_host_tells_counts(tmp_path: Path, kernel: str) -> None:
    told = key(job(kernel, build_id="a" * 40, version="#1 SMP"), tmp_path)
    assert key(job(kernel, build_id="a" * 40, version="#2 SMP"), tmp_path) != told


@pytest.mark.parametrize("kernel", ["6.12", "short", "svn:trunk", "kernel.org:2.6.32", "git:https://example.org/linux"])
def test_what_is_no_kernel_has_no_key(tmp_path: Path, kernel: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        key(job(kernel), tmp_path)
    assert caught.value.hint


def test_base_patches_make_another_kernel_of_a_published_one(tmp_path: Path) -> None:
    modified = replace(job(build_id="a" * 40, version="#1 SMP"), base_patches=PATCHES)
    other = replace(job(build_id="a" * 40, version="#2 SMP"), base_patches=PATCHES)
    assert key(modified, tmp_path) != key(other, tmp_path)


def test_names_are_for_people_and_order_counts(tmp_path: Path) -> None:
    one = job(build_id="a" * 40)
    renamed = replace(one, patches=tuple(replace(file, name=f"x-{file.name}") for file in PATCHES))
    assert key(renamed, tmp_path) == key(one, tmp_path)
    assert key(replace(one, patches=PATCHES[::-1]), tmp_path) != key(one, tmp_path)


@pytest.mark.parametrize(
    ("origin", "version", "distribution"),
    [
        ("debian:linux 6.12.118-1 (trixie)", (6, 12, 118), ("debian", "13")),
        ("debian:linux 6.1.170-3 (bookworm)", (6, 1, 170), ("debian", "12")),
        ("debian:linux 7.3.4-1~bpo13+1 (trixie-backports)", (7, 3, 4), ("debian", "13")),
        ("debian:linux 6.12.1-1 (ours)", (6, 12, 1), ("debian", None)),
        ("kernel.org:6.12.60", None, (None, None)),
    ],
)
def test_what_patches_are_chosen_by(
    origin: str, version: tuple[int, int, int] | None, distribution: tuple[str | None, str | None]
) -> None:
    found = identity_of(RELEASE, origin)
    assert (found.version, (found.distribution, found.distribution_version)) == (version, distribution)
