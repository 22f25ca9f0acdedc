# SPDX-License-Identifier: GPL-2.0-or-later
"""The client against servers, proxies and networks that are broken, or mean it ill: nothing is loaded, no traceback."""

from __future__ import annotations

import contextlib
import gzip
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from client_fakes import BUILD_ID, NAME, RELEASE, elf_module, fake_host
from client_rig import Rig
from client_server import Server, ServerHandler, done_report
from elf_builder import Part, elf
from elivepatch.client import connection
from elivepatch.kernel.running import livepatches

pytestmark = pytest.mark.integration
#: An address that is on no network (RFC 5737), so that a proxy is asked for it.
FAR = "http://192.0.2.1:9"


class _QuietServer(ThreadingHTTPServer):
    """Who breaks off is no error of the server's."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@contextmanager
def misbehaving(
    tmp: Path, script: Server, *, tls: Path | None = None, **methods: Callable[..., None]
) -> Generator[Rig]:
    """A client with a server, some methods of whose handler are others; ``tls`` is a file of key and certificate."""
    handler = type("Handler", (ServerHandler,), {"script": script, **methods})
    server = _QuietServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    host, kernel = fake_host(tmp, user=0)
    try:
        yield Rig(script, host, kernel, tmp)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answering(place: str, answer: bytes) -> Callable[[ServerHandler], None]:
    """A handler's GET that sends these bytes at the path that ends so."""

    def get(self: ServerHandler) -> None:
        if self.path.endswith(place):
            self.wfile.write(answer)
            self.close_connection = True
        else:
            ServerHandler.do_GET(self)

    return get


def telling(**fields: Any) -> Callable[..., None]:
    """A handler's JSON whose build has other fields."""

    def send(self: ServerHandler, status: int, data: dict[str, Any], headers: dict[str, str]) -> None:
        more = fields if self.command == "GET" and "id" in data else {}
        ServerHandler._json(self, status, {**data, **more}, headers)

    return send


def streaming(raw: bytes) -> Callable[[ServerHandler], None]:
    """A handler's events: these bytes, and the build has ended once they were asked for a second time."""

    def send(self: ServerHandler) -> None:
        asked = sum(path.endswith("/events") for path in self.script.paths("GET"))
        self.script.told = 99 if asked > 1 else 0
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._chunk(raw)
        self._chunk(b"")

    return send


def nothing_loaded(rig: Rig, result: Result) -> None:
    assert result.exit_code not in {0, 1}, result.output
    assert livepatches(rig.host.root) == ()
    assert "load" not in " ".join(rig.kernel.log)


@pytest.mark.parametrize("build_id", ["b\n1", "b-1\x00", "../../../b-1", "b-1?x#y", "b-2", "\x1b[2J"])
def test_a_build_that_was_not_asked_for_is_not_taken(tmp_path: Path, build_id: str) -> None:
    with misbehaving(tmp_path, Server(), _json=telling(id=build_id)) as rig:
        result = rig.run()
        nothing_loaded(rig, result)
        assert "was asked for the build b-1 and tells of" in result.stderr
        assert not any(path.endswith("/module") for path in rig.server.paths("GET"))
        assert "\x1b" not in result.output


@pytest.mark.parametrize("change", [{"status": "refused"}, {"error": "does-not-apply"}, {"exit_status": 3}])
def test_a_report_that_says_the_opposite_loads_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    with misbehaving(tmp_path, Server(report=done_report(elf_module(), **change))) as rig:
        result = rig.run()
        nothing_loaded(rig, result)
        assert "its report says that the build ended as" in result.stderr


def _twice_packed() -> bytes:
    return gzip.compress(gzip.compress(bytes(64 << 20)))


@pytest.mark.parametrize("place", ["/b-1", "/module", "/events"])
def test_what_is_compressed_is_not_unpacked(tmp_path: Path, place: str) -> None:
    packed = _twice_packed()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip, gzip\r\n"
    answer = head + b"Content-Length: %d\r\n\r\n" % len(packed) + packed
    with misbehaving(tmp_path, Server(), do_GET=answering(place, answer)) as rig:
        result = rig.run(env={"ELIVEPATCH_BUILD_TIMEOUT": "30"})
        nothing_loaded(rig, result)
        assert "'gzip, gzip', which was not asked for" in result.stderr
        assert {seen.headers["accept-encoding"] for seen in rig.server.seen} == {"identity"}


