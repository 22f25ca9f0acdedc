# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of the v2 API that is about the CVE data itself; plans are builds."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.responses import Response

from elivepatch.cves.records import Dyad
from elivepatch.cves.scan import scan
from elivepatch.cves.versions import parse_version
from elivepatch.errors import NotFoundError
from elivepatch.protocol.cves import CVE_ID, CveDetails, CveScan, CveSpan
from elivepatch.server.api_v2 import BASE, answer, problems
from elivepatch.server.service import Service

Name = Annotated[str, Path(description="like CVE-2026-46300", max_length=64)]
Version = Annotated[str, Path(description="an upstream version, like 6.1.170", max_length=64)]


def router(service: Service) -> APIRouter:
    """The routes."""
    api = APIRouter(prefix=BASE)

    @api.get(
        "/cves/versions/{version}",
        operation_id="scan_version",
        summary="The vulnerabilities of an upstream version of the kernel",
        response_model=CveScan,
        responses=problems(422, 503),
    )
    def scan_version(version: Version) -> Response:
        return answer(scan(service.settings.cve_index, parse_version(version)))

    @api.get(
        "/cves/{name}",
        operation_id="get_cve",
        summary="What is known of a vulnerability",
        response_model=CveDetails,
        responses=problems(404, 422, 503),
    )
    def get_cve(name: Name) -> Response:
        if not CVE_ID.fullmatch(name):
            raise NotFoundError("No vulnerability has such a name.", hint="They are called like CVE-2026-46300.")
        index = service.settings.cve_index
        found = index.get(name)
        return answer(
            CveDetails(
                id=found.name,
                title=found.title,
                score=found.score,
                vector=found.vector,
                files=found.files,
                spans=tuple(_span(dyad) for dyad in found.dyads),
                data_date=index.state().date,
            )
        )

    _ = (scan_version, get_cve)
    return api


def _span(dyad: Dyad) -> CveSpan:
    return CveSpan(
        since=str(dyad.vulnerable) if dyad.vulnerable else None,
        since_commit=dyad.vulnerable_commit,
        fixed=str(dyad.fixed) if dyad.fixed else None,
        fixed_commit=dyad.fixed_commit,
    )
