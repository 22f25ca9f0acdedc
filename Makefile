# SPDX-License-Identifier: GPL-2.0-or-later
# Every goal sets up what it needs. 'make help' lists them.
