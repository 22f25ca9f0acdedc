# SPDX-License-Identifier: GPL-2.0-or-later
"""What is done to a patched object before kpatch's differ reads it.

The compiler puts a function that it takes for rarely run into ``.text.unlikely.NAME`` instead of ``.text.NAME``: one
that begins with a message to the log, for instance. kpatch knows that, but for the symbol of the padding in front of
a function (``__pfx_NAME``), which it then takes for a function that has changed and has no call of the tracer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from elivepatch.kernel.elf import STT_FUNC
from elivepatch.kernel.elf_object import ElfObject

#: Where functions stand under their own names (GCC's default_function_section()).
_OWN = re.compile(r"\.text\.(?:(?:unlikely|hot|startup|exit)\.)?(?P<function>.+)")


def with_sections_of(original: bytes, patched: bytes) -> bytes:
    """The patched object with its functions in sections of the names that they have in the original.

    A name that the patched object uses for something else already (the cold part of the function) stays with that.
    """
    before, image = _sections(ElfObject(original)), ElfObject(patched)
    times = Counter(one.name for one in image.sections)
    renamed = {
        at: before[function]
        for function, at in _places(image).items()
        if function in before and image.sections[at].name != before[function] and not times[before[function]]
    }
    if not renamed:
        return patched
    for at, name in renamed.items():
        old = image.sections[at].name
        image.sections[at] = replace(image.sections[at], name=name)
        for number, one in enumerate(image.sections):
            if one.name == f".rela{old}" and one.info == at:
                image.sections[number] = replace(one, name=f".rela{name}")
    return image.write()


def _sections(image: ElfObject) -> Mapping[str, str]:
    return {function: image.sections[at].name for function, at in _places(image).items()}


def _places(image: ElfObject) -> Mapping[str, int]:
    """The sections of functions that have one of their own."""
    found: dict[str, int] = {}
    for symbol in image.symbols():
        if symbol.type != STT_FUNC or not 0 < symbol.section < len(image.sections):
            continue
        own = _OWN.fullmatch(image.sections[symbol.section].name)
        if own is not None and own["function"] == symbol.name:
            found[symbol.name] = symbol.section
    return found
