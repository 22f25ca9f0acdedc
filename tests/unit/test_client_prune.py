# SPDX-License-Identifier: GPL-2.0-or-later
"""Old entries of the journal: which go, that nothing is decided otherwise without them, and a kill in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from client_fakes import BOOT_ID, BUILD_ID, NAME, RELEASE, put
from client_machine import FIRST, SECOND, HostMachine, KilledError
from elivepatch.client.boot import candidate
from elivepatch.client.entries import latest_entries, replaced_unsaid
from elivepatch.client.journal import Entry, Input, Step, StepName, StoredModule
from elivepatch.client.prune import FINISHED, superfluous
from elivepatch.client.settle import crash_suspect, repairs
from elivepatch.client.status import absent_livepatches, disagreements
from elivepatch.kernel.running import Livepatch, ModulePolicy, PatchedFunction, RunningKernel

EARLIER = BOOT_ID.replace("b", "c")
KEPT = {"ELIVEPATCH_JOURNAL_ENTRIES": "1"}


def kernel_with(*names: str) -> RunningKernel:
    functions = (PatchedFunction("vmlinux", "f", 1),)
    return RunningKernel(
        release=RELEASE,
        version="",
        machine="x86_64",
        build_id=BUILD_ID,
        boot_id=BOOT_ID,
        distribution="debian",
        distribution_version=None,
        compiler=None,
        taint=0,
        policy=ModulePolicy(signature_enforced=False, loading_disabled=False, lockdown=None),
        can_livepatch=True,
        livepatches=tuple(Livepatch(name, enabled=True, transition=False, functions=functions) for name in names),
    )


def entry(number: int, *steps: StepName, module: str | None = NAME, boot_id: str = EARLIER, **more: object) -> Entry:
    taken = tuple(Step(step=step, time=number, uptime=1.0, boot_id=boot_id) for step in steps)
    stored = StoredModule(name=module, sha256="00", size=1) if module else None
    known = Entry(id=f"e{number}", number=number, release=RELEASE, build_id=BUILD_ID, module=stored, steps=taken)
    return known.model_copy(update=more)


def ids(entries: list[Entry]) -> list[str]:
    return [one.id for one in entries]


def test_the_youngest_finished_ones_stay() -> None:
    entries = [entry(number, "requested", "failed", module=None) for number in range(1, 6)]
    assert ids(superfluous(entries, (), 2)) == ["e1", "e2", "e3"]
    assert superfluous(entries, (), 5) == []


@pytest.mark.parametrize("step", [step for step in get_args(StepName) if step not in FINISHED])
def test_what_has_not_ended_stays(step: StepName) -> None:
    assert superfluous([entry(1, "loading", step), entry(2, "failed", module=None)], (), 1) == []


def test_what_the_kernel_still_holds_stays() -> None:
    entries = [entry(1, "loading", "loaded", "reverting", "failed"), entry(2, "failed", module=None)]
    assert superfluous(entries, {NAME}, 1) == []
    assert ids(superfluous(entries, (), 1)) == ["e1"]


def test_one_that_keeps_an_older_one_out_stays() -> None:
    last = entry(9, "failed", module=None)
    guarded = entry(1, "loading", "guarded")
    same = entry(2, "loading", "undone")
    other = entry(3, "loading", "loaded", "reverting", "reverted", module="other")
    never = entry(4, "loading", "undoing", "undone", module="never")
    assert ids(superfluous([guarded, same, other, never, last], (), 1)) == ["e4"]
    elsewhere = guarded.model_copy(update={"build_id": "ff" * 8, "module": StoredModule(name="x", sha256="", size=1)})
    assert ids(superfluous([elsewhere, same, other, never, last], (), 1)) == ["e2", "e3", "e4"]


STORIES: list[tuple[StepName, ...]] = [
    ("requested", "failed"),
    ("requested", "received"),
    ("loading", "guarded"),
    ("loading", "loaded"),
    ("loading", "loaded", "guarded", "allowed"),
    ("loading", "loaded", "reverting", "reverted"),
    ("loading", "loaded", "replaced"),
    ("loading", "undoing", "undone"),
    ("loading", "loaded", "reverting", "undoing", "undone", "loaded"),
]


@st.composite
def journals(draw: st.DrawFn) -> list[Entry]:
    found: list[Entry] = []
    for number in range(1, draw(st.integers(2, 7)) + 1):
        any_steps = st.lists(st.sampled_from(get_args(StepName)), min_size=1, max_size=4)
        steps = draw(st.one_of(st.sampled_from(STORIES), st.sampled_from(STORIES), any_steps))
        found.append(
            entry(
                number,
                *steps,
                module=draw(st.sampled_from(["a", "b", "c", None])),
                boot_id=draw(st.sampled_from([BOOT_ID, EARLIER, "d" * 36])),
                build_id=draw(st.sampled_from([BUILD_ID, "ff" * 8])),
                survived=draw(st.booleans()),
                replaces=draw(st.sampled_from([(), ("a",), ("b", "c")])),
            )
        )
    return found


def with_step(one: Entry, step: StepName) -> Entry:
    taken = Step(step=step, time=99, uptime=1.0, boot_id=BOOT_ID)
    return one.model_copy(update={"steps": (*one.steps, taken)})


def settled(entries: list[Entry], held: set[str]) -> tuple[list[Entry], set[str]]:
    """The journal as it is when all repairs are made, and what the kernel holds then."""
    for _ in range(10):
        kernel = kernel_with(*sorted(held))
        found = list(repairs(entries, kernel))
        written: dict[str, StepName] = {one.id: "guarded" for one in entries if crash_suspect(one, kernel, 600)}
        written |= {repair.entry.id: repair.step for repair in found}
        if not written:
            break
        held = held - {
            repair.entry.module.name for repair in found if repair.action == "remove" and repair.entry.module
        }
        entries = [
            one.model_copy(
                update={"steps": (*one.steps, Step(step=written[one.id], time=99, uptime=1, boot_id=BOOT_ID))}
            )
            if one.id in written
            else one
            for one in entries
        ]
    return entries, held


@settings(max_examples=600, deadline=None)
@given(journals(), st.sets(st.sampled_from(["a", "b", "c"]), max_size=1), st.integers(1, 2))
def test_without_them_everything_is_decided_as_before(found: list[Entry], holds: set[str], keep: int) -> None:
    entries, held = settled(found, holds)
    kernel = kernel_with(*sorted(held))
    gone = {one.id for one in superfluous(entries, held, keep)}
    left = [one for one in entries if one.id not in gone]
    event(f"{len(gone)} gone")
    assert candidate(left, kernel) == candidate(entries, kernel)
    assert list(repairs(left, kernel)) == list(repairs(entries, kernel)) == []
    for name in held:
        assert latest_entries(left, kernel).get(name) == latest_entries(entries, kernel).get(name)
    told = [
        sorted(disagreements(kernel, latest_entries(some, kernel), replaced_unsaid(some, kernel)))
        for some in (left, entries)
    ]
    assert told[0] == told[1]
    absent = [list(absent_livepatches(kernel, some, 600)) for some in (left, entries)]
    assert absent[0] == absent[1]


# -- on a host


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostMachine:
    return HostMachine(tmp_path, monkeypatch)


def with_a_past(machine: HostMachine) -> HostMachine:
    """One that was reverted, one that is in force."""
    assert machine.load(FIRST).exit_code == 0
    assert machine.run("revert").exit_code == 0
    assert machine.load(SECOND).exit_code == 0
    assert machine.run("revert").exit_code == 0
    assert machine.load(SECOND).exit_code == 0
    return machine


def files(machine: HostMachine, place: str) -> list[str]:
    return sorted(path.name for path in (machine.state / place).rglob("*") if path.is_file())


def test_old_entries_go_with_what_only_they_named(machine: HostMachine) -> None:
    with_a_past(machine)
    assert len(files(machine, "journal")) == 3
    result = machine.run("mark", "alive", **KEPT)
    assert result.exit_code == 0
    assert result.stderr == "journal: 1 old entry is removed\n"
    assert len(files(machine, "journal")) == 2
    assert files(machine, "modules") == [f"{SECOND}.ko"]
    assert len(files(machine, "patches")) == 1
    assert machine.agreed() == [SECOND]
    assert machine.run("mark", "alive", **KEPT).stderr == ""
    assert FIRST not in machine.run("history").stdout
    machine.restart(orderly=True)
    assert machine.run("boot", **KEPT).exit_code == 0
    assert machine.agreed() == [SECOND]


def test_nothing_goes_where_that_is_not_wished_or_an_entry_cannot_be_read(machine: HostMachine) -> None:
    with_a_past(machine)
    before = files(machine, ".")
    assert machine.run("repair", ELIVEPATCH_JOURNAL_ENTRIES="0").exit_code == 0
    assert files(machine, ".") == before
    put(machine.state, {"journal/damaged.json": "{"})
    assert machine.run("repair", **KEPT).exit_code == 7
    assert files(machine, ".") == sorted([*before, "damaged.json"])


def test_what_was_reverted_does_not_come_back_because_its_entry_went(machine: HostMachine) -> None:
    assert machine.load(FIRST).exit_code == 0
    machine.restart()
    machine.run("boot")
    assert machine.steps(FIRST)[-1] == "guarded"
    assert machine.load(SECOND).exit_code == 0
    assert machine.run("revert", SECOND).exit_code == 0
    machine.provide("livepatch_third")
    machine.kernel.stuck = True
    assert machine.load("livepatch_third", "--timeout", "1", ELIVEPATCH_JOURNAL_ENTRIES="1").exit_code == 4
    assert machine.run("allow", FIRST, **KEPT).exit_code == 0
    assert json.loads(machine.run("boot", "--json", **KEPT).stdout)["status"] == "nothing"
    names = [one.module.name for one in machine.journal.entries()[0] if one.module]
    assert names == [FIRST, SECOND, "livepatch_third"]


def test_a_file_that_goes_while_it_is_looked_for_is_no_problem(
    machine: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_a_past(machine)
    listed = Path.iterdir

    def and_gone(path: Path) -> list[Path]:
        found = sorted(listed(path))
        if path.name == "journal":
            found[0].unlink()
        return found

    monkeypatch.setattr(Path, "iterdir", and_gone)
    entries, problems = machine.journal.entries()
    assert (len(entries), problems) == (2, [])


def test_a_client_that_is_killed_while_it_removes_is_made_good_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, at: int | None) -> HostMachine:
        (tmp_path / name).mkdir()
        machine = with_a_past(HostMachine(tmp_path / name, monkeypatch))
        with monkeypatch.context() as patch:
            machine.monkeypatch = patch
            machine.kill_at = at
            machine.count_effects()
            try:
                machine.run("mark", "alive", **KEPT)
            except KilledError:
                assert at is not None
        machine.monkeypatch = monkeypatch
        return machine

    whole = run("whole", None)
    assert whole.effects > 3
    for at in range(1, whole.effects + 1):
        machine = run(str(at), at)
        assert machine.agreed() == [SECOND]
        entries, problems = machine.journal.entries()
        assert problems == []
        for one in entries:
            assert one.module
            assert one.module.path
            assert Path(one.module.path).is_file()
            assert {Input.model_validate(patch).sha256 for patch in one.patches} <= set(files(machine, "patches"))
        machine.run("mark", "alive", **KEPT)
        for place in ("modules", "patches"):
            assert files(machine, place) == files(whole, place), f"killed at {at}"
        assert len(files(machine, "journal")) == 2
