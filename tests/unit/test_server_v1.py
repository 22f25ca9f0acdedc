# SPDX-License-Identifier: GPL-2.0-or-later
"""What the server remembers of clients of the first version, and which kernel they mean."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from elivepatch.errors import BusyError, ElivepatchError, InvalidInputError, InvalidSettingError
from elivepatch.kernel.config import KernelConfig, parse_config
from elivepatch.server import v1_sessions
from elivepatch.server.settings import Settings, load
from elivepatch.server.v1_request import ClassicRequest, as_job, kernel_name
from elivepatch.server.v1_sessions import PatchMemory, Sessions, SessionTakenError

CONFIG = b"CONFIG_64BIT=y\n"


class Clock:
    time = 0.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


def use(sessions: Sessions, uuid: str, build: str = "b") -> None:
    sessions.enter(uuid, "digest")
    sessions.name_build(uuid, build, "patch")
    sessions.leave(uuid)


def test_a_session_lives_from_its_last_use(clock: Clock) -> None:
    sessions = Sessions(10, 60, clock)
    use(sessions, "a")
    clock.time = 50
    assert sessions.build("a") == ("b", "patch")
    clock.time = 105
    assert sessions.build("a") == ("b", "patch")
    clock.time = 170
    assert sessions.build("a") is None
    assert len(sessions) == 0


def test_a_session_that_is_waited_in_is_not_forgotten(clock: Clock) -> None:
    sessions = Sessions(1, 60, clock)
    sessions.enter("a", "digest")
    clock.time = 1000
    assert sessions.build("a") is None
    with pytest.raises(BusyError):
        sessions.enter("b", "digest")
    sessions.name_build("a", "b", "patch")
    sessions.leave("a")
    assert sessions.build("a") == ("b", "patch")


def test_of_too_many_sessions_the_one_longest_unused_goes(clock: Clock) -> None:
    sessions = Sessions(2, 60, clock)
    for time, uuid in enumerate(("a", "b")):
        clock.time = time
        use(sessions, uuid)
    clock.time = 5
    assert sessions.build("a")
    use(sessions, "c")
    assert [sessions.build(uuid) is not None for uuid in "abc"] == [True, False, True]


def test_a_session_without_a_build_leaves_nothing(clock: Clock) -> None:
    sessions = Sessions(2, 60, clock)
    sessions.enter("a", "one")
    sessions.enter("a", "one")
    sessions.leave("a")
    with pytest.raises(SessionTakenError):
        sessions.enter("a", "other")
    sessions.leave("a")
    sessions.enter("a", "other")


def test_the_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v1_sessions, "REMEMBERED", 3)
    memory = PatchMemory(tmp_path / "m")
    assert not memory.knows("k", "c", b"0")
    for number in range(3):
        memory.add(memory.name("k", "c", b"%d" % number))
        os.utime(tmp_path / "m" / memory.name("k", "c", b"%d" % number), (number, number))
    assert memory.knows("k", "c", b"0")  # used just now
    assert not memory.knows("other", "c", b"0")
    assert not memory.knows("k", "other", b"0")
    memory.add(memory.name("k", "c", b"3"))
    assert [memory.knows("k", "c", b"%d" % number) for number in range(4)] == [True, False, True, True]


def test_what_another_request_has_just_forgotten_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v1_sessions, "REMEMBERED", 1)
    memory = PatchMemory(tmp_path / "m")
    memory.add(memory.name("k", "c", b"1"))
    (tmp_path / "m/gone").symlink_to("nowhere")  # listed, and no file any more
    memory.add(memory.name("k", "c", b"2"))
    assert memory.knows("k", "c", b"2")


def kernel(cache: Path, key: str, **facts: str) -> None:
    """A prepared kernel, as far as it is looked at."""
    place = cache / "kernels/prepared" / key
    (place / "image").mkdir(parents=True)
    (place / "kernel.json").write_text(json.dumps({"image": "published", "origin": "x", "build_id": "x", **facts}))
    (place / "image/config").write_text("#\n# Automatic\n# Linux/x86 6.12.118 Kernel Configuration\n#\n")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("6.12.118", "6.12.118+deb13-cloud-amd64"),
        ("6.12.11", "gentoo:gentoo-sources-6.12.11"),
        ("6.12", "gentoo:gentoo-sources-6.12"),
        ("5.1.6-gentoo", "5.1.6-gentoo"),
        ("6.12.117+deb13-amd64", "6.12.117+deb13-amd64"),
    ],
)
def test_which_kernel_is_meant(tmp_path: Path, version: str, expected: str) -> None:
    config, other = parse_config(CONFIG), parse_config(b"CONFIG_32BIT=y\n")
    kernel(tmp_path, "a", release="6.12.118+deb13-cloud-amd64", config_sha256=config.sha256)
    kernel(tmp_path, "b", release="6.12.118+deb13-amd64", config_sha256=other.sha256)
    kernel(tmp_path, "c", release="6.12.118-own", config_sha256=config.sha256, image="built")
    assert kernel_name(version, config, Settings(cache=tmp_path)) == expected


def test_which_of_two_kernels_is_meant_is_not_guessed(tmp_path: Path) -> None:
    config = parse_config(CONFIG)
    for key in ("a", "b"):
        kernel(tmp_path, key, release=f"6.12.118-{key}", config_sha256=config.sha256)
    with pytest.raises(InvalidInputError, match=r"6\.12\.118-a, 6\.12\.118-b") as caught:
        kernel_name("6.12.118", config, Settings(cache=tmp_path))
    assert "uname -r" in str(caught.value.hint)


def test_where_other_kernels_come_from_is_a_setting(tmp_path: Path) -> None:
    settings = Settings(cache=tmp_path, v1_kernel="kernel.org:{version}", v1_proof="none")
    assert kernel_name("5.1.6", KernelConfig({}), settings) == "kernel.org:5.1.6"
    job = as_job(ClassicRequest("5.1.6", b"main", CONFIG, (b"own",)), settings, PatchMemory(Path("/nonexistent")))
    assert (job.request.kernel, job.request.proof) == ("kernel.org:5.1.6", "none")
    assert [file.data for file in job.base_patches] == [b"own"]
    for wrong in ("nonsense:{version}", "{version", "dir:relative"):
        with pytest.raises(InvalidSettingError, match="'v1_kernel'"):
            load(v1_kernel=wrong)


def test_the_patches_of_a_gentoo_release_are_its_own(tmp_path: Path) -> None:
    memory = PatchMemory(tmp_path)
    memory.add(memory.name("5.1.6-gentoo", parse_config(CONFIG).sha256, b"live"))
    request = ClassicRequest("5.1.6-gentoo", b"main", CONFIG, (b"own", b"live", b"later"))
    job = as_job(request, Settings(), memory)
    assert [file.data for file in job.base_patches] == [b"own"]
    assert [file.data for file in job.patches] == [b"live", b"later", b"main"]


def test_a_livepatch_of_one_kernel_is_a_patch_of_another_that_was_built_with_it(tmp_path: Path) -> None:
    memory = PatchMemory(tmp_path)
    memory.add(memory.name("5.1.6-gentoo", parse_config(CONFIG).sha256, b"fix"))
    same = ClassicRequest("5.1.6-gentoo", b"main", b"# as /proc/config.gz says it\n" + CONFIG, (b"fix",))
    assert not as_job(same, Settings(), memory).base_patches
    other = ClassicRequest("5.1.6-gentoo", b"main", CONFIG + b"CONFIG_SMP=y\n", (b"fix",))
    assert [file.data for file in as_job(other, Settings(), memory).base_patches] == [b"fix"]


def test_what_is_sent_decides_the_digest() -> None:
    one = ClassicRequest("6.1", b"main", CONFIG)
    others = [
        ClassicRequest("6.1", b"main", CONFIG, (b"x",)),
        ClassicRequest("6.1", b"other", CONFIG),
        ClassicRequest("6.2", b"main", CONFIG),
        ClassicRequest("6.1", CONFIG, b"main"),
    ]
    assert len({request.digest for request in [one, *others]}) == 5
    assert one.digest == ClassicRequest("6.1", b"main", CONFIG).digest


def test_a_taken_session_is_a_kind_of_its_own() -> None:
    assert issubclass(SessionTakenError, ElivepatchError)
    assert (SessionTakenError.http_status, SessionTakenError.exit_status) == (409, 2)
