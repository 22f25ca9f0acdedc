# SPDX-License-Identifier: GPL-2.0-or-later
"""The classic command line of the server: each flag, by its short and its long name, does what it always did."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from elivepatch.errors import InvalidSettingError
from elivepatch.server import cli, self_signed, serve_command, settings
from elivepatch.server.self_signed import with_certificate
from elivepatch.server.settings import Settings, load


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Settings]:
    """The settings with which the server would have served."""
    found: list[Settings] = []
    monkeypatch.setattr(serve_command, "serve_settings", found.append)
    monkeypatch.setattr(settings, "SETTINGS_FILE", tmp_path / "absent.toml")
    for name in [name for name in os.environ if name.startswith("ELIVEPATCH_")]:
        monkeypatch.delenv(name)
    return found


def run(*words: str) -> None:
    done = CliRunner().invoke(cli.cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"host": "127.0.0.1", "port": 5000, "parallel": 2, "debug": False, "tls_certificate": None, "v1": False}),
        (["-j", "7"], {"parallel": 7}),
        (["--jobs", "7"], {"parallel": 7}),
        (["-H", "10.0.0.1"], {"host": "10.0.0.1"}),
        (["--host", "10.0.0.1"], {"host": "10.0.0.1"}),
        (["-P", "8080"], {"port": 8080}),
        (["--port", "8080"], {"port": 8080}),
        (["-T"], {"port": 5000}),
        (["--threaded"], {"port": 5000}),
        (["-d"], {"debug": True}),
        (["--debug"], {"debug": True}),
        (["-C", "adhoc"], {"tls_certificate": Path("adhoc"), "tls_key": None}),
        (["--ssl-cert", "adhoc"], {"tls_certificate": Path("adhoc")}),
        (["-C", "CERT", "-K", "KEY"], {"tls_certificate": "CERT", "tls_key": "KEY"}),
        (["--ssl-cert", "CERT", "--ssl-key", "KEY"], {"tls_certificate": "CERT", "tls_key": "KEY"}),
        (["-j", "3", "-H", "::1", "-P", "1", "-T", "-d"], {"parallel": 3, "host": "::1", "port": 1, "debug": True}),
        (["-P", "8080", "serve"], {"port": 8080}),
        (["serve", "--v1"], {"v1": True}),
    ],
)
def test_each_flag(served: list[Settings], tmp_path: Path, words: list[str], expected: dict[str, Any]) -> None:
    files = {name: tmp_path / name for name in ("CERT", "KEY")}
    for file in files.values():
        file.touch()
    run(*(str(files.get(word, word)) for word in words))
    (found,) = served
    assert {name: getattr(found, name) for name in expected} == {
        name: files.get(value, value) for name, value in expected.items()
    }


def test_flags_count_over_the_environment(served: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELIVEPATCH_PORT", "1")
    monkeypatch.setenv("ELIVEPATCH_V1", "true")
    run("-P", "2")
    run("serve", "--no-v1")
    assert [(one.port, one.v1) for one in served] == [(2, True), (1, False)]


def test_a_key_without_a_certificate_of_its_own() -> None:
    with pytest.raises(InvalidSettingError, match="'tls_key' has no meaning") as caught:
        load(tls_certificate="adhoc", tls_key="/etc/hostname")
    assert caught.value.hint


def _never(_certificate: Path) -> bool:
    return False


def test_the_certificate_is_made_once_and_again_when_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Settings(data=tmp_path, tls_certificate=Path("adhoc"), host="192.0.2.7")
    made = with_certificate(asked)
    assert made.tls_certificate is not None
    assert made.tls_key is not None
    assert made.tls_key.stat().st_mode & 0o777 == 0o600
    assert made.tls_certificate.parent.stat().st_mode & 0o777 == 0o700
    before = made.tls_certificate.read_bytes()
    assert with_certificate(asked).tls_certificate == made.tls_certificate
    assert made.tls_certificate.read_bytes() == before
    assert with_certificate(asked.model_copy(update={"host": "build.example"})).tls_certificate != made.tls_certificate
    monkeypatch.setattr(self_signed, "_is_valid", _never)
    with_certificate(asked)
    assert made.tls_certificate.read_bytes() != before


def test_without_it_nothing_is_made(tmp_path: Path) -> None:
    asked = Settings(data=tmp_path)
    assert with_certificate(asked) is asked
    assert list(tmp_path.iterdir()) == []
