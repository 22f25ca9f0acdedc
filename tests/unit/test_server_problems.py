# SPDX-License-Identifier: GPL-2.0-or-later
"""Every error of the tree is a problem; and what the command says when something is wrong."""

from __future__ import annotations

import sys

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from elivepatch.errors import Diagnosis, ElivepatchError, InvalidPatchError, error_classes
from elivepatch.protocol.models import Problem
from elivepatch.server import cli, problems

#: Those with a constructor of their own differ from their parent in that only.
PLAIN = [error for error in error_classes() if error.__init__ is ElivepatchError.__init__]


@pytest.mark.parametrize("error", PLAIN)
def test_every_error_becomes_a_problem(error: type[ElivepatchError]) -> None:
    problem = problems.as_problem(error("what happened", hint="what to do"))
    assert 400 <= problem.status < 600
    assert problem.type == f"urn:elivepatch:error:{problem.code}"
    assert (problem.detail, problem.hint) == ("what happened", "what to do")
    assert problem.title


def _application() -> FastAPI:
    app = FastAPI()
    problems.install(app, app.routes)

    @app.get("/ours")
    def ours() -> None:
        finding = Diagnosis(rule="crlf", message="The line ends in CR LF.", line=3)
        raise InvalidPatchError("Not a patch.", diagnosis=[finding])

    @app.get("/bug")
    def bug() -> None:
        raise RuntimeError("secret")

    @app.get("/number")
    def number(n: int) -> int:
        return n

    _ = (ours, bug, number)
    return app


def test_over_http() -> None:
    client = TestClient(_application(), raise_server_exceptions=False)
    for path, status, code in (
        ("/ours", 422, "invalid-patch"),
        ("/bug", 500, "internal-error"),
        ("/number?n=x", 422, "invalid-input"),
        ("/nothing", 404, "not-found"),
    ):
        answer = client.get(path)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        problem = Problem.model_validate_json(answer.content)
        assert (problem.status, problem.code) == (status, code)
        assert problem.hint or path == "/ours"
        assert "secret" not in answer.text
        assert "Traceback" not in answer.text
    assert client.get("/ours").json()["diagnosis"][0]["rule"] == "crlf"
    refused = client.post("/ours")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET")


def _run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["elivepatch-server", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["-P", "70000"], 2, "'port'"),
        (["-C", "/nonexistent.pem"], 2, "go together"),
        (["-j", "many"], 2, "-j"),
        (["nonsense"], 2, "nonsense"),
        (["-P", "1", "build"], 2, "for serving"),
        (["serve", "-f", "/nonexistent.toml"], 2, "/nonexistent.toml"),
        (["serve", "--data", "/proc/elivepatch", "-P", "0"], 6, "/proc/elivepatch"),
        (["serve", "-H", "256.256.256.256"], 6, "256.256.256.256"),
    ],
)
def test_the_command_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], status: int, said: str
) -> None:
    assert _run(monkeypatch, *words) == status
    output = capsys.readouterr()
    assert said in output.err
    assert "Traceback" not in output.err
    assert output.out == ""


def test_the_classic_flags_are_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(monkeypatch, "-h") == 0
    text = capsys.readouterr().out
    for flag in ("-h", "-j", "-H", "-P", "-T", "-d", "-C", "-K"):
        assert f"  {flag}, " in text
    assert "serve" in text
    assert "build" in text
