# SPDX-License-Identifier: GPL-2.0-or-later
"""Every livepatch of tests/data, through the one-shot command: built, proven, and tried with a check of its effect."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from build_support import ENGINES, KLP_MACROS, KPATCH_MACROS, LIVEPATCHES, change, livepatch_file, livepatch_names
from elivepatch import process
from elivepatch.build.prepared import PreparedKernel
from elivepatch.protocol.models import Report
from elivepatch.workshop import Workshop

pytestmark = pytest.mark.guest

COMMAND = Path(sys.executable).parent / "elivepatch-server"


def build(workshop: Workshop, kernel: PreparedKernel, patch: Path, check: Path, output: Path) -> tuple[int, Report]:
    words: list[str | Path] = ["--kernel", kernel.release, "--patch", patch, "--check", check, "-o", output, "--json"]
    return run_build(workshop, *words)


def run_build(workshop: Workshop, *words: str | Path) -> tuple[int, Report]:
    env = {"ELIVEPATCH_CACHE": str(workshop.cache), "HOME": os.environ.get("HOME", "/")}
    done = process.run([COMMAND, "build", *words], env=env, check=False, timeout=600)
    assert done.stdout, done.stderr
    return done.returncode, Report.model_validate(json.loads(done.stdout))


def tried(workshop: Workshop, kernel: PreparedKernel, engine: str, patch: Path, check: Path, output: Path) -> Report:
    """The report of a livepatch that was built, proven, loaded, checked and reverted."""
    status, report = build(workshop, kernel, patch, check, output)
    assert status == report.exit_status == 0, report.message
    assert report.engine is not None
    assert report.engine.name == engine
    assert report.proof is not None
    assert report.proof.level == "exact"
    assert report.module is not None
    assert report.module.sha256 == hashlib.sha256(output.read_bytes()).hexdigest()
    seen = report.verification
    assert seen is not None
    assert (seen.booted, seen.loaded, seen.reverted, seen.unloaded) == (True, True, True, True)
    assert (seen.check_before, seen.check_after, seen.check_reverted) == (False, True, False)
    return report


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", livepatch_names())
def test_a_livepatch_has_its_effect_and_is_gone_afterwards(
    workshop: Workshop, kernel_of: Callable[[str], PreparedKernel], tmp_path: Path, name: str, engine: str
) -> None:
    files = livepatch_file(f"{name}.patch", engine), livepatch_file(f"{name}.sh", engine)
    tried(workshop, kernel_of(engine), engine, *files, tmp_path / "out.ko")


#: What the log of the guest shows of a patch's callbacks, in this order.
RAN = ("pipe: limit raised to 2097152", ": starting patching", ": starting unpatching", "pipe: limit is 1048576 again")
#: Those of a module: with the module there first, and once more with it loaded when the livepatch is.
RAN_FOR_MODULE = (
    "xfs: error level is 5",
    ": starting patching",
    ": starting unpatching",
    "xfs: error level is 3 again",
    ": patching complete",
    "to loading module 'xfs'",
    "xfs: error level is 5",
    ": starting unpatching",
    "xfs: error level is 3 again",
)
LOGGED = {"callbacks": RAN, "ignore-section": RAN, "module-callbacks": RAN_FOR_MODULE, "system-call": ()}
#: What kpatch's tools say of what the macros ask for.
NOTED = {
    "callbacks": {"callbacks"},
    "ignore-section": {"callbacks", "ignored-change"},
    "module-callbacks": {"callbacks"},
    "system-call": {"ignored-change"},
}


@pytest.mark.parametrize(
    ("engine", "patch"),
    [
        pytest.param(engine, patch, id=f"{engine}-{patch.stem}")
        for engine, directory in (("kpatch", KPATCH_MACROS), ("klp", KLP_MACROS))
        for patch in sorted(directory.glob("*.patch"))
    ],
)
def test_macros_for_authors(
    workshop: Workshop, kernel_of: Callable[[str], PreparedKernel], tmp_path: Path, engine: str, patch: Path
) -> None:
    report = tried(workshop, kernel_of(engine), engine, patch, patch.with_suffix(".sh"), tmp_path / "out.ko")
    assert report.verification is not None
    log = report.verification.log or ""
    at = 0
    for text in LOGGED[patch.stem]:
        at = log.find(text, at)
        assert at >= 0, f"{text!r} is not in its place:\n{log}"
        at += len(text)
    noted = NOTED[patch.stem] if engine == "kpatch" else set[str]()
    assert noted <= {finding.rule for finding in report.diagnosis}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_module_without_a_device_in_the_guest_is_patched_all_the_same(
    workshop: Workshop, kernel_of: Callable[[str], PreparedKernel], tmp_path: Path, engine: str
) -> None:
    kernel = kernel_of(engine)
    old, new = {
        "kpatch": ("cpumap_print_to_pagebuf(true, buf, &pmu->", "cpumap_print_to_pagebuf(false, buf, &pmu->"),
        "klp": ('"%*pbl\\n", cpumask_pr_args(&pmu->', '"%*pb\\n", cpumask_pr_args(&pmu->'),
    }[engine]
    patch, output = tmp_path / "uncore.patch", tmp_path / "out.ko"
    patch.write_bytes(change(kernel.source, "arch/x86/events/intel/uncore.c", (old, new)))
    words: list[str | Path] = ["--kernel", kernel.release, "--patch", patch, "-o", output, "--json"]
    status, report = run_build(workshop, *words)
    assert status == report.exit_status == 0, report.message
    seen = report.verification
    assert seen is not None
    assert (seen.loaded, seen.reverted, seen.unloaded, seen.not_run) == (True, True, True, ("intel_uncore",))
    assert "to loading module 'intel_uncore'" in (seen.log or "")  # of the second round
    (note,) = [finding for finding in report.diagnosis if finding.rule == "module-not-run"]
    assert (note.severity, "intel_uncore" in note.message) == ("warning", True)


def test_a_module_that_needs_one_without_a_device_is_patched_all_the_same(
    workshop: Workshop, kernel: PreparedKernel, tmp_path: Path
) -> None:
    patch, output = tmp_path / "netvsc.patch", tmp_path / "out.ko"
    patch.write_bytes(change(kernel.source, "drivers/net/hyperv/netvsc_drv.c", ('"N/A"', '"n/a"')))
    words: list[str | Path] = ["--kernel", kernel.release, "--patch", patch, "-o", output, "--json"]
    status, report = run_build(workshop, *words)
    assert status == report.exit_status == 0, report.message
    seen = report.verification
    assert seen is not None
    assert (seen.loaded, seen.reverted, seen.unloaded, seen.not_run) == (True, True, True, ("hv_netvsc",))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_that_the_makefile_of_another_directory_compiles(
    workshop: Workshop, kernel_of: Callable[[str], PreparedKernel], tmp_path: Path, engine: str
) -> None:
    kernel = kernel_of(engine)
    patch, output = tmp_path / "kvm.patch", tmp_path / "out.ko"
    replacement = ("created_vcpus >= kvm->max_vcpus", "created_vcpus + 1 > kvm->max_vcpus")
    patch.write_bytes(change(kernel.source, "virt/kvm/kvm_main.c", replacement))
    words: list[str | Path] = ["--kernel", kernel.release, "--patch", patch, "-o", output, "--json"]
    status, report = run_build(workshop, *words)
    assert status == report.exit_status == 0, report.message
    assert {each.object for each in report.changed} == {"kvm"}
    assert report.proof is not None
    assert report.proof.level == "exact"
    seen = report.verification
    assert seen is not None
    assert (seen.loaded, seen.reverted, seen.unloaded, seen.not_run) == (True, True, True, ())


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
