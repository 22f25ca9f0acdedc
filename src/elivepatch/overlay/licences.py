# SPDX-License-Identifier: GPL-2.0-or-later
"""Licences by their SPDX ids, as far as the kernel knows them (LICENSES/ of the kernel's tree)."""

from __future__ import annotations

import re

_KERNEL = """
    0BSD Apache-2.0 BSD-2-Clause BSD-3-Clause BSD-3-Clause-Clear CC-BY-4.0 CC0-1.0 CDDL-1.0 GPL-1.0 GPL-1.0+
    GPL-1.0-only GPL-1.0-or-later GPL-2.0 GPL-2.0+ GPL-2.0-only GPL-2.0-or-later ISC LGPL-2.0 LGPL-2.0+ LGPL-2.0-only
    LGPL-2.0-or-later LGPL-2.1 LGPL-2.1+ LGPL-2.1-only LGPL-2.1-or-later Linux-OpenIB MIT MPL-1.1 X11 Zlib
"""
KNOWN = frozenset(_KERNEL.split())
EXCEPTIONS = frozenset(("Linux-syscall-note", "GCC-exception-2.0"))
#: How people write them, in lower case and without spaces.
_MEANT = {
    "gplv2": "GPL-2.0-only",
    "gpl2": "GPL-2.0-only",
    "gpl-2": "GPL-2.0-only",
    "gpl": "GPL-2.0-only",
    "gplv2+": "GPL-2.0-or-later",
    "gpl-2+": "GPL-2.0-or-later",
    "bsd": "BSD-3-Clause",
}


def is_expression(text: str) -> bool:
    """Whether a text is an SPDX expression: known ids joined by OR and AND, each maybe WITH an exception."""
    for part in re.split(r" (?:OR|AND) ", text.replace("(", "").replace(")", "")):
        name, with_, exception = part.partition(" WITH ")
        if name not in KNOWN or (with_ and exception not in EXCEPTIONS):
            return False
    return text.count("(") == text.count(")")


def meant(text: str) -> str | None:
    """The id that somebody meant who wrote a licence in another way."""
    wanted = text.replace(" ", "").lower()
    return _MEANT.get(wanted) or next((name for name in sorted(KNOWN) if name.lower() == wanted), None)
