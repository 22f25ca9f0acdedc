# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel of a user's own, built as users build: with its image, without it, with a wrong list of patches."""

from __future__ import annotations

import base64
import io
import itertools
import re
import shutil
import tarfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from build_support import LIVEPATCHES, Built
from elivepatch import pipeline
from elivepatch.build.image import HostImage
from elivepatch.client.facts import host_facts
from elivepatch.job import InputFile, Job
from elivepatch.kernel.banner import parse_banner
from elivepatch.kernel.build_directory import collect
from elivepatch.kernel.elf import ElfImage
from elivepatch.kernel.layout import from_kallsyms
from elivepatch.kernel.running import running_kernel
from elivepatch.progress import Event, Progress
from elivepatch.protocol.models import BuildRequest, HostFacts
from elivepatch.sources.linux_source import debian_tree
from elivepatch.sources.reference import DebianReference
from elivepatch.sources.trees import SourceTree
from elivepatch.vm import initramfs, machine
from elivepatch.vm.modules import ModuleDirectory
from elivepatch.workshop import Workshop
from own_kernel import DATA, PLACE, TIMESTAMP, USER, UserKernel, user_kernels

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.timeout(3600)]

INIT = b"""#!/bin/sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
stty -F /dev/ttyS1 raw
exec </dev/null >/dev/ttyS1 2>&1
cd /
for file in proc/version proc/kallsyms proc/config.gz proc/meminfo proc/sys/kernel/osrelease proc/sys/kernel/tainted \
    proc/sys/kernel/random/boot_id sys/kernel/notes; do
    mkdir -p "/told/${file%/*}"
    cat "$file" >"/told/$file"
done
echo "=== begin"; tar -C /told -czf - . | base64; echo "=== end"
sync
poweroff -f
"""


@dataclass(frozen=True)
class Host:
    """A host that runs one of the user's kernels: what the client there would send."""

    kernel: UserKernel
    root: Path
    facts: HostFacts
    symbols: bytes = field(repr=False)

    @property
    def build_id(self) -> str:
        assert self.facts.build_id is not None
        return self.facts.build_id


@pytest.fixture(scope="module")
def tree(workshop: Workshop, progress: Progress) -> SourceTree:
    return debian_tree(DebianReference("6.12"), [workshop.source(workshop.roots.get("trixie"))], progress)


@pytest.fixture(scope="module")
def hosts(
    tree: SourceTree, workshop: Workshop, progress: Progress, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Host]:
    """A host for each of the user's kernels: the kernel ran, and these are its facts."""
    root = workshop.roots.get("trixie")
    kernels = user_kernels(tree, root, workshop.cache, progress)
    return {
        name: _boot(kernel, root.busybox, workshop, tmp_path_factory.mktemp(name)) for name, kernel in kernels.items()
    }


def _boot(kernel: UserKernel, busybox: Path, workshop: Workshop, work: Path) -> Host:
    cpio = initramfs.base(busybox)
    cpio.file("/init", INIT, 0o755)
    guest = machine.Machine(
        vmlinuz=kernel.guest.vmlinuz,
        initrd=initramfs.write(work / "initrd", cpio.archive()),
        console=work / "console",
        command_line=("quiet",),
    )
    outcome = machine.run(guest, timeout=180, shared=workshop.cache / "guests")
    found = re.search(r"^=== begin$(.*)^=== end$", outcome.output.replace("\r", ""), re.MULTILINE | re.DOTALL)
    assert found, (work / "console").read_text(errors="replace") + outcome.output[-2000:]
    root = work / "root"
    for name in ("boot", "lib"):
        shutil.copytree(kernel.root / name, root / name, symlinks=True)
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(found[1]))) as archive:
        archive.extractall(root, filter="data")
    return Host(kernel, root, host_facts(running_kernel(root), root), from_kallsyms(root / "proc/kallsyms").pack())


Try = Callable[..., Built]


