# SPDX-License-Identifier: GPL-2.0-or-later
"""The classic command line and its file: every flag and every key, and that later ones count over earlier ones."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner, Result

from client_fakes import RELEASE, VERSION, fake_host
from elivepatch.client import cli as program
from elivepatch.client import settings as client_settings
from elivepatch.client.classic import names_running, read_defaults
from elivepatch.client.cve_mode import CveChoice, CveRun
from elivepatch.client.outcome import Outcome
from elivepatch.client.request import RequestRun
from elivepatch.client.settings import Settings
from elivepatch.errors import NotFoundError
from elivepatch.kernel.running import RunningKernel, running_kernel


@dataclass
class Caller:
    """Calls the program as far as its settings, and keeps them."""

    tmp: Path
    found: list[RequestRun]

    def __call__(self, *words: str, env: dict[str, str] | None = None) -> Result:
        host, _ = fake_host(self.tmp)
        return CliRunner(env=env).invoke(program.cli, words, obj=host, catch_exceptions=False)

    def settings(self, *words: str, env: dict[str, str] | None = None) -> Settings:
        before = len(self.found)
        result = self(*words, env=env)
        assert result.exit_code == 0, result.output
        assert len(self.found) == before + 1, result.output
        return self.found[-1].settings

    def file(self, text: str, name: str = "client.toml") -> Path:
        path = self.tmp / name
        path.write_text(text)
        return path


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Caller:
    caller = Caller(tmp_path, [])

    def run(self: RequestRun) -> Outcome:
        caller.found.append(self)
        return Outcome(status="stored", exit_status=0, kernel=RELEASE)

    monkeypatch.setattr(RequestRun, "run", run)
    return caller


# -- the command line


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["-p", "a.patch"], "patch", (Path("a.patch"),)),
        (["--patch", "a.patch"], "patch", (Path("a.patch"),)),
        (["-k", "config.gz"], "config", Path("config.gz")),
        (["--config", "config"], "config", Path("config")),
        (["-a", "5.1.6"], "kernel_version", "5.1.6"),
        (["--kernel_version", "5.1.6"], "kernel_version", "5.1.6"),
        (["-u", "http://localhost:5000"], "url", "http://localhost:5000"),
        (["--url", "http://localhost:5000/"], "url", "http://localhost:5000"),
        (["-d"], "debug", True),
        (["--debug"], "debug", True),
        (["-d", "debug"], "debug", True),
        (["-d", "DEBUG", "-u", "http://x"], "debug", True),
        (["-d", "10"], "debug", True),
        (["-d", "info"], "debug", False),
        (["-d", "20"], "debug", False),
        (["--debug", "error"], "debug", False),
        (["--debug=debug"], "debug", True),
        (["--debug=info"], "debug", False),
        (["--log_output", "/tmp/elivepatch-log-that-is-not-written"], "log_output", None),
        ([], "debug", False),
    ],
)
def test_each_flag(call: Caller, monkeypatch: pytest.MonkeyPatch, words: list[str], name: str, value: object) -> None:
    logs: list[Path] = []
    monkeypatch.setattr(program.Output, "log_to", lambda _self, path: logs.append(path))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    found = call.settings(*(["-p", "p.patch"] if name != "patch" else []), *words)
    if name == "log_output":
        assert logs == [found.log_output] == [Path(words[1])]
    else:
        assert getattr(found, name) == value


def test_the_readmes_own_example(call: Caller) -> None:
    words = "-p example/2.patch -k example/config_5.1.6 -a 5.1.6 --url http://localhost:5000"
    found = call.settings(*words.split())
    assert found.patch == (Path("example/2.patch"),)
    assert (found.config, found.kernel_version) == (Path("example/config_5.1.6"), "5.1.6")


def test_help_and_version(call: Caller) -> None:
    for words in (["-h"], ["--help"]):
        text = call(*words).output
        for flag in ("-c", "-e", "-p", "-k", "-a", "-l", "-u", "-d", "-v", "--conf_file", "--kernel_version"):
            assert flag in text
    for words in (["-v"], ["--version"], ["-v", "-p", "x.patch"]):
        assert call(*words).output.startswith("elivepatch ")
    assert call.found == []


@pytest.mark.parametrize("words", [["-e"], ["--cve"], ["-e", "-l", "-p", "x"], ["-c", "FILE"], ["-e", "--yes"]])
def test_the_cve_mode_is_asked_for(call: Caller, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    asked: list[CveChoice] = []

    def run(self: CveRun) -> NoReturn:
        asked.append(self.choice)
        raise NotFoundError("This is as far as the test goes.")

    monkeypatch.setattr(CveRun, "run", run)
    file = call.file("[Defaults]\ncve = 1\npatch = x\n")
    result = call(*(str(file) if word == "FILE" else word for word in words))
    assert result.exit_code == 2
    (choice,) = asked
    assert choice == CveChoice(
        "apply", yes="--yes" in words, patches=(Path("x"),) if "x" in words or "-c" in words else ()
    )
    assert call.found == []


@pytest.mark.parametrize("flag", ["-l", "--clear"])
def test_the_record_of_the_cve_mode_is_cleared(call: Caller, tmp_path: Path, flag: str) -> None:
    file = tmp_path / "client.toml"
    file.write_text(f'state_dir = "{tmp_path / "state"}"\n')
    result = call(flag, "-c", str(file))
    assert result.exit_code == 0
    assert "with caution" in result.stderr
    assert (tmp_path / "state/cves-cleared").is_file()
    assert call.found == []


def test_without_anything_to_do_the_way_on_is_named(call: Caller) -> None:
    result = call()
    assert result.exit_code == 2
    assert "hint: Name a patch with -p" in result.stderr


def test_a_level_is_not_taken_for_a_command_and_no_command_for_a_level(call: Caller) -> None:
    assert call("-d", "status").exit_code == 0
    assert call("-d", "info", "status").exit_code == 0
    unknown = call("-d", "nonsense")
    assert unknown.exit_code == 2
    assert "nonsense" in unknown.stderr


@pytest.fixture
def kernel(tmp_path: Path) -> RunningKernel:
    host, _ = fake_host(tmp_path)
    return running_kernel(host.root)


@pytest.mark.parametrize(
    ("release", "typed", "same"),
    [
        ("5.1.6-gentoo", "5.1.6", True),
        ("5.1.6-gentoo-r1", "5.1.6", True),
        ("5.1.6", "5.1.6", True),
        (RELEASE, "6.12.117", True),
        (RELEASE, RELEASE, True),
        ("6.1.0-56-amd64", "6.12.117", True),  # where /proc/version says that Debian's source is 6.12.117-1
        ("5.1.60-gentoo", "5.1.6", False),
        ("5.1.6.1", "5.1.6", False),
        ("5.1.6rc1", "5.1.6", False),
        ("5.1.6-gentoo", "5.1.7", False),
        ("5.1.6-gentoo", "5.1.6-gento", False),
        ("5.1.6-gentoo", "gentoo:gentoo-sources-5.1.6", False),
    ],
)
def test_a_version_typed_by_hand_names_the_running_kernel(
    kernel: RunningKernel, release: str, typed: str, same: bool
) -> None:
    assert "Debian 6.12.117-1" in VERSION
    assert names_running(typed, replace(kernel, release=release)) is same


# -- the classic file


def test_the_file_is_read_as_it_always_was(call: Caller) -> None:
    file = call.file(
        "[DEFAULT]\nserver = build.example\n"
        "[Defaults]\nURL = http://%(server)s:5000\nConfig: /usr/src/.config\nkernel_version = 5.1.6\n"
        "patch = /root/100%%.patch\ndebug = debug\nconf_file = x\nversion = 1\nlog_output =\n"
        "[Other]\nsecret = x\n",
        "elivepatch.conf",
    )
    found = call.settings("-c", str(file))
    assert found == call.settings("--conf_file", str(file)) == call.settings("--conf-file", str(file))
    assert (found.url, found.config, found.kernel_version) == (
        "http://build.example:5000",
        Path("/usr/src/.config"),
        "5.1.6",
    )
    assert (found.patch, found.debug, found.log_output) == ((Path("/root/100%.patch"),), True, None)


def test_flags_count_over_the_classic_file(call: Caller) -> None:
    file = call.file("[Defaults]\nurl = http://file\npatch = file.patch\nkernel_version = 1.2.3\nconfig = file\n")
    words = ["-u", "http://flag", "-p", "flag.patch", "-a", "4.5.6", "-k", "flag"]
    found = call.settings("-c", str(file), *words)
    assert (found.url, found.patch) == ("http://flag", (Path("flag.patch"),))
    assert (found.kernel_version, found.config) == ("4.5.6", Path("flag"))


@pytest.mark.parametrize(
    ("level", "shown"),
    [("debug", True), ("10", True), ("true", True), ("1", True), ("info", False), ("30", False), ("0", False)],
)
def test_the_level_of_the_file(level: str, shown: bool) -> None:
    found = Settings.model_validate(read_defaults(f"[Defaults]\ndebug = {level}\n"))
    assert found.debug is shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[Defaults]\nsecret = x\n", "'secret' is none of clear, config, cve"),
        ("[Defaults]\nurl = %(nothing)s\n", "cannot be understood"),
        ("[Defaults]\nurl = http://x\nurl = http://y\n", "cannot be understood"),
        ("[Defaults]\ndebug = loud\n", "'debug'"),
        ("[defaults]\nurl = http://x\n", "client.toml"),
    ],
)
def test_a_file_that_is_wrong_is_named(call: Caller, text: str, words: str) -> None:
    result = call("-c", str(call.file(text)), "-p", "x.patch")
    assert result.exit_code == 2
    assert words in result.stderr
    assert "hint: " in result.stderr


def test_switches_of_the_file_can_be_off(call: Caller) -> None:
    file = call.file("[Defaults]\ncve = false\nclear = no\npatch = x\n")
    assert call.settings("-c", str(file)).cve is False


# -- the order: file, environment, command line

#: For each setting three values as a file, the environment and the command line have them, and what they mean.
_P = Path
ORDER: dict[str, tuple[tuple[str, object], tuple[str, object], tuple[list[str], object] | None]] = {
    "url": (('"http://file"', "http://file"), ("http://env", "http://env"), (["-u", "http://flag"], "http://flag")),
    "config": (('"f"', _P("f")), ("e", _P("e")), (["-k", "c"], _P("c"))),
    "kernel_version": (('"1.1"', "1.1"), ("1.2", "1.2"), (["-a", "1.3"], "1.3")),
    "patch": (('["f", "g"]', (_P("f"), _P("g"))), ("e", (_P("e"),)), (["-p", "c", "-p", "d"], (_P("c"), _P("d")))),
    "kernel_source": (('"dir:/f"', "dir:/f"), ("dir:/e", "dir:/e"), (["--kernel", "dir:/c"], "dir:/c")),
    "base_patches": (('"f"', (_P("f"),)), ("e", (_P("e"),)), (["--base-patch", "c"], (_P("c"),))),
    "collect_base_patches": (("false", False), ("true", True), (["--no-base-patches"], False)),
    "build_directory": (('"/f"', _P("/f")), ("/e", _P("/e")), (["--build-directory", "/c"], _P("/c"))),
    "send_image": (("false", False), ("true", True), (["--no-image"], False)),
    "image_timeout": (("11", 11.0), ("12", 12.0), None),
    "load": (("false", False), ("true", True), (["--no-load"], False)),
    "kpatch": (("true", True), ("false", False), (["--kpatch"], True)),
    "verify": (("false", False), ("true", True), (["--no-verify"], False)),
    "proof": (('"exact"', "exact"), ("layout", "layout"), (["--proof", "exact"], "exact")),
    "transition_timeout": (("11", 11.0), ("12", 12.0), (["--timeout", "13"], 13.0)),
    "crash_guard": (("11", 11.0), ("12", 12.0), None),
    "clock_tolerance": (("11", 11.0), ("12", 12.0), None),
    "journal_entries": (("11", 11), ("12", 12), None),
    "build_timeout": (("11", 11.0), ("12", 12.0), None),
    "state_dir": (('"/f"', _P("/f")), ("/e", _P("/e")), None),
    "ca_certificate": (('"/f"', _P("/f")), ("/e", _P("/e")), None),
    "debug": (("true", True), ("false", False), (["-d"], True)),
    "log_output": (('"FILE"', _P("FILE")), ("ENV", _P("ENV")), (["--log-output", "FLAG"], _P("FLAG"))),
}


def test_the_order_of_every_setting_is_tried() -> None:
    assert set(ORDER) | {"cve", "clear", "overlays"} == set(Settings.model_fields)


@pytest.mark.parametrize("name", ORDER)
def test_file_then_environment_then_flags(call: Caller, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(call.tmp)
    (text, from_file), (variable, from_environment), flag = ORDER[name]
    file = call.file(f"{name} = {text}\n", "default.toml")
    monkeypatch.setattr(client_settings, "CONFIG_FILE", file)
    monkeypatch.setattr(client_settings.load_settings, "__kwdefaults__", {"default_file": file, "user": None})
    env = {f"ELIVEPATCH_{name.upper()}": variable}
    patch = [] if name == "patch" else ["-p", "x.patch"]

    def value(*words: str, env: dict[str, str] | None = None) -> Any:
        return getattr(call.settings(*patch, *words, env=env), name)

    assert value() == from_file
    assert value(env=env) == from_environment
    assert from_file != from_environment
    if flag:
        words, from_flag = flag
        assert value(*words, env=env) == from_flag
        assert from_flag != from_environment
    file.write_text("")
    assert value(*([] if patch else ["-p", "x.patch"])) == (
        Settings.model_fields[name].default if patch else (Path("x.patch"),)
    )


# -- the log


def test_what_is_told_is_written_to_the_log_as_plain_lines(call: Caller) -> None:
    log = call.tmp / "log"
    for _ in range(2):
        assert call("--log-output", str(log), "-p", "x.patch").exit_code == 0
    lines = log.read_text().splitlines()
    assert len(lines) == 2
    assert all(
        re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} the module for .* not loaded", one) for one in lines
    )
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_log_that_cannot_be_written_is_said(call: Caller) -> None:
    (call.tmp / "link").symlink_to(call.tmp / "elsewhere")
    for name in ("link", "no/such/directory"):
        result = call("--log-output", str(call.tmp / name), "-p", "x.patch")
        assert result.exit_code == 2
        assert "log" in result.stderr
    assert not (call.tmp / "elsewhere").exists()
