# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from client_fakes import FUNCTIONS, NAME, FakeKernel, elf_module, fake_host, put
from elivepatch.client.host import Host, KernelCalls
from elivepatch.client.loader import Loaded, Loader, LoaderStep
from elivepatch.client.tasks import tasks_behind
from elivepatch.errors import (
    HostError,
    ModuleRejectedError,
    ToolUnavailableError,
    TransitionTimeoutError,
    UnfinishedError,
)
from elivepatch.kernel.module_file import read_module
from elivepatch.kernel.running import livepatch, livepatches


@dataclass
class Bench:
    host: Host
    kernel: FakeKernel
    path: Path
    steps: list[str] = field(default_factory=list[str])
    words: list[str] = field(default_factory=list[str])
    data: bytes = field(default_factory=elf_module)

    def record(self, step: LoaderStep) -> None:
        self.steps.append(step)

    @property
    def loader(self) -> Loader:
        return Loader(self.host, timeout=20, tell=self.words.append, record=self.record)

    def load(
        self,
        functions: frozenset[tuple[str, str]] = frozenset(FUNCTIONS),
        *,
        replaces: frozenset[str] = frozenset(),
        through_kpatch: bool = False,
    ) -> Loaded:
        self.path.write_bytes(self.data)
        digest = hashlib.sha256(self.data).hexdigest()
        return self.loader.load(
            self.path, digest, read_module(self.data), functions, replaces=replaces, through_kpatch=through_kpatch
        )

    @property
    def root(self) -> Path:
        return self.host.root

    def nothing_left(self) -> bool:
        return livepatches(self.root) == () and not (self.root / "sys/module" / NAME).exists()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    host, kernel = fake_host(tmp_path)
    return Bench(host, kernel, tmp_path / f"{NAME}.ko")


def test_a_livepatch_is_loaded_and_its_transition_awaited(bench: Bench) -> None:
    loaded = bench.load()
    assert 0.9 < loaded.transition_seconds < 1.5
    patch = livepatch(NAME, bench.root)
    assert patch is not None
    assert patch.enabled
    assert not patch.transition
    assert bench.steps == ["loading"]
    assert (loaded.taint_before, loaded.taint_after, loaded.new_taint) == (0, 0xB000, 0)


def test_taint_that_a_livepatch_does_not_explain_is_told(bench: Bench) -> None:
    bench.kernel.taint |= 1 << 9
    assert bench.load().new_taint == 1 << 9


def test_a_long_transition_is_talked_about(bench: Bench) -> None:
    bench.kernel.seconds = 12
    bench.load()
    where = "in meminfo_proc_show+0x12/0x34"
    assert bench.words == [f"transition: 2 tasks still to move: 41 (kworker/0:1) {where}, 1234 (cat) {where}"] * 2


def test_a_transition_that_sticks_is_undone_and_its_tasks_named(bench: Bench) -> None:
    bench.kernel.stuck = True
    with pytest.raises(TransitionTimeoutError) as caught:
        bench.load()
    assert "did not finish within 20 s. Held by 2 tasks: " in caught.value.message
    assert caught.value.message.endswith("It was undone.")
    assert "41 (kworker/0:1) in meminfo_proc_show+0x12/0x34" in caught.value.message
    assert "1234 (cat)" in caught.value.message
    assert caught.value.hint
    assert bench.nothing_left()
    assert bench.steps == ["loading", "undoing", "undone"]


def test_an_undo_that_sticks_too_is_said_and_not_called_undone(bench: Bench) -> None:
    bench.kernel.stuck = bench.kernel.stuck_back = True
    with pytest.raises(HostError, match="Undoing it did not succeed") as caught:
        bench.load()
    assert "transition back has not finished" in caught.value.message
    assert "was undone" not in caught.value.message
    assert bench.steps == ["loading", "undoing"]
    assert f"unload {NAME}" not in bench.kernel.log


def test_other_functions_than_the_server_said_are_undone(bench: Bench) -> None:
    with pytest.raises(ModuleRejectedError) as caught:
        bench.load(frozenset({("vmlinux", "meminfo_proc_show"), ("vmlinux", "other")}))
    assert "missing: vmlinux:other; besides: af_packet:packet_seq_show" in caught.value.message
    assert bench.nothing_left()


def test_a_livepatch_that_came_under_another_name_is_not_called_undone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_descriptor: int, _parameters: str) -> None:
        bench.kernel.add("another", moved=True)

    monkeypatch.setattr(bench.kernel, "load", load)
    with pytest.raises(UnfinishedError, match="no livepatches, now there are another \\(enabled\\)"):
        bench.load()
    assert bench.steps == ["loading"]


