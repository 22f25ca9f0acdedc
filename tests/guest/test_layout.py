# SPDX-License-Identifier: GPL-2.0-or-later
"""What a running kernel says of its symbols and types equals what its published vmlinux says."""

from __future__ import annotations

import base64
import gzip
import re
from collections.abc import Generator
from pathlib import Path

import pytest

from elivepatch.build.prepared import PreparedKernel
from elivepatch.errors import UnavailableError
from elivepatch.kernel.elf import ElfImage
from elivepatch.kernel.layout import SymbolLayout, btf_digest_of, from_kallsyms, from_vmlinux
from elivepatch.kernel.running import build_id_of
from elivepatch.progress import Progress
from elivepatch.vm import initramfs, machine
from elivepatch.workshop import Workshop

pytestmark = pytest.mark.guest

INIT = b"""#!/bin/sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
stty -F /dev/ttyS1 raw
exec </dev/null >/dev/ttyS1 2>&1
echo "=== release"; uname -r
echo "=== notes"; base64 /sys/kernel/notes
echo "=== btf"; sha256sum /sys/kernel/btf/vmlinux
echo "=== kallsyms"; gzip -c /proc/kallsyms | base64
echo 2 >/proc/sys/kernel/kptr_restrict
echo "=== hidden"; head -n 1000 /proc/kallsyms | gzip -c | base64
echo "=== end"
sync
poweroff -f
"""


@pytest.fixture(scope="module", params=["6.12", "6.1"])
def subject(request: pytest.FixtureRequest, workshop: Workshop, progress: Progress) -> Generator[PreparedKernel]:
    """A cloud kernel of that series: the one that the other tests use, with IBT, and one without."""
    if request.param == "6.12":
        yield request.getfixturevalue("kernel")
        return
    root = workshop.roots.ensure("bookworm", progress)
    source = workshop.source(root)
    offered = source.offered(progress)
    release = max(each for each in offered if each.series == "6.1" and each.text.endswith("-cloud-amd64"))
    files = source.find(release, progress)
    assert files is not None
    with workshop.kernels.prepared(files, root, lambda: source.download(files, progress), progress) as (kernel, _):
        yield kernel


@pytest.fixture(scope="module")
def told(subject: PreparedKernel, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a guest with that kernel says about itself."""
    work = tmp_path_factory.mktemp("layout")
    tree = initramfs.base(subject.root.busybox)
    tree.file("/init", INIT, 0o755)
    guest = machine.Machine(
        vmlinuz=subject.vmlinuz,
        initrd=initramfs.write(work / "initrd", tree.archive()),
        console=work / "console",
        command_line=("quiet",),
    )
    outcome = machine.run(guest, timeout=180, shared=workshop.cache / "guests")
    sections = re.split(r"^=== (\w+)$", outcome.output.replace("\r", ""), flags=re.MULTILINE)
    found = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert "end" in found, (work / "console").read_text(errors="replace") + outcome.output[-2000:]
    return found


def unpacked(text: str, path: Path) -> Path:
    path.write_bytes(gzip.decompress(base64.b64decode(text)))
    return path


def test_it_is_that_kernel(told: dict[str, str], subject: PreparedKernel) -> None:
    assert told["release"].strip() == subject.release
    assert build_id_of(base64.b64decode(told["notes"])) == subject.build_id


def test_symbols_equal_those_of_vmlinux(told: dict[str, str], subject: PreparedKernel, tmp_path: Path) -> None:
    host = from_kallsyms(unpacked(told["kallsyms"], tmp_path / "kallsyms"))
    image = from_vmlinux(subject.vmlinux)
    assert host.differences(image, here="on the host", there="in the image") == []
    assert host.digest() == image.digest()
    assert len(host.entries) > 20_000
    assert SymbolLayout.unpack(host.pack()) == image


def test_types_equal_those_of_vmlinux(told: dict[str, str], subject: PreparedKernel) -> None:
    with ElfImage(subject.vmlinux) as image:
        assert told["btf"].split()[0] == btf_digest_of(image)


def test_hidden_addresses_are_told_as_such(told: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="hides the addresses"):
        from_kallsyms(unpacked(told["hidden"], tmp_path / "kallsyms"))
