# SPDX-License-Identifier: GPL-2.0-or-later
"""The disk of a demo guest: a Debian root file system with the client, packed as an ext4 image.

mmdebstrap makes the root file system, and mke2fs packs it without mounting anything, as any user. An image is kept
under a digest of what it was made from.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elivepatch import process
from elivepatch.errors import InternalError, ToolUnavailableError
from elivepatch.progress import Progress

#: What the guest's root holds beside the essential packages. The client needs python3, and kmod to load modules.
PACKAGES = ("python3", "kmod")
#: What a host does not miss in a guest that lives for a minute.
_LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")
#: The Python packages that the client needs, with versions and digests.
CLIENT_REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements/client.txt"
_FREE_BYTES = 256 * 1024 * 1024


def _digest(*parts: bytes) -> str:
    state = hashlib.sha256()
    for part in parts:
        state.update(hashlib.sha256(part).digest())
    return state.hexdigest()[:32]


def _namespace() -> list[str]:
    """The beginning of a command that may give files to any user: nothing as root, a user namespace otherwise."""
    return [] if os.geteuid() == 0 else ["mmdebstrap", "--unshare-helper"]


# -- the root file system


def make_base(cache: Path, suite: str, progress: Progress, packages: Sequence[str] = PACKAGES) -> Path:
    """A tar archive of the suite's minimal root file system with our packages; made once per suite and package set."""
    base = cache / f"guest-base-{suite}-{_digest(*map(str.encode, (suite, *packages, *_LEFT_OUT)))}.tar"
    if base.exists():
        return base
    progress.step(f"making a root file system of {suite} (about a minute)")
    cache.mkdir(parents=True, exist_ok=True)
    aside = cache / f".{base.name}.{os.getpid()}.tar"
    argv: list[str | Path] = ["mmdebstrap", "--variant=essential", f"--include={','.join(packages)}", "--format=tar"]
    argv += [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
    process.find_program("mmdebstrap", hint="Install mmdebstrap.")
    process.run([*argv, suite, aside], timeout=1800, sink=progress.log)
    aside.replace(base)
    return base


def _python_version(base: Path) -> str:
    """The version of the root's python3, as ``3.13``."""
    with tarfile.open(base) as archive:
        for member in archive:
            found = re.fullmatch(r"(?:\./)?usr/bin/python(3\.\d+)", member.name)
            if found:
                return found[1]
    raise InternalError(f"{base} holds no python3")


# -- the client


@dataclass(frozen=True)
class _Installer:
    """The program that gets Python packages, and the words that make it do so for another Python than ours."""

    argv: Sequence[str | Path]
    build: Sequence[str]
    output: str

    def install(self, python_version: str) -> list[str]:
        if self.build[0] == "build":
            return [
                "pip",
                "install",
                "--python-platform=x86_64-unknown-linux-gnu",
                f"--python-version={python_version}",
            ]
        platforms = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
        return ["install", "--implementation=cp", f"--python-version={python_version}"] + [
            f"--platform={platform}" for platform in platforms
        ]


def _installer() -> _Installer:
    places = [Path(sys.prefix) / "bin", Path(sys.base_prefix) / "bin", Path.home() / ".local/bin"]
    found = shutil.which("uv", path=os.pathsep.join(map(str, places))) or shutil.which("uv")
    if found:
        return _Installer([found], ["build", "--wheel", "--quiet"], "--out-dir")
    if importlib.util.find_spec("pip"):
        return _Installer([sys.executable, "-m", "pip", "--quiet"], ["wheel", "--no-deps"], "--wheel-dir")
    raise ToolUnavailableError("Neither uv nor pip is installed.", hint="Run 'make setup'.")


def installer_environment() -> dict[str, str]:
    """What tells uv and pip where packages come from, and where their cache is; that belongs to the machine.

    Without it a program gets a home that is not there, and root would make it.
    """
    names = [name for name in os.environ if name.startswith(("UV_", "PIP_")) or name == "XDG_CACHE_HOME"]
    return {"HOME": str(Path.home()), **{name: os.environ[name] for name in names}}


def build_wheel(project: Path, target: Path) -> Path:
    """The project as a wheel in the directory ``target``."""
    installer = _installer()
    argv = [*installer.argv, *installer.build, installer.output, target, project]
    process.run(argv, env=installer_environment(), timeout=600)
    (wheel,) = target.glob("elivepatch-*.whl")
    return wheel


def build_sdist(project: Path, target: Path) -> Path:
    """The project's source as an archive in the directory ``target``."""
    installer = _installer()
    if installer.build[0] != "build":
        raise ToolUnavailableError("Making an archive of the source needs uv.", hint="Run 'make setup'.")
    argv = [*installer.argv, "build", "--sdist", "--quiet", installer.output, target, project]
    process.run(argv, env=installer_environment(), timeout=600)
    (sdist,) = target.glob("elivepatch-*.tar.gz")
    return sdist


def install_pinned(requirements: Path, python_version: str, target: Path) -> None:
    """Install the packages of a file, with the digests in it, into a directory, for a Python that may be another."""
    installer = _installer()
    argv: list[str | Path] = [*installer.argv, *installer.install(python_version), "--only-binary=:all:", "--no-deps"]
    argv += ["--require-hashes", "--target", target, "-r", requirements]
    process.run(argv, env=installer_environment(), timeout=600)


def install_wheel(wheel: Path, requirements: Path, python_version: str, target: Path) -> None:
    """Install a wheel that was made here, and what it needs as `install_pinned` does."""
    install_pinned(requirements, python_version, target)
    installer = _installer()
    argv: list[str | Path] = [*installer.argv, *installer.install(python_version), "--only-binary=:all:", "--no-deps"]
    process.run([*argv, "--target", target, wheel], env=installer_environment(), timeout=600)


def install_client(wheel: Path, python_version: str, stage: Path) -> None:
    """Install the client and what it needs below ``stage``, for the Python of the guest's root."""
    packages = stage / f"usr/local/lib/python{python_version}/dist-packages"
    install_wheel(wheel, CLIENT_REQUIREMENTS, python_version, packages)
    shutil.rmtree(packages / "bin", ignore_errors=True)  # their first line names the Python of this machine
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt")]
        entry_points = archive.read(name).decode()
    found = re.search(r"^elivepatch *= *([\w.]+):(\w+)$", entry_points, re.MULTILINE)
    if not found:
        raise InternalError("the wheel has no program 'elivepatch'")
    program = stage / "usr/local/bin/elivepatch"
    program.parent.mkdir(parents=True)
    program.write_text(
        f"#!/usr/bin/python3\nimport sys\n\nfrom {found[1]} import {found[2]}\n\nsys.exit({found[2]}())\n",
        encoding="utf-8",
    )
    program.chmod(0o755)


# -- the image


def make_image(
    cache: Path,
    suite: str,
    release: str,
    image_package_root: Path,
    project: Path,
    progress: Progress,
    packages: Sequence[str] = PACKAGES,
    *,
    own: str = "",
) -> Path:
    """An ext4 image of a host that has the client; kept in ``cache`` by what it is made of.

    ``image_package_root`` is where the kernel's image package (and, where it is one of its own, its modules package)
    was unpacked. For a kernel that no package has, it is what the host's administrator has installed, /usr/src with
    it, and ``own`` tells it from others of the same release. Raises ProgramError where a program fails,
    ToolUnavailableError where one is missing.
    """
    for name in ("mmdebstrap", "mke2fs"):
        process.find_program(name, hint="Install mmdebstrap and e2fsprogs.")
    base = make_base(cache, suite, progress, packages)
    with tempfile.TemporaryDirectory(prefix=".guest-image-", dir=cache) as name:
        work = Path(name)
        wheel = build_wheel(project, work)
        of = (base.name, release, own)
        made_by = (Path(__file__).read_bytes(), CLIENT_REQUIREMENTS.read_bytes())
        key = _digest(*map(str.encode, of), _wheel_digest(wheel), *made_by)
        image = cache / f"guest-{suite}-{key}.ext4"
        if image.exists():
            return image
        progress.step(f"making the guest's image ({suite}, {release})")
        stage = work / "stage"
        modules = stage / "usr/lib/modules" / release
        # packages before Debian 13 have them in /lib
        places = [image_package_root / place / "modules" / release for place in ("usr/lib", "lib")]
        shutil.copytree(next((place for place in places if place.is_dir()), places[0]), modules, symlinks=True)
        if (image_package_root / "usr/src").is_dir():
            shutil.copytree(image_package_root / "usr/src", stage / "usr/src", symlinks=True)
        if not (modules / "config").exists():  # where packages of 7.x have it
            (stage / "boot").mkdir()
            shutil.copy(image_package_root / f"boot/config-{release}", stage / "boot")
        install_client(wheel, _python_version(base), stage)
        process.run([*_namespace(), "sh", "-euc", _PACK, "pack", work, base, release, str(_FREE_BYTES)], timeout=600)
        (work / "image").replace(image)
    _forget_older(cache, suite, image)
    return image


#: Makes the image from the base and the stage; the files belong to root in it.
_PACK = r"""
work=$1 base=$2 release=$3 free=$4
mkdir "$work/root"
trap 'rm -rf "$work/root"' EXIT
tar -C "$work/root" -xf "$base" --exclude=./dev
chmod -R go-w "$work/stage"
tar -C "$work/stage" --owner=0 --group=0 -cf - . | tar -C "$work/root" --no-overwrite-dir -xf -
mkdir -p "$work/root/dev"
echo demo-host >"$work/root/etc/hostname"
echo '127.0.0.1 localhost demo-host' >"$work/root/etc/hosts"
chroot "$work/root" depmod "$release"
chroot "$work/root" python3 -m compileall -q /usr/local/lib
size=$(($(du -s --apparent-size --block-size=1 "$work/root" | cut -f1) * 5 / 4 + free))
mke2fs -q -t ext4 -b 4096 -O ^has_journal -m 0 -E lazy_itable_init=1 -d "$work/root" "$work/image" $((size / 1024))k
"""


def _wheel_digest(wheel: Path) -> bytes:
    """A digest of what a wheel holds: its own bytes differ from one build to the next."""
    with zipfile.ZipFile(wheel) as archive:
        return _digest(
            *(part for name in sorted(archive.namelist()) for part in (name.encode(), archive.read(name)))
        ).encode()


def _forget_older(cache: Path, suite: str, newest: Path, keep: int = 2) -> None:
    images = sorted(cache.glob(f"guest-{suite}-*.ext4"), key=lambda path: path.stat().st_mtime, reverse=True)
    for image in images[keep:]:
        if image != newest:
            image.unlink(missing_ok=True)
