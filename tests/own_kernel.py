# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel as a user builds it: Debian's source, a small configuration, local patches, `make`, `make modules_install`.

It is built without any of the code under test but the sandbox, where it is a user's tree at /usr/src/linux-own. Three
kernels come from one tree: `plain`, whose time and number are what they were; `told`, whose time the user named
(KBUILD_BUILD_TIMESTAMP), which makes a build reproducible; and `second`, the same with another local patch. They take
minutes, so they are kept in the cache under a digest of all they are made from.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from elivepatch.build import unpack
from elivepatch.build.store import remove_tree
from elivepatch.process import run
from elivepatch.progress import Progress
from elivepatch.sources.trees import SourceTree
from elivepatch.toolchains.roots import Root
from elivepatch.toolchains.sandbox import Limits, Overlay, Sandbox, give_to_sandbox
from elivepatch.vm.machine import GuestKernel

DATA = Path(__file__).parent / "data/own-kernel"
PLACE = PurePosixPath("/usr/src/linux-own")
USER = {"KBUILD_BUILD_USER": "admin", "KBUILD_BUILD_HOST": "workstation"}
TIMESTAMP = "Sun Nov  1 12:34:56 UTC 2026"
_LIMITS = Limits(
    memory_bytes=8 * 1024**3,
    total_memory_bytes=12 * 1024**3,
    file_bytes=2 * 1024**3,
    written_bytes=16 * 1024**3,
    processes=1024,
    seconds=3600.0,
)

#: What the user types; $JOB is where the patches are, and where each kernel is installed as on a host.
_SCRIPT = r"""
JOB=/elivepatch/job
install() {
    root=$JOB/$1
    release=$(make -s kernelrelease)
    mkdir -p "$root/boot" "$root/build"
    make -s modules_install INSTALL_MOD_PATH="$root"
    cp arch/x86/boot/bzImage "$root/boot/vmlinuz-$release"
    cp .config "$root/boot/config-$release"
    cp vmlinux Module.symvers .config "$root/build"
}
told() { make -j2 KBUILD_BUILD_TIMESTAMP="$TIMESTAMP" KBUILD_BUILD_VERSION=2; }

patch -p1 <$JOB/local.patch
make allnoconfig >/dev/null
cat $JOB/fragment >>.config
make olddefconfig
make -j2
install plain
patch -p1 <$JOB/second.patch
told
install second
patch -R -p1 <$JOB/second.patch
told
install told
"""


@dataclass(frozen=True)
class UserKernel:
    """A kernel that a user has built; ``root`` is the file system of its host, ``tree`` the user's build directory."""

    name: str
    root: Path
    tree: Path
    release: str

    @property
    def config(self) -> bytes:
        return (self.root / f"boot/config-{self.release}").read_bytes()

    @property
    def vmlinux(self) -> Path:
        return self.root / "build/vmlinux"

    @property
    def symvers(self) -> Path:
        return self.root / "build/Module.symvers"

    @property
    def modules(self) -> Path:
        return self.root / "lib/modules" / self.release

    @property
    def guest(self) -> GuestKernel:
        return GuestKernel(self.release, self.root / f"boot/vmlinuz-{self.release}", self.modules)


def user_kernels(source: SourceTree, root: Root, cache: Path, progress: Progress) -> dict[str, UserKernel]:
    """The kernels by name; built where they are not in the cache yet."""
    inputs = {path.name: path.read_bytes() for path in (DATA / "fragment", DATA / "local.patch", DATA / "second.patch")}
    parts = [source.identity, root.digest, str(PLACE), json.dumps(USER), TIMESTAMP, _SCRIPT]
    parts += [hashlib.sha256(data).hexdigest() for data in inputs.values()]
    kept = cache / "own-kernels" / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    kept.parent.mkdir(parents=True, exist_ok=True)
    with (kept.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            _build(source, root, inputs, kept, progress)
    release = json.loads((kept / "release.json").read_text())
    return {
        name: UserKernel(name, kept / "hosts" / name, kept / "tree", release) for name in ("plain", "second", "told")
    }


def _build(source: SourceTree, root: Root, inputs: dict[str, bytes], kept: Path, progress: Progress) -> None:
    work = Path(tempfile.mkdtemp(prefix=".user.", dir=kept.parent))
    work.chmod(0o755)
    try:
        lower, job, tree = work / "source", work / "hosts", work / "tree"
        overlay = Overlay((lower,), tree, work / "work", work / "merged")
        for directory in (lower, tree, overlay.work, overlay.mountpoint, job):
            directory.mkdir()
            give_to_sandbox(directory)
        source.fetch(progress)
        source.compose(lower, progress)
        unpack.own(lower)
        for name, data in inputs.items():
            (job / name).write_bytes(data)
        progress.step("a user builds a kernel (minutes)")
        sandbox = Sandbox(root.path, overlay, job, place=PLACE, limits=_LIMITS)
        sandbox.run(["sh", "-euc", _SCRIPT], env={**USER, "TIMESTAMP": TIMESTAMP}, sink=progress.log)
        (release,) = (path.name for path in (job / "told/lib/modules").iterdir())
        (work / "release.json").write_text(json.dumps(release))
        remove_tree(lower)
        remove_tree(overlay.work)
        run(["chmod", "-R", "a+rX", work], timeout=60)
        work.rename(kept)
    finally:
        if work.exists():
            remove_tree(work)
