# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own livepatch selftests, with kmod's programs and with the client in their place: both pass the same."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import demo_host
import kernel_selftests
import pytest
from bench_kernels import newest
from kernel_selftests import Case, Result
from restarting_host import RestartingHost, held_image

from elivepatch.progress import Progress
from elivepatch.selection import WantedKernel, hold_kernel
from elivepatch.workshop import Workshop, find_kernel

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.timeout(2 * 3600)]

#: The series of the kernel, and the release of Debian that publishes it and that the host has.
HOSTS = {"6.12": "trixie", "6.1": "bookworm", "7.3": "trixie"}
#: A regular expression that chooses cases by script and name, to look at a few: all together take a quarter of an hour.
WANTED = os.environ.get("ELIVEPATCH_SELFTESTS", "")


@dataclass(frozen=True)
class Refusal:
    """A case that passes with insmod and that the client refuses by design: why, and what it says."""

    reason: str
    error: str


REFUSED = {
    "test-callbacks.sh: busy target module": Refusal(
        "The case leaves a livepatch in a transition that cannot finish. The client waits for every transition, and "
        "undoes one that does not finish in time.",
        r"elivepatch: The transition of test_klp_callbacks_demo did not finish within 30 s\. Held by 1 task: \d+ "
        r"\(kworker/\S+\) in busymod_work_func\+\S+ \[test_klp_callbacks_busy\]\. It was undone\.",
    ),
}
#: The livepatches that a case unloads, and that the client has unloaded by itself when another replaced them. Before
#: Linux 6.12 the first of the cases has only one.
UNLOADED = {
    "test-livepatch.sh: atomic replace livepatch": {
        "test_klp_livepatch",
        "test_klp_syscall",
        "test_klp_callbacks_demo",
    },
    "test-callbacks.sh: atomic replace": {"test_klp_callbacks_demo"},
    "test-state.sh: taking over system state modification": {"test_klp_state"},
    "test-state.sh: compatible cumulative livepatches": {"test_klp_state2", "test_klp_state3"},
}


@pytest.mark.parametrize("series", list(HOSTS))
def test_what_passes_with_insmod_passes_with_the_client(
    workshop: Workshop, progress: Progress, tmp_path: Path, series: str
) -> None:
    suite = HOSTS[series]
    release = newest(workshop, suite, series, "-cloud-amd64", progress)
    files, _, source = find_kernel(release, workshop, progress)
    source.download(files, progress)
    with hold_kernel(WantedKernel(name=str(release)), workshop, progress) as (kernel, _):
        cases = [case for case in kernel_selftests.cases(kernel.source) if re.search(WANTED, case.title)]
        built = kernel_selftests.build(kernel, tmp_path / "build")
        archive = kernel_selftests.archive(kernel, cases, built)
        made = demo_host.guest_host(workshop, kernel, files, progress, ("procps",), suite=suite)
        with held_image(made) as host:
            guest = RestartingHost(
                host.image,
                host.kernel,
                host.busybox,
                tmp_path / "host",
                workshop.cache / "guests",
                {"selftests.tar": archive},
            )
            guest.format(64)
            told = guest.run(kernel_selftests.script(cases), timeout=6000).sections
    assert "end" in told
    plain, ours = (
        [kernel_selftests.result(told[f"{way}-{number}"]) for number in range(len(cases))] for way in ("plain", "ours")
    )
    shown = kernel_selftests.table(cases, plain, ours)
    (tmp_path / f"selftests-{release}.txt").write_text(shown)
    print(f"{release}\n{shown}")

    assert sum(one.passed for one in plain) > len(cases) // 2, shown
    for case, one, other in zip(cases, plain, ours, strict=True):
        look(case, one, other)
    status = kernel_selftests.status(told["status"])
    assert status["livepatches"] == status["disagreements"] == status["problems"] == [], status
    assert status["exit_status"] == 0, status
    assert not told["log"].strip(), told["log"]


def look(case: Case, plain: Result, ours: Result) -> None:
    """Hold the results of a case against each other."""
    assert plain.client == "", plain.client
    assert plain.unloaded == frozenset(), plain
    if plain.passed:
        assert plain.left == "", f"{case.title}: {plain.left}"
    loads, reverts = (f"$ elivepatch {word} " in ours.client for word in ("load", "revert"))
    wanted = bool(re.search(r"\bload_lp\w* |load_failing_mod \$MOD_LIVEPATCH", case.own))
    # 7.3 does not let ftrace be switched off any more, and the case that does so then has nothing to do
    idle = "ftrace_disable_supported" in case.own and not loads
    assert loads == wanted or idle, case.title
    refusal = REFUSED.get(case.title)
    if refusal and plain.passed:
        assert not ours.passed, f"{case.title} passes: take it out of the table"
        assert re.search(refusal.error, ours.output), f"{case.title}: {ours.output}"
        assert not re.search(r"callbacks_demo", ours.left), ours.left
        return
    assert ours.passed == plain.passed, f"{case.title}:\n{plain.output}\n--\n{ours.output}\n{ours.client}"
    if ours.passed:
        assert ours.left == "", f"{case.title}: {ours.left}"
        expected = {name for name in UNLOADED.get(case.title, ()) if name in case.text}
        assert ours.unloaded == expected, f"{case.title}: {ours.unloaded}"
        assert reverts == ("unload_lp" in case.own) or idle, case.title
