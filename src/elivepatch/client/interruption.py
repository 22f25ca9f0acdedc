# SPDX-License-Identifier: GPL-2.0-or-later
"""What Ctrl-C does: while the program is read in it ends it at once, afterwards it raises KeyboardInterrupt."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

#: The exit status of a program that was interrupted: 128 and the number of the signal, as shells have it.
INTERRUPTED = 130
#: Likewise that of a program whose reader went away (SIGPIPE, which Python has as an exception).
READER_GONE = 141


def leave_at_once() -> None:
    """Until `begin`, an interruption ends the program; not where a shell has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def begin() -> None:
    """All that a command needs has been read in: from here on Ctrl-C raises, so that what is begun is undone."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    # nothing has been begun, so nothing is to be undone; an exception here would come out of the middle of some import
    os.write(2, b"elivepatch: interrupted.\n")
    os._exit(INTERRUPTED)
