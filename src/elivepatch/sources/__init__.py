# SPDX-License-Identifier: GPL-2.0-or-later
"""Where kernels come from. Decides nothing about builds."""