def test_an_error_that_cannot_be_unpacked_is_an_error_of_ours(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 404 No\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd"
    with misbehaving(tmp_path, Server(), do_GET=answering("/b-1", answer)) as rig:
        nothing_loaded(rig, rig.run())


@pytest.mark.parametrize("mark", ["\u00fc\u2603", "\x01\x0b", "9" * 900_000])
def test_marks_of_events_that_cannot_be_named_are_not(tmp_path: Path, mark: str) -> None:
    event = f'id: {mark}\ndata: {{"kind": "step", "message": "s"}}\n\n'.encode()
    with misbehaving(tmp_path, Server(), _events=streaming(event)) as rig:
        result = rig.run()
        assert result.exit_code == 0, result.output
        assert not any("last-event-id" in seen.headers for seen in rig.server.seen)


@pytest.mark.parametrize("fraction", ["NaN", "1e999", "-4", "1e300"])
def test_how_far_it_is_may_be_nonsense(tmp_path: Path, fraction: str) -> None:
    event = f'data: {{"kind": "step", "message": "s", "fraction": {fraction}}}\n\n'.encode()
    with misbehaving(tmp_path, Server(), _events=streaming(event)) as rig:
        result = rig.run()
        assert result.exit_code == 0, result.output
        assert "server: s\n" in result.stderr


@pytest.mark.parametrize("status", [0, 7, 256, 512, -1, 10**30])
def test_a_refusal_never_ends_well(tmp_path: Path, status: int) -> None:
    report = {"status": "refused", "key": "ab" * 32, "exit_status": status, "error": "x", "message": "no"}
    with misbehaving(tmp_path, Server(status="refused", report=report)) as rig:
        assert rig.run().exit_code == 1


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_not_passed_on(tmp_path: Path, number: float) -> None:
    with misbehaving(tmp_path, Server(), _json=telling(created=number)) as rig:
        result = rig.run("--json")
        nothing_loaded(rig, result)
        assert json.loads(result.stdout)["error"]["code"] == "server-unavailable"


def test_json_does_not_play_with_the_terminal(tmp_path: Path) -> None:
    compiler = "\x9b2J\u202e\x7f\U000e0001 gcc \u2603"
    kernel = {"release": RELEASE, "build_id": BUILD_ID, "compiler": compiler}
    with misbehaving(tmp_path, Server(report=done_report(elf_module(), kernel=kernel))) as rig:
        result = rig.run("--json")
        assert json.loads(result.stdout)["build"]["report"]["kernel"]["compiler"] == compiler
        assert all(char.isprintable() or char == "\n" for char in result.stdout)
        assert "gcc \u2603" in result.stdout


def test_an_answer_that_drips_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_BODY_SECONDS", -1000.0)  # the clock of the host goes on only where it waits
    with misbehaving(tmp_path, Server()) as rig:
        result = rig.run()
        nothing_loaded(rig, result)
        assert "sends its answer too slowly" in result.stderr


@pytest.mark.parametrize("tls", [False, True])
def test_an_answer_whose_head_drips_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: bool) -> None:
    monkeypatch.setattr(connection, "_BEGIN_FACTOR", 0.005)  # of 60 s
    both = _certificate(tmp_path / "cert.pem", "IP:127.0.0.1")

    def drip(self: ServerHandler) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            for _ in range(400):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)

    with misbehaving(tmp_path, Server(), tls=both if tls else None, do_GET=drip) as rig:
        if tls:
            rig.server.url = rig.server.url.replace("http:", "https:")
        began = time.monotonic()
        result = rig.run(env={"ELIVEPATCH_CA_CERTIFICATE": str(tmp_path / "cert.pem")})
        nothing_loaded(rig, result)
        assert "cannot be reached" in result.stderr
        assert time.monotonic() - began < 18 * 0.65 + 5  # events and build, nine times


