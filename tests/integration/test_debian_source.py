# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian source against an archive of the test's own, on the loopback: small packages, a real apt."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from elivepatch.errors import DownloadFailedError
from elivepatch.kernel.release import parse_release
from elivepatch.progress import Progress
from elivepatch.sources.debian import AptConfiguration, DebianSource

pytestmark = pytest.mark.integration

ABI = "6.12.{}+deb13"
PADDING = 300_000  # bytes of each package that compress to nothing less


class Archive:
    """A package archive below a directory, and the server that hands it out.

    ``cut`` is after how many bytes an answer breaks off, by the end of a path; ``replaced`` are contents that are sent
    instead of files. ``asked`` are the requests: path and Range.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cut: dict[str, int] = {}
        self.replaced: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        archive = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                archive.asked.append((self.path, self.headers["Range"]))
                path = archive.directory / urllib.parse.unquote(self.path).lstrip("/")
                name = path.name
                if not path.is_file():
                    self.send_error(404)
                    return
                data = archive.replaced.get(name, path.read_bytes())
                wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
                start = int(wanted[1]) if wanted else 0
                if wanted and start >= len(data):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(data)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206 if wanted else 200)
                if wanted:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                self.send_header("Content-Length", str(len(data) - start))
                self.send_header("Last-Modified", self.date_time_string(1_700_000_000))
                self.end_headers()
                end = archive.cut.get(name, len(data))
                self.wfile.write(data[start:end])
                if end < len(data):
                    self.close_connection = True

            def log_request(self, code: object = "-", size: object = "-") -> None:
                pass

            def log_error(self, format: str, *args: object) -> None:  # noqa: A002  # the name in the base class
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def add(self, package: str, version: str, architecture: str = "amd64") -> None:
        place = self.directory / "build"
        (place / "DEBIAN").mkdir(parents=True)
        (place / "DEBIAN/control").write_text(
            f"Package: {package}\nVersion: {version}\nArchitecture: {architecture}\n"
            "Maintainer: Nobody <nobody@example.org>\nDescription: a package of a test\n"
        )
        (place / "usr").mkdir()
        (place / f"usr/{package}").write_bytes(os.urandom(PADDING))
        name = f"{package}_{version}_{architecture}.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", place, self.directory / name],
            check=True,
            capture_output=True,
        )
        shutil.rmtree(place)

    def kernel(self, number: int, flavour: str, version: str, *, without: Sequence[str] = ()) -> None:
        """The packages of one kernel, but for those that are left out."""
        abi = ABI.format(number)
        names = [f"linux-image-{abi}-{flavour}", f"linux-image-{abi}-{flavour}-dbg", f"linux-headers-{abi}-{flavour}"]
        for package in (*names, f"linux-kbuild-{abi}", "linux-source-6.12"):
            there = (self.directory / f"{package}_{version}_amd64.deb").exists()
            if not there and not any(word in package for word in without):
                self.add(package, version)

    def publish(self) -> None:
        """Write the lists."""
        blocks: list[str] = []
        for path in sorted(self.directory.glob("*.deb")):
            control = subprocess.run(["dpkg-deb", "-f", path], check=True, capture_output=True, text=True).stdout
            data = path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            blocks.append(f"{control}Filename: ./{path.name}\nSize: {len(data)}\nSHA256: {digest}\n")
        packages = "\n".join(blocks).encode()
        (self.directory / "Packages").write_bytes(packages)
        date = time.strftime("%a, %d %b %Y %H:%M:%S UTC", time.gmtime())
        line = f" {hashlib.sha256(packages).hexdigest()} {len(packages)} Packages\n"
        (self.directory / "Release").write_text(f"Origin: test\nDate: {date}\nSHA256:\n{line}")


@pytest.fixture
def archive(tmp_path: Path) -> Generator[Archive]:
    directory = tmp_path / "archive"
    directory.mkdir()
    archive = Archive(directory)
    yield archive
    archive.close()


def source_of(archive: Archive, cache: Path, options: str = "[trusted=yes]") -> DebianSource:
    sources = cache.parent / f"{cache.name}.list"
    sources.write_text(f"deb {options} {archive.address} ./\n")
    trusted = cache.parent / "trusted.gpg.d"
    trusted.mkdir(exist_ok=True)
    return DebianSource(AptConfiguration("test", sources, trusted), cache)


def cloud(number: int) -> str:
    return f"{ABI.format(number)}-cloud-amd64"


def test_everything_is_of_one_version(archive: Archive, tmp_path: Path) -> None:
    archive.kernel(7, "cloud-amd64", "6.12.7-1")
    archive.kernel(7, "amd64", "6.12.7-1")
    archive.kernel(8, "cloud-amd64", "6.12.8-1")
    archive.kernel(8, "rt-amd64", "6.12.8-1")
    archive.add(f"linux-image-{cloud(7)}", "6.12.7-2")  # rebuilt, and the rest is not there yet
    for package in ("linux-image", "linux-headers", "linux-kbuild"):  # those that follow the newest release
        for name in (f"{package}-6.12-cloud-amd64", f"{package}-cloud-amd64", f"{package}-6.12-cloud-amd64-dbg"):
            archive.add(name, "6.12.8-1")
    archive.publish()
    source = source_of(archive, tmp_path / "cache")
    files = source.find(parse_release(cloud(7)), Progress())
    assert files is not None
    assert files.origin == "debian:linux 6.12.7-1 (test)"
    assert files.toolchain == "test"
    assert {package.file for package in files.packages()} == {
        f"linux-image-{cloud(7)}_6.12.7-1_amd64.deb",
        f"linux-image-{cloud(7)}-dbg_6.12.7-1_amd64.deb",
        f"linux-headers-{cloud(7)}_6.12.7-1_amd64.deb",
        f"linux-kbuild-{ABI.format(7)}_6.12.7-1_amd64.deb",
        "linux-source-6.12_6.12.7-1_amd64.deb",
    }
    offered = [str(release) for release in source.offered(Progress())]
    assert offered == [f"{ABI.format(7)}-amd64", cloud(7), cloud(8), f"{ABI.format(8)}-rt-amd64"]
    source.download(files, Progress())
    for package in files.packages():
        assert hashlib.sha256(files.path(package).read_bytes()).hexdigest() == package.sha256
        assert files.path(package).stat().st_size == package.size
    archive.asked.clear()
    source.download(files, Progress())
    again = source_of(archive, tmp_path / "cache").find(parse_release(cloud(7)), Progress())
    assert again == files
    assert not archive.asked, "what is here was asked for again"


@pytest.mark.parametrize("missing", ["-dbg", "linux-headers", "linux-kbuild", "linux-source"])
def test_a_kernel_of_which_something_is_missing_is_not_offered(archive: Archive, tmp_path: Path, missing: str) -> None:
    archive.kernel(7, "cloud-amd64", "6.12.7-1", without=[missing])
    archive.kernel(8, "cloud-amd64", "6.12.8-1")
    archive.publish()
    source = source_of(archive, tmp_path / "cache")
    assert source.find(parse_release(cloud(7)), Progress()) is None
    assert source.find(parse_release(cloud(9)), Progress()) is None
    assert [str(release) for release in source.offered(Progress())] == [cloud(8)]


def test_lists_that_are_too_old_are_fetched_again(archive: Archive, tmp_path: Path) -> None:
    archive.kernel(7, "cloud-amd64", "6.12.7-1")
    archive.publish()
    source = source_of(archive, tmp_path / "cache")
    assert source.find(parse_release(cloud(8)), Progress()) is None
    archive.kernel(8, "cloud-amd64", "6.12.8-1")
    archive.publish()
    assert source.find(parse_release(cloud(8)), Progress()) is None  # the lists are young: nobody is asked
    stamp = tmp_path / "cache/apt/test/updated"
    then = time.time() - 7200
    os.utime(stamp, (then, then))
    assert source.find(parse_release(cloud(8)), Progress()) is not None


def test_a_download_that_breaks_off_goes_on_where_it_was(archive: Archive, tmp_path: Path) -> None:
    archive.kernel(7, "cloud-amd64", "6.12.7-1")
    archive.publish()
    source = source_of(archive, tmp_path / "cache")
    files = source.find(parse_release(cloud(7)), Progress())
    assert files is not None
    name = files.debug.file
    archive.cut[name] = 200_000
    with pytest.raises(DownloadFailedError) as caught:
        source.download(files, Progress())
    assert name in caught.value.message
    assert caught.value.hint
    assert not files.path(files.debug).exists()
    archive.cut.clear()
    archive.asked.clear()
    source.download(files, Progress())
    assert hashlib.sha256(files.path(files.debug).read_bytes()).hexdigest() == files.debug.sha256
    ((path, range_),) = archive.asked
    assert urllib.parse.unquote(path).endswith(name)
    assert range_ is not None, "the download began anew"
    assert int(range_.removeprefix("bytes=").removesuffix("-")) > 100_000


def test_another_content_is_refused_and_not_kept(archive: Archive, tmp_path: Path) -> None:
    archive.kernel(7, "cloud-amd64", "6.12.7-1")
    archive.publish()
    source = source_of(archive, tmp_path / "cache")
    files = source.find(parse_release(cloud(7)), Progress())
    assert files is not None
    right = (archive.directory / files.headers.file).read_bytes()
    for wrong in (right[:-1] + bytes([right[-1] ^ 1]), right + b"more", right[:-10], b"<html>"):
        archive.replaced[files.headers.file] = wrong
        with pytest.raises(DownloadFailedError) as caught:
            source.download(files, Progress())
        assert files.headers.file in caught.value.message
        assert not files.path(files.headers).exists()
    archive.replaced.clear()
    source.download(files, Progress())  # nothing of the wrong ones stands in the way
    assert files.path(files.headers).read_bytes() == right


def test_an_archive_that_is_not_signed_is_refused(archive: Archive, tmp_path: Path) -> None:
    archive.kernel(7, "cloud-amd64", "6.12.7-1")
    archive.publish()
    source = source_of(archive, tmp_path / "cache", options="")
    with pytest.raises(DownloadFailedError) as caught:
        source.find(parse_release(cloud(7)), Progress())
    assert "signed" in caught.value.message
    assert not (tmp_path / "cache/apt/test/updated").exists()


def test_an_archive_that_is_not_there(archive: Archive, tmp_path: Path) -> None:
    source = source_of(archive, tmp_path / "cache")
    with pytest.raises(DownloadFailedError):  # there are no lists
        source.find(parse_release(cloud(7)), Progress())
    archive.kernel(7, "cloud-amd64", "6.12.7-1")
    archive.publish()
    assert source.find(parse_release(cloud(7)), Progress()) is not None
