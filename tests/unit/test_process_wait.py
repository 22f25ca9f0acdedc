# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for programs: with the kernel's word for their end, and where that cannot be had."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from elivepatch.errors import ElivepatchError, ToolUnavailableError
from elivepatch.process import ProgramError, run, started


@pytest.fixture(params=["pidfd", "without"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "without":

        def refuse(_pid: int, _flags: int = 0) -> int:
            raise PermissionError

        monkeypatch.setattr(os, "pidfd_open", refuse)
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_the_exit_status_and_the_output_are_there() -> None:
    done = run(["sh", "-c", "echo out; sleep 0.1; exit 3"], check=False)
    assert (done.returncode, done.stdout) == (3, "out\n")


@pytest.mark.usefixtures("way")
def test_input_arrives_whole_or_in_pieces_and_is_empty_where_none_is_given() -> None:
    assert run(["cat"], stdin=b"one\n").stdout == "one\n"
    assert len(run(["cat"], stdin=(b"x" * 100_000 for _ in range(20))).stdout) == 2_000_000
    assert run(["true"], stdin=(b"x" * 100_000 for _ in range(20))).returncode == 0
    assert run(["cat"]).stdout == ""


def test_a_program_that_takes_too_long_is_ended() -> None:
    with pytest.raises(ProgramError, match="time limit") as caught:
        run(["sleep", "100"], timeout=0.3)
    assert caught.value.completed.returncode == -9


@pytest.mark.usefixtures("way")
def test_the_guard_is_asked_while_the_program_runs() -> None:
    asked: list[int] = []

    def guard() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise ElivepatchError("enough")

    with pytest.raises(ElivepatchError, match="enough"):
        run(["sleep", "100"], guard=guard)


@pytest.mark.usefixtures("way")
def test_no_descriptor_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        run(["true"])
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_the_signal_that_ended_a_program_is_told() -> None:
    done = run(["sh", "-c", "kill -SEGV $$"], check=False)
    assert (done.returncode, done.signalled) == (128 + signal.SIGSEGV, True)


@pytest.mark.parametrize("name", ["elivepatch-no-such-program", "/nonexistent/program"])
def test_a_program_that_is_not_installed(name: str) -> None:
    with pytest.raises(ToolUnavailableError, match=name):
        run([name])


def test_a_program_beside_us_may_end_by_itself(tmp_path: Path) -> None:
    script = "cd $0; trap 'sleep 0.2; touch ended; exit' TERM; touch ready; while :; do sleep 0.05; done"
    with started(["sh", "-c", script, tmp_path], log=tmp_path / "log") as running:
        _until((tmp_path / "ready").exists)
        running.end(grace=5)
        assert (tmp_path / "ended").exists()


_KILLED = """
import sys
from elivepatch.process import run
run(["sh", "-c", "sleep 1000 & echo $$ $! > $0.new; mv $0.new $0; exec sleep 1000", sys.argv[1]])
"""


def test_nothing_that_a_program_started_outlives_us(tmp_path: Path) -> None:
    """Of a program that is a shell with a child of its own, neither is left when our process is killed."""
    told = tmp_path / "pids"
    child = subprocess.Popen([sys.executable, "-c", _KILLED, told])
    _until(told.exists)
    pids = [int(word) for word in told.read_text().split()]
    assert all(_runs(pid) for pid in pids)
    child.kill()
    child.wait()
    _until(lambda: not any(_runs(pid) for pid in pids))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
