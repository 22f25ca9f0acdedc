# SPDX-License-Identifier: GPL-2.0-or-later
"""How a kernel is found among the suites: what one of them knows already is asked of nobody."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from elivepatch.kernel.release import parse_release
from elivepatch.progress import Progress
from elivepatch.sources import debian
from elivepatch.sources.provider import KernelFiles, Package
from elivepatch.toolchains.roots import _FORMAT as ROOT_FORMAT  # pyright: ignore[reportPrivateUsage]
from elivepatch.toolchains.roots import Root
from elivepatch.workshop import Workshop, find_kernel

RELEASE = parse_release("7.3.4+deb13-cloud-amd64")


class AptAskedError(Exception):
    """Apt was asked."""


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """A cache with the root of trixie and nothing else; apt fails the test."""
    root = Root("trixie", tmp_path / "roots/trixie/root", "digest", 1, 0.0, None)
    (root.path / "etc/apt").mkdir(parents=True)
    (root.path / "etc/apt/sources.list").write_text("deb http://mirror.invalid/debian trixie main\n")
    record = {name: value for name, value in asdict(root).items() if name != "path"}
    (root.path.parent / "root.json").write_text(json.dumps({**record, "format": ROOT_FORMAT}))

    def asked(*_: object, **__: object) -> None:
        raise AptAskedError

    monkeypatch.setattr(debian, "run", asked)
    return Workshop(tmp_path)


def remember(workshop: Workshop, name: str) -> None:
    """Have a source of that name know the release, as if it had been found there."""
    package = Package("http://mirror.invalid/x.deb", "x.deb", 1, "0" * 64)
    files = KernelFiles(
        RELEASE, f"debian:{name}", "trixie", workshop.cache, [package], package, package, package, package
    )
    data = {key: value for key, value in asdict(files).items() if key not in {"release", "directory"}}
    place = workshop.cache / "apt" / name / "releases"
    place.mkdir(parents=True)
    (place / f"{RELEASE}.json").write_text(json.dumps(data))


@pytest.mark.parametrize("name", ["trixie", "trixie-backports"])
def test_a_release_that_was_found_before_is_asked_of_nobody(workshop: Workshop, name: str) -> None:
    """Apt takes seconds to say that the suite does not have what its backports have."""
    remember(workshop, name)
    files, root, source = find_kernel(RELEASE, workshop, Progress())
    assert files.origin == f"debian:{name}"
    assert root.name == "trixie"
    assert source.remembered(RELEASE) == files


def test_a_release_that_nobody_knows_is_asked_for(workshop: Workshop) -> None:
    with pytest.raises(AptAskedError):
        find_kernel(RELEASE, workshop, Progress())
