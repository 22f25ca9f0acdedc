# SPDX-License-Identifier: GPL-2.0-or-later
"""The client over restarts of its host: what comes back, what does not, and who is told why."""

from __future__ import annotations

import json
from typing import Any

import pytest
from restarting_host import RestartingHost

from elivepatch import process
from elivepatch.kernel.release import parse_release
from elivepatch.progress import Progress
from elivepatch.vm.machine import GuestKernel
from elivepatch.workshop import Workshop

pytestmark = [pytest.mark.guest, pytest.mark.slow]

LOAD = "elivepatch load {0}.ko --report {0}.json"


def status_of(section: str) -> dict[str, Any]:
    return json.loads(section[section.index("{") : section.rindex("}") + 1])


@pytest.fixture
def other_kernel(workshop: Workshop, progress: Progress, restarting_host: RestartingHost) -> GuestKernel:
    """Another kernel of the same version: its image package alone."""
    release = parse_release(restarting_host.kernel.release.replace("-cloud", ""))
    source = workshop.source(workshop.roots.get("trixie"))
    files = source.find(release, progress)
    assert files is not None
    place = restarting_host.work / "other"
    for package in files.images:
        path = source.download_package(package, progress)
        process.run(["dpkg-deb", "--extract", path, place], timeout=600)
    return GuestKernel(str(release), place / f"boot/vmlinuz-{release}", place / f"usr/lib/modules/{release}")


def test_what_was_in_force_comes_back_and_only_for_its_kernel(
    restarting_host: RestartingHost, other_kernel: GuestKernel
) -> None:
    host = restarting_host
    first = host.run(
        f"""
mark empty; elivepatch boot; echo "exit $?"; elivepatch status; echo "exit $?"
mark load; {LOAD.format("lp_good")} -p lp_good.patch; echo "exit $?"; cat /proc/cmdline
mark status; elivepatch status --json --prometheus /tmp/metrics; echo "exit $?"
mark metrics; cat /tmp/metrics
mark lost; {LOAD.format("lp_second")} -p lp_second.patch; echo "exit $?"
mark second; {LOAD.format("lp_second")} -p lp_good.patch -p lp_second.patch; echo "exit $?"; cat /proc/cmdline; held
mark down; elivepatch mark shutdown; echo "exit $?"
"""
    ).sections
    assert "nothing is to be loaded" in first["empty"]
    assert first["empty"].count("exit 0") == 2
    assert "exit 0" in first["load"], first["load"]
    assert "\nlivepatched\n" in first["load"]
    status = status_of(first["status"])
    assert status["livepatches"][0]["cves"] == ["CVE-2026-10002"]
    assert status["exit_status"] == 0
    assert 'elivepatch_livepatch_enabled{name="lp_good",proof="exact",cves="CVE-2026-10002"} 1' in first["metrics"]
    assert "is not said to contain lp_good.patch" in first["lost"]
    assert "it replaced lp_good" in first["second"], first["second"]
    assert "\nlivepatched twice\n" in first["second"]
    assert "exit 0" in first["down"]

    other = host.run('elivepatch boot; echo "exit $?"; elivepatch status; echo "exit $?"; held', kernel=other_kernel)
    assert f"nothing is to be loaded for {other_kernel.release}" in other.output
    assert other.output.count("exit 0") == 2
    assert "lp_" not in other.output

    second = host.run(
        """
mark before; elivepatch status; echo "exit $?"; cat /proc/cmdline
mark boot; elivepatch boot; echo "exit $?"; cat /proc/cmdline
mark after; elivepatch status; echo "exit $?"
mark again; elivepatch boot; echo "exit $?"
mark info; elivepatch info lp_second
mark revert; elivepatch revert --all; echo "exit $?"; held; cat /proc/cmdline; grep -c '^lp_' /proc/modules
mark end; elivepatch history
"""
    ).sections
    assert "lp_second: not loaded, expected" in second["before"]
    assert "exit 7" in second["before"]
    assert "lp_second is loaded again" in second["boot"], second["boot"]
    assert "\nlivepatched twice\n" in second["boot"]
    assert "exit 0" in second["after"]
    assert "lp_second is already loaded" in second["again"]
    assert "in the kernel: enabled" in second["info"]
    assert "lp_second is reverted and unloaded" in second["revert"]
    assert "livepatched" not in second["revert"]
    assert second["revert"].split()[-1] == "0"
    print("".join(second.values()))

    third = host.run('elivepatch boot; echo "exit $?"; elivepatch status; echo "exit $?"').output
    assert "nothing is to be loaded" in third
    assert third.count("exit 0") == 2


def test_a_livepatch_that_takes_the_host_down_is_not_loaded_again(restarting_host: RestartingHost) -> None:
    host = restarting_host
    down = host.crash(f"mark load; {LOAD.format('lp_late_panic')}; sleep 60; mark too-late")
    assert "lp_late_panic is loaded" in down.output, down.output
    assert "Kernel panic - not syncing: too late" in down.console
    assert "too-late" not in down.sections
    second = host.run(
        """
mark boot; elivepatch boot; echo "exit $?"; held; cat /proc/cmdline
mark status; elivepatch status; echo "exit $?"
mark allow; elivepatch allow lp_late_panic; echo "exit $?"
"""
    ).sections
    assert "exit 7" in second["boot"]
    assert "lp_late_panic is not loaded: the host went down" in second["boot"]
    assert "livepatched" not in second["boot"]
    assert "lp_late_panic: not loaded, guarded" in second["status"]
    assert "before it was known to run 600 s with it" in second["status"]
    assert "exit 7" in second["status"]
    assert "exit 0" in second["allow"]
    third = host.crash('mark boot; elivepatch boot; echo "exit $?"; sleep 60')
    assert "lp_late_panic is loaded again" in third.output
    assert "not syncing: too late" in third.console
    fourth = host.run('elivepatch boot; echo "exit $?"; held').output
    assert "exit 7" in fourth


