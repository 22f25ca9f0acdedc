# SPDX-License-Identifier: GPL-2.0-or-later
"""From what a request says of a kernel to the kernel, prepared: which source, which compiler, whose image."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from elivepatch.build import unpack
from elivepatch.build.image import HostImage, check_image
from elivepatch.build.own import OwnKernel
from elivepatch.build.prepared import PreparedKernel, require_gcc, require_rust
from elivepatch.errors import CompilerMismatchError, InvalidInputError, ToolUnavailableError
from elivepatch.kernel.banner import parse_banner
from elivepatch.kernel.config import KernelConfig, parse_config
from elivepatch.progress import Progress
from elivepatch.protocol.models import HostFacts
from elivepatch.sources.gentoo.package import possible_packages
from elivepatch.sources.provider import KernelFiles, KernelSource
from elivepatch.sources.reference import ReleaseReference, parse_reference
from elivepatch.sources.trees import SourceTree
from elivepatch.toolchains.roots import Root
from elivepatch.workshop import Workshop, find_kernel


@dataclass(frozen=True)
class WantedKernel:
    """A kernel as a request describes it.

    ``name`` is a release or a reference to a source. ``base_patches`` are names and bytes, in order. ``image`` is the
    host's own, where it was sent; ``build_id`` is that of the host's kernel.
    """

    name: str
    config: bytes | None = field(default=None, repr=False)
    base_patches: Sequence[tuple[str, bytes]] = field(default=(), repr=False)
    host: HostFacts | None = None
    image: HostImage | None = None
    build_id: str | None = None


@contextmanager
def hold_kernel(wanted: WantedKernel, workshop: Workshop, progress: Progress) -> Generator[tuple[PreparedKernel, bool]]:
    """The prepared kernel, held while the block runs, and whether it was there already.

    A release that a distributor publishes is taken as it is published. Any other kernel is made from its source, its
    base patches and its configuration. Raises KernelUnavailableError, InvalidInputError, DoesNotFitError.
    """
    reference = parse_reference(wanted.name)
    modified = bool(wanted.base_patches) or wanted.image is not None
    if isinstance(reference, ReleaseReference) and is_published(reference, modified=modified):
        files, root, source = find_kernel(reference.release, workshop, progress)
        context = workshop.kernels.prepared(files, root, lambda: source.download(files, progress), progress)
    else:
        context = _own_kernel(wanted, workshop, progress)
    with context as found:
        yield found


@contextmanager
def _own_kernel(wanted: WantedKernel, workshop: Workshop, progress: Progress) -> Generator[tuple[PreparedKernel, bool]]:
    reference = parse_reference(wanted.name)
    host = wanted.host
    config, release = wanted.config, host.release if host is not None else None
    gentoo = isinstance(reference, ReleaseReference) and bool(possible_packages(str(reference.release)))
    if config is None and wanted.image is not None and wanted.image.config is not None:
        config = wanted.image.config.read_bytes()
    if isinstance(reference, ReleaseReference) and not gentoo:
        files, root, source = find_kernel(reference.release, workshop, progress)
        release = str(reference.release)
        tree = _published_source(files, source)
        if config is None:  # that of the release, which its headers have
            with workshop.kernels.prepared(files, root, lambda: source.download(files, progress), progress) as (
                known,
                _,
            ):
                config = (known.products / ".config").read_bytes()
    else:
        from elivepatch.origins import find_tree  # with HTTP and all, which a published kernel does not need

        tree = find_tree(reference, wanted.host, wanted.config, workshop, progress)
    if config is None:
        raise InvalidInputError(
            f"A kernel from {wanted.name} needs the configuration it was built with.",
            hint="Give it with -k (--config): /proc/config.gz, /boot/config-RELEASE, or the tree's .config.",
        )
    image = wanted.image
    if image is None and wanted.build_id is not None and workshop.sources.debuginfod:
        from elivepatch.origins import find_image

        image = find_image(wanted.build_id, workshop, progress)
    if image is not None:
        check_image(image.vmlinux)  # before anything is laid out for it
    own = OwnKernel(
        tree=tree,
        config=config,
        base_patches=wanted.base_patches,
        release=release,
        banner=parse_banner(host.version) if host is not None and host.version is not None else None,
        place=host.place if host is not None else None,
        image=image,
    )
    root = find_root(parse_config(config), workshop, progress)
    with workshop.kernels.own(own, root, workshop.parallel, progress) as found:
        yield found


def is_published(reference: ReleaseReference, *, modified: bool) -> bool:
    """Whether a release is that of a kernel which is taken as its distributor publishes it.

    ``modified``: with patches of the host on it, or with an image that the host sent.
    """
    return not modified and not possible_packages(str(reference.release))


def _published_source(files: KernelFiles, source: KernelSource) -> SourceTree:
    """The source of a published kernel, as a tree for kernels that are made from it."""
    path = files.path(files.source)
    return SourceTree(
        origin=files.origin,
        identity=files.source.sha256,
        fetch=partial(source.download, files),
        compose=partial(unpack.source, path),
    )


def find_root(config: KernelConfig, workshop: Workshop, progress: Progress) -> Root:
    """The build root with the compilers that a configuration needs; those that are there are asked first.

    Raises CompilerMismatchError with what each root has, where none has gcc's version, ToolUnavailableError for clang,
    and for a kernel with Rust where no root with that gcc has what Rust needs.
    """
    require_gcc(config, "The kernel")
    wanted = config.string("CC_VERSION_TEXT") or ""
    match = re.fullmatch(r"(?:\S*-)?gcc(?:-\d+)? \(.*\) (\d+)\.\S+", wanted)
    if match is None:
        raise CompilerMismatchError(
            f"The kernel was built with '{wanted or 'a compiler that its configuration does not name'}', which no "
            "build root has.",
            hint="Only gcc is supported, and CONFIG_CC_VERSION_TEXT must say which.",
        )
    have: list[str] = []
    without_rust: ToolUnavailableError | None = None
    installed = {root.name for root in workshop.roots.installed()}
    for name in sorted(workshop.roots.names(), key=lambda name: (name not in installed, name)):
        packages = workshop.roots.spec(name).packages
        if f"gcc-{match[1]}" not in packages:
            continue
        if without_rust is not None and name not in installed and "rustc" not in packages:
            continue  # making it would take minutes, for nothing
        root = workshop.roots.ensure(name, progress)
        version = root.compiler_version(f"gcc-{match[1]}")
        if version.partition(" ")[2] != wanted.partition(" ")[2]:
            have.append(f"'{name}' has {version}")
            continue
        try:
            require_rust(config, root, "The kernel")
        except ToolUnavailableError as error:
            without_rust = without_rust or error
        else:
            return root
    if without_rust is not None:
        raise without_rust
    raise CompilerMismatchError(
        f"The kernel was built with '{wanted}'. {'; '.join(have) or f'No build root has a gcc-{match[1]}'}.",
        hint="Describe a build root that has it in the server's settings (roots), and make it: elivepatch-server root "
        "add NAME. A root whose suite was updated since: elivepatch-server root remove NAME, and it is made again.",
    )
