# SPDX-License-Identifier: GPL-2.0-or-later
"""Gentoo's kernels, made from what Gentoo publishes: ebuilds, their Manifests, and distfiles."""
