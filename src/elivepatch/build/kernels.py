# SPDX-License-Identifier: GPL-2.0-or-later
"""The prepared kernels of a machine, and the sources they were made from."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ValidationError

from elivepatch.build import based, own, published, unpack
from elivepatch.build.own import OwnKernel
from elivepatch.build.prepared import FORMAT, PreparedKernel, load_kernel
from elivepatch.build.store import Entry, Store
from elivepatch.progress import Progress
from elivepatch.sources.provider import KernelFiles
from elivepatch.toolchains.roots import Root


class KernelRecord(BaseModel):
    """What a prepared kernel says of itself, as far as lists show it."""

    release: str
    build_id: str
    origin: str
    image: str = ""
    compiler: str = ""
    config_sha256: str = ""
    modules: dict[str, str] = {}


class Kernels:
    """The prepared kernels of a machine."""

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self._sources = Store(directory / "sources", limit_bytes)
        self._kernels = Store(directory / "prepared", limit_bytes)
        self._builds = Store(directory / "builds", limit_bytes)

    @property
    def store(self) -> Store:
        """The store of the prepared kernels, for listing and cleaning."""
        return self._kernels

    @property
    def sources(self) -> Store:
        """The store of the unpacked sources, for cleaning."""
        return self._sources

    @property
    def builds(self) -> Store:
        """The store of whole builds from which no kernel could be prepared yet, for cleaning."""
        return self._builds

    @contextmanager
    def prepared(
        self, files: KernelFiles, root: Root, download: Callable[[], None], progress: Progress
    ) -> Generator[tuple[PreparedKernel, bool]]:
        """The prepared kernel, held while the block runs, and whether it was there.

        It is made if need be, and then ``download`` is called first, to have the files on disk.
        """
        digests = {package.file: package.sha256 for package in files.packages()}
        key = _key({"format": FORMAT, "release": str(files.release), "files": digests, "root": root.digest})
        with ThreadPoolExecutor(1) as pool, ExitStack() as held:
            downloaded = Once(download)

            def source() -> Path:
                make = partial(_make_source, files, downloaded, progress)
                return held.enter_context(self._sources.use(f"{files.source.sha256[:32]}-1", make))[0]

            # the source is unpacked while the image is taken apart: two cores, two jobs
            unpacked = pool.submit(source)
            make = partial(published.make, files, root, downloaded, unpacked, progress)
            path, was_there = held.enter_context(self._kernels.use(key, make))
            yield load_kernel(path, unpacked.result(), root), was_there

    @contextmanager
    def own(
        self, kernel: OwnKernel, root: Root, parallel: int, progress: Progress
    ) -> Generator[tuple[PreparedKernel, bool]]:
        """The prepared kernel of a host that built its own, held while the block runs, and whether it was there."""
        with ExitStack() as held:

            def pristine(work: Path) -> None:
                kernel.tree.fetch(progress)
                progress.step(f"laying out {kernel.tree.origin}")
                kernel.tree.compose(work, progress)
                unpack.own(work)

            source_key = f"{kernel.tree.identity[:32]}-1"
            source, _ = held.enter_context(self._sources.use(source_key, pristine))
            if kernel.base_patches:
                digests = [hashlib.sha256(data).hexdigest() for _, data in kernel.base_patches]
                source_key = _key({"format": based.FORMAT, "source": source_key, "patches": digests})
                make_based = partial(based.make, source, kernel.base_patches, root, progress)
                source, _ = held.enter_context(self._sources.use(source_key, make_based))
            parts = {"format": FORMAT, "own": source_key, "root": root.digest, **kernel.identity()}
            key = _key(parts)

            def make(work: Path) -> None:
                if kernel.image is not None:
                    own.make(kernel, root, source, None, progress, work)
                    return
                build = partial(own.build, kernel, root, source, parallel, progress)
                with self._builds.use(key, build) as (built, _):
                    own.make(kernel, root, source, built, progress, work)
                self._builds.remove(key)

            path, was_there = held.enter_context(self._kernels.use(key, make))
            yield load_kernel(path, source, root), was_there


class Once:
    """A call that is made once, whoever asks for it first; the others wait for it and share its failure."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._done = False

    def __call__(self) -> None:
        """Make the call, or wait for it."""
        with self._lock:
            if not self._done:
                self._call()
                self._done = True


def _make_source(files: KernelFiles, download: Callable[[], None], progress: Progress, work: Path) -> None:
    download()
    unpack.source(files.path(files.source), work, progress)


def list_kernels(store: Store) -> list[dict[str, object]]:
    """The prepared kernels as data: release, build_id, source, key, size (bytes), last_used (epoch seconds).

    One that cannot be read (damaged, or removed meanwhile) is left out; only a build or `gc` can do with it.
    """
    found: list[dict[str, object]] = []
    for entry in store.entries():
        data = read_entry(entry)
        if data is None:
            continue
        found.append(
            {
                "key": entry.key,
                "release": data.release,
                "build_id": data.build_id,
                "source": data.origin,
                "size": entry.size,
                "last_used": entry.last_used,
            }
        )
    return found


def read_entry(entry: Entry) -> KernelRecord | None:
    """What a prepared kernel says of itself; None where it cannot be read."""
    try:
        return KernelRecord.model_validate_json((entry.path / "kernel.json").read_bytes())
    except (OSError, ValidationError):
        return None


def _key(parts: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
