# SPDX-License-Identifier: GPL-2.0-or-later
"""What the client does with the findings and the last words of a build."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import pytest
from click.testing import CliRunner, Result

from client_fakes import NAME, RELEASE, FakeKernel, elf_module, fake_host
from client_server import KEY, done_report
from elivepatch.client.acceptance import LAYOUT_RULES
from elivepatch.client.cli import cli
from elivepatch.client.host import Host
from elivepatch.client.output import FINDINGS_SHOWN, Output
from elivepatch.errors import Diagnosis
from elivepatch.progress import Event, Sink
from elivepatch.protocol.models import Build, BuildStatus, Report

LAYOUT = Diagnosis(
    rule="struct-layout", severity="warning", file="fs/a.c", line=7, message="The layout changes.", hint="Do not."
)
NOTE = Diagnosis(rule="macro-change", severity="note", message="The macro A changes.")


@dataclass
class Connection:
    """A connection to a server whose build has ended already."""

    module_data: bytes = field(default_factory=elf_module)
    findings: tuple[Diagnosis, ...] = ()
    report: Report | None = None
    events: tuple[Event, ...] = ()
    clock_ahead: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def submit(self, _request: object, _parts: object) -> str:
        return "b1"

    def follow(self, build_id: str, sink: Sink, _tell: object, *, timeout: float) -> Build:
        assert timeout > 0
        for event in self.events:
            sink(event)
        report = self.report or Report.model_validate(done_report(self.module_data)).model_copy(
            update={"diagnosis": self.findings}
        )
        return Build(id=build_id, key=KEY, status=report.status, kernel=RELEASE, created=1.0, report=report)

    def module(self, _build_id: str, _said: object) -> bytes:
        return self.module_data


@dataclass
class Rig:
    host: Host
    kernel: FakeKernel
    tmp: Path
    connection: Connection

    def run(self, *arguments: str) -> Result:
        patch = self.tmp / "a.patch"
        patch.write_text("--- a/fs/a.c\n+++ b/fs/a.c\n@@ -1 +1 @@\n-a\n+b\n")
        environment = {"ELIVEPATCH_STATE_DIR": str(self.tmp / "state")}
        return CliRunner(env=environment).invoke(
            cli, ["-p", str(patch), *arguments], obj=self.host, catch_exceptions=False
        )

    def last_entry(self) -> list[dict[str, str]]:
        path = sorted((self.tmp / "state/journal").glob("*.json"))[-1]
        return json.loads(path.read_text())["steps"]


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    host, kernel = fake_host(tmp_path, user=0)
    found = Rig(host, kernel, tmp_path, Connection())

    def connect(*_arguments: object, **_options: object) -> Connection:
        return found.connection

    monkeypatch.setattr("elivepatch.client.request.Connection", connect)
    return found


# -- findings of a build that is done


def test_findings_of_a_build_that_is_done_are_shown_before_the_load(rig: Rig) -> None:
    warning = replace(LAYOUT, rule="data-initialiser", function="f")
    rig.connection.findings = (warning, NOTE)
    result = rig.run()
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    shown = lines.index("warning [data-initialiser] fs/a.c:7 f(): The layout changes.")
    assert lines[shown + 1] == "  hint: Do not."
    assert lines.index("note [macro-change] The macro A changes.") < lines.index(f"loading {NAME}")
    assert shown < lines.index(f"loading {NAME}")


def test_findings_are_in_the_outcome(rig: Rig) -> None:
    rig.connection.findings = (replace(LAYOUT, rule="init-code"), NOTE)
    outcome = json.loads(rig.run("--json").stdout)
    assert outcome["status"] == "loaded"
    assert outcome["warnings"] == [
        "warning [init-code] fs/a.c:7: The layout changes. Hint: Do not.",
        "note [macro-change] The macro A changes.",
    ]


@pytest.mark.parametrize("rule", ["struct-layout", "data-layout"])
def test_a_changed_layout_is_not_loaded(rig: Rig, rule: str) -> None:
    rig.connection.findings = (replace(LAYOUT, rule=rule), NOTE)
    result = rig.run("--json")
    assert result.exit_code == 4
    assert rig.kernel.log == []
    outcome = json.loads(result.stdout)
    assert outcome["error"]["code"] == "module-rejected"
    assert f"{rule} in fs/a.c:7)" in outcome["error"]["message"]
    assert "--accept-warnings" in outcome["error"]["hint"]
    assert len(outcome["warnings"]) == 2
    assert [step["step"] for step in rig.last_entry()] == ["requested", "failed"]


def test_a_note_on_the_layout_is_no_warning(rig: Rig) -> None:
    rig.connection.findings = (replace(LAYOUT, severity="note"),)
    assert rig.run().exit_code == 0
    assert rig.kernel.log == [f"load {NAME}"]


def test_a_changed_layout_that_is_accepted_is_loaded_and_remembered(rig: Rig) -> None:
    rig.connection.findings = (LAYOUT,)
    result = rig.run("--accept-warnings")
    assert result.exit_code == 0, result.output
    assert "warning [struct-layout] fs/a.c:7: The layout changes." in result.stderr
    assert rig.kernel.log == [f"load {NAME}"]
    assert "struct-layout" in rig.last_entry()[1]["detail"]
    assert f"{NAME} is already loaded" in rig.run().stdout  # nothing is loaded, so nothing is refused


def test_a_changed_layout_is_fetched_without_a_load(rig: Rig) -> None:
    rig.connection.findings = (LAYOUT,)
    out = rig.tmp / "out.ko"
    result = rig.run("--no-load", "-o", str(out))
    assert result.exit_code == 0, result.output
    assert out.read_bytes() == rig.connection.module_data
    assert "warning [struct-layout]" in result.stderr


def test_the_rules_that_forbid_a_load_are_documented() -> None:
    docs = Path(__file__).parents[2] / "docs"
    for rule in LAYOUT_RULES:
        assert f"### `{rule}`" in (docs / "patches.md").read_text()
        assert f"`{rule}`" in (docs / "client.md").read_text()


def test_of_many_findings_of_one_rule_the_first_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    many = [Diagnosis(rule="r", message=f"m{number}") for number in range(FINDINGS_SHOWN + 3)]
    Output().findings([NOTE, *many[:2], NOTE, *many[2:]])
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["note [macro-change] The macro A changes."] * 2
    assert lines[2:-1] == [f"error [r] m{number}" for number in range(FINDINGS_SHOWN)]
    assert lines[-1] == "… and 3 more [r]"


# -- the last words of a build


OFFERED = "No source offers the kernel 6.1.0-x. Offered are: 6.1.0-1, 6.1.0-2."


def not_available() -> Report:
    return Report(
        status=BuildStatus.FAILED,
        key=KEY,
        exit_status=6,
        error="kernel-unavailable",
        message=OFFERED,
        diagnosis=(Diagnosis(rule="kernel-unavailable", message=OFFERED),),
    )


def test_why_a_build_gave_no_module_is_said_once(rig: Rig) -> None:
    rig.connection.report = not_available()
    rig.connection.events = (
        Event(kind="phase", message="preparing"),
        Event(kind="done", message=OFFERED, phase="failed"),
    )
    result = rig.run()
    assert result.exit_code == 6
    assert "server: preparing" in result.stderr
    assert result.stderr.count(OFFERED) == 1
    assert f"elivepatch: {OFFERED}" in result.stderr


def test_other_last_words_are_shown(rig: Rig) -> None:
    rig.connection.events = (Event(kind="done", message="The build is done.", phase="done"),)
    assert "server: The build is done." in rig.run().stderr
    rig.connection.report = not_available()
    assert "server: The build is done." in rig.run("--drop-earlier").stderr


def test_a_refusal_with_many_findings_shows_the_first_of_each_rule(rig: Rig) -> None:
    many = tuple(Diagnosis(rule="differs", message=f"f{number} differs.") for number in range(30))
    rig.connection.report = not_available().model_copy(update={"diagnosis": (*many, NOTE)})
    lines = rig.run().stderr.splitlines()
    assert len([line for line in lines if "[differs]" in line]) == FINDINGS_SHOWN + 1
    assert "… and 20 more [differs]" in lines
    assert "note [macro-change] The macro A changes." in lines


# -- before the build


def test_the_running_configuration_is_offered_for_the_running_kernel_only(rig: Rig) -> None:
    (rig.host.root / "boot" / f"config-{RELEASE}").unlink()
    rig.connection.report = not_available()
    assert "modprobe configs" in rig.run().stderr
    shown = rig.run("-a", "6.1.0-x").stderr
    assert "configuration: none found" in shown
    assert "modprobe" not in shown
