# SPDX-License-Identifier: GPL-2.0-or-later
"""The client on a host with a stock kernel, and a real server that builds for it."""

import json
import re
from pathlib import Path

import demo_host
import pytest

from elivepatch.build.prepared import PreparedKernel
from elivepatch.kernel.release import Release
from elivepatch.progress import Progress
from elivepatch.workshop import Workshop

pytestmark = [pytest.mark.guest, pytest.mark.smoke]

DATA = Path(__file__).parents[1] / "data/livepatches"

SCRIPT = """\
export TERM=dumb
cd /root
cat > string.patch <<'PATCH'
%PATCH%PATCH
cat > check.sh <<'CHECK'
%CHECK%CHECK
sed 's/VmallocUsed/VmallocNeverWas/' string.patch > wrong.patch
mark() { echo "=== $1"; }
mark before; grep -i vmallocchunk /proc/meminfo; cat /proc/sys/kernel/tainted
mark refused; elivepatch -u "$SERVER" -p wrong.patch; echo "exit $?"
mark load; elivepatch -u "$SERVER" -p string.patch --check check.sh; echo "exit $?"
mark after; grep -i vmallocchunk /proc/meminfo; ls /sys/kernel/livepatch
mark status; elivepatch status --json
mark again; elivepatch -u "$SERVER" -p string.patch --check check.sh; echo "exit $?"
mark revert; elivepatch revert "$(ls /sys/kernel/livepatch)"; echo "exit $?"
mark reverted; grep -i vmallocchunk /proc/meminfo; ls /sys/kernel/livepatch; lsmod | grep -c elivepatch
mark dead; elivepatch -u http://127.0.0.1:9 -p string.patch; echo "exit $?"
mark end
"""


@pytest.fixture(scope="module")
def told(
    workshop: Workshop,
    kernel: PreparedKernel,
    release: Release,
    progress: Progress,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """What the host saw, by section of the script."""
    work = tmp_path_factory.mktemp("client-in-guest")
    files = demo_host.find_kernel(workshop, release, progress)
    host = demo_host.guest_host(workshop, kernel, files, progress)
    script = SCRIPT.replace("%PATCH%", (DATA / "string.patch").read_text())
    script = script.replace("%CHECK%", (DATA / "string.sh").read_text())
    with demo_host.server(workshop, work) as server:
        ended = demo_host.run_on(host, script, server.port, work, progress)
    sections = re.split(r"^=== (\w+)$", ended.output, flags=re.MULTILINE)
    found = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert "end" in found, ended.output
    return found


def test_the_livepatch_is_built_loaded_and_has_its_effect(told: dict[str, str]) -> None:
    assert "VmallocChunk:" in told["before"]
    assert told["load"].rstrip().endswith("exit 0")
    assert "VMALLOCCHUNK:" in told["after"]
    assert re.search(r"^elivepatch_[0-9a-f]{12}$", told["after"], re.MULTILINE)


def test_status_knows_the_patch_and_its_proof(told: dict[str, str]) -> None:
    status = json.loads(told["status"])
    assert "string.patch" in told["status"]
    assert "exact" in told["status"]
    assert status


def test_a_patch_that_does_not_apply_is_refused_with_its_hunk(told: dict[str, str]) -> None:
    assert "exit 3" in told["refused"]
    assert "fs/proc/meminfo.c" in told["refused"]


def test_what_is_loaded_is_not_loaded_twice(told: dict[str, str]) -> None:
    assert re.search(r"exit \d", told["again"])
    assert "Traceback" not in told["again"]
    assert told["revert"].rstrip().endswith("exit 0")


def test_after_the_revert_the_kernel_is_as_before(told: dict[str, str]) -> None:
    assert "VmallocChunk:" in told["reverted"]
    assert "elivepatch_" not in told["reverted"]
    assert told["reverted"].split()[-1] == "0"


def test_without_a_server_the_way_out_is_named(told: dict[str, str]) -> None:
    assert "exit 6" in told["dead"]
    assert "127.0.0.1:9" in told["dead"]
