# SPDX-License-Identifier: GPL-2.0-or-later
"""After a restart: what was in force comes back, and nothing else; the crash guard; what others did meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from client_fakes import BUILD_ID, FUNCTIONS, RELEASE, elf_module, put
from client_machine import FIRST, SECOND, HostMachine
from client_server import done_report


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostMachine:
    return HostMachine(tmp_path, monkeypatch)


@pytest.fixture
def loaded(machine: HostMachine) -> HostMachine:
    result = machine.load(FIRST)
    assert result.exit_code == 0, result.output
    return machine


def test_what_was_in_force_is_loaded_again(loaded: HostMachine) -> None:
    loaded.restart(orderly=True)
    assert loaded.run("status").exit_code == 7
    result = loaded.run("boot")
    assert result.exit_code == 0, result.output
    assert f"{FIRST} is loaded again" in result.stdout
    assert loaded.agreed() == [FIRST]
    assert loaded.run("status").exit_code == 0
    assert f"{FIRST} is already loaded" in loaded.run("boot").stdout


def test_a_host_on_which_nothing_was_done_needs_nothing(machine: HostMachine) -> None:
    result = machine.run("boot", "--json")
    assert json.loads(result.stdout) == {"status": "nothing", "exit_status": 0, "kernel": RELEASE, "warnings": []}
    assert not machine.state.exists()


def test_only_the_last_of_several_is_loaded_again(loaded: HostMachine) -> None:
    assert loaded.load(SECOND, patches=(FIRST, SECOND)).exit_code == 0
    loaded.restart(orderly=True)
    loaded.run("boot")
    assert loaded.agreed() == [SECOND]


def test_one_that_was_not_loaded_for_a_while_is_shadowed_by_the_later_one(loaded: HostMachine) -> None:
    loaded.restart(orderly=True)  # and nobody runs 'boot'
    assert loaded.load(SECOND).exit_code == 0
    loaded.restart(orderly=True)
    loaded.run("boot")
    assert loaded.steps(FIRST)[-1] == "replaced"
    assert loaded.agreed() == [SECOND]
    assert loaded.run("revert").exit_code == 0
    loaded.restart(orderly=True)
    assert "nothing is to be loaded" in loaded.run("boot").stdout


def test_what_was_reverted_stays_out(loaded: HostMachine) -> None:
    loaded.run("revert", FIRST)
    loaded.restart(orderly=True)
    assert "nothing is to be loaded" in loaded.run("boot").stdout
    assert loaded.held() == []


@pytest.mark.parametrize("what", ["release", "build ID"])
def test_another_kernel_gets_nothing_and_the_first_one_gets_it_back(loaded: HostMachine, what: str) -> None:
    root = loaded.host.root
    notes = (root / "sys/kernel/notes").read_bytes()
    loaded.restart(orderly=True)
    if what == "release":
        put(root, {"proc/sys/kernel/osrelease": "6.12.200-other\n"})
    else:
        put(root, {"sys/kernel/notes": notes.replace(bytes.fromhex(BUILD_ID), bytes.fromhex(BUILD_ID)[::-1])})
    result = loaded.run("boot")
    assert result.exit_code == 0
    assert "nothing is to be loaded" in result.stdout
    assert loaded.run("status").exit_code == 0
    assert loaded.kernel.log[-1] != f"load {FIRST}" or loaded.held() == []
    loaded.restart(orderly=True)
    put(root, {"proc/sys/kernel/osrelease": RELEASE + "\n", "sys/kernel/notes": notes})
    loaded.run("boot")
    assert loaded.agreed() == [FIRST]


# -- the crash guard


def test_a_host_that_goes_down_soon_after_a_load_does_not_load_it_again(loaded: HostMachine) -> None:
    loaded.uptime += 599
    loaded.run("mark", "alive")
    loaded.restart()
    result = loaded.run("boot")
    assert result.exit_code == 7
    assert "before it was known to run 600 s" in result.stderr
    assert loaded.held() == []
    status = loaded.status()
    assert status["exit_status"] == 7
    assert [(absent["name"], absent["state"]) for absent in status["absent"]] == [(FIRST, "guarded")]
    assert f"elivepatch allow {FIRST}" in loaded.run("status").stdout
    loaded.restart()
    assert loaded.run("boot").exit_code == 7


def test_what_is_guarded_is_loaded_again_once_it_is_allowed(loaded: HostMachine) -> None:
    loaded.restart()
    loaded.run("boot")
    result = loaded.run("allow", FIRST)
    assert result.exit_code == 0, result.output
    assert loaded.run("boot").exit_code == 0
    assert loaded.agreed() == [FIRST]
    loaded.restart()
    assert loaded.run("boot").exit_code == 7  # and guarded anew


def test_a_host_that_ran_on_for_long_enough_loads_it_again_after_a_crash(loaded: HostMachine) -> None:
    loaded.uptime += 601
    loaded.run("mark", "alive")
    assert loaded.status()["livepatches"][0]["survived"] is True
    loaded.restart()
    assert loaded.run("boot").exit_code == 0
    assert loaded.agreed() == [FIRST]
    assert loaded.entry(FIRST).survived is False


def test_the_guard_can_be_set_and_turned_off(loaded: HostMachine) -> None:
    loaded.uptime += 60
    loaded.run("mark", "alive", ELIVEPATCH_CRASH_GUARD="50")
    loaded.restart()
    assert loaded.run("boot", ELIVEPATCH_CRASH_GUARD="50").exit_code == 0
    loaded.restart()
    assert loaded.run("boot", ELIVEPATCH_CRASH_GUARD="0").exit_code == 0
    assert loaded.agreed() == [FIRST]


def test_a_shutdown_that_did_not_happen_does_not_count(loaded: HostMachine) -> None:
    loaded.run("mark", "shutdown")
    loaded.uptime += 60
    loaded.run("mark", "alive")
    loaded.restart()
    assert loaded.run("boot").exit_code == 7


def test_a_host_that_goes_down_during_the_load_does_not_load_it_again(loaded: HostMachine) -> None:
    entry = loaded.entry(FIRST)
    loaded.journal.begin(entry.model_copy(update={"steps": entry.steps[:2]})).note()
    loaded.restart()
    result = loaded.run("boot")
    assert result.exit_code == 7
    assert "went down while it was being loaded" in result.stderr
    assert loaded.steps(FIRST)[-2:] == ["loading", "guarded"]


def test_an_earlier_one_comes_back_where_the_later_one_never_came_into_force(loaded: HostMachine) -> None:
    loaded.uptime += 601
    loaded.run("mark", "alive")
    loaded.load(SECOND, patches=(FIRST, SECOND))
    second, first = loaded.entry(SECOND), loaded.entry(FIRST)
    loaded.journal.begin(second.model_copy(update={"steps": second.steps[:2]})).note()
    loaded.journal.begin(first.model_copy(update={"steps": first.steps[:-1]})).note()
    loaded.restart()
    result = loaded.run("boot")
    assert result.exit_code == 0
    assert f"{SECOND} is not loaded" in result.stderr
    assert loaded.agreed() == [FIRST]


def test_an_earlier_one_stays_out_where_the_later_one_was_in_force(loaded: HostMachine) -> None:
    loaded.uptime += 601
    loaded.run("mark", "alive")
    loaded.load(SECOND, patches=(FIRST, SECOND))
    loaded.restart()
    assert loaded.run("boot").exit_code == 7
    assert loaded.held() == []


def test_what_does_not_depend_on_the_time_of_day(loaded: HostMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elivepatch.client.journal.time.time", lambda: 5.0)  # the clock has lost its battery
    loaded.load(SECOND, patches=(FIRST, SECOND))
    loaded.uptime += 601
    loaded.run("mark", "alive")
    loaded.restart()
    loaded.run("boot")
    assert loaded.agreed() == [SECOND]


# -- what is wrong with the module


def _damage(change: Callable[[bytes], bytes]) -> Callable[[HostMachine], None]:
    def apply(machine: HostMachine) -> None:
        path = machine.state / "modules" / RELEASE / f"{FIRST}.ko"
        path.write_bytes(change(path.read_bytes()))

    return apply


def _swap(machine: HostMachine) -> None:
    path = machine.state / "modules" / RELEASE / f"{FIRST}.ko"
    path.write_bytes((machine.tmp / f"{SECOND}.ko").read_bytes())


def _elsewhere(machine: HostMachine) -> None:
    entry = machine.entry(FIRST)
    assert entry.module is not None
    path = machine.tmp / f"{FIRST}.ko"
    machine.journal.begin(
        entry.model_copy(update={"module": entry.module.model_copy(update={"path": str(path)})})
    ).note()


DAMAGED: list[tuple[str, Callable[[HostMachine], object], str]] = [
    ("corrupted", _damage(lambda data: data[:50] + b"X" + data[51:]), "not the one that was checked"),
    ("truncated", _damage(lambda data: data[:-10]), "not the one that was checked"),
    ("signed anew", _damage(lambda data: data + b"~Module signature appended~\n"), "not the one that was checked"),
    ("swapped", _swap, "not the one that was checked"),
    ("elsewhere", _elsewhere, "The journal says that the module lies in"),
    ("gone", lambda m: (m.state / "modules" / RELEASE / f"{FIRST}.ko").unlink(), "cannot be read"),
    ("writable", lambda m: (m.state / "modules" / RELEASE).chmod(0o777), "can be written to by others"),
    ("foreign", lambda m: m.kernel.add("foreign", moved=True), "would replace foreign"),
    ("in the kernel", lambda m: m.kernel.add(FIRST, moved=True), "disagree about"),
]


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in DAMAGED], ids=[case[0] for case in DAMAGED])
def test_what_is_not_as_it_was_is_not_loaded_at_boot(
    loaded: HostMachine, change: Callable[[HostMachine], object], words: str
) -> None:
    loaded.restart(orderly=True)
    change(loaded)
    before = len(loaded.kernel.log)
    result = loaded.run("boot")
    assert result.exit_code in {2, 4}, result.output
    assert words in result.stderr
    assert "hint:" in result.stderr
    assert loaded.kernel.log[before:] == []


def test_a_load_that_fails_at_boot_is_told_and_tried_again(loaded: HostMachine) -> None:
    loaded.restart(orderly=True)
    loaded.kernel.stuck = True
    assert loaded.run("boot").exit_code == 4
    assert loaded.held() == []
    assert "could not be loaded when the host came up" in loaded.run("status").stdout
    loaded.kernel.stuck = False
    assert loaded.run("boot").exit_code == 0
    assert loaded.agreed() == [FIRST]


# -- load from a file


MODINFO = {"name": FIRST, "livepatch": "Y", "vermagic": f"{RELEASE} SMP preempt mod_unload modversions "}


def _put_module(data: bytes) -> Callable[[HostMachine], None]:
    """A module and a report that agree with each other."""

    def apply(machine: HostMachine) -> None:
        report = done_report(data)
        report["module"]["name"] = FIRST
        (machine.tmp / f"{FIRST}.ko").write_bytes(data)
        (machine.tmp / f"{FIRST}.json").write_text(json.dumps(report))

    return apply


def _report(**changes: object) -> Callable[[HostMachine], None]:
    return lambda machine: machine.provide(FIRST, **changes)


def _cut(machine: HostMachine) -> None:
    path = machine.tmp / f"{FIRST}.ko"
    path.write_bytes(path.read_bytes()[:-10])


def _swapped(machine: HostMachine) -> None:
    (machine.tmp / f"{FIRST}.ko").write_bytes((machine.tmp / f"{SECOND}.ko").read_bytes())


def _no_report(machine: HostMachine) -> None:
    (machine.tmp / f"{FIRST}.json").write_text("{")


REJECTED: list[tuple[str, Callable[[HostMachine], None], str]] = [
    ("truncated", _cut, "not the module that the report describes"),
    ("swapped", _swapped, "not the module that the report describes"),
    ("other release", _put_module(elf_module({**MODINFO, "vermagic": "6.1.0 SMP "})), "is for the kernel 6.1.0"),
    (
        "other machine",
        _put_module(elf_module(MODINFO, machine=183)),
        "another machine",
    ),
    ("no livepatch", _put_module(elf_module({**MODINFO, "livepatch": "N"})), "not marked as a livepatch"),
    ("other name", _put_module(elf_module({**MODINFO, "name": "something"})), "the module calls itself something"),
    ("no module", _put_module(b"\x7fELF" + bytes(200)), "not a kernel module"),
    (
        "other build",
        _report(kernel={"release": RELEASE, "build_id": "ab" * 20}),
        "built for the kernel with the build ID",
    ),
    ("not proven", _report(proof=None), "its proof is 'absent'"),
    ("layout", _report(proof={"level": "layout"}), "did not tell the layout"),
    ("not tried", _report(verification=None), "has not passed a boot test"),
    ("no report", _no_report, "is not the report of a build"),
    ("failed", _report(status="failed"), "gave no module"),
]


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in REJECTED], ids=[case[0] for case in REJECTED])
def test_what_is_not_a_module_for_this_kernel_is_not_loaded(
    machine: HostMachine, change: Callable[[HostMachine], None], words: str
) -> None:
    change(machine)
    result = machine.load(FIRST)
    assert result.exit_code in {2, 4}, result.output
    assert words in result.stderr
    assert "hint:" in result.stderr
    assert machine.kernel.log == []
    assert machine.held() == []


def test_what_is_in_force_is_not_replaced_without_a_word(loaded: HostMachine) -> None:
    result = loaded.load(SECOND)
    assert result.exit_code == 4
    assert f"not said to contain {FIRST}.patch" in result.stderr
    assert loaded.agreed() == [FIRST]
    assert loaded.load(SECOND, "--drop-earlier").exit_code == 0
    assert loaded.agreed() == [SECOND]


def test_one_whose_patches_were_not_named_is_not_replaced_either(machine: HostMachine) -> None:
    assert machine.run("load", machine.tmp / f"{FIRST}.ko", "--report", machine.tmp / f"{FIRST}.json").exit_code == 0
    result = machine.load(SECOND)
    assert result.exit_code == 4
    assert "without its patches being named" in result.stderr


def test_what_a_forced_one_replaced_is_left_alone(loaded: HostMachine) -> None:
    loaded.kernel.stuck = True
    assert loaded.load(SECOND, "--force", patches=(FIRST, SECOND)).exit_code == 0
    assert f"unload {FIRST}" not in loaded.kernel.log
    assert loaded.run("repair").exit_code == 0
    assert f"unload {FIRST}" not in loaded.kernel.log
    assert loaded.agreed() == [SECOND]


def test_force_ends_a_transition_and_says_what_that_means(machine: HostMachine) -> None:
    machine.kernel.stuck = True
    assert machine.load(FIRST).exit_code == 4
    assert f"force {FIRST}" not in machine.kernel.log
    result = machine.load(FIRST, "--force")
    assert result.exit_code == 0, result.output
    assert "--force: a transition that does not finish in time is ended by force" in result.stderr
    assert "can never be unloaded" in result.stderr
    assert machine.steps(FIRST) == ["received", "loading", "forcing", "loaded"]
    status = machine.status()
    assert status["livepatches"][0]["forced"] is True
    assert set(FUNCTIONS) == {(f["object"], f["function"]) for f in status["livepatches"][0]["functions"]}
