# SPDX-License-Identifier: GPL-2.0-or-later
"""Releases of kernel.org, from its site or any mirror of the same layout.

Below ``BASE/vN.x/`` lie ``linux-X.Y[.Z].tar.xz``, ``linux-X.Y[.Z].tar.sign`` (over the tar inside), ``sha256sums.asc``,
``patch-X.Y.1.xz``, and ``incr/patch-X.Y.A-B.xz`` for each later step. https://www.kernel.org/signature.html
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from elivepatch.errors import (
    DownloadFailedError,
    ElivepatchError,
    KernelUnavailableError,
    SourceRejectedError,
    UnavailableError,
)
from elivepatch.process import ProgramError, run
from elivepatch.progress import Progress
from elivepatch.sources import openpgp
from elivepatch.sources.archives import settle, unpack
from elivepatch.sources.download import check_file, download
from elivepatch.sources.reference import KERNEL_ORG, kernel_org_version
from elivepatch.sources.trees import SourceTree

_FORMAT = 1
_MB = 1024**2
_LIST_LIMIT, _SIGNATURE_LIMIT, _PATCH_LIMIT, _TARBALL_LIMIT = 32 * _MB, _MB, 64 * _MB, 1024 * _MB
#: Bytes that an increment may unpack to.
_PATCH_TEXT = 512 * _MB
#: So many increments in a row are still less than a tarball.
_STEPS = 40
_LIST_LINE = re.compile(r"([0-9a-f]{64})  ((?:incr/)?[A-Za-z0-9][A-Za-z0-9._+-]{0,200})", re.ASCII)
#: What GNU patch cannot carry, or not surely (the last: git's id of an empty file): such an increment is not used.
_NOT_FOR_PATCH = re.compile(
    rb"^(?:GIT binary patch|Binary files .* differ|old mode |new mode |(?:new|deleted) file mode (?!100644)|similarity "
    rb"|rename |copy |index [0-9a-f]+\.\.e69de29|index e69de29)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class KernelOrg:
    """Releases below one base address, kept below ``cache``.

    ``trust`` is ``either``: the signed list of checksums or the signature of the tarball's maker must vouch for a
    tarball, and none may contradict; or ``both`` must vouch. ``increments``: a version may also be made from an older
    tarball that is here and the published steps, where the list vouches for each of them and trust is ``either``.
    ``list_signers`` and ``tarball_signers`` are fingerprints of primary keys.
    """

    cache: Path
    keyring: Path
    base: str = KERNEL_ORG
    trust: Literal["either", "both"] = "either"
    increments: bool = True
    list_signers: Sequence[str] = (openpgp.AUTOSIGNER,)
    tarball_signers: Sequence[str] = (openpgp.GREGKH, openpgp.TORVALDS)
    _lists: dict[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]], repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def tree(self, version: str) -> SourceTree:
        """The tree of a version; raises InvalidInputError for one that is none. Asks nobody.

        The identity is the version and the keys that vouch for it: a release is never published twice.
        """
        version = kernel_org_version(version)
        parts = {"kernel.org": version, "keys": sorted({*self.list_signers, *self.tarball_signers}), "format": _FORMAT}
        identity = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        job = _Release(self, version)
        return SourceTree(f"kernel.org:{version}", identity, job.fetch, job.compose)

    def tarball(self, version: str, progress: Progress) -> Path:
        """The verified tarball of a version, downloaded if need be; for sources that build on it."""
        job = _Release(self, kernel_org_version(version))
        job.fetch_tarball(progress)
        return job.archive

    # -- files

    def place(self, name: str, series: str) -> Path:
        """Where a file is kept; ``series`` is the directory, ``v6.x``."""
        return self.cache / "kernel.org" / series / name

    def get(
        self,
        name: str,
        series: str,
        limit_bytes: int,
        progress: Progress,
        *,
        digest: str | None = None,
        missing: ElivepatchError | None = None,
    ) -> Path:
        """A file of the site, downloaded if need be."""
        target = self.place(name, series)
        digests = {"sha256": digest} if digest else {}
        url = f"{self.base.rstrip('/')}/{series}/{name}"
        download(url, target, digests=digests, limit_bytes=limit_bytes, progress=progress, what=name, missing=missing)
        return target

    def checksums(self, name: str, series: str, progress: Progress, *, wanted: str) -> Mapping[str, str]:
        """A signed list as name to SHA-256; asked for again where it does not know ``wanted``.

        Raises SourceRejectedError for one that is not signed by a key for it, DownloadFailedError.
        """
        with self._lock:
            kept = self.place(name, series)
            known = self._lists.get(f"{series}/{name}")
            if known is None and kept.exists():
                # one that was kept and cannot be read any more (its key was replaced) is asked for anew below
                with contextlib.suppress(SourceRejectedError):
                    known = self._read_list(kept, name)
            if known is None or wanted not in known:
                kept.unlink(missing_ok=True)
                self.get(name, series, _LIST_LIMIT, progress)
                try:
                    known = self._read_list(kept, name)
                except SourceRejectedError:
                    kept.unlink(missing_ok=True)
                    raise
            self._lists[f"{series}/{name}"] = known
            return known

    def _read_list(self, path: Path, name: str) -> Mapping[str, str]:
        text = openpgp.clear_signed_text(path, name, self.keyring, self.list_signers)
        return {found[2]: found[1] for found in map(_LIST_LINE.fullmatch, text.splitlines()) if found}


@dataclass(frozen=True)
class _Release:
    site: KernelOrg
    version: str

    @property
    def series(self) -> str:
        return f"v{self.version.partition('.')[0]}.x"

    @property
    def stable(self) -> str:
        """The series of stable releases: ``6.12`` of 6.12.60."""
        return ".".join(self.version.split(".")[:2])

    @property
    def archive(self) -> Path:
        return self.site.place(f"linux-{self.version}.tar.xz", self.series)

    @property
    def recipe(self) -> Path:
        """Which tarball and which steps make this version, where increments do."""
        return self.site.place(f"linux-{self.version}.increments.json", self.series)

    # -- fetching

    def fetch(self, progress: Progress) -> None:
        if self.site.increments and self.site.trust == "either" and not self.archive.exists():
            try:
                if self._fetch_increments(progress):
                    return
            except (SourceRejectedError, DownloadFailedError) as error:
                progress.step(f"increments to {self.version} cannot be used: {error.message.splitlines()[0]}")
        self.recipe.unlink(missing_ok=True)
        self.fetch_tarball(progress)

    def fetch_tarball(self, progress: Progress) -> None:
        name = self.archive.name
        distrust: list[UnavailableError] = []
        digest = None
        try:
            listed = self.site.checksums("sha256sums.asc", self.series, progress, wanted=name)
            digest = listed.get(name)
            if digest is None:
                raise self._unknown(listed)
        except (SourceRejectedError, DownloadFailedError) as error:
            if self.site.trust == "both":
                raise
            distrust.append(error)
        self.site.get(
            name, self.series, _TARBALL_LIMIT, progress, digest=digest, missing=KernelUnavailableError(
                f"kernel.org:{self.version} is not there: {self.site.base} has no {name}.", hint=_UNKNOWN_HINT
            )
        )  # fmt: skip
        try:
            self._check_signature(progress)
        except (openpgp.UnverifiedError, DownloadFailedError) as error:
            distrust.append(error)
            if digest is None:
                self.archive.unlink(missing_ok=True)
                reasons = " ".join(one.message for one in distrust)
                raise SourceRejectedError(
                    f"{name} is rejected, nothing vouches for it. {reasons}", hint=distrust[0].hint
                ) from error
            if self.site.trust == "both":
                raise
            progress.step(f"{name}: only the list of checksums vouches for it ({error.message.splitlines()[0]})")
        except SourceRejectedError:
            self.archive.unlink(missing_ok=True)
            raise

    def _check_signature(self, progress: Progress) -> None:
        name = f"linux-{self.version}.tar.sign"
        what = f"{self.archive.name} (signature {name})"
        kept = self.site.place(name, self.series)
        while True:
            was_here = kept.exists()
            signature = self.site.get(name, self.series, _SIGNATURE_LIMIT, progress)
            progress.step(f"checking the signature of {self.archive.name}")
            try:
                pieces = openpgp.unpacked(self.archive)
                openpgp.check_detached(signature, pieces, what, self.site.keyring, self.site.tarball_signers)
            except SourceRejectedError:
                kept.unlink(missing_ok=True)
                if not was_here:
                    raise
            else:
                return

    def _unknown(self, listed: Mapping[str, str]) -> KernelUnavailableError:
        pattern = re.compile(rf"linux-{re.escape(self.stable)}(?:\.(\d+))?\.tar\.xz")
        found = sorted(int(match[1] or 0) for match in map(pattern.fullmatch, listed) if match)
        offered = f"{self.stable} up to {self.stable}.{found[-1]}" if found else f"nothing of {self.stable}"
        return KernelUnavailableError(
            f"kernel.org:{self.version} is not there; {self.site.base} offers {offered}.", hint=_UNKNOWN_HINT
        )

    # -- increments

    def _steps(self, start: int) -> list[str]:
        """The files that lead from X.Y.start to this version."""
        end = int(self.version.split(".")[2])
        names = [f"incr/patch-{self.stable}.{at}-{at + 1}.xz" for at in range(max(start, 1), end)]
        return names if start else [f"patch-{self.stable}.1.xz", *names]

    def _start(self) -> int | None:
        """The newest older version of this series whose tarball is here."""
        if self.version == self.stable:
            return None
        end = int(self.version.split(".")[2])
        pattern = re.compile(rf"linux-{re.escape(self.stable)}(?:\.(\d+))?\.tar\.xz")
        here = self.archive.parent.iterdir() if self.archive.parent.is_dir() else ()
        found = [int(match[1] or 0) for match in (pattern.fullmatch(path.name) for path in here) if match]
        return max((one for one in found if end - _STEPS <= one < end), default=None)

    def _fetch_increments(self, progress: Progress) -> bool:
        start = self._start()
        if start is None:
            return False
        older = _Release(self.site, f"{self.stable}.{start}" if start else self.stable)
        # this very version must be known, else a list that is too old would pass for one without it
        listed = self.site.checksums("sha256sums.asc", self.series, progress, wanted=self.archive.name)
        if self.archive.name not in listed or older.archive.name not in listed:
            return False
        check_file(older.archive, older.archive.name, {"sha256": listed[older.archive.name]})
        steps: dict[str, str] = {}
        for name in self._steps(start):
            digest = listed.get(name) or listed.get(name.removeprefix("incr/"))
            if digest is None and name.startswith("incr/"):  # a list of that directory alone
                short = name.removeprefix("incr/")
                digest = self.site.checksums("incr/sha256sums.asc", self.series, progress, wanted=short).get(short)
            if digest is None:
                return False
            steps[name] = digest
        for name, digest in steps.items():
            path = self.site.get(name, self.series, _PATCH_LIMIT, progress, digest=digest)
            text = _text(path, name)
            # git's form alone says what else changes than lines
            if not text.startswith(b"diff --git ") or _NOT_FOR_PATCH.search(text):
                progress.step(f"{name} holds what a patch cannot carry: the tarball is taken")
                return False
        aside = self.recipe.with_suffix(".part")
        aside.write_text(json.dumps({"tarball": older.archive.name, "steps": list(steps)}))
        aside.replace(self.recipe)
        return True

    # -- composing

    def compose(self, target: Path, progress: Progress) -> None:
        if self.archive.exists():
            progress.step(f"unpacking {self.archive.name}")
            unpack(self.archive, target)
            return
        try:
            recipe = json.loads(self.recipe.read_text())
            tarball = self.site.place(recipe["tarball"], self.series)
            steps = {name: self.site.place(name, self.series) for name in recipe["steps"]}
        except (OSError, ValueError, KeyError) as error:
            raise DownloadFailedError(
                f"{self.archive.name} is not in {self.archive.parent} any more.", hint="Start the build again."
            ) from error
        progress.step(f"unpacking {tarball.name}")
        unpack(tarball, target)
        for name, path in steps.items():
            progress.step(f"applying {name}")
            _apply(_text(path, name), target, name)
        settle(target, self.archive.name)


def _text(path: Path, name: str) -> bytes:
    """What an increment holds; its digest was right, so a fault is the site's."""
    try:
        with lzma.open(path) as stream:
            text = stream.read(_PATCH_TEXT + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise SourceRejectedError(f"{name} is rejected: it is no .xz file ({error}).") from error
    if len(text) > _PATCH_TEXT:
        raise SourceRejectedError(f"{name} is rejected: it unpacks to more than {_PATCH_TEXT // _MB} MB.")
    return text


def _apply(text: bytes, tree: Path, name: str) -> None:
    """Apply an increment exactly: each hunk at its line, without fuzz."""
    words = ["patch", "-p1", "-F0", "--force", "--no-backup-if-mismatch", "--reject-file=-", "-d", tree]
    try:
        done = run(words, stdin=text, timeout=600)
    except ProgramError as error:
        raise SourceRejectedError(
            f"{name} does not apply to the tree it is for:\n{error.message}",
            hint="Remove what is kept of kernel.org from the cache, or turn increments off, and try again.",
        ) from error
    if re.search(r"\(offset -?\d+ lines?\)|with fuzz|Reversed|saving rejects", done.stdout):
        raise SourceRejectedError(f"{name} applies only at other places than it says:\n{done.stdout[-2000:]}")


_UNKNOWN_HINT = "Name a version that is published, or take it from git: git:URL#vX.Y.Z"
