# SPDX-License-Identifier: GPL-2.0-or-later
"""Two patches in turn on one host: the second livepatch contains the first one's patch and replaces it."""

import json
import re
from pathlib import Path
from typing import Any

import demo_host
import pytest

from elivepatch.build.prepared import PreparedKernel
from elivepatch.kernel.release import Release
from elivepatch.progress import Progress
from elivepatch.workshop import Workshop

pytestmark = pytest.mark.guest

DATA = Path(__file__).parents[1] / "data/livepatches"

SCRIPT = """\
export TERM=dumb ELIVEPATCH_URL="$SERVER"
cd /root
cat > one.patch <<'PATCH'
%ONE%PATCH
cat > two.patch <<'PATCH'
%TWO%PATCH
cat > held.patch <<'PATCH'
%HELD%PATCH
cat > two.sh <<'CHECK'
%CHECK%CHECK
mark() { echo "=== $1"; }
effects() {
    grep -i vmallocchunk /proc/meminfo; cat /proc/uptime; cat /proc/loadavg
    for name in $(ls /sys/kernel/livepatch); do echo "livepatch $name"; done
    grep -o '^elivepatch_[0-9a-f]* ' /proc/modules | sed 's/^/module /'
}
mark before; effects
mark load1; elivepatch -p one.patch; echo "exit $?"
mark first; effects
mark held; mkfifo pipe; cat pipe >/dev/null & exec 3>pipe # cat sleeps in pipe_read until the pipe is closed
sleep 1; elivepatch -p held.patch --timeout 5; echo "exit $?"; effects; elivepatch status; exec 3>&-
mark load2; elivepatch -p two.patch --check two.sh; echo "exit $?"
mark second; effects
mark status; elivepatch status --json
mark again; elivepatch -u http://127.0.0.1:9 -p two.patch -p one.patch; echo "exit $?"
mark foreign; mv /var/lib/elivepatch-client/journal /root/journal
elivepatch -p one.patch; echo "exit $?"; mv /root/journal /var/lib/elivepatch-client/journal
mark drop; elivepatch -p one.patch --drop-earlier; echo "exit $?"
mark dropped; effects
mark load3; elivepatch -p two.patch --json 2>/dev/null; echo
mark third; effects
mark revert; elivepatch revert "$(ls /sys/kernel/livepatch)"; echo "exit $?"
mark reverted; effects; elivepatch status
mark log; dmesg | grep -E 'WARNING|BUG|Oops|Call Trace'
mark end
"""


@pytest.fixture(scope="module")
def told(
    workshop: Workshop,
    kernel: PreparedKernel,
    release: Release,
    progress: Progress,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """What the host saw, by section of the script."""
    work = tmp_path_factory.mktemp("cumulative")
    host = demo_host.guest_host(workshop, kernel, demo_host.find_kernel(workshop, release, progress), progress)
    script = SCRIPT
    script = script.replace("%HELD%", Path(__file__).with_name("held.patch").read_text())
    for mark, name in (("%ONE%", "string.patch"), ("%TWO%", "two-files.patch"), ("%CHECK%", "two-files.sh")):
        script = script.replace(mark, (DATA / name).read_text())
    with demo_host.server(workshop, work) as server:
        ended = demo_host.run_on(host, script, server.port, work, progress)
    sections = re.split(r"^=== (\w+)$", ended.output, flags=re.MULTILINE)
    found = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert "end" in found, ended.output
    return found


def effects(section: str) -> tuple[bool, bool]:
    """Whether the effects of the first and of the second patch are there."""
    second = {"idle" in section, " pid " in section}
    assert len(second) == 1, section
    return "VMALLOCCHUNK" in section, second.pop()


def held(section: str, what: str) -> list[str]:
    return re.findall(rf"^{what} (elivepatch_[0-9a-f]{{12}})", section, re.MULTILINE)


def outcome(section: str) -> dict[str, Any]:
    return json.loads(section)


def test_the_second_replaces_the_first_and_both_effects_hold(told: dict[str, str]) -> None:
    assert effects(told["before"]) == (False, False)
    assert told["load1"].rstrip().endswith("exit 0"), told["load1"]
    assert effects(told["first"]) == (True, False)
    assert told["load2"].rstrip().endswith("exit 0"), told["load2"]
    (first,) = held(told["first"], "livepatch")
    (second,) = held(told["second"], "livepatch")
    assert effects(told["second"]) == (True, True)
    assert first != second
    assert held(told["second"], "module") == [second]
    assert f"contains the earlier livepatch {first}: one.patch" in told["load2"]
    assert f"it replaced {first} and contains one.patch, two.patch" in told["load2"]


def test_a_transition_that_is_undone_leaves_the_first_in_force(told: dict[str, str]) -> None:
    (first,) = held(told["first"], "livepatch")
    assert "exit 4" in told["held"], told["held"]
    assert "(cat) in pipe_read" in told["held"]
    assert f"It was undone; {first} stays in force." in told["held"]
    assert effects(told["held"]) == (True, False)
    assert held(told["held"], "livepatch") == held(told["held"], "module") == [first]
    assert "note:" not in told["held"]


def test_status_shows_one_livepatch_with_all_its_patches(told: dict[str, str]) -> None:
    status = outcome(told["status"])
    (one,) = status["livepatches"]
    assert one["patches"] == ["one.patch", "two.patch"]
    assert one["replaced"] == held(told["first"], "livepatch")
    assert one["proof"] == "exact"
    assert {function["object"] for function in one["functions"]} == {"vmlinux"}
    assert {"meminfo_proc_show", "uptime_proc_show", "loadavg_proc_show"} <= {f["function"] for f in one["functions"]}
    assert "disagreements" not in status or status["disagreements"] == []


def test_what_is_contained_is_not_asked_for_again(told: dict[str, str]) -> None:
    assert "exit 0" in told["again"]  # although no server is there
    assert "already contained: two.patch" in told["again"]
    assert "is already loaded" in told["again"]


def test_a_livepatch_that_the_journal_does_not_know_is_not_replaced(told: dict[str, str]) -> None:
    assert "exit 4" in told["foreign"]
    assert f"{held(told['second'], 'livepatch')[0]} is in force and was not loaded by elivepatch" in told["foreign"]
    assert "--drop-earlier" in told["foreign"]


def test_the_earlier_one_can_be_dropped(told: dict[str, str]) -> None:
    (second,) = held(told["second"], "livepatch")
    assert f"the earlier livepatch {second} is dropped: the effects of two.patch end" in told["drop"]
    assert f"{second} is gone with two.patch" in told["drop"]
    assert effects(told["dropped"]) == (True, False)
    assert held(told["dropped"], "livepatch") == held(told["dropped"], "module") == held(told["first"], "livepatch")


def test_the_outcome_tells_what_it_contains_and_replaced(told: dict[str, str]) -> None:
    done = outcome(told["load3"])
    assert [patch["name"] for patch in done["patches"]] == ["one.patch", "two.patch"]
    assert done["replaced"] == held(told["first"], "livepatch")
    assert held(told["third"], "livepatch") == held(told["second"], "livepatch")
    assert effects(told["third"]) == (True, True)


def test_the_revert_brings_back_the_original_and_nothing_else(told: dict[str, str]) -> None:
    assert "the original code is in force" in told["revert"]
    assert "stays gone" in told["revert"]
    assert effects(told["reverted"]) == (False, False)
    assert held(told["reverted"], "livepatch") == held(told["reverted"], "module") == []
    assert "no livepatch is loaded" in told["reverted"]
    assert "note:" not in told["reverted"]
    assert told["log"].strip() == ""
