# SPDX-License-Identifier: GPL-2.0-or-later
"""The client sends the image of the host's own kernel: to a server made of scripts, and to the real one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from server_support import get
from server_support import serving as really_serving

import elivepatch.client.image
from client_fakes import BUILD_ID, NAME, RELEASE, built_kernel, fake_host, put
from client_rig import PATCH, Rig
from client_server import Server, serving
from elivepatch.client.connection import Connection
from elivepatch.client.host import Host
from elivepatch.kernel.archive_reader import read_archive
from elivepatch.kernel.layout import SymbolLayout
from elivepatch.kernel.running import livepatch

pytestmark = pytest.mark.integration

SOURCE = ("--kernel", "kernel.org:6.12.117")
KALLSYMS = "".join(
    f"{0xFFFFFFFF81000000 + at:x} T {name}\n" for at, name in ((0, "_stext"), (16, "meminfo_proc_show"), (64, "_etext"))
)


@pytest.fixture
def rig(tmp_path: Path) -> Generator[Rig]:
    host, kernel = fake_host(tmp_path, user=0)
    with serving(Server()) as server:
        yield Rig(server, host, kernel, tmp_path)


@pytest.fixture
def build(rig: Rig) -> Path:
    return built_kernel(rig.host.root)


def requests(rig: Rig) -> list[dict[str, Any]]:
    return [json.loads(seen.parts()[0][2]) for seen in rig.server.seen if seen.method == "POST"]


def asked(rig: Rig) -> list[str]:
    """What was asked of images, and for builds, in order."""
    return [seen.method for seen in rig.server.seen if "/images/" in seen.path or seen.method == "POST"]


def test_the_image_is_sent_once_and_then_only_named(rig: Rig, build: Path, tmp_path: Path) -> None:
    result = rig.run(*SOURCE)
    assert result.exit_code == 0, result.output
    assert livepatch(NAME, rig.host.root)
    assert f"collecting the kernel's image from {build}" in result.stderr
    assert asked(rig) == ["GET", "PUT", "POST"]
    sent = next(seen for seen in rig.server.seen if seen.method == "PUT")
    digest = hashlib.sha256(sent.body).hexdigest()
    assert sent.path.endswith(f"/images/{digest}")
    assert requests(rig)[0]["image"] == digest
    (tmp_path / "archive").write_bytes(sent.body)
    (tmp_path / "out").mkdir()
    assert read_archive(tmp_path / "archive", tmp_path / "out").facts.build_id == BUILD_ID
    assert json.loads((rig.state / "image.json").read_text()) == {"build_id": BUILD_ID, "sha256": digest}
    assert {path.name for path in rig.state.iterdir()} == {"image.json", "journal", "lock", "modules", "patches"}

    rig.server.seen.clear()
    result = rig.run(*SOURCE, "--drop-earlier")
    assert result.exit_code == 0, result.output
    assert "collecting" not in result.stderr
    assert asked(rig) == ["GET", "POST"]
    assert requests(rig)[0]["image"] == digest


def test_what_the_server_has_no_more_is_sent_again(rig: Rig, build: Path) -> None:
    rig.run(*SOURCE)
    rig.server.images.clear()
    rig.server.seen.clear()
    assert rig.run(*SOURCE, "--drop-earlier").exit_code == 0
    assert asked(rig) == ["GET", "GET", "PUT", "POST"]


def test_an_image_that_goes_while_the_build_is_asked_for_is_sent_again(
    rig: Rig, build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = Connection.submit

    def and_gone(*arguments: Any) -> str:
        monkeypatch.setattr(Connection, "submit", submit)
        rig.server.images.clear()
        return submit(*arguments)

    monkeypatch.setattr(Connection, "submit", and_gone)
    result = rig.run(*SOURCE)
    assert result.exit_code == 0, result.output
    assert "the server has the image no more" in result.stderr
    assert asked(rig) == ["GET", "PUT", "POST", "GET", "GET", "PUT", "POST"]


def test_a_build_that_lost_its_image_is_asked_for_again(rig: Rig, build: Path) -> None:
    lost = {"status": "failed", "key": "ab" * 32, "exit_status": 2, "error": "not-found", "message": "Gone."}
    rig.server.reports = [lost]
    result = rig.run(*SOURCE)
    assert result.exit_code == 0, result.output
    assert asked(rig) == ["GET", "PUT", "POST", "GET", "POST"]


def test_another_kernels_build_directory_is_a_warning(rig: Rig) -> None:
    built_kernel(rig.host.root, "cd" * 20)
    result = rig.run("--json", *SOURCE)
    assert result.exit_code == 0, result.output
    assert any("no image is sent" in text and "cd" * 20 in text for text in json.loads(result.stdout)["warnings"])
    assert asked(rig) == ["POST"]
    assert "image" not in requests(rig)[0]


def test_a_cleaned_build_directory_is_a_warning(rig: Rig, build: Path) -> None:
    (build / "vmlinux").unlink()
    put(rig.host.root, {f"lib/modules/{RELEASE}/modules.dep": ""})
    (rig.host.root / f"lib/modules/{RELEASE}/build").symlink_to("/usr/src/linux")
    result = rig.run(*SOURCE)
    assert result.exit_code == 0, result.output
    assert "warning: no image is sent: /usr/src/linux holds no vmlinux any more" in result.stderr
    named = rig.run(*SOURCE, "--drop-earlier", "--build-directory", build)
    assert named.exit_code == 0, named.output
    assert f"warning: no image is sent: {build} holds no vmlinux" in named.stderr
    assert set(asked(rig)) == {"POST"}


def test_a_published_kernel_sends_none_and_a_host_without_a_build_says_so(rig: Rig) -> None:
    result = rig.run(*SOURCE)
    assert "image: no build directory of this kernel" in result.stderr
    built_kernel(rig.host.root)
    rig.server.seen.clear()
    assert rig.run("--drop-earlier").exit_code == 0
    assert asked(rig) == ["POST"]


def test_the_image_is_left_out_on_request(rig: Rig, build: Path) -> None:
    rig.run(*SOURCE, "--no-image")
    rig.run(*SOURCE, "--drop-earlier", env={"ELIVEPATCH_SEND_IMAGE": "false"})
    assert asked(rig) == ["POST", "POST"]


def test_fetching_without_root_needs_no_state(rig: Rig, build: Path) -> None:
    rig.host = Host(root=rig.host.root, calls=rig.kernel, clock=rig.kernel, user=1000)
    (rig.tmp / "file").write_text("")
    arguments = (*SOURCE, "--no-load", "-o", rig.tmp / "out.ko")
    result = rig.run(*arguments, env={"ELIVEPATCH_STATE_DIR": str(rig.tmp / "file/state")})
    assert result.exit_code == 0, result.output
    assert asked(rig) == ["GET", "PUT", "POST"]
    assert (rig.tmp / "out.ko").read_bytes() == rig.server.module


def test_an_image_that_is_not_taken_is_a_warning_and_a_busy_server_is_asked_again(rig: Rig, build: Path) -> None:
    rig.server.image_problems = [(503, "busy"), (422, "invalid-input")]
    result = rig.run(*SOURCE)
    assert result.exit_code == 0, result.output
    assert "warning: no image is sent: The image is not taken. Hm." in result.stderr
    assert asked(rig) == ["GET", "PUT", "PUT", "POST"]
    assert not (rig.state / "image.json").exists()


def test_a_server_that_cannot_take_it_now_ends_the_request(rig: Rig, build: Path) -> None:
    rig.server.image_problems = [(503, "busy")] * 3
    assert rig.run(*SOURCE).exit_code == 6
    assert asked(rig) == ["GET", "PUT", "PUT", "PUT"]
    assert rig.steps() == ["requested", "failed"]


def test_the_sending_has_a_timeout_of_its_own(rig: Rig, build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elivepatch.client.connection._CHUNK_BYTES", 64)
    monkeypatch.setattr(rig.kernel, "now", iter(range(0, 1 << 40, 10)).__next__)
    result = rig.run(*SOURCE, env={"ELIVEPATCH_IMAGE_TIMEOUT": "15"})
    assert result.exit_code == 6
    assert "could not be sent" in result.stderr
    assert "within 15 s" in result.stderr
    assert "POST" not in asked(rig)


# -- the layout


def mismatch(message: str) -> dict[str, Any]:
    found = {"rule": "layout-mismatch", "severity": "error", "message": message}
    return {
        "status": "refused",
        "key": "ab" * 32,
        "exit_status": 4,
        "error": "proof-failed",
        "message": message,
        "diagnosis": [found],
    }


def test_a_layout_that_differs_is_sent_so_that_the_refusal_names_it(rig: Rig) -> None:
    put(rig.host.root, {"proc/kallsyms": KALLSYMS})
    rig.server.reports = [mismatch("its functions lie elsewhere"), mismatch("meminfo_proc_show: 0x30 bytes")]
    result = rig.run(*SOURCE)
    assert result.exit_code == 4
    assert "asking again with this host's, to learn where" in result.stderr
    assert "meminfo_proc_show: 0x30 bytes" in result.stderr
    assert requests(rig)[0] == requests(rig)[1]
    first, second = (seen.parts() for seen in rig.server.seen if seen.method == "POST")
    assert first == second[:-1]
    assert second[-1][0] == "symbols"
    digest = requests(rig)[0]["host"]["symbols_sha256"]
    assert SymbolLayout.unpack(second[-1][2]).digest() == digest


def test_a_layout_that_may_not_be_read_leaves_the_first_refusal(rig: Rig) -> None:
    rig.server.reports = [mismatch("its types differ")]
    result = rig.run(*SOURCE)
    assert result.exit_code == 4
    assert "where it differs is not known" in result.stderr
    assert "its types differ" in result.stderr
    assert asked(rig) == ["POST"]


# -- the subcommand


def test_the_archive_is_written_for_a_build_elsewhere(rig: Rig, build: Path) -> None:
    out = rig.tmp / "kernel.image"
    shown = json.loads(rig.run("image", "--json", "-o", out, patch=False).stdout)
    assert shown["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert (shown["path"], shown["size"], shown["build_id"]) == (str(out), out.stat().st_size, BUILD_ID)
    assert shown["members"] == [".config", "facts.json", "vmlinux"]
    (rig.tmp / "taken").mkdir()
    assert read_archive(out, rig.tmp / "taken").sha256 == shown["sha256"]
    text = rig.run("image", "-o", out, "--build-directory", build, patch=False).stdout
    assert shown["sha256"] in text
    assert "  vmlinux\n" in text


def test_no_archive_is_written_where_there_is_no_build(rig: Rig) -> None:
    out = rig.tmp / "kernel.image"
    out.write_text("old")
    result = rig.run("image", "-o", out, patch=False)
    assert result.exit_code == 6
    assert "--build-directory" in result.stderr
    built_kernel(rig.host.root, "cd" * 20)
    before = sorted(rig.tmp.iterdir())
    assert rig.run("image", "-o", out, patch=False).exit_code == 4
    assert sorted(rig.tmp.iterdir()) == before
    assert out.read_text() == "old"


# -- the real server


def counted(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, calls: list[str]) -> None:
    real: Callable[..., Any] = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, call)


def test_the_real_server_gets_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    counted(monkeypatch, Connection, "send_image", calls)
    counted(monkeypatch, Connection, "submit", calls)
    counted(monkeypatch, elivepatch.client.image, "collect", calls)
    host, kernel = fake_host(tmp_path, user=0)
    built_kernel(host.root)
    put(tmp_path, {"other.patch": PATCH.replace("+b", "+c")})
    with really_serving(tmp_path / "data", cache=str(tmp_path / "cache")) as server:
        script = Server(url=f"http://127.0.0.1:{server.port}")
        rig = Rig(script, host, kernel, tmp_path)
        first = rig.run(*SOURCE)
        assert calls == ["collect", "send_image", "submit"], first.output
        digest = json.loads((rig.state / "image.json").read_text())["sha256"]
        assert get(server, f"/images/{digest}").status_code == 204
        calls.clear()
        second = rig.run(*SOURCE, "-p", tmp_path / "other.patch")
        assert calls == ["submit"], second.output
        assert f"image: the server has it ({digest[:12]})" in second.stderr
        builds = get(server, "/builds").json()["builds"]
        assert [build["status"] for build in builds] == ["done", "done"]
