# SPDX-License-Identifier: GPL-2.0-or-later
"""What the server does, without HTTP: take in builds, show them, hand out what they made, end them."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from elivepatch.errors import (
    AlreadyFinishedError,
    BusyError,
    CancelledError,
    DiskFullError,
    InternalError,
    NotFinishedError,
    NotFoundError,
    UnavailableError,
)
from elivepatch.job import Job, request_key, wanted_kernel
from elivepatch.patches.series import parse_series
from elivepatch.protocol.models import BuildStatus, Health, KernelEntry, Report
from elivepatch.protocol.overlays import WatchedOverlays
from elivepatch.server.artifacts import ArtifactStore
from elivepatch.server.cve_sync import CveSync
from elivepatch.server.database import RUNNING, BuildRow, Database, new_id
from elivepatch.server.jobs.directory import JobDirectory, only_server
from elivepatch.server.jobs.embedded import RUNNER, EmbeddedEngine
from elivepatch.server.jobs.engine import JobEngine
from elivepatch.server.jobs.runner import failure
from elivepatch.server.kernels import list_kernels
from elivepatch.server.overlay_watch import OverlayWatch
from elivepatch.server.settings import Settings
from elivepatch.version import installed_version
from elivepatch.workshop import Workshop

KeyFunction = Callable[[Job, Workshop], str]
KernelLister = Callable[[Workshop], Sequence[KernelEntry]]
_ID = re.compile(r"[0-9a-f]{32}")
#: How long a plan counts of which something could not be tried: who asked for it gets it, who asks again a new one.
_INCOMPLETE_SECONDS = 60.0


@dataclass(frozen=True)
class Service:
    """The server behind its API. Methods block; they are safe to call from several threads."""

    settings: Settings
    database: Database
    artifacts: ArtifactStore
    engine: JobEngine
    key: KeyFunction = request_key
    kernels: KernelLister = list_kernels
    more_problems: Callable[[], Sequence[str]] = tuple
    overlays: Callable[[], WatchedOverlays] = lambda: WatchedOverlays(overlays=(), builds=())

    def directory(self, build_id: str) -> JobDirectory:
        """Where a build lies."""
        return JobDirectory(self.settings.data / "builds" / build_id)

    def submit(self, job: Job) -> BuildRow:
        """The build for a request: the one there is for its key, or a new one.

        Raises InvalidPatchError for what is no patch, InvalidInputError for what is no kernel, BusyError when the queue
        is full, DiskFullError.
        """
        if job.request.image is not None and not self.settings.workshop.images.has(job.request.image):
            raise NotFoundError(
                f"The image {job.request.image[:12]} is not here, or not any more.",
                hint=f"Send it first: PUT images/{job.request.image}",
            )
        workshop = self.settings.workshop
        if job.request.cves is not None:  # without data, the answer is known
            workshop = _with_data(workshop, self.settings.cve_index.state().identity)
        key = self.key(job, workshop)
        row = self._standing(key)
        if row is not None:
            return row
        if job.patches or job.request.cves is None:
            _check_patches(job)
        row = BuildRow(
            id=new_id(),
            key=key,
            status=BuildStatus.QUEUED.value,
            kernel=job.request.kernel,
            created=time.time(),
            request=job.request.dump(),
        )
        return self._enqueue(job, row)

    def _standing(self, key: str) -> BuildRow | None:
        """The build of that key, unless it was done and its module has been removed."""
        row = self.database.by_key(key)
        if row is None or row.state is not BuildStatus.DONE:
            return row
        report = Report.model_validate(row.report)
        if (
            report.cves is not None
            and report.cves.incomplete
            and time.time() - (row.finished or 0) > _INCOMPLETE_SECONDS
        ):
            error = UnavailableError("Not all fixes could be tried then; the plan was asked for again.")
            self.database.lost(row.id, failure(error, row.key))
            return None
        if report.cves is not None or (report.module is not None and self.artifacts.holds(report.module.sha256)):
            return row
        self.database.lost(row.id, failure(InternalError("The module of this build was removed."), row.key))
        return None

    def _enqueue(self, job: Job, row: BuildRow) -> BuildRow:
        directory = self.directory(row.id)
        try:
            # Inputs first, so that a build that the database knows has them; the other way round is an orphan
            # that the next start removes.
            directory.create(job, row.key)
            other = self.database.enqueue(row, queue_limit=self.settings.queue)
        except OSError as error:
            directory.remove()
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError("No space is left on the device of the builds.") from error
            raise
        except OverflowError:
            directory.remove()
            raise BusyError(f"{self.settings.queue} builds are waiting already.") from None
        except BaseException:
            directory.remove()
            raise
        if other is not None:
            directory.remove()
            return other
        self.engine.wake()
        return row

    def get(self, build_id: str) -> BuildRow:
        """A build. Raises NotFoundError."""
        row = self.database.get(build_id) if _ID.fullmatch(build_id) else None
        if row is None:
            raise NotFoundError("There is no such build.", hint="The address of a build comes with 'POST builds'.")
        return row

    def module(self, build_id: str) -> tuple[Report, bytes]:
        """The report and the module of a build that is done.

        Raises NotFinishedError when it is not, NotFoundError when the module is no longer kept, ArtifactError when
        it is not what the report says.
        """
        row = self.get(build_id)
        if row.state is not BuildStatus.DONE:
            hint = "Look at its report." if row.state.final else "Wait for the end of its events."
            raise NotFinishedError(f"The build has no module: it is {row.status}.", hint=hint)
        report = Report.model_validate(row.report)
        if report.cves is not None:
            raise NotFoundError("This build is a plan: it has no module.", hint="Its report says what can be done.")
        if report.module is None:
            raise InternalError("The report of a build that is done names no module.")
        return report, self.artifacts.get(report.module.sha256)

    def cancel(self, build_id: str) -> BuildRow:
        """Ask for the end of a build. Raises AlreadyFinishedError when it has ended."""
        row = self.get(build_id)
        if row.state.final or not self.database.request_cancel(build_id, failure(CancelledError(), row.key)):
            row = self.get(build_id)
            raise AlreadyFinishedError(
                f"The build has already ended: it is {row.status}.", hint="There is nothing to do."
            )
        self.engine.wake()
        return self.get(build_id)

    def health(self) -> Health:
        """Whether builds can be made, and what is in the way."""
        problems = [*self.engine.problems(), *self.more_problems()]
        free = shutil.disk_usage(self.settings.data).free
        if free < self.settings.disk_reserve_bytes:
            problems.append(f"Only {free} bytes are free where builds are kept.")
        counts: dict[BuildStatus, int] = {}
        try:
            counts = self.database.counts()
        except (UnavailableError, DiskFullError) as error:
            problems.append(error.message)
        return Health(
            status="degraded" if problems else "ok",
            version=installed_version(),
            queued=counts.get(BuildStatus.QUEUED, 0),
            running=sum(counts.get(status, 0) for status in RUNNING),
            disk_free=free,
            problems=tuple(problems),
        )


def _with_data(workshop: Workshop, identity: str) -> Workshop:
    """The workshop with the state of the CVE data, which decides what a plan says."""
    mirror = workshop.cache / "git"
    refs = [path.read_text() for path in sorted(mirror.glob("*.git/elivepatch-refs"))] if mirror.is_dir() else []
    return replace(workshop, cves=replace(workshop.cves, identity="\n".join([identity, *refs])))


def _check_patches(job: Job) -> None:
    """Refuse what is no patch before it is queued; whether it applies, the build finds out."""
    wanted_kernel(job)
    parse_series([(file.name, file.data) for file in job.patches])


@contextmanager
def opened(
    settings: Settings,
    *,
    runner: Sequence[str] = RUNNER,
    key: KeyFunction = request_key,
) -> Generator[Service]:
    """The server, its engine running, as the only one on its data directory; ended when the block is left.

    Raises UnavailableError when another server holds the directory or it cannot be used.
    """
    with contextlib.ExitStack() as stack:
        yield _open(stack, settings, runner, key)


def _open(stack: contextlib.ExitStack, settings: Settings, runner: Sequence[str], key: KeyFunction) -> Service:
    try:
        # Others may pass through: builds run as a user of their own, in directories whose names nobody can guess.
        settings.data.mkdir(parents=True, exist_ok=True, mode=0o711)
        stack.enter_context(only_server(settings.data))
        database = Database(settings.database)
        stack.callback(database.close)
        database.migrate()
        artifacts = ArtifactStore(settings.data / "artifacts")
        engine = EmbeddedEngine(settings, database, artifacts, runner)
        engine.start()
    except BlockingIOError:
        raise UnavailableError(
            f"Another server works in '{settings.data}'.",
            hint="End it, or give this one a data directory of its own.",
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"No space is left on the device of '{settings.data}'.") from error
        raise UnavailableError(
            f"The data directory '{settings.data}' cannot be used: {error.strerror}.",
            hint="Give it to the user that the server runs as, or set 'data' to another place.",
        ) from error
    stack.callback(engine.stop)
    cves = CveSync(settings)
    cves.start()
    stack.callback(cves.stop)
    watch = OverlayWatch(settings, database)
    service = Service(
        settings,
        database,
        artifacts,
        engine,
        key,
        more_problems=lambda: (*cves.problems(), *watch.problems()),
        overlays=watch.state,
    )
    watch.start(service.submit)
    stack.callback(watch.stop)
    return service
