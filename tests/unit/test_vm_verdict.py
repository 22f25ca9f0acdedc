# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import re
import subprocess
from dataclasses import replace

import pytest

from elivepatch.vm import boot_script
from elivepatch.vm.verdict import Ended, Expectation, Verdict, judge, parse_marks

NONCE = "0123456789abcdef0123456789abcdef"
RELEASE = "6.12.117+deb13-cloud-amd64"

CONSOLE = """\
[    0.000000] x86/CPU: WARNING: said before the test began, so none of the livepatch's
[    1.969741] elivepatch boot test: begin
[    2.038743] lp: loading out-of-tree module taints kernel.
[    2.039131] lp: module verification failed: signature and/or required key missing - tainting kernel
[    2.065971] livepatch: enabling patch 'lp'
[    2.077921] livepatch: 'lp': starting patching transition
[    3.353463] livepatch: 'lp': patching complete
[    3.464397] livepatch: 'lp': starting unpatching transition
[    4.770135] livepatch: 'lp': unpatching complete
[    4.873442] elivepatch boot test: end
"""

FIRST = f"""\
boot {RELEASE}
taint before 0
check before 1
load first 0
transition first 20
enabled first 1
object first vmlinux 1
function first vmlinux cmdline_proc_show,1
taint load 45056
check after 0
revert first 0
check reverted 1
unload first 0
taint unload 45056
end
"""

LATE = f"""\
boot {RELEASE}
module crc16 0
module ext4 0
taint before 0
load first 0
transition first 20
enabled first 1
object first ext4 1
function first ext4 ext4_foo,1
taint load 45056
revert first 0
unload first 0
taint unload 45056
module-unload ext4 0
module-unload crc16 1 rmmod: can't unload module
load second 0
transition second 20
enabled second 1
module-late crc16 1 insmod: can't insert: File exists
module-late ext4 0
object second ext4 1
function second ext4 ext4_foo,1
revert second 0
unload second 0
taint second 45056
end
"""

PLAIN = Expectation(release=RELEASE, name="lp", objects=("vmlinux",), checked=True)
MODULE = Expectation(release=RELEASE, name="lp", objects=("ext4",))


def control(text: str) -> str:
    return "".join(f"@{NONCE} {line}\r\n" for line in text.splitlines())


def verdict(text: str = FIRST, *, console: str = CONSOLE, expected: Expectation = PLAIN, extra: str = "") -> Verdict:
    return judge(expected, Ended(console=console, control=control(text) + extra, nonce=NONCE, accelerator="tcg"))


def rules(found: Verdict) -> list[str]:
    return [finding.rule for finding in found.diagnosis]


def cut(text: str, line: str) -> str:
    """The text up to the line that begins so, which is left out."""
    assert f"\n{line}" in text
    return text[: text.index(f"\n{line}") + 1]


def change(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


def test_a_good_run_passes() -> None:
    found = verdict()
    assert found.passed
    seen = found.verification
    assert seen.booted
    assert (seen.loaded, seen.check_before, seen.check_after) == (True, False, True)
    assert (seen.reverted, seen.check_reverted, seen.unloaded) == (True, False, True)
    assert seen.accelerator == "tcg"


def test_the_transition_is_measured_by_the_kernel() -> None:
    assert verdict().verification.transition_ms == 1276


def test_without_the_kernels_times_the_guests_count() -> None:
    console = "\n".join(line for line in CONSOLE.splitlines() if "patching" not in line)
    assert verdict(console=console).verification.transition_ms == 20


def test_the_log_begins_with_the_test() -> None:
    log = verdict().verification.log or ""
    assert log.startswith("[    1.969741] elivepatch boot test: begin")
    assert "said before" not in log


def test_both_rounds_pass_where_a_needed_module_cannot_be_unloaded() -> None:
    assert verdict(LATE, expected=MODULE).passed


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        (f"boot {RELEASE}", "boot 6.12.117-other", "boot-failed"),
        ("check before 1", "check before 0", "check-before-succeeded"),
        ("check after 0", "check after 1", "check-after-failed"),
        ("check reverted 1", "check reverted 0", "check-reverted-succeeded"),
        ("enabled first 1", "enabled first 0", "load-failed"),
        ("object first vmlinux 1", "object first vmlinux 0", "load-failed"),
        ("object first vmlinux 1", "object first other 1", "load-failed"),
        ("function first vmlinux cmdline_proc_show,1\n", "", "load-failed"),
        ("taint unload 45056", "taint unload 45058", "new-taint"),
        ("unload first 0", "unload first 1 rmmod: busy", "unload-failed"),
    ],
)
def test_one_thing_wrong_is_one_rule(old: str, new: str, rule: str) -> None:
    assert rules(verdict(change(FIRST, old, new))) == [rule]


def test_one_that_only_has_callbacks_patches_no_function() -> None:
    text = re.sub(r"^function .*\n", "", FIRST, flags=re.MULTILINE)
    assert rules(verdict(text)) == ["load-failed"]
    assert verdict(text, expected=replace(PLAIN, only_callbacks=True)).passed