def test_an_interrupted_load_is_undone(bench: Bench) -> None:
    bench.kernel.interrupt_at = bench.kernel.time + 0.5
    with pytest.raises(KeyboardInterrupt):
        bench.load()
    assert bench.nothing_left()
    assert bench.steps == ["loading", "undoing", "undone"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EPERM, "may not load modules"),
        (errno.EKEYREJECTED, "signature is missing or was rejected"),
        (errno.ENOKEY, "does not trust"),
        (errno.ENOEXEC, "not a module for this kernel"),
        (errno.EEXIST, "already loaded"),
        (errno.EBUSY, "another livepatch loads"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_the_kernels_refusal_is_explained(bench: Bench, number: int, words: str) -> None:
    bench.kernel.refuse = number
    with pytest.raises(HostError, match=words) as caught:
        bench.load()
    assert errno.errorcode[number] in caught.value.message
    assert caught.value.hint
    assert bench.nothing_left()
    assert bench.kernel.log == [f"load {NAME}"]  # what is not ours is not unloaded


def test_a_module_that_is_no_livepatch_to_the_kernel_is_told(bench: Bench) -> None:
    def load(descriptor: int, parameters: str = "") -> None:
        put(bench.root, {f"sys/module/{NAME}/taint": "OE\n"})

    bench.kernel.load = load
    with pytest.raises(HostError, match="does not hold the livepatch"):
        bench.load()
    assert bench.nothing_left()


Change = Callable[[Bench], object]
BEFORE: list[tuple[str, Change, str]] = [
    ("signature", lambda b: put(b.root, {"sys/module/module/parameters/sig_enforce": "Y\n"}), "module.sig_enforce"),
    (
        "lockdown",
        lambda b: put(b.root, {"sys/kernel/security/lockdown": "none [integrity] confidentiality\n"}),
        r"lockdown \(integrity\)",
    ),
    ("disabled", lambda b: put(b.root, {"proc/sys/kernel/modules_disabled": "1\n"}), "modules_disabled"),
    ("moving", lambda b: b.kernel.add("other"), "other is in transition"),
    ("same name", lambda b: b.kernel.add(NAME, moved=True), "already loaded"),
    ("left over", lambda b: put(b.root, {f"sys/module/{NAME}/taint": "K\n"}), "already loaded"),
]


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in BEFORE], ids=[case[0] for case in BEFORE])
def test_what_forbids_a_load_is_seen_before_it(bench: Bench, change: Change, words: str) -> None:
    change(bench)
    with pytest.raises(HostError, match=words) as caught:
        bench.load()
    assert caught.value.hint
    assert bench.kernel.log == []
    assert bench.steps == []


def test_a_signed_module_is_left_to_the_kernel_to_judge(bench: Bench) -> None:
    put(bench.root, {"sys/module/module/parameters/sig_enforce": "Y\n"})
    bench.data += b"~Module signature appended~\n"
    assert bench.load().name == NAME


def test_a_file_changed_after_the_check_is_not_loaded(bench: Bench) -> None:
    bench.path.write_bytes(elf_module() + b"more")
    with pytest.raises(ModuleRejectedError, match="not the module that was checked"):
        bench.loader.load(
            bench.path, hashlib.sha256(elf_module()).hexdigest(), read_module(elf_module()), frozenset(FUNCTIONS)
        )
    assert bench.kernel.log == []


