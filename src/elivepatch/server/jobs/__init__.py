# SPDX-License-Identifier: GPL-2.0-or-later
"""The job engine: who runs the builds, and what survives a restart."""
