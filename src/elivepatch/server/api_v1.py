# SPDX-License-Identifier: GPL-2.0-or-later
"""The API of the first version, for clients in the field; what docs/api.md describes. Off unless ``v1`` is set.

A client sends everything in one request, which is held while the build is made, and then asks once for the module.
It looks at no status, but needs JSON in every answer to its first request. Bodies are those of the first server, byte
for byte, where that had an answer of its own; errors of other kinds have ``message``, and ``hint`` and ``code`` beside.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, cast

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from elivepatch.errors import (
    BadRequestError,
    BusyError,
    DiskFullError,
    ElivepatchError,
    InputTooLargeError,
    InternalError,
    KernelUnavailableError,
    NotFinishedError,
    NotFoundError,
    UnavailableError,
    UploadTimeoutError,
    error_classes,
)
from elivepatch.kernel.config import parse_config
from elivepatch.protocol.models import BuildStatus
from elivepatch.server.database import BuildRow
from elivepatch.server.problems import EarlyResponse
from elivepatch.server.service import Service
from elivepatch.server.upload import read_form
from elivepatch.server.v1_request import ClassicRequest, as_job, from_form, parse_uuid, shape
from elivepatch.server.v1_sessions import PatchMemory, Sessions

BASE = "/elivepatch/api"
_AGENT = {"module": "elivepatch", "version": "0.01"}
#: Bytes of the JSON in which a UUID comes, and of an agent's.
_JSON_BYTES = 4096
_NOT_THESE = '{"message":"These are not the         patches you are looking for"}\n'
_NO_MODULE = '{"message":"These are not the             patches you are looking for"}\n'
_NO_KERNEL = '{"message":"gentoo-sources not available"}\n'
_NO_JSON = (
    '{"message": "Did not attempt to load JSON data because the request Content-Type was not \'application/json\'."}\n'
)
_NO_METHOD = '{"message": "The method is not allowed for the requested URL."}\n'
#: Findings that an answer has; the log of the build has them all.
_FINDINGS = 50

_log = logging.getLogger(__name__)
#: Seconds between looks at a build that is waited for; the pauses get longer.
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 2.0
_Endpoint = Callable[[Request], Awaitable[Response]]


class _Answer(EarlyResponse):
    media_type = "application/json"


def _json(data: Mapping[str, Any], status: int = 200, **more: Any) -> Response:  # Any: JSON; what `_Answer` takes
    return _Answer(json.dumps(data) + "\n", status, **more)


def _failure(error: ElivepatchError, *, unread: bool = False) -> Response:
    if isinstance(error, KernelUnavailableError):
        return _Answer(_NO_KERNEL, 403, unread=unread)
    said = {"message": error.message, "code": error.code}
    if error.hint:
        said["hint"] = error.hint
    headers = {"Retry-After": "60"} if isinstance(error, BusyError) else None
    return _json(said, error.http_status, headers=headers, unread=unread)


def _telling(endpoint: _Endpoint) -> _Endpoint:
    """An endpoint whose errors are answers, in JSON, whatever happens."""

    @wraps(endpoint)
    async def told(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ElivepatchError as error:
            if error.http_status >= 500:
                _log.error("%s %s: %s", request.method, request.url.path, error)
            return _failure(error, unread=getattr(request.state, "unread", False))
        except ClientDisconnect:
            return _failure(BadRequestError("The client went away."))  # nobody reads it
        except Exception:
            _log.exception("%s %s failed.", request.method, request.url.path)
            return _Answer('{"message": "Internal Server Error"}\n', 500)

    return told


class _Classic:
    """The server of the first version, on top of the one that there is now."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings = service.settings
        self._sessions = Sessions(self._settings.v1_sessions, self._settings.v1_session_seconds)
        self._memory = PatchMemory(self._settings.data / "v1-patches")
        self._slots = asyncio.Semaphore(self._settings.uploads)
        self._shape = shape(self._settings.v1_request_bytes)
        self._held = 0

    # -- who is there

    async def agent(self, request: Request) -> Response:
        """``GET`` says what this is; what is posted is answered, and not kept."""
        if request.method in {"GET", "HEAD"}:
            return _json({"agent": [_AGENT]})
        if request.method != "POST":
            return _Answer(_NO_METHOD, 405, headers={"Allow": "GET, HEAD, POST"}, unread=True)
        given = await _body(request, self._settings.upload_seconds)
        if given is None:
            return _Answer(_NO_JSON, 415)
        for name in _AGENT:
            if name not in given:
                return _json({"message": {name: "No task title provided"}}, 400)
        return _json({"agent": {name: str(given[name]) for name in _AGENT}}, 201)

    # -- the build

    async def get_files(self, request: Request) -> Response:
        """Take in a request, and hold it until its build has ended."""
        if request.method == "GET":
            return _Answer(_NOT_THESE, 403)
        if request.method != "POST":
            return _Answer(_NO_METHOD, 405, headers={"Allow": "GET, POST"}, unread=True)
        request.state.unread = True
        with self._holding():
            sent = request.headers.get("UUID", "")
            uuid = parse_uuid(sent)
            asked = await self._read(request)
            self._sessions.enter(uuid, asked.digest)
            try:
                build, patch = await run_in_threadpool(self._submit, asked)
                self._sessions.name_build(uuid, build, patch)
                del asked  # a build can take hours; what was sent lies on the disk
                row = await self._ended(build, request)
            finally:
                self._sessions.leave(uuid)
        if row.state is BuildStatus.DONE:
            return _json({"get_config": {"KernelVersion": None, "UUID": sent}}, 201)
        return _refusal(row)

    @contextmanager
    def _holding(self) -> Generator[None]:
        if self._held >= self._settings.v1_waiting:
            raise BusyError(f"{self._held} requests are being held already.")
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    async def _read(self, request: Request) -> ClassicRequest:
        version = request.headers.get("KernelVersion", "")
        parts = await read_form(request, self._shape, slots=self._slots, seconds=self._settings.upload_seconds)
        return from_form(version, parts)

    def _submit(self, asked: ClassicRequest) -> tuple[str, str]:
        """Put the build into the queue, or join the one that there is; its id, and the name of its patch."""
        job = as_job(asked, self._settings, self._memory)
        config = parse_config(asked.config).sha256
        return self._service.submit(job).id, self._memory.name(job.request.kernel, config, asked.main)

    async def _ended(self, build: str, request: Request) -> BuildRow:
        """The build once it has ended. Raises UnavailableError when that takes longer than a request is held."""
        deadline = time.monotonic() + self._settings.v1_wait_seconds
        pause = _FIRST_PAUSE
        while not (row := await run_in_threadpool(self._service.get, build)).state.final:
            if time.monotonic() > deadline:
                raise UnavailableError(
                    "The build takes longer than a request is held.",
                    hint="It goes on. Send the same request again later: it waits for the same build.",
                )
            if await request.is_disconnected():
                raise ClientDisconnect
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LAST_PAUSE)
        return row

    # -- the module

    async def send_livepatch(self, request: Request) -> Response:
        """The module of a session whose build is done."""
        if request.method == "POST":
            return _Answer(_NOT_THESE, 403, unread=True)
        if request.method != "GET":
            return _Answer(_NO_METHOD, 405, headers={"Allow": "GET, POST"}, unread=True)
        given = await _body(request, self._settings.upload_seconds)
        uuid: object = request.query_params.get("UUID") or request.headers.get("UUID")
        if given is not None and "UUID" in given:
            uuid = given["UUID"]
        elif given is None and uuid is None:
            return _Answer(_NO_JSON, 415)
        known = self._sessions.build(parse_uuid(uuid))
        if known is None:
            return _Answer(_NO_MODULE, 403)
        try:
            data = await run_in_threadpool(self._hand_out, *known)
        except (NotFinishedError, NotFoundError):
            return _Answer(_NO_MODULE, 403)
        return Response(data, media_type="application/octet-stream")

    def _hand_out(self, build: str, patch: str) -> bytes:
        _, data = self._service.module(build)
        try:
            self._memory.add(patch)
        except OSError as error:
            raise DiskFullError(f"The server cannot note what it hands out: {error.strerror}.") from error
        return data


