# SPDX-License-Identifier: GPL-2.0-or-later
"""The events of a build over HTTP: as server-sent events, and as a text log.

The id of an event is the number of its line in the build's events file, so a stream can be taken up again after any
event, by any server on the same data. The last event, ``done``, is not in the file: it is made from the database,
with the id after the last line, when the database says that the build has ended; nothing comes after it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool

from elivepatch.errors import BusyError
from elivepatch.server.database import BuildRow, Database
from elivepatch.server.jobs.directory import EventReader
from elivepatch.server.service import Service

#: Seconds between two looks for new events, and between two looks at which builds have ended.
_POLL_SECONDS = 0.1
_LIVE_SECONDS = 0.25


def format_event(number: int, kind: str, data: dict[str, Any]) -> bytes:
    """One server-sent event (WHATWG HTML, section 9.2); the data is one line of JSON."""
    return f"id: {number}\nevent: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def final_event(row: BuildRow) -> dict[str, Any]:
    """The data of the event ``done``: `progress.Event`, whose phase is the state that the build ended in."""
    message = f"The build is {row.status}."
    if row.report is not None and row.report.get("message"):
        message = str(row.report["message"])
    return {"kind": "done", "message": message, "phase": row.status, "time": row.finished or 0.0}


@dataclass
class _LiveBuilds:
    """Which builds have not ended: asked once for all streams, at most every quarter of a second."""

    database: Database
    ids: frozenset[str] = frozenset()
    asked: float = field(default=-1e9)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def holds(self, build_id: str) -> bool:
        async with self.lock:
            if time.monotonic() - self.asked > _LIVE_SECONDS:
                rows = await run_in_threadpool(self.database.live)
                self.ids = frozenset(row.id for row in rows)
                self.asked = time.monotonic()
        return build_id in self.ids


class EventStreams:
    """All event streams of the server; ``open`` is how many there are now."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._live = _LiveBuilds(service.database)
        self.open = 0

    def check_room(self) -> None:
        """Raise BusyError when there are as many streams as the settings allow."""
        if self.open >= self._service.settings.streams:
            raise BusyError("Too many event streams are open.", hint="Ask for the build itself from time to time.")

    def last_number(self, row: BuildRow) -> int:
        """The id of the event ``done`` of a build that has ended."""
        reader = EventReader(self._service.directory(row.id).events)
        while reader.advance():
            pass
        return reader.line + 1

    async def stream(self, build_id: str, after: int) -> AsyncGenerator[bytes]:
        """The events of a build whose id is above ``after``, until the build has ended."""
        self.open += 1
        try:
            async for chunk in self._stream(build_id, after):
                yield chunk
        finally:
            self.open -= 1

    async def _stream(self, build_id: str, after: int) -> AsyncGenerator[bytes]:
        keepalive = self._service.settings.keepalive_seconds
        reader = EventReader(self._service.directory(build_id).events)
        sent = time.monotonic()
        yield b": elivepatch\n\n"
        while True:
            # In this order: what was told before the build ended is read after it is known to have ended.
            ended = not await self._live.holds(build_id)
            chunk = b""
            before = reader.offset
            if reader.grown():
                found = await run_in_threadpool(reader.read)
                chunk = b"".join(format_event(n, event["kind"], event) for n, event in found if n > after)
            if chunk:
                yield chunk
                sent = time.monotonic()
            if reader.offset != before:
                continue
            if ended:
                row = await run_in_threadpool(self._service.get, build_id)
                if row.state.final:  # else it is younger than the answer that did not hold it
                    break
            if time.monotonic() - sent > keepalive:
                yield b": still there\n\n"
                sent = time.monotonic()
            await asyncio.sleep(_POLL_SECONDS)
        if reader.line + 1 > after:
            yield format_event(reader.line + 1, "done", final_event(row))


def text_log(path: Path) -> Generator[bytes]:
    """The events as lines of text: the time (UTC), and what happened; phases stand out."""
    reader = EventReader(path)
    while True:
        before = reader.offset
        lines = [_text(event) for _, event in reader.read()]
        if lines:
            yield "".join(lines).encode()
        if reader.offset == before:
            return


def _text(event: dict[str, Any]) -> str:
    moment = datetime.fromtimestamp(float(event.get("time", 0.0)), UTC).strftime("%H:%M:%S.%f")[:-3]
    message = str(event.get("message", ""))
    return f"{moment} {f'== {message} ==' if event['kind'] == 'phase' else message}\n"
