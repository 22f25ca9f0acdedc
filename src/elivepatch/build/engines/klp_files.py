# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that a livepatch of the kernel's own tools can never change, told by their paths before anything is compiled.

scripts/livepatch/klp-build refuses all of ``lib/``, ``*/vdso/``, ``*/realmode/rm/`` and assembly (the doctor's part
here). Of ``lib/`` that is more than need be: what makes it so is that the makefile of a directory leaves out the calls
for the function tracer, for all of its objects (``lib/``, ``kernel/trace/``) or for single ones. So that is read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath

from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.rules import finding
from elivepatch.errors import CannotLivepatchError, Diagnosis

#: Code of its own, which the kernel holds as data (check_unsupported_patches() of klp-build).
_IMAGES = re.compile(r"(?:.*/)?(?:vdso|realmode/rm)/.*")
_TRACER = r"\$\(CC_FLAGS_FTRACE\)"
_WHOLE = re.compile(rf"ccflags-remove-(?:y|\$\(CONFIG_FUNCTION_TRACER\))\s*[+:]?=.*{_TRACER}")
_SINGLE = re.compile(rf"CFLAGS_REMOVE_(?P<name>\S+)\.o\s*[+:]?=.*{_TRACER}")
_AGAIN = re.compile(rf"CFLAGS_(?!REMOVE_)(?P<name>\S+)\.o\s*[+:]?=.*{_TRACER}")
_IF = re.compile(r"(?:ifdef|ifndef|ifeq|ifneq)\b")


def refuse_files(kernel: PreparedKernel, paths: Iterable[str]) -> None:
    """Raise CannotLivepatchError with a finding for each file that cannot be changed."""
    units = kernel.compile_units()
    findings = [said for path in paths if (said := _finding(kernel.source, path, units)) is not None]
    if findings:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        raise CannotLivepatchError(f"{findings[0].message}{more}", hint=findings[0].hint, diagnosis=findings)


def _finding(source: Path, path: str, units: Collection[str]) -> Diagnosis | None:
    pure = PurePosixPath(path)
    if _IMAGES.fullmatch(path) and pure.suffix in {".c", ".h"} and path not in units:  # vdso/vma.c is the kernel's
        said = f"{path} becomes a part of code that runs outside of the kernel: its vDSO, or the start of a processor."
        return finding("other-image", said, file=path)
    if pure.suffix == ".c" and untraced(source, path):
        said = f"No function of {path} can be redirected: its makefile leaves out the calls for the function tracer."
        return finding("untraced-file", said, file=path)
    return None


def untraced(source: Path, path: str) -> bool:
    """Whether the makefile of a file's directory says that it is compiled without calls for the function tracer."""
    pure = PurePosixPath(path)
    for name in ("Kbuild", "Makefile"):  # as kbuild looks for them (scripts/Makefile.build)
        makefile = source / pure.parent / name
        if makefile.is_file():
            return _untraced(makefile.read_text(errors="replace"), pure.stem)
    return False


def _untraced(makefile: str, stem: str) -> bool:
    open_conditions: list[str] = []
    whole = single = again = False
    for raw in makefile.replace("\\\n", " ").splitlines():
        line = raw.strip()
        if _IF.match(line):
            open_conditions.append(line)
        elif line.startswith("else"):
            open_conditions[-1:] = [line]
        elif line.startswith("endif"):
            open_conditions[-1:] = []
        # what holds under another condition only is not known here
        certain = all(condition == "ifdef CONFIG_FUNCTION_TRACER" for condition in open_conditions)
        whole |= certain and _WHOLE.match(line) is not None
        single |= certain and (found := _SINGLE.match(line)) is not None and found["name"] == stem
        again |= (found := _AGAIN.match(line)) is not None and found["name"] == stem
    return (whole or single) and not again
