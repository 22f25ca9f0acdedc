# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of the v2 API that is about the overlays that the server watches."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from elivepatch.protocol.overlays import WatchedOverlays
from elivepatch.server.api_v2 import BASE, answer, problems
from elivepatch.server.service import Service


def router(service: Service) -> APIRouter:
    """The routes."""
    api = APIRouter(prefix=BASE)

    @api.get(
        "/overlays",
        operation_id="list_overlays",
        summary="The overlays that the server watches, and what it has built of them ahead",
        response_model=WatchedOverlays,
        responses=problems(503),
    )
    def list_overlays() -> Response:
        return answer(service.overlays())

    _ = list_overlays
    return api
