# SPDX-License-Identifier: GPL-2.0-or-later
"""A real server, real builds without a boot test: what a client learns over HTTP, however a build ends."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator
from typing import Any

import demo_host
import httpx2
import pytest

from build_support import LIVEPATCHES
from elivepatch.build.prepared import PreparedKernel
from elivepatch.workshop import Workshop

pytestmark = pytest.mark.integration

STRING = (LIVEPATCHES / "string.patch").read_bytes()
OTHER = b"CONFIG_64BIT=y\n"
WRONG_C = STRING.replace(b'VMALLOCCHUNK:   ", 0ul', b'VMALLOCCHUNK:   ", nothing_such')


@pytest.fixture(scope="module")
def api(
    workshop: Workshop, kernel: PreparedKernel, tmp_path_factory: pytest.TempPathFactory
) -> Generator[httpx2.Client]:
    del kernel  # prepared, so that no build has to
    with (
        demo_host.server(workshop, tmp_path_factory.mktemp("server")) as server,
        httpx2.Client(base_url=f"{server.url}/elivepatch/api/v2", timeout=60) as client,
    ):
        yield client


def ask(api: httpx2.Client, kernel: str, patch: bytes, **files: bytes) -> httpx2.Response:
    request = json.dumps({"kernel": kernel, "verify": False}).encode()
    parts = {"request": ("request", request, "application/json"), "patch": ("p.patch", patch, "text/x-patch")}
    return api.post("/builds", files={**parts, **{name: (name, data, "text/plain") for name, data in files.items()}})


def ended(api: httpx2.Client, asked: httpx2.Response) -> dict[str, Any]:  # Any: JSON
    assert asked.status_code == 202, asked.text
    for _ in range(300):
        build: dict[str, Any] = api.get(f"/builds/{asked.json()['id']}").json()
        if build["status"] in {"done", "refused", "failed"}:
            return build
        time.sleep(0.1)
    raise AssertionError("the build does not end")


def test_a_build_is_done_and_asked_for_again(api: httpx2.Client, kernel: PreparedKernel) -> None:
    build = ended(api, ask(api, kernel.release, STRING))
    assert build["status"] == "done"
    assert build["report"]["proof"]["level"] == "exact"
    module = api.get(f"/builds/{build['id']}/module")
    assert hashlib.sha256(module.content).hexdigest() == build["report"]["module"]["sha256"]
    again = ask(api, kernel.release, STRING)
    assert (again.status_code, again.json()["id"]) == (200, build["id"])
    listed = api.get("/kernels").json()
    assert kernel.build_id in json.dumps(listed)


@pytest.mark.parametrize(
    ("name", "patch", "files", "status", "error", "exit_status"),
    [
        ("", STRING.replace(b"VmallocUsed", b"VmallocNever"), {}, "refused", "does-not-apply", 3),
        ("", STRING.replace(b"0ul", b"0ul + nothing_such"), {}, "refused", "does-not-apply", 3),
        ("", STRING.replace(b'VMALLOCCHUNK:   ", 0ul', b'X:   ", nothing_such'), {}, "refused", "does-not-compile", 3),
        ("", STRING.replace(b"VMALLOCCHUNK", b"VmallocChunk"), {}, "refused", "nothing-to-patch", 3),
        ("", STRING, {"config": OTHER}, "refused", "configuration-mismatch", 4),
        ("6.99.1+deb13-cloud-amd64", STRING, {}, "failed", "kernel-unavailable", 6),
        ("kernel.org:6.12.60", STRING, {}, "failed", "kernel-unavailable", 6),
    ],
)
def test_how_a_build_ends_is_said(
    api: httpx2.Client,
    kernel: PreparedKernel,
    name: str,
    patch: bytes,
    files: dict[str, bytes],
    status: str,
    error: str,
    exit_status: int,
) -> None:
    build = ended(api, ask(api, name or kernel.release, patch, **files))
    report = build["report"]
    assert (build["status"], report["error"], report["exit_status"]) == (status, error, exit_status), report
    assert report["message"]
    assert report["diagnosis"]
    module = api.get(f"/builds/{build['id']}/module")
    assert (module.status_code, module.json()["code"]) == (409, "not-finished")
    assert module.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("name", ["6.12", "nothing-such", "svn:trunk"])
def test_what_is_no_kernel_is_not_queued(api: httpx2.Client, name: str) -> None:
    asked = ask(api, name, STRING)
    assert (asked.status_code, asked.json()["code"]) == (422, "invalid-input"), asked.text
    assert "debian:" in asked.json()["hint"]
    assert not api.get("/builds", params={"kernel": name}).json()["builds"]


def test_a_refused_build_is_answered_as_it_is(api: httpx2.Client, kernel: PreparedKernel) -> None:
    patch = STRING.replace(b"VmallocTotal", b"VmallocNone")
    build = ended(api, ask(api, kernel.release, patch))
    again = ask(api, kernel.release, patch)
    assert (again.status_code, again.json()["id"]) == (200, build["id"])


def test_the_log_and_the_events_of_a_build(api: httpx2.Client, kernel: PreparedKernel) -> None:
    build = ended(api, ask(api, kernel.release, STRING.replace(b"VMALLOCCHUNK", b"VmallocOther")))
    assert build["status"] == "done"
    assert "linking" in api.get(f"/builds/{build['id']}/log").text
    events = api.get(f"/builds/{build['id']}/events").text
    assert "event: phase" in events
    assert events.rstrip().splitlines()[-1].startswith("data:")
