# SPDX-License-Identifier: GPL-2.0-or-later
"""The embedded job engine: a thread of the server that starts each build as a process of its own.

The thread remembers nothing that matters: at each turn it looks at the database and at the directories of the builds
that run, and does what follows from what it finds. So the first turn after a restart is like every other:

    state in the database   lock of the directory   report      then
    queued                  -                       -           start it, when there is room
    running                 held                    -           it lives: note that, follow its phase; end it if asked
    running                 free                    there       note how it ended
    running                 free                    not there   its process died: queue it again, or give it up
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from elivepatch import process
from elivepatch.errors import (
    CancelledError,
    DiskFullError,
    ElivepatchError,
    InternalError,
    ResourceExhaustedError,
    UnavailableError,
)
from elivepatch.protocol.models import BuildStatus, Report
from elivepatch.server.artifacts import ArtifactStore
from elivepatch.server.database import RUNNING, BuildRow, Database
from elivepatch.server.jobs.directory import EventReader, JobDirectory, Worker
from elivepatch.server.jobs.runner import EXIT_DISK_FULL, failure
from elivepatch.server.settings import Settings

RUNNER = (sys.executable, "-m", "elivepatch.server.jobs.runner")
#: Seconds between two looks while builds run, and while none does.
_BUSY_SECONDS = 0.1
_IDLE_SECONDS = 1.0
#: Seconds between two notes in the database that a build lives.
_HEARTBEAT_SECONDS = 10.0
_CLEANING_SECONDS = 600.0
_FULL_BYTES = 1024 * 1024

_log = logging.getLogger(__name__)


@dataclass
class _Watched:
    """What the thread remembers of a build that runs, all of it only for speed or for the grace of an ending."""

    events: EventReader
    child: process.Running | None = None
    status: BuildStatus = BuildStatus.PREPARING
    noted: float = field(default=0.0)
    asked_to_end: float | None = None
    reason: ElivepatchError | None = None


class EmbeddedEngine:
    """The engine; see the module. ``runner`` is the program of a build, to which the directory is added."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        artifacts: ArtifactStore,
        runner: Sequence[str] = RUNNER,
    ) -> None:
        self._settings = settings
        self._database = database
        self._artifacts = artifacts
        self._runner = tuple(runner)
        self._builds = settings.data / "builds"
        self._watched: dict[str, _Watched] = {}
        self._wake = threading.Event()
        self._stopping = False
        self._problem: str | None = None
        self._cleaned = 0.0
        self._thread = threading.Thread(target=self._loop, name="builds", daemon=True)

    def start(self) -> None:
        """Begin to run builds. The data directory is this engine's alone (`directory.only_server`)."""
        self._remove_orphans()
        self._thread.start()

    def stop(self) -> None:
        """Stop starting builds; those that run go on, and the next server finds them."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def wake(self) -> None:
        """Look now."""
        self._wake.set()

    def problems(self) -> tuple[str, ...]:
        """The last turn's failure, and whether the thread still lives."""
        if not self._thread.is_alive() and not self._stopping:
            return ("The job engine has stopped.",)
        return (self._problem,) if self._problem else ()

    def directory(self, build_id: str) -> JobDirectory:
        """Where a build lies."""
        return JobDirectory(self._builds / build_id)

    def _loop(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                busy = self.turn()
                self._problem = None
            except Exception as error:  # whatever it was, the other builds and the next turn must go on
                busy = False
                self._problem = f"The job engine cannot work: {error}"
                _log.exception("A turn of the job engine failed; it is tried again.")
            self._wake.wait(_BUSY_SECONDS if busy else _IDLE_SECONDS)

    def turn(self) -> bool:
        """Do all that there is to do now; whether there may soon be more."""
        rows = self._database.live()
        running = [row for row in rows if row.state in RUNNING]
        queued = [row for row in rows if row.state is BuildStatus.QUEUED]
        alive = 0
        for row in running:
            alive += self._look_after(row)
        for row in queued[: max(0, self._settings.jobs - alive)]:
            with self._isolated(row):
                alive += self._start(row)
        for build_id in self._watched.keys() - {row.id for row in rows}:
            self._forget(build_id)
        if time.monotonic() - self._cleaned > _CLEANING_SECONDS or not self._cleaned:
            self._clean()
        # One that has just ended may have made room, or is to be started again.
        return alive > 0 or bool(running)

    @contextlib.contextmanager
    def _isolated(self, row: BuildRow) -> Generator[None]:
        """What goes wrong with a build that has no process ends that build, not the turn."""
        try:
            yield
        except (DiskFullError, UnavailableError):
            raise  # the database's: nothing can be noted now, the next turn tries again
        except ElivepatchError as error:
            _log.exception("Build %s failed.", row.id)
            self._end(row, failure(error, row.key))
        except OSError as error:
            _log.exception("Build %s failed.", row.id)
            self._end(row, failure(self._translated(error), row.key))

    def _translated(self, error: OSError) -> ElivepatchError:
        if self._disk_full():
            return DiskFullError("No space is left on the device of the builds.")
        return InternalError(f"The build failed: {os.strerror(error.errno or 0)}.")

    def _disk_full(self) -> bool:
        return shutil.disk_usage(self._builds).free < _FULL_BYTES

    def _start(self, row: BuildRow) -> bool:
        """Start a build; whether it was."""
        directory = self.directory(row.id)
        # With the lock in hand there is no process of an earlier attempt any more, and no moment without a holder
        # until the new one ends: whoever looks finds the lock held, or the build dead.
        handle = directory.take_lock()
        if handle is None:
            return False
        try:
            if not self._database.claim(row.id):
                return False
            directory.write_workshop(self._settings.workshop)
            child = process.launch(
                [*self._runner, str(directory.path), "--lock-fd", str(handle)],
                log=directory.log,
                cwd=directory.path,
                pass_fds=[handle],
            )
        finally:
            os.close(handle)
        _log.info("Build %s started for %s, attempt %d.", row.id, row.kernel, row.attempts + 1)
        self._watched[row.id] = _Watched(EventReader(directory.events), child)
        return True

    def _look_after(self, row: BuildRow) -> bool:
        """Look at a build that is said to run; whether it does."""
        directory = self.directory(row.id)
        watched = self._watched.get(row.id)
        if watched is None:
            _log.info("Build %s was started by an earlier server.", row.id)
            watched = self._watched[row.id] = _Watched(EventReader(directory.events), status=row.state)
        if not directory.running():
            with self._isolated(row):
                self._conclude(row, directory, watched)
            return False
        try:
            self._follow(row, directory, watched)
        except OSError:
            _log.exception("Build %s cannot be followed; it goes on.", row.id)
        return True

    def _follow(self, row: BuildRow, directory: JobDirectory, watched: _Watched) -> None:
        status = watched.status
        for _, event in watched.events.read():
            if event["kind"] == "phase" and event.get("phase") in {s.value for s in RUNNING}:
                status = BuildStatus(event["phase"])
        now = time.monotonic()
        if status is not watched.status or row.worker_pid is None or now - watched.noted > _HEARTBEAT_SECONDS:
            worker = directory.worker()
            self._database.seen(row.id, status, (worker.pid, worker.started) if worker else None)
            watched.status, watched.noted = status, now
        if row.cancel:
            watched.reason = CancelledError()
        elif row.started is not None and time.time() - row.started > self._limit(row):
            name = "plan_seconds" if row.request.get("cves") is not None else "build_seconds"
            watched.reason = ResourceExhaustedError(
                f"The build took longer than the {self._limit(row):.0f} s that one may take.",
                hint=f"If the machine is slow or the kernel was new to it, raise the setting '{name}'.",
            )
        if watched.reason is not None:
            self._ask_to_end(directory.worker(), watched)

    def _limit(self, row: BuildRow) -> float:
        """How long a build may run, in seconds."""
        plan = row.request.get("cves") is not None
        return self._settings.plan_seconds if plan else self._settings.build_seconds

    def _ask_to_end(self, worker: Worker | None, watched: _Watched) -> None:
        """End the process: politely first, so that it ends what it started, and for good after a while."""
        if worker is None or not worker.alive:  # it has not said yet who it is, or is about to be gone
            return
        now = time.monotonic()
        if watched.asked_to_end is None:
            watched.asked_to_end = now
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGTERM)
        elif now - watched.asked_to_end > self._settings.cancel_seconds:
            process.end_group(worker.pid)

    def _conclude(self, row: BuildRow, directory: JobDirectory, watched: _Watched) -> None:
        """The process of a build has ended: note what came of it."""
        status = watched.child.wait(1.0) if watched.child is not None else None
        report = directory.read_report()
        if report is not None and report.status is BuildStatus.DONE:
            self._keep_module(report, directory)
        if report is not None and report.status is BuildStatus.CANCELLED:
            report = None  # it only knows that it was ended, not why; a machine that shuts down ends it too
        if report is None and (row.cancel or watched.reason is not None):
            report = failure(watched.reason or CancelledError(), row.key)
        if report is None and (status == EXIT_DISK_FULL or self._disk_full()):
            report = failure(DiskFullError("No space is left on the device of the builds."), row.key)
        if report is not None:
            self._end(row, report)
        elif row.attempts < self._settings.attempts:
            _log.warning("The process of build %s died (%s); it is started again.", row.id, status)
            self._forget(row.id)
            self._database.requeue(row.id)
        else:
            _log.error("The process of build %s died (%s) for the last time.", row.id, status)
            message = f"The process of the build died {row.attempts} times without saying why."
            self._end(row, failure(InternalError(message, hint=_DIED_HINT), row.key))

    def _keep_module(self, report: Report, directory: JobDirectory) -> None:
        """Put the module into the artifact store; it is there before the build is said to be done."""
        if report.module is None and report.cves is not None:
            return
        if report.module is None:
            raise InternalError("The build says that it is done and names no module.")
        try:
            data = directory.module.read_bytes()
        except FileNotFoundError:
            # A server that was ended between noting and removing leaves it only in the store.
            self._artifacts.get(report.module.sha256)
            return
        self._artifacts.put(data, report.module.sha256)

    def _end(self, row: BuildRow, report: Report) -> None:
        if self._database.finish(row.id, report.status, report):
            _log.info("Build %s ended: %s.", row.id, report.status.value)
        directory = self.directory(row.id)
        directory.module.unlink(missing_ok=True)
        directory.remove_output()
        self._forget(row.id)

    def _forget(self, build_id: str) -> None:
        watched = self._watched.pop(build_id, None)
        if watched is not None and watched.child is not None:
            watched.child.wait(1.0)  # take its exit status, or it stays in the process table

    def _clean(self) -> None:
        """Remove the directories of builds that ended longer ago than the retention says, and such plans as a whole."""
        self._cleaned = time.monotonic()
        before = time.time() - self._settings.retention_days * 86400
        for path in _children(self._builds):
            row = self._database.get(path.name)
            if row is not None and row.finished is not None and row.finished < before:
                JobDirectory(path).remove()
        if forgotten := self._database.forget_plans(before):
            _log.info("%d old plans were removed.", forgotten)

    def _remove_orphans(self) -> None:
        """Remove directories that no build knows: their request was being taken in when the server was ended."""
        for path in _children(self._builds):
            if self._database.get(path.name) is None and not JobDirectory(path).running():
                JobDirectory(path).remove()


_DIED_HINT = (
    "The operator finds its last words in runner.log of the build's directory; the usual reason is memory. "
    "The same request may be sent again."
)


def _children(directory: Path) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True, mode=0o711)
    return list(directory.iterdir())
