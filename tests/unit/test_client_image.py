# SPDX-License-Identifier: GPL-2.0-or-later
"""When the image of the host's own kernel is sent, and what is remembered of it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from client_fakes import BUILD_ID, built_kernel, fake_host
from elivepatch.client.connection import Connection
from elivepatch.client.host import SystemClock
from elivepatch.client.image import HostImage, is_wanted
from elivepatch.client.output import Output
from elivepatch.client.settings import Settings
from elivepatch.client.state import StateDirectory
from elivepatch.errors import InputTooLargeError, ServerUnavailableError
from elivepatch.kernel.running import running_kernel
from elivepatch.protocol.models import HostFacts, PackageFacts

SOURCE = "kernel.org:6.12.117"


@pytest.mark.parametrize(
    ("settings", "facts", "base", "wanted"),
    [
        ({}, {"distribution": "debian"}, False, False),
        ({"kernel_source": SOURCE}, {"distribution": "debian"}, False, True),
        ({}, {"distribution": "debian"}, True, True),
        ({}, {"distribution": "gentoo"}, False, True),
        ({}, {"package": PackageFacts(name="gentoo-kernel", version="6.12.60")}, False, True),
        ({"build_directory": "/usr/src/linux"}, {}, False, True),
        ({"kernel_source": SOURCE, "send_image": False}, {"distribution": "gentoo"}, True, False),
    ],
)
def test_an_image_is_for_kernels_that_are_not_taken_as_published(
    settings: dict[str, Any], facts: dict[str, Any], base: bool, wanted: bool
) -> None:
    assert is_wanted(Settings(**settings), HostFacts(**facts), base_patches=base) is wanted


@dataclass
class Images:
    """What a server has; ``refusal`` is how it answers what is sent."""

    has: set[str] = field(default_factory=set[str])
    sent: list[str] = field(default_factory=list[str])
    asked: list[str] = field(default_factory=list[str])
    fractions: list[float] = field(default_factory=list[float])
    refusal: Exception | None = None


class Line(Connection):
    """A connection that goes nowhere."""

    def __init__(self, images: Images) -> None:
        super().__init__("http://127.0.0.1:1", SystemClock())
        self.images = images

    def has_image(self, sha256: str) -> bool:
        self.images.asked.append(sha256)
        return sha256 in self.images.has

    def send_image(
        self, archive: BinaryIO, sha256: str, size: int, sent: Callable[[float], None], *, timeout: float
    ) -> None:
        if self.images.refusal:
            raise self.images.refusal
        archive.seek(0)
        data = archive.read()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (size, sha256)
        sent(1.0)
        self.images.sent.append(sha256)
        self.images.has.add(sha256)


@dataclass
class Sender:
    tmp: Path
    images: Images = field(default_factory=Images)
    warnings: list[str] = field(default_factory=list[str])

    @property
    def memory(self) -> Path:
        return self.tmp / "state/image.json"

    def send(self, **settings: Any) -> str | None:
        host, _ = fake_host(self.tmp)
        state = StateDirectory(self.tmp / "state", host.user)
        kernel = running_kernel(host.root)
        image = HostImage(kernel, Settings(**settings), host, Output(), state, self.warnings.append)
        with Line(self.images) as line:
            return image.send(line, None)


@pytest.fixture
def sender(tmp_path: Path) -> Sender:
    fake_host(tmp_path)
    built_kernel(tmp_path / "root")
    return Sender(tmp_path)


def test_the_same_kernel_is_collected_once(sender: Sender) -> None:
    digest = sender.send()
    assert sender.images.sent == [digest]
    (sender.tmp / "root/usr/src/linux/vmlinux").unlink()
    assert sender.send() == digest
    assert sender.images.asked == [digest, digest]
    assert sender.images.sent == [digest]


@pytest.mark.parametrize(
    "kept",
    [
        json.dumps({"build_id": "cd" * 20, "sha256": "0" * 64}),
        json.dumps({"build_id": BUILD_ID, "sha256": "../" + "0" * 61}),
        json.dumps({"build_id": BUILD_ID}),
        "{",
        "[" * 100_000,
    ],
)
def test_what_was_kept_of_another_kernel_or_is_damaged_does_not_count(sender: Sender, kept: str) -> None:
    (sender.tmp / "state").mkdir(mode=0o700)
    sender.memory.write_text(kept)
    sender.images.has.add("0" * 64)
    digest = sender.send()
    assert sender.images.sent == [digest]
    assert json.loads(sender.memory.read_text())["sha256"] == digest


def test_a_build_directory_that_is_named_is_the_one(sender: Sender) -> None:
    named = built_kernel(sender.tmp / "root", "cd" * 20, place="srv/other")
    assert sender.send(build_directory=named) is None
    assert "cd" * 20 in sender.warnings[0]
    assert not sender.memory.exists()


def test_a_refusal_is_a_warning_and_a_server_that_is_away_is_an_error(sender: Sender) -> None:
    sender.images.refusal = InputTooLargeError("It is too large.")
    assert sender.send() is None
    assert sender.warnings[0].startswith("no image is sent: It is too large.")
    sender.images.refusal = ServerUnavailableError("Away.")
    with pytest.raises(ServerUnavailableError):
        sender.send()
    assert list((sender.tmp / "state").iterdir()) == []


def test_nothing_of_the_archive_stays_when_it_is_interrupted(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_directory: Path, _release: str, out: BinaryIO, *_: object, **__: object) -> None:
        assert not isinstance(out, io.BytesIO)
        out.write(b"x" * 100_000)
        raise KeyboardInterrupt

    monkeypatch.setattr("elivepatch.client.image.collect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sender.send()
    assert list((sender.tmp / "state").iterdir()) == []