async def _body(request: Request, seconds: float) -> dict[str, Any] | None:  # Any: JSON
    """The JSON object of a request; None where the request does not say that it has one.

    ``seconds`` is how long it may take to arrive. Raises BadRequestError for what is no JSON object, InputTooLargeError
    and UploadTimeoutError.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    request.state.unread = True
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                data += chunk
                if len(data) > _JSON_BYTES:
                    raise InputTooLargeError(f"The body has more than {_JSON_BYTES} bytes.", hint="Send a UUID only.")
    except TimeoutError:
        raise UploadTimeoutError(f"The body did not arrive within {seconds:.0f} s.", hint="Try again.") from None
    request.state.unread = False
    if kind != "application/json":
        return None
    try:
        found: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRequestError("The body of the request is not JSON.", hint='Send {"UUID": "..."}.') from error
    if not isinstance(found, dict):
        raise BadRequestError("The body of the request is not a JSON object.", hint='Send {"UUID": "..."}.')
    return cast("dict[str, Any]", found)  # Any: JSON


def _refusal(row: BuildRow) -> Response:
    """The answer for a build that gave no module."""
    report = row.as_build().report
    if report is None:
        return _failure(InternalError("The build has no report."))
    if report.error == KernelUnavailableError.code:
        return _Answer(_NO_KERNEL, 403)
    statuses = {cls.code: cls.http_status for cls in reversed(error_classes())}
    said = {"message": report.message or row.status, "code": report.error, "hint": report.hint}
    findings = report.dump().get("diagnosis", [])
    return _json({**said, "diagnosis": findings[:_FINDINGS]}, statuses.get(report.error or "", 500))


def router(service: Service) -> APIRouter:
    """The routes of the API; they are in no description, which is that of the current version."""
    classic = _Classic(service)
    api = APIRouter()
    for path, endpoint in (
        ("/", classic.agent),
        ("/v1.0/agent", classic.agent),
        ("/v1.0/get_files", classic.get_files),
        ("/v1.0/send_livepatch", classic.send_livepatch),
    ):
        # no methods are all there can be: what the endpoint does not know, it refuses in the words of this protocol
        api.add_route(BASE + path, _telling(endpoint), methods=[], include_in_schema=False)
    return api
