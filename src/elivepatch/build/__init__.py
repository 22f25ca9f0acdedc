# SPDX-License-Identifier: GPL-2.0-or-later
"""From a series to a module: prepared kernels, objects, compile, proof, engines, link."""
