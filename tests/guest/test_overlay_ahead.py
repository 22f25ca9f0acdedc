# SPDX-License-Identifier: GPL-2.0-or-later
"""A server that watches an overlay, and a host that asks for what it has: the livepatch is there already."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import demo_host
import httpx2
import pytest

from elivepatch.build.prepared import PreparedKernel
from elivepatch.kernel.release import Release
from elivepatch.progress import Progress
from elivepatch.workshop import Workshop
from overlay_git import repository

pytestmark = [pytest.mark.guest, pytest.mark.slow]

DATA = Path(__file__).parents[1] / "data/livepatches"
FILES = {f"patches/{name}": (DATA / name).read_text() for name in ("string.patch", "string.sh", "two-files.patch")}
DESCRIPTION = """\
schema: 1
patches:
- id: string
  kernels: {release}
  patch: string.patch
  check: string.sh
- id: two-files
  kernels: {release}
  distributions: debian
  patch: two-files.patch
"""
SCRIPT = """\
export TERM=dumb ELIVEPATCH_URL="$SERVER"
cd /root; mkdir -p team/patches
{files}
elivepatch overlay apply team --json; echo "exit $?"
grep -i vmallocchunk /proc/meminfo
"""


def test_what_a_host_asks_for_was_built_ahead(
    workshop: Workshop, kernel: PreparedKernel, release: Release, progress: Progress, tmp_path: Path
) -> None:
    description = DESCRIPTION.format(release=kernel.release)
    overlay = repository(tmp_path / "team", description, FILES)
    watched = json.dumps({"team": {"url": overlay.url}})
    host = demo_host.guest_host(workshop, kernel, demo_host.find_kernel(workshop, release, progress), progress)
    with demo_host.server(workshop, tmp_path, overlays=watched) as server:
        base = f"{server.url}/elivepatch/api/v2"
        deadline = time.monotonic() + 300
        while True:
            builds = [one for one in httpx2.get(f"{base}/overlays").json()["builds"] if one["entries"]]
            if builds and builds[0].get("status") in {"done", "refused", "failed"}:
                break
            assert time.monotonic() < deadline, f"{builds}\n{server.log.read_text()}"
            time.sleep(0.2)
        (ahead,) = builds
        assert (ahead["kernel"], ahead["status"]) == (kernel.release, "done"), ahead
        assert ahead["entries"] == ["team/string", "team/two-files"]
        files = "".join(
            f"cat > team/{name} <<'END-OF-FILE'\n{text}END-OF-FILE\n"
            for name, text in {**FILES, "elivepatch.yml": description}.items()
        )
        ended = demo_host.run_on(host, SCRIPT.replace("{files}", files), server.port, tmp_path, progress)
        listed = httpx2.get(f"{base}/builds").json()["builds"]
    assert "exit 0" in ended.output, ended.output
    printed = re.search(r"^\{\n.*^\}$", ended.output, re.MULTILINE | re.DOTALL)
    assert printed is not None, ended.output
    outcome = json.loads(printed[0])
    assert outcome["status"] == "loaded"
    assert outcome["build"]["id"] == ahead["build"], "the host's request was built again"
    assert [one["id"] for one in listed] == [ahead["build"]]
    assert "VMALLOCCHUNK" in ended.output.rpartition("exit 0")[2]
