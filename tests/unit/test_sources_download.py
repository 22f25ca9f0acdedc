# SPDX-License-Identifier: GPL-2.0-or-later
"""Downloads against a loopback mirror and its faults."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import pytest

from elivepatch.errors import (
    DiskFullError,
    DownloadFailedError,
    InvalidSettingError,
    KernelUnavailableError,
    SourceRejectedError,
)
from elivepatch.progress import Event, Progress
from elivepatch.sources import download as module
from elivepatch.sources.download import check_file, download
from upstream_mirror import Mirror

DATA = random.Random(4).randbytes(400_000)
MORE = random.Random(5).randbytes(400_000)
DIGESTS = {name: hashlib.new(name, DATA).hexdigest() for name in ("sha256", "sha512", "blake2b")}
LIMIT = 10_000_000


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITS", (0.0, 0.0, 0.0))


class Case(NamedTuple):
    mirror: Mirror
    target: Path

    @property
    def url(self) -> str:
        return f"{self.mirror.address}/pub/file.xz"

    def get(self, url: str | list[str] | None = None, progress: Progress | None = None, **words: object) -> None:
        arguments: dict[str, object] = {"digests": DIGESTS, "limit_bytes": LIMIT, **words}
        download(url or self.url, self.target, progress=progress or Progress(), **arguments)  # pyright: ignore[reportArgumentType]  # the test's words

    def leftovers(self) -> list[str]:
        return sorted(path.name for path in self.target.parent.iterdir() if not path.name.endswith(".lock"))


@pytest.fixture
def case(tmp_path: Path) -> Generator[Case]:
    (tmp_path / "pub").mkdir()
    (tmp_path / "pub/file.xz").write_bytes(DATA)
    mirror = Mirror(tmp_path)
    yield Case(mirror, tmp_path / "cache/kept.xz")
    mirror.close()


def test_a_file_arrives_whole_and_is_not_asked_for_again(case: Case) -> None:
    steps: list[Event] = []
    case.get(progress=Progress(steps.append), size=len(DATA), what="file")
    assert case.target.read_bytes() == DATA
    assert case.leftovers() == ["kept.xz"]
    assert steps[0].message == "downloading file, 0.0 of 0.4 MB"
    case.get()
    assert len(case.mirror.asked) == 1


def test_a_kept_file_that_was_damaged_is_downloaded_again(case: Case) -> None:
    case.target.parent.mkdir()
    case.target.write_bytes(DATA[:-1] + b"?")
    case.get()
    assert case.target.read_bytes() == DATA


@pytest.mark.parametrize("lengthless", [False, True])
def test_a_connection_that_breaks_is_taken_up_where_it_broke(case: Case, *, lengthless: bool) -> None:
    case.mirror.cut["file.xz"] = 150_000
    if lengthless:
        case.mirror.lengthless.add("file.xz")
    case.get(size=len(DATA))
    assert case.target.read_bytes() == DATA
    assert case.mirror.ranges("file.xz") == [None, "bytes=150000-", "bytes=300000-"]


def test_what_arrived_is_kept_for_the_next_call(case: Case) -> None:
    case.target.parent.mkdir()
    partial = case.target.with_name("kept.xz.part")
    partial.write_bytes(DATA[:123_456])
    case.mirror.status["file.xz"] = [503] * 4
    with pytest.raises(DownloadFailedError, match="503") as caught:
        case.get()
    assert caught.value.hint
    assert partial.stat().st_size == 123_456
    case.get()
    assert case.target.read_bytes() == DATA
    assert case.mirror.ranges("file.xz")[-1] == "bytes=123456-"


def test_a_partial_file_that_was_whole_needs_no_more(case: Case) -> None:
    case.target.parent.mkdir()
    case.target.with_name("kept.xz.part").write_bytes(DATA)
    case.get()
    assert case.target.read_bytes() == DATA
    case.target.unlink()
    case.target.with_name("kept.xz.part").write_bytes(DATA + b"more")
    case.get()
    assert case.target.read_bytes() == DATA


def test_a_first_piece_of_another_file_does_no_harm(case: Case) -> None:
    case.target.parent.mkdir()
    case.target.with_name("kept.xz.part").write_bytes(MORE[:200_000])
    case.get()
    assert case.target.read_bytes() == DATA


@pytest.mark.parametrize("digests", [{}, DIGESTS])
def test_a_file_that_changed_on_the_server_is_begun_anew(case: Case, digests: dict[str, str]) -> None:
    case.mirror.replaced["file.xz"] = MORE
    case.mirror.cut["file.xz"] = 100_000
    case.mirror.status["file.xz"] = [0, 503, 503, 503, 503]
    with pytest.raises(DownloadFailedError, match="503"):
        case.get(digests=digests)
    assert case.target.with_name("kept.xz.part").stat().st_size == 100_000
    case.mirror.replaced.clear()
    case.mirror.cut.clear()
    case.get(digests=digests)
    assert case.target.read_bytes() == DATA
    assert case.mirror.ranges("file.xz")[-1] == "bytes=100000-", "If-Range is not used"
    assert len(case.mirror.asked) == 6


def test_without_ranges_and_without_digests_nothing_is_pieced_together(case: Case) -> None:
    case.target.parent.mkdir()
    case.target.with_name("kept.xz.part").write_bytes(MORE[:200_000])
    case.mirror.plain.add("file.xz")
    case.get(digests={})
    assert case.target.read_bytes() == DATA
    assert case.mirror.ranges("file.xz") == [None]


@pytest.mark.parametrize("name", ["sha256", "sha512", "blake2b"])
def test_a_wrong_digest_is_named_and_nothing_stays(case: Case, name: str) -> None:
    case.mirror.replaced["file.xz"] = MORE
    with pytest.raises(SourceRejectedError) as caught:
        case.get(digests={name: DIGESTS[name]}, what="linux.tar.xz")
    for word in ("linux.tar.xz", case.url, name, DIGESTS[name], hashlib.new(name, MORE).hexdigest()):
        assert word in caught.value.message
    assert case.leftovers() == []
    assert len(case.mirror.asked) == 1


def test_a_wrong_size_is_rejected(case: Case) -> None:
    for size in (len(DATA) - 1, len(DATA) + 1):
        with pytest.raises(SourceRejectedError, match=str(size)):
            case.get(size=size)
    with pytest.raises(SourceRejectedError, match="at most 1000 bytes"):
        case.get(limit_bytes=1000, digests={})
    case.mirror.lengthless.add("file.xz")
    with pytest.raises(SourceRejectedError, match="at most 200000 bytes"):
        case.get(limit_bytes=200_000, digests={})
    assert case.leftovers() == []


def test_a_file_that_is_nowhere_is_what_the_caller_says(case: Case) -> None:
    nowhere = [f"{case.mirror.address}/none/file.xz", f"{case.mirror.address}/gone/file.xz"]
    with pytest.raises(DownloadFailedError, match="404"):
        case.get(nowhere)
    with pytest.raises(KernelUnavailableError, match=r"no 6\.12\.999"):
        case.get(nowhere, missing=KernelUnavailableError("there is no 6.12.999"))
    case.mirror.status["ill.xz"] = [500] * 9
    with pytest.raises(DownloadFailedError, match="500"):  # one of them is only ill: the file may be there
        case.get([*nowhere, f"{case.mirror.address}/ill.xz"], missing=KernelUnavailableError("there is no 6.12.999"))


def test_the_next_address_is_asked_where_one_fails(case: Case) -> None:
    (case.mirror.directory / "bad").mkdir()
    (case.mirror.directory / "bad/file.xz").write_bytes(MORE)
    base = case.mirror.address
    case.get(["http://127.0.0.1:1/file.xz", f"{base}/none/file.xz", f"{base}/bad/file.xz", case.url])
    assert case.target.read_bytes() == DATA


def test_a_server_that_is_not_there_or_refuses(case: Case) -> None:
    with pytest.raises(DownloadFailedError, match=r"127\.0\.0\.1:1"):
        case.get("http://127.0.0.1:1/file.xz")
    case.mirror.status["file.xz"] = [403]
    with pytest.raises(DownloadFailedError, match="403"):
        case.get()
    assert len(case.mirror.asked) == 1, "a refusal is asked for again"
    case.mirror.status["file.xz"] = [503, 429]
    case.get()
    assert case.target.read_bytes() == DATA


def test_redirects_lead_to_http_only(case: Case, tmp_path: Path) -> None:
    case.mirror.redirect["moved.xz"] = "/pub/file.xz"
    case.get(f"{case.mirror.address}/moved.xz")
    assert case.target.read_bytes() == DATA
    case.target.unlink()
    for place in (f"file://{tmp_path}/pub/file.xz", "ftp://127.0.0.1/file.xz", "//", "gopher:x", "https:///x"):
        case.mirror.redirect["moved.xz"] = place
        with pytest.raises(DownloadFailedError):
            case.get(f"{case.mirror.address}/moved.xz")
    case.mirror.redirect["moved.xz"] = "/moved.xz"
    with pytest.raises(DownloadFailedError, match="more than 5 times"):
        case.get(f"{case.mirror.address}/moved.xz")
    assert case.leftovers() == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "/etc/passwd", "ftp://h/x", "http://", "http://h/a b", "h"])
def test_what_is_no_address(case: Case, url: str) -> None:
    with pytest.raises(InvalidSettingError):
        case.get(url)


def test_two_at_once_make_one_download(case: Case) -> None:
    case.mirror.slow["file.xz"] = 0.02
    threads = [threading.Thread(target=case.get) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert case.target.read_bytes() == DATA
    assert case.mirror.ranges("file.xz") == [None]


def test_a_full_disk(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(case.mirror.directory)
    usage = usage._replace(free=module.RESERVE_BYTES + 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
    with pytest.raises(DiskFullError, match=r"kept\.xz needs"):
        case.get()
    assert case.leftovers() == []


def test_a_download_that_was_killed_goes_on(case: Case) -> None:
    case.mirror.slow["file.xz"] = 0.1
    program = (
        "import sys; from pathlib import Path; from elivepatch.progress import Progress\n"
        "from elivepatch.sources.download import download\n"
        f"download(sys.argv[1], Path(sys.argv[2]), digests={DIGESTS!r}, limit_bytes={LIMIT}, progress=Progress())"
    )
    child = subprocess.Popen([sys.executable, "-c", program, case.url, str(case.target)])
    partial = case.target.with_name("kept.xz.part")
    deadline = time.monotonic() + 20
    while not (partial.exists() and partial.stat().st_size > 100_000):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not case.target.exists()
    here = partial.stat().st_size
    assert 100_000 < here < len(DATA)
    case.mirror.slow.clear()
    case.get()
    assert case.target.read_bytes() == DATA
    assert case.mirror.ranges("file.xz")[-1] == f"bytes={here}-"


def test_a_file_is_checked_by_all_its_digests(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(DATA)
    check_file(path, "x", {name: digest.upper() for name, digest in DIGESTS.items()}, len(DATA))
    with pytest.raises(SourceRejectedError, match="sha512"):
        check_file(path, "x", {**DIGESTS, "sha512": "0" * 128})
    with pytest.raises(ValueError, match="not a digest"):
        check_file(path, "x", {"sha256": "12"})
    with pytest.raises(ValueError, match="not a digest"):
        check_file(path, "x", {"md5": "0" * 32})
