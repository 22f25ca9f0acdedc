# SPDX-License-Identifier: GPL-2.0-or-later
"""Differs: given the original and the patched object, a diff object or a refusal."""
