# SPDX-License-Identifier: GPL-2.0-or-later
"""The CVE data over HTTP and on the command line: a real server with a small feed; only builds are short."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Generator
from pathlib import Path

import httpx2
import pytest
from server_support import ServerProcess, get, serving

from cve_support import Entry, write_feed
from elivepatch.process import Completed, run

pytestmark = pytest.mark.integration

A, B, C = "a" * 40, "b" * 40, "c" * 40
NAME = "CVE-2026-46300"
FEED = {
    NAME: Entry([f"3.9:{A}:6.1.174:{B}", f"3.9:{A}:7.1:{C}"], "net: keep the marker", ("net/core/skbuff.c",), 7.8),
    "CVE-2025-38585": Entry([f"5.8:{A}:6.12.42:{C}"]),
    "CVE-2020-10000": Entry([f"2.6.12:{A}:5.0:{C}"]),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    work = tmp_path_factory.mktemp("cves")
    feed = write_feed(work / "feed", FEED)
    with serving(work / "data", cve_feed=str(feed)) as running:
        deadline = time.monotonic() + 30
        while get(running, f"/cves/{NAME}").status_code == 503 and time.monotonic() < deadline:
            time.sleep(0.1)  # it reads the feed by itself
        yield running


def test_a_vulnerability_is_shown(server: ServerProcess) -> None:
    found = get(server, f"/cves/{NAME}").json()
    assert (found["title"], found["score"], found["files"]) == ("net: keep the marker", 7.8, ["net/core/skbuff.c"])
    assert found["spans"][0] == {"since": "3.9", "since_commit": A, "fixed": "6.1.174", "fixed_commit": B}
    assert len(found["data_date"]) == 10


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/cves/CVE-2026-99999", 404, "not-found"),
        ("/cves/nonsense", 404, "not-found"),
        ("/cves/..%2f..%2fetc%2fpasswd", 404, "not-found"),
        ("/cves/versions/nonsense", 422, "invalid-input"),
        ("/cves/versions/7.2-rc3", 422, "invalid-input"),
        ("/cves/versions/6.1.0-47-cloud-amd64", 422, "invalid-input"),
    ],
)
def test_what_is_not_there_is_said_so(server: ServerProcess, path: str, status: int, code: str) -> None:
    answer = get(server, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_a_version_is_scanned(server: ServerProcess) -> None:
    found = get(server, "/cves/versions/6.1.170").json()
    assert (found["affected"], found["fixed_in_branch"], found["lower_bound"]) == (2, 1, False)
    assert {entry["id"]: entry.get("fix_version") for entry in found["cves"]} == {
        NAME: "6.1.174",
        "CVE-2025-38585": None,
    }
    newer = get(server, "/cves/versions/6.1.180").json()
    assert (newer["affected"], newer["lower_bound"], newer["newest_known"]) == (1, True, "6.1.174")


def test_a_plan_needs_data(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as without:
        request = json.dumps({"kernel": "6.12.118+deb13-cloud-amd64", "cves": {}}).encode()
        answer = httpx2.post(f"{without.url}/builds", files=[("request", ("request", request, "application/json"))])
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert "cve_feed" in answer.json()["hint"]
        assert get(without, f"/cves/{NAME}").status_code == 503


@pytest.mark.parametrize("wish", [{"only": ["x"]}, {"min_score": 11}, {"loaded": ["../x"]}, {"unknown": 1}])
def test_a_wish_that_cannot_be_is_refused(server: ServerProcess, wish: dict[str, object]) -> None:
    request = json.dumps({"kernel": "6.12.118+deb13-cloud-amd64", "cves": wish}).encode()
    answer = httpx2.post(f"{server.url}/builds", files=[("request", ("request", request, "application/json"))])
    assert answer.status_code == 422, answer.text


def program(*words: str, **environment: str) -> Completed:
    return run(
        [Path(sys.executable).parent / "elivepatch-server", "cve", *words],
        env={"ELIVEPATCH_CACHE": os.environ.get("ELIVEPATCH_CACHE", "/nowhere"), **environment},
        check=False,
    )


def test_the_contract_of_the_scan(tmp_path: Path) -> None:
    feed = write_feed(tmp_path / "feed", FEED)
    done = program(
        "scan", "--version", "6.1.170", "--feed", str(feed), "--json", ELIVEPATCH_DATA=str(tmp_path / "data")
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"data_date", "affected", "fixed_in_branch", "cves"} <= found.keys()
    (entry,) = [one for one in found["cves"] if one["id"] == NAME]
    assert (entry["fix_version"], entry["fix_commit"], entry["files"], entry["score"]) == (
        "6.1.174",
        B,
        ["net/core/skbuff.c"],
        7.8,
    )


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["scan"], 2, "either a version or a kernel"),
        (["scan", "--version", "6.1", "--kernel", "x"], 2, "either a version or a kernel"),
        (["scan", "--version", "six"], 2, "names no released version"),
        (["scan", "--version", "6.1.1", "--loaded", "/proc/modules"], 2, "goes with --kernel"),
        (["scan", "--version", "6.1.1", "--feed", "/no/such/feed"], 2, "no feed"),
        (["scan", "--version", "6.1.1"], 6, "no index"),
        (["scan", "--version", "6.1.1", "-k", "/dev/null"], 2, "-k goes with --kernel"),
        (["scan", "--version", "6.1.1-rc2"], 2, "cve scan --version 6.1.1"),
        (["scan", "--version", "6.12_rc3"], 2, "no released version"),
        (["scan", "--version", "6.12.0-0.rc3.20241015git2.30.fc42.x86_64"], 2, "no released version"),
        (["scan", "--version", "6.1.1700000"], 2, "names no released version"),
        (["scan", "--kernel", "debian:6.1.170-1", "--base-patch", "/no/such"], 2, "/no/such"),
        (["plan", "--kernel", "debian:6.1.170-1", "-k", "/no/such"], 2, "/no/such"),
        (["sync"], 2, "No feed is configured"),
        (["plan", "--kernel", "6.1.0-47-cloud-amd64"], 2, "No place is configured"),
        (["plan", "--kernel", "6.1.0-47-cloud-amd64", "--only", "six"], 2, "CVE-2026-46300"),
    ],
)
def test_bad_words_are_answered(tmp_path: Path, words: list[str], status: int, said: str) -> None:
    done = program(*words, ELIVEPATCH_DATA=str(tmp_path / "data"))
    assert (done.returncode, said in done.stderr) == (status, True), done.stderr
    assert "^CVE" not in done.stderr
    told = json.loads(program(*words, "--json", ELIVEPATCH_DATA=str(tmp_path / "data")).stdout)
    assert (told["exit_status"], told["error"]["message"] in done.stderr) == (status, True)


@pytest.mark.parametrize("text", ["", "root:x:0:0:root:/root:/bin/sh\n", "xfs\next4\n"])
def test_what_is_no_list_of_modules_hides_nothing(tmp_path: Path, text: str) -> None:
    file = tmp_path / "modules"
    file.write_text(text)
    for command in ("scan", "plan"):
        words = [command, "--kernel", "6.1.0-47-cloud-amd64", "--loaded", str(file)]
        place = str(tmp_path / "stable")
        done = program(*words, ELIVEPATCH_DATA=str(tmp_path / "data"), ELIVEPATCH_STABLE_GIT=place)
        assert (done.returncode, "is not what /proc/modules says" in done.stderr) == (2, True), done.stderr


def test_a_plan_that_cannot_be_written_is_refused_before_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below = str(tmp_path / "file/below")
    done = program("plan", "--kernel", "x", "-o", below, ELIVEPATCH_DATA=str(tmp_path / "data"))
    assert (done.returncode, f"{below} cannot be made" in done.stderr) == (2, True), done.stderr
    done = program("plan", "--kernel", "x", "-o", str(tmp_path / "file"), ELIVEPATCH_DATA=str(tmp_path / "data"))
    assert (done.returncode, "cannot be made: File exists" in done.stderr) == (2, True), done.stderr


def test_what_of_a_release_is_looked_at_is_said(tmp_path: Path) -> None:
    feed = str(write_feed(tmp_path / "feed", FEED))
    for text, noted in (("6.1", False), ("6.1.0", False), ("6.1.170", False), ("6.1.0-47-cloud-amd64", True)):
        done = program("scan", "--version", text, "--feed", feed, ELIVEPATCH_DATA=str(tmp_path / "data"))
        said = f"of '{text}' only 6.1 is looked at" in done.stderr
        assert (done.returncode, said) == (0, noted), (text, done.stderr)


def test_sync_then_scan(tmp_path: Path) -> None:
    feed = write_feed(tmp_path / "feed", FEED)
    environment = {"ELIVEPATCH_DATA": str(tmp_path / "data"), "ELIVEPATCH_CVE_FEED": str(feed)}
    done = program("sync", "--json", **environment)
    assert (done.returncode, json.loads(done.stdout)["entries"]) == (0, 3), done.stderr
    done = program("scan", "--version", "6.1.170", **environment)
    assert done.returncode == 0
    assert "6.1.170: 2 CVEs by its version, 1 of them fixed" in done.stdout
    assert "net: keep the marker" in done.stdout


def test_a_mirror_that_is_not_to_be_had_does_not_keep_the_data_old(tmp_path: Path) -> None:
    feed = write_feed(tmp_path / "feed", FEED)
    environment = {
        "ELIVEPATCH_CACHE": str(tmp_path / "cache"),
        "ELIVEPATCH_DATA": str(tmp_path / "data"),
        "ELIVEPATCH_CVE_FEED": str(feed),
        "ELIVEPATCH_STABLE_GIT": f"file://{tmp_path}/no/such",
    }
    done = program("sync", **environment)
    assert (done.returncode, f"{tmp_path}/no/such" in done.stderr) == (6, True), done.stderr
    done = program("scan", "--version", "6.1.170", **environment)
    assert (done.returncode, "6.1.170: 2 CVEs" in done.stdout) == (0, True), done.stderr
