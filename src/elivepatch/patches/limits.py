# SPDX-License-Identifier: GPL-2.0-or-later
"""How large a series may be: the one definition, which the protocol passes on to both sides."""

#: Bytes of one patch.
PATCH_BYTES = 4 * 1024 * 1024
#: Patches of one series. Those of the CVE mode are one for each fix: a kernel that was not renewed for months lacks
#: hundreds.
PATCHES = 1000
#: Files that a series touches, each counted in every patch that touches it.
FILES = 4000
#: Bytes of one file of the kernel that a patch touches; the largest files of the kernel have some 20 MB.
FILE_BYTES = 64 * 1024 * 1024
