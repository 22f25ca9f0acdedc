# SPDX-License-Identifier: GPL-2.0-or-later
"""A dry run tells all that a request would do, and does none of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from pathlib import Path

import pytest

from client_fakes import BUILD_ID, CONFIG, NAME, RELEASE, built_kernel, fake_host
from client_rig import PATCH, Rig
from client_server import Server, serving

pytestmark = pytest.mark.integration


@pytest.fixture
def rig(tmp_path: Path) -> Generator[Rig]:
    host, kernel = fake_host(tmp_path, user=0)
    with serving(Server()) as server:
        yield Rig(server, host, kernel, tmp_path)


def tree(top: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything below a directory: mode, time of change, and content."""
    found: dict[str, tuple[int, int, bytes]] = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_mode, status.st_mtime_ns, path.read_bytes() if path.is_file() else b"")
    return found


def test_it_tells_what_would_be_sent_and_loaded_and_does_nothing(rig: Rig) -> None:
    (rig.tmp / "meminfo.patch").write_text(PATCH)
    before = tree(rig.tmp)
    result = rig.run("--dry-run", "-o", rig.tmp / "out.ko")
    assert result.exit_code == 0, result.output
    assert result.stdout == "dry run: nothing was sent, and nothing was changed\n"
    digest = hashlib.sha256(PATCH.encode()).hexdigest()[:12]
    assert f"would send patch: meminfo.patch, {len(PATCH)} bytes, SHA-256 {digest}" in result.stderr
    assert f"would send config: config, {len(CONFIG)} bytes" in result.stderr
    assert f"{rig.server.url} answers and would have to prepare this kernel first" in result.stderr
    assert f"would load the module into {RELEASE}" in result.stderr
    assert {(seen.method, seen.path) for seen in rig.server.seen} == {("GET", "/elivepatch/api/v2/kernels")}
    assert rig.kernel.log == []
    assert tree(rig.tmp) == before


def test_what_would_be_replaced_is_told(rig: Rig) -> None:
    assert rig.run().exit_code == 0
    second = rig.tmp / "second.patch"
    second.write_text(PATCH.replace("+b", "+c"))
    before, asked = tree(rig.tmp), len(rig.server.seen)
    result = rig.run("-p", second, "-u", rig.server.url, "--dry-run", patch=False)
    assert result.exit_code == 0
    assert f"contains the earlier livepatch {NAME}: meminfo.patch" in result.stderr
    assert "would send patch: meminfo.patch" in result.stderr
    assert "would send patch: second.patch" in result.stderr
    assert f"would unload {NAME}, which it replaces" in result.stderr
    assert {seen.method for seen in rig.server.seen[asked:]} == {"GET"}
    assert tree(rig.tmp) == before


def test_what_is_in_force_needs_no_server(rig: Rig) -> None:
    assert rig.run().exit_code == 0
    asked = len(rig.server.seen)
    result = rig.run("--dry-run")
    assert result.exit_code == 0
    assert "nothing would be sent" in result.stderr
    assert len(rig.server.seen) == asked


def test_as_json(rig: Rig) -> None:
    rig.server.kernels = [
        {"release": RELEASE, "build_id": BUILD_ID, "source": "debian:x", "size": 1, "last_used": 1.0},
    ]
    outcome = json.loads(rig.run("--dry-run", "--json", "--no-load").stdout)
    assert (outcome["status"], outcome["exit_status"], outcome["kernel"]) == ("dry-run", 0, RELEASE)
    told = outcome["dry_run"]
    assert (told["url"], told["load"], told["prepared"]) == (rig.server.url, False, True)
    assert [(file["part"], file["name"], file["size"]) for file in told["files"]] == [
        ("patch", "meminfo.patch", len(PATCH)),
        ("config", "config", len(CONFIG)),
    ]


def test_the_image_is_named_and_not_collected(rig: Rig) -> None:
    place = built_kernel(rig.host.root, place=f"usr/src/linux-{RELEASE}")
    result = rig.run("--dry-run", "--kernel", "kernel.org:6.12.117")
    assert f"would send the kernel's image from {place}, if the server does not have it" in result.stderr
    assert {seen.method for seen in rig.server.seen} == {"GET"}


@pytest.mark.parametrize("what", ["server", "patch", "root"])
def test_what_would_stop_the_request_stops_it(rig: Rig, what: str) -> None:
    words: list[str | Path] = ["--dry-run"]
    expected = {"server": 6, "patch": 2, "root": 4}[what]
    if what == "server":
        words += ["-u", "http://127.0.0.1:9"]
    elif what == "patch":
        (rig.tmp / "meminfo.patch").write_text("no patch")
    else:
        host, _ = fake_host(rig.tmp, rig.kernel, user=1000)
        rig.host = host
    result = rig.run(*words)
    assert result.exit_code == expected, result.output
    assert "hint: " in result.stderr
    assert rig.kernel.log == []
    assert not rig.state.exists()
