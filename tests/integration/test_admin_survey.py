# SPDX-License-Identifier: GPL-2.0-or-later
"""The survey of the proof, and administration, on a real kernel."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from elivepatch.build.compiler import Compiler
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.survey import Candidate, Survey, candidates, prove_all
from elivepatch.errors import BusyError, ProofFailedError
from elivepatch.progress import Progress
from elivepatch.server.cli import cli
from elivepatch.server.proof_command import require_identical
from elivepatch.workshop import Workshop

pytestmark = pytest.mark.integration

Prove = Callable[..., Survey]


@pytest.fixture
def prove(kernel: PreparedKernel, tmp_path: Path, progress: Progress) -> Prove:
    tmp_path.chmod(0o755)
    for directory in (tmp_path.parent, tmp_path.parent.parent):
        directory.chmod(0o755)

    def call(*drawn: Candidate, of: PreparedKernel = kernel, batch: int = 25) -> Survey:
        return prove_all(of, candidates(of), drawn, tmp_path, 2, progress, batch)

    return call


def run(workshop: Workshop, *words: str) -> Result:
    return CliRunner(env={"ELIVEPATCH_CACHE": str(workshop.cache)}).invoke(cli, words)


def test_the_objects_of_vmlinux_and_modules_are_known(kernel: PreparedKernel) -> None:
    found = candidates(kernel)
    assert {
        Candidate("fs/proc/meminfo.o", "vmlinux"),
        Candidate("fs/xfs/xfs_stats.o", "xfs"),
        Candidate("fs/xfs/libxfs/xfs_bmap.o", "xfs"),
    } <= set(found.objects)
    paths = [candidate.path for candidate in found.objects]
    assert len(set(paths)) == len(paths)
    assert all((kernel.source / path).with_suffix(".c").is_file() for path in paths)
    assert found.ambiguous < len(paths) / 50
    assert 0 < found.generated < len(paths) / 50


def test_chosen_objects_are_identical(prove: Prove, kernel: PreparedKernel, tmp_path: Path) -> None:
    drawn = [
        Candidate("fs/xfs/xfs_stats.o", "xfs"),
        Candidate("drivers/pci/setup-res.o", "vmlinux"),  # has weak defaults that x86 overrides
        Candidate("crypto/rsa_helper.o", "vmlinux"),  # includes headers that the ASN.1 compiler makes
    ]
    found = prove(*drawn, batch=2)
    require_identical(found, kernel)
    assert [proof.path for proof in found.proofs] == [candidate.path for candidate in drawn]
    assert not found.not_built
    assert len(found.functions("identical")) > 10
    assert {function.function for _, function in found.functions("absent")} >= {"pcibios_align_resource"}
    assert list(tmp_path.iterdir()) == []


def test_another_optimisation_is_seen(prove: Prove, kernel: PreparedKernel, tmp_path: Path) -> None:
    flags = f"{kernel.environment['KBUILD_CFLAGS']} -O1"
    other = replace(kernel, environment={**kernel.environment, "KBUILD_CFLAGS": flags})
    shutil.rmtree(Compiler(kernel, tmp_path, 1)._cache_entry("fs/proc/devices.o"), ignore_errors=True)
    found = prove(Candidate("fs/proc/devices.o", "vmlinux"), of=other)
    assert found.functions("different")
    with pytest.raises(ProofFailedError) as caught:
        require_identical(found, kernel)
    assert caught.value.exit_status == 4


def test_what_kbuild_makes_for_another_parent_is_told_apart(prove: Prove) -> None:
    found = prove(Candidate("fs/xfs/xfs_stats.o", "vmlinux"))
    assert not found.proofs
    assert "kbuild makes it for xfs" in found.foreign[0].why


def test_an_object_that_cannot_be_built_is_listed_with_the_reason(prove: Prove) -> None:
    found = prove(Candidate("fs/proc/nothing-of-the-kind.o", "vmlinux"))
    assert not found.proofs
    assert "nothing-of-the-kind" in found.not_built[0].why


def test_the_command_draws_and_counts(workshop: Workshop, kernel: PreparedKernel) -> None:
    done = run(workshop, "proof", "survey", "--kernel", kernel.release, "--objects", "3", "--seed", "5", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["kernel"]["build_id"] == kernel.build_id
    assert told["objects"]["drawn"] == 3
    assert told["objects"]["compared"] + len(told["not_built"]) + len(told["foreign"]) == 3
    assert told["functions"]["different"] == 0
    assert told["functions"]["identical"] > 0


def test_a_kernel_that_is_held_is_shown_and_not_removed(workshop: Workshop, kernel: PreparedKernel) -> None:
    key = kernel.path.name
    assert json.loads(run(workshop, "kernel", "show", key, "--json").stdout)["build_id"] == kernel.build_id
    refused = run(workshop, "kernel", "remove", key)
    assert isinstance(refused.exception, BusyError)
    assert kernel.vmlinux.exists()


def test_the_root_holds_what_was_recorded(workshop: Workshop) -> None:
    assert json.loads(run(workshop, "root", "verify", "trixie", "--json").stdout)["verified"]
