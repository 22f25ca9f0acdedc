# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules without a report: loaded where somebody says so, for one boot, and in nobody's way."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from client_fakes import RELEASE, elf_module, put
from client_machine import FIRST, SECOND, HostMachine


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostMachine:
    return HostMachine(tmp_path, monkeypatch)


@pytest.fixture
def stacking(machine: HostMachine) -> HostMachine:
    """A host on which FIRST is in force, with its report, and whose next livepatches replace nothing."""
    assert machine.load(FIRST).exit_code == 0
    machine.kernel.replace = False
    return machine


def test_it_is_loaded_with_a_warning_and_reverted(machine: HostMachine) -> None:
    result = machine.load_unproven(FIRST)
    assert result.exit_code == 0, result.output
    assert "nothing is known of what this module changes" in result.stderr
    assert f"{FIRST} is loaded" in result.stdout
    (held,) = machine.status()["livepatches"]
    assert held["unproven"] is True
    assert "proof" not in held
    assert machine.run("status").exit_code == 0
    assert "loaded without a report" in machine.run("status").stdout
    assert "meminfo_proc_show" in machine.run("info", FIRST).stdout
    assert f"{FIRST} is already loaded" in machine.load_unproven(FIRST).stdout
    assert machine.run("revert").exit_code == 0
    assert machine.agreed() == []


def test_parameters_reach_the_module(machine: HostMachine) -> None:
    result = machine.load_unproven(FIRST, "level=-19", "names=a b", "quiet")
    assert result.exit_code == 0, result.output
    assert machine.kernel.log[0] == f'load {FIRST} level=-19 names="a b" quiet'
    assert 'with level=-19 names="a b" quiet' in machine.run("info", FIRST).stdout
    result = machine.load_unproven(FIRST, "level=3")
    assert result.exit_code == 4
    assert "not known to be this one" in result.stderr


@pytest.mark.parametrize("text", ['a="b', "a=b\nc=d", "=b", "a b=c", ""])
def test_what_is_no_parameter_is_refused(machine: HostMachine, text: str) -> None:
    result = machine.load_unproven(FIRST, text)
    assert result.exit_code == 2
    assert "is no parameter of a module" in result.stderr
    assert machine.kernel.log == []


def test_parameters_have_a_limit_and_kpatch_takes_none(machine: HostMachine) -> None:
    assert "take 5002 bytes" in machine.load_unproven(FIRST, "a=" + "b" * 5000).stderr
    assert "kpatch takes no parameters" in machine.load_unproven(FIRST, "--kpatch", "a=b").stderr
    assert machine.kernel.log == []


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--report", "r.json", "--no-report"),
        ("--report", "r.json", "--beside"),
        ("--report", "r.json", "level=1"),
        ("--no-report", "--beside", "--drop-earlier"),
    ],
)
def test_flags_that_contradict_each_other_are_wrong_usage(machine: HostMachine, flags: tuple[str, ...]) -> None:
    assert machine.run("load", machine.tmp / f"{FIRST}.ko", *flags).exit_code == 2
    assert machine.kernel.log == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"livepatch": "N"}, "is not marked as a livepatch"),
        ({"vermagic": "6.1.0-1-amd64 SMP "}, "is for the kernel 6.1.0-1-amd64"),
        ({"name": "../x"}, "cannot be the name of a module"),
    ],
)
def test_what_it_says_about_itself_must_fit(machine: HostMachine, fields: dict[str, str], words: str) -> None:
    good = {"name": FIRST, "livepatch": "Y", "vermagic": f"{RELEASE} SMP "}
    (machine.tmp / f"{FIRST}.ko").write_bytes(elf_module({**good, **fields}))
    result = machine.load_unproven(FIRST)
    assert result.exit_code == 4
    assert words in result.stderr
    assert machine.kernel.log == []


def test_one_for_another_machine_is_rejected(machine: HostMachine) -> None:
    fields = {"name": FIRST, "livepatch": "Y", "vermagic": f"{RELEASE} SMP "}
    (machine.tmp / f"{FIRST}.ko").write_bytes(elf_module(fields, machine=183))
    assert "on x86_64" in machine.load_unproven(FIRST).stderr


def test_what_is_in_force_does_not_end_without_a_word(stacking: HostMachine) -> None:
    result = stacking.load_unproven(SECOND)
    assert result.exit_code == 4
    assert f"would replace {FIRST}" in result.stderr
    assert stacking.agreed() == [FIRST]


def test_beside_another_both_are_in_force_and_either_can_go(stacking: HostMachine) -> None:
    result = stacking.load_unproven(SECOND, "--beside")
    assert result.exit_code == 0, result.output
    assert stacking.agreed() == [FIRST, SECOND]
    assert stacking.run("status").exit_code == 0
    assert stacking.run("revert", FIRST).exit_code == 0
    assert stacking.agreed() == [SECOND]


def test_a_later_request_does_not_lose_it_without_a_word(stacking: HostMachine) -> None:
    assert stacking.load_unproven(SECOND, "--beside").exit_code == 0
    stacking.provide("livepatch_third")
    result = stacking.load("livepatch_third", patches=(FIRST, "livepatch_third"))
    assert result.exit_code == 4
    assert f"{SECOND} is in force and was loaded without its patches being named" in result.stderr


