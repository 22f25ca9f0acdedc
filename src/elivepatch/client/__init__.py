# SPDX-License-Identifier: GPL-2.0-or-later
"""The program on the host: command line, server connection, loader, journal."""