@pytest.fixture
def attempt(tree: SourceTree, workshop: Workshop, progress: Progress, tmp_path: Path) -> Try:
    """Builds a livepatch of the named source for a host, as its client asks for it."""
    numbers = itertools.count()

    def run(
        host: Host,
        patch: Path,
        base_patches: Sequence[str] = ("local.patch",),
        *,
        image: str | HostImage | None = None,
        symbols: bool = True,
        verify: bool = True,
    ) -> Built:
        events: list[Event] = []

        def sink(event: Event) -> None:
            events.append(event)
            if event.kind == "step":
                progress.step(event.message)

        check = patch.with_suffix(".sh")
        job = Job(
            request=BuildRequest(
                kernel=tree.origin,
                host=host.facts,
                verify=verify,
                image=image if isinstance(image, str) else None,
            ),
            patches=(InputFile(patch.name, patch.read_bytes()),),
            base_patches=tuple(InputFile(name, (DATA / name).read_bytes()) for name in base_patches),
            config=host.kernel.config,
            check=check.read_bytes() if verify else None,
            symbols=host.symbols if symbols else None,
            image=image if isinstance(image, HostImage) else None,
        )
        output = tmp_path / f"{next(numbers)}"
        return Built(pipeline.build(job, workshop, output, Progress(sink)), output, events)

    return run


STRING = LIVEPATCHES / "string.patch"
ISOFS = DATA / "isofs.patch"


def whole_builds(built: Built) -> int:
    """How many kernels were built in full for it."""
    return sum("in full" in event.message for event in built.events)


def check_done(built: Built, level: str, image: str) -> None:
    report = built.report
    assert report.status == "done", built.told
    assert report.proof is not None
    assert report.proof.level == level
    assert report.proof.compared
    assert all(function.identical for function in report.proof.functions)
    assert report.kernel is not None
    assert report.kernel.image == image


def check_tried(built: Built) -> None:
    tried = built.report.verification
    assert tried is not None
    assert (tried.check_before, tried.check_after, tried.check_reverted) == (False, True, False)
    assert tried.reverted


# -- the hosts


def test_the_hosts_are_what_they_should_be(hosts: dict[str, Host]) -> None:
    assert {host.facts.place for host in hosts.values()} == {str(PLACE)}
    assert len({host.build_id for host in hosts.values()}) == 3
    assert hosts["plain"].symbols == hosts["told"].symbols != hosts["second"].symbols
    for name, number in (("plain", "1"), ("told", "2"), ("second", "2")):
        host = hosts[name]
        banner = parse_banner(host.facts.version or "")
        assert banner is not None
        assert (banner.user, banner.host) == (USER["KBUILD_BUILD_USER"], USER["KBUILD_BUILD_HOST"])
        assert banner.number == number
        assert (banner.timestamp == TIMESTAMP) == (name != "plain")
        assert "LocalTotal:" in (host.root / "proc/meminfo").read_text()
        with ElfImage(host.kernel.vmlinux) as vmlinux:
            assert vmlinux.build_id() == host.build_id


def test_drivers_that_the_kernel_has_built_in_need_no_module(hosts: dict[str, Host]) -> None:
    modules = ModuleDirectory(hosts["told"].kernel.modules)
    assert modules.load_order(("virtio_blk", "virtio_net", "ext4")) == []
    assert [module.name for module in modules.load_order(("virtio_blk", "isofs"))] == ["isofs"]


# -- with the host's own image


@pytest.fixture(scope="module")
def sent(
    hosts: dict[str, Host], workshop: Workshop, progress: Progress, tmp_path_factory: pytest.TempPathFactory
) -> Generator[str]:
    """The image of the host, collected from the user's build directory and sent; its digest."""
    host = hosts["told"]
    path = tmp_path_factory.mktemp("sent") / "image"
    with path.open("wb") as out:
        collected = collect(host.kernel.tree, host.kernel.release, out, progress, root=host.root)
    assert {"vmlinuz", "units", "Module.symvers"} <= set(collected.members)
    workshop.images.add(path, collected.sha256)
    yield collected.sha256
    workshop.images.store.remove(collected.sha256)