def test_one_that_replaces_is_not_beside(stacking: HostMachine) -> None:
    load = stacking.kernel.load

    def load_and_tell(descriptor: int, parameters: str = "") -> None:
        load(descriptor, parameters)
        put(stacking.host.root, {f"sys/kernel/livepatch/{SECOND}/replace": "1\n"})

    stacking.kernel.load = load_and_tell
    result = stacking.load_unproven(SECOND, "--beside")
    assert result.exit_code == 4
    assert f"{SECOND} replaces all livepatches in force" in result.stderr
    assert stacking.agreed() == [FIRST]


def test_where_the_kernel_does_not_tell_that_it_replaces_the_journal_learns_it(machine: HostMachine) -> None:
    assert machine.load(FIRST).exit_code == 0
    result = machine.load_unproven(SECOND, "--beside")
    assert result.exit_code == 0, result.output
    assert f"{SECOND} has replaced {FIRST}, though it was to be loaded beside them" in result.stderr
    assert machine.steps(FIRST)[-1] == "replaced"
    assert machine.agreed() == [SECOND]


@pytest.mark.parametrize("orderly", [True, False])
def test_it_does_not_come_back_and_what_it_was_beside_does(stacking: HostMachine, orderly: bool) -> None:
    assert stacking.load_unproven(SECOND, "--beside").exit_code == 0
    stacking.kernel.replace = True
    stacking.restart(orderly=orderly)
    assert [absent["name"] for absent in stacking.status()["absent"]] == [FIRST]
    result = stacking.run("boot", ELIVEPATCH_CRASH_GUARD="0")
    assert result.exit_code == 0, result.output
    assert stacking.agreed() == [FIRST]
    assert stacking.steps(SECOND)[-1] == "reverted"


def test_what_it_replaced_does_not_come_back(machine: HostMachine) -> None:
    assert machine.load(FIRST).exit_code == 0
    assert machine.load_unproven(SECOND, "--drop-earlier").exit_code == 0
    machine.restart(orderly=True)
    assert json.loads(machine.run("boot", "--json").stdout)["status"] == "nothing"
    assert machine.agreed() == []


def test_a_host_that_goes_down_with_it_guards_nothing(machine: HostMachine) -> None:
    assert machine.load_unproven(FIRST).exit_code == 0
    machine.restart()
    assert machine.run("status").exit_code == 0
    assert machine.run("boot").exit_code == 0
    assert machine.agreed() == []


def test_a_client_that_is_killed_meanwhile_leaves_nothing_behind(machine: HostMachine) -> None:
    entry_steps = ("received", "loading")
    assert machine.load_unproven(FIRST).exit_code == 0
    entry = machine.entry(FIRST)
    cut = entry.model_copy(update={"changed": (), "steps": tuple(s for s in entry.steps if s.step in entry_steps)})
    machine.journal.begin(cut).note()
    assert machine.run("repair").exit_code == 0
    assert machine.agreed() == []
    assert machine.steps(FIRST)[-1] == "undone"


def test_a_module_whose_livepatch_was_disabled_by_hand_is_unloaded(machine: HostMachine) -> None:
    assert machine.load(FIRST).exit_code == 0
    machine.kernel.switch(machine.host.root / f"sys/kernel/livepatch/{FIRST}/enabled", on=False)
    machine.kernel.sleep(5)
    assert machine.held() == []
    assert (machine.host.root / "sys/module" / FIRST).exists()
    assert "its module would be unloaded" in machine.run("revert", FIRST, "--dry-run").stdout
    result = machine.run("revert", FIRST)
    assert result.exit_code == 0, result.output
    assert not (machine.host.root / "sys/module" / FIRST).exists()
    assert machine.agreed() == []


def test_one_that_was_disabled_by_hand_is_left_alone_until_somebody_reverts_it(machine: HostMachine) -> None:
    """Also where it had been loaded and reverted before: the older entry of the journal says nothing about it."""
    assert machine.load_unproven(FIRST).exit_code == 0
    assert machine.run("revert").exit_code == 0
    assert machine.load_unproven(FIRST).exit_code == 0
    machine.kernel.switch(machine.host.root / f"sys/kernel/livepatch/{FIRST}/enabled", on=False)
    machine.kernel.sleep(5)
    machine.kernel.busy = 0
    machine.run("repair")
    assert (machine.host.root / "sys/module" / FIRST).exists()
    assert machine.run("revert", FIRST).exit_code == 0
    assert not (machine.host.root / "sys/module" / FIRST).exists()
    assert machine.agreed() == []


@pytest.mark.parametrize(("enabled", "words"), [("0", "ftrace is switched off"), ("1", "another livepatch")])
def test_ftrace_that_is_off_is_told_from_another_transition(machine: HostMachine, enabled: str, words: str) -> None:
    put(machine.host.root, {"proc/sys/kernel/ftrace_enabled": f"{enabled}\n"})
    machine.kernel.refuse = errno.EBUSY
    result = machine.load_unproven(FIRST)
    assert result.exit_code == 4
    assert words in result.stderr
