# SPDX-License-Identifier: GPL-2.0-or-later
"""The entry point of the client: Ctrl-C while the program is being read in, and how it ends otherwise."""

from __future__ import annotations

import sys
from importlib.metadata import version

import pytest

from elivepatch.process import Completed, run

#: Runs the program, and sends SIGINT to itself at the moment when `module` is looked for.
SCRIPT = """
import os, signal, sys
# whatever the tests themselves were started with: in the background of a shell it is ignored
signal.signal(signal.SIGINT, signal.SIG_IGN if "{ignored}" else signal.default_int_handler)
class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == "{module}":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
sys.argv = ["elivepatch", *{arguments}]
from elivepatch.client.entry import main
{before}
main()
"""


def program(*arguments: str, module: str = "", ignored: str = "", before: str = "") -> Completed:
    text = SCRIPT.format(arguments=list(arguments), module=module, ignored=ignored, before=before)
    return run([sys.executable, "-c", text], timeout=60, check=False)


@pytest.mark.parametrize("module", ["click", "elivepatch.client.cli", "elivepatch.client.host_commands"])
def test_ctrl_c_while_the_program_is_read_in(module: str) -> None:
    done = program("-v", module=module)
    assert done.returncode == 130
    assert done.stderr == "elivepatch: interrupted.\n"


@pytest.mark.parametrize(
    "module", ["pydantic", "elivepatch.client.settings", "elivepatch.client.status", "elivepatch.client.metrics"]
)
def test_ctrl_c_while_a_command_is_read_in(module: str) -> None:
    done = program("status", module=module)
    assert done.returncode == 130
    assert (done.stdout, done.stderr) == ("", "elivepatch: interrupted.\n")


def test_where_ctrl_c_is_ignored_it_stays_ignored() -> None:
    done = program("-v", module="click", ignored="yes")
    assert done.returncode == 0
    assert done.stdout == f"elivepatch {version('elivepatch')}\n"


def test_ctrl_c_before_a_command_has_begun() -> None:
    interrupt = "import elivepatch.client.cli as c\ndef raised(**_): raise KeyboardInterrupt\nc.Output = raised"
    done = program("-p", "x", before=interrupt)
    assert done.returncode == 130
    assert done.stderr.strip() == "elivepatch: interrupted."


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["-h"], 0, ""),
        (["--no-such-flag"], 2, "No such option"),
        (["--no-load", "status"], 2, "has no meaning for 'status'"),
        (["-e", "status"], 2, "has no meaning for 'status'"),
    ],
)
def test_the_exit_status(arguments: list[str], status: int, words: str) -> None:
    done = program(*arguments)
    assert done.returncode == status
    assert words in done.stderr


@pytest.mark.parametrize(
    "words", [["-v"], ["-h"], ["status", "-h"], ["completion", "bash"], ["overlay", "schema"], ["facts"], ["status"]]
)
def test_a_full_disk_behind_stdout_is_no_bug(words: list[str]) -> None:
    full = "import sys\nsys.stdout = open('/dev/full', 'w')"
    done = program(*words, before=full)
    assert done.returncode == 4
    assert "Traceback" not in done.stderr
    assert "could not be written to stdout: No space left on device" in done.stderr


@pytest.mark.parametrize("words", [["-v"], ["status", "-h"], ["completion", "bash"], ["facts"], ["status"]])
def test_a_reader_that_goes_away_is_no_bug(words: list[str]) -> None:
    gone = "import os, sys\nr, w = os.pipe()\nos.close(r)\nos.dup2(w, 1)"
    done = program(*words, before=gone)
    assert (done.returncode, done.stderr) == (141, "")


def test_wrong_usage_has_its_status_where_nothing_can_be_said() -> None:
    full = "import os\nos.dup2(os.open('/dev/full', os.O_WRONLY), 2)"
    assert program("--no-such-flag", before=full).returncode == 2


def test_a_full_disk_behind_stderr_changes_nothing_about_the_end() -> None:
    before = (
        "import os\nos.environ['ELIVEPATCH_LOG_OUTPUT'] = '/nowhere/log'\nos.dup2(os.open('/dev/full', os.O_WRONLY), 2)"
    )
    assert program("history", before=before).returncode == 0
