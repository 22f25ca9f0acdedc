# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's kernels: from a release to its packages at exactly one source version.

apt is the authority: it reads the package lists of the configuration it is given, checks their signatures, and names
the address and the digest of each package. Nothing here names a mirror.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from elivepatch.errors import DiskFullError, DownloadFailedError, InvalidSettingError, KernelUnavailableError
from elivepatch.kernel.release import Release, parse_release
from elivepatch.process import ProgramError, find_program, run
from elivepatch.progress import Progress
from elivepatch.sources.provider import KernelFiles, Package

_APT_HELPER = Path("/usr/lib/apt/apt-helper")
#: Those that are looked for, the longest ending first.
FLAVOURS = ("cloud-amd64", "rt-amd64", "amd64")
#: Seconds after which package lists are asked for again when they do not have a release.
_LISTS_AGE = 1800.0
_URI_LINE = re.compile(
    r"'(?P<uri>[^']+)' (?P<name>[A-Za-z0-9.+~_%-]+\.deb) (?P<size>\d+) (?P<hash>SHA256:[0-9a-f]{64})"
)


@dataclass(frozen=True)
class AptConfiguration:
    """Which packages apt sees: ``sources_list`` is the file with the archives, ``trusted`` the directory of their keys.

    For a build root both are its own; None stands for those of this machine. ``toolchain`` is the root whose compiler
    built what is offered, if it is not called by the same name. With ``backports_of``, the name of a suite, apt sees
    that suite's backports alone, from where ``sources_list`` has the suite: a root installs nothing from there.
    """

    name: str
    sources_list: Path | None = None
    trusted: Path | None = None
    toolchain: str | None = None
    backports_of: str | None = None


@dataclass(frozen=True)
class _Names:
    """The packages of a release. One of ``kbuilds`` is there: by ABI since 6.12, before that by series.

    ``split`` are those that the image package is split into since 7.x.
    """

    image: str
    headers: str
    source: str
    kbuilds: tuple[str, str]
    split: tuple[str, ...]

    @classmethod
    def of(cls, release: Release) -> _Names:
        abi = release.text
        for flavour in FLAVOURS:
            abi = abi.removesuffix(f"-{flavour}")
        return cls(
            f"linux-image-{release}",
            f"linux-headers-{release}",
            f"linux-source-{release.series}",
            (f"linux-kbuild-{abi}", f"linux-kbuild-{release.series}"),
            (f"linux-base-{release}", f"linux-binary-{release}", f"linux-modules-{release}"),
        )

    def needed(self) -> list[str]:
        """Those without which there is no kernel; of the kbuild packages, one."""
        return [self.image, f"{self.image}-dbg", self.headers, self.source, *self.kbuilds]

    def version(self, versions: Mapping[str, Sequence[str]]) -> str | None:
        """The one source version at which all that is needed is offered, kbuild's tools excepted."""
        for version in versions.get(self.image, ()):
            rest = (f"{self.image}-dbg", self.headers, self.source)
            if all(version in versions.get(name, ()) for name in rest) and self.kbuild(version, versions):
                return version
        return None

    def kbuild(self, version: str, versions: Mapping[str, Sequence[str]]) -> tuple[str, str] | None:
        """The package of kbuild's tools and its version.

        An archive that keeps older kernels of a series keeps only the newest tools of it. They do for all of the
        series: what they make is compared with the kernel's own objects.
        """
        offered = [(name, each) for name in self.kbuilds for each in versions.get(name, ())]
        return next((one for one in offered if one[1] == version), offered[0] if offered else None)


def backports_list(sources: str, suite: str) -> str:
    """The sources.list of a suite's backports, from that of the suite (sources.list(5), one line each).

    Raises InvalidSettingError where that does not name the suite.
    """
    lines = [
        f"{match['before']}{suite}-backports{match['after']}\n"
        for line in sources.splitlines()
        if (match := re.fullmatch(rf"(?P<before>deb (?:\[[^]]*\] )?\S+ ){re.escape(suite)}(?P<after> .+)", line))
    ]
    if not lines:
        raise InvalidSettingError(
            f"No line of the apt configuration names the suite '{suite}', so its backports cannot be found.",
            hint="Make the build root again, or give it a mirror that has the suite.",
        )
    return "".join(lines)


