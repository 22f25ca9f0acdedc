# SPDX-License-Identifier: GPL-2.0-or-later
"""Build roots: small Debian systems that hold the compiler and the tools a kernel was built with.

A root is made once with mmdebstrap, aside, and renamed into place when it is whole; from then on it is only read. What
it holds is recorded with it as a digest of its package set, which is part of the key of every build made with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pwd
import re
import shutil
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from elivepatch.errors import (
    DownloadFailedError,
    InvalidSettingError,
    NotFoundError,
    ToolUnavailableError,
    UnavailableError,
)
from elivepatch.process import ProgramError, find_program, run
from elivepatch.progress import Progress
from elivepatch.toolchains.sandbox import Sandbox

#: Raised when what a root holds changes, so that roots made before are made again.
_FORMAT = 3
#: Ids that a build user is given in examples: far above those that adduser hands out by itself.
_SUBORDINATE = "10000000-10065535"
#: What every root has, beside its compiler.
COMMON_PACKAGES = (
    "bc",
    "binutils",
    "bison",
    "busybox-static",
    "cpio",
    "dwarves",
    "flex",
    "gcc",
    "kmod",
    "libc6-dev",
    "libelf-dev",
    "libssl-dev",
    "libxxhash-dev",
    "lz4",
    "make",
    "openssl",
    "patch",
    "perl-base",
    "python3-minimal",
    "rsync",
    "xz-utils",
    "zstd",
)


@dataclass(frozen=True)
class RootSpec:
    """What a root is made from; ``kpatch`` says whether the suite has kpatch's tools.

    ``mirror`` is where it is made from, if not from the suite's own archive. ``backports`` says whether kernels of the
    suite's backports are built with it; the root itself holds nothing of them.
    """

    suite: str
    packages: tuple[str, ...]
    kpatch: bool = False
    mirror: str | None = None
    backports: bool = False


SPECS = {
    "bookworm": RootSpec("bookworm", (*COMMON_PACKAGES, "gcc-12"), kpatch=False),
    "trixie": RootSpec("trixie", (*COMMON_PACKAGES, "gcc-14"), kpatch=True, backports=True),
}


@dataclass(frozen=True)
class Root:
    """A build root. ``digest`` identifies its package set; ``kpatch`` is the version of kpatch's tools in it."""

    name: str
    path: Path
    digest: str
    packages: int
    created: float
    kpatch: str | None

    def compiler_version(self, compiler: str) -> str:
        """The first line of ``compiler --version``; raises ToolUnavailableError where the root does not have it."""
        try:
            return Sandbox(self.path).run([compiler, "--version"]).stdout.splitlines()[0]
        except (ProgramError, IndexError) as error:
            raise ToolUnavailableError(
                f"The build root '{self.name}' has no working '{compiler}'.",
                hint=f"Make the root again: elivepatch-server root add {self.name}",
            ) from error

    @property
    def busybox(self) -> Path:
        """The static busybox that guests are made from."""
        return self.path / "usr/bin/busybox"


