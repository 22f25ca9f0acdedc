# SPDX-License-Identifier: GPL-2.0-or-later
"""Prepared kernels from what their distributor publishes: nothing is built but host tools."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from elivepatch.build import unpack
from elivepatch.build.prepared import SIGNING_OPTIONS, PreparedKernel, check_compiler, finish
from elivepatch.errors import ConfigurationMismatchError, InternalError
from elivepatch.kernel.config import KernelConfig, parse_config
from elivepatch.kernel.elf import ElfImage
from elivepatch.progress import Progress
from elivepatch.sources.provider import KernelFiles
from elivepatch.toolchains.roots import Root


def make(
    files: KernelFiles,
    root: Root,
    download: Callable[[], None],
    source: Future[Path],
    progress: Progress,
    work: Path,
) -> None:
    """Fill an entry of the store from the packages of a kernel; ``source`` is the tree, once it is unpacked."""
    release = str(files.release)
    download()
    progress.step(f"preparing {release}: products and image")
    unpack.products(files.path(files.headers), files.path(files.kbuild), work / "products")
    image_name = unpack.image(files, work, root, progress)
    config = parse_config((work / "image/config").read_bytes())
    _check_configuration(config, parse_config((work / "products/.config").read_bytes()), files)
    check_compiler(config, root, release)
    with ElfImage(work / "image/vmlinux") as image:
        build_id = image.build_id()
    if build_id is None:
        raise InternalError(f"The published image of {release} ({image_name}) has no build ID.")
    kernel = PreparedKernel(
        path=work,
        source=source.result(),
        root=root,
        release=release,
        origin=files.origin,
        image="published",
        build_id=build_id,
        config_sha256=config.sha256,
        compiler=config.string("CC_VERSION_TEXT") or "",
        variables=unpack.make_variables(work / "products"),
        environment={},
        sizes={},
        modules=unpack.module_names(work / "modules"),
    )
    finish(kernel, config, progress)


def _check_configuration(published: KernelConfig, used: KernelConfig, files: KernelFiles) -> None:
    """What is compiled with must be what the kernel was built with, but for the signing of its modules."""
    differences = [line for line in published.differences(used) if line.partition(":")[0] not in SIGNING_OPTIONS]
    if differences:
        raise ConfigurationMismatchError(
            f"The configuration of {files.headers.file} differs from that of the image: {'; '.join(differences[:20])}",
            hint="The packages do not belong together; take another release.",
        )
