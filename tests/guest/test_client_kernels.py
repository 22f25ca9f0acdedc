# SPDX-License-Identifier: GPL-2.0-or-later
"""The client on the oldest and the newest kernels that Debian has: load, status, a second livepatch, revert."""

from __future__ import annotations

import json
import re
from pathlib import Path

import demo_host
import pytest
from bench_kernels import newest

from build_support import change
from elivepatch.progress import Progress
from elivepatch.selection import WantedKernel, hold_kernel
from elivepatch.workshop import Workshop, find_kernel

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.timeout(2400)]

#: The series of the kernel, and the release of Debian that the host has.
HOSTS = {"6.1": "bookworm", "7.3": "trixie"}
SCRIPT = """\
export TERM=dumb ELIVEPATCH_URL="$SERVER"
cd /root
cat > one.patch <<'PATCH'
%ONE%PATCH
cat > two.patch <<'PATCH'
%TWO%PATCH
mark() { echo "=== $1"; }
effects() {
    grep -i vmallocchunk /proc/meminfo; cat /proc/loadavg
    for name in $(ls /sys/kernel/livepatch); do echo "livepatch $name"; done
    grep -o '^elivepatch_[0-9a-f]* ' /proc/modules | sed 's/^/module /'
}
mark kernel; uname -r; python3 --version
mark before; effects
mark load1; elivepatch -p one.patch; echo "exit $?"
mark first; effects
mark load2; elivepatch -p two.patch; echo "exit $?"
mark second; effects
mark status; elivepatch status --json
mark dry; elivepatch revert --dry-run; echo "exit $?"
mark revert; elivepatch revert; echo "exit $?"
mark reverted; effects
mark quiet; elivepatch status; echo "exit $?"
mark log; dmesg | grep -E 'WARNING|BUG|Oops|Call Trace'
mark end
"""


def section_effects(section: str) -> tuple[bool, bool]:
    """Whether the effects of the first and of the second patch are there."""
    return "VMALLOCCHUNK" in section, " pid " in section


def named(section: str, what: str) -> list[str]:
    return re.findall(rf"^{what} (elivepatch_[0-9a-f]{{12}})", section, re.MULTILINE)


@pytest.mark.parametrize("series", list(HOSTS))
def test_load_status_second_and_revert(workshop: Workshop, progress: Progress, tmp_path: Path, series: str) -> None:
    suite = HOSTS[series]
    release = newest(workshop, suite, series, "-cloud-amd64", progress)
    files, _, source = find_kernel(release, workshop, progress)
    source.download(files, progress)
    with hold_kernel(WantedKernel(name=str(release)), workshop, progress) as (kernel, _):
        host = demo_host.guest_host(workshop, kernel, files, progress, suite=suite)
        one = change(kernel.source, "fs/proc/meminfo.c", ("VmallocChunk:", "VMALLOCCHUNK:"))
        two = change(kernel.source, "fs/proc/loadavg.c", ('%u/%d %d\\n"', '%u/%d pid %d\\n"'))
        script = SCRIPT.replace("%ONE%", one.decode()).replace("%TWO%", two.decode())
        with demo_host.server(workshop, tmp_path) as server:
            ended = demo_host.run_on(host, script, server.port, tmp_path, progress, timeout=1800)
    parts = re.split(r"^=== (\w+)$", ended.output, flags=re.MULTILINE)
    told = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert "end" in told, ended.output

    assert told["kernel"].split()[0] == str(release)
    assert section_effects(told["before"]) == (False, False)
    assert told["load1"].rstrip().endswith("exit 0"), told["load1"]
    assert section_effects(told["first"]) == (True, False)
    assert told["load2"].rstrip().endswith("exit 0"), told["load2"]
    assert section_effects(told["second"]) == (True, True)
    (first,), (second,) = named(told["first"], "livepatch"), named(told["second"], "livepatch")
    assert first != second
    assert named(told["second"], "module") == [second]
    status = json.loads(told["status"])
    assert status["exit_status"] == 0, status
    (held,) = status["livepatches"]
    assert (held["name"], held["patches"], held["replaced"]) == (second, ["one.patch", "two.patch"], [first])
    assert (held["proof"], held["verified"]) == ("exact", True)
    assert {one["function"] for one in held["functions"]} == {"meminfo_proc_show", "loadavg_proc_show"}
    assert f"{second} would be disabled and unloaded" in told["dry"]
    assert told["revert"].rstrip().endswith("exit 0"), told["revert"]
    assert section_effects(told["reverted"]) == (False, False)
    assert not named(told["reverted"], "livepatch") + named(told["reverted"], "module")
    assert told["quiet"].rstrip().endswith("exit 0"), told["quiet"]
    assert not told["log"].strip()
