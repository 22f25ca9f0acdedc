# SPDX-License-Identifier: GPL-2.0-or-later
"""A patch series: parse, validate, normalise, apply. Compiles nothing."""
