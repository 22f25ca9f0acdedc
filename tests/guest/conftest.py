# SPDX-License-Identifier: GPL-2.0-or-later
"""A stock kernel to boot, its packages unpacked once, and livepatches to try on it, built with its compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from elivepatch.vm.machine import GuestKernel

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


@dataclass(frozen=True)
class Kit:
    """What the guest tests need: a stock kernel, its headers, and a root that has its compiler and a busybox."""

    kernel: GuestKernel
    sources: Path
    root: Path

    @property
    def busybox(self) -> Path:
        return self.root / "usr/bin/busybox"


def _packages(cache: Path) -> dict[str, Path]:
    """The newest package of each kind below the cache: image, headers of the flavour, common headers, kbuild."""
    found = sorted(cache.glob("debs/*.deb")) + sorted(cache.glob("packages/**/*.deb"))
    images = [path for path in found if path.name.startswith("linux-image-6.") and "-cloud-amd64_" in path.name]
    if not images:
        pytest.fail(
            f"no package linux-image-6.*-cloud-amd64 below {cache}; ELIVEPATCH_CACHE says where it is looked for"
        )
    image = images[-1]
    release = image.name.removeprefix("linux-image-").split("_")[0]
    abi = release.removesuffix("-cloud-amd64")
    wanted = {
        "image": f"linux-image-{release}_",
        "headers": f"linux-headers-{release}_",
        "common": f"linux-headers-{abi}-common_",
        "kbuild": f"linux-kbuild-{abi}_",
    }
    packages: dict[str, Path] = {}
    for kind, start in wanted.items():
        matching = [path for path in found if path.name.startswith(start)]
        if not matching:
            pytest.fail(f"no package {start}*.deb below {cache}")
        packages[kind] = matching[-1]
    return packages


def _unpack(packages: dict[str, Path], target: Path) -> None:
    """Unpack, with kbuild's files where the headers find them without /usr/lib being theirs."""
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    for path in packages.values():
        subprocess.run(["dpkg-deb", "-x", path, aside], check=True)
    (kbuild,) = (aside / "usr/lib").glob("linux-kbuild-*")
    moved = aside / "usr/src" / kbuild.name
    moved.unlink(missing_ok=True)  # the package's symbolic link to the other place
    kbuild.rename(moved)
    for headers in (aside / "usr/src").glob("linux-headers-*"):
        for name in ("scripts", "tools"):
            (headers / name).unlink(missing_ok=True)
            (headers / name).symlink_to(f"../{kbuild.name}/{name}")
    if not target.exists():
        aside.rename(target)


def _root(cache: Path) -> Path:
    for root in sorted(cache.glob("roots/*")):
        if (root / "usr/bin/gcc-14").exists() and (root / "usr/bin/busybox").exists():
            return root
    pytest.fail(f"no root with gcc-14 and busybox below {cache}/roots; ELIVEPATCH_CACHE says where it is looked for")


@pytest.fixture(scope="session")
def kit() -> Kit:
    cache = Path(os.environ.get("ELIVEPATCH_CACHE", Path.home() / ".cache/elivepatch"))
    packages = _packages(cache)
    release = packages["image"].name.removeprefix("linux-image-").split("_")[0]
    unpacked = cache / "guest-tests" / packages["image"].name.removesuffix(".deb")
    if not unpacked.exists():
        unpacked.parent.mkdir(parents=True, exist_ok=True)
        _unpack(packages, unpacked)
    kernel = GuestKernel(
        release=release,
        vmlinuz=unpacked / f"boot/vmlinuz-{release}",
        modules=unpacked / f"usr/lib/modules/{release}",
    )
    return Kit(kernel=kernel, sources=unpacked / "usr/src", root=_root(cache))


@pytest.fixture(scope="session")
def livepatches(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a ``NAME.ko`` for each of the variants, built against the kernel's own headers."""
    directory = tmp_path_factory.mktemp("livepatches")
    shutil.copy(HERE / "livepatch.c", directory / "livepatch.h")
    for name, definitions in VARIANTS.items():
        lines = [f"#define {key} {value}" for key, value in definitions.items()]
        (directory / f"{name}.c").write_text("\n".join([*lines, '#include "livepatch.h"', ""]), encoding="utf-8")
    objects = " ".join(f"{name}.o" for name in VARIANTS)
    (directory / "Makefile").write_text(f"obj-m := {objects}\n", encoding="utf-8")
    sandbox = ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", kit.root, "/", "--proc", "/proc"]
    sandbox += ["--dev", "/dev", "--tmpfs", "/tmp", "--ro-bind", kit.sources, "/usr/src", "--bind", directory, "/mnt"]
    make = ["make", "-s", "-j2", "-C", f"/usr/src/linux-headers-{kit.kernel.release}", "M=/mnt", "modules"]
    done = subprocess.run([*sandbox, *make], capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        pytest.fail(f"the livepatches to try do not build:\n{done.stdout}{done.stderr}")
    return directory
