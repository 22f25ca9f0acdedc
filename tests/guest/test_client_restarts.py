# SPDX-License-Identifier: GPL-2.0-or-later
"""The client over restarts of its host: what comes back, what does not, and who is told why."""

from __future__ import annotations

import json
from typing import Any

import pytest
from restarting_host import RestartingHost

pytestmark = pytest.mark.guest

LOAD = "elivepatch load {0}.ko --report {0}.json"


@pytest.fixture
def host(restarting_host: RestartingHost) -> RestartingHost:
    return restarting_host


def status_of(section: str) -> dict[str, Any]:
    return json.loads(section[section.index("{") : section.rindex("}") + 1])


def test_what_was_in_force_comes_back(host: RestartingHost) -> None:
    first = host.run(
        f"""
mark empty; elivepatch boot; echo "exit $?"; elivepatch status; echo "exit $?"
mark load; {LOAD.format("lp_good")} -p lp_good.patch; echo "exit $?"; cat /proc/cmdline
mark status; elivepatch status --json --prometheus /tmp/metrics; echo "exit $?"; cat /tmp/metrics
mark info; elivepatch info lp_good; elivepatch history
mark down; elivepatch mark shutdown; echo "exit $?"
"""
    ).sections
    assert "nothing is to be loaded" in first["empty"]
    assert first["empty"].count("exit 0") == 2
    assert "exit 0" in first["load"], first["load"]
    assert "livepatched" in first["load"]
    print(first["load"], first["status"], first["info"])
    second = host.run(
        """
mark before; elivepatch status; echo "exit $?"; cat /proc/cmdline
mark boot; elivepatch boot; echo "exit $?"; cat /proc/cmdline
mark after; elivepatch status; echo "exit $?"
mark again; elivepatch boot; echo "exit $?"
mark revert; elivepatch revert --all; echo "exit $?"; held; cat /proc/cmdline
mark end; elivepatch history
"""
    ).sections
    print("".join(second.values()))
    assert "exit 7" in second["before"]
    assert "lp_good is loaded again" in second["boot"]
    assert "livepatched" in second["boot"]
    assert "exit 0" in second["after"]
    assert "lp_good is already loaded" in second["again"]
    assert "lp_good is reverted and unloaded" in second["revert"]
    third = host.run('elivepatch boot; echo "exit $?"; elivepatch status; echo "exit $?"').output
    assert "nothing is to be loaded" in third
    assert third.count("exit 0") == 2


def test_a_livepatch_that_takes_the_host_down_is_not_loaded_again(host: RestartingHost) -> None:
    down = host.crash(f"mark load; {LOAD.format('lp_late_panic')}; elivepatch status; sleep 60; mark too-late")
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
    print("".join(second.values()))
    assert "exit 4" in second["boot"]
    assert "lp_late_panic" in second["boot"]
    assert "exit 7" in second["status"]
    third = host.crash('mark boot; elivepatch boot; echo "exit $?"; sleep 60')
    assert "lp_late_panic is loaded again" in third.output
    assert "too late" in third.console
    fourth = host.run('elivepatch boot; echo "exit $?"; held').output
    assert "exit 4" in fourth
