# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands do not read in: each must start at once, so none pays for what only another needs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from elivepatch.process import run

#: Runs the program and says at its end, on stderr, what was read in.
SCRIPT = """
import atexit, json, sys
atexit.register(lambda: sys.stderr.write("\\n" + json.dumps(sorted(sys.modules))))
sys.argv = ["elivepatch", *sys.argv[1:]]
from elivepatch.client.entry import main
main()
"""
#: To talk to servers, to show progress on a terminal, to collect images: seconds on a slow machine.
FOR_REQUESTS = {
    *("httpx2", "ssl", "rich", "zipfile", "email.message"),
    *("elivepatch.client.connection", "elivepatch.client.request", "elivepatch.client.image", "elivepatch.kernel.slim"),
}
#: To start programs and to change the kernel.
FOR_CHANGES = {"subprocess", "elivepatch.process", "elivepatch.client.loader"}
#: To read the settings and the journal.
FOR_DATA = {"pydantic", "pydantic_core", "elivepatch.client.settings", "elivepatch.client.journal"}


def read_in(tmp_path: Path, *arguments: str) -> set[str]:
    done = run(
        [sys.executable, "-c", SCRIPT, *arguments],
        timeout=60,
        check=False,
        env={"ELIVEPATCH_STATE_DIR": str(tmp_path / "state")},
    )
    found = set(json.loads(done.stderr.rpartition("\n")[2]))
    assert "elivepatch.client.cli" in found
    return found


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["status", "--help"], ["completion", "bash"]])
def test_help_and_completion_read_in_no_data_models(tmp_path: Path, arguments: list[str]) -> None:
    unwanted = FOR_REQUESTS | FOR_CHANGES | FOR_DATA
    if arguments == ["--version"]:
        unwanted -= {"zipfile", "email.message"}  # importlib.metadata, which knows the version
    assert not read_in(tmp_path, *arguments) & unwanted


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"], ["history"]])
def test_looking_reads_in_nothing_that_changes(tmp_path: Path, arguments: list[str]) -> None:
    found = read_in(tmp_path, *arguments)
    assert not found & (FOR_REQUESTS | FOR_CHANGES - {"elivepatch.process"}) - {"zipfile", "email.message"}
    assert found >= FOR_DATA


@pytest.mark.parametrize("arguments", [["boot"], ["mark", "alive"], ["revert"], ["repair"], ["allow", "x"]])
def test_what_needs_no_server_reads_in_nothing_to_talk_to_one(tmp_path: Path, arguments: list[str]) -> None:
    found = read_in(tmp_path, *arguments)
    assert not found & FOR_REQUESTS - {"zipfile", "email.message"}  # pydantic looks for its plugins


def test_no_plugin_of_pydantic_is_loaded(tmp_path: Path) -> None:
    text = (
        "import os, elivepatch.client.entry as e\ntry: e.main()\nfinally: print(os.environ['PYDANTIC_DISABLE_PLUGINS'])"
    )
    done = run([sys.executable, "-c", f"import sys; sys.argv = ['elivepatch', '-h']\n{text}"], timeout=60, check=False)
    assert done.stdout.splitlines()[-1] == "__all__"
