# SPDX-License-Identifier: GPL-2.0-or-later
"""The web application: routes, errors, headers, and its description at /openapi.json."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from elivepatch.server import api_cves, api_overlays, api_v1, api_v2, problems
from elivepatch.server.events import EventStreams
from elivepatch.server.metrics import Metrics
from elivepatch.server.service import Service
from elivepatch.version import installed_version

#: What every answer says to a browser that comes across it: this is data, for nobody's page.
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class _Edge:
    """Adds the headers and counts the answers; plain ASGI, so that streams stay streams."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
                self._metrics.answered(message["status"])
            await send(message)

        await self._app(scope, receive, with_headers)


class _Application(FastAPI):
    """FastAPI with the description that is true of us, and with `_Edge` around all of it, errors included."""

    metrics: Metrics

    def build_middleware_stack(self) -> ASGIApp:
        """What a request passes through."""
        return _Edge(super().build_middleware_stack(), self.metrics)

    def openapi(self) -> dict[str, Any]:
        """The description of the API."""
        if self.openapi_schema is None:
            schema = get_openapi(
                title=self.title,
                version=self.version,
                description=self.description,
                routes=self.routes,
                separate_input_output_schemas=False,
            )
            api_v2.describe(schema)
            self.openapi_schema = schema
        return self.openapi_schema


def create_app(service: Service) -> FastAPI:
    """The application of a server that is open."""
    app = _Application(
        title="elivepatch",
        version=installed_version(),
        description="Live patches for exactly the Linux kernel that a machine runs. See docs/api.md.",
        docs_url=None,  # the pages load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    streams = EventStreams(service)
    metrics = Metrics(service, streams)
    api = api_v2.router(service, streams, metrics)
    problems.install(app, api.routes)
    app.include_router(api)
    app.include_router(api_cves.router(service))
    app.include_router(api_overlays.router(service))
    if service.settings.v1:
        app.include_router(api_v1.router(service))
    app.metrics = metrics
    return app
