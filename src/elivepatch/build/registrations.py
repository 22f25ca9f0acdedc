# SPDX-License-Identifier: GPL-2.0-or-later
"""What a patch registers for the start of the kernel, in files that are there: the differs leave it out without a word.

The tables are those of include/linux/init.h (``__initcall_…``, ``__setup_…``) and include/linux/moduleparam.h
(``__param_…``): each entry is a variable in the table's section.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from elivepatch.build.compiler import CompiledObject
from elivepatch.build.rules import finding
from elivepatch.errors import CannotLivepatchError, Diagnosis
from elivepatch.kernel.elf import ElfImage

_INITCALL = re.compile(r"__initcall_(?:_kmod_\S+?__\d+_\d+_)?(?P<name>\S+?)(?:early|rootfs|con|[0-7]s?)?")
_ENTRIES = (
    (".initcall", _INITCALL, "late-registration", "{}() is to run while the kernel boots, which is over"),
    (".con_initcall", _INITCALL, "late-registration", "{}() is to run while the kernel boots, which is over"),
    (
        ".init.setup",
        re.compile(r"__setup_(?P<name>(?!str_)\S+)"),
        "late-registration",
        "{}() is to read a word of the kernel's command line, which was read at the start",
    ),
    (
        "__param",
        re.compile(r"__param_(?P<name>(?!str_)\S+)"),
        "late-parameter",
        "the parameter {} cannot be set: it keeps the value that it has in the source",
    ),
)


def check_registrations(compiled: Sequence[CompiledObject]) -> list[Diagnosis]:
    """The notes on what is registered in vain. Raises CannotLivepatchError for code that would never run."""
    findings: list[Diagnosis] = []
    for one in compiled:
        for (rule, said), count in (_entries(one.patched) - _entries(one.original)).items():
            del count
            findings.append(
                finding(
                    rule, f"{said[0].upper()}{said[1:]}." if rule == "late-parameter" else f"{said}.", file=one.source
                )
            )
    wrong = [each for each in findings if each.severity == "error"]
    if wrong:
        raise CannotLivepatchError(wrong[0].message, hint=wrong[0].hint, diagnosis=findings)
    return findings


def _entries(path: Path) -> Counter[tuple[str, str]]:
    """What an object registers, as rule and words; how often."""
    found: Counter[tuple[str, str]] = Counter()
    with ElfImage(path) as image:
        names = {number: section.name for number, section in enumerate(image.sections)}
        for symbol in image.iter_symbols():
            section = names.get(symbol.section, "")
            for start, pattern, rule, words in _ENTRIES:
                if section.startswith(start) and (match := pattern.fullmatch(symbol.name)):
                    found[rule, words.format(match["name"])] += 1
    return found
