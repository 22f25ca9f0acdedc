# SPDX-License-Identifier: GPL-2.0-or-later
"""Every kernel that Debian publishes: a patch to vmlinux and one to a module, each proven and tried."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_kernels import KERNELS, newest

from build_support import change
from elivepatch import pipeline
from elivepatch.job import InputFile, Job
from elivepatch.progress import Progress
from elivepatch.protocol.models import BuildRequest
from elivepatch.selection import WantedKernel, hold_kernel
from elivepatch.workshop import Workshop

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.timeout(1200)]

#: What is changed, where, and how a guest sees it: file, text, its replacement, check.
_MEMINFO = ("fs/proc/meminfo.c", "VmallocChunk:", "VMALLOCCHUNK:", "grep -q VMALLOCCHUNK /proc/meminfo")
_XFS = ("fs/xfs/xfs_stats.c", '"debug %u\\n"', '"DEBUG %u\\n"', "grep -q DEBUG /proc/fs/xfs/stat")


@pytest.mark.parametrize(("suite", "series", "flavour"), KERNELS, ids=[f"{s}{f}" for _, s, f in KERNELS])
def test_vmlinux_and_a_module_are_patched(
    workshop: Workshop, progress: Progress, tmp_path: Path, suite: str, series: str, flavour: str
) -> None:
    release = newest(workshop, suite, series, flavour, progress)
    with hold_kernel(WantedKernel(name=str(release)), workshop, progress) as (kernel, _):
        patches = {
            parent: (change(kernel.source, file, (old, new)), f"#!/bin/sh\n{check}\n")
            for parent, (file, old, new, check) in (("vmlinux", _MEMINFO), ("xfs", _XFS))
        }
        for parent, (patch, check) in patches.items():
            job = Job(
                BuildRequest(kernel=str(release), verify=True),
                (InputFile(f"{parent}.patch", patch),),
                check=check.encode(),
            )
            report = pipeline.build(job, workshop, tmp_path / parent, progress)
            assert report.status == "done", report.message
            assert report.kernel is not None
            assert report.kernel.release == str(release)
            assert {changed.object for changed in report.changed} == {parent}
            assert report.proof is not None
            assert report.proof.level == "exact"
            assert report.proof.compared
            assert all(function.identical for function in report.proof.functions)
            tried = report.verification
            assert tried is not None
            assert (tried.check_before, tried.check_after, tried.check_reverted) == (False, True, False)
            assert tried.unloaded
