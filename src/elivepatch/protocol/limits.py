# SPDX-License-Identifier: GPL-2.0-or-later
"""How large the inputs may be, in bytes; both sides know, so that the client says so before it sends."""

PATCH_BYTES = 4 * 1024 * 1024
PATCHES = 64
CONFIG_BYTES = 1024 * 1024
CHECK_BYTES = 64 * 1024
MODULE_BYTES = 64 * 1024 * 1024
REQUEST_BYTES = 16 * 1024 * 1024
