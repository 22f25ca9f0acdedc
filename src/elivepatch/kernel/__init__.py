# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel is: release, configuration, image, modules, and the facts of a running host. Touches no network."""
