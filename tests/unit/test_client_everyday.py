# SPDX-License-Identifier: GPL-2.0-or-later
"""What an administrator meets in the end: a log, a suspended machine, nohup, the same name on two kernels."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from client_fakes import BUILD_ID, RELEASE, elf_module, put
from client_machine import FIRST, SECOND, HostMachine, KilledError
from client_server import done_report
from elivepatch.client import cli as program
from elivepatch.client import journal, settle
from elivepatch.client.host import Host


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostMachine:
    return HostMachine(tmp_path, monkeypatch)


@pytest.fixture
def loaded(machine: HostMachine) -> HostMachine:
    assert machine.load(FIRST).exit_code == 0
    return machine


# -- the log


@pytest.fixture
def log_set(loaded: HostMachine) -> Path:
    """A file of settings that names a log which cannot be written."""
    settings = loaded.tmp / "client.toml"
    settings.write_text(f'log_output = "{loaded.tmp}/none/elivepatch.log"\n')
    return settings


def test_a_log_of_the_settings_that_cannot_be_written_does_not_hide_the_status(
    loaded: HostMachine, log_set: Path
) -> None:
    result = loaded.run("-c", log_set, "status")
    assert result.exit_code == 0, result.output
    assert FIRST in result.stdout
    assert "warning: The log" in result.stderr


def test_a_log_of_the_settings_that_cannot_be_written_does_not_keep_a_livepatch_out(
    loaded: HostMachine, log_set: Path
) -> None:
    loaded.restart(orderly=True)
    assert loaded.run("-c", log_set, "boot").exit_code == 0
    assert loaded.agreed() == [FIRST]


def test_a_log_on_the_command_line_that_cannot_be_written_is_an_error(loaded: HostMachine) -> None:
    assert loaded.run("--log-output", loaded.tmp / "none/log", "status").exit_code == 2


def test_a_pipe_in_place_of_the_log_keeps_nobody_waiting(loaded: HostMachine) -> None:
    os.mkfifo(loaded.tmp / "log")
    assert loaded.run("--log-output", loaded.tmp / "log", "status").exit_code == 2


def test_the_units_can_write_where_the_settings_say() -> None:
    for unit in ("elivepatch", "elivepatch-alive"):
        text = (Path(__file__).parents[2] / f"packaging/systemd/{unit}.service").read_text()
        assert (
            "ProtectSystem=full" in text.splitlines()
        )  # 'strict' would need each state_dir and log_output in the unit


# -- the crash guard


def test_a_host_that_slept_has_not_run_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = journal.uptime
    assert settle.uptime is ran
    machine = HostMachine(tmp_path, monkeypatch)
    monkeypatch.undo()
    clocks = {"awake": 1000.0, "boot": 1000.0}

    def clock(number: int) -> float:
        return clocks["boot" if number == time.CLOCK_BOOTTIME else "awake"]

    monkeypatch.setattr("time.clock_gettime", clock)
    assert ran() == 1000.0
    assert machine.load(FIRST).exit_code == 0
    clocks["boot"] += 3600  # suspended for an hour
    clocks["awake"] += 5
    machine.run("mark", "alive")
    assert machine.entry(FIRST).survived is False
    clocks["boot"] += 600
    clocks["awake"] += 600
    result = machine.run("mark", "alive")
    assert result.exit_code == 0, result.output
    assert machine.entry(FIRST).survived is True


def test_that_the_host_goes_down_is_noted_before_anything_that_may_take_long(
    loaded: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded.kernel.functions = (("vmlinux", "other"),)
    loaded.kernel.replace = False
    loaded.kernel.stuck = True

    def killed(_seconds: float) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(loaded.kernel, "sleep", killed)
        with pytest.raises(KilledError):
            loaded.run("load", loaded.tmp / f"{SECOND}.ko", "--no-report", "--beside")
        with pytest.raises(KilledError):  # the unit's time is over while the other is undone
            loaded.run("mark", "shutdown")
    assert loaded.entry(FIRST).stopped is not None


# -- status


@pytest.mark.parametrize("how", ["expected", "guarded", "allowed", "reverted"])
def test_one_that_somebody_else_has_loaded_is_seen_although_the_journal_knows_its_name(
    loaded: HostMachine, how: str
) -> None:
    if how == "reverted":
        loaded.run("revert")
    loaded.restart(orderly=how == "expected")
    if how in {"guarded", "allowed"}:
        assert loaded.run("boot").exit_code == 7
    if how == "allowed":
        assert loaded.run("allow", FIRST).exit_code == 0
    loaded.kernel.add(FIRST, moved=True)
    status = loaded.status()
    assert status["exit_status"] == 7
    assert any(f"The kernel holds {FIRST}" in text for text in status["disagreements"])


# -- the command line


@pytest.fixture
def handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def _main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["elivepatch", *words])
    with pytest.raises(SystemExit) as ended:
        program.main()
    return int(ended.value.code or 0)


@pytest.mark.usefixtures("handlers")
def test_nohup_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _main(monkeypatch, "--version")
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    "words", [("revert", "NAME", "--all", "--json"), ("--json", "status", "--nonsense"), ("--json", "nothing-of-ours")]
)
def test_wrong_usage_is_json_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert _main(monkeypatch, *words) == 2
    told = capsys.readouterr()
    outcome = json.loads(told.out)
    assert (outcome["status"], outcome["exit_status"], outcome["error"]["code"]) == ("error", 2, "invalid-input")
    assert outcome["error"]["message"] in told.err


def test_clearing_the_record_tells_its_outcome(loaded: HostMachine) -> None:
    result = loaded.run("-l", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["status"] == "cleared"


def test_a_bug_is_told_as_json_too(loaded: HostMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_arguments: object, **_named: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("elivepatch.client.status.host_status", bug)
    told: list[str] = []

    def echo(text: str, **_named: object) -> None:
        told.append(text)

    monkeypatch.setattr("elivepatch.client.output.click.echo", echo)
    with pytest.raises(ZeroDivisionError):
        loaded.run("status", "--json")
    outcome = json.loads(told[-1])
    assert (outcome["exit_status"], outcome["error"]["code"]) == (1, "internal-error")


# -- one name, two kernels


def _as_other_kernel(machine: HostMachine, release: str) -> None:
    put(machine.host.root, {"proc/sys/kernel/osrelease": release + "\n"})
    module = elf_module({"name": FIRST, "livepatch": "Y", "vermagic": f"{release} SMP mod_unload "})
    report = done_report(module, kernel={"release": release, "build_id": BUILD_ID})
    report["module"]["name"] = FIRST
    (machine.tmp / f"{FIRST}.ko").write_bytes(module)
    (machine.tmp / f"{FIRST}.json").write_text(json.dumps(report))


def test_livepatches_of_one_name_on_two_kernels_are_two(loaded: HostMachine) -> None:
    other = "6.12.200-other"
    loaded.restart(orderly=True)
    _as_other_kernel(loaded, other)
    assert loaded.run("boot").exit_code == 0
    assert loaded.held() == []
    result = loaded.load(FIRST)
    assert result.exit_code == 0, result.output
    loaded.restart(orderly=True)
    put(loaded.host.root, {"proc/sys/kernel/osrelease": RELEASE + "\n"})
    assert loaded.run("boot").exit_code == 0
    assert loaded.held() == [FIRST]
    assert loaded.status()["livepatches"][0]["since"]
    assert loaded.run("status").exit_code == 0
    assert loaded.run("revert").exit_code == 0  # for this kernel, not for the other one
    loaded.restart(orderly=True)
    put(loaded.host.root, {"proc/sys/kernel/osrelease": other + "\n"})
    assert loaded.run("boot").exit_code == 0
    assert loaded.held() == [FIRST]


# -- a user who is not root


def test_the_cve_mode_tells_a_user_whose_state_directory_is_closed_what_it_needs(
    loaded: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded.host = Host(loaded.host.root, loaded.host.calls, loaded.host.clock, 1000)
    real = os.stat

    def closed(path: Any, **named: Any) -> os.stat_result:  # Any: those of os.stat
        if str(path).startswith(f"{loaded.state}/"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **named)

    loaded.kernel.vanish(FIRST)
    monkeypatch.setattr(os, "stat", closed)
    result = loaded.run("-u", "http://127.0.0.1:9", "cve", "list", ELIVEPATCH_COLLECT_BASE_PATCHES="false")
    assert result.exit_code == 6, result.output  # the server is not there: it came that far


# -- odd names


@pytest.mark.parametrize("name", [b"odd\xff.patch", b"two\nlines.patch", b"red\x1b[31m.patch"])
def test_a_patch_with_an_odd_name_is_a_patch(machine: HostMachine, name: bytes) -> None:
    path = Path(os.fsdecode(os.fsencode(machine.tmp) + b"/" + name))
    path.write_bytes((machine.tmp / f"{FIRST}.patch").read_bytes())
    module, report = machine.tmp / f"{FIRST}.ko", machine.tmp / f"{FIRST}.json"
    result = machine.run("load", module, "--report", report, "-p", path, "--json")
    assert result.exit_code == 0, result.output
    (shown,) = machine.status()["livepatches"][0]["patches"]
    assert shown.isprintable()
    assert shown.endswith(".patch")
    lines = machine.run("status").stdout.splitlines()
    assert f"  from {shown}" in lines


@pytest.mark.parametrize("words", [("load", "none\udcff.ko", "--no-report"), ("info", "none\udcff.ko")])
def test_a_file_with_an_odd_name_that_is_not_there_is_told_as_json(
    machine: HostMachine, words: tuple[str, ...]
) -> None:
    result = machine.run(*words, "--json")
    assert result.exit_code == 2, result.output
    assert "none" in json.loads(result.stdout)["error"]["message"]


HANGS_UP = """
import os
ours, theirs = os.openpty()
os.dup2(theirs, 2)
from elivepatch.client.output import Output
output = Output()
with output.working("the kernel's tasks move"):
    output.line("while it is there")
    os.close(ours)
    output.line("when it is gone")
