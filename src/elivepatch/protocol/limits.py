# SPDX-License-Identifier: GPL-2.0-or-later
"""How large the inputs may be, in bytes; both sides know, so that the client says so before it sends."""

from elivepatch.patches.limits import PATCH_BYTES, PATCHES

__all__ = ["CHECK_BYTES", "CONFIG_BYTES", "FACTS_BYTES", "MODULE_BYTES", "PATCHES", "PATCH_BYTES", "REQUEST_BYTES"]

CONFIG_BYTES = 1024 * 1024
CHECK_BYTES = 64 * 1024
FACTS_BYTES = 64 * 1024
MODULE_BYTES = 64 * 1024 * 1024
REQUEST_BYTES = 16 * 1024 * 1024
