# SPDX-License-Identifier: GPL-2.0-or-later
"""Which fixes are kept: everything but the build itself is real."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cve_bench import BASE, Branch, Machine, change, edited, ends_with, make_bench, name, refused
from elivepatch.cves.fixes import Fix, make_fix
from elivepatch.cves.trials import Bench
from elivepatch.errors import CancelledError, DoesNotCompileError, NothingToPatchError, UnavailableError
from elivepatch.job import InputFile, Job
from elivepatch.progress import Progress
from elivepatch.protocol.models import BuildRequest, BuildStatus, Report
from elivepatch.workshop import Workshop


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


def run(bench: Bench, machine: Machine, branch: Branch, *commits: str) -> dict[str, str]:
    bench.source, bench.build = branch, machine.build
    return {
        commit[0]: trial.state for commit, trial in bench.try_all({one: ["CVE-2026-1000"] for one in commits}).items()
    }


def test_fixes_of_different_files_are_tried_alone(bench: Bench) -> None:
    one = change("kernel/a.c", BASE, edited(3), name("a"))
    two = change("kernel/b.c", BASE, edited(3), name("b"))
    machine = Machine()
    assert run(bench, machine, Branch([one, two]), name("a"), name("b")) == {"a": "works", "b": "works"}
    assert machine.asked == [("a" * 12,), ("b" * 12,)]


def test_one_on_top_of_another_is_tried_with_it(bench: Bench) -> None:
    one = change("kernel/a.c", BASE, edited(3), name("a"))
    two = change("kernel/a.c", edited(3), edited(3, 4), name("b"))
    machine = Machine()
    assert run(bench, machine, Branch([one, two]), name("b"), name("a")) == {"a": "works", "b": "works"}
    assert machine.asked == [("a" * 12,), ("a" * 12, "b" * 12)]


def test_one_that_fails_takes_no_other_with_it(bench: Bench) -> None:
    fixes = [change(f"kernel/{file}.c", BASE, edited(3), name(file)) for file in "ab"]
    machine = Machine({"a" * 12: refused("cannot-livepatch", "no")})
    assert run(bench, machine, Branch(fixes), name("a"), name("b")) == {"a": "refused", "b": "works"}
    assert [fix.commit for fix in bench.accepted] == [name("b")]
    assert bench.together() is not None


def test_what_it_needs_is_brought_along(bench: Bench) -> None:
    one = change("kernel/a.c", BASE, edited(3), name("a"))
    two = change("kernel/a.c", edited(3), edited(3, 4), name("b"))
    machine = Machine()
    found = run(bench, machine, Branch([one, two]), name("b"))
    assert found == {"b": "works"}
    assert [fix.commit for fix in bench.accepted] == [name("a"), name("b")]


def test_without_history_it_says_that_it_does_not_apply(bench: Bench) -> None:
    one = change("kernel/a.c", BASE, edited(3), name("a"))
    two = change("kernel/a.c", edited(3), edited(3, 4), name("b"))
    bench.source = Branch([one, two], history=False)
    (trial,) = bench.try_all({name("b"): ["CVE-2026-1000"]}).values()
    assert trial.state == "unavailable"
    assert "kernel/a.c" in (trial.message or "")
    assert bench.accepted == []


def test_what_the_compiler_misses_is_brought_along(bench: Bench) -> None:
    helper = change("kernel/b.c", BASE, edited(5), name("a"))
    fix = change("kernel/a.c", BASE, edited(3), name("b"))
    machine = Machine()
    missing = refused(DoesNotCompileError.code, "implicit declaration of function \u2018helper_of_ours\u2019")

    def build(job: Job, workshop: Workshop, place: Path, progress: Progress) -> Report:
        report = machine.build(job, workshop, place, progress)
        return report if len(job.patches) > 1 else missing

    bench.source, bench.build = Branch([helper, fix], {"helper_of_ours": [name("a")]}), build
    (trial,) = bench.try_all({name("b"): ["CVE-2026-1000"]}).values()
    assert (trial.state, [need.commit for need in trial.needs]) == ("works", [name("a")])


def test_what_the_source_has_already_is_not_built(bench: Bench) -> None:
    (bench.kernel.source / "kernel/a.c").write_text(edited(3))
    machine = Machine()
    assert run(bench, machine, Branch([change("kernel/a.c", BASE, edited(3), name("a"))]), name("a")) == {
        "a": "contained"
    }
    assert machine.asked == []


def test_what_is_in_force_already_is_not_built_again(bench: Bench) -> None:
    fix = change("kernel/a.c", BASE, edited(3), name("a"))
    bench.job = Job(BuildRequest(kernel="6.1.170"), (InputFile("mine.patch", fix.patch(())),))
    machine = Machine()
    assert run(bench, machine, Branch([fix]), name("a")) == {"a": "in-force"}
    assert machine.asked == []
    assert bench.accepted == []


def test_a_commit_that_is_not_there_is_told(bench: Bench) -> None:
    assert run(bench, Machine(), Branch([]), name("c")) == {"c": "unavailable"}


def test_what_spoils_the_whole_is_taken_out(bench: Bench) -> None:
    fixes = [change("kernel/a.c", BASE, edited(3), name("a")), change("kernel/b.c", BASE, edited(3), name("b"))]
    machine = Machine(together={frozenset({"a" * 12, "b" * 12})})
    run(bench, machine, Branch(fixes), name("a"), name("b"))
    assert bench.together() is not None
    assert [fix.commit for fix in bench.accepted] == [name("a")]
    assert list(bench.dropped) == [name("b")]


def test_the_module_that_the_guest_cannot_load_tells_whose_fix_it_is(bench: Bench) -> None:
    uncore = "kernel/uncore_x.c"
    (bench.kernel.source / uncore).write_text(BASE)
    modules = {"intel_uncore": "kernel/kernel/intel-uncore.ko.xz", "other": "kernel/lib/other.ko.xz"}
    bench.kernel = replace(bench.kernel, modules=modules)
    files = {"a": "kernel/a.c", "c": uncore, "b": "kernel/b.c"}
    bench.accepted = [change(path, BASE, edited(3), name(letter)) for letter, path in files.items()]
    asked: list[int] = []

    def build(job: Job, workshop: Workshop, place: Path, progress: Progress) -> Report:
        del workshop, place, progress
        asked.append(len(job.patches))
        if any(file.name.startswith("c") for file in job.patches):
            said = "The kernel's own module intel_uncore could not be loaded in the guest: No such device"
            return Report(status=BuildStatus.REFUSED, key="k", exit_status=5, error="boot-test-failed", message=said)
        return Report(status=BuildStatus.DONE, key="k", exit_status=0)

    bench.build = build
    assert bench.together() is not None
    assert list(bench.dropped) == [name("c")]
    assert [fix.commit for fix in bench.accepted] == [name("a"), name("b")]
    assert asked == [3, 3, 2], "it was searched for"


def test_what_was_tried_once_is_remembered(bench: Bench) -> None:
    fix = change("kernel/a.c", BASE, edited(3), name("a"))
    machine = Machine()
    run(bench, machine, Branch([fix]), name("a"))
    bench.accepted = []
    run(bench, machine, Branch([fix]), name("a"))
    assert len(machine.asked) == 1


@pytest.mark.parametrize("path", ["Documentation/x.rst", "tools/lib/x.c", "arch/arm64/kernel/x.c", "samples/x.c"])
def test_what_no_kernel_is_made_from_is_no_part_of_a_fix(path: str) -> None:
    with pytest.raises(NothingToPatchError):
        change(path, BASE, edited(3), name("a"))


def test_a_fix_says_what_it_is_and_which_cves_it_closes() -> None:
    text = change("kernel/a.c", BASE, edited(3), name("a"), "mm: fix it").patch(["CVE-2026-1000", "CVE-2026-1001"])
    head = text.decode().split("diff --git")[0]
    assert head == f"commit {name('a')}\nSubject: mm: fix it\nCVE: CVE-2026-1000\nCVE: CVE-2026-1001\n\n"


NEAR = """\
int one(int len)
{
\tif (len > 4)
\t\treturn -1;
\treturn copy(len);
}

