# SPDX-License-Identifier: GPL-2.0-or-later
"""The survey of the proof: which objects are drawn, and what is said about the results."""

import json
from pathlib import Path

import pytest

from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.proof import FunctionProof, ObjectProof, Outcome
from elivepatch.build.survey import Candidate, Candidates, NotBuilt, Survey, locate, sources_by_name
from elivepatch.errors import InvalidInputError, ProofFailedError
from elivepatch.kernel.release import parse_release
from elivepatch.server.proof_command import as_data, require_identical, show
from elivepatch.toolchains.roots import Root
from elivepatch.workshop import newest

MODULES = {"xfs": "kernel/fs/xfs/xfs.ko.xz", "e1000": "kernel/drivers/net/e1000/e1000.ko.xz"}


def test_files_of_modules_lie_below_the_place_of_the_module() -> None:
    sources = {"xfs_bmap.c": ["fs/xfs/libxfs"], "main.c": ["fs/xfsother", "drivers/net/e1000"]}
    found, lacking, ambiguous = locate(MODULES, {"xfs": ["xfs_bmap.c", "main.c"], "e1000": ["main.c"]}, sources)
    assert found == [Candidate("drivers/net/e1000/main.o", "e1000"), Candidate("fs/xfs/libxfs/xfs_bmap.o", "xfs")]
    assert (lacking, ambiguous) == (1, 0)  # xfs has no main.c: fs/xfsother is not below fs/xfs


def test_a_name_with_several_files_is_left_out() -> None:
    found, lacking, ambiguous = locate(MODULES, {"xfs": ["a.c"]}, {"a.c": ["fs/xfs", "fs/xfs/libxfs"]})
    assert (found, lacking, ambiguous) == ([], 0, 1)


def test_a_name_that_a_module_holds_twice_is_left_out() -> None:
    found, _, ambiguous = locate(MODULES, {"xfs": ["a.c", "a.c"]}, {"a.c": ["fs/xfs"]})
    assert (found, ambiguous) == ([], 2)


def test_a_file_that_two_modules_claim_is_left_out() -> None:
    modules = {"one": "kernel/lib/one.ko", "two": "kernel/lib/two.ko"}
    found, _, ambiguous = locate(modules, {"one": ["a.c"], "two": ["a.c"]}, {"a.c": ["lib"]})
    assert (found, ambiguous) == ([], 2)


def test_sources_are_found_by_name(tmp_path: Path) -> None:
    for name in ("fs/a.c", "fs/deep/a.c", "fs/a.h", "top.c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = sources_by_name(tmp_path)
    assert sorted(found["a.c"]) == ["fs", "fs/deep"]
    assert found["top.c"] == ["."]
    assert "a.h" not in found


def test_the_same_seed_draws_the_same_objects() -> None:
    known = Candidates([Candidate(f"o{number}.o", "vmlinux") for number in range(100)], 0, 0)
    assert known.draw(10, 7) == known.draw(10, 7)
    assert known.draw(10, 7) != known.draw(10, 8)
    assert len(set(known.draw(100, 7))) == 100


@pytest.mark.parametrize("count", [0, 3])
def test_more_objects_than_there_are_cannot_be_drawn(count: int) -> None:
    with pytest.raises(InvalidInputError, match="2 that can be surveyed"):
        Candidates([Candidate("a.o", "vmlinux"), Candidate("b.o", "vmlinux")], 0, 0).draw(count, 1)


# -- results


def proof_of(path: str, *outcomes: Outcome) -> ObjectProof:
    functions = [
        FunctionProof(f"f{n}", 10, 0, outcome, "why" if outcome != "identical" else "")
        for n, outcome in enumerate(outcomes)
    ]
    return ObjectProof(path, "vmlinux", functions)


@pytest.fixture
def kernel(tmp_path: Path) -> PreparedKernel:
    return PreparedKernel(
        path=tmp_path,
        source=tmp_path,
        root=Root("trixie", tmp_path, "d", 1, 0.0, None),
        release="6.12.1+deb13-cloud-amd64",
        origin="debian:linux 6.12.1-1 (trixie)",
        build_id="0123",
        config_sha256="4567",
        compiler="gcc",
        variables={},
        environment={},
        sizes={},
    )


def test_a_survey_without_differences_passes(kernel: PreparedKernel) -> None:
    found = Survey(
        Candidates([], 3, 4),
        [proof_of("a.o", "identical", "absent"), proof_of("data.o")],
        [NotBuilt(Candidate("c.o", "xfs"), "c.c:1: error: no\n")],
    )
    require_identical(found, kernel)
    data = as_data(found, kernel, 7)
    assert data["functions"] == {"identical": 1, "absent": 1, "different": 0}
    assert data["absent"] == [{"path": "a.o", "object": "vmlinux", "function": "f1", "why": "why"}]
    assert data["not_built"] == [{"path": "c.o", "why": "c.c:1: error: no\n"}]
    assert data["not_contained"] == []
    json.dumps(data)


def test_a_difference_is_an_error(kernel: PreparedKernel, capsys: pytest.CaptureFixture[str]) -> None:
    found = Survey(Candidates([], 0, 0), [proof_of("a.o", "identical", "different")])
    with pytest.raises(ProofFailedError, match=r"a\.o: f1\(\)") as caught:
        require_identical(found, kernel)
    assert caught.value.exit_status == 4
    show(found, kernel, 7)
    assert "different  1 functions\n           a.o: f1(): why" in capsys.readouterr().out


def test_an_object_of_which_the_kernel_has_nothing_is_an_error(kernel: PreparedKernel) -> None:
    with pytest.raises(ProofFailedError, match="1 objects are not in it"):
        require_identical(Survey(Candidates([], 0, 0), [proof_of("a.o", "absent", "absent")]), kernel)


def test_the_newest_cloud_kernel_of_the_series() -> None:
    texts = [
        "6.12.99+deb13-cloud-amd64",
        "6.12.117+deb13-cloud-amd64",
        "6.12.118+deb13-amd64",
        "7.2.1+deb13-cloud-amd64",
    ]
    assert str(newest([parse_release(text) for text in texts])) == "6.12.117+deb13-cloud-amd64"
    assert newest([]) is None
