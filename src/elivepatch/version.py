# SPDX-License-Identifier: GPL-2.0-or-later
"""The version of this installation, as the package metadata states it."""


def installed_version() -> str:
    """The version of elivepatch; ``0`` where it runs without being installed."""
    from importlib.metadata import PackageNotFoundError, version  # slow to read in, and seldom needed

    try:
        return version("elivepatch")
    except PackageNotFoundError:  # run from a bare source tree
        return "0"
