# SPDX-License-Identifier: GPL-2.0-or-later
"""An overlay for a stock kernel: tried by a real server, and applied by a host that runs it."""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from pathlib import Path

import demo_host
import pytest
from click.testing import CliRunner

from elivepatch.build.prepared import PreparedKernel
from elivepatch.client.cli import cli
from elivepatch.kernel.release import Release
from elivepatch.progress import Progress
from elivepatch.workshop import Workshop

pytestmark = pytest.mark.guest

DATA = Path(__file__).parents[1] / "data/livepatches"
#: Changes nothing that runs: the server refuses it.
NOTHING = (DATA / "string.patch").read_text().replace('"VMALLOCCHUNK:   ", 0ul', '"VmallocChunk:   ", 0ul + 0')

SCRIPT = """\
export TERM=dumb ELIVEPATCH_URL="$SERVER"
cd /root
cat > string.patch <<'PATCH'
%STRING%PATCH
cat > string.sh <<'CHECK'
%STRING_CHECK%CHECK
cat > two-files.patch <<'PATCH'
%TWO%PATCH
cat > two-files.sh <<'CHECK'
%TWO_CHECK%CHECK
mkdir -p team/patches
mv *.patch *.sh team/patches
cat > team/elivepatch.yml <<'YML'
schema: 1
patches:
- id: two-files
  kernels: 6.12.*
  patch: two-files.patch
  check: two-files.sh
  cves: CVE-2026-22222
- id: string
  kernels: ">=6.12.1 <6.13"
  distributions: debian:13
  patch: string.patch
  check: string.sh
  cves: CVE-2026-11111
- id: elsewhere
  kernels: 5.10.*
  patch: string.patch
YML
mark() { echo "=== $1"; }
mark list; elivepatch overlay list team --for "$(uname -r)"
mark before; grep -i vmallocchunk /proc/meminfo; sh team/patches/two-files.sh; echo "two-files $?"
mark one; elivepatch overlay apply team --only string; echo "exit $?"
mark all; elivepatch overlay apply team --json; echo; echo "exit $?"
mark after; grep -i vmallocchunk /proc/meminfo; sh team/patches/two-files.sh; echo "two-files $?"
ls /sys/kernel/livepatch
mark status; elivepatch status
mark again; elivepatch -u http://127.0.0.1:9 overlay apply team; echo "exit $?"
mark log; dmesg | grep -E 'WARNING|BUG|Oops|Call Trace'
mark end
"""


@pytest.fixture(scope="module")
def server(
    workshop: Workshop, kernel: PreparedKernel, tmp_path_factory: pytest.TempPathFactory
) -> Generator[demo_host.Server]:
    del kernel  # prepared, so that no build has to
    with demo_host.server(workshop, tmp_path_factory.mktemp("overlay-server")) as running:
        yield running


def test_each_entry_is_built_and_tried(server: demo_host.Server, kernel: PreparedKernel, tmp_path: Path) -> None:
    def overlay(*words: str) -> tuple[int, str]:
        runner = CliRunner(env={"ELIVEPATCH_STATE_DIR": str(tmp_path / "state")})
        done = runner.invoke(cli, ["-u", server.url, "overlay", *words])
        return done.exit_code, done.stdout

    root = str(tmp_path / "team")
    (tmp_path / "nothing.patch").write_text(NOTHING)
    assert overlay("init", root)[0] == 0
    string = [str(DATA / "string.patch"), "--check", str(DATA / "string.sh")]
    assert overlay("add", root, *string, "--kernel", "6.12.*", "--cve", "CVE-2026-11111")[0] == 0
    assert overlay("add", root, str(tmp_path / "nothing.patch"), "--kernel", kernel.release)[0] == 0
    assert overlay("lint", root)[0] == 0
    status, text = overlay("test", root, "--kernel", kernel.release, "--json")
    assert status == 3
    trials = json.loads(text)
    assert [(one["id"], one["status"], one.get("error")) for one in trials["results"]] == [
        ("string", "done", None),
        ("nothing", "refused", "no-functional-change"),
    ]
    assert trials["results"][0]["checked"] is True
    status, text = overlay("test", root, "--kernel", kernel.release, "--only", "string")
    assert status == 0
    assert re.search(r"^team/string  done +[\d.]+ s  check passed$", text, re.MULTILINE)


@pytest.fixture(scope="module")
def told(
    workshop: Workshop,
    kernel: PreparedKernel,
    release: Release,
    progress: Progress,
    server: demo_host.Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """What the host saw, by section of the script."""
    work = tmp_path_factory.mktemp("overlay-in-guest")
    files = demo_host.find_kernel(workshop, release, progress)
    host = demo_host.guest_host(workshop, kernel, files, progress)
    script = SCRIPT
    for name, file in (
        ("STRING", "string.patch"),
        ("STRING_CHECK", "string.sh"),
        ("TWO", "two-files.patch"),
        ("TWO_CHECK", "two-files.sh"),
    ):
        script = script.replace(f"%{name}%", (DATA / file).read_text())
    ended = demo_host.run_on(host, script, server.port, work, progress)
    sections = re.split(r"^=== (\w+)$", ended.output, flags=re.MULTILINE)
    found = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert "end" in found, ended.output
    return found


@pytest.mark.slow
def test_it_knows_what_is_for_its_kernel(told: dict[str, str]) -> None:
    chosen = re.findall(r"^  chosen +(\S+)", told["list"], re.MULTILINE)
    assert chosen == ["two-files", "string"]
    assert re.search(r"^  other-kernel +elsewhere: for 5\.10\.\*$", told["list"], re.MULTILINE)


@pytest.mark.slow
def test_one_then_all_of_them_are_loaded_as_one_livepatch(told: dict[str, str]) -> None:
    assert told["one"].rstrip().endswith("exit 0")
    assert told["all"].rstrip().endswith("exit 0")
    outcome = json.loads(told["all"][told["all"].index("{\n") : told["all"].rindex("}") + 1])
    assert outcome["status"] == "loaded"
    assert [patch["name"] for patch in outcome["patches"]] == ["string.patch", "two-files.patch"]
    assert outcome["build"]["report"]["verification"]["check_after"] is True
    assert len(outcome["replaced"]) == 1


@pytest.mark.slow
def test_the_effects_are_there(told: dict[str, str]) -> None:
    assert "VmallocChunk:" in told["before"]
    assert "two-files 0" not in told["before"]
    assert "VMALLOCCHUNK:" in told["after"]
    assert "two-files 0" in told["after"]
    assert len(re.findall(r"^elivepatch_[0-9a-f]{12}$", told["after"], re.MULTILINE)) == 1
    assert told["log"].strip() == ""


@pytest.mark.slow
def test_the_journal_knows_overlay_and_cves(told: dict[str, str]) -> None:
    assert "of the overlay team" in told["status"]
    assert "for CVE-2026-11111, CVE-2026-22222" in told["status"]


@pytest.mark.slow
def test_again_there_is_nothing_to_do(told: dict[str, str]) -> None:
    assert "is already loaded" in told["again"]
    assert told["again"].rstrip().endswith("exit 0")