def test_a_link_in_place_of_the_module_is_not_followed(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(elf_module())
    bench.path.symlink_to(tmp_path / "real")
    with pytest.raises(HostError, match="cannot be read"):
        bench.loader.load(
            bench.path, hashlib.sha256(elf_module()).hexdigest(), read_module(elf_module()), frozenset(FUNCTIONS)
        )


def test_other_livepatches_stay_as_they_were(bench: Bench) -> None:
    bench.kernel.add("other", moved=True)
    bench.kernel.stuck = True
    with pytest.raises(TransitionTimeoutError):
        bench.load()
    assert [patch.name for patch in livepatches(bench.root)] == ["other"]


# -- what is replaced


REPLACES = frozenset({"other"})


def test_what_is_replaced_is_gone_when_the_load_ends(bench: Bench) -> None:
    bench.kernel.add("other", moved=True)
    bench.load(replaces=REPLACES)
    assert [patch.name for patch in livepatches(bench.root)] == [NAME]
    assert bench.steps == ["loading"]
    assert (bench.root / "sys/module/other").exists()
    assert bench.loader.unload_replaced("other") is None
    assert not (bench.root / "sys/module/other").exists()


def test_functions_that_are_led_back_to_the_original_are_expected_until_the_transition_ends(bench: Bench) -> None:
    bench.kernel.functions = (("vmlinux", "a"), ("xfs", "b"))
    bench.kernel.add("other", moved=True)
    bench.kernel.functions = FUNCTIONS
    assert bench.load(replaces=REPLACES).name == NAME


def test_other_functions_are_seen_while_the_earlier_one_is_in_force(bench: Bench) -> None:
    bench.kernel.add("other", moved=True)
    with pytest.raises(ModuleRejectedError, match="does not patch what"):
        bench.load(frozenset({("vmlinux", "x")}), replaces=REPLACES)
    assert [(patch.name, patch.enabled) for patch in livepatches(bench.root)] == [("other", True)]
    assert bench.steps == ["loading", "undoing", "undone"]


def test_one_that_does_not_replace_is_undone(bench: Bench) -> None:
    bench.kernel.replace = False
    bench.kernel.add("other", moved=True)
    with pytest.raises(ModuleRejectedError, match="does not replace other"):
        bench.load(replaces=REPLACES)
    assert [patch.name for patch in livepatches(bench.root)] == ["other"]
    assert bench.steps == ["loading", "undoing", "undone"]


def test_a_kernel_that_lets_go_late_is_waited_for_and_then_told(bench: Bench) -> None:
    bench.kernel.add("other", moved=True)
    bench.kernel.lingers = 10
    bench.load(replaces=REPLACES)
    assert [patch.name for patch in livepatches(bench.root)] == [NAME]
    assert bench.words == []
    bench.loader.revert(NAME)
    bench.kernel.busy = 0
    bench.kernel.unload("other")
    bench.kernel.add("other", moved=True)
    bench.kernel.lingers = 1000
    bench.load(replaces=REPLACES)
    assert bench.words == ["the kernel has not let go of other yet, and will"]
    note = bench.loader.unload_replaced("other")
    assert note is not None
    assert "its module stays" in note
    assert "rmmod other" in note


def test_the_module_of_a_replaced_one_that_is_gone_already_is_no_trouble(bench: Bench) -> None:
    assert bench.loader.unload_replaced("other") is None


def test_a_transition_that_sticks_says_what_stays_in_force(bench: Bench) -> None:
    bench.kernel.add("other", moved=True)
    bench.kernel.stuck = True
    with pytest.raises(TransitionTimeoutError, match=r"It was undone; other stays in force\.$"):
        bench.load(replaces=REPLACES)


def test_a_livepatch_that_the_load_displaced_is_not_called_undone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.kernel.add("other", moved=True)

    def lost(_self: Loader, name: str, _replaces: object) -> None:
        raise HostError(f"{name} is not as it should be.")

    monkeypatch.setattr(Loader, "await_replaced", lost)
    bench.kernel.lingers = 0
    with pytest.raises(HostError, match=r"there were other \(enabled\), now there are no livepatches") as caught:
        bench.load(replaces=REPLACES)
    assert "does not come back" in (caught.value.hint or "")
    assert bench.steps == ["loading", "undoing"]


# -- revert


def test_a_livepatch_is_reverted_and_unloaded(bench: Bench) -> None:
    bench.load()
    bench.steps.clear()
    assert bench.loader.revert(NAME) > 0.9
    assert bench.nothing_left()
    assert bench.steps == ["reverting"]
    assert bench.kernel.log.count(f"unload {NAME}") == 2  # the first was answered with EAGAIN


def test_a_revert_that_sticks_leaves_the_livepatch_in_force(bench: Bench) -> None:
    bench.load()
    bench.kernel.stuck_back = True
    bench.steps.clear()
    with pytest.raises(TransitionTimeoutError, match="transition back") as caught:
        bench.loader.revert(NAME)
    assert "1234 (cat)" in caught.value.message
    patch = livepatch(NAME, bench.root)
    assert patch is not None
    assert patch.enabled
    assert not patch.transition
    assert bench.steps == ["reverting", "undoing", "undone"]


def test_a_load_that_was_left_in_transition_is_not_resumed_by_a_failed_revert(bench: Bench) -> None:
    bench.kernel.stuck = bench.kernel.stuck_back = True
    bench.kernel.add(NAME)  # the client that loaded it was killed
    with pytest.raises(TransitionTimeoutError, match="goes on by itself"):
        bench.loader.revert(NAME)
    assert bench.kernel.log == [f"disable {NAME}"]
    assert bench.steps == ["reverting"]
    bench.kernel.stuck_back = False
    bench.loader.revert(NAME)
    assert bench.nothing_left()


def test_reverting_what_is_not_there_names_what_is(bench: Bench) -> None:
    bench.kernel.add("other", moved=True)
    with pytest.raises(HostError, match=f"no livepatch {NAME}") as caught:
        bench.loader.revert(NAME)
    assert caught.value.hint == "Loaded: other."


def test_the_module_of_a_disabled_livepatch_can_be_reverted(bench: Bench) -> None:
    put(bench.root, {f"sys/module/{NAME}/taint": "OEK\n"})
    bench.loader.revert(NAME)
    assert bench.nothing_left()


def test_a_module_that_stays_is_said_to_be_harmless(bench: Bench) -> None:
    bench.load()
    bench.kernel.busy = 10_000
    with pytest.raises(HostError, match="disabled, but its module stays") as caught:
        bench.loader.revert(NAME)
    assert "rmmod" in (caught.value.hint or "")


# -- kpatch, tasks, system calls


def test_kpatch_is_used_only_where_it_is_installed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("elivepatch.process.PATH", str(tmp_path))
    with pytest.raises(ToolUnavailableError, match="kpatch"):
        bench.load(through_kpatch=True)
    assert bench.nothing_left()


def test_kpatch_loads_and_the_rest_is_the_same(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = f"{bench.root}/sys/kernel/livepatch/{NAME}"
    program = tmp_path / "kpatch"
    program.write_text(
        "#!/bin/sh\n"
        + "".join(f"mkdir -p {place}/{klp_object}/{function},1\n" for klp_object, function in FUNCTIONS)
        + f"echo 1 >{place}/enabled; echo 0 >{place}/transition; mkdir -p {bench.root}/sys/module/{NAME}\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr("elivepatch.process.PATH", f"{tmp_path}:{os.defpath}")
    assert bench.load(through_kpatch=True).name == NAME
    assert bench.kernel.log == []
    assert bench.steps == ["loading"]


def test_kpatch_that_fails_is_shown(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "kpatch"
    program.write_text('#!/bin/sh\necho "patch is stalled: $1 $2" >&2\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setattr("elivepatch.process.PATH", f"{tmp_path}:{os.defpath}")
    with pytest.raises(HostError, match=r"patch is stalled: load .*livepatch_meminfo\.ko"):
        bench.load(through_kpatch=True)
    assert bench.steps == ["loading", "undone"]


def test_tasks_are_those_on_the_other_side(tmp_path: Path) -> None:
    for pid, state in ((1, "1"), (2, "0"), (30, "-1")):
        put(tmp_path, {f"proc/{pid}/task/{pid}/patch_state": state, f"proc/{pid}/task/{pid}/comm": f"t{pid}\n"})
    assert [task.name for task in tasks_behind(tmp_path, patching=True)] == ["t2"]
    assert [task.name for task in tasks_behind(tmp_path, patching=False)] == ["t1"]
    assert tasks_behind(tmp_path, patching=True)[0].stack == ()


@pytest.mark.parametrize(
    ("functions", "module", "at"),
    [
        ({"busy_work"}, None, "busy_work+0x3c/0x60 [busy]"),
        ({"other"}, None, "msleep+0x2b/0x40"),
        (set[str](), "busy", "busy_work+0x3c/0x60 [busy]"),
    ],
)
def test_a_task_is_shown_in_what_holds_it(tmp_path: Path, functions: set[str], module: str | None, at: str) -> None:
    stack = "[<0>] msleep+0x2b/0x40\n[<0>] busy_work+0x3c/0x60 [busy]\n[<0>] kthread+0xd2/0x100\n"
    task = "proc/7/task/7"
    put(tmp_path, {f"{task}/patch_state": "0", f"{task}/comm": "kworker\n", f"{task}/stack": stack})
    (found,) = tasks_behind(tmp_path, patching=True, functions=frozenset(functions), module=module)
    assert str(found) == f"7 (kworker) in {at}"


def test_the_real_system_calls_give_the_kernels_errno(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"no module")
    descriptor = os.open(tmp_path / "empty", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match=r".") as caught:
            KernelCalls().load(descriptor)
    finally:
        os.close(descriptor)
    assert caught.value.errno in {errno.EPERM, errno.ENOEXEC, errno.ENOSYS}
    with pytest.raises(OSError, match=r".") as caught:
        KernelCalls().unload("no_such_module_here")
    assert caught.value.errno in {errno.EPERM, errno.ENOENT, errno.ENOSYS}
