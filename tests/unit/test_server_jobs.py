# SPDX-License-Identifier: GPL-2.0-or-later
"""Directories of builds, the runner, the artifact store, and how events are told."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from elivepatch.errors import CancelledError, DoesNotApplyError, InternalError, NotFoundError
from elivepatch.job import InputFile, Job
from elivepatch.progress import Event, Progress
from elivepatch.protocol.models import BuildRequest, BuildStatus, ModuleReport, Report
from elivepatch.server import artifacts
from elivepatch.server.artifacts import ArtifactError, ArtifactStore, write_atomically
from elivepatch.server.database import BuildRow
from elivepatch.server.events import final_event, format_event, text_log
from elivepatch.server.jobs import runner
from elivepatch.server.jobs.directory import EventReader, JobDirectory, Worker, process_start
from elivepatch.server.upload import for_people
from elivepatch.workshop import Workshop

MODULE = b"module" * 100
JOB = Job(
    request=BuildRequest(kernel="6.12.117+deb13-cloud-amd64"),
    patches=(InputFile("../../etc/passwd", b"first"), InputFile("b", b"second")),
    base_patches=(InputFile("base", b""),),
    config=b"CONFIG_X=y\n",
    check=b"\xff\x00",
)
WORKSHOP = Workshop(cache=Path("/cache"), parallel=3, kernels_limit_bytes=5)


@pytest.fixture
def directory(tmp_path: Path) -> JobDirectory:
    made = JobDirectory(tmp_path / "builds" / "one")
    made.create(JOB, "the key")
    made.write_workshop(WORKSHOP)
    return made


def test_a_job_comes_back_as_it_was(directory: JobDirectory) -> None:
    assert directory.read_job() == (JOB, "the key")
    assert directory.read_workshop() == WORKSHOP
    # the name that was sent is told and never used
    assert {path.name for path in directory.path.iterdir()} == {
        "request.json", "workshop.json", "events.jsonl", "runner.log", *(f"input-{n}" for n in range(5)),
    }  # fmt: skip
    for path in directory.path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_job_that_was_altered_is_not_built(directory: JobDirectory) -> None:
    (directory.path / "input-1").write_bytes(b"other")
    with pytest.raises(InternalError, match="has changed"):
        directory.read_job()
    (directory.path / "request.json").write_text('{"request": {}}')
    with pytest.raises(InternalError, match="cannot be read"):
        directory.read_job()


def test_a_job_that_does_not_fit_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        JobDirectory(tmp_path / "one").create(JOB, "key")
    assert list(tmp_path.iterdir()) == []


def test_the_lock_says_who_lives(directory: JobDirectory) -> None:
    assert not directory.running()
    handle = directory.take_lock()
    assert handle is not None
    assert directory.running()
    assert directory.take_lock() is None
    assert directory.worker() is None
    os.write(handle, f"{os.getpid()} {process_start(os.getpid())}\n".encode())
    worker = directory.worker()
    assert worker is not None
    assert worker.alive
    assert not Worker(worker.pid, worker.started + 1).alive, "a later process with the same pid is another one"
    os.close(handle)
    assert not directory.running()


def run(directory: JobDirectory, build: Callable[[Path, Progress], Report]) -> Report:
    """The report that the runner leaves for such a build."""

    def whole(job: Job, workshop: Workshop, output: Path, progress: Progress) -> Report:
        assert (job, workshop) == (JOB, WORKSHOP)
        return build(output, progress)

    assert runner.run(directory, whole) == 0
    report = directory.read_report()
    assert report is not None
    assert not directory.output.exists()
    assert not directory.reserve.exists()
    return report


def done(output: Path, data: bytes = MODULE, said: bytes = MODULE, path: str | None = None) -> Report:
    (output / "livepatch-x.ko").write_bytes(data)
    digest = hashlib.sha256(said).hexdigest()
    module = ModuleReport(name="livepatch-x", sha256=digest, size=len(data), path=path)
    return Report(status=BuildStatus.DONE, key="the key", module=module)


def test_a_build_that_is_done(directory: JobDirectory) -> None:
    report = run(directory, lambda output, _: done(output, path=str(output / "livepatch-x.ko")))
    assert report.status is BuildStatus.DONE
    assert report.module is not None
    assert report.module.path is None
    assert directory.module.read_bytes() == MODULE


def _another_digest(output: Path) -> Report:
    return done(output, said=b"other")


def _no_module(output: Path) -> Report:
    return done(output).model_copy(update={"module": None})


def _elsewhere(output: Path) -> Report:
    return done(output, path="/etc/hostname")


def _not_ended(_output: Path) -> Report:
    return Report(status=BuildStatus.BUILDING, key="x")


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (_another_digest, "has the digest"),
        (_no_module, "names no module"),
        (_elsewhere, "is not there"),
        (_not_ended, "none to end in"),
    ],
)
def test_a_build_that_says_what_is_not_so_failed(
    directory: JobDirectory, build: Callable[[Path], Report], expected: str
) -> None:
    report = run(directory, lambda output, _: build(output))
    assert (report.status, report.error) == (BuildStatus.FAILED, "internal-error")
    assert expected in (report.message or "")
    assert not directory.module.exists()


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (OSError(errno.ENOSPC, "x"), "failed", "disk-full"),
        (OSError(errno.EFBIG, "x"), "failed", "disk-full"),
        (OSError(errno.EIO, "x"), "failed", "internal-error"),
        (CancelledError(), "cancelled", "cancelled"),
        (DoesNotApplyError("hunk 3"), "failed", "does-not-apply"),
        (ZeroDivisionError("inside"), "failed", "internal-error"),
    ],
)
def test_a_build_that_raises(directory: JobDirectory, error: Exception, status: str, code: str) -> None:
    def build(_output: Path, _progress: Progress) -> Report:
        raise error

    report = run(directory, build)
    assert (report.status.value, report.error, report.key) == (status, code, "the key")
    assert "inside" not in report.dump_json()


def test_what_an_earlier_attempt_left_is_gone_but_its_events(directory: JobDirectory) -> None:
    directory.prepare_attempt()
    (directory.output / "half.ko").write_bytes(b"half")
    directory.write_report(Report(status=BuildStatus.FAILED, key="old"))
    directory.module.write_bytes(b"old")
    directory.events.write_bytes(b'{"kind": "step", "message": "one"}\n{"kind": "st')

    def build(output: Path, progress: Progress) -> Report:
        assert list(output.iterdir()) == []
        assert directory.read_report() is None
        assert not directory.module.exists()
        progress.step("two")
        return Report(status=BuildStatus.REFUSED, key="the key")

    assert run(directory, build).status is BuildStatus.REFUSED
    events = EventReader(directory.events).read()
    told = [(number, event["message"]) for number, event in events]
    assert told == [(1, "one"), (3, "The process of this build died; it is started again."), (4, "two")]


def test_events_are_bounded(directory: JobDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_EVENTS_BYTES", 20_000)
    with runner.bounded(directory.events) as sink:
        for number in range(100):
            sink(Event(kind="log", message=f"{number} " + "ä" * 10_000))
        sink(Event(kind="phase", message="verifying", phase="verifying"))
        sink(Event(kind="done", message="over"))
    messages = [event["message"] for _, event in EventReader(directory.events).read()]
    assert len(messages) < 10
    assert all(len(message) < 4100 for message in messages)
    assert "longer than is kept" in messages[-2]
    assert messages[-1] == "verifying"


def test_events_are_read_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "events"
    reader = EventReader(path, chunk=64)
    assert reader.read() == []
    assert not reader.grown()
    with path.open("ab", buffering=0) as stream:
        stream.write(b'{"kind": "step", "message": "1"}\n{"kind"')
        assert [number for number, _ in reader.read()] == [1]
        assert reader.read() == []
        stream.write(b': "step", "message": "2"}\n[]\nnot json\n' + b"x" * 200)
        found: list[int] = []
        for _ in range(20):
            found += [number for number, _ in reader.read()]
        stream.write(b'\n{"kind": "step", "message": "6"}\n')
        for _ in range(5):
            found += [number for number, _ in reader.read()]
    assert found == [2, 6]


def test_server_sent_events() -> None:
    event = {"kind": "log", "message": "two\nlines \u2028 ä", "time": 1.5}
    text = format_event(7, "log", event).decode()
    lines = text.split("\n")
    assert lines[0] == "id: 7"
    assert lines[1] == "event: log"
    assert lines[2].startswith("data: ")
    assert json.loads(lines[2].removeprefix("data: ")) == event
    assert lines[3:] == ["", ""]


def test_the_last_event_says_how_it_ended() -> None:
    row = BuildRow(status="refused", finished=5.0, report={"message": "It changes nothing."})
    assert final_event(row) == {"kind": "done", "message": "It changes nothing.", "phase": "refused", "time": 5.0}
    assert final_event(BuildRow(status="cancelled"))["message"] == "The build is cancelled."


def test_the_log_as_text(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_text(
        '{"kind": "phase", "message": "building", "time": 3661.5}\nbroken\n{"kind": "log", "message": "cc"}\n'
    )
    assert b"".join(text_log(path)).decode() == "01:01:01.500 == building ==\n00:00:00.000 cc\n"


# -- artifacts


def test_an_artifact_comes_back(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts")
    digest = hashlib.sha256(MODULE).hexdigest()
    assert not store.holds(digest)
    with pytest.raises(NotFoundError):
        store.get(digest)
    store.put(MODULE, digest)
    store.put(MODULE, digest)
    assert store.holds(digest)
    assert store.get(digest) == MODULE
    path = tmp_path / "artifacts" / digest[:2] / digest
    path.write_bytes(MODULE[:-1])
    with pytest.raises(ArtifactError, match="has changed"):
        store.get(digest)


@pytest.mark.parametrize("digest", ["0" * 64, "0" * 63, "../" + "0" * 61, "A" * 64])
def test_an_artifact_of_another_digest_is_not_stored(tmp_path: Path, digest: str) -> None:
    store = ArtifactStore(tmp_path / "artifacts")
    with pytest.raises(ArtifactError, match="not"):
        store.put(MODULE, digest)
    assert [path.name for path in (tmp_path / "artifacts").rglob("*")] == ["incoming"]


def test_a_store_forgets_what_was_being_written(tmp_path: Path) -> None:
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming" / ".abc.123").write_bytes(b"half")
    ArtifactStore(tmp_path)
    assert list((tmp_path / "incoming").iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def broken(_handle: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(artifacts.os, "fsync", broken)
    with pytest.raises(OSError, match="broken"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a.patch", "a.patch"), ("../../x", "x"), ("C:\\y\\z.diff", "z.diff"), ("\x1b[31m\n", "[31m"), ("/", "d")],
)
def test_names_are_for_people(name: str, shown: str) -> None:
    assert for_people(name, "d") == shown
    assert len(for_people("x" * 1000, "d")) == 200


def test_the_lock_is_the_kernels(directory: JobDirectory) -> None:
    """It ends with its holder: nothing has to be cleaned up after a kill."""
    pid = os.fork()
    if pid == 0:
        handle = os.open(directory.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    assert not directory.running()
