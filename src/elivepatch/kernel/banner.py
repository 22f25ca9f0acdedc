# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel's version text says about how it was built: by whom, where, when, and for which time.

The text is /proc/version, or ``linux_banner`` of an image (init/version-timestamp.c, and init/Makefile for the parts of
``UTS_VERSION``). A build that is given the same says the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_BANNER = re.compile(
    r"Linux version (?P<release>\S+) \((?P<user>[^@()\s]*)@(?P<host>[^()\s]*)\) "
    r"\((?P<compiler>.+)\) #(?P<number>\S+) (?P<rest>.*)"
)
#: The words between number and time, each there or not as the configuration says.
_FLAGS = re.compile(r"(?:(?:SMP|PREEMPT|PREEMPT_DYNAMIC|PREEMPT_RT|PREEMPT_LAZY|PREEMPT\(\w+\)) )*")


@dataclass(frozen=True)
class Banner:
    """How a kernel was built; ``timestamp`` is the text as it stands there, in whatever form its maker gave it."""

    release: str
    user: str
    host: str
    number: str
    timestamp: str

    def variables(self) -> Mapping[str, str]:
        """The variables with which kbuild writes the same text (Documentation/kbuild/kbuild.rst)."""
        return {
            "KBUILD_BUILD_USER": self.user,
            "KBUILD_BUILD_HOST": self.host,
            "KBUILD_BUILD_VERSION": self.number,
            "KBUILD_BUILD_TIMESTAMP": self.timestamp,
        }


def parse_banner(text: str) -> Banner | None:
    """What a version text says, or None where it has another form than the kernel's own."""
    line = text.removesuffix("\n")
    match = _BANNER.fullmatch(line) if line.isprintable() else None
    if match is None:
        return None
    flags = _FLAGS.match(match["rest"])
    timestamp = match["rest"][flags.end() if flags else 0 :].strip()
    return Banner(match["release"], match["user"], match["host"], match["number"], timestamp)
