# SPDX-License-Identifier: GPL-2.0-or-later
"""The entry point of ``elivepatch``: it answers Ctrl-C from the first moment, also while the program is read in."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    # nothing has been begun, so nothing is to be undone; an exception here would come out of the middle of some import
    os.write(2, b"elivepatch: interrupted.\n")
    os._exit(INTERRUPTED)


def begin() -> None:
    """All that a command needs has been read in: from here on Ctrl-C raises, so that what is begun is undone."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> None:
    """Run the program."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, _leave)
    # plugins of other packages change what a model takes; none belongs into a program that loads kernel modules
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    from elivepatch.client import cli

    cli.main()
