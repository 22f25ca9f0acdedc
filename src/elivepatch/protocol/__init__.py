# SPDX-License-Identifier: GPL-2.0-or-later
"""What client and server say to each other: the v2 models and error codes."""
