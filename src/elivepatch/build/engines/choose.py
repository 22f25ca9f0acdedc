# SPDX-License-Identifier: GPL-2.0-or-later
"""Which engine a kernel gets: kpatch up to 6.18, the kernel's own tools from 6.19 on."""

from __future__ import annotations

from collections.abc import Sequence

from elivepatch.build.engines.klp_tools import INIT
from elivepatch.build.prepared import PreparedKernel
from elivepatch.errors import ToolUnavailableError
from elivepatch.kernel.release import parse_release
from elivepatch.protocol.models import EngineName

#: The first series without kpatch: its create-diff-object knows kernels up to 6.18, the klp commands are in 6.19.
_FIRST_KLP = (6, 19)
#: What scripts/livepatch/klp-build of 7.3 does not take either (validate_config()).
_NOT_SUPPORTED = ("GCC_PLUGIN_LATENT_ENTROPY", "GCC_PLUGIN_RANDSTRUCT", "LD_DEAD_CODE_DATA_ELIMINATION")
_PARTS = ("tools/objtool/klp-diff.c", "tools/objtool/klp-sympos.c", INIT)


def choose_engine(kernel: PreparedKernel, forced: EngineName | None) -> EngineName:
    """The engine for a kernel. Raises ToolUnavailableError where it, or the one that is forced, cannot be used."""
    release = parse_release(kernel.release)
    newer = (release.major, release.minor) >= _FIRST_KLP
    wanted = forced or ("klp" if newer else "kpatch")
    if wanted == "kpatch":
        if newer:
            raise ToolUnavailableError(
                f"The engine 'kpatch' does not know {kernel.release}: it is for kernels up to 6.18.",
                hint="Leave --engine out: kernels from 6.19 on get the engine 'klp'.",
            )
        return wanted
    lacking = _lacking(kernel)
    if lacking:
        raise ToolUnavailableError(
            f"The engine 'klp' cannot be used for {kernel.release}: {'; '.join(lacking)}.",
            hint="Leave --engine out: kernels up to 6.18 get the engine 'kpatch'."
            if not newer
            else "The kernel must be configured with CONFIG_LIVEPATCH and CONFIG_KLP_BUILD, and without these plugins.",
        )
    return wanted


def _lacking(kernel: PreparedKernel) -> Sequence[str]:
    config = kernel.config()
    found = [f"its source has no {path}" for path in _PARTS if not (kernel.source / path).is_file()]
    found += [f"CONFIG_{name} is not set" for name in ("LIVEPATCH", "KLP_BUILD") if not config.enabled(name)]
    return [*found, *(f"CONFIG_{name} is set" for name in _NOT_SUPPORTED if config.enabled(name))]
