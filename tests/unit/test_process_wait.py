# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for programs: with the kernel's word for their end, and where that cannot be had."""

import os

import pytest

from elivepatch.errors import ElivepatchError
from elivepatch.process import ProgramError, run


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
