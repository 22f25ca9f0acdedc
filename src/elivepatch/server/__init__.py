# SPDX-License-Identifier: GPL-2.0-or-later
"""The build server: settings, database, job engine, API, administration."""
