# SPDX-License-Identifier: GPL-2.0-or-later
"""A host with a stock kernel and a classic client: the modules that its requests give are loaded, one after another."""

import re
from pathlib import Path

import demo_host
import pytest

import classic_client
from build_support import LIVEPATCHES
from elivepatch.build.prepared import PreparedKernel
from elivepatch.kernel.release import Release
from elivepatch.progress import Progress
from elivepatch.workshop import Workshop

pytestmark = pytest.mark.guest

SCRIPT = """\
cd /root
cat > classic_client.py <<'PYTHON'
%CLIENT%PYTHON
cat > 1.patch <<'PATCH'
%ONE%PATCH
cat > 2.patch <<'PATCH'
%TWO%PATCH
cat > ask.py <<'PYTHON'
import re, sys, uuid
from pathlib import Path
from urllib.parse import urlsplit
from classic_client import ClassicClient

server = urlsplit(sys.argv[1])
main, *earlier = [Path(name).read_bytes() for name in sys.argv[3:]]
config = next(Path("/boot").glob("config-*")).read_bytes()
version = re.search(r"^# Linux/x86 ([0-9.]+) ", config.decode(), re.MULTILINE)[1]
client = ClassicClient(server.port, str(uuid.uuid4()), server.hostname)
print(version, client.post(version, main, config, earlier, timeout=900))
answer = client.fetch(version)
print(answer.status)
Path(sys.argv[2]).write_bytes(answer.body)
PYTHON
mark() { echo "=== $1"; }
settled() {
    for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        grep -q 1 /sys/kernel/livepatch/*/transition || return 0
        sleep 1
    done
}
effects() { grep -i vmallocchunk /proc/meminfo; cat /proc/uptime; grep -o '^elivepatch_[0-9a-f]* ' /proc/modules; }
mark before; effects
mark ask1; python3 ask.py "$SERVER" first.ko 1.patch
mark first; insmod first.ko; echo "exit $?"; settled; effects
mark ask2; python3 ask.py "$SERVER" second.ko 2.patch 1.patch
mark second; insmod second.ko; echo "exit $?"; settled; sleep 2; ls /sys/kernel/livepatch; effects
mark log; dmesg | grep -E 'WARNING|BUG|Oops|Call Trace|return thunk'
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
    work = tmp_path_factory.mktemp("classic-in-guest")
    files = demo_host.find_kernel(workshop, release, progress)
    host = demo_host.guest_host(workshop, kernel, files, progress)
    script = SCRIPT.replace("%CLIENT%", Path(classic_client.__file__).read_text())
    for mark, name in (("%ONE%", "string"), ("%TWO%", "two-files")):
        script = script.replace(mark, (LIVEPATCHES / f"{name}.patch").read_text())
    with demo_host.server(workshop, work, "--v1") as server:
        ended = demo_host.run_on(host, script, server.port, work, progress)
    sections = re.split(r"^=== (\w+)$", ended.output, flags=re.MULTILINE)
    found = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert "end" in found, ended.output
    return found


def test_the_module_of_the_original_requests_loads(told: dict[str, str]) -> None:
    assert "VmallocChunk:" in told["before"]
    assert "status=201" in told["ask1"]
    assert told["ask1"].split()[-1] == "200"
    assert "exit 0" in told["first"]
    assert "VMALLOCCHUNK:" in told["first"]


def test_the_second_one_contains_the_first(told: dict[str, str]) -> None:
    assert told["ask2"].split()[-1] == "200"
    assert "exit 0" in told["second"]
    assert "VMALLOCCHUNK:" in told["second"]
    assert " idle" in told["second"]
    assert " idle" not in told["first"]
    assert len(re.findall(r"^elivepatch_[0-9a-f]{12}$", told["second"], re.MULTILINE)) == 1


def test_the_kernel_has_nothing_to_say(told: dict[str, str]) -> None:
    assert told["log"].strip() == ""
