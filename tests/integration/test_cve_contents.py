# SPDX-License-Identifier: GPL-2.0-or-later
"""No vulnerability whose code is in a kernel is lost: its contents, told in two independent ways."""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator
from os.path import normpath

import pytest

from elivepatch.build.contents import kernel_index
from elivepatch.build.prepared import PreparedKernel
from elivepatch.cves.reach import Contents, reach
from elivepatch.kernel.release import parse_release
from elivepatch.process import run
from elivepatch.progress import Progress
from elivepatch.selection import WantedKernel, hold_kernel
from elivepatch.workshop import Workshop, find_kernel

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

#: The name of a compile unit, as readelf (binutils) prints it.
_NAME = re.compile(r"DW_AT_name +: (?:\(.*\): )?(\S+\.c)\s*$", re.MULTILINE)
RELEASE = "6.1.0-47-cloud-amd64"


@pytest.fixture(scope="module")
def kernel(workshop: Workshop, progress: Progress) -> Generator[PreparedKernel]:
    with hold_kernel(WantedKernel(RELEASE), workshop, progress) as (found, _):
        yield found


@pytest.fixture(scope="module")
def from_debugging_data(workshop: Workshop, progress: Progress, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The source files that the debugging data of image and modules name: nothing of ours made that list."""
    files, _, source = find_kernel(parse_release(RELEASE), workshop, progress)
    source.download(files, progress)
    work = tmp_path_factory.mktemp("debug")
    run(["dpkg-deb", "--extract", files.path(files.debug), work], timeout=900)
    found: set[str] = set()
    for path in (*work.rglob("*.ko*"), *work.rglob("vmlinux-*")):
        if path.is_file() and not path.is_symlink():
            said = run(["readelf", "--debug-dump=info", "--dwarf-depth=1", path], timeout=600).stdout
            found.update(normpath(name) for name in _NAME.findall(said))
    shutil.rmtree(work)
    return found


def test_every_file_that_the_debugging_data_name_is_contained(
    kernel: PreparedKernel, from_debugging_data: set[str]
) -> None:
    tree = {name for name in from_debugging_data if not name.startswith("/") and (kernel.source / name).is_file()}
    assert len(tree) > 2500  # of these the kernel is made: an empty list would prove nothing
    index = kernel_index(kernel)
    lost = {name for name in tree if name.endswith(".c") and name not in index.units}
    assert lost == set()


def test_no_vulnerability_of_a_contained_file_is_said_to_be_elsewhere(
    kernel: PreparedKernel, from_debugging_data: set[str]
) -> None:
    contents = Contents(kernel)
    named = sorted(name for name in from_debugging_data if (kernel.source / name).is_file() and name.endswith(".c"))
    wrong = [name for name in named if reach([name], contents).state not in {"built-in", "module"}]
    assert wrong == []


@pytest.mark.parametrize(
    ("file", "state"),
    [
        ("kernel/fork.c", "built-in"),
        ("net/ipv4/icmp.c", "built-in"),
        ("drivers/net/vxlan/vxlan_core.c", "module"),
        ("include/net/vxlan.h", "built-in"),  # the core includes it for its offloads
        ("arch/arm64/kvm/arm.c", "not-built"),
        ("drivers/gpu/drm/msm/msm_drv.c", "not-built"),
        ("fs/smb/client/smb2ops.c", "module"),
        ("arch/x86/boot/early_serial_console.c", "undecided"),  # of the setup code, which vmlinux does not have
        ("arch/x86/boot/compressed/misc.c", "undecided"),
        ("drivers/firmware/efi/libstub/tpm.c", "undecided"),
        ("arch/x86/entry/vdso/vclock_gettime.c", "undecided"),
        ("arch/x86/entry/vdso/vma.c", "built-in"),
        ("arch/x86/realmode/init.c", "built-in"),
        ("lib/zstd/decompress/zstd_decompress.c", "built-in"),
        ("no/such/file.c", "undecided"),
        ("drivers/net/Kconfig", "undecided"),
        ("Documentation/admin-guide/README.rst", "undecided"),
    ],
)
def test_where_a_file_is(kernel: PreparedKernel, file: str, state: str) -> None:
    assert reach([file], Contents(kernel)).state == state


def test_one_file_that_is_contained_decides(kernel: PreparedKernel) -> None:
    contents = Contents(kernel)
    assert reach(["no/such/file.c", "kernel/fork.c"], contents).state == "built-in"
    assert reach(["no/such/file.c", "drivers/gpu/drm/msm/msm_drv.c"], contents).state == "undecided"
    assert reach(["tools/lib/bpf/libbpf.c", "drivers/gpu/drm/msm/msm_drv.c"], contents).state == "not-built"
    assert reach([], contents).state == "undecided"
