# SPDX-License-Identifier: GPL-2.0-or-later
"""The CVE mode of the program of the host, against a server made of scripts and a host made of files."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from client_fakes import fake_host
from client_rig import Rig
from client_server import KEY, Server, serving

pytestmark = pytest.mark.integration


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Rig]:
    host, kernel = fake_host(tmp_path)
    with serving(Server()) as server:
        monkeypatch.setenv("ELIVEPATCH_URL", server.url)
        yield Rig(server, host, kernel, tmp_path)


FIX = """\
commit aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
Subject: a fix
CVE: CVE-2026-1001

diff --git a/fs/proc/meminfo.c b/fs/proc/meminfo.c
--- a/fs/proc/meminfo.c
+++ b/fs/proc/meminfo.c
@@ -1,2 +1,2 @@
 one
-two
+2
"""


def entry(number: int, state: str, **more: Any) -> dict[str, Any]:
    return {"id": f"CVE-2026-{number}", "title": f"fault {number}", "state": state, "files": [], "objects": [], **more}


def plan(*entries: dict[str, Any], patches: int = 1, **more: Any) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for one in entries:
        counts[one["state"]] = counts.get(one["state"], 0) + 1
    scan = {
        "data_date": "2026-08-21",
        "source": "feed",
        "version": "6.12.117",
        "kernel": "6.12.117+deb13-cloud-amd64",
        "affected": len(entries),
        "fixed_in_branch": 1,
        "counts": counts,
        "cves": list(entries),
    }
    patch = {
        "name": "CVE-2026-1001.patch",
        "sha256": hashlib.sha256(FIX.encode()).hexdigest(),
        "commit": "a" * 40,
        "text": FIX,
        "cves": ["CVE-2026-1001"],
    }
    cves = {"scan": scan, "patches": [patch] * patches, **more}
    return {"status": "done", "key": KEY, "exit_status": 0, "cves": cves}


WORKS = entry(1001, "affected", score=9.8, fix_version="6.12.120", trial={"state": "works"})
REFUSED = entry(1002, "affected", score=5.5, trial={"state": "refused", "message": "runs only once"})
OTHERS = (
    entry(1003, "not-built", why="nothing is made from it"),
    entry(1004, "not-loaded", objects=["cifs"]),
    entry(1005, "undecided", why="no such file"),
    entry(1006, "vendor-fixed", why="the changelog"),
)
PLAN = plan(WORKS, REFUSED, *OTHERS)


def wish(rig: Rig, number: int = 0) -> dict[str, Any]:
    posts = [seen for seen in rig.server.seen if seen.method == "POST"]
    request = next(content for name, _, content in posts[number].parts() if name == "request")
    return json.loads(request)


def patches(rig: Rig, number: int) -> list[bytes]:
    posts = [seen for seen in rig.server.seen if seen.method == "POST"]
    return [content for name, _, content in posts[number].parts() if name == "patch"]


def test_what_can_be_closed_is_loaded_and_recorded(rig: Rig) -> None:
    rig.server.reports = [PLAN]
    result = rig.run("-e", "--yes", "--json", patch=False)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["status"], found["closed"]) == ("applied", ["CVE-2026-1001"])
    assert wish(rig)["cves"]["fixes"] is True
    assert "cves" not in wish(rig, 1)
    assert patches(rig, 1) == [FIX.encode()]
    assert rig.journal()[-1]["cves"] == ["CVE-2026-1001"]
    assert rig.steps()[-1] == "loaded"


def test_what_is_only_stored_closes_nothing(rig: Rig) -> None:
    settings = rig.tmp / "client.toml"
    settings.write_text("load = false\n")
    settings.chmod(0o600)
    rig.run("-l", patch=False)
    rig.server.reports = [PLAN]
    result = rig.run("-c", settings, "-e", "--yes", "--json", patch=False)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["status"], found["closed"], found["outcome"]["status"]) == ("stored", [], "stored")
    assert (rig.state / "cves-cleared").exists()


def test_the_table_says_what_will_happen(rig: Rig) -> None:
    rig.server.reports = [PLAN]
    result = rig.run("-e", "--yes", patch=False)
    lines = result.stdout.splitlines()
    assert any("CVE-2026-1001" in line and "9.8" in line and "can be closed" in line for line in lines)
    assert any("CVE-2026-1002" in line and "cannot be a livepatch" in line for line in lines)
    assert any("runs only once" in line for line in lines)


@pytest.mark.parametrize("words", [["-e", "--dry-run", "--yes"], ["cve", "plan"]])
def test_a_dry_run_is_the_plan_and_loads_nothing(rig: Rig, words: list[str]) -> None:
    rig.server.reports = [PLAN]
    assert rig.run(*words, patch=False).exit_code == 0
    assert rig.server.paths("POST") == ["/builds"]
    assert not rig.state.exists() or rig.journal() == []


@pytest.mark.parametrize("words", [["-o", "x.ko"], ["--check", "x.sh"], ["--drop-earlier"], ["--no-load"]])
def test_a_flag_that_would_be_passed_over_is_refused(rig: Rig, words: list[str]) -> None:
    result = rig.run("-e", "--yes", *words, patch=False)
    assert result.exit_code == 2
    assert "no meaning for the CVE mode" in result.stderr
    assert rig.server.seen == []


def test_what_the_server_opens_again_is_not_called_closed(rig: Rig, tmp_path: Path) -> None:
    rig.server.reports = [PLAN]
    assert rig.run("-e", "--yes", patch=False).exit_code == 0
    again = entry(1001, "affected", trial={"state": "refused", "message": "its second fix changes data"})
    rig.server.reports = [PLAN, PLAN, plan(again, entry(1002, "closed"), patches=0)]
    vex = tmp_path / "vex.json"
    result = rig.run("cve", "apply", "--yes", "--vex", vex, "--json", patch=False)
    found = json.loads(result.stdout)
    assert (found["status"], found["closed"]) == ("nothing", ["CVE-2026-1002"])
    said = {one["vulnerability"]["name"]: one["status"] for one in json.loads(vex.read_text())["statements"]}
    assert said == {"CVE-2026-1001": "affected", "CVE-2026-1002": "fixed"}


def test_a_kernel_that_takes_no_livepatch_can_be_looked_at(rig: Rig) -> None:
    shutil.rmtree(rig.host.root / "sys/kernel/livepatch")
    result = rig.run("-e", "--yes", patch=False)
    assert result.exit_code == 4
    assert "elivepatch cve list" in result.stderr
    assert "elivepatch cve plan" in result.stderr
    assert "--no-load" not in result.stderr  # which -e refuses
    rig.server.reports = [PLAN, PLAN]
    for words in (["cve", "list"], ["cve", "plan"]):
        assert rig.run(*words, patch=False).exit_code == 0, words


def test_without_a_terminal_it_has_to_be_said(rig: Rig) -> None:
    rig.server.reports = [PLAN]
    result = rig.run("-e", patch=False)
    assert result.exit_code == 4
    assert "--yes" in result.stderr
    assert rig.server.paths("POST") == ["/builds"]


def test_the_list_tries_nothing_and_needs_no_root(rig: Rig) -> None:
    rig.server.reports = [PLAN]
    result = rig.run("cve", "list", patch=False)
    assert result.exit_code == 0
    assert wish(rig)["cves"]["fixes"] is False
    assert "6 CVEs (" in result.stdout


def test_nothing_to_do_is_said(rig: Rig) -> None:
    rig.server.reports = [plan(REFUSED, patches=0)]
    result = rig.run("-e", "--yes", "--json", patch=False)
    assert (result.exit_code, json.loads(result.stdout)["status"]) == (0, "nothing")


def test_a_server_that_cannot_try_is_no_good_news(rig: Rig) -> None:
    untried = entry(1001, "affected", fix_version="6.12.120")
    rig.server.reports = [
        plan(untried, patches=0, problem="This server has no place that fixes come from (stable_git).")
    ]
    result = rig.run("-e", "--yes", patch=False)
    assert result.exit_code == 6
    assert "stable_git" in result.stderr


def test_a_plan_that_is_refused_keeps_its_reason(rig: Rig) -> None:
    refused = {
        "status": "refused",
        "key": KEY,
        "exit_status": 4,
        "error": "configuration-mismatch",
        "message": "differs",
    }
    rig.server.reports = [refused]
    result = rig.run("cve", "plan", "--json", patch=False)
    assert result.exit_code == 4
    assert json.loads(result.stdout)["error"]["code"] == "configuration-mismatch"


def test_a_kernel_that_the_server_does_not_have_can_be_looked_up_by_its_version(rig: Rig) -> None:
    missing = {"status": "failed", "key": KEY, "exit_status": 6, "error": "kernel-unavailable", "message": "no source"}
    rig.server.reports = [missing]
    result = rig.run("cve", "list", patch=False)
    assert result.exit_code == 6
    assert "cve scan --version X.Y.Z (6.12.117+deb13-cloud-amd64 is made from one)" in result.stderr


def test_one_that_is_named_is_answered_for(rig: Rig) -> None:
    rig.server.reports = [plan(*OTHERS, patches=0)]
    result = rig.run("cve", "plan", "--only", "CVE-2026-1004", "--only", "cve-2026-9999", patch=False)
    assert wish(rig)["cves"]["only"] == ["CVE-2026-1004", "CVE-2026-9999"]
    assert "CVE-2026-1004 is not-loaded" in result.stdout
    assert "CVE-2026-9999 is not among the vulnerabilities" in result.stderr


def test_what_is_closed_is_told_to_the_server_until_the_record_is_cleared(rig: Rig) -> None:
    rig.server.reports = [PLAN]
    assert rig.run("-e", "--yes", patch=False).exit_code == 0
    rig.server.reports = [*[PLAN] * 2, plan(REFUSED, patches=0), plan(REFUSED, patches=0)]
    assert rig.run("cve", "plan", patch=False).exit_code == 0
    assert wish(rig, 2)["cves"]["closed"] == ["CVE-2026-1001"]
    assert rig.run("-l", patch=False).exit_code == 0
    assert rig.run("cve", "plan", patch=False).exit_code == 0
    assert wish(rig, 3)["cves"]["closed"] == []


def test_scanners_are_told_the_truth(rig: Rig, tmp_path: Path) -> None:
    rig.server.reports = [PLAN]
    target = tmp_path / "vex.json"
    assert rig.run("cve", "apply", "--yes", "--vex", target, patch=False).exit_code == 0
    said = {one["vulnerability"]["name"]: one for one in json.loads(target.read_text())["statements"]}
    assert {name: one["status"] for name, one in said.items()} == {
        "CVE-2026-1001": "fixed",
        "CVE-2026-1002": "affected",
        "CVE-2026-1003": "not_affected",
        "CVE-2026-1004": "affected",
        "CVE-2026-1005": "under_investigation",
        "CVE-2026-1006": "fixed",
    }
    assert said["CVE-2026-1003"]["justification"] == "vulnerable_code_not_present"
    assert "cifs" in said["CVE-2026-1004"]["action_statement"]


@pytest.mark.parametrize("name", ["six", "CVE-2026-1", "CVE-2026-1001; rm"])
def test_what_is_no_name_is_refused(rig: Rig, name: str) -> None:
    assert rig.run("cve", "plan", "--only", name, patch=False).exit_code == 2
    assert rig.run("cve", "show", name, patch=False).exit_code == 2
    assert rig.server.seen == []


def test_a_score_that_is_no_number_is_refused(rig: Rig) -> None:
    result = rig.run("cve", "plan", "--min-score", "nan", patch=False)
    assert (result.exit_code, "a score of nan" in result.stderr) == (2, True), result.output
