# SPDX-License-Identifier: GPL-2.0-or-later
"""The database: its promises are its own, and its migrations lead to its models."""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Generator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from elivepatch.errors import InvalidSettingError, UnavailableError
from elivepatch.protocol.models import BuildStatus, Report
from elivepatch.server import database as module
from elivepatch.server.database import RUNNING, Base, BuildRow, Database, new_id

CANCELLED = Report(status=BuildStatus.CANCELLED, key="key", error="cancelled")


@pytest.fixture
def database(tmp_path: Path) -> Generator[Database]:
    opened = Database(f"sqlite:///{tmp_path}/db.sqlite")
    opened.migrate()
    yield opened
    opened.close()


def row(key: str, status: BuildStatus = BuildStatus.QUEUED, kernel: str = "k") -> BuildRow:
    return BuildRow(id=new_id(), key=key, status=status.value, kernel=kernel, created=time.time(), request={})


def add(database: Database, key: str) -> BuildRow:
    made = row(key)
    assert database.enqueue(made, queue_limit=100) is None
    return made


def test_migrations_lead_to_the_models(database: Database) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        indexes = connection.execute(sa.text("SELECT sql FROM sqlite_master WHERE name = 'builds_one_per_key'"))
        assert "WHERE status NOT IN ('failed', 'cancelled')" in indexes.scalar_one()
    database.migrate()  # a second time changes nothing


def test_a_migration_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Database(f"sqlite:///{tmp_path}/db.sqlite")
    upgrade = module.command.upgrade

    def interrupted(*arguments: object) -> None:
        upgrade(*arguments)  # pyright: ignore[reportArgumentType]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module.command, "upgrade", interrupted)
        opened.migrate()
    assert sa.inspect(opened.engine).get_table_names() == []
    opened.migrate()
    assert "builds" in sa.inspect(opened.engine).get_table_names()
    opened.close()


def test_how_sqlite_is_set_up(database: Database, tmp_path: Path) -> None:
    with database.engine.connect() as connection:
        for pragma, value in {
            "journal_mode": "wal",
            "foreign_keys": 1,
            "synchronous": 2,
            "busy_timeout": 10_000,
        }.items():
            assert connection.execute(sa.text(f"PRAGMA {pragma}")).scalar_one() == value
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


@pytest.mark.parametrize("status", [status for status in BuildStatus if status not in ("failed", "cancelled")])
def test_the_database_itself_holds_one_build_of_a_key(database: Database, status: BuildStatus) -> None:
    with Session(database.engine) as session:
        session.add_all([row("key", status), row("key", BuildStatus.FAILED), row("key", BuildStatus.CANCELLED)])
        session.commit()
        session.add(row("key"))
        with pytest.raises(IntegrityError):
            session.commit()


def test_many_at_once_make_one_build(database: Database) -> None:
    results: list[BuildRow | None] = []
    start = threading.Barrier(12)

    def ask() -> None:
        start.wait()
        results.append(database.enqueue(row("same"), queue_limit=100))

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 12
    assert results.count(None) == 1
    assert len({other.id for other in results if other is not None}) == 1


def test_a_failed_or_cancelled_build_does_not_stand_in_the_way(database: Database) -> None:
    first = add(database, "key")
    assert database.request_cancel(first.id, CANCELLED)
    second = add(database, "key")
    assert database.claim(second.id)
    assert database.finish(second.id, BuildStatus.FAILED, Report(status=BuildStatus.FAILED, key="key"))
    third = add(database, "key")
    assert database.claim(third.id)
    assert database.finish(third.id, BuildStatus.REFUSED)
    other = database.enqueue(row("key"), queue_limit=100)
    assert other is not None
    assert other.id == third.id


def test_the_queue_has_a_limit_and_an_order(database: Database) -> None:
    rows = [add(database, str(number)) for number in range(3)]
    with pytest.raises(OverflowError):
        database.enqueue(row("more"), queue_limit=3)
    assert [found.id for found in database.live()] == [made.id for made in rows]
    assert database.claim(rows[0].id)
    assert database.enqueue(row("more"), queue_limit=3) is None
    assert database.counts()[BuildStatus.QUEUED] == 3


def test_a_state_changes_once(database: Database) -> None:
    made = add(database, "key")
    assert database.claim(made.id)
    assert not database.claim(made.id)
    assert database.seen(made.id, BuildStatus.BUILDING, (12, 34))
    found = database.get(made.id)
    assert found is not None
    assert (found.status, found.worker_pid, found.worker_started, found.attempts) == ("building", 12, 34, 1)
    assert database.requeue(made.id)
    assert database.claim(made.id)
    found = database.get(made.id)
    assert found is not None
    assert (found.attempts, found.worker_pid) == (2, None)
    assert database.request_cancel(made.id, CANCELLED)
    found = database.get(made.id)
    assert found is not None
    assert found.state in RUNNING
    assert found.cancel
    assert database.finish(made.id, BuildStatus.DONE, Report(status=BuildStatus.DONE, key="key"))
    for change in (
        lambda: database.finish(made.id, BuildStatus.FAILED),
        lambda: database.request_cancel(made.id, CANCELLED),
        lambda: database.requeue(made.id),
        lambda: database.claim(made.id),
        lambda: database.seen(made.id, BuildStatus.BUILDING, None),
    ):
        assert not change()
    build = database.get(made.id)
    assert build is not None
    shown = build.as_build()
    assert shown.status is BuildStatus.DONE
    assert shown.report is not None
    assert build.as_build(with_report=False).report is None


def test_pages_go_from_new_to_old(database: Database) -> None:
    rows = [add(database, str(number)) for number in range(5)]
    first = database.page(kernel=None, status=None, before=None, limit=2)
    assert [found.id for found in first] == [rows[4].id, rows[3].id]
    second = database.page(kernel="k", status=BuildStatus.QUEUED, before=first[-1].number, limit=9)
    assert [found.id for found in second] == [made.id for made in rows[2::-1]]
    assert database.page(kernel="other", status=None, before=None, limit=9) == []


def test_errors_are_ours(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="database_url"):
        Database("nonsense://")
    opened = Database(f"sqlite:///{tmp_path}/db.sqlite")
    with pytest.raises(UnavailableError, match="no such table"):
        opened.live()
    opened.close()


def test_old_plans_are_forgotten_and_nothing_else(database: Database) -> None:
    plan, build, recent = row("plan"), row("build"), row("recent")
    plan.request = recent.request = {"kernel": "k", "cves": {}}
    for one in (plan, build, recent):
        assert database.enqueue(one, queue_limit=100) is None
    for one in (plan, build):
        assert database.finish(one.id, BuildStatus.DONE, CANCELLED)
    assert database.forget_plans(time.time() - 60) == 0
    assert database.forget_plans(time.time() + 60) == 1, "what has not ended stays"
    assert database.get(plan.id) is None
    assert database.get(build.id) is not None
    assert database.get(recent.id) is not None