print("went on")
"""


def test_a_terminal_that_hangs_up_ends_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS_UP], stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.stdout == "went on\n"


# -- where the outcome goes


def _as_process(
    machine: HostMachine, redirection: str, *words: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the program on the state of the host, with a shell's redirection."""
    line = f'exec "$0" -c "import elivepatch.client.cli as c; c.main()" "$@" {redirection}'
    env = {**os.environ, "ELIVEPATCH_STATE_DIR": str(machine.state), **environment}
    return subprocess.run(
        ["sh", "-c", line, sys.executable, *words], env=env, text=True, capture_output=True, check=False
    )


@pytest.mark.parametrize("words", [("history",), ("history", "--json")])
def test_a_full_disk_behind_stdout_is_no_bug(loaded: HostMachine, words: tuple[str, ...]) -> None:
    done = _as_process(loaded, ">/dev/full", *words)
    assert done.returncode == 4
    assert "The outcome could not be written to stdout: No space left on device." in done.stderr
    assert "Traceback" not in done.stderr


def test_a_load_whose_outcome_cannot_be_written_stays(machine: HostMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    echo = click.echo

    def full(text: str, *, err: bool = False, nl: bool = True) -> None:
        if not err:
            raise OSError(errno.ENOSPC, "No space left on device")
        echo(text, err=err, nl=nl)

    with monkeypatch.context() as patch:
        patch.setattr(click, "echo", full)
        result = machine.load(FIRST, "--json")
    assert result.exit_code == 4
    assert "What was done stays done" in result.stderr
    assert machine.agreed() == [FIRST]


@pytest.mark.parametrize("words", [("history",), ("history", "--json")])
def test_names_that_the_encoding_does_not_have_are_written_in_ascii(
    machine: HostMachine, words: tuple[str, ...]
) -> None:
    (machine.tmp / "\u00fc\u2603.patch").write_text("--- a/x.c\n+++ b/x.c\n")
    assert machine.load(FIRST, "-p", str(machine.tmp / "\u00fc\u2603.patch")).exit_code == 0
    done = _as_process(machine, "", *words, PYTHONIOENCODING="latin-1")
    assert done.returncode == 0, done.stderr
    assert "\\u2603.patch" in done.stdout
    if "--json" in words:
        json.loads(done.stdout)


def test_without_a_stderr_it_runs(loaded: HostMachine) -> None:
    done = _as_process(loaded, "2>&-", "history")
    assert done.returncode == 0
    assert FIRST in done.stdout


def test_settings_that_would_not_end_are_not_read(machine: HostMachine) -> None:
    os.mkfifo(machine.tmp / "pipe")
    result = machine.run("-c", machine.tmp / "pipe", "status")
    assert result.exit_code == 2
    assert "are not a file" in result.stderr
