# SPDX-License-Identifier: GPL-2.0-or-later
"""A stock kernel to boot, and livepatches to try on it: good ones and bad ones, built in the kernel's own tree."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from pathlib import Path

import demo_host
import pytest
from guest_support import Kit
from restarting_host import RestartingHost, crafted_report, kept_host

from elivepatch.build.prepared import PreparedKernel
from elivepatch.kernel.release import Release
from elivepatch.progress import Progress
from elivepatch.toolchains.sandbox import JOB, TREE, give_to_sandbox
from elivepatch.vm.machine import GuestKernel
from elivepatch.workshop import Workshop

HERE = Path(__file__).parent

#: The livepatches to try, as definitions for livepatch.c.
_SHOW = 'static int replacement(struct seq_file *m, void *v) { seq_puts(m, "livepatched\\n"); return 0; }'
_STATUS = (
    "static ssize_t replacement(struct file *f, char __user *b, size_t n, loff_t *p)"
    ' { return simple_read_from_buffer(b, n, p, "livepatched\\n", 12); }'
)
_CMDLINE = {"FUNCTION": '"cmdline_proc_show"', "REPLACEMENT": _SHOW}
VARIANTS: dict[str, dict[str, str]] = {
    "lp_good": _CMDLINE,
    "lp_module": {"OBJECT": '"binfmt_misc"', "FUNCTION": '"bm_status_read"', "REPLACEMENT": _STATUS},
    "lp_warns": {**_CMDLINE, "ON_LOAD": "WARN_ON(1);"},
    "lp_panics": {**_CMDLINE, "ON_LOAD": 'panic("tried");'},
    "lp_oopses": {**_CMDLINE, "ON_LOAD": "WRITE_ONCE(*(int *)8, 1);"},
    "lp_fails": {**_CMDLINE, "ON_LOAD": "return -EINVAL;"},
    "lp_taints": {**_CMDLINE, "ON_LOAD": "add_taint(TAINT_USER, LOCKDEP_STILL_OK);"},
    "lp_none": {"NO_PATCH": ""},
    "lp_second": {**_CMDLINE, "REPLACEMENT": _SHOW.replace("livepatched", "livepatched twice")},
    "lp_late_panic": {
        "FUNCTION": '"cmdline_proc_show"',
        "REPLACEMENT": 'static void late(struct work_struct *w) { panic("too late"); } '
        f"static DECLARE_DELAYED_WORK(work, late); {_SHOW}",
        "ON_LOAD": "schedule_delayed_work(&work, 5 * HZ);",
    },
    "lp_stuck": {
        "FUNCTION": '"kthreadd"',
        "REPLACEMENT": "static int replacement(void *unused) { return 0; }",
    },
}


@pytest.fixture(scope="session")
def kit(kernel: PreparedKernel, workshop: Workshop) -> Kit:
    guest = GuestKernel(release=kernel.release, vmlinuz=kernel.vmlinuz, modules=kernel.modules_directory)
    return Kit(kernel=guest, busybox=kernel.root.busybox, shared=workshop.cache / "guests")


@pytest.fixture(scope="session")
def livepatches(kernel: PreparedKernel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a ``NAME.ko`` for each of the variants."""
    work = tmp_path_factory.mktemp("livepatches")
    directory = work / "job"
    directory.mkdir()
    give_to_sandbox(directory)
    shutil.copy(HERE / "livepatch.c", directory / "livepatch.h")
    for name, definitions in VARIANTS.items():
        lines = [f"#define {key} {value}" for key, value in definitions.items()]
        (directory / f"{name}.c").write_text("\n".join([*lines, '#include "livepatch.h"', ""]), encoding="utf-8")
    objects = " ".join(f"{name}.o" for name in VARIANTS)
    (directory / "Makefile").write_text(f"obj-m := {objects}\n", encoding="utf-8")
    words = [f"{name}={value}" for name, value in {"KERNELRELEASE": kernel.release, **kernel.variables}.items()]
    with kernel.sandbox(work, job=directory) as sandbox:
        done = sandbox.run(["make", "-s", "-j2", *words, f"M={JOB}", "modules"], cwd=TREE, check=False)
    if done.returncode != 0:
        pytest.fail(f"the livepatches to try do not build:\n{done.stdout}{done.stderr}")
    return directory


@pytest.fixture(scope="session")
def client_host(
    workshop: Workshop, kernel: PreparedKernel, release: Release, progress: Progress
) -> Generator[demo_host.GuestHost]:
    """A host that has the client."""
    with kept_host(workshop, kernel, release, progress) as host:
        yield host


@pytest.fixture
def trial_files(kernel: PreparedKernel, livepatches: Path) -> dict[str, bytes]:
    """The livepatches to try, each with a report and a patch."""
    files: dict[str, bytes] = {}
    for name, definitions in VARIANTS.items():
        if function := definitions.get("FUNCTION", "").strip('"'):
            klp_object = definitions.get("OBJECT", '"vmlinux"').strip('"')
            module = (livepatches / f"{name}.ko").read_bytes()
            files[f"{name}.ko"] = module
            report = crafted_report(module, name, kernel.release, kernel.build_id, [(klp_object, function)])
            files[f"{name}.json"] = report
            files[f"{name}.patch"] = f"From CVE-2026-1{len(files):04}\n--- a/{name}.c\n+++ b/{name}.c\n".encode()
    return files


@pytest.fixture
def restarting_host(
    client_host: demo_host.GuestHost, trial_files: dict[str, bytes], tmp_path: Path, workshop: Workshop
) -> RestartingHost:
    """That host with a disk that outlives its restarts, and the livepatches to try."""
    work, shared = tmp_path / "host", workshop.cache / "guests"
    return RestartingHost(client_host.image, client_host.kernel, client_host.busybox, work, shared, trial_files)
