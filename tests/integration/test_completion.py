# SPDX-License-Identifier: GPL-2.0-or-later
"""The completion of both command lines, tried in the shells themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import elivepatch.client.cli
import elivepatch.server.cli
from elivepatch.completion import SHELLS, levels

pytestmark = pytest.mark.integration

PROGRAMS: dict[str, click.Command] = {
    "elivepatch": elivepatch.client.cli.cli,
    "elivepatch-server": elivepatch.server.cli.cli,
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The scripts, as the programs print them."""
    place = tmp_path_factory.mktemp("completion")
    found: dict[tuple[str, str], Path] = {}
    for program, command in PROGRAMS.items():
        for shell in SHELLS:
            printed = CliRunner().invoke(command, ["completion", shell], catch_exceptions=False)
            assert printed.exit_code == 0
            found[program, shell] = place / f"{program}.{shell}"
            found[program, shell].write_text(printed.stdout)
    return found


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("fix one.patch", "fix-two.patch", "other"):
        (tmp_path / name).touch()
    return tmp_path


def in_bash(script: Path, line: list[str], cwd: Path) -> list[str]:
    """What bash offers for the last word of a line."""
    function = "_" + line[0].replace("-", "_")
    words = " ".join(f"'{word}'" for word in line)
    program = f"""
        compopt() {{ :; }}  # speaks to readline, which is not there
        source {script}
        COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        {function}; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", program], cwd=cwd, capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == ""
    return [one for one in done.stdout.splitlines() if one]


def in_fish(script: Path, line: list[str], cwd: Path) -> list[str]:
    """What fish offers for the last word of a line."""
    words = " ".join(line)
    env = {**os.environ, "HOME": str(cwd), "XDG_CONFIG_HOME": str(cwd / ".config"), "XDG_DATA_HOME": str(cwd / ".data")}
    program = f"source {script}; complete -C'{words}'"
    argv = ["fish", "--no-config", "-c", program]
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return [one.partition("\t")[0] for one in done.stdout.splitlines()]


CASES = [
    (["elivepatch", "sta"], {"status"}),
    (["elivepatch", "--no-l"], {"--no-load"}),
    (["elivepatch", "-p", "fix"], {"fix one.patch", "fix-two.patch"}),
    (["elivepatch", "--patch", "fix"], {"fix one.patch", "fix-two.patch"}),
    (["elivepatch", "-p", "status", "--proof", "e"], {"exact"}),
    (["elivepatch", "-u", "status", "status", "--j"], {"--json"}),
    (["elivepatch", "completion", "z"], {"zsh"}),
    (["elivepatch", "image", "--build-directory", "oth"], {"other"}),
    (["elivepatch-server", "ker"], {"kernel"}),
    (["elivepatch-server", "kernel", "li"], {"list"}),
    (["elivepatch-server", "build", "--proof", "non"], {"none"}),
    (["elivepatch-server", "serve", "--no-"], {"--no-v1"}),
    (["elivepatch-server", "-P", "serve", "-H", "x", "serve", "--tls-k"], {"--tls-key"}),
]


@pytest.mark.parametrize(("line", "expected"), CASES)
def test_in_bash(scripts: dict[tuple[str, str], Path], files: Path, line: list[str], expected: set[str]) -> None:
    assert set(in_bash(scripts[line[0], "bash"], line, files)) == expected


def test_bash_after_an_equals_sign(scripts: dict[tuple[str, str], Path], files: Path) -> None:
    script = scripts["elivepatch", "bash"]
    assert in_bash(script, ["elivepatch", "--proof", "=", "lay"], files) == ["layout"]
    assert set(in_bash(script, ["elivepatch", "--proof", "="], files)) == {"exact", "layout"}


@pytest.mark.parametrize(("line", "expected"), CASES)
def test_in_fish(scripts: dict[tuple[str, str], Path], files: Path, line: list[str], expected: set[str]) -> None:
    assert shutil.which("fish"), "make setup installs fish"
    assert set(in_fish(scripts[line[0], "fish"], line, files)) == expected


def in_zsh(script: Path, line: list[str], cwd: Path) -> str:
    """What the screen of an interactive zsh shows when Tab is pressed at the end of a line."""
    program = f"""
        zmodload zsh/zpty
        zpty z 'zsh -f -i'
        zpty -w z "PROMPT='> '; unsetopt zle_bracketed_paste; autoload -Uz compinit; compinit -u -D; source {script}"
        zpty -w z "zstyle ':completion:*' list-prompt ''; zstyle ':completion:*' menu no; LISTMAX=9999; cd {cwd}"
        zpty -w z "print READ''Y"
        zpty -r z shown '*READY*'
        zpty -n -w z $'{" ".join(line)}\\t\\t'
        sleep 2
        zpty -r -t z more && print -r -- "$more"
        while zpty -r -t z more; do print -r -- "$more"; done
        zpty -d z
    """
    env = {**os.environ, "TERM": "dumb", "COLUMNS": "200", "LINES": "100"}
    done = subprocess.run(["zsh", "-f", "-c", program], cwd=cwd, env=env, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["elivepatch", "sta"], "elivepatch status"),
        (["elivepatch", "--no-l"], "elivepatch --no-load"),
        (["elivepatch", "--patch", "fix-"], "fix-two.patch"),
        (["elivepatch", "completion", "z"], "completion zsh"),
        (["elivepatch", "-u", "x", "status", "--js"], "status --json"),
        (["elivepatch-server", "kernel", "li"], "kernel list"),
    ],
)
def test_in_zsh(scripts: dict[tuple[str, str], Path], files: Path, line: list[str], expected: str) -> None:
    assert shutil.which("zsh"), "make setup installs zsh"
    assert expected in in_zsh(scripts[line[0], "zsh"], line, files)


def flags(command: click.Command) -> Iterator[str]:
    for level in levels(command, {}):
        for flag in level.flags:
            yield from flag.offered


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_flag_is_offered(scripts: dict[tuple[str, str], Path], program: str, shell: str) -> None:
    text = scripts[program, shell].read_text()
    for flag in flags(PROGRAMS[program]):
        if shell == "fish":
            assert f"-l {flag[2:]} " in text if flag.startswith("--") else f"-s {flag[1:]} " in text
        else:
            assert flag in text


def test_the_names_of_livepatches_are_the_kernels(scripts: dict[tuple[str, str], Path]) -> None:
    for shell in SHELLS:
        assert "ls /sys/kernel/livepatch" in scripts["elivepatch", shell].read_text()


def test_it_is_fast(scripts: dict[tuple[str, str], Path], files: Path) -> None:
    times: list[float] = []
    for _ in range(5):
        began = time.perf_counter()
        in_bash(scripts["elivepatch", "bash"], ["elivepatch", "--no-l"], files)
        times.append(time.perf_counter() - began)
    # bash and all; Python alone would take longer to start. The best of them: what else the machine does is not ours.
    assert min(times) < 0.1, times
