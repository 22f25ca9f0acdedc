# SPDX-License-Identifier: GPL-2.0-or-later
"""One verified download over HTTP or HTTPS: resumed where it broke off, shared by all who ask at once.

What a server says is never trusted further than the digests: it names no file, and it may not lead to another kind of
address. Range requests and If-Range as in RFC 9110, sections 13.1.5 and 14.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import ipaddress
import json
import re
import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import httpx2

from elivepatch.errors import (
    DiskFullError,
    DownloadFailedError,
    ElivepatchError,
    InvalidSettingError,
    SourceRejectedError,
)
from elivepatch.progress import Progress
from elivepatch.version import installed_version

#: Digests that can be asked for, by their name in hashlib; Gentoo's BLAKE2B is blake2b of 512 bits.
ALGORITHMS = {"sha256": 64, "sha512": 128, "blake2b": 128}
#: Bytes that stay free on the disk whatever is downloaded.
RESERVE_BYTES = 64 * 1024**2
#: Seconds of waiting before an address is asked again: as many attempts in a row as this has entries may bring nothing.
WAITS = (0.5, 2.0, 5.0)
#: Seconds that one download may take in all, and that a server may be silent.
TIME_LIMIT, SILENCE = 4 * 3600.0, 60.0
_REDIRECTS = 5
_MB = 1024**2
_HINT = (
    "Try again: what was already downloaded is kept. If it fails again, check the address and this machine's network."
)


class _TransferError(Exception):
    """This attempt ended early; another may go on. ``final``: it is no use to ask this address again."""

    def __init__(self, message: str, *, final: bool = False, missing: bool = False) -> None:
        super().__init__(message)
        self.final = final
        self.missing = missing


def check_url(url: str) -> httpx2.URL:
    """An address that can be downloaded from; raises InvalidSettingError for any other."""
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError) as error:
        raise InvalidSettingError(f"{url!r} is not an address: {error}.") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host or re.search(r"[\s\x00-\x1f]", url):
        raise InvalidSettingError(
            f"{url!r} is not an address to download from.", hint="Write http:// or https://, a host and a path."
        )
    return parsed


def wrong_digest(path: Path, digests: Mapping[str, str]) -> str | None:
    """What is wrong with a file, as ``sha256 is …, expected …``; None where all its digests are as they should be."""
    for name, wanted in digests.items():
        if len(wanted) != ALGORITHMS.get(name, 0):
            raise ValueError(f"{name}:{wanted} is not a digest")
    hashes = {name: hashlib.new(name) for name in digests}
    with path.open("rb") as stream:
        while chunk := stream.read(_MB):
            for one in hashes.values():
                one.update(chunk)
    for name, wanted in digests.items():
        if (found := hashes[name].hexdigest()) != wanted.lower():
            return f"its {name} is {found}, expected {wanted.lower()}"
    return None


def check_file(path: Path, what: str, digests: Mapping[str, str], size: int | None = None) -> None:
    """Raise SourceRejectedError where a file has another size (bytes) or digest than it should."""
    found = path.stat().st_size
    if size is not None and found != size:
        raise SourceRejectedError(f"{what} is rejected: it has {found} bytes, expected {size}.")
    if wrong := wrong_digest(path, digests):
        raise SourceRejectedError(f"{what} is rejected: {wrong}.")


def download(
    urls: str | Sequence[str],
    target: Path,
    *,
    digests: Mapping[str, str],
    limit_bytes: int,
    progress: Progress,
    size: int | None = None,
    what: str | None = None,
    missing: ElivepatchError | None = None,
) -> None:
    """Have a file at ``target``, downloaded from the first of ``urls`` that gives it, and verified.

    ``digests`` maps names of ALGORITHMS to hexadecimal digests; ``size`` is bytes where it is known, ``limit_bytes``
    bounds it where not. A target that is there and right is left alone, one that is wrong is replaced. An empty
    ``digests`` is for files that the caller verifies by a signature: then what is there is taken as it is, and a
    partial file is only continued with the server's word that it is the same file. ``what`` is the name for people.
    ``missing`` is raised where every address says that there is no such file (404, 410).

    Raises DownloadFailedError (the partial file stays, the next call goes on), SourceRejectedError (wrong digest or
    size; nothing stays), DiskFullError, InvalidSettingError for an address that is none.
    """
    addresses = [check_url(url) for url in ([urls] if isinstance(urls, str) else urls)]
    job = _Download(target, what or target.name, dict(digests), size, limit_bytes, progress)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target):
        if not job.is_there():
            job.run(addresses, missing)


@contextlib.contextmanager
def _locked(target: Path) -> Generator[None]:
    # the lock file stays: one that is unlinked while another process waits on it would be two locks
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass
class _Download:
    target: Path
    what: str
    digests: Mapping[str, str]
    size: int | None
    limit_bytes: int
    progress: Progress
    _deadline: float = field(init=False)
    _told: float = 0.0

    def __post_init__(self) -> None:
        self.partial = self.target.with_name(f"{self.target.name}.part")
        self.note = self.target.with_name(f"{self.target.name}.part.json")
        self._deadline = time.monotonic() + TIME_LIMIT

    def is_there(self) -> bool:
        if not self.target.exists():
            return False
        try:
            check_file(self.target, self.what, self.digests, self.size)
        except SourceRejectedError as error:
            self.progress.step(f"{error.message} It is downloaded again.")
            self.target.unlink()
            return False
        return True

    def run(self, addresses: Sequence[httpx2.URL], missing: ElivepatchError | None) -> None:
        rejected: SourceRejectedError | None = None
        failures: list[_TransferError] = []
        for address in addresses:
            try:
                self._from(address)
            except SourceRejectedError as error:
                rejected = error
            except _TransferError as error:
                failures.append(error)
            else:
                return
        if rejected is not None:
            raise rejected
        if missing is not None and all(failure.missing for failure in failures):
            raise missing
        reasons = "; ".join(map(str, failures)) or "no address is known"
        raise DownloadFailedError(f"{self.what} could not be downloaded: {reasons}.", hint=_HINT)

    def _from(self, address: httpx2.URL) -> None:
        fruitless, anew = 0, False
        while True:
            before = self._here()
            try:
                self._transfer(address)
                self._check_length(address)
            except _TransferError as error:
                # one that brought something is asked again at once
                fruitless = 0 if self._here() > before else fruitless + 1
                if error.final or fruitless > len(WAITS) or time.monotonic() > self._deadline:
                    raise
                self.progress.step(f"downloading {self.what} again: {error}")
                time.sleep(WAITS[max(fruitless - 1, 0)])
                continue
            try:
                check_file(self.partial, f"{self.what} from {address}", self.digests, self.size)
            except SourceRejectedError:
                self._discard()
                if not before or anew:
                    raise
                anew = True  # it was pieced together, and the first piece may have been of another file
                continue
            self.note.unlink(missing_ok=True)
            self.partial.replace(self.target)
            return

    def _here(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0

    def _discard(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def _check_length(self, address: httpx2.URL) -> None:
        if self.size is not None and (here := self._here()) < self.size:
            raise _TransferError(f"{address} ended after {here} of {self.size} bytes")

    # -- one transfer

    def _transfer(self, address: httpx2.URL) -> None:
        start = self._here()
        if self.size is not None and start == self.size:
            return  # it was whole, and its rename was not reached
        headers = {"Accept-Encoding": "identity", "User-Agent": f"elivepatch/{installed_version()}"}
        if start:
            validator = self._validator(address)
            if validator is not None:
                headers |= {"Range": f"bytes={start}-", "If-Range": validator}
            elif self.digests:
                headers |= {"Range": f"bytes={start}-"}
        try:
            with self._opened(address, headers) as response:
                self._receive(address, response, start)
        except httpx2.TransportError as error:
            raise _TransferError(f"{address}: {error or type(error).__name__}") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise _TransferError(f"{address}: {error}", final=True) from error
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise DiskFullError(f"No space is left for {self.what} in {self.target.parent}.") from error
            raise

    @contextlib.contextmanager
    def _opened(self, address: httpx2.URL, headers: Mapping[str, str]) -> Generator[httpx2.Response]:
        """The answer to a request, redirects followed: to http or https only, and never from https back to http."""
        at = address
        for _ in range(_REDIRECTS + 1):
            with (
                httpx2.Client(timeout=httpx2.Timeout(SILENCE, connect=20), trust_env=not _is_loopback(at)) as client,
                client.stream("GET", at, headers=headers) as response,
            ):
                if not response.has_redirect_location:
                    yield response
                    return
                to = at.join(response.headers["location"])
            if to.scheme not in {"http", "https"} or not to.host or (at.scheme, to.scheme) == ("https", "http"):
                raise _TransferError(f"{at} leads to {str(to)[:200]!r}, which is not followed", final=True)
            at = to
        raise _TransferError(f"{address} leads on more than {_REDIRECTS} times", final=True)

    def _receive(self, address: httpx2.URL, response: httpx2.Response, start: int) -> None:
        status = response.status_code
        if status == 416 and start:
            total = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("content-range", ""))
            if total is not None and int(total[1]) == start:
                return  # it was whole
            self._discard()
            raise _TransferError(f"{address} has another length than before")
        if status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("content-range", ""))
            if found is None or int(found[1]) != start or not start:
                self._discard()
                raise _TransferError(f"{address} answers with another part than was asked for")
        elif status == 200:
            start = 0
        else:
            again = status in {408, 425, 429} or status >= 500
            raise _TransferError(
                f"{address} answers {status} {response.reason_phrase}",
                final=not again,
                missing=status in {404, 410},
            )
        length = response.headers.get("content-length", "")
        total_bytes = start + int(length) if re.fullmatch(r"\d{1,18}", length) else None
        self._bound(address, total_bytes or start)
        if total_bytes is not None and self.size is not None and total_bytes != self.size:
            self._discard()
            raise SourceRejectedError(
                f"{self.what} from {address} is rejected: it has {total_bytes} bytes, expected {self.size}."
            )
        self._room((total_bytes or self.size or start) - start)
        self._remember(address, response)
        with self.partial.open("ab" if start else "wb") as out:
            self._copy(address, response, out, start, total_bytes or self.size)

    def _copy(
        self, address: httpx2.URL, response: httpx2.Response, out: BinaryIO, start: int, total: int | None
    ) -> None:
        at = start
        self._tell(at, total, at_once=True)
        for chunk in response.iter_raw():
            at += len(chunk)
            self._bound(address, at)
            out.write(chunk)
            self._tell(at, total)
            if time.monotonic() > self._deadline:
                raise _TransferError(f"{address} took longer than {TIME_LIMIT / 3600:.0f} hours", final=True)

    def _bound(self, address: httpx2.URL, length: int) -> None:
        limit = self.limit_bytes if self.size is None else self.size
        if length > limit:
            self._discard()
            expected = f"{self.size} bytes" if self.size is not None else f"at most {self.limit_bytes} bytes"
            raise SourceRejectedError(
                f"{self.what} from {address} is rejected: it is longer than expected ({expected})."
            )

    def _room(self, needed: int) -> None:
        if shutil.disk_usage(self.target.parent).free < needed + RESERVE_BYTES:
            raise DiskFullError(f"{self.what} needs {needed / _MB:.0f} MB more in {self.target.parent}.")

    def _tell(self, at: int, total: int | None, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if at_once or now - self._told >= 2.0:
            self._told = now
            of = f" of {total / _MB:.1f}" if total else ""
            self.progress.step(f"downloading {self.what}, {at / _MB:.1f}{of} MB", at / total if total else None)

    # -- what is known of the partial file

    def _remember(self, address: httpx2.URL, response: httpx2.Response) -> None:
        tag = response.headers.get("etag", "")
        validator = tag if tag.startswith('"') else response.headers.get("last-modified", "")
        self.note.write_text(json.dumps({"url": str(address), "validator": validator}))

    def _validator(self, address: httpx2.URL) -> str | None:
        """The mark by which this address knows whether the file is still the one that was begun."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            note = json.loads(self.note.read_text())
            if note["url"] == str(address) and re.fullmatch(r"[\x20-\x7e]{1,300}", note["validator"]):
                return str(note["validator"])
        return None


def _is_loopback(url: httpx2.URL) -> bool:
    """Whether an address is this machine's own: no proxy stands between."""
    try:
        return ipaddress.ip_address(url.host).is_loopback
    except ValueError:
        return url.host == "localhost"
