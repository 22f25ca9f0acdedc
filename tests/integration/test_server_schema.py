# SPDX-License-Identifier: GPL-2.0-or-later
"""The API does what /openapi.json says: requests made from it, right and wrong ones, against a real server."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import schemathesis
from hypothesis import given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks as _checks
from server_support import BASE, ServerProcess, patch, post, serving, wait

checks: Any = _checks  # Any: they carry partial types
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("schema") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def description(server: ServerProcess) -> Any:  # Any: schemathesis' schema
    return schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_requests_made_from_the_description(description: Any, mode: GenerationMode) -> None:
    operations = [result.ok() for result in description.get_all_operations()]
    assert len(operations) >= 10
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and operation.path.rsplit("/", 1)[-1] in {
            "kernels",
            "overlays",
            "health",
            "metrics",
        }:
            continue  # nothing can be wrong about a request without parameters
        assert _try(operation, mode) > 0, operation.label


def _try(operation: Any, mode: GenerationMode) -> int:
    """Make requests of an operation; how many were answered as the description says."""
    tried: list[str] = []

    @settings(max_examples=20, deadline=None, derandomize=True, database=None)
    @given(case=operation.as_strategy(generation_mode=mode))
    def call(case: Any) -> None:
        # A patch that is none is refused although the description allows any bytes: no schema says what is one.
        # One that is too large (413) is refused too, before anybody looks what else is wrong with it.
        response = case.call()
        excluded = [checks.positive_data_acceptance]
        excluded += [checks.negative_data_rejection] if response.status_code == 413 else []
        case.validate_response(response, excluded_checks=excluded)
        tried.append(case.method)

    call()
    return len(tried)


@pytest.mark.parametrize("kernel", ["short", "refuse", "raise"])
def test_answers_about_a_build_are_as_described(server: ServerProcess, description: Any, kernel: str) -> None:
    build_id = post(server, kernel, patch("described")).json()["id"]
    wait(server, build_id)
    for path, expected in {
        "": {200},
        "/events": {200},
        "/log": {200},
        "/module": {200} if kernel == "short" else {409},
    }.items():
        case = description[f"{BASE}/builds/{{build_id}}{path}"]["GET"].Case(path_parameters={"build_id": build_id})
        response = case.call()
        assert response.status_code in expected
        case.validate_response(response)
    case = description[f"{BASE}/builds/{{build_id}}"]["DELETE"].Case(path_parameters={"build_id": build_id})
    response = case.call()
    assert response.status_code == 409
    case.validate_response(response, excluded_checks=[checks.use_after_free, checks.ensure_resource_availability])
    case = description[f"{BASE}/builds"]["GET"].Case()
    case.validate_response(case.call())