class Roots:
    """The build roots of a machine, below one directory."""

    def __init__(self, directory: Path, mirror: str | None = None, more: Mapping[str, RootSpec] | None = None) -> None:
        self._directory = directory
        self._mirror = mirror
        self._specs = {**SPECS, **(more or {})}

    def names(self) -> list[str]:
        """The roots that can be made."""
        return sorted(self._specs)

    def spec(self, name: str) -> RootSpec:
        """What a root is made from."""
        return self._specs[name]

    def installed(self) -> list[Root]:
        """The roots that are there."""
        return [root for name in self.names() if (root := self._load(name))]

    def get(self, name: str) -> Root:
        """A root that is there; raises NotFoundError with the command that makes it."""
        root = self._load(name)
        if root is None:
            raise NotFoundError(f"There is no build root '{name}'.", hint=f"Make it: elivepatch-server root add {name}")
        return root

    def ensure(self, name: str, progress: Progress) -> Root:
        """A root, made if it is not there. Several callers at once make one."""
        root = self._load(name)
        if root is not None:
            return root
        with self._lock(name):
            return self._load(name) or self._make(name, progress)

    def remove(self, name: str) -> None:
        """Remove a root."""
        self.get(name)
        with self._lock(name):
            shutil.rmtree(self._directory / name, ignore_errors=True)

    def verify(self, name: str) -> None:
        """Check that a root still holds the packages that were recorded; raises NotFoundError where it does not."""
        root = self.get(name)
        if _package_digest(root.path)[0] != root.digest:
            raise NotFoundError(
                f"The build root '{name}' no longer holds what was recorded when it was made.",
                hint=f"Make it again: elivepatch-server root remove {name}; elivepatch-server root add {name}",
            )

    # -- making

    def _load(self, name: str) -> Root | None:
        record = self._directory / name / "root.json"
        try:
            data = json.loads(record.read_text())
        except (OSError, ValueError):
            return None
        if data.pop("format", None) != _FORMAT:
            return None
        return Root(path=self._directory / name / "root", **data)

    @contextmanager
    def _lock(self, name: str) -> Generator[None]:
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make(self, name: str, progress: Progress) -> Root:
        spec = self._specs.get(name)
        if spec is None:
            known = ", ".join(self._specs)
            raise InvalidSettingError(f"There is no recipe for a root '{name}'.", hint=f"Known: {known}.")
        find_program("mmdebstrap", hint="Install mmdebstrap (apt-get install mmdebstrap).")
        for left in self._directory.glob(f".{name}.part.*"):
            shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{name}.part.", dir=self._directory))
        work.chmod(0o755)
        began = time.monotonic()
        try:
            archive = work / "root.tar"
            progress.step(f"build root {name}: {len(spec.packages)} packages with mmdebstrap, about two minutes")
            try:
                run(
                    [
                        "mmdebstrap",
                        *self._arguments(spec),
                        spec.suite,
                        archive,
                        *([mirror] if (mirror := spec.mirror or self._mirror) else []),
                    ],
                    timeout=1800,
                    sink=progress.log,
                )
            except ProgramError as error:
                raise _not_made(name, error) from error
            path = work / "root"
            path.mkdir()
            run(["tar", "-x", "-C", path, "--exclude=./dev/*", "-f", archive], timeout=600)
            archive.unlink()
            for inside in ("elivepatch/tree", "elivepatch/job"):
                (path / inside).mkdir(parents=True, exist_ok=True)
            digest, packages, kpatch = _package_digest(path)
            root = Root(name, path, digest, packages, time.time(), kpatch)
            record = {key: value for key, value in asdict(root).items() if key != "path"}
            (work / "root.json").write_text(json.dumps({**record, "format": _FORMAT}, indent=2))
            final = self._directory / name
            if final.exists():
                shutil.rmtree(final)
            work.rename(final)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        progress.step(f"build root {name} is ready after {time.monotonic() - began:.0f} s")
        return self.get(name)

    def _arguments(self, spec: RootSpec) -> Sequence[str]:
        words = ["--variant=apt", "--format=tar", f"--include={','.join(spec.packages)}"]
        words += ["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"]
        words += ["--dpkgopt=path-exclude=/usr/share/locale/*"]
        if spec.kpatch:
            # only its programs and data: as a package it would pull in half a documentation system
            words += [
                '--customize-hook=chroot "$1" sh -e -c \''
                "cd /var/tmp && apt-get -qq download kpatch-build && dpkg-deb -x kpatch-build_*.deb /elivepatch/kpatch "
                "&& dpkg-deb -f kpatch-build_*.deb Version > /elivepatch/kpatch/version && rm kpatch-build_*.deb'"
            ]
            words.insert(0, '--setup-hook=mkdir -p "$1/elivepatch/kpatch"')
        return words


#: How mmdebstrap ends where it is not root and cannot be root in a user namespace either.
_NO_NAMESPACE = re.compile(
    r"unable to pick chroot mode|cannot use --mode=unshare|unshare\(\) failed|newuidmap|newgidmap|/etc/sub[ug]id"
)


def _not_made(name: str, error: ProgramError) -> UnavailableError:
    """What it means that mmdebstrap failed: no user namespace for it, or no packages."""
    message = f"The build root '{name}' could not be made:\n{error.message}"
    if _NO_NAMESPACE.search(error.message):
        user = _user_name()
        return ToolUnavailableError(
            message,
            hint=f"mmdebstrap needs a range of subordinate ids as the user '{user}'. Install uidmap, and as "
            f"root: usermod --add-subuids {_SUBORDINATE} --add-subgids {_SUBORDINATE} {user} (any 65536 ids that "
            "/etc/subuid gives to nobody else). User namespaces must be allowed (sysctl user.max_user_namespaces).",
        )
    return DownloadFailedError(
        message, hint="Check that the suite's archive can be reached; a mirror can be set with ELIVEPATCH_MIRROR."
    )


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _package_digest(root: Path) -> tuple[str, int, str | None]:
    """Digest and number of the packages of a root, and the version of kpatch's tools."""
    listed = Sandbox(root).run(["dpkg-query", "-W", "-f=${Package} ${Version} ${Architecture}\n"]).stdout
    lines = sorted(line for line in listed.splitlines() if line)
    version = root / "elivepatch/kpatch/version"
    kpatch = version.read_text().strip() if version.exists() else None
    text = "\n".join([*lines, f"kpatch {kpatch}", f"format {_FORMAT}"])
    return hashlib.sha256(text.encode()).hexdigest(), len(lines), kpatch