@pytest.mark.parametrize(
    ("variable", "proxy"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1"),
        ("HTTP_PROXY", "foo://me:secret@bar"),
        ("HTTP_PROXY", "http://me:secret@[::1"),
        ("http_proxy", "http://me:sec:ret@127.0.0.1:x"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_a_setting_that_is_wrong(tmp_path: Path, variable: str, proxy: str) -> None:
    with misbehaving(tmp_path, Server()) as rig:
        result = rig.run("-u", FAR, env={variable: proxy})
        assert result.exit_code == 2
        assert f"The proxy that the environment names ({variable}) cannot be used." in result.stderr
        assert "sec" not in result.stderr


def test_a_proxy_that_is_away_is_named(tmp_path: Path) -> None:
    with misbehaving(tmp_path, Server()) as rig:
        result = rig.run("-u", FAR, env={"HTTP_PROXY": "http://me:secret@127.0.0.1:1"})
        assert result.exit_code == 6
        assert "The environment names a proxy (HTTP_PROXY): look there too." in result.stderr
        assert "secret" not in result.output


@pytest.mark.parametrize("name", ["a" * 64 + ".example", "a..example", "\u00fc" * 60 + ".example", "."])
def test_names_that_no_dns_has(tmp_path: Path, name: str) -> None:
    with misbehaving(tmp_path, Server()) as rig:
        result = rig.run("-u", f"http://{name}")
        assert result.exit_code == 2
        assert "is not the address of a server" in result.stderr


def _certificate(place: Path, name: str) -> Path:
    argv = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=x",
    ]
    key = place.with_suffix(".key")
    argv += ["-addext", f"subjectAltName={name}", "-keyout", str(key), "-out", str(place)]
    subprocess.run(argv, check=True, capture_output=True)
    both = place.with_suffix(".both")
    both.write_bytes(key.read_bytes() + place.read_bytes())
    return both


@pytest.mark.parametrize(
    ("name", "trusted", "hint"),
    [
        ("IP:127.0.0.1", False, "Its certificate is not trusted here: name that of its authority"),
        ("DNS:other.example", True, "Its certificate is for another name"),
        (None, True, "What answers there does not speak TLS: look at the port"),
    ],
)
def test_what_is_wrong_with_tls_is_said(tmp_path: Path, name: str | None, trusted: bool, hint: str) -> None:
    both = _certificate(tmp_path / "cert.pem", name or "IP:127.0.0.1")
    env = {"ELIVEPATCH_CA_CERTIFICATE": str(tmp_path / "cert.pem")} if trusted else {}
    with misbehaving(tmp_path, Server(), tls=both if name else None) as rig:
        rig.server.url = rig.server.url.replace("http:", "https:")
        result = rig.run(env=env)
        nothing_loaded(rig, result)
        assert f"hint: {hint}" in result.stderr
        assert rig.server.seen == []


def test_a_certificate_that_is_named_is_trusted(tmp_path: Path) -> None:
    both = _certificate(tmp_path / "cert.pem", "IP:127.0.0.1")
    with misbehaving(tmp_path, Server(), tls=both) as rig:
        rig.server.url = rig.server.url.replace("http:", "https:")
        result = rig.run(env={"ELIVEPATCH_CA_CERTIFICATE": str(tmp_path / "cert.pem")})
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("case", ["another name", "two of .modinfo", "two of itself"])
def test_a_module_that_the_kernel_would_call_something_else_is_not_loaded(tmp_path: Path, case: str) -> None:
    info = f"name={NAME}\0livepatch=Y\0vermagic={RELEASE} SMP mod_unload \0".encode()
    itself = bytes(24) + (b"ext4" if case == "another name" else NAME.encode()) + bytes(600)
    parts = [Part(".modinfo", info), Part(".gnu.linkonce.this_module", itself)]
    if case.startswith("two"):
        parts.append(parts[0 if "modinfo" in case else 1])
    module = elf(parts, [])
    with misbehaving(tmp_path, Server(module=module)) as rig:
        result = rig.run()
        nothing_loaded(rig, result)
        words = "the kernel would call it something else" if case == "another name" else "it has more than one section"
        assert words in result.stderr


def test_a_module_that_says_who_it_is_is_loaded(tmp_path: Path) -> None:
    info = f"name={NAME}\0livepatch=Y\0vermagic={RELEASE} SMP mod_unload \0".encode()
    itself = bytes(24) + NAME.encode() + bytes(600)
    module = elf([Part(".modinfo", info), Part(".gnu.linkonce.this_module", itself)], [])
    with misbehaving(tmp_path, Server(module=module)) as rig:
        result = rig.run()
        assert result.exit_code == 0, result.output


def test_a_refusal_of_any_length_leaves_a_journal_that_can_be_read(tmp_path: Path) -> None:
    report = {"status": "refused", "key": "k" * 100, "exit_status": 3, "error": "x", "message": "no\x1b[2J" * 1_000_000}
    with misbehaving(tmp_path, Server(status="refused", report=report)) as rig:
        assert rig.run().exit_code == 3
        assert json.loads(rig.run("status", "--json", patch=False).stdout)["problems"] == []
        assert rig.steps() == ["requested", "failed"]


@pytest.mark.parametrize(
    "more",
    [
        [{"object": "vmlinux", "function": f"f{n}", "kind": "new"} for n in range(60_000)],
        [{"object": "vmlinux", "function": "f" * 5_000_000, "kind": "new"}],
    ],
)
def test_what_the_journal_could_not_keep_is_not_loaded(tmp_path: Path, more: list[dict[str, str]]) -> None:
    report = done_report(elf_module())
    report["changed"] += more
    with misbehaving(tmp_path, Server(report=report)) as rig:
        result = rig.run()
        nothing_loaded(rig, result)
        assert "its report names more than 4096 functions" in result.stderr
        assert json.loads(rig.run("status", "--json", patch=False).stdout)["problems"] == []
