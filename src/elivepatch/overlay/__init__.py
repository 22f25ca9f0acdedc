# SPDX-License-Identifier: GPL-2.0-or-later
"""Overlays: git repositories in which people keep and share patches for livepatches."""
