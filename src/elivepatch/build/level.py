# SPDX-License-Identifier: GPL-2.0-or-later
"""How sure it is that a prepared kernel is the one that a host runs: the level that a proof against its image has.

``exact``: the image is the host's, by its build ID. ``layout``: the image was built here, and every function lies where
the host has it, and the types are the same. ``none``: nobody knows.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.rules import finding
from elivepatch.errors import BuildIdMismatchError, ProofFailedError
from elivepatch.kernel import layout
from elivepatch.kernel.elf import ElfImage
from elivepatch.kernel.layout import SymbolLayout
from elivepatch.protocol.models import BuildRequest, HostFacts, ProofLevel

#: From the surest to none at all.
LEVELS: tuple[ProofLevel, ...] = ("exact", "layout", "none")
_SOURCE_HINT = (
    "The host's kernel was built from another source, configuration or list of local patches, or with another "
    "compiler. Name all of them as they are (--kernel, -k, --base-patch); or send the host's own image."
)


def image_level(kernel: PreparedKernel, request: BuildRequest, symbols: bytes | None) -> ProofLevel:
    """The level for the host of a request; ``symbols`` is its packed symbol layout, where it was sent.

    Raises BuildIdMismatchError, and ProofFailedError that names what differs, where the image is known not to be the
    host's, and where the level is less than the request accepts.
    """
    level = _level(kernel, request, symbols)
    if LEVELS.index(level) > LEVELS.index(request.proof):
        said = finding(
            "proof-level",
            f"The proof for {kernel.release} would be of level '{level}', less than the '{request.proof}' asked for.",
        )
        raise ProofFailedError(said.message, hint=said.hint, diagnosis=[said])
    return level


def _level(kernel: PreparedKernel, request: BuildRequest, symbols: bytes | None) -> ProofLevel:
    host = request.host
    wanted = request.build_id or (host.build_id if host else None)
    if wanted == kernel.build_id:
        return "exact"
    if kernel.image != "built":
        if wanted is None:
            return "exact"  # of that image, which is all that was asked for
        raise BuildIdMismatchError(
            f"The host runs a {kernel.release} with build ID {wanted}; {kernel.origin} has {kernel.build_id}.",
            hint="The host's kernel is not the published one: it was built locally, or it is another revision. For one "
            "that was built locally, name its source, configuration and patches: --kernel, -k, --base-patch.",
        )
    if host is None or host.symbols_sha256 is None:
        return "none"
    _check_layout(kernel, host, symbols)
    return "layout"


def _check_layout(kernel: PreparedKernel, host: HostFacts, symbols: bytes | None) -> None:
    ours = _facts(kernel)
    if host.symbols_sha256 != ours["symbols"]:
        theirs = SymbolLayout.unpack(symbols) if symbols is not None else None
        said = [
            finding("layout-mismatch", f"The kernel built here is not the host's: {difference}.")
            for difference in (
                theirs.differences(layout.from_vmlinux(kernel.vmlinux), here="on the host", there="here")
                if theirs is not None
                else ["its functions lie elsewhere"]
            )
        ]
        raise ProofFailedError(said[0].message, hint=_SOURCE_HINT, diagnosis=said)
    if None not in (host.btf_sha256, ours["btf"]) and host.btf_sha256 != ours["btf"]:
        different = finding("types-mismatch", "The kernel built here has other types (BTF) than the host's.")
        raise ProofFailedError(different.message, hint=different.hint, diagnosis=[different])


def _facts(kernel: PreparedKernel) -> dict[str, str | None]:
    """Digests of the image's layout and types, kept with the kernel: reading a symbol table takes a second."""
    kept = kernel.path / "layout.json"
    try:
        return dict(json.loads(kept.read_text()))
    except (OSError, ValueError):
        pass
    with ElfImage(kernel.vmlinux) as image:
        facts = {"symbols": layout.from_vmlinux(image).digest(), "btf": layout.btf_digest_of(image)}
    handle, name = tempfile.mkstemp(prefix=".layout.", dir=kernel.path)
    with os.fdopen(handle, "w") as stream:
        json.dump(facts, stream)
    Path(name).replace(kept)
    return facts