def test_a_transition_that_cannot_finish(restarting_host: RestartingHost) -> None:
    """kthreadd never leaves its own function, so a livepatch of it never comes into force by itself."""
    told = restarting_host.run(
        f"""
state() {{ held; grep '^lp_' /proc/modules | cut -d' ' -f1; elivepatch status; }}
mark before; {LOAD.format("lp_good")} -p lp_good.patch; state
mark stuck; {LOAD.format("lp_stuck")} -p lp_good.patch -p lp_stuck.patch --timeout 12; echo "exit $?"
mark after; state; cat /proc/cmdline
mark turned; {LOAD.format("lp_stuck")} -p lp_good.patch -p lp_stuck.patch --timeout 100 &
while test ! -e /sys/kernel/livepatch/lp_stuck; do sleep 0.2; done
elivepatch revert lp_stuck; echo "exit $?"; wait; echo
mark once-more; state
mark killed; {LOAD.format("lp_stuck")} -p lp_good.patch -p lp_stuck.patch --timeout 100 & pid=$!
while test ! -e /sys/kernel/livepatch/lp_stuck; do sleep 0.2; done
kill -9 $pid; wait $pid; elivepatch status; elivepatch repair; echo "exit $?"
mark repaired; state
mark force; {LOAD.format("lp_stuck")} -p lp_good.patch -p lp_stuck.patch --timeout 3 --force; echo "exit $?"
mark forced; elivepatch status; echo "exit $?"
mark log; dmesg | grep -E 'WARNING|BUG|Oops|Call Trace'
mark end
""",
        timeout=1200,
    ).sections
    print("".join(told.values()))
    assert "transition: 1 task still to move: 2 (kthreadd) in" in told["stuck"]
    assert "stack of 2 (kthreadd):" in told["stuck"]
    assert "Held by 1 task: 2 (kthreadd)" in told["stuck"]
    assert "It was undone; lp_good stays in force." in told["stuck"]
    assert "exit 4" in told["stuck"]
    held = [line for line in told["before"].splitlines() if line.startswith("lp_")]
    for section in ("after", "once-more", "repaired"):
        assert [line for line in told[section].splitlines() if line.startswith("lp_")][:3] == held[-3:], told[section]
        assert "note:" not in told[section]
    assert "\nlivepatched\n" in told["after"]
    assert "is told to undo that" in told["turned"]
    assert "exit 0" in told["turned"]
    assert "lp_stuck is undone: the client was interrupted before the load had ended" in told["killed"]
    assert "ended by force" in told["force"]
    assert "exit 0" in told["force"]
    assert "its transition was ended by force" in told["forced"]
    assert told["log"].strip() == ""


def test_what_is_not_whole_or_cannot_be_kept_is_not_loaded(
    restarting_host: RestartingHost, other_kernel: GuestKernel
) -> None:
    host = restarting_host
    host.format(2)
    good = LOAD.format("lp_good")
    told = host.run(
        f"""
state=/var/lib/elivepatch-client
mark truncated; head -c 100000 lp_good.ko >cut.ko; elivepatch load cut.ko --report lp_good.json; echo "exit $?"; held
mark swapped; elivepatch load lp_second.ko --report lp_good.json; echo "exit $?"; held
mark full; dd if=/dev/zero of=$state/filler bs=1k 2>/dev/null; {good}; echo "exit $?"; held
mark nearly; truncate -s -200k $state/filler; {good}; echo "exit $?"; held; elivepatch status; echo "exit $?"
mark room; rm $state/filler; {good}; echo "exit $?"; held
mark readonly; /run/guest/busybox mount -o remount,ro $state; {good}; elivepatch revert lp_good; echo "exit $?"; held
mark writable; /run/guest/busybox mount -o remount,rw $state; elivepatch revert lp_good; echo "exit $?"; {good}; held
mark corrupted; elivepatch mark shutdown
printf X | dd of=$(echo $state/modules/*/lp_good.ko) bs=1 seek=5000 conv=notrunc 2>/dev/null
"""
    ).sections
    print("".join(told.values()))
    for section, words in (
        ("truncated", "is not the module that the report describes"),
        ("swapped", "is not the module that the report describes"),
        ("full", "No space is left"),
        ("nearly", "No space is left"),
    ):
        assert words in told[section], told[section]
        assert "exit 0" not in told[section].partition("held")[0].split("kernel ")[0], told[section]
        assert "\nlp_good\n" not in told[section]
    assert "lp_good is loaded" in told["room"]
    assert "lp_good is reverted, and the journal could not be told" in told["readonly"]
    assert "exit 4" in told["readonly"]
    assert "\nlp_good\n" not in told["readonly"]
    assert "exit 0" in told["writable"]
    assert "\nlp_good\n" in told["writable"]

    read_only = host.run(
        'elivepatch boot; echo "exit $?"; held; elivepatch status; echo "exit $?"', options="ro"
    ).output
    assert "Read-only file system" in read_only
    assert "exit 4" in read_only
    assert "\nlp_good\n" not in read_only

    damaged = host.run('elivepatch boot; echo "exit $?"; held').output
    assert "is not the one that was checked" in damaged
    assert "exit 4" in damaged
    assert "\nlp_good\n" not in damaged

    wrong = host.run(f'{good}; echo "exit $?"; held', kernel=other_kernel).output
    assert "is for the kernel" in wrong
    assert "exit 4" in wrong
    assert "\nlp_good\n" not in wrong
