# SPDX-License-Identifier: GPL-2.0-or-later
"""Livepatches in turn on one host: what is sent, what is replaced, what the journal says, and what may go wrong."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from client_fakes import BOOT_ID, NAME, RELEASE, elf_module, fake_host, put
from client_rig import PATCH, Rig
from client_server import KEY, Server, done_report, serving
from elivepatch.client.host import Host
from elivepatch.kernel.running import livepatches

pytestmark = pytest.mark.integration

SECOND = "livepatch_second"
OTHER_FUNCTIONS = (("vmlinux", "uptime_proc_show"),)


@pytest.fixture
def rig(tmp_path: Path) -> Generator[Rig]:
    host, kernel = fake_host(tmp_path, user=0)
    put(tmp_path, {"b.patch": PATCH.replace("+b", "+c"), "c.patch": PATCH.replace("+b", "+d")})
    with serving(Server()) as server:
        yield Rig(server, host, kernel, tmp_path)


def serve(rig: Rig, name: str, release: str = RELEASE, **changes: Any) -> None:
    """Have the server give a module of this name from now on."""
    module = elf_module({"name": name, "livepatch": "Y", "vermagic": f"{release} SMP preempt mod_unload modversions "})
    rig.server.module = module
    said = {"name": name, "sha256": hashlib.sha256(module).hexdigest(), "size": len(module)}
    rig.server.report = {**done_report(module, **changes), "module": said}


@pytest.fixture
def first(rig: Rig) -> Rig:
    """A host on which meminfo.patch is in force; the server gives another module next."""
    assert rig.run().exit_code == 0
    serve(rig, SECOND)
    return rig


def run(rig: Rig, *arguments: str | Path) -> Any:
    """Ask for b.patch, or for what the arguments name."""
    words = arguments if "-p" in arguments else ("-p", rig.tmp / "b.patch", *arguments)
    return rig.run("-u", rig.server.url, *words, patch=False)


def posts(rig: Rig) -> int:
    return len(rig.server.paths("POST"))


def sent(rig: Rig) -> list[tuple[str | None, bytes]]:
    """The patches of the last request."""
    seen = [seen for seen in rig.server.seen if seen.method == "POST"][-1]
    return [(file, data) for name, file, data in seen.parts() if name == "patch"]


def in_force(rig: Rig) -> list[str]:
    return [patch.name for patch in livepatches(rig.host.root) if patch.enabled]


def modules(rig: Rig) -> set[str]:
    return {path.name for path in (rig.host.root / "sys/module").iterdir()} - {"module"}


def entry_of(rig: Rig, module: str) -> dict[str, Any]:
    return next(e for e in reversed(rig.journal()) if e.get("module", {}).get("name") == module and len(e["steps"]) > 1)


def steps_of(rig: Rig, module: str) -> list[str]:
    return [step["step"] for step in entry_of(rig, module)["steps"]]


def status(rig: Rig) -> dict[str, Any]:
    return json.loads(rig.run("status", "--json", patch=False).stdout)


# -- one after the other


def test_the_second_contains_the_first_and_replaces_it(first: Rig) -> None:
    result = run(first)
    assert result.exit_code == 0, result.output
    assert sent(first) == [
        ("meminfo.patch", PATCH.encode()),
        ("b.patch", (first.tmp / "b.patch").read_bytes()),
    ]
    told = result.stderr.splitlines()
    assert told.index(f"contains the earlier livepatch {NAME}: meminfo.patch") < told.index(
        f"asking {first.server.url}"
    )
    assert f"{NAME} is replaced and unloaded" in told
    assert f"; it replaced {NAME} and contains meminfo.patch, b.patch" in result.stdout
    assert in_force(first) == [SECOND]
    assert modules(first) == {SECOND}
    assert first.kernel.log[:2] == [f"load {NAME}", f"load {SECOND}"]
    assert set(first.kernel.log[2:]) == {f"unload {NAME}"}


def test_the_journal_and_the_status_tell_what_was_replaced(first: Rig) -> None:
    run(first)
    assert steps_of(first, NAME) == ["requested", "received", "loading", "loaded", "replaced"]
    assert entry_of(first, NAME)["replaced_by"] == SECOND
    entry = entry_of(first, SECOND)
    assert [step["step"] for step in entry["steps"]] == ["requested", "received", "loading", "loaded"]
    assert entry["replaces"] == [NAME]
    assert [(patch["name"], patch.get("livepatch")) for patch in entry["patches"]] == [
        ("meminfo.patch", NAME),
        ("b.patch", None),
    ]
    (shown,) = status(first)["livepatches"]
    assert (shown["patches"], shown["replaced"]) == (["meminfo.patch", "b.patch"], [NAME])
    assert status(first)["disagreements"] == []
    text = first.run("status", patch=False).stdout
    assert "  from meminfo.patch, b.patch" in text
    assert f"  replaced {NAME}" in text


def test_the_third_contains_all_and_knows_where_each_came_from(first: Rig) -> None:
    run(first)
    serve(first, "livepatch_third")
    outcome = json.loads(run(first, "-p", first.tmp / "c.patch", "--json").stdout)
    assert [name for name, _ in sent(first)] == ["meminfo.patch", "b.patch", "c.patch"]
    assert [patch.get("livepatch") for patch in outcome["patches"]] == [NAME, SECOND, None]
    assert outcome["replaced"] == [SECOND]
    assert outcome.get("dropped", []) == []
    assert in_force(first) == ["livepatch_third"]


def test_what_is_in_force_is_not_sent_twice(first: Rig) -> None:
    (first.tmp / "other-name.patch").write_text(PATCH)
    result = run(first, "-p", first.tmp / "other-name.patch", "-p", first.tmp / "b.patch")
    assert result.exit_code == 0
    assert "already contained: other-name.patch" in result.stderr
    assert [name for name, _ in sent(first)] == ["meminfo.patch", "b.patch"]


def test_nothing_new_asks_no_server(first: Rig) -> None:
    run(first)
    asked = posts(first)
    (first.tmp / "state/patches" / hashlib.sha256(PATCH.encode()).hexdigest()).unlink()  # not needed for that
    outcome = json.loads(run(first, "-p", first.tmp / "b.patch", "-p", first.tmp / "meminfo.patch", "--json").stdout)
    assert outcome["status"] == "present"
    assert outcome["module"]["name"] == SECOND
    assert [patch["name"] for patch in outcome["patches"]] == ["meminfo.patch", "b.patch"]
    assert outcome["patches"][0]["sha256"] == hashlib.sha256(PATCH.encode()).hexdigest()
    assert posts(first) == asked
    assert len(first.journal()) == 2


def test_what_is_present_can_be_written_to_a_file(first: Rig) -> None:
    out = first.tmp / "out.ko"
    stored = first.module.read_bytes()
    assert first.run("-o", out).exit_code == 0
    assert out.read_bytes() == stored
    first.module.write_bytes(b"damaged")
    result = first.run("-o", out)
    assert result.exit_code == 4
    assert "missing or damaged" in result.stderr
    assert out.read_bytes() == stored


def test_without_a_load_the_module_contains_them_too(first: Rig) -> None:
    result = run(first, "--no-load", "-o", first.tmp / "out.ko")
    assert result.exit_code == 0, result.output
    assert [name for name, _ in sent(first)] == ["meminfo.patch", "b.patch"]
    assert in_force(first) == [NAME]


def test_another_kernel_has_nothing_to_do_with_what_is_in_force(first: Rig) -> None:
    other = "6.12.118+deb13-cloud-amd64"
    serve(first, SECOND, other, kernel={"release": other})
    assert run(first, "-a", other).exit_code == 0
    assert [name for name, _ in sent(first)] == ["b.patch"]


def test_after_a_reboot_there_is_nothing_to_contain(first: Rig) -> None:
    put(first.host.root, {"proc/sys/kernel/random/boot_id": "99999999-2222-3333-4444-555555555555\n"})
    first.kernel.vanish(NAME)
    assert run(first).exit_code == 0
    assert [name for name, _ in sent(first)] == ["b.patch"]


def test_the_revert_brings_back_the_original_and_says_so(first: Rig) -> None:
    run(first)
    result = first.run("revert", SECOND, patch=False)
    assert result.exit_code == 0
    assert "the original code is in force, without meminfo.patch, b.patch" in result.stdout
    assert f"what it had replaced ({NAME}) stays gone" in result.stdout
    assert in_force(first) == []
    assert status(first)["disagreements"] == []
    serve(first, "livepatch_third")
    assert run(first).exit_code == 0
    assert [name for name, _ in sent(first)] == ["b.patch"]


# -- what is deliberately left out


def test_the_earlier_one_is_dropped_only_when_that_is_said(first: Rig) -> None:
    outcome = json.loads(run(first, "--drop-earlier", "--json").stdout)
    assert [name for name, _ in sent(first)] == ["b.patch"]
    assert outcome["replaced"] == [NAME]
    functions = ["af_packet: packet_seq_show", "vmlinux: meminfo_proc_show"]
    assert outcome["dropped"] == [{"name": NAME, "patches": ["meminfo.patch"], "functions": functions}]
    assert f"the earlier livepatch {NAME} is dropped: the effects of meminfo.patch end" in outcome["warnings"][0]
    assert steps_of(first, NAME)[-1] == "replaced"
    assert in_force(first) == [SECOND]


def test_what_is_named_again_is_not_dropped(first: Rig) -> None:
    run(first)
    serve(first, "livepatch_third")
    result = run(first, "--drop-earlier")
    assert f"{SECOND} is gone with meminfo.patch" in result.stdout
    assert "b.patch" not in result.stdout.partition("gone with")[2]


def test_a_foreign_livepatch_can_be_dropped(first: Rig) -> None:
    first.kernel.add("foreign", moved=True)
    outcome = json.loads(run(first, "--drop-earlier", "--json").stdout)
    assert {lost["name"]: lost["patches"] for lost in outcome["dropped"]} == {"foreign": [], NAME: ["meminfo.patch"]}
    assert sorted(outcome["replaced"]) == ["foreign", NAME]
    assert in_force(first) == [SECOND]


# -- what is refused before anything is sent


def _forget(rig: Rig) -> None:
    (rig.state / "journal" / f"{entry_of(rig, NAME)['id']}.json").unlink()


def _rewrite(**changes: Any) -> Callable[[Rig], None]:
    def change(rig: Rig) -> None:
        entry = entry_of(rig, NAME)
        (rig.state / "journal" / f"{entry['id']}.json").write_text(json.dumps({**entry, **changes}))

    return change


def _stored(rig: Rig) -> Path:
    return rig.state / "patches" / hashlib.sha256(PATCH.encode()).hexdigest()


def _step(name: str, boot_id: str = BOOT_ID) -> dict[str, Any]:
    return {"step": name, "time": 5.0, "boot_id": boot_id}


REFUSED: list[tuple[str, Callable[[Rig], object], str]] = [
    ("foreign", lambda rig: rig.kernel.add("foreign", moved=True), "foreign is in force and was not loaded by"),
    ("forgotten", _forget, f"{NAME} is in force and was not loaded by elivepatch."),
    ("patch missing", lambda rig: _stored(rig).unlink(), "its patch meminfo.patch .* is missing"),
    ("patch damaged", lambda rig: _stored(rig).write_bytes(b"x"), "its patch meminfo.patch .* is damaged"),
    ("other build", _rewrite(build_id="cd" * 20), "is in the journal for another kernel"),
    (
        "other boot",
        _rewrite(steps=[_step("loading"), _step("loaded", "9" * 36)], survived=True),
        "not loaded by elivepatch in this",
    ),
    ("crashed with", _rewrite(steps=[_step("loading"), _step("loaded", "9" * 36)]), "journal ends with 'guarded'"),
    ("reverted", _rewrite(steps=[_step("loading"), _step("reverted")]), "the journal ends with 'reverted'"),
    ("moving", lambda rig: rig.kernel.add("moving"), "moving is in transition"),
    ("writable", lambda rig: rig.state.chmod(0o777), "can be written to by others"),
]


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_would_be_lost_is_refused_before_anything_is_sent(
    first: Rig, change: Callable[[Rig], object], words: str
) -> None:
    change(first)
    asked, before = posts(first), in_force(first)
    result = run(first, "--json")
    assert result.exit_code in {2, 4}, result.output
    error = json.loads(result.stdout)["error"]
    assert re.search(words, error["message"]), error
    assert error["hint"]
    assert posts(first) == asked
    assert in_force(first) == before


def test_a_missing_patch_can_be_named_again(first: Rig) -> None:
    _stored(first).unlink()
    result = run(first, "-p", first.tmp / "meminfo.patch", "-p", first.tmp / "b.patch")
    assert result.exit_code == 0, result.output
    assert [name for name, _ in sent(first)] == ["meminfo.patch", "b.patch"]
    assert _stored(first).read_text() == PATCH


def test_an_interrupted_load_that_is_in_force_is_contained(first: Rig) -> None:
    _rewrite(steps=[_step("loading")])(first)
    assert run(first).exit_code == 0
    assert [name for name, _ in sent(first)] == ["meminfo.patch", "b.patch"]
    assert steps_of(first, NAME) == ["loading", "loaded", "replaced"]


def test_an_interrupted_load_of_other_functions_is_undone_and_not_contained(first: Rig) -> None:
    _rewrite(steps=[_step("loading")], changed=[])(first)
    assert run(first).exit_code == 0
    assert [name for name, _ in sent(first)] == ["b.patch"]
    assert steps_of(first, NAME) == ["loading", "undone"]
    assert in_force(first) == [SECOND]


def test_who_may_not_read_the_journal_is_told_so(first: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_self: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr("elivepatch.client.plan.Journal.entries", forbidden)
    first.host = Host(root=first.host.root, calls=first.kernel, clock=first.kernel, user=0)
    result = run(first, "--no-load", "-o", first.tmp / "out.ko")
    assert result.exit_code == 4
    assert "may not be read" in result.stderr
    assert run(first, "--no-load", "-o", first.tmp / "out.ko", "--drop-earlier").exit_code == 0


# -- what goes wrong on the way


def test_a_refusal_of_the_server_leaves_the_first_as_it_is(first: Rig) -> None:
    first.server.status = "refused"
    first.server.report = {"status": "refused", "key": KEY, "exit_status": 3, "message": "No."}
    before = entry_of(first, NAME)
    assert run(first).exit_code == 3
    assert in_force(first) == [NAME]
    assert entry_of(first, NAME) == before
    assert first.steps() == ["requested", "failed"]
    assert status(first)["disagreements"] == []


def test_a_transition_that_sticks_leaves_the_first_in_force(first: Rig) -> None:
    first.kernel.stuck = True
    result = run(first, "--timeout", "3")
    assert result.exit_code == 4
    assert f"It was undone; {NAME} stays in force." in result.stderr
    assert in_force(first) == [NAME]
    assert modules(first) == {NAME}
    assert steps_of(first, NAME)[-1] == "loaded"
    steps = entry_of(first, SECOND)["steps"]
    assert [step["step"] for step in steps][-3:] == ["undoing", "undone", "failed"]
    assert f"{NAME} stays in force" in steps[-1]["detail"]
    assert status(first)["disagreements"] == []
    first.kernel.stuck = False
    assert run(first).exit_code == 0
    assert in_force(first) == [SECOND]


def test_a_load_that_the_kernel_refuses_leaves_the_first_in_force(first: Rig) -> None:
    first.kernel.refuse = errno.ENOEXEC
    assert run(first).exit_code == 4
    assert in_force(first) == [NAME]
    assert steps_of(first, NAME)[-1] == "loaded"


def test_ctrl_c_in_the_transition_leaves_the_first_in_force(first: Rig) -> None:
    first.kernel.seconds = 60
    first.kernel.interrupt_at = first.kernel.time + 5
    assert run(first).exit_code == 130
    assert in_force(first) == [NAME]
    assert steps_of(first, SECOND)[-3:] == ["undoing", "undone", "failed"]
    assert status(first)["disagreements"] == []


def test_ctrl_c_after_the_transition_leaves_the_second_in_force(first: Rig) -> None:
    first.kernel.lingers = 5
    first.kernel.interrupt_at = first.kernel.time + 2
    result = run(first)
    assert result.exit_code == 0
    assert f"{SECOND} is in force already; it stays" in result.stderr
    assert in_force(first) == [SECOND]
    assert steps_of(first, NAME)[-1] == "replaced"


def test_wrong_functions_are_seen_before_the_first_is_lost(first: Rig) -> None:
    serve(first, SECOND, changed=[{"object": "vmlinux", "function": "x", "kind": "changed"}])
    result = run(first)
    assert result.exit_code == 4
    assert "does not patch what the server said" in result.stderr
    assert in_force(first) == [NAME]
    assert steps_of(first, NAME)[-1] == "loaded"


def test_what_leads_back_to_the_original_is_not_taken_for_a_wrong_function(first: Rig) -> None:
    first.kernel.functions = OTHER_FUNCTIONS
    serve(first, SECOND, changed=[{"object": o, "function": f, "kind": "changed"} for o, f in OTHER_FUNCTIONS])
    result = run(first, "--drop-earlier")
    assert result.exit_code == 0, result.output


def test_a_livepatch_that_does_not_replace_is_undone(first: Rig) -> None:
    first.kernel.replace = False
    result = run(first)
    assert result.exit_code == 4
    assert f"{SECOND} does not replace {NAME}: both are in force." in result.stderr
    assert in_force(first) == [NAME]
    assert modules(first) == {NAME}


def test_a_module_that_stays_is_a_note(first: Rig) -> None:
    first.kernel.busy = 10_000
    result = run(first)
    assert result.exit_code == 0
    assert f"note: {NAME} is disabled, but its module stays" in result.stderr
    assert f"rmmod {NAME}" in result.stderr
    assert steps_of(first, NAME)[-1] == "replaced"
    first.kernel.busy = 0
    assert first.run("revert", NAME, patch=False).exit_code == 0  # takes the module away, and nothing else
    assert modules(first) == {SECOND}
    assert in_force(first) == [SECOND]


def test_a_module_that_stayed_is_not_in_the_way_when_it_is_wanted_again(first: Rig) -> None:
    first.kernel.busy = 10_000
    assert run(first).exit_code == 0
    assert modules(first) == {NAME, SECOND}
    first.kernel.busy = 0
    serve(first, NAME)
    result = first.run("--drop-earlier")
    assert result.exit_code == 0, result.output
    assert in_force(first) == [NAME]
    assert modules(first) == {NAME}
    assert status(first)["disagreements"] == []


@pytest.mark.parametrize("change", ["reverted", "loaded"])
def test_what_changed_while_the_server_built_is_not_undone_by_the_load(first: Rig, change: str) -> None:
    original = first.server.build

    def build() -> dict[str, Any]:
        if change == "reverted":
            first.kernel.vanish(NAME)
        elif "foreign" not in first.kernel.targets:
            first.kernel.add("foreign", moved=True)
        return original()

    first.server.build = build
    before = set(first.kernel.log)
    result = run(first)
    assert result.exit_code == 4
    assert "were loaded or reverted while this one was built" in result.stderr
    assert set(first.kernel.log) == before


def test_what_was_to_be_dropped_may_go_while_the_server_builds(first: Rig) -> None:
    original = first.server.build

    def build() -> dict[str, Any]:
        if NAME in first.kernel.targets:
            assert first.run("revert", NAME, patch=False).exit_code == 0
        return original()

    first.server.build = build
    outcome = json.loads(run(first, "--drop-earlier", "--json").stdout)
    assert outcome["status"] == "loaded"
    assert outcome["replaced"] == []
    assert steps_of(first, NAME)[-1] == "reverted"


# -- crashes


def test_a_crash_before_the_journal_said_replaced_is_understood(first: Rig) -> None:
    run(first)
    old = entry_of(first, NAME)
    path = first.state / "journal" / f"{old['id']}.json"
    path.write_text(json.dumps({**old, "steps": old["steps"][:-1]}))
    assert status(first)["disagreements"] == []
    serve(first, "livepatch_third")
    assert run(first, "-p", first.tmp / "c.patch").exit_code == 0
    assert [name for name, _ in sent(first)] == ["meminfo.patch", "b.patch", "c.patch"]


def test_a_crash_in_the_transition_is_understood(first: Rig) -> None:
    run(first)
    for name, steps in ((NAME, 4), (SECOND, 3)):
        entry = entry_of(first, name)
        text = json.dumps({**entry, "steps": entry["steps"][:steps]})
        (first.state / "journal" / f"{entry['id']}.json").write_text(text)
    (disagreement,) = status(first)["disagreements"]
    assert f"{SECOND} was interrupted while loading" in disagreement
    serve(first, "livepatch_third")
    assert run(first, "-p", first.tmp / "c.patch").exit_code == 0
    assert [name for name, _ in sent(first)] == ["meminfo.patch", "b.patch", "c.patch"]
