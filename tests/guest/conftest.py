# SPDX-License-Identifier: GPL-2.0-or-later
"""A stock kernel to boot, and livepatches to try on it: good ones and bad ones, built in the kernel's own tree."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from guest_support import Kit

from elivepatch.build.prepared import PreparedKernel
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
