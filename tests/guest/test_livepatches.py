# SPDX-License-Identifier: GPL-2.0-or-later
"""Every livepatch of tests/data, through the one-shot command: built, proven, and tried with a check of its effect."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

from build_support import LIVEPATCHES
from elivepatch import process
from elivepatch.build.prepared import PreparedKernel
from elivepatch.protocol.models import Report
from elivepatch.workshop import Workshop

pytestmark = pytest.mark.guest

COMMAND = Path(sys.executable).parent / "elivepatch-server"


def build(workshop: Workshop, kernel: PreparedKernel, patch: Path, check: Path, output: Path) -> tuple[int, Report]:
    argv: list[str | Path] = [COMMAND, "build", "--kernel", kernel.release, "--patch", patch, "--check", check]
    env = {"ELIVEPATCH_CACHE": str(workshop.cache), "HOME": os.environ.get("HOME", "/")}
    done = process.run([*argv, "-o", output, "--json"], env=env, check=False, timeout=600)
    assert done.stdout, done.stderr
    return done.returncode, Report.model_validate(json.loads(done.stdout))


@pytest.mark.parametrize("name", sorted(path.stem for path in LIVEPATCHES.glob("*.patch")))
def test_a_livepatch_has_its_effect_and_is_gone_afterwards(
    workshop: Workshop, kernel: PreparedKernel, tmp_path: Path, name: str
) -> None:
    output = tmp_path / "out.ko"
    files = LIVEPATCHES / f"{name}.patch", LIVEPATCHES / f"{name}.sh"
    status, report = build(workshop, kernel, *files, output)
    assert status == report.exit_status == 0, report.message
    assert report.proof is not None
    assert report.proof.level == "exact"
    assert report.module is not None
    assert report.module.sha256 == hashlib.sha256(output.read_bytes()).hexdigest()
    tried = report.verification
    assert tried is not None
    assert (tried.booted, tried.loaded, tried.reverted, tried.unloaded) == (True, True, True, True)
    assert (tried.check_before, tried.check_after, tried.check_reverted) == (False, True, False)


def test_a_check_that_does_not_see_the_change_fails_the_build(
    workshop: Workshop, kernel: PreparedKernel, tmp_path: Path
) -> None:
    output = tmp_path / "out.ko"
    status, report = build(workshop, kernel, LIVEPATCHES / "string.patch", LIVEPATCHES / "static-local.sh", output)
    assert status == report.exit_status == 5
    assert report.error == "boot-test-failed"
    assert {finding.rule for finding in report.diagnosis if finding.severity == "error"} == {"check-after-failed"}
    assert not output.exists()
    assert report.module is None
