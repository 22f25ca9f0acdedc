# SPDX-License-Identifier: GPL-2.0-or-later
"""How alembic runs: on the connection that `Database.migrate` hands over, never on one of its own."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from elivepatch.server.database import Base

connection: Connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
