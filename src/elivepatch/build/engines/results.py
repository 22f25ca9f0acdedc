# SPDX-License-Identifier: GPL-2.0-or-later
"""What engines have in common: what becomes of the single results, and of an object that several modules have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from elivepatch.build.engines.engine import DiffObject
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.rules import finding
from elivepatch.errors import CannotLivepatchError, Diagnosis, ElivepatchError, NoChangeError
from elivepatch.kernel.elf import SHN_ABS, STB_LOCAL, ElfImage
from elivepatch.toolchains.sandbox import JOB, Sandbox, give_to_sandbox


def gather(results: Sequence[DiffObject | ElivepatchError]) -> list[DiffObject]:
    """The objects that change; raises all refusals as one, the first other error, or NoChangeError for none."""
    refusals = [result for result in results if isinstance(result, ElivepatchError)]
    hard = [refusal for refusal in refusals if not isinstance(refusal, NoChangeError)]
    for refusal in hard:
        if not isinstance(refusal, CannotLivepatchError):
            raise refusal
    if hard:
        findings: list[Diagnosis] = [finding for refusal in hard for finding in refusal.as_diagnosis()]
        raise CannotLivepatchError(hard[0].message, hint=hard[0].hint, diagnosis=findings)
    diffs = [result for result in results if isinstance(result, DiffObject)]
    if not diffs:
        raise NoChangeError(
            "The patch changes nothing that runs: the compiled code stays the same.",
            hint="Comments, unused code and code that the configuration leaves out cannot be livepatched.",
            diagnosis=[finding for refusal in refusals for finding in refusal.as_diagnosis()],
        )
    if not any(diff.acts for diff in diffs):
        raise _never_used(diffs)
    return diffs


def _never_used(diffs: Sequence[DiffObject]) -> NoChangeError:
    """The error for a patch that only brings along what nothing of the kernel calls or reads."""
    findings: list[Diagnosis] = []
    for diff in diffs:
        new = ", ".join(f"{change.function}()" for change in diff.changes[:5]) or "data"
        said = f"The patch adds {new} and changes no function of this kernel: nothing would ever use it."
        findings.append(finding("no-functional-change", said, file=diff.source.source, severity="error"))
    return NoChangeError(findings[0].message, hint=findings[0].hint, diagnosis=findings)


def localise(kernel: PreparedKernel, file: Path) -> None:
    """Make the functions of an object that several modules have local: the livepatch brings one for each."""
    with ElfImage(file) as image:
        names = [s.name for s in image.symbols() if s.bind != STB_LOCAL and 0 < s.section < SHN_ABS]
    file.with_suffix(".names").write_text("\n".join(names))
    give_to_sandbox(file)
    argv = [kernel.environment["OBJCOPY"], f"--localize-symbols={JOB}/{file.stem}.names", f"{JOB}/{file.name}"]
    Sandbox(kernel.root.path, job=file.parent).run(argv)
