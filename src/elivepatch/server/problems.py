# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors over HTTP: every one is an ``application/problem+json`` (RFC 9457) made from the one error tree."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

from elivepatch.errors import (
    BadRequestError,
    BusyError,
    Diagnosis,
    ElivepatchError,
    InternalError,
    InvalidInputError,
    MethodNotAllowedError,
    NotFoundError,
)
from elivepatch.protocol.models import Problem

MEDIA_TYPE = "application/problem+json"
#: How much (bytes, seconds) of a body that nobody wants is taken from the line after the answer was given.
_LINGER_BYTES = 256 * 1024 * 1024
_LINGER_SECONDS = 10.0

_log = logging.getLogger(__name__)


def as_problem(error: ElivepatchError) -> Problem:
    """The error as the client gets it."""
    title = (type(error).__doc__ or "").strip().splitlines()[0]
    return Problem(
        type=f"urn:elivepatch:error:{error.code}",
        title=title,
        status=error.http_status,
        code=error.code,
        detail=error.message,
        hint=error.hint,
        diagnosis=error.diagnosis,
    )


class EarlyResponse(Response):
    """An answer that can come before the request's body was read.

    Then (``unread``) the rest of the body is taken from the line and dropped, within limits: a client that sends all
    before it reads would otherwise see a broken connection.
    """

    def __init__(
        self, content: str, status_code: int, *, headers: Mapping[str, str] | None = None, unread: bool = False
    ) -> None:
        self._unread = unread
        sent = dict(headers or {})
        if unread:
            sent["Connection"] = "close"
        super().__init__(content, status_code=status_code, headers=sent)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if not self._unread:
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": bytes(self.body), "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                await _drop(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class ProblemResponse(EarlyResponse):
    """The answer that tells an error."""

    media_type = MEDIA_TYPE

    def __init__(
        self, error: ElivepatchError, *, headers: Mapping[str, str] | None = None, unread: bool = False
    ) -> None:
        problem = as_problem(error)
        more = {"Retry-After": "60"} if isinstance(error, BusyError) else {}
        sent = {**(headers or {}), **more}
        super().__init__(problem.model_dump_json(exclude_none=True), problem.status, headers=sent, unread=unread)


async def _drop(receive: Receive) -> None:
    dropped = 0
    while dropped < _LINGER_BYTES:
        message = await receive()
        dropped += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


def from_validation(
    errors: Sequence[Any], what: str
) -> InvalidInputError:  # Any: pydantic's ErrorDetails, FastAPI's dicts
    """One error of ours for all that is wrong with an input, with a finding for each."""
    findings: list[Diagnosis] = []
    for error in errors:
        place = ".".join(str(part) for part in error["loc"] if part not in ("query", "path", "header", "body"))
        message = f"{place}: {error['msg']}" if place else str(error["msg"])
        findings.append(Diagnosis(rule="invalid-value", message=f"{what}: {message[:500]}"))
    detail = "; ".join(finding.message for finding in findings[:3]) or f"{what}: it cannot be read."
    return InvalidInputError(
        detail, hint="/openapi.json says what is expected here; docs/api.md explains it.", diagnosis=findings
    )


def model_error(error: ValidationError, what: str) -> InvalidInputError:
    """What is wrong with the JSON of a model."""
    return from_validation(error.errors(include_url=False, include_input=False), what)


def install(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Make every error of the application a problem. ``routes`` are those that have several methods at one address."""

    async def ours(request: Request, error: Exception) -> Response:
        if not isinstance(error, ElivepatchError):  # registered for that class only
            raise error
        if error.http_status >= 500:
            _log.error("%s %s: %s", request.method, request.url.path, error)
        return ProblemResponse(error, unread=getattr(request.state, "unread", False))

    async def validation(_request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            raise error
        return ProblemResponse(from_validation(error.errors(), "The request"))

    async def http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        if error.status_code == 405:
            # The framework names the methods of the first route only.
            allowed = _allowed(request, routes) or (error.headers or {}).get("Allow", "GET")
            return ProblemResponse(_method(request, allowed), headers={"Allow": allowed})
        return ProblemResponse(_from_http(error), headers=error.headers)

    async def gone(_request: Request, _error: Exception) -> Response:
        return ProblemResponse(BadRequestError("The client went away."))  # nobody reads it

    async def unexpected(request: Request, _error: Exception) -> Response:
        # The traceback is logged by the server, which gets the exception too; the client learns nothing of it.
        _log.error("%s %s failed.", request.method, request.url.path)
        return ProblemResponse(InternalError(hint="Please report it with the server's log of this moment."))

    app.add_exception_handler(ElivepatchError, ours)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, unexpected)


def _allowed(request: Request, routes: Sequence[BaseRoute]) -> str:
    methods: set[str] = set()
    for route in routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods or set()
    return ", ".join(sorted(methods))


def _method(request: Request, allowed: str) -> MethodNotAllowedError:
    return MethodNotAllowedError(
        f"This address does not take the method {request.method[:20]}.", hint=f"It takes: {allowed}."
    )


def _from_http(error: HTTPException) -> ElivepatchError:
    if error.status_code == 404:
        return NotFoundError("There is nothing at this address.", hint="/openapi.json lists the addresses.")
    if error.status_code < 500:
        return BadRequestError(str(error.detail), hint="/openapi.json says what is expected here.")
    return InternalError()