class DebianSource:
    """Kernels of one Debian suite, seen through an apt configuration; packages and lists are kept below ``cache``."""

    def __init__(self, configuration: AptConfiguration, cache: Path) -> None:
        self._configuration = configuration
        self._state = cache / "apt" / configuration.name
        self._packages = cache / "packages"

    @property
    def backports(self) -> bool:
        """Whether it is a suite's backports: asked last, a mirror need not have them."""
        return self._configuration.backports_of is not None

    # -- the interface of a source

    def find(self, release: Release, progress: Progress) -> KernelFiles | None:
        """The files of a release; package lists are fetched when they are missing, or too old to know it.

        What was found once is remembered: the packages of a release never change.
        """
        if (known := self.remembered(release)) is not None:
            return known
        record = self._state / "releases" / f"{release}.json"
        self._ensure_lists(progress, refresh=False)
        files = self._find(release)
        if files is None and self._lists_age() > _LISTS_AGE:
            self._ensure_lists(progress, refresh=True)
            files = self._find(release)
        if files is not None:
            self._save(files, record)
        return files

    def remembered(self, release: Release) -> KernelFiles | None:
        """The files of a release that was found before; asks nobody."""
        record = self._state / "releases" / f"{release}.json"
        return self._load(release, record) if record.exists() else None

    def offered(self, progress: Progress) -> list[Release]:
        """The releases of which all that is needed is offered, the newest last."""
        self._ensure_lists(progress, refresh=False)
        names = set(run(self._apt("apt-cache", "pkgnames", "linux-image-")).stdout.split())
        texts = [name.removeprefix("linux-image-") for name in names if not name.endswith(("-dbg", "-unsigned"))]
        texts = [text for text in texts if text[:1].isdigit() and text.endswith(FLAVOURS)]
        # linux-image-6.12-amd64 and its like only follow the newest release
        releases = [each for each in map(parse_release, texts) if not each.text.startswith(f"{each.series}-")]
        wanted = dict.fromkeys(name for release in releases for name in _Names.of(release).needed())
        versions = self._versions(list(wanted))
        return sorted(release for release in releases if _Names.of(release).version(versions))

    def download(self, files: KernelFiles, progress: Progress) -> None:
        """Download the packages that are not here yet."""
        packages = files.packages()
        for number, package in enumerate(packages, start=1):
            if not files.path(package).exists():
                size = f"{package.size / 1024**2:.0f} MB"
                progress.step(f"downloading {package.file}, {size} ({number} of {len(packages)})")
                self._download(package, files.path(package))

    # -- the source alone

    def linux_source(
        self, series: str, progress: Progress, *, version: str | None = None
    ) -> tuple[str, Package] | None:
        """The package ``linux-source-SERIES`` with its version: the newest that is offered, or exactly that version.

        Package lists are fetched when they are missing, or too old to know it. None where it is not offered. A version
        that was found once is remembered.
        """
        name = f"linux-source-{series}"
        self._ensure_lists(progress, refresh=False)
        versions = self._versions([name])[name]
        if (version not in versions if version else not versions) and self._lists_age() > _LISTS_AGE:
            self._ensure_lists(progress, refresh=True)
            versions = self._versions([name])[name]
        wanted = version or next(iter(versions), None)
        if wanted is None or wanted not in versions:
            return None
        package = self._describe([name], wanted)[name]
        _write_record(self._source_record(package.file), asdict(package))
        return wanted, package

    def remembered_source(self, series: str, version: str) -> Package | None:
        """The package of a version that was found before and is on disk; asks nobody."""
        record = self._source_record(f"linux-source-{series}_{version}_all.deb")
        package = Package(**json.loads(record.read_text())) if record.exists() else None
        return package if package is not None and self.package_path(package).exists() else None

    def _source_record(self, file: str) -> Path:
        return self._state / "sources" / f"{file}.json"

    def linux_source_series(self) -> list[str]:
        """The series of which the lists at hand name a package ``linux-source-SERIES``."""
        names = run(self._apt("apt-cache", "pkgnames", "linux-source-")).stdout.split()
        found = (name.removeprefix("linux-source-") for name in names)
        return sorted((one for one in found if one[:1].isdigit()), key=lambda one: parse_release(one))

    def linux_source_versions(self, series: str) -> list[str]:
        """The versions of ``linux-source-SERIES`` that the lists at hand name, the newest first."""
        name = f"linux-source-{series}"
        return self._versions([name])[name]

    def package_path(self, package: Package) -> Path:
        """Where a package lies once it is downloaded."""
        return self._packages / package.file

    def download_package(self, package: Package, progress: Progress) -> Path:
        """Have one package on disk, verified; gives its path."""
        path = self.package_path(package)
        if not path.exists():
            progress.step(f"downloading {package.file}, {package.size / 1024**2:.0f} MB")
            self._download(package, path)
        return path

    # -- apt

    def _apt(self, program: str, *words: str) -> list[str]:
        find_program(program, hint="Install apt.")
        options = {
            "Dir::State::Lists": self._state / "lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": self._state / "cache",
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        if self._configuration.sources_list is not None:
            options["Dir::Etc::SourceList"] = self._sources_list(self._configuration.sources_list)
            options["Dir::Etc::SourceParts"] = "-"
        if self._configuration.trusted is not None:
            options["Dir::Etc::TrustedParts"] = self._configuration.trusted
        for directory in ("lists/partial", "cache/archives/partial"):
            (self._state / directory).mkdir(parents=True, exist_ok=True)
        return [program, *(f"-o{name}={value}" for name, value in options.items()), *words]

    def _sources_list(self, given: Path) -> Path:
        suite = self._configuration.backports_of
        if suite is None:
            return given
        text = backports_list(given.read_text(), suite)
        made = self._state / "sources.list"
        if not made.exists() or made.read_text() != text:
            made.parent.mkdir(parents=True, exist_ok=True)
            aside = made.with_suffix(f".{os.getpid()}.part")
            aside.write_text(text)
            aside.replace(made)
        return made

    def _lists_age(self) -> float:
        stamp = self._state / "updated"
        return time.time() - stamp.stat().st_mtime if stamp.exists() else float("inf")

    def _ensure_lists(self, progress: Progress, *, refresh: bool) -> None:
        if not refresh and (self._state / "updated").exists():
            return
        progress.step(f"package lists of {self._configuration.name}")
        try:
            done = run(self._apt("apt-get", "update", "--error-on=any"), timeout=600, sink=progress.log)
        except ProgramError as error:
            raise DownloadFailedError(
                f"The package lists of '{self._configuration.name}' cannot be had:\n{error.message}",
                hint="Check the apt configuration of this root and the network of this machine.",
            ) from error
        if not any((self._state / "lists").glob("*_Packages*")):
            raise DownloadFailedError(f"apt fetched no package list: {done.stdout[-500:]}")
        (self._state / "updated").touch()

    def _versions(self, packages: Sequence[str]) -> dict[str, list[str]]:
        """The versions at which packages are offered."""
        found: dict[str, list[str]] = {package: [] for package in packages}
        if packages:
            for line in run(self._apt("apt-cache", "madison", *packages)).stdout.splitlines():
                fields = [field.strip() for field in line.split("|")]
                if len(fields) == 3 and fields[0] in found and fields[1] not in found[fields[0]]:
                    found[fields[0]].append(fields[1])
        return found

    def _find(self, release: Release) -> KernelFiles | None:
        names = _Names.of(release)
        versions = self._versions([*names.needed(), *names.split])
        version = names.version(versions)
        tools = names.kbuild(version, versions) if version is not None else None
        if version is None or tools is None:
            return None
        image, source = names.image, names.source
        kbuild, kbuild_version = tools
        images = [image, *(name for name in names.split if version in versions[name])]
        headers = names.headers
        found = self._describe([*images, f"{image}-dbg", headers, source], version)
        found |= self._describe([kbuild], kbuild_version)
        return KernelFiles(
            release=release,
            origin=f"debian:linux {version} ({self._configuration.name})",
            toolchain=self._configuration.toolchain or self._configuration.name,
            directory=self._packages,
            images=[found[name] for name in images],
            debug=found[f"{image}-dbg"],
            headers=found[headers],
            kbuild=found[kbuild],
            source=found[source],
        )

    def _save(self, files: KernelFiles, record: Path) -> None:
        data = asdict(files)
        for name in ("release", "directory"):
            del data[name]
        _write_record(record, data)

    def _load(self, release: Release, record: Path) -> KernelFiles:
        data = json.loads(record.read_text())
        packages = {name: Package(**data.pop(name)) for name in ("debug", "headers", "kbuild", "source")}
        images = [Package(**image) for image in data.pop("images")]
        return KernelFiles(release=release, directory=self._packages, images=images, **packages, **data)

    def _describe(self, packages: Sequence[str], version: str) -> dict[str, Package]:
        words = [f"{package}={version}" for package in packages]
        try:
            output = run(self._apt("apt-get", "download", "--print-uris", *words)).stdout
        except ProgramError as error:
            raise KernelUnavailableError(
                f"apt does not offer all of {', '.join(packages)} at version {version}:\n{error.message}",
                hint="The release is being replaced in the archive; use a newer one.",
            ) from error
        found: dict[str, Package] = {}
        for match in _URI_LINE.finditer(output):
            name = match["name"].split("_")[0]
            found[name] = Package(match["uri"], match["name"], int(match["size"]), match["hash"].partition(":")[2])
        missing = [package for package in packages if package not in found]
        if missing:
            raise KernelUnavailableError(f"apt names no address with a SHA-256 for {', '.join(missing)} {version}.")
        return found

    def _download(self, package: Package, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(target.parent).free < package.size + 64 * 1024**2:
            raise DiskFullError(f"{package.file} needs {package.size // 1024**2} MB in {target.parent}.")
        partial = target.with_name(f"{target.name}.part")  # apt goes on where it stopped
        with target.with_name(f".{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if target.exists():
                return
            words = ["download-file", package.uri, str(partial), f"SHA256:{package.sha256}"]
            try:
                run(self._apt(str(_APT_HELPER), *words), timeout=3600)
            except ProgramError as error:
                raise DownloadFailedError(f"{package.file} could not be downloaded:\n{error.message}") from error
            with partial.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if digest != package.sha256:
                partial.unlink()
                raise DownloadFailedError(f"{package.file} arrived with another digest than the signed list names.")
            partial.replace(target)


def _write_record(record: Path, data: Mapping[str, object]) -> None:
    """Whoever reads the file meanwhile sees all of it or nothing."""
    record.parent.mkdir(parents=True, exist_ok=True)
    aside = record.with_name(f"{record.name}.{os.getpid()}.part")
    aside.write_text(json.dumps(data))
    aside.replace(record)
