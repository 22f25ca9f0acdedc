# SPDX-License-Identifier: GPL-2.0-or-later
"""The process of one build: ``python -m elivepatch.server.jobs.runner JOBDIR --lock-fd N``.

It knows its directory and nothing of the server, so the server may end and start again meanwhile. It holds the lock
of the directory for its life, tells its events to a file, and says last and at once how the build ended; who finds
the lock free and no report knows that it died.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from elivepatch.cves.job import make
from elivepatch.errors import CancelledError, DiskFullError, ElivepatchError, InternalError
from elivepatch.job import Job
from elivepatch.progress import Event, Progress, Sink
from elivepatch.protocol import limits
from elivepatch.protocol.models import BuildStatus, Report
from elivepatch.server.jobs.directory import JobDirectory, hold_lock
from elivepatch.workshop import Workshop

BuildFunction = Callable[[Job, Workshop, Path, Progress], Report]

#: What the process exits with when it could not even write its report; any other end without one is a death.
EXIT_DISK_FULL = 75
_RESERVE_BYTES = 128 * 1024
#: Bytes of events that a build may tell; past it, only phases and steps are kept.
_EVENTS_BYTES = 32 * 1024 * 1024
_LINE_CHARACTERS = 4000
#: How an OSError says that there is no more room: the disk, the quota, or the limit of a file's size.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None, build: BuildFunction = make) -> int:
    """Run the build of a job directory; the exit status says whether there is a report."""
    parser = argparse.ArgumentParser(prog="elivepatch-runner")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--lock-fd", type=int)
    options = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    directory = JobDirectory(options.directory)
    handle: int | None = options.lock_fd if options.lock_fd is not None else directory.take_lock()
    if handle is None:
        _log.error("The build in '%s' runs already.", directory.path)
        return 1
    hold_lock(handle)
    signal.signal(signal.SIGTERM, _cancelled)
    return run(directory, build)


def _cancelled(_signal: int, _frame: FrameType | None) -> None:
    # Raised into whatever the build is doing: `process.run` then ends the program that it waits for.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise CancelledError


def run(directory: JobDirectory, build: BuildFunction) -> int:
    """Run the build and write its report, whatever happens."""
    key = "unknown"
    try:
        directory.prepare_attempt()
        _reserve(directory)
        job, key = directory.read_job()
        with bounded(directory.events) as sink:
            progress = Progress(sink)
            if directory.events.stat().st_size:
                progress.step("The process of this build died; it is started again.")
            report = build(job, directory.read_workshop(), directory.output, progress)
        report = _checked(report.model_copy(update={"key": key}), directory)
    except ElivepatchError as error:
        report = failure(error, key)
    except OSError as error:
        _log.exception("The build failed.")
        report = failure(_translated(error), key)
    except Exception:
        _log.exception("The build failed.")
        report = failure(InternalError(), key)
    directory.remove_output()
    try:
        directory.write_report(report)
    except OSError as error:
        _log.exception("The report cannot be written.")
        return EXIT_DISK_FULL if error.errno in _FULL else 1
    return 0


def failure(error: ElivepatchError, key: str) -> Report:
    """The report of a build that an error ended."""
    status = BuildStatus.CANCELLED if isinstance(error, CancelledError) else BuildStatus.FAILED
    return Report(
        status=status,
        key=key,
        exit_status=error.exit_status,
        error=error.code,
        message=error.message,
        hint=error.hint,
        diagnosis=error.as_diagnosis(),
    )


def _translated(error: OSError) -> ElivepatchError:
    if error.errno in _FULL:
        return DiskFullError("No space is left on the device of the builds.")
    return InternalError(f"The build failed: {os.strerror(error.errno or 0)}.")


def _reserve(directory: JobDirectory) -> None:
    with directory.reserve.open("wb") as stream:
        stream.write(os.urandom(_RESERVE_BYTES))  # not zeros: a file system that compresses would reserve nothing
        stream.flush()
        os.fsync(stream.fileno())


def _checked(report: Report, directory: JobDirectory) -> Report:
    """The report as the server keeps it, after looking whether what it says is so; puts the module in its place."""
    if not report.status.final:
        raise InternalError(f"The build ended in the state '{report.status}', which is none to end in.")
    if report.error == CancelledError.code:
        return report.model_copy(update={"status": BuildStatus.CANCELLED})
    if report.status is not BuildStatus.DONE:
        return report
    if report.module is None and report.cves is not None:
        return report  # a plan, which has no module
    if report.module is None:
        raise InternalError("The build says that it is done and names no module.")
    name = Path(report.module.path).name if report.module.path else f"{report.module.name}.ko"
    made = directory.output / name
    if not made.is_file() or made.is_symlink():
        raise InternalError(f"The build says that it is done, and its module '{name}' is not there.")
    if made.stat().st_size > limits.MODULE_BYTES:
        raise InternalError(f"The module has {made.stat().st_size} bytes; the limit is {limits.MODULE_BYTES}.")
    with made.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
    if digest != report.module.sha256:
        raise InternalError(f"The module has the digest {digest}, not {report.module.sha256} as its report says.")
    made.replace(directory.module)
    return report.model_copy(update={"module": report.module.model_copy(update={"path": None})})


@contextlib.contextmanager
def bounded(path: Path) -> Generator[Sink]:
    """A sink into the events file (as `progress.to_file`) that keeps lines and their sum at a size others can read.

    The end of the build is not told here: only the server, when it has noted it, says that a build has ended.
    """
    with path.open("a", encoding="utf-8", buffering=1) as stream:
        told = path.stat().st_size

        def keep(event: Event) -> None:
            nonlocal told
            line = event.as_json() + "\n"
            stream.write(line)
            told += len(line)

        def sink(event: Event) -> None:
            if event.kind == "done" or (event.kind == "log" and told > _EVENTS_BYTES):
                return
            message = event.message
            if len(message) > _LINE_CHARACTERS:
                message = message[:_LINE_CHARACTERS] + " […]"
            before = told
            keep(replace(event, message=message))
            if before <= _EVENTS_BYTES < told:
                note = "The output of this build is longer than is kept; from here on only its steps are."
                keep(Event(kind="step", message=note, phase=event.phase, time=event.time))

        yield sink


if __name__ == "__main__":
    sys.exit(main())
