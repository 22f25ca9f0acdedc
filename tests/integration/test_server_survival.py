# SPDX-License-Identifier: GPL-2.0-or-later
"""What the server promises when it, or a build, or the disk, comes to a sudden end."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

import httpx2
import pytest
from server_support import FINAL, ServerProcess, events_of, get, patch, post, serving, wait, wait_for_status, worker_of

from elivepatch.server.jobs.directory import JobDirectory

pytestmark = pytest.mark.integration


def test_kills_at_random_moments_of_fifty_builds(tmp_path: Path) -> None:
    seed = int(os.environ.get("ELIVEPATCH_TEST_SEED", "2"))  # others are for trying by hand
    dice = random.Random(seed)
    asked: dict[str, bytes] = {}
    kills = {"build": 0, "server": 0, "both": 0}
    with serving(tmp_path / "data", jobs="3") as server:
        for round_ in range(10):
            victim = dice.choice(list(kills))
            for number in range(5):
                data = patch(f"{seed}.{round_}.{number}")
                # the first one lasts, so that there is a build to be hit on a fast machine as on a slow one
                length = "short-3" if victim == "build" and number == 0 else "short-0.1"
                asked[post(server, length, data).json()["id"]] = data
            if victim == "build":
                _await_build(server)
            time.sleep(dice.uniform(0.0, 1.2))
            kills[victim] += _kill(server, victim, dice)
            _check_what_is_served(server, asked)
        # Kills can hit both attempts of a build, and then it is said to have failed; no build may be anything else.
        ends = {build_id: wait(server, build_id) for build_id in asked}
        _check_what_is_served(server, asked)
        assert {build["status"] for build in ends.values()} <= {"done", "failed"}
        for build in ends.values():
            if build["status"] == "failed":
                assert "died" in build["report"]["message"]
        done = [build_id for build_id, build in ends.items() if build["status"] == "done"]
        assert len(done) >= 30
        assert min(kills.values()) > 0, kills
        for build_id in done:  # the streams are whole: ids without repetition, one end
            numbers = [number for number, _, _ in events_of(get(server, f"/builds/{build_id}/events").text)]
            assert numbers == sorted(set(numbers))
        # nothing is left running, and the artifacts hold nothing but whole modules
        assert not any(JobDirectory(path).running() for path in (server.data / "builds").iterdir())
        for path in (server.data / "artifacts").glob("??/*"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        # and it works on
        assert wait(server, post(server, "short", patch("afterwards")).json()["id"])["status"] == "done"


def _kill(server: ServerProcess, victim: str, dice: random.Random) -> int:
    """Kill by id; how many processes were hit."""
    hit = 0
    if victim in ("server", "both"):
        if victim == "both" and dice.random() < 0.5:
            hit += _kill_builds(server, dice)
        server.kill()
        hit += 1
    if victim in ("build", "both"):
        hit += _kill_builds(server, dice)
    deadline = time.monotonic() + 30
    while victim == "build" and not hit and time.monotonic() < deadline:  # the one that lasts may be about to begin
        time.sleep(0.02)
        hit += _kill_builds(server, dice)
    if victim in ("server", "both"):
        if dice.random() < 0.3:
            with contextlib.suppress(AssertionError):  # killed again while it comes up
                _start_and_kill(server, dice)
        server.start()
    return hit


def _await_build(server: ServerProcess, seconds: float = 30.0) -> None:
    """Wait until the process of a build runs."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if any(JobDirectory(path).running() for path in (server.data / "builds").iterdir()):
            return
        time.sleep(0.02)


def _kill_builds(server: ServerProcess, dice: random.Random) -> int:
    workers = [
        worker
        for path in sorted((server.data / "builds").iterdir())
        if JobDirectory(path).running() and (worker := JobDirectory(path).worker()) is not None and worker.alive
    ]
    chosen = [worker for worker in workers if dice.random() < 0.7] or workers[:1]
    for worker in chosen:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
    return len(chosen)


def _start_and_kill(server: ServerProcess, dice: random.Random) -> None:
    server.start()
    time.sleep(dice.uniform(0.0, 0.2))
    server.kill()