def test_a_refused_load_gives_the_kernels_words() -> None:
    text = cut(FIRST, "load first") + "load first 1 insmod: can't insert: Invalid argument\nend\n"
    found = verdict(text)
    assert rules(found) == ["load-failed"]
    assert "Invalid argument" in found.diagnosis[0].message
    assert found.verification.loaded is False


def test_a_module_that_is_no_livepatch() -> None:
    assert rules(verdict(cut(FIRST, "transition") + "not-a-livepatch first\nend\n")) == ["load-failed"]


def test_a_stuck_transition_names_who_holds_it_up() -> None:
    found = verdict(cut(FIRST, "transition") + "stuck first\nholds 2 kthreadd\nrevert first 1\nend\n")
    assert rules(found) == ["transition-stuck"]
    assert "kthreadd (2)" in found.diagnosis[0].message


def test_a_revert_that_does_not_end() -> None:
    assert rules(verdict(cut(FIRST, "revert") + "revert first 1\nend\n")) == ["revert-failed"]


def test_expected_functions_are_looked_for() -> None:
    assert verdict(expected=replace(PLAIN, functions=("vmlinux/cmdline_proc_show",))).passed
    assert verdict(expected=replace(PLAIN, functions=("vmlinux/cmdline_proc_show,1",))).passed
    found = verdict(expected=replace(PLAIN, functions=("vmlinux/cmdline_proc_show,2",)))
    assert rules(found) == ["load-failed"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("object second ext4 1", "object second ext4 0"),
        ("module-late ext4 0", "module-late ext4 1 insmod: refused"),
    ],
)
def test_a_livepatch_must_apply_to_a_module_that_comes_later(old: str, new: str) -> None:
    assert rules(verdict(change(LATE, old, new), expected=MODULE)) == ["load-failed"]


def test_a_livepatch_that_loads_only_behind_its_module() -> None:
    text = cut(LATE, "load second") + "load second 1 insmod: refused\nend\n"
    assert rules(verdict(text, expected=MODULE)) == ["load-failed"]


def test_modules_without_a_device_are_named() -> None:
    text = change(LATE, "module crc16 0", "module crc16 1 insmod: can't insert: No such device")
    text = change(text, "module ext4 0", "module ext4 1 insmod: can't insert: unknown symbol in module")
    found = verdict(text, expected=MODULE)
    assert (rules(found), found.deviceless) == (["boot-failed"], ("crc16",))
    found = verdict(LATE, expected=replace(MODULE, not_run=("ext4",)))
    assert (rules(found), found.deviceless, found.verification.not_run) == ([], (), ("ext4",))


def test_a_kernel_module_that_cannot_be_loaded_is_not_the_livepatchs_fault() -> None:
    text = change(LATE, "module ext4 0", "module ext4 1 insmod: no such device")
    assert rules(verdict(text, expected=MODULE)) == ["boot-failed"]


@pytest.mark.parametrize(
    "line",
    [
        "WARNING: CPU: 0 PID: 155 at kernel/livepatch/core.c:1 klp+0x9/0xff0 [lp]",
        "BUG: unable to handle page fault for address: ffffffffc04a1fef",
        "kernel BUG at mm/slub.c:1!",
        "Oops: Oops: 0000 [#1] PREEMPT SMP NOPTI",
        "Call Trace:",
        "Unpatched return thunk in use. This should not happen!",
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "rcu: INFO: rcu_preempt self-detected stall on CPU",
        "livepatch: failed to initialize patch 'lp' for module 'ext4' (-22)",
        "livepatch: lp: symbol lookup failed",
        "Kernel panic - not syncing: Fatal exception",
        "general protection fault, probably for non-canonical address 0x1: 0000 [#1]",
        "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:1]",
        "INFO: task kworker/0:1:9 blocked for more than 120 seconds.",
        "UBSAN: array-index-out-of-bounds in fs/x.c:1:2",
    ],
)
def test_a_kernel_that_complains_fails_it(line: str) -> None:
    console = change(CONSOLE, "[    3.353463]", f"[    3.300000] {line}\n[    3.353463]")
    found = verdict(console=console)
    assert rules(found) == ["kernel-warning"]
    assert line in found.diagnosis[0].message


def test_a_livepatch_named_livepatch_is_not_taken_for_a_complaint() -> None:
    line = "livepatch: module verification failed: signature and/or required key missing - tainting kernel"
    assert verdict(console=change(CONSOLE, "[    3.353463]", f"[    3.3] {line}\n[    3.353463]")).passed


def test_a_warnings_taint_is_not_told_twice() -> None:
    console = change(CONSOLE, "[    3.353463]", "[    3.300000] WARNING: CPU: 0\n[    3.353463]")
    assert rules(verdict(change(FIRST, "taint load 45056", "taint load 45568"), console=console)) == ["kernel-warning"]


