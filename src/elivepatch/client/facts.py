# SPDX-License-Identifier: GPL-2.0-or-later
"""What the client tells a server about its host."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from pydantic import ValidationError

from elivepatch.client.portage_patches import find_installed_kernel
from elivepatch.errors import InvalidInputError, UnavailableError
from elivepatch.kernel.layout import btf_digest, from_kallsyms
from elivepatch.kernel.running import RunningKernel
from elivepatch.protocol.models import HostFacts, PackageFacts

#: A source reference: its kind, and what of it. Which kinds there are the server knows.
_SOURCE = re.compile(r"[a-z][a-z0-9._-]*:\S+")


def host_facts(kernel: RunningKernel, root: Path) -> HostFacts:
    """The facts of the host below ``root`` as the server takes them; what is too long for it is cut or left out."""
    return HostFacts(
        release=kernel.release,
        version=kernel.version[:512] or None,
        build_id=kernel.build_id,
        machine=kernel.machine[:32],
        distribution=kernel.distribution[:64],
        distribution_version=kernel.distribution_version[:64] if kernel.distribution_version else None,
        compiler=kernel.compiler[:256] if kernel.compiler else None,
        taint=kernel.taint,
        livepatches=tuple(patch.name for patch in kernel.livepatches[:256]),
        place=_place(kernel, root),
        package=_package(kernel, root),
        symbols_sha256=_symbols(root),
        btf_sha256=btf_digest(root / "sys/kernel/btf/vmlinux"),
    )


def _place(kernel: RunningKernel, root: Path) -> str | None:
    """The directory that a self-built kernel was built in, by the link that its modules have (make modules_install).

    It may be gone. What is there and neither a source tree nor a build beside one is a distribution's headers: not
    told, for it says nothing of the kernel, and not all hosts have them.
    """
    try:
        place = str((root / "lib/modules" / kernel.release / "build").readlink())
    except OSError:
        return None
    if not place.startswith("/") or len(place) > 1024:
        return None
    there = root / place.lstrip("/")
    headers = there.is_dir() and not ((there / "init/main.c").is_file() or (there / "source").is_dir())
    return None if headers else place


def _symbols(root: Path) -> str | None:
    """The digest of the kernel's symbol layout; None where it may not be read, as without root."""
    with contextlib.suppress(UnavailableError, InvalidInputError):
        return from_kallsyms(root / "proc/kallsyms").digest()
    return None


def _package(kernel: RunningKernel, root: Path) -> PackageFacts | None:
    """What portage knows of the kernel; None where it knows nothing, or not which package it is of."""
    package = None
    with contextlib.suppress(InvalidInputError, OSError):
        package = find_installed_kernel(kernel.release, root=root)
    if package is None:
        return None
    try:
        return PackageFacts(
            name=package.pn,
            version=package.pf.removeprefix(f"{package.pn}-"),
            use=package.use,
            variables={name: value for name, value in package.variables.items() if len(value) <= 4096},
        )
    except ValidationError:  # what no package of a kernel has
        return None


def check_source(text: str) -> None:
    """Check that this can be the reference of a kernel's source. Raises InvalidInputError."""
    if not _SOURCE.fullmatch(text):
        raise InvalidInputError(
            f"{text!r} does not name the source of a kernel.",
            hint="--kernel (kernel_source) is a kind and what of it: kernel.org:6.12.60, git:URL#REF, dir:PATH. "
            "For the kernel of another host name its release with -a.",
        )