def _check_what_is_served(server: ServerProcess, asked: dict[str, bytes]) -> None:
    """At any moment: a module is whole and the right one, or it is not served."""
    with httpx2.Client(timeout=30) as client:
        for build_id, data in asked.items():
            answer = client.get(f"{server.url}/builds/{build_id}/module")
            if answer.status_code == 200:
                assert answer.content == hashlib.sha256(data).digest() * 4096
            else:
                assert answer.status_code == 409
                assert client.get(f"{server.url}/builds/{build_id}").json()["status"] in {
                    *FINAL, "queued", "preparing", "building", "verifying",
                }  # fmt: skip


def test_a_build_survives_a_restart_in_one_process(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as server:
        build_id = post(server, "short-1", patch("adopted")).json()["id"]
        wait_for_status(server, build_id, "building")
        directory = JobDirectory(server.data / "builds" / build_id)
        before = worker_of(server, build_id)
        server.kill()
        server.start()
        assert directory.worker() == before
        assert post(server, "short-1", patch("adopted")).json()["id"] == build_id
        assert wait(server, build_id)["status"] == "done"
        phases = [d["phase"] for _, k, d in events_of(get(server, f"/builds/{build_id}/events").text) if k == "phase"]
        assert phases == ["preparing", "building", "verifying"]


def test_a_build_that_ends_while_no_server_runs_is_done(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as server:
        build_id = post(server, "short-0.3", patch("alone")).json()["id"]
        worker_of(server, build_id)
        server.kill()
        deadline = time.monotonic() + 20
        while JobDirectory(server.data / "builds" / build_id).running():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server.start()
        assert wait(server, build_id)["status"] == "done"
        assert get(server, f"/builds/{build_id}/module").status_code == 200


def test_a_build_told_to_end_by_the_system_is_not_cancelled_but_made_again(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as server:
        build_id = post(server, "short-0.5", patch("shutdown")).json()["id"]
        wait_for_status(server, build_id, "building")
        worker = worker_of(server, build_id)
        os.kill(worker.pid, signal.SIGTERM)
        assert wait(server, build_id)["status"] == "done"


def test_a_cancel_survives_the_server(tmp_path: Path) -> None:
    with serving(tmp_path / "data", cancel_seconds="30") as server:
        build_id = post(server, "short-30", patch("cancelled")).json()["id"]
        wait_for_status(server, build_id, "preparing")
        worker = worker_of(server, build_id)
        os.kill(worker.pid, signal.SIGSTOP)  # so that it cannot end politely before the server dies
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.delete(f"{server.url}/builds/{build_id}", timeout=1)
        server.kill()
        os.kill(worker.pid, signal.SIGCONT)
        server.start()
        assert wait(server, build_id)["status"] == "cancelled"


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A file system of 8 MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


def _check_disk_full(server: ServerProcess) -> None:
    build = wait(server, post(server, "fill", patch("full")).json()["id"])
    assert build["status"] == "failed"
    assert build["report"]["error"] == "disk-full"
    assert build["report"]["hint"]
    answer = get(server, f"/builds/{build['id']}/module")
    assert answer.status_code == 409
    assert wait(server, post(server, "short", patch("next")).json()["id"])["status"] == "done"
    again = post(server, "fill", patch("full"))
    assert again.status_code == 202
    assert wait(server, again.json()["id"])["report"]["error"] == "disk-full"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts; the next test needs no root")
def test_disk_full_in_a_build(small_disk: Path) -> None:
    with serving(small_disk / "data", disk_reserve_bytes="0") as server:
        _check_disk_full(server)


def test_file_size_limit_in_a_build(tmp_path: Path) -> None:
    limited = ServerProcess(tmp_path / "data", {"TEST_FILE_BYTES": str(1024 * 1024)})
    try:
        limited.start()
        _check_disk_full(limited)
    finally:
        limited.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_disk_that_others_fill(small_disk: Path) -> None:
    with serving(small_disk / "data", disk_reserve_bytes="1000000") as server:
        running = post(server, "short-0.5", patch("before")).json()["id"]
        wait_for_status(server, running, "building")
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
        refused = post(server, "short", patch("refused"))
        assert refused.status_code == 507
        assert refused.json()["code"] == "disk-full"
        health = get(server, "/health")
        assert health.status_code == 503
        assert health.json()["status"] == "degraded"
        time.sleep(2)
        assert get(server, f"/builds/{running}").status_code == 200
        filler.unlink()
        build = wait(server, running)
        assert build["status"] == "failed"
        assert build["report"]["error"] == "disk-full"
        assert wait(server, post(server, "short", patch("refused")).json()["id"])["status"] == "done"
        assert get(server, "/health").status_code == 200
