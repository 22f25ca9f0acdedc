# SPDX-License-Identifier: GPL-2.0-or-later
"""Every patch of tests/data, built twice: elsewhere, later, in another order, from a kernel prepared anew."""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from build_support import ENGINES, KLP_MACROS, KPATCH_MACROS, livepatch_file, livepatch_names
from elivepatch import pipeline
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.store import remove_tree
from elivepatch.job import InputFile, Job
from elivepatch.progress import Progress
from elivepatch.protocol.models import BuildRequest, BuildStatus, Report
from elivepatch.workshop import Workshop

pytestmark = [pytest.mark.integration, pytest.mark.slow]


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


def build(workshop: Workshop, release: str, patch: Path, output: Path) -> Report:
    """Build without a boot test, and see that the digest in the report is the module's."""
    request = BuildRequest(kernel=release, verify=False)
    report = pipeline.build(Job(request, (InputFile("patch", patch.read_bytes()),)), workshop, output, Progress())
    assert report.status is BuildStatus.DONE, f"{patch.name}: {report.message}"
    assert report.module is not None
    made = (output / f"{report.module.name}.ko").read_bytes()
    assert hashlib.sha256(made).hexdigest() == report.module.sha256
    return report


def digests(workshop: Workshop, release: str, patches: Mapping[str, Path], output: Path) -> dict[str, tuple[str, str]]:
    """Name and digest of each module, built in the order given."""
    found: dict[str, tuple[str, str]] = {}
    for name, patch in patches.items():
        module = build(workshop, release, patch, output / name).module
        assert module is not None
        found[name] = module.name, module.sha256
    return found


def patches_of(engine: str) -> dict[str, Path]:
    """All livepatches of tests/data that an engine builds, by name."""
    macros = {"kpatch": KPATCH_MACROS, "klp": KLP_MACROS}[engine]
    found = {name: livepatch_file(f"{name}.patch", engine) for name in livepatch_names()}
    return found | {f"macros-{path.stem}": path for path in sorted(macros.glob("*.patch"))}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_builds_of_each_patch_give_the_same_bytes(
    workshop: Workshop, kernel_of: Callable[[str], PreparedKernel], tmp_path: Path, engine: str
) -> None:
    release = kernel_of(engine).release
    patches = patches_of(engine)
    assert len(patches) >= 10
    first = digests(workshop, release, patches, tmp_path / "first")
    assert len(set(first.values())) == len(patches)
    with another_cache(workshop) as other:
        order = random.Random(5).sample(sorted(patches), len(patches))
        assert order != list(patches)
        again = build(other, release, patches[order[0]], tmp_path / "warm")
        assert again.engine is not None
        assert again.engine.name == engine
        assert again.cache is not None
        assert (again.cache.kernel, again.cache.original_objects) == (False, 0)
        second = digests(other, release, {name: patches[name] for name in order}, tmp_path / "second/in/another")
    assert second == first
