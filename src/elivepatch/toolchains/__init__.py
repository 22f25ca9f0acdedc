# SPDX-License-Identifier: GPL-2.0-or-later
"""Build roots, and the sandbox that programs run in."""
