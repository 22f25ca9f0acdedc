# SPDX-License-Identifier: GPL-2.0-or-later
"""What a build is made from, its key, and the kernel that it is for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from elivepatch.build.engines.klp_tools import FORMAT as KLP_FORMAT
from elivepatch.build.image import HostImage
from elivepatch.errors import InputTooLargeError, InvalidInputError
from elivepatch.kernel.config import parse_config
from elivepatch.patches.files import patch_files, require_patch
from elivepatch.protocol import limits
from elivepatch.protocol.models import BuildRequest, HostFacts
from elivepatch.selection import WantedKernel, is_published
from elivepatch.sources.reference import ReleaseReference, parse_reference
from elivepatch.version import installed_version
from elivepatch.workshop import Workshop


@dataclass(frozen=True)
class InputFile:
    """A file that came with a request. ``name`` is for people only, it is never a path."""

    name: str
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Job:
    """Everything a build is made from.

    ``symbols`` is the packed symbol layout of the host's kernel, ``image`` its own image, where they were sent.
    """

    request: BuildRequest
    patches: tuple[InputFile, ...]
    base_patches: tuple[InputFile, ...] = ()
    config: bytes | None = field(default=None, repr=False)
    check: bytes | None = field(default=None, repr=False)
    symbols: bytes | None = field(default=None, repr=False)
    image: HostImage | None = None


def request_key(job: Job, workshop: Workshop) -> str:
    """The key of a build: a digest of all that decides its bytes and its report. Cheap: no kernel is looked up.

    Raises InvalidInputError for what cannot be the name of a kernel.
    """
    request = job.request
    build_id = request.build_id or (request.host.build_id if request.host else None)
    published = _is_published(job)
    parts: dict[str, object] = {
        "elivepatch": installed_version(),
        "kernel": request.kernel,
        "build_id": build_id,
        "verify": request.verify,
        "proof": request.proof,
        # of a published kernel the build ID says all: hosts that run it share its builds
        "host": None if published else _kernel_facts(request.host),
        "image": job.image.digest if job.image is not None else request.image,
        "patches": [_digest(file.data) for file in job.patches],
        "base_patches": [_digest(file.data) for file in job.base_patches],
        "config": _digest(job.config),
        "check": _digest(job.check),
        "symbols": None if published else _digest(job.symbols),
        "engine": request.engine,
        "cves": _cves(request, workshop),
        "klp": KLP_FORMAT,  # kpatch's version is a part of its root's digest
        "roots": {root.name: root.digest for root in workshop.roots.installed()},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _is_published(job: Job) -> bool:
    reference = parse_reference(job.request.kernel)
    modified = bool(job.base_patches) or job.image is not None or job.request.image is not None
    return isinstance(reference, ReleaseReference) and is_published(reference, modified=modified)


def _cves(request: BuildRequest, workshop: Workshop) -> object:
    """What decides a plan beside the kernel: the wish, and the state of the data."""
    if request.cves is None:
        return None
    return [request.cves.dump(), workshop.cves.identity, workshop.cves.stable_git, workshop.cves.stable_http]


def _kernel_facts(host: HostFacts | None) -> Mapping[str, object] | None:
    """What a host tells of its kernel: the same for all hosts that run the same one."""
    if host is None:
        return None
    names = ("release", "version", "build_id", "place", "symbols_sha256", "btf_sha256")
    return {name: getattr(host, name) for name in names}


def _digest(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()


def wanted_kernel(job: Job) -> WantedKernel:
    """The kernel that a job is for. Raises InvalidInputError where what is said of it cannot be.

    Base patches may be of any kind: the tools that the host used decide about them. But patches they must be.
    """
    for file in job.base_patches:
        require_patch(file.name, file.data, "base patch")
    if job.config is not None:
        parse_config(job.config)
    return WantedKernel(
        name=job.request.kernel,
        config=job.config,
        base_patches=[(file.name, file.data) for file in job.base_patches],
        host=job.request.host,
        image=job.image,
        build_id=job.request.build_id or (job.request.host.build_id if job.request.host else None),
    )


def read_patches(paths: Sequence[Path]) -> tuple[InputFile, ...]:
    """Read the patches that a user named; one that is too large is cut, for the reader of patches to refuse it."""
    return _read(paths, limits.PATCH_BYTES, "patch")


def read_inputs(paths: Sequence[Path], limit_bytes: int, what: str) -> tuple[InputFile, ...]:
    """Read files that a user named. Raises InvalidInputError for one that cannot be read, InputTooLargeError."""
    found = _read(paths, limit_bytes, what)
    for path, file in zip(paths, found, strict=True):
        if len(file.data) > limit_bytes:
            raise InputTooLargeError(
                f"The {what} {path} is larger than {limit_bytes} bytes.",
                hint=f"Check that it is the {what} that you mean: no real one is that large.",
            )
    return found


def _read(paths: Sequence[Path], limit_bytes: int, what: str) -> tuple[InputFile, ...]:
    found: list[InputFile] = []
    for path in paths:
        try:
            with path.open("rb") as stream:
                data = stream.read(limit_bytes + 1)
        except OSError as error:
            raise InvalidInputError(
                f"The {what} {path} cannot be read: {error.strerror}.", hint="Check the name and its permissions."
            ) from error
        found.append(InputFile(path.name, data))
    return tuple(found)


def read_base_patches(paths: Sequence[Path]) -> tuple[InputFile, ...]:
    """Read the base patches that a user named: files, and directories of them (see `patch_files`).

    Raises InvalidInputError for a path that cannot be read, for a directory that holds none, and for too many.
    """
    files: list[Path] = []
    for path in paths:
        found = patch_files(path)
        if not found:
            raise InvalidInputError(
                f"The directory {path} holds no base patch: no file in it is called *.patch or *.diff.",
                hint="Leave it out, or name the files themselves.",
            )
        files += found
    if len(files) > limits.PATCHES:
        raise InputTooLargeError(
            f"{len(files)} base patches are more than the limit of {limits.PATCHES}.",
            hint="Join some of them; they only have to be the same change.",
        )
    return read_inputs(files, limits.PATCH_BYTES, "base patch")
