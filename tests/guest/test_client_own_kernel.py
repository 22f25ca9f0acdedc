# SPDX-License-Identifier: GPL-2.0-or-later
"""The client on a host whose kernel its administrator has built: the image sent, nothing sent, a wrong list."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import demo_guest
import demo_host
import pytest

from elivepatch.progress import Progress
from elivepatch.sources.linux_source import debian_tree
from elivepatch.sources.reference import DebianReference
from elivepatch.sources.trees import SourceTree
from elivepatch.workshop import Workshop
from own_kernel import DATA, PLACE, UserKernel, user_kernels

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.timeout(3600)]

LIVEPATCHES = Path(__file__).parents[1] / "data/livepatches"

_BEGIN = """\
export TERM=dumb ELIVEPATCH_URL="$SERVER"
cd /root
%FILES%
mark() { echo "=== $1"; }
effects() {
    grep -i vmallocchunk /proc/meminfo; cat /proc/uptime
    for name in $(ls /sys/kernel/livepatch); do echo "livepatch $name"; done
}
ask() { elivepatch --kernel %ORIGIN% "$@" --json 2>said; status=$?; echo; echo "exit $status"; }
mark before; uname -r; effects
"""
_END = """\
mark log; dmesg | grep -E 'WARNING|BUG|Oops|Call Trace'
mark end
"""
TOLD = """\
mark wrong; ask --base-patch local.patch --base-patch second.patch -p string.patch
mark wrong_effects; effects
mark sent; ask --base-patch local.patch -p string.patch
mark sent_said; cat said
mark sent_effects; effects
mark second; ask --base-patch local.patch -p two-files.patch --check two-files.sh
mark second_said; cat said
mark second_effects; effects
mark revert; elivepatch revert --json "$(ls /sys/kernel/livepatch)"; echo "exit $?"
mark reverted; effects
mark built; ask --base-patch local.patch -p string.patch --no-image
mark built_effects; effects
"""
PLAIN = """\
mark built; ask --base-patch local.patch -p string.patch --no-image
mark built_effects; effects
mark status; elivepatch status
"""


@pytest.fixture(scope="module")
def tree(workshop: Workshop, progress: Progress) -> SourceTree:
    return debian_tree(DebianReference("6.12"), [workshop.source(workshop.roots.get("trixie"))], progress)


@pytest.fixture(scope="module")
def kernels(tree: SourceTree, workshop: Workshop, progress: Progress) -> dict[str, UserKernel]:
    return user_kernels(tree, workshop.roots.get("trixie"), workshop.cache, progress)


def host(kernel: UserKernel, workshop: Workshop, progress: Progress, work: Path) -> demo_host.GuestHost:
    """A host on which the kernel was built: its modules, its configuration, its build directory, and the client."""
    root = work / "root"
    shutil.copytree(kernel.modules, root / "usr/lib/modules" / kernel.release, symlinks=True)
    (root / "boot").mkdir()
    (root / f"boot/config-{kernel.release}").write_bytes(kernel.config)
    build = root / "usr/src" / PLACE.name
    shutil.copytree(kernel.tree, build, symlinks=True)
    for name in ("vmlinux", "Module.symvers", ".config"):  # the tree is that of the kernel that was built last
        shutil.copyfile(kernel.root / "build" / name, build / name)
    image = demo_guest.make_image(
        workshop.cache / "guests",
        demo_host.SUITE,
        kernel.release,
        root,
        demo_host.PROJECT,
        progress,
        own=kernel.root.parent.parent.name + kernel.name,
    )
    return demo_host.GuestHost(image, kernel.guest, workshop.roots.get("trixie").busybox)


def run(
    kernel: UserKernel, steps: str, tree: SourceTree, workshop: Workshop, progress: Progress, work: Path
) -> dict[str, str]:
    """What the host saw, by section of the script."""
    names = ("string.patch", "two-files.patch", "two-files.sh")
    files = [DATA / "local.patch", DATA / "second.patch", *(LIVEPATCHES / name for name in names)]
    texts = "".join(f"cat >{file.name} <<'FILE'\n{file.read_text()}FILE\n" for file in files)
    script = _BEGIN.replace("%FILES%", texts).replace("%ORIGIN%", tree.origin) + steps + _END
    with demo_host.server(workshop, work) as server:
        ended = demo_host.run_on(host(kernel, workshop, progress, work), script, server.port, work, progress, 3000)
    sections = re.split(r"^=== (\w+)$", ended.output, flags=re.MULTILINE)
    found = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert "end" in found, ended.output
    assert not found["log"].strip()
    return found


@pytest.fixture(scope="module")
def told(
    kernels: dict[str, UserKernel],
    tree: SourceTree,
    workshop: Workshop,
    progress: Progress,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    return run(kernels["told"], TOLD, tree, workshop, progress, tmp_path_factory.mktemp("told"))


@pytest.fixture(scope="module")
def plain(
    kernels: dict[str, UserKernel],
    tree: SourceTree,
    workshop: Workshop,
    progress: Progress,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    return run(kernels["plain"], PLAIN, tree, workshop, progress, tmp_path_factory.mktemp("plain"))


def outcome(section: str) -> dict[str, Any]:
    """What the client printed, which is one JSON object; its exit status is that of the program."""
    text, _, status = section.rpartition("exit ")
    found = json.loads(text)
    assert found["exit_status"] == int(status)
    return found


def effects(section: str) -> tuple[bool, bool]:
    """Whether the effects of the first and of the second patch are there."""
    return "VMALLOCCHUNK" in section, "idle" in section


def loaded(section: str, level: str, image: str) -> dict[str, Any]:
    found = outcome(section)
    assert found["status"] == "loaded", found
    report = found["build"]["report"]
    assert report["proof"]["level"] == level
    assert all(function["identical"] for function in report["proof"]["functions"])
    assert report["verification"]["reverted"]
    assert report["kernel"]["image"] == image
    return report


def test_the_image_of_the_build_directory_is_sent_and_the_livepatch_loads(told: dict[str, str]) -> None:
    assert effects(told["before"]) == (False, False)
    loaded(told["sent"], "exact", "uploaded")
    assert "image" in told["sent_said"]
    assert effects(told["sent_effects"]) == (True, False)


def test_the_second_livepatch_contains_the_first_and_takes_seconds(told: dict[str, str]) -> None:
    report = loaded(told["second"], "exact", "uploaded")
    assert "the server has it" in told["second_said"]
    assert effects(told["second_effects"]) == (True, True)
    assert report["cache"]["kernel"]
    assert report["timings"]["prepare"] < 10
    assert effects(told["reverted"]) == (False, False)


def test_a_wrong_list_of_patches_is_refused_and_nothing_is_loaded(told: dict[str, str]) -> None:
    found = outcome(told["wrong"])
    assert (found["status"], found["exit_status"]) == ("refused", 4)
    assert "meminfo_proc_show" in found["error"]["message"]
    assert effects(told["wrong_effects"]) == (False, False)
    assert "livepatch" not in told["wrong_effects"]


def test_without_the_image_the_server_builds_the_same_kernel(told: dict[str, str]) -> None:
    loaded(told["built"], "exact", "built")
    assert effects(told["built_effects"]) == (True, False)


def test_a_kernel_with_a_time_of_its_own_is_proven_by_its_layout(plain: dict[str, str]) -> None:
    loaded(plain["built"], "layout", "built")
    assert effects(plain["built_effects"]) == (True, False)
    assert "layout" in plain["status"]
