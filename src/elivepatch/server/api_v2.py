# SPDX-License-Identifier: GPL-2.0-or-later
"""The v2 API: what docs/api.md describes, on top of `service.Service`."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from elivepatch.errors import NotFoundError
from elivepatch.protocol import limits
from elivepatch.protocol.models import Build, BuildPage, BuildRequest, BuildStatus, Health, Kernels, Model, Problem
from elivepatch.server.events import EventStreams, text_log
from elivepatch.server.images import take_image
from elivepatch.server.metrics import Metrics
from elivepatch.server.problems import MEDIA_TYPE
from elivepatch.server.service import Service
from elivepatch.server.upload import read_job

BASE = "/elivepatch/api/v2"

#: The pattern is for those who read the description; what has another form is answered 404, like what is not there.
Id = Annotated[
    str, Path(description="the id of a build, as its address holds it", json_schema_extra={"pattern": "^[0-9a-f]{32}$"})
]
Digest = Annotated[
    str, Path(description="SHA-256 of an archive, in hex", json_schema_extra={"pattern": "^[0-9a-f]{64}$"})
]
_Responses = dict[int | str, dict[str, Any]]  # Any: FastAPI's own type

_BINARY = {"type": "string", "format": "binary"}
_FILES = {"type": "array", "items": _BINARY, "maxItems": limits.PATCHES}
_FORM = {
    "type": "object",
    "required": ["request"],
    "additionalProperties": False,
    "properties": {
        "request": {"$ref": "#/components/schemas/BuildRequest"},
        "patch": {
            **_FILES,
            "description": "the patches, in the order in which they apply; none only where the request has 'cves'",
        },
        "base_patch": {**_FILES, "description": "patches that the running kernel already has"},
        "config": {**_BINARY, "description": "the configuration of the running kernel"},
        "check": {**_BINARY, "description": "a script for the boot test"},
        "symbols": {**_BINARY, "description": "the symbol layout of the running kernel, packed"},
    },
}

#: The schema is that of one event of the stream; its data is the JSON of a `progress.Event`.
_EVENT = {
    "schema": {
        "type": "object",
        "required": ["id", "event", "data"],
        "properties": {
            "id": {"type": "string", "pattern": "^[0-9]+$"},
            "event": {"type": "string", "enum": ["phase", "step", "log", "done"]},
            "data": {"type": "string", "contentMediaType": "application/json"},
        },
    }
}


def _check_digest(sha256: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise NotFoundError("No image has such an address.", hint="It is the SHA-256 of the archive, in hex.")


def problems(*statuses: int) -> _Responses:
    """The errors that an address may answer with, for its description."""
    return {status: {"model": Problem, "description": _MEANINGS[status]} for status in (*statuses, 500)}


_MEANINGS = {
    400: "not a request that can be read",
    404: "not here",
    408: "the request took too long to arrive",
    409: "the build is not in a state for that",
    413: "larger than a limit",
    415: "not a multipart form",
    422: "the input is not what it should be",
    500: "a bug of elivepatch",
    503: "cannot be done now",
    507: "no space is left on the device",
}


def answer(model: Model, status: int = 200, headers: dict[str, str] | None = None) -> JSONResponse:
    """A model as it goes out: without the fields that do not apply."""
    return JSONResponse(model.dump(), status_code=status, headers=headers)


def router(service: Service, streams: EventStreams, metrics: Metrics) -> APIRouter:
    """The routes of the API."""
    api = APIRouter(prefix=BASE)
    slots = asyncio.Semaphore(service.settings.uploads)

    @api.post(
        "/builds",
        operation_id="create_build",
        summary="Ask for a build",
        status_code=202,
        response_model=Build,
        responses={
            200: {"model": Build, "description": "a build with this key has ended: done, or refused"},
            202: {"description": "the build waits or runs", "headers": {"Location": {"schema": {"type": "string"}}}},
            **problems(400, 404, 408, 413, 415, 422, 503, 507),
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": {
                        "schema": _FORM,
                        "encoding": {"request": {"contentType": "application/json"}},
                    }
                },
            }
        },
    )
    async def create_build(request: Request) -> Response:
        """The same inputs are the same build: who asks for one that ended gets it, for one that runs waits with it."""
        job = await read_job(request, slots=slots, seconds=service.settings.upload_seconds)
        row = await run_in_threadpool(service.submit, job)
        headers = {"Location": f"{BASE}/builds/{row.id}"}
        return answer(row.as_build(), 200 if row.state.final else 202, headers)

    @api.put(
        "/images/{sha256}",
        operation_id="put_image",
        summary="Send the image of a kernel that nobody publishes, once for all of its builds",
        status_code=204,
        response_class=Response,
        responses={204: {"description": "it is here"}, **problems(404, 408, 413, 422, 503, 507)},
        openapi_extra={
            "requestBody": {"required": True, "content": {"application/octet-stream": {"schema": _BINARY}}},
        },
    )
    async def put_image(request: Request, sha256: Digest) -> Response:
        """The body is the archive that the client makes of a build directory; its address is its digest."""
        _check_digest(sha256)
        images, incoming = service.settings.workshop.images, service.settings.data / "incoming"
        await take_image(request, sha256, images, incoming, slots=slots, seconds=service.settings.image_seconds)
        return Response(status_code=204)

    @api.get(
        "/images/{sha256}",
        operation_id="get_image",
        summary="Whether an image is here",
        status_code=204,
        response_class=Response,
        responses={204: {"description": "it is here"}, **problems(404)},
    )
    def get_image(sha256: Digest) -> Response:
        _check_digest(sha256)
        if not service.settings.workshop.images.has(sha256):
            raise NotFoundError(f"The image {sha256[:12]} is not here.", hint="Send it: PUT to the same address.")
        return Response(status_code=204)

    @api.get(
        "/builds",
        operation_id="list_builds",
        summary="The builds, newest first, without their reports",
        response_model=BuildPage,
        responses=problems(422, 503),
    )
    def list_builds(
        kernel: Annotated[str | None, Query(max_length=300, description="only builds that asked for this")] = None,
        status: Annotated[BuildStatus | None, Query(description="only builds in this state")] = None,
        cursor: Annotated[str | None, Query(pattern=r"^[0-9]{1,18}$", description="'next' of a page")] = None,
        limit: Annotated[int, Query(ge=1, le=100, description="builds on a page")] = 50,
    ) -> Response:
        before = int(cursor) if cursor is not None else None
        rows = service.database.page(kernel=kernel, status=status, before=before, limit=limit + 1)
        following = str(rows[limit - 1].number) if len(rows) > limit else None
        shown = tuple(row.as_build(with_report=False) for row in rows[:limit])
        return answer(BuildPage(builds=shown, next=following))

    @api.get(
        "/builds/{build_id}",
        operation_id="get_build",
        summary="A build, with its report when it has ended",
        response_model=Build,
        responses=problems(404, 422, 503),
    )
    def get_build(build_id: Id) -> Response:
        return answer(service.get(build_id).as_build())

    @api.get(
        "/builds/{build_id}/events",
        operation_id="get_events",
        summary="What the build tells, live",
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "server-sent events",
                "content": {"text/event-stream": _EVENT},
            },
            204: {"description": "the build has ended, and the event named was its last"},
            **problems(404, 422, 503),
        },
    )
    def get_events(
        build_id: Id,
        last_event_id: Annotated[int, Header(ge=0, le=2**53, description="go on after this event")] = 0,
    ) -> Response:
        row = service.get(build_id)
        # An EventSource comes back after each end of a stream; this is how it is told to stay away.
        if row.state.final and last_event_id >= streams.last_number(row):
            return Response(status_code=204)
        streams.check_room()
        return StreamingResponse(
            streams.stream(build_id, last_event_id),
            media_type="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )

    @api.get(
        "/builds/{build_id}/log",
        operation_id="get_log",
        summary="What the build has told, as text",
        response_class=StreamingResponse,
        responses={
            200: {"description": "the log", "content": {"text/plain": {"schema": {"type": "string"}}}},
            **problems(404, 422, 503),
        },
    )
    def get_log(build_id: Id) -> Response:
        service.get(build_id)
        directory = service.directory(build_id)
        if not directory.path.is_dir():
            raise NotFoundError("The log of this build is no longer kept.", hint="Its report is: ask for the build.")
        return StreamingResponse(text_log(directory.events), media_type="text/plain; charset=utf-8")

    @api.get(
        "/builds/{build_id}/module",
        operation_id="get_module",
        summary="The module of a build that is done",
        response_class=Response,
        responses={
            200: {"description": "the module", "content": {"application/octet-stream": {"schema": _BINARY}}},
            304: {"description": "the client has it already"},
            **problems(404, 409, 422, 503),
        },
    )
    def get_module(build_id: Id, if_none_match: Annotated[str | None, Header(max_length=1024)] = None) -> Response:
        report, data = service.module(build_id)
        if report.module is None:  # `Service.module` has seen to it
            raise NotFoundError("The build has no module.")
        tag = f'"{report.module.sha256}"'
        headers = {
            "ETag": tag,
            "Cache-Control": "private, no-cache",
            "Content-Disposition": f'attachment; filename="{_file_name(report.module.name)}"',
        }
        known = {entry.strip().removeprefix("W/") for entry in (if_none_match or "").split(",")}
        if tag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type="application/octet-stream", headers=headers)

    @api.delete(
        "/builds/{build_id}",
        operation_id="cancel_build",
        summary="Cancel a build that has not ended",
        response_model=Build,
        responses={
            200: {"description": "it is cancelled"},
            202: {"model": Build, "description": "it is told to end"},
            **problems(404, 409, 422, 503, 507),
        },
    )
    async def cancel_build(build_id: Id) -> Response:
        row = await run_in_threadpool(service.cancel, build_id)
        deadline = time.monotonic() + service.settings.cancel_seconds + 2
        while not row.state.final and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
            row = await run_in_threadpool(service.get, build_id)
        return answer(row.as_build(), 200 if row.state.final else 202)

    @api.get(
        "/kernels",
        operation_id="list_kernels",
        summary="The prepared kernels that the server has at hand",
        response_model=Kernels,
        responses=problems(422, 503),
    )
    def list_kernels() -> Response:
        return answer(Kernels(kernels=tuple(service.kernels(service.settings.workshop))))

    @api.get(
        "/health",
        operation_id="get_health",
        summary="Whether the server can build",
        response_model=Health,
        responses={503: {"model": Health, "description": "it cannot, or not for long"}, **problems()},
    )
    def get_health() -> Response:
        health = service.health()
        return answer(health, 200 if health.status == "ok" else 503)

    @api.get(
        "/metrics",
        operation_id="get_metrics",
        summary="Metrics, in Prometheus' text format",
        response_class=Response,
        responses={
            200: {"description": "the metrics", "content": {"text/plain": {"schema": {"type": "string"}}}},
            **problems(503),
        },
    )
    def get_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    _ = (create_build, list_builds, get_build, get_events, get_log, get_module, cancel_build)
    _ = (list_kernels, get_health, get_metrics)
    return api


def describe(schema: dict[str, Any]) -> None:
    """Make the description say what FastAPI cannot know: the form's model, and how errors are sent."""
    schemas = schema["components"]["schemas"]
    request = BuildRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(request.pop("$defs", {}))
    schemas["BuildRequest"] = request
    for path in schema["paths"].values():
        for operation in path.values():
            for response in operation["responses"].values():
                content = response.get("content", {})
                reference = content.get("application/json", {}).get("schema", {}).get("$ref", "")
                if reference.endswith("/Problem"):
                    content[MEDIA_TYPE] = content.pop("application/json")


def _file_name(name: str) -> str:
    """The name of a module as a file; the report comes from our own build, and still nothing else gets through."""
    safe = "".join(char if char.isascii() and (char.isalnum() or char in "_-") else "_" for char in name)
    return f"{safe[:64]}.ko"
