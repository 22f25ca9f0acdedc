# SPDX-License-Identifier: GPL-2.0-or-later
"""From what a request says of a kernel to the kernel, prepared: which source, which compiler, whose image."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from elivepatch.build import unpack
from elivepatch.build.image import HostImage
from elivepatch.build.own import OwnKernel
from elivepatch.build.prepared import PreparedKernel
from elivepatch.errors import CompilerMismatchError, InvalidInputError, KernelUnavailableError
from elivepatch.kernel.banner import parse_banner
from elivepatch.kernel.config import KernelConfig, parse_config
from elivepatch.progress import Progress
from elivepatch.protocol.models import HostFacts
from elivepatch.sources.debuginfod import Debuginfod
from elivepatch.sources.directory import directory_tree
from elivepatch.sources.gentoo.distfiles import Distfiles
from elivepatch.sources.gentoo.package import KernelPackage, choose_package, possible_packages
from elivepatch.sources.gentoo.recipe import Host
from elivepatch.sources.gentoo.source import GentooSource
from elivepatch.sources.git import GitRepository
from elivepatch.sources.kernel_org import KernelOrg
from elivepatch.sources.linux_source import debian_tree
from elivepatch.sources.provider import KernelFiles, KernelSource
from elivepatch.sources.reference import (
    DebianReference,
    DirectoryReference,
    GentooReference,
    GitReference,
    KernelOrgReference,
    Reference,
    ReleaseReference,
    parse_reference,
)
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
    if isinstance(reference, ReleaseReference) and _is_published(reference, wanted):
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
        tree = find_tree(reference, wanted, workshop, progress)
    if config is None:
        raise InvalidInputError(
            f"A kernel from {wanted.name} needs the configuration it was built with.",
            hint="Give it with -k (--config): /proc/config.gz, /boot/config-RELEASE, or the tree's .config.",
        )
    image = wanted.image
    if image is None and wanted.build_id is not None and workshop.sources.debuginfod:
        image = _from_debuginfod(wanted.build_id, workshop, progress)
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


def _from_debuginfod(build_id: str, workshop: Workshop, progress: Progress) -> HostImage | None:
    """The image with that build ID, where a debuginfod server has it with its symbols."""
    progress.step(f"asking debuginfod for the image {build_id[:12]}")
    found = Debuginfod(workshop.sources.debuginfod, workshop.cache).vmlinux(build_id, progress)
    if found is None or not found.symbols:
        return None
    return HostImage("debuginfod", build_id, found.path)


def _is_published(reference: ReleaseReference, wanted: WantedKernel) -> bool:
    return not wanted.base_patches and wanted.image is None and not possible_packages(str(reference.release))


def find_tree(reference: Reference, wanted: WantedKernel, workshop: Workshop, progress: Progress) -> SourceTree:
    """The tree that a reference names.

    Raises KernelUnavailableError for a source that this server does not use, and for a tree that is not there.
    """
    policy = workshop.sources
    match reference:
        case KernelOrgReference():
            if policy.keyring is None:
                raise KernelUnavailableError(
                    "This server takes no sources from kernel.org: it has no keys to check them with.",
                    hint="Set 'keyring' in its settings to a file with kernel.org's keys; docs/sources.md says which.",
                )
            place = workshop.cache / "sources/kernel.org"
            return KernelOrg(place, policy.keyring, policy.kernel_org).tree(reference.version)
        case GitReference():
            if policy.git is not None and not reference.url.startswith(tuple(policy.git)):
                raise _not_allowed(f"the repository {reference.url}", "git")
            local = policy.git is None and reference.url.startswith("file://")
            return GitRepository(reference.url, workshop.cache / "sources/git", local=local).tree(
                reference.ref, progress
            )
        case DirectoryReference():
            path = reference.path.resolve()
            if policy.directories is not None and not any(path.is_relative_to(top) for top in policy.directories):
                raise _not_allowed(f"the directory {reference.path}", "directories")
            return directory_tree(path, progress)
        case DebianReference():
            suites = [workshop.source(root) for root in workshop.roots.installed()]
            return debian_tree(reference, suites, progress)
        case GentooReference():
            package = KernelPackage(reference.package, reference.version, reference.revision)
            return _gentoo_tree(package, wanted, workshop, progress)
        case ReleaseReference():
            named = wanted.host.package if wanted.host is not None else None
            package = choose_package(str(reference.release), f"{named.name}-{named.version}" if named else None)
            return _gentoo_tree(package, wanted, workshop, progress)


def _gentoo_tree(package: KernelPackage, wanted: WantedKernel, workshop: Workshop, progress: Progress) -> SourceTree:
    policy = workshop.sources
    if not policy.gentoo_repositories:
        raise KernelUnavailableError(
            "This server makes no kernels of Gentoo's packages: it has no ebuild repository.",
            hint="Set 'gentoo_repositories' in its settings to a checkout of Gentoo's.",
        )
    installed = wanted.host.package if wanted.host is not None else None
    config = parse_config(wanted.config) if wanted.config is not None else None
    compiler = re.search(r"\) (\d+)\.", (config.string("CC_VERSION_TEXT") if config else None) or "")
    host = Host(
        use=frozenset(installed.use) if installed else frozenset(),
        variables=dict(installed.variables) if installed else {},
        gcc_major=int(compiler[1]) if compiler else None,
    )
    distfiles = Distfiles(workshop.cache / "sources/distfiles", policy.gentoo_mirrors)
    return GentooSource(policy.gentoo_repositories, distfiles).kernel(package, host, progress).tree


def _not_allowed(what: str, setting: str) -> KernelUnavailableError:
    return KernelUnavailableError(
        f"This server takes no sources from {what}.",
        hint=f"Whoever runs the server can allow it with the setting '{setting}'.",
    )


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
    """The build root with the compiler that a configuration names; those that are there are asked first.

    Raises CompilerMismatchError with what each root has, where none has it.
    """
    wanted = config.string("CC_VERSION_TEXT") or ""
    match = re.fullmatch(r"(?:\S*-)?gcc(?:-\d+)? \(.*\) (\d+)\.\S+", wanted)
    if match is None:
        raise CompilerMismatchError(
            f"The kernel was built with '{wanted or 'a compiler that its configuration does not name'}', which no "
            "build root has.",
            hint="Only gcc is supported, and CONFIG_CC_VERSION_TEXT must say which.",
        )
    have: list[str] = []
    installed = {root.name for root in workshop.roots.installed()}
    for name in sorted(workshop.roots.names(), key=lambda name: (name not in installed, name)):
        if f"gcc-{match[1]}" not in workshop.roots.spec(name).packages:
            continue
        root = workshop.roots.ensure(name, progress)
        version = root.compiler_version(f"gcc-{match[1]}")
        if version.partition(" ")[2] == wanted.partition(" ")[2]:
            return root
        have.append(f"'{name}' has {version}")
    raise CompilerMismatchError(
        f"The kernel was built with '{wanted}'. {'; '.join(have) or f'No build root has a gcc-{match[1]}'}.",
        hint="Describe a build root that has it in the server's settings (roots), and make it: elivepatch-server root "
        "add NAME. A root whose suite was updated since: elivepatch-server root remove NAME, and it is made again.",
    )
