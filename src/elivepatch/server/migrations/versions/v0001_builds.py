# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of builds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_SECONDS: sa.Double[float] = sa.Double()


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "builds",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("key", sa.String(128), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("kernel", sa.String(300), nullable=False),
        sa.Column("created", _SECONDS, nullable=False),
        sa.Column("started", _SECONDS),
        sa.Column("finished", _SECONDS),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("report", sa.JSON()),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("cancel", sa.Boolean(), nullable=False),
        sa.Column("worker_pid", sa.Integer()),
        sa.Column("worker_started", sa.BigInteger()),
        sa.Column("heartbeat", _SECONDS),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_builds_status", "builds", ["status"])
    op.create_index("ix_builds_kernel", "builds", ["kernel"])
    counts = sa.text("status NOT IN ('failed', 'cancelled')")
    op.create_index("builds_one_per_key", "builds", ["key"], unique=True, sqlite_where=counts, postgresql_where=counts)


def downgrade() -> None:
    """Remove it."""
    op.drop_table("builds")
