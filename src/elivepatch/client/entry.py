# SPDX-License-Identifier: GPL-2.0-or-later
"""The entry point of ``elivepatch``: it answers Ctrl-C from the first moment, also while the program is read in."""

from __future__ import annotations

import os

from elivepatch.client.interruption import leave_at_once


def main() -> None:
    """Run the program."""
    leave_at_once()
    # plugins of other packages change what a model takes; none belongs into a program that loads kernel modules
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    from elivepatch.client import cli

    cli.main()
