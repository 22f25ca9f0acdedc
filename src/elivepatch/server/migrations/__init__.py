# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps from one form of the database to the next; alembic runs them when the server starts."""
