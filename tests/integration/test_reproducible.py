# SPDX-License-Identifier: GPL-2.0-or-later
"""Every patch of tests/data, built twice: elsewhere, later, in another order, from a kernel prepared anew."""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from build_support import KPATCH_MACROS, LIVEPATCHES
from elivepatch import pipeline
from elivepatch.build.store import remove_tree
from elivepatch.job import InputFile, Job
from elivepatch.kernel.release import Release, parse_release
from elivepatch.progress import Progress
from elivepatch.protocol.models import BuildRequest, BuildStatus, Report
from elivepatch.workshop import Workshop

pytestmark = [pytest.mark.integration, pytest.mark.slow]

#: The newest cloud kernel of each of these series is built for: root, series.
KERNELS = [("trixie", "6.12")]


@contextmanager
def another_cache(workshop: Workshop) -> Generator[Workshop]:
    """A workshop with no kernel, at another place; downloads and build roots are those that are there."""
    place = Path(tempfile.mkdtemp(prefix="elivepatch-again.", dir=workshop.cache.parent))
    try:
        place.chmod(0o755)
        cache = place / "a/deeper/cache"
        cache.mkdir(parents=True)
        for shared in ("roots", "packages", "apt"):
            (cache / shared).symlink_to(workshop.cache / shared)
        yield replace(workshop, cache=cache, parallel=1)
    finally:
        remove_tree(place)


def build(workshop: Workshop, release: Release, patch: Path, output: Path) -> Report:
    """Build without a boot test, and see that the digest in the report is the module's."""
    request = BuildRequest(kernel=str(release), verify=False)
    report = pipeline.build(Job(request, (InputFile("patch", patch.read_bytes()),)), workshop, output, Progress())
    assert report.status is BuildStatus.DONE, f"{patch.name}: {report.message}"
    assert report.module is not None
    made = (output / f"{report.module.name}.ko").read_bytes()
    assert hashlib.sha256(made).hexdigest() == report.module.sha256
    return report


def digests(workshop: Workshop, release: Release, patches: list[Path], output: Path) -> dict[str, tuple[str, str]]:
    """Name and digest of each module, built in the order given."""
    found: dict[str, tuple[str, str]] = {}
    for patch in patches:
        module = build(workshop, release, patch, output / patch.stem).module
        assert module is not None
        found[patch.stem] = module.name, module.sha256
    return found


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("root", "series"), KERNELS)
def test_two_builds_of_each_patch_give_the_same_bytes(
    workshop: Workshop, progress: Progress, tmp_path: Path, root: str, series: str
) -> None:
    offered = workshop.source(workshop.roots.ensure(root, progress)).offered(progress)
    release = max(one for one in offered if one.series == series and one.text.endswith("-cloud-amd64"))
    patches = sorted(LIVEPATCHES.glob("*.patch"))
    if release < parse_release("6.19"):
        patches += sorted(KPATCH_MACROS.glob("*.patch"))
    assert len(patches) >= 10
    first = digests(workshop, release, patches, tmp_path / "first")
    assert len(set(first.values())) == len(patches)
    with another_cache(workshop) as other:
        mixed = random.Random(5).sample(patches, len(patches))
        assert mixed != patches
        again = build(other, release, mixed[0], tmp_path / "warm")
        assert again.cache is not None
        assert (again.cache.kernel, again.cache.original_objects) == (False, 0)
        second = digests(other, release, mixed, tmp_path / "second/in/another/directory")
    assert second == first
