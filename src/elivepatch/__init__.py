# SPDX-License-Identifier: GPL-2.0-or-later
"""elivepatch: live patches for exactly the kernel a machine runs."""
