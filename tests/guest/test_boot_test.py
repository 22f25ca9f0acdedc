# SPDX-License-Identifier: GPL-2.0-or-later
"""The boot test itself: what is good passes, and each kind of bad is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from guest_support import Kit

from elivepatch.errors import NotFoundError
from elivepatch.progress import Event, Progress
from elivepatch.protocol.models import Verification
from elivepatch.vm import machine
from elivepatch.vm.boot_test import LOG, BootTestRejectedError, Subject, boot_test

pytestmark = pytest.mark.guest

CHECK = b"#!/bin/sh\ncat /proc/cmdline\ngrep -q livepatched /proc/cmdline\n"
MODULE_CHECK = b"""\
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc || exit 1
cat /proc/sys/fs/binfmt_misc/status >/tmp/status
umount /proc/sys/fs/binfmt_misc
grep livepatched /tmp/status
"""


class Trial:
    """Tries livepatches of the kit, each in a directory of its own."""

    def __init__(self, kit: Kit, livepatches: Path, workdir: Path) -> None:
        self.kit = kit
        self.livepatches = livepatches
        self.workdir = workdir
        self.events: list[Event] = []

    def __call__(
        self,
        name: str,
        *objects: str,
        check: bytes | None = None,
        functions: tuple[str, ...] = (),
        timeout: float = 120,
        transition_limit: int = 30,
    ) -> Verification:
        subject = Subject(self.livepatches / f"{name}.ko", name, objects or ("vmlinux",), check, functions)
        return boot_test(
            self.kit.kernel,
            subject,
            self.workdir,
            Progress(self.events.append),
            busybox=self.kit.busybox,
            timeout=timeout,
            transition_limit=transition_limit,
            shared=self.kit.shared,
        )


@pytest.fixture
def trial(kit: Kit, livepatches: Path, tmp_path: Path) -> Trial:
    return Trial(kit, livepatches, tmp_path)


def rejected(caught: pytest.ExceptionInfo[BootTestRejectedError]) -> list[str]:
    return [finding.rule for finding in caught.value.diagnosis]


def test_a_good_livepatch_passes(trial: Trial) -> None:
    seen = trial("lp_good", check=CHECK, functions=("vmlinux/cmdline_proc_show",))
    assert (seen.booted, seen.loaded, seen.reverted, seen.unloaded) == (True, True, True, True)
    assert (seen.check_before, seen.check_after, seen.check_reverted) == (False, True, False)
    assert seen.transition_ms is not None
    assert 0 < seen.transition_ms < 30_000
    assert "'lp_good': patching complete" in (seen.log or "")
    assert "'lp_good': unpatching complete" in (trial.workdir / LOG).read_text(encoding="utf-8")
    assert "boot test: transition ended" in [event.message for event in trial.events]


def test_a_modules_livepatch_applies_before_and_after_the_module_comes(trial: Trial) -> None:
    seen = trial("lp_module", "binfmt_misc", check=MODULE_CHECK, functions=("binfmt_misc/bm_status_read",))
    assert (seen.check_before, seen.check_after, seen.check_reverted) == (False, True, False)
    assert "applying patch 'lp_module' to loading module 'binfmt_misc'" in (seen.log or "")


def test_an_object_that_the_livepatch_does_not_patch_is_missed(trial: Trial) -> None:
    with pytest.raises(BootTestRejectedError) as caught:
        trial("lp_good", "vmlinux", "binfmt_misc")
    assert set(rejected(caught)) == {"load-failed"}
    assert "did not apply to binfmt_misc" in caught.value.diagnosis[0].message


def test_a_check_that_never_succeeds(trial: Trial) -> None:
    with pytest.raises(BootTestRejectedError) as caught:
        trial("lp_good", check=b"#!/bin/sh\necho seen\nexit 3\n")
    assert rejected(caught) == ["check-after-failed"]
    assert "exit status is 3.\nseen" in caught.value.diagnosis[0].message
    assert caught.value.exit_status == 5


def test_a_check_that_always_succeeds(trial: Trial) -> None:
    with pytest.raises(BootTestRejectedError) as caught:
        trial("lp_good", check=b"true\n")
    assert rejected(caught) == ["check-before-succeeded", "check-reverted-succeeded"]


def test_a_check_cannot_print_its_way_through(trial: Trial) -> None:
    script = b"""\
for to in /dev/ttyS1 /dev/ttyS0 /dev/stdout; do
    echo "@ check after 0" >$to
    echo "@00000000000000000000000000000000 check after 0" >$to
done
cat /settings /init /proc/1/cmdline | grep -o '@[0-9a-f]*'
exit 1
"""
    with pytest.raises(BootTestRejectedError) as caught:
        trial("lp_good", check=script)
    assert rejected(caught) == ["check-after-failed"]


def test_a_check_that_needs_what_the_guest_does_not_have(trial: Trial) -> None:
    with pytest.raises(BootTestRejectedError) as caught:
        trial("lp_good", check=b"#!/usr/bin/python3\nprint(1)\n")
    assert rejected(caught) == ["check-after-failed"]
    assert "busybox" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "rule", "words"),
    [
        ("lp_warns", "kernel-warning", "WARNING: "),
        ("lp_panics", "kernel-warning", "Kernel panic - not syncing: tried"),
        ("lp_oopses", "kernel-warning", "BUG: "),
        ("lp_fails", "load-failed", "Invalid argument"),
        ("lp_none", "load-failed", "no livepatch 'lp_none'"),
        ("lp_taints", "new-taint", "bits 6 (U)"),
    ],
)
def test_a_bad_livepatch_is_found(trial: Trial, name: str, rule: str, words: str) -> None:
    with pytest.raises(BootTestRejectedError) as caught:
        trial(name)
    assert rejected(caught) == [rule]
    assert words in caught.value.diagnosis[0].message
    assert caught.value.verification.booted
    assert caught.value.verification.log


def test_what_is_no_module_at_all_does_not_load(trial: Trial) -> None:
    (trial.livepatches / "lp_text.ko").write_bytes(b"not a module")
    with pytest.raises(BootTestRejectedError) as caught:
        trial("lp_text")
    assert rejected(caught) == ["load-failed"]
    assert caught.value.verification.loaded is False


def test_a_transition_that_never_ends_is_undone_and_says_who_holds_it_up(trial: Trial) -> None:
    with pytest.raises(BootTestRejectedError) as caught:
        trial("lp_stuck", transition_limit=3)
    assert rejected(caught) == ["transition-stuck"]
    assert "kthreadd (2)" in caught.value.diagnosis[0].message
    assert caught.value.verification.reverted


def test_a_guest_is_given_up_after_its_time(trial: Trial) -> None:
    with pytest.raises(BootTestRejectedError) as caught:
        trial("lp_good", timeout=0.5)
    assert rejected(caught) == ["boot-timeout"]


def test_a_module_that_the_kernel_does_not_have(trial: Trial) -> None:
    with pytest.raises(NotFoundError, match="no module 'nowhere'"):
        trial("lp_good", "nowhere")


def test_the_accelerator_is_one_that_boots(kit: Kit) -> None:
    assert machine.executes("tcg")
    assert machine.boots(machine.accelerator(kit.kernel.vmlinuz), kit.kernel.vmlinuz)


def test_an_accelerator_that_boots_nothing_is_not_used(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(bytes(4096))
    assert not machine.boots("tcg", kernel, timeout=5)