def test_a_panic_shows_the_kernels_words() -> None:
    console = cut(CONSOLE, "[    2.077921]") + "[    2.120001] Kernel panic - not syncing: tried\n"
    found = verdict(cut(FIRST, "load"), console=console)
    assert rules(found) == ["kernel-warning"]
    assert found.verification.loaded is None


def test_a_kernel_that_does_not_come_up() -> None:
    found = verdict("", console="[    0.1] Kernel panic - not syncing: VFS: Unable to mount root fs\n")
    assert rules(found) == ["boot-failed"]
    assert "VFS" in found.diagnosis[0].message
    assert not found.verification.booted


def test_a_guest_that_ends_without_a_word() -> None:
    assert rules(verdict(cut(FIRST, "revert"))) == ["boot-failed"]


def test_a_log_without_its_end_proves_nothing() -> None:
    assert rules(verdict(console=cut(CONSOLE, "[    4.873442]"))) == ["boot-failed"]


def test_a_guest_that_takes_too_long() -> None:
    ended = Ended(console=CONSOLE, control=control(cut(FIRST, "revert")), nonce=NONCE, timed_out=True, limit=120)
    found = judge(PLAIN, ended)
    assert rules(found) == ["boot-timeout"]
    assert "120 s" in found.diagnosis[0].message


def test_nothing_at_all_is_not_a_pass() -> None:
    assert rules(judge(PLAIN, Ended(console="", control="", nonce=NONCE))) == ["boot-failed"]


def test_lines_without_the_nonce_are_nothing() -> None:
    forged = "@ffffffffffffffffffffffffffffffff check after 0\n@ check after 0\ncheck after 0\n"
    text = change(FIRST, "check after 0", "check after 1")
    assert rules(verdict(text, extra=forged)) == ["check-after-failed"]


def test_a_mark_counts_behind_output_that_ends_without_a_newline() -> None:
    assert parse_marks(f"no newline@{NONCE} boot x y\r\n", NONCE).lines == (("boot", "x", "y"),)


def test_the_output_of_a_failing_check_is_shown() -> None:
    found = verdict(change(FIRST, "check after 0", "check after 1"), extra="check (after): the reason\r\n")
    assert "the reason" in found.diagnosis[0].message


@pytest.mark.parametrize(("status", "hint"), [(127, "busybox"), (137, "20 s")])
def test_a_check_that_could_not_run_says_why(status: int, hint: str) -> None:
    found = verdict(change(FIRST, "check after 0", f"check after {status}"))
    assert hint in (found.diagnosis[0].hint or "")


@pytest.mark.parametrize("status", [1, 2, 127])
def test_a_check_with_lines_of_another_system_says_so(status: int) -> None:
    expected = replace(PLAIN, check_crlf=True)
    text = change(FIRST, "check after 0", f"check after {status}")
    found = judge(expected, Ended(console=CONSOLE, control=control(text), nonce=NONCE))
    assert rules(found) == ["check-after-failed"]
    assert "CR LF" in (found.diagnosis[0].hint or "")


def test_every_finding_has_its_place_in_the_documentation() -> None:
    found = verdict(change(FIRST, "check after 0", "check after 1"))
    assert found.diagnosis[0].doc == "docs/errors.md#check-after-failed"


def test_init_is_a_script() -> None:
    subprocess.run(["sh", "-n"], input=boot_script.INIT.encode(), check=True)


def test_settings_are_a_script_that_sets_them() -> None:
    text = boot_script.settings(nonce=NONCE, name="lp_x", transition_limit=7)
    shown = subprocess.run(
        ["sh", "-c", f"{text}\necho $nonce $name $transition_limit"], capture_output=True, check=True, text=True
    )
    assert shown.stdout.split() == [NONCE, "lp_x", "7"]


@pytest.mark.parametrize(
    ("lines", "starved"),
    [
        (["rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", "Call Trace:"], True),
        (["watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:1]", "Call Trace:"], True),
        (["BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 31s!"], True),
        (["rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", "WARNING: CPU: 0 PID: 1 at x.c:1"], False),
        (["Oops: Oops: 0000 [#1] PREEMPT SMP NOPTI", "Call Trace:"], False),
        (["Call Trace:"], False),
        ([], False),
    ],
)
def test_a_stall_alone_may_be_the_machines(lines: list[str], starved: bool) -> None:
    told = "".join(f"[    3.300000] {line}\n" for line in lines)
    found = verdict(console=change(CONSOLE, "[    3.353463]", f"{told}[    3.353463]"))
    assert found.starved == starved
    assert found.passed == (not lines)


def test_a_stall_beside_another_finding_is_not_the_machines() -> None:
    console = change(
        CONSOLE, "[    3.353463]", "[    3.3] rcu: INFO: rcu_preempt self-detected stall on CPU\n[    3.353463]"
    )
    assert not verdict(change(FIRST, "check after 0", "check after 1"), console=console).starved
