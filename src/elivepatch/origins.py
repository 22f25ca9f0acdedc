# SPDX-License-Identifier: GPL-2.0-or-later
"""Where trees and images of kernels come from that nobody publishes, by the rules that this machine's operator set."""

from __future__ import annotations

import os
import re

from elivepatch.build.image import HostImage
from elivepatch.errors import InvalidSettingError, KernelUnavailableError
from elivepatch.kernel.config import parse_config
from elivepatch.progress import Progress
from elivepatch.protocol.models import HostFacts
from elivepatch.sources.debuginfod import Debuginfod
from elivepatch.sources.directory import directory_tree
from elivepatch.sources.gentoo.distfiles import Distfiles
from elivepatch.sources.gentoo.package import KernelPackage, choose_package
from elivepatch.sources.gentoo.recipe import Host
from elivepatch.sources.gentoo.source import GentooSource
from elivepatch.sources.git import GitRepository
from elivepatch.sources.kernel_org import KernelOrg
from elivepatch.sources.linux_source import debian_tree
from elivepatch.sources.reference import (
    DebianReference,
    DirectoryReference,
    GentooReference,
    GitReference,
    KernelOrgReference,
    Reference,
    ReleaseReference,
)
from elivepatch.sources.trees import SourceTree
from elivepatch.workshop import Workshop


def find_tree(
    reference: Reference, host: HostFacts | None, config: bytes | None, workshop: Workshop, progress: Progress
) -> SourceTree:
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
            if not os.access(policy.keyring, os.R_OK):  # said before anything is downloaded
                raise InvalidSettingError(
                    f"The keyring '{policy.keyring}' cannot be read.",
                    hint="The setting 'keyring' names a file with kernel.org's keys; docs/sources.md says which.",
                )
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
            suites = [one for root in workshop.roots.installed() for one in workshop.kernel_sources(root)]
            return debian_tree(reference, suites, progress)
        case GentooReference():
            package = KernelPackage(reference.package, reference.version, reference.revision)
            return _gentoo_tree(package, host, config, workshop, progress)
        case ReleaseReference():
            named = host.package if host is not None else None
            package = choose_package(str(reference.release), f"{named.name}-{named.version}" if named else None)
            return _gentoo_tree(package, host, config, workshop, progress)


def _gentoo_tree(
    package: KernelPackage, facts: HostFacts | None, given: bytes | None, workshop: Workshop, progress: Progress
) -> SourceTree:
    policy = workshop.sources
    if not policy.gentoo_repositories:
        raise KernelUnavailableError(
            "This server makes no kernels of Gentoo's packages: it has no ebuild repository.",
            hint="Set 'gentoo_repositories' in its settings to a checkout of Gentoo's.",
        )
    installed = facts.package if facts is not None else None
    config = parse_config(given) if given is not None else None
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


def find_image(build_id: str, workshop: Workshop, progress: Progress) -> HostImage | None:
    """The image with that build ID, where a debuginfod server has it with its symbols."""
    progress.step(f"asking debuginfod for the image {build_id[:12]}")
    found = Debuginfod(workshop.sources.debuginfod, workshop.cache).vmlinux(build_id, progress)
    if found is None or not found.symbols:
        return None
    return HostImage("debuginfod", build_id, found.path)
