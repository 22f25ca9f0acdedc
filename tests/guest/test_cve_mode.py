# SPDX-License-Identifier: GPL-2.0-or-later
"""The CVE mode on a host with Debian 12's 6.1.170: real fixes of the stable branch, found, built, loaded, recorded."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import demo_host
import httpx2
import pytest
from stable_repository import StableKernel, branch_trees, make_stable, read_stable, write_feed

from elivepatch import process
from elivepatch.kernel.release import parse_release
from elivepatch.progress import Progress
from elivepatch.selection import WantedKernel, hold_kernel
from elivepatch.workshop import Workshop, find_kernel

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.timeout(2400)]

#: Three that can be closed, one that lies in __init code, one in a module that this host has not loaded.
FIRST = ("CVE-2026-31449", "CVE-2026-46040", "CVE-2026-52946")
IMPOSSIBLE, NOT_LOADED = "CVE-2025-38584", "CVE-2026-46243"
#: What a newer feed brings.
LATER = "CVE-2026-64185"
SCRIPT = f"""\
export TERM=dumb ELIVEPATCH_URL="$SERVER"
mark() {{ echo "=== $1"; }}
held() {{
    for name in $(ls /sys/kernel/livepatch); do echo "livepatch $name"; ls -1 /sys/kernel/livepatch/$name/*; done
}}
mark uname; uname -r
mark list; elivepatch cve list --json
mark asked; elivepatch -e </dev/null; echo "exit $?"
mark first; elivepatch -e --yes --json; echo "exit $?"
mark first_held; held
mark status; elivepatch status --json
mark second; elivepatch -e --yes --json; echo "exit $?"
mark second_held; held
mark waiting; until elivepatch cve show {LATER}; do sleep 2; done
mark third; elivepatch cve apply --yes --vex /root/vex.json --json; echo "exit $?"
mark third_held; held
mark vex; cat /root/vex.json
mark table; elivepatch cve plan
mark revert; elivepatch revert --all --json; echo "exit $?"
mark reverted; held
mark log; dmesg | grep -E 'WARNING|BUG|Oops|Call Trace'
mark end
"""


@pytest.fixture(scope="module")
def stable(workshop: Workshop, progress: Progress, tmp_path_factory: pytest.TempPathFactory) -> StableKernel:
    """A repository that plays linux-stable, with the fixes of the CVEs that the tests are about."""
    wanted = {*FIRST, IMPOSSIBLE, NOT_LOADED, LATER}
    data = read_stable(wanted)
    old, new = branch_trees(data, workshop, progress)
    return make_stable(data, old, new, tmp_path_factory.mktemp("stable"))


@contextmanager
def newer_feed(stable: StableKernel, feed: Path, env: dict[str, str], url: str) -> Generator[None]:
    """Brings the last CVE into the feed once the host has asked for its second plan."""
    ended = threading.Event()

    def bring() -> None:
        while not ended.wait(2):
            builds: list[dict[str, Any]] = httpx2.get(f"{url}/elivepatch/api/v2/builds").json()["builds"]
            done = [build for build in builds if build["status"] == "done"]
            if len(done) >= 4:  # the list, two plans (one of them declined is the same), the livepatch
                time.sleep(2)
                write_feed(feed, stable.entries([LATER]), stable.version)
                _sync(env)
                return

    thread = threading.Thread(target=bring)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _sync(env: dict[str, str]) -> None:
    process.run([Path(sys.executable).parent / "elivepatch-server", "cve", "sync"], env=env)


@pytest.fixture(scope="module")
def told(
    stable: StableKernel, workshop: Workshop, progress: Progress, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What the host saw, by section of the script."""
    work = tmp_path_factory.mktemp("cves")
    feed = work / "feed"
    write_feed(feed, stable.entries([*FIRST, IMPOSSIBLE, NOT_LOADED]), stable.version)
    settings = work / "server.toml"
    settings.write_text(f'cve_feed = "{feed}"\nstable_git = "file://{stable.repository}"\n')
    release = parse_release(stable.release)
    files, _, source = find_kernel(release, workshop, progress)
    source.download(files, progress)
    with hold_kernel(WantedKernel(stable.release), workshop, progress) as (kernel, _):
        host = demo_host.guest_host(workshop, kernel, files, progress)
        env = {
            "ELIVEPATCH_CACHE": str(workshop.cache),
            "ELIVEPATCH_DATA": str(work / "data"),
            "ELIVEPATCH_SETTINGS": str(settings),
        }
        _sync(env)
        with (
            demo_host.server(workshop, work, "--settings", str(settings)) as server,
            newer_feed(stable, feed, env, server.url),
        ):
            ended = demo_host.run_on(host, SCRIPT, server.port, work, progress, 1800)
    sections = re.split(r"^=== (\w+)$", ended.output, flags=re.MULTILINE)
    found = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert "end" in found, ended.output
    return found


def outcome(section: str) -> dict[str, Any]:
    """The JSON object in what a command printed: diagnostics go before it, its exit status behind."""
    return json.loads(section[section.index("{\n") : section.rindex("}\n") + 1])


def states(found: dict[str, Any]) -> dict[str, str]:
    return {entry["id"]: entry["state"] for entry in found["scan"]["cves"]}


def test_the_list_says_what_this_host_has(told: dict[str, str], stable: StableKernel) -> None:
    assert told["uname"].strip() == stable.release
    found = outcome(told["list"])
    assert found["scan"]["version"] == "6.1.170"
    assert states(found) == {**dict.fromkeys((*FIRST, IMPOSSIBLE), "affected"), NOT_LOADED: "not-loaded"}


def test_nobody_is_asked_without_a_terminal_and_nothing_is_loaded(told: dict[str, str]) -> None:
    assert "--yes" in told["asked"]
    assert told["asked"].rstrip().endswith("exit 4")


def test_what_can_be_closed_is_closed_and_the_rest_is_reported(told: dict[str, str]) -> None:
    found = outcome(told["first"])
    assert told["first"].rstrip().endswith("exit 0")
    assert (found["status"], found["outcome"]["status"]) == ("applied", "loaded")
    assert set(found["closed"]) == set(FIRST)
    trials = {entry["id"]: entry["trial"] for entry in found["scan"]["cves"] if "trial" in entry}
    assert {name: trial["state"] for name, trial in trials.items()} == {
        **dict.fromkeys(FIRST, "works"),
        IMPOSSIBLE: "refused",
    }
    assert "__init" in trials[IMPOSSIBLE]["message"]
    report = found["outcome"]["build"]["report"]
    assert report["proof"]["level"] == "exact"
    assert report["verification"]["reverted"]
    assert "inotify" in told["first_held"]
    (known,) = outcome(told["status"])["livepatches"]
    assert set(known["cves"]) == set(FIRST)


def test_a_second_run_does_nothing(told: dict[str, str]) -> None:
    found = outcome(told["second"])
    assert (found["status"], found["exit_status"]) == ("nothing", 0)
    assert {name for name, state in states(found).items() if state == "closed"} == set(FIRST)
    assert told["second_held"] == told["first_held"]


def test_a_newer_feed_adds_one_and_keeps_the_others(told: dict[str, str]) -> None:
    found = outcome(told["third"])
    assert found["status"] == "applied"
    assert set(found["closed"]) == {*FIRST, LATER}
    (first,) = re.findall(r"^livepatch (\S+)", told["first_held"], re.MULTILINE)
    (third,) = re.findall(r"^livepatch (\S+)", told["third_held"], re.MULTILINE)
    assert found["outcome"]["replaced"] == [first]
    assert first != third
    before = {line for line in told["first_held"].splitlines() if "," in line}
    assert before < {line for line in told["third_held"].splitlines() if "," in line}


def test_scanners_are_told(told: dict[str, str]) -> None:
    document = json.loads(told["vex"])
    said = {one["vulnerability"]["name"]: one["status"] for one in document["statements"]}
    assert said == {**dict.fromkeys((*FIRST, LATER), "fixed"), IMPOSSIBLE: "affected", NOT_LOADED: "affected"}
    assert document["statements"][0]["products"][0]["@id"].startswith(
        "pkg:deb/debian/linux-image-6.1.0-47-cloud-amd64@6.1.170-3"
    )


def test_all_of_it_can_be_reverted(told: dict[str, str]) -> None:
    assert "cannot be a livepatch" in told["table"]
    assert told["revert"].rstrip().endswith("exit 0")
    assert not told["reverted"].strip()
    assert not told["log"].strip()
