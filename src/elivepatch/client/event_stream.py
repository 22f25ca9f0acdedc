# SPDX-License-Identifier: GPL-2.0-or-later
"""Read server-sent events (HTML Living Standard, section "Server-sent events") from bytes as they arrive.

Of our own because the caller must see that the line is alive between two events, which a ready-made reader hides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from elivepatch.errors import ServerUnavailableError

_EVENT_BYTES = 1024 * 1024
_LINE_END = re.compile(rb"\r\n|\r|\n")
#: What may stand in the header Last-Event-ID.
_ID = re.compile(r"[!-~]{0,128}")


@dataclass(frozen=True)
class Message:
    """One event. ``id`` is what Last-Event-ID names to go on after it."""

    id: str
    event: str
    data: str


class EventStream:
    """Turns chunks of bytes into messages; how they are cut does not matter."""

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        self._id = last_id
        self._rest = b""
        self._event = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[Message]:
        """The messages that the chunk completes. Raises ServerUnavailableError for an event larger than 1 MiB."""
        if self._size + len(self._rest) + len(chunk) <= _EVENT_BYTES and not _LINE_END.search(self._rest[-1:] + chunk):
            self._rest += chunk  # a line that comes in crumbs is not looked through again for each
            return []
        text = self._rest + chunk
        # a carriage return at the very end may be half of a line's end
        held = b"\r" if text.endswith(b"\r") else b""
        *lines, rest = _LINE_END.split(text[: len(text) - len(held)])
        self._rest = rest + held
        messages: list[Message] = []
        for line in lines:
            message = self._line(line.decode("utf-8", errors="replace"))
            if message:
                messages.append(message)
        if self._size + len(self._rest) > _EVENT_BYTES:
            raise ServerUnavailableError(
                f"The server sent an event of more than {_EVENT_BYTES} bytes.", hint="Look at the log of the server."
            )
        return messages

    def _line(self, line: str) -> Message | None:
        if not line:
            self.last_id = self._id  # not before: an event that is cut off has not been heard
            message = Message(self.last_id, self._event or "message", "\n".join(self._data)) if self._data else None
            self._event, self._data, self._size = "", [], 0
            return message
        self._size += len(line)
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and _ID.fullmatch(value):
            self._id = value
        return None
