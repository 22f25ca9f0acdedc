# SPDX-License-Identifier: GPL-2.0-or-later
"""From what a client of the first version sends to a build: its headers, its form, and what they mean here.

Such a client tells of its kernel no more than a version, typed by hand, and a configuration. The form has the parts
``patch`` (0 to many: what the kernel was built with, then what its livepatches have changed), ``main_patch`` (1: the
new one) and ``config`` (1). The names of files and the media types of the parts mean nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from elivepatch.errors import BadRequestError, InvalidInputError
from elivepatch.job import InputFile, Job
from elivepatch.kernel.config import KernelConfig, parse_config
from elivepatch.kernel.release import parse_release
from elivepatch.protocol import limits
from elivepatch.protocol.models import BuildRequest
from elivepatch.server.kernels import published_with
from elivepatch.server.settings import Settings
from elivepatch.server.upload import Kind, Shape
from elivepatch.server.v1_sessions import PatchMemory
from elivepatch.sources.gentoo.package import possible_packages

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
_VERSION = re.compile(r"\d{1,3}\.\d{1,4}(?:\.\d{1,5})?", re.ASCII)
_VERSION_CHARACTERS = 128
_VERSION_HINT = "Give what 'uname -r' prints on the host: -a 6.12.118+deb13-amd64."
_KINDS = {
    "patch": Kind(limits.PATCH_BYTES, limits.PATCHES),
    "main_patch": Kind(limits.PATCH_BYTES, 1),
    "config": Kind(limits.CONFIG_BYTES, 1),
}


def shape(total: int) -> Shape:
    """What the form of such a client may be made of; ``total`` is the bytes of all of it."""
    return Shape(_KINDS, total)


def parse_uuid(value: object) -> str:
    """A session's UUID, in lower case. Raises BadRequestError for what is none."""
    if not isinstance(value, str) or not _UUID.fullmatch(value):
        raise BadRequestError("The request has no UUID of the form 8-4-4-4-12 hex digits.", hint="Send one in 'UUID'.")
    return value.lower()


@dataclass(frozen=True)
class ClassicRequest:
    """A request as it came. ``version`` is the header KernelVersion, ``earlier`` are the parts ``patch`` in order."""

    version: str
    main: bytes = field(repr=False)
    config: bytes = field(repr=False)
    earlier: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def digest(self) -> str:
        """A digest of all that was sent, in hex."""
        total = hashlib.sha256(self.version.encode())
        for data in (self.config, self.main, *self.earlier):
            total.update(hashlib.sha256(data).digest())
        return total.hexdigest()


def from_form(version: str, parts: Mapping[str, Sequence[InputFile]]) -> ClassicRequest:
    """The request. Raises InvalidInputError where a part is missing or empty, or the version is none."""
    for name in ("main_patch", "config"):
        if not parts[name] or not parts[name][0].data:
            raise InvalidInputError(
                f"The request has no part '{name}', or an empty one.",
                hint="A configuration of less than 8 KiB is sent empty by classic clients: update the client."
                if name == "config"
                else "Send the patch that is to become a livepatch.",
            )
    if len(version) > _VERSION_CHARACTERS:
        raise InvalidInputError("The header KernelVersion is no version of a kernel.", hint=_VERSION_HINT)
    parse_release(version)  # so that it is safe, whatever it is used for
    return ClassicRequest(
        version,
        parts["main_patch"][0].data,
        parts["config"][0].data,
        tuple(file.data for file in parts["patch"]),
    )


def kernel_name(version: str, config: KernelConfig, settings: Settings) -> str:
    """The kernel that is meant: a release, or a source.

    A version alone (``6.12.118``) says nothing of who made the kernel. Where a published kernel that is prepared here
    has that very configuration, it is that one; for all others the setting ``v1_kernel`` says where the source is.
    Raises InvalidInputError where it can be several.
    """
    if not _VERSION.fullmatch(version):
        return version
    known = published_with(settings.workshop, version, config)
    if len(known) > 1:
        raise InvalidInputError(f"The kernel can be each of {', '.join(known)}.", hint=_VERSION_HINT)
    return known[0] if known else settings.v1_kernel.replace("{version}", version)


def as_job(request: ClassicRequest, settings: Settings, memory: PatchMemory) -> Job:
    """The build that is asked for. Raises InvalidInputError where what is said of the kernel cannot be."""
    config = parse_config(request.config)
    kernel = kernel_name(request.version, config, settings)
    # such a client notes a patch before it knows whether it was loaded: asked again, it sends it among the earlier ones
    earlier = [data for data in dict.fromkeys(request.earlier) if data != request.main]
    base = 0
    if ":" in kernel or possible_packages(kernel):
        known = [memory.knows(kernel, config.sha256, data) for data in earlier]
        base = known.index(True) if True in known else len(earlier)
    # all patches of livepatches go into the new one, which replaces them; a kernel that is published has no others
    named = [InputFile(f"{number:05}.patch", data) for number, data in enumerate(earlier)]
    return Job(
        request=BuildRequest(kernel=kernel, proof=settings.v1_proof),
        patches=(*named[base:], InputFile("main.patch", request.main)),
        base_patches=tuple(named[:base]),
        config=request.config,
    )
