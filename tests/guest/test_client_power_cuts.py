# SPDX-License-Identifier: GPL-2.0-or-later
"""The power goes at random moments of loads, transitions and reverts; the next start finds a journal that is sound."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from restarting_host import RestartingHost

pytestmark = [pytest.mark.guest, pytest.mark.slow]

CUTS = int(os.environ.get("ELIVEPATCH_POWER_CUTS", "40"))
SEED = 6
DRIVER = Path(__file__).with_name("power_cuts.py")


def look(found: dict[str, Any], *, guard: bool) -> None:
    """What must hold after every start, whatever was under way when the power went."""
    assert found["problems"] == []
    assert found["cleared"], found["litter"]
    status = found["status"]
    assert status["disagreements"] == []
    assert status["problems"] == []
    in_force = [name for name, steps in found["after"].items() if steps[-1] == "loaded"]
    assert found["held"] == in_force, found
    for name in found["held"]:
        before = found["before"][name]
        begun = len(before) - before[::-1].index("loading") if "loading" in before else 0
        assert "loaded" in before[begun:], f"{name} was loaded, and its load had not been finished: {found}"
    if guard:
        assert found["held"] == [], found
    assert found["boot"][0] in {0, 7}
    assert all(steps[-1] not in {"loading", "undoing", "reverting"} for steps in found["after"].values()), found


@pytest.mark.timeout(3 * 3600)
def test_whenever_the_power_goes_the_next_start_finds_its_way(restarting_host: RestartingHost) -> None:
    restarting_host.files["power_cuts.py"] = DRIVER.read_bytes()
    moments = random.Random(SEED)
    steps_seen: set[str] = set()
    for number in range(CUTS):
        guard = number % 2 == 0
        word = "guarded" if guard else "unguarded"
        seconds = moments.uniform(0, 12)
        ended = restarting_host.cut(f"python3 power_cuts.py {word}", "go", seconds, timeout=300)
        assert "=== go" in ended.output, f"{ended.output}\n{ended.console[-2000:]}"
        assert "lost its meaning" not in ended.output, ended.output
        found = json.loads(next(line for line in ended.output.splitlines() if line.startswith("{")))
        look(found, guard=guard)
        last = {name: steps[-1] for name, steps in found["before"].items()}
        steps_seen.update(last.values())
        print(f"cut {number}: {last} -> {found['held']} ({word})", flush=True)
    # the moments must have hit something: with none of these the test would show nothing
    assert steps_seen & {"loading", "reverting"}, steps_seen