int two(int len)
{
\treturn copy(len);
}
"""


def test_a_fix_is_not_taken_for_one_that_looks_alike_elsewhere_in_the_file(bench: Bench) -> None:
    fixed = NEAR.replace("int two(int len)\n{\n", "int two(int len)\n{\n\tif (len > 4)\n\t\treturn -1;\n")
    (bench.kernel.source / "kernel/a.c").write_text(NEAR)
    diff = (
        "diff --git a/kernel/a.c b/kernel/a.c\n--- a/kernel/a.c\n+++ b/kernel/a.c\n"
        "@@ -9,3 +9,5 @@ int two(int len)\n {\n+\tif (len > 4)\n+\t\treturn -1;\n \treturn copy(len);\n }\n"
    )
    fix = make_fix(name("a"), "a check", diff.encode())
    machine = Machine()
    assert run(bench, machine, Branch([fix]), name("a")) == {"a": "works"}
    (bench.kernel.source / "kernel/a.c").write_text(fixed)
    bench.accepted = []
    assert run(bench, machine, Branch([fix]), name("a")) == {"a": "contained"}


def test_a_cancelled_build_ends_the_plan(bench: Bench) -> None:
    cancelled = Report(status=BuildStatus.CANCELLED, key="k", exit_status=1, error="cancelled", message="ended")
    bench.source, bench.build = Branch([change("kernel/a.c", BASE, edited(3), name("a"))]), ends_with(cancelled)
    with pytest.raises(CancelledError):
        bench.try_all({name("a"): ["CVE-2026-1000"]})


def test_a_failure_of_ours_is_no_verdict_on_a_fix(bench: Bench) -> None:
    failed = Report(status=BuildStatus.FAILED, key="k", exit_status=1, error="disk-full", message="no space")
    bench.source, bench.build = Branch([change("kernel/a.c", BASE, edited(3), name("a"))]), ends_with(failed)
    (trial,) = bench.try_all({name("a"): ["CVE-2026-1000"]}).values()
    assert (trial.state, "no space" in (trial.message or "")) == ("unavailable", True)
    with pytest.raises(UnavailableError):
        bench.accepted = list(bench.source.fixes)
        bench.together()


def test_a_boot_test_that_fails_once_is_repeated_and_not_remembered(bench: Bench) -> None:
    fix = change("kernel/a.c", BASE, edited(3), name("a"))
    endings = [
        Report(status=BuildStatus.REFUSED, key="k", exit_status=5, error="boot-test-failed", message="the load"),
        Report(status=BuildStatus.DONE, key="k", exit_status=0),
    ]
    bench.source, bench.build, bench.accepted = Branch([fix]), ends_with(*endings), [fix]
    assert bench.together() is not None
    assert bench.accepted == [fix]


def test_a_fix_that_is_no_text_is_told_and_takes_no_other_with_it(bench: Bench) -> None:
    good = change("kernel/b.c", BASE, edited(3), name("b"))

    class Latin(Branch):
        def get(self, commit: str, progress: Progress) -> Fix:
            if commit == name("a"):
                diff = b"--- a/kernel/a.c\n+++ b/kernel/a.c\n@@ -1,2 +1,2 @@\n /* J\xf6rg */\n-int a;\n+int b;\n"
                return make_fix(commit, "a fix", b"diff --git a/kernel/a.c b/kernel/a.c\n" + diff)
            return super().get(commit, progress)

    bench.source = Latin([good])
    found = bench.try_all({name("a"): ["CVE-2026-1000"], name("b"): ["CVE-2026-1001"]})
    assert {commit[0]: trial.state for commit, trial in found.items()} == {"a": "unavailable", "b": "works"}
    assert "not UTF-8" in (found[name("a")].message or "")