def test_with_the_image_vmlinux_is_patched_without_a_kernel_build(
    hosts: dict[str, Host], sent: str, attempt: Try
) -> None:
    built = attempt(hosts["told"], STRING, image=sent)
    check_done(built, "exact", "uploaded")
    check_tried(built)
    assert whole_builds(built) == 0
    assert built.report.kernel is not None
    assert built.report.kernel.build_id == hosts["told"].build_id


def test_with_the_image_a_module_is_patched_too(hosts: dict[str, Host], sent: str, attempt: Try) -> None:
    built = attempt(hosts["told"], ISOFS, image=sent)
    check_done(built, "exact", "uploaded")
    check_tried(built)
    assert whole_builds(built) == 0
    assert {change.object for change in built.report.changed} == {"isofs"}
    assert built.report.cache is not None
    assert built.report.cache.kernel, "the second livepatch prepared the kernel again"


def test_vmlinux_and_symvers_alone_are_an_image(hosts: dict[str, Host], attempt: Try) -> None:
    kernel = hosts["told"].kernel
    image = HostImage("uploaded", hosts["told"].build_id, kernel.vmlinux, kernel.symvers)
    built = attempt(hosts["told"], STRING, image=image, verify=False)
    check_done(built, "exact", "uploaded")
    assert whole_builds(built) == 0


@pytest.mark.parametrize("wrong", [(), ("local.patch", "second.patch")], ids=["none", "one too many"])
def test_with_the_image_a_wrong_list_of_patches_is_refused_by_the_function(
    hosts: dict[str, Host], sent: str, attempt: Try, wrong: Sequence[str]
) -> None:
    built = attempt(hosts["told"], STRING, wrong, image=sent)
    assert built.report.exit_status == 4, built.told
    assert built.report.module is None
    assert "meminfo_proc_show" in (built.report.message or "")
    assert whole_builds(built) == 0


# -- with nothing but the host's facts


def test_a_kernel_whose_time_was_told_is_reproduced_to_the_bit(hosts: dict[str, Host], attempt: Try) -> None:
    host = hosts["told"]
    first = attempt(host, STRING)
    check_done(first, "exact", "built")
    check_tried(first)
    report = first.report
    assert report.kernel is not None
    assert report.cache is not None
    assert report.kernel.build_id == host.build_id
    assert whole_builds(first) == (0 if report.cache.kernel else 1)
    second = attempt(host, ISOFS)
    check_done(second, "exact", "built")
    check_tried(second)
    assert whole_builds(second) == 0
    assert second.report.cache is not None
    assert second.report.cache.kernel


def test_a_wrong_list_of_patches_is_refused_with_the_first_function_that_differs(
    hosts: dict[str, Host], attempt: Try
) -> None:
    """The host has one patch more than the list names."""
    built = attempt(hosts["second"], STRING)
    assert built.report.exit_status == 4, built.told
    assert built.report.module is None
    assert "meminfo_proc_show" in (built.report.message or "")
    assert "base-patch" in (built.report.hint or "")
    without = attempt(hosts["second"], STRING, symbols=False)
    assert without.report.exit_status == 4, without.told
    assert "elsewhere" in (without.report.message or "")


def test_a_kernel_with_a_time_of_its_own_is_proven_by_its_layout(hosts: dict[str, Host], attempt: Try) -> None:
    """Plain `make` writes the moment into the initramfs that it links in, and no moment into init/version.o."""
    host = hosts["plain"]
    first = attempt(host, STRING)
    check_done(first, "layout", "built")
    check_tried(first)
    report = first.report
    assert report.kernel is not None
    assert report.cache is not None
    assert report.kernel.build_id != host.build_id
    assert whole_builds(first) == (0 if report.cache.kernel else 1)
    second = attempt(host, ISOFS)
    check_done(second, "layout", "built")
    assert whole_builds(second) == 0
    assert second.report.cache is not None
    assert second.report.cache.kernel
