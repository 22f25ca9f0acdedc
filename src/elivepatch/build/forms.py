# SPDX-License-Identifier: GPL-2.0-or-later
"""The forms in which a pair of objects is compiled for the differ."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from elivepatch.build.kbuild import SECTION_FLAGS
from elivepatch.kernel.elf import ElfImage

#: The sites of runtime constants are filled in at boot, in vmlinux only (arch/x86/include/asm/runtime-const.h). In a
#: module they would keep their placeholder, so the pair is compiled with the plain form, which reads the variable.
_RUNTIME_CONST = "arch/x86/include/asm/runtime-const.h"
_PLAIN_RUNTIME_CONST = b"#include <asm-generic/runtime-const.h>\n"


class Form(Enum):
    """How a pair is compiled: flags beside the kernel's own, and whether runtime constants are in their plain form.

    Without debug information the compiler and all that follow are faster; now and then it inlines otherwise then, so
    the functions of the pair are compared with the kernel's, and the next form is tried.
    """

    FAST = (f"{SECTION_FLAGS} -g0", False)
    DEBUG = (SECTION_FLAGS, False)
    PLAIN = (f"{SECTION_FLAGS} -g0", True)
    PLAIN_DEBUG = (SECTION_FLAGS, True)

    @property
    def flags(self) -> str:
        """The flags."""
        return self.value[0]

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the tree that are replaced."""
        return {_RUNTIME_CONST: _PLAIN_RUNTIME_CONST} if self.value[1] else {}

    def suits(self, exact: Path) -> bool:
        """Whether it is a form for this object."""
        return self.value[1] == _has_runtime_constants(exact)


def _has_runtime_constants(path: Path) -> bool:
    with ElfImage(path) as image:
        return any(section.name.startswith("runtime_") for section in image.sections)
