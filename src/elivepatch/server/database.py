# SPDX-License-Identifier: GPL-2.0-or-later
"""The database: which builds there are, and what became of them.

One table. That the same key is the same build is the database's promise (a unique index over the builds that count),
not only the code's, so two servers, or two requests at one time, cannot make two of it. What a build tells while it
runs is not here but in its directory (`server.jobs.directory`): events come often, and the file survives the server.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from elivepatch.errors import DiskFullError, InvalidSettingError, UnavailableError
from elivepatch.protocol.models import Build, BuildStatus, Report

BUSY_TIMEOUT_MS = 10_000
#: States in which a build's process runs (or should).
RUNNING = (BuildStatus.PREPARING, BuildStatus.BUILDING, BuildStatus.VERIFYING, BuildStatus.SIGNING)
LIVE = (BuildStatus.QUEUED, *RUNNING)
#: A build in one of these does not stand in the way of a new one with its key.
_GONE = sa.text("status NOT IN ('failed', 'cancelled')")


class Base(DeclarativeBase):
    """The tables; migrations are checked against it."""

    metadata = sa.MetaData(naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s"})


class BuildRow(Base):
    """A build. ``number`` is the order of arrival; ``id`` is what outsiders know, and cannot be guessed."""

    __tablename__ = "builds"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(sa.String(32), unique=True)
    key: Mapped[str] = mapped_column(sa.String(128))
    status: Mapped[str] = mapped_column(sa.String(16), index=True)
    kernel: Mapped[str] = mapped_column(sa.String(300), index=True)
    created: Mapped[float] = mapped_column(sa.Double)
    started: Mapped[float | None] = mapped_column(sa.Double)
    finished: Mapped[float | None] = mapped_column(sa.Double)
    request: Mapped[dict[str, Any]] = mapped_column(sa.JSON)  # Any: JSON; a BuildRequest wrote it
    report: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))  # a Report wrote it
    attempts: Mapped[int] = mapped_column(default=0)
    cancel: Mapped[bool] = mapped_column(default=False)
    worker_pid: Mapped[int | None]
    #: Field 22 of /proc/PID/stat: with the pid it names one process and no later one.
    worker_started: Mapped[int | None] = mapped_column(sa.BigInteger)
    #: When the process was last seen alive.
    heartbeat: Mapped[float | None] = mapped_column(sa.Double)

    __table_args__ = (
        sa.Index("builds_one_per_key", "key", unique=True, sqlite_where=_GONE, postgresql_where=_GONE),
        {"sqlite_autoincrement": True},
    )

    @property
    def state(self) -> BuildStatus:
        """The status as what it is."""
        return BuildStatus(self.status)

    def as_build(self, *, with_report: bool = True) -> Build:
        """The build as the API shows it."""
        return Build(
            id=self.id,
            key=self.key,
            status=self.state,
            kernel=self.kernel,
            created=self.created,
            started=self.started,
            finished=self.finished,
            report=Report.model_validate(self.report) if self.report is not None and with_report else None,
        )


def new_id() -> str:
    """An identifier nobody can guess (132 bits), safe in URLs and file names."""
    return secrets.token_hex(16)


class Database:
    """The door to the database. Methods are one transaction each and safe to call from several threads.

    They raise DiskFullError where the disk is full and UnavailableError where the database cannot be reached.
    """

    def __init__(self, url: str) -> None:
        try:
            # As many connections as the server has threads that could ask for one.
            self.engine = sa.create_engine(url, pool_pre_ping=not url.startswith("sqlite"), max_overflow=40)
        except (ArgumentError, ImportError) as error:
            raise InvalidSettingError(
                f"Setting 'database_url': {error}",
                hint="For PostgreSQL: postgresql+psycopg://USER@HOST/NAME, with the package psycopg installed.",
            ) from error
        if self.engine.dialect.name == "sqlite":
            if self.engine.url.database:
                Path(self.engine.url.database).touch(mode=0o600)  # SQLite gives its other files the same mode
            event.listen(self.engine, "connect", _prepare_sqlite)

    def migrate(self) -> None:
        """Bring the tables to what this version needs."""
        config = Config()
        config.set_main_option("script_location", "elivepatch.server:migrations")
        with _told(), self.engine.begin() as connection:
            if connection.dialect.name == "sqlite":
                # The driver would begin no transaction for DDL, and a kill would leave half a migration behind.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def close(self) -> None:
        """Let go of all connections."""
        self.engine.dispose()

    @contextmanager
    def _session(self) -> Generator[Session]:
        with _told(), Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    def enqueue(self, row: BuildRow, *, queue_limit: int) -> BuildRow | None:
        """Add a build, unless one with its key counts already.

        Returns None when it was added, else the other one. Raises OverflowError when ``queue_limit`` builds wait.
        """
        try:
            with self._session() as session:
                waiting = session.scalar(sa.select(sa.func.count()).where(BuildRow.status == BuildStatus.QUEUED.value))
                if (waiting or 0) >= queue_limit:
                    raise OverflowError(queue_limit)
                session.add(row)
            return None
        except IntegrityError:
            other = self.by_key(row.key)
            if other is None:  # it ended otherwise in between
                return self.enqueue(_copy(row), queue_limit=queue_limit)
            return other

    def by_key(self, key: str) -> BuildRow | None:
        """The build with that key that neither failed nor was cancelled."""
        with self._session() as session:
            return session.scalar(sa.select(BuildRow).where(BuildRow.key == key, _GONE))

    def get(self, build_id: str) -> BuildRow | None:
        """The build of that id."""
        with self._session() as session:
            return session.scalar(sa.select(BuildRow).where(BuildRow.id == build_id))

    def live(self) -> Sequence[BuildRow]:
        """The builds that have not ended, the oldest first."""
        query = sa.select(BuildRow).where(BuildRow.status.in_([s.value for s in LIVE])).order_by(BuildRow.number)
        with self._session() as session:
            return session.scalars(query).all()

    def page(
        self, *, kernel: str | None, status: BuildStatus | None, before: int | None, limit: int
    ) -> Sequence[BuildRow]:
        """Builds, the newest first; ``before`` is the number that the page goes on from."""
        query = sa.select(BuildRow).order_by(BuildRow.number.desc()).limit(limit)
        if kernel is not None:
            query = query.where(BuildRow.kernel == kernel)
        if status is not None:
            query = query.where(BuildRow.status == status.value)
        if before is not None:
            query = query.where(BuildRow.number < before)
        with self._session() as session:
            return session.scalars(query).all()

    def counts(self) -> dict[BuildStatus, int]:
        """How many builds there are in each state."""
        query = sa.select(BuildRow.status, sa.func.count()).group_by(BuildRow.status)
        with self._session() as session:
            found = {BuildStatus(status): count for status, count in session.execute(query)}
        return {status: found.get(status, 0) for status in BuildStatus}

    def _update(self, build_id: str, among: Sequence[BuildStatus], **values: object) -> bool:
        """Change a build if it is in one of these states; whether it was. This is the only way states change."""
        query = (
            sa.update(BuildRow)
            .where(BuildRow.id == build_id, BuildRow.status.in_([s.value for s in among]))
            .values(**values)
        )
        with self._session() as session:
            result = session.execute(query)
            return isinstance(result, sa.CursorResult) and result.rowcount == 1

    def claim(self, build_id: str) -> bool:
        """Take a waiting build to start it; counts the attempt."""
        return self._update(
            build_id,
            [BuildStatus.QUEUED],
            status=BuildStatus.PREPARING.value,
            started=time.time(),
            attempts=BuildRow.attempts + 1,
            worker_pid=None,
            worker_started=None,
            heartbeat=time.time(),
        )

    def requeue(self, build_id: str) -> bool:
        """Put a build whose process died back into its place in the queue."""
        return self._update(build_id, RUNNING, status=BuildStatus.QUEUED.value, worker_pid=None, worker_started=None)

    def seen(self, build_id: str, status: BuildStatus, worker: tuple[int, int] | None) -> bool:
        """Note that the process of a build lives, and in which state the build is."""
        pid, began = worker or (None, None)
        return self._update(
            build_id, RUNNING, status=status.value, worker_pid=pid, worker_started=began, heartbeat=time.time()
        )

    def request_cancel(self, build_id: str, report: Report) -> bool:
        """Ask for the end of a build that has not ended; one that waits ends at once, with that report."""
        return self.finish(build_id, BuildStatus.CANCELLED, report, among=[BuildStatus.QUEUED]) or self._update(
            build_id, RUNNING, cancel=True
        )

    def finish(
        self,
        build_id: str,
        status: BuildStatus,
        report: Report | None = None,
        *,
        among: Sequence[BuildStatus] = LIVE,
    ) -> bool:
        """End a build; false when it had ended already, which then stands."""
        return self._update(
            build_id,
            among,
            status=status.value,
            finished=time.time(),
            report=report.dump() if report is not None else None,
            cancel=status is BuildStatus.CANCELLED,
        )

    def forget_plans(self, before: float) -> int:
        """Remove the plans that ended before a time; how many.

        Their reports are large, and soon out of date: what they say goes with a state of the CVE data.
        """
        ended = sa.select(BuildRow.id, BuildRow.request).where(BuildRow.finished < before)
        with self._session() as session:
            plans = [build_id for build_id, request in session.execute(ended) if request.get("cves") is not None]
            for build_id in plans:
                session.execute(sa.delete(BuildRow).where(BuildRow.id == build_id))
        return len(plans)

    def lost(self, build_id: str, report: Report) -> bool:
        """Note that the module of a build that was done is no longer there, so that it can be built again."""
        return self._update(build_id, [BuildStatus.DONE], status=BuildStatus.FAILED.value, report=report.dump())


def _copy(row: BuildRow) -> BuildRow:
    """The same build, not yet known to any session."""
    return BuildRow(
        id=row.id, key=row.key, status=row.status, kernel=row.kernel, created=row.created, request=row.request
    )


@contextmanager
def _told() -> Generator[None]:
    """Turn what the database says into our errors."""
    try:
        yield
    except IntegrityError:
        raise
    except (DBAPIError, sqlite3.Error) as error:  # the second from `_prepare_sqlite`, which nobody wraps
        cause = error.orig if isinstance(error, DBAPIError) else error
        if "disk is full" in str(cause) or "No space left" in str(cause):
            raise DiskFullError("The database cannot be written: no space is left on the device.") from error
        raise UnavailableError(
            f"The database cannot be used: {cause}", hint="See the server's log; the request can be repeated."
        ) from error


def _prepare_sqlite(connection: Any, _record: object) -> None:  # Any: DBAPI connections have no common type
    run: Callable[[str], object] = connection.execute
    run(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    run("PRAGMA journal_mode = WAL")
    # A commit is on the disk when it returns: what a client was told holds after a power cut too.
    run("PRAGMA synchronous = FULL")
    run("PRAGMA foreign_keys = ON")
