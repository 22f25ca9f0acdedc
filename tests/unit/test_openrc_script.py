# SPDX-License-Identifier: GPL-2.0-or-later
"""The script of OpenRC, with a client and a start-stop-daemon of a few lines in the places of the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from elivepatch.process import run

SCRIPT = Path(__file__).parents[2] / "packaging/openrc/elivepatch"
#: The functions that OpenRC gives a script, as far as this one needs them.
OPENRC = """
ebegin() { :; }
eend() { return "$1"; }
yesno() { test "$1" = yes; }
"""
DAEMON = """#!/bin/sh
pidfile=$(echo "$*" | head -n 1 | sed 's/.*--pidfile \\([^ ]*\\).*/\\1/')
if [ "$1" = --stop ]; then kill "$(cat "$pidfile")"; exit; fi
while [ "$1" != --exec ]; do shift; done
program=$2; shift 3
"$program" "$@" &
echo $! >"$pidfile"
"""
CLIENT = """#!/bin/sh
trap 'echo undone >>told; exit 130' TERM
echo "$@" >>told
[ "$1" = boot ] || exit 0
[ "$(grep -c boot told)" -gt 1 ] || exit "$(cat first)"
for tenth in $(seq 100); do sleep 0.1; done
echo loaded >>told
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, text in (("client", CLIENT), ("start-stop-daemon", DAEMON)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def script(place: Path, action: str) -> None:
    names = f"PATH={place}:$PATH ELIVEPATCH_PROGRAM={place}/client ELIVEPATCH_INTERVAL=0.2"
    text = f"{OPENRC}\n{names}\n. {SCRIPT}\nalive_pidfile={place}/pid\n{action}"
    run(["sh", "-c", text], cwd=place, timeout=60)


def calls(place: Path, word: str) -> int:
    return (place / "told").read_text().splitlines().count(word)


def test_a_load_that_goes_on_behind_the_service_is_undone_when_it_is_stopped(place: Path) -> None:
    (place / "first").write_text("4")
    script(
        place,
        "start; for tenth in $(seq 50); do [ $(grep -c boot told) -gt 1 ] && break; sleep 0.1; done; stop; sleep 2",
    )
    assert calls(place, "undone") == 1
    assert calls(place, "loaded") == 0
    assert calls(place, "mark alive") == 0


@pytest.mark.parametrize("status", ["0", "7"])
def test_what_is_loaded_or_guarded_is_not_tried_again(place: Path, status: str) -> None:
    (place / "first").write_text(status)
    script(place, "start; for tenth in $(seq 50); do [ $(grep -c alive told) -gt 1 ] && break; sleep 0.1; done; stop")
    assert calls(place, "mark alive") >= 2
    assert calls(place, "boot") == 1


def test_going_down_is_noted(place: Path) -> None:
    (place / "first").write_text("0")
    script(place, "start; RC_GOINGDOWN=yes; stop")
    assert calls(place, "mark shutdown") == 1
