# SPDX-License-Identifier: GPL-2.0-or-later
"""Documentation that cannot go stale: every code, flag and setting has its line."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

import elivepatch.client.cli
import elivepatch.server.cli
from elivepatch.client.boot import Allowed, Booted
from elivepatch.client.history import History, HistoryStep, ModuleInfo
from elivepatch.client.outcome import Outcome
from elivepatch.client.revert import NotReverted, Reverted, RevertedAll
from elivepatch.client.status import AbsentLivepatch, FunctionState, HostStatus, LivepatchState
from elivepatch.client.uninstall import Uninstalled
from elivepatch.errors import error_classes

# they bring their errors into the tree
for _module in ("elivepatch.server.app", "elivepatch.vm.boot_test", "elivepatch.overlay.mirror"):
    importlib.import_module(_module)

ROOT = Path(__file__).parents[2]
ERRORS = (ROOT / "docs/errors.md").read_text()
_ROW = re.compile(r"^\| `([a-z-]+)` \| (\d) \| (\d+) \|", re.MULTILINE)


def test_every_error_code_is_documented_with_its_statuses() -> None:
    rows = {row[1]: (int(row[2]), int(row[3])) for row in _ROW.finditer(ERRORS)}
    classes = {
        cls.code: (cls.exit_status, cls.http_status)
        for cls in error_classes()
        if cls.__module__.startswith("elivepatch.")
    }
    assert rows == classes


def test_every_rule_of_the_boot_test_has_its_anchor() -> None:
    source = (ROOT / "src/elivepatch/vm/verdict.py").read_text()
    rules = set(re.findall(r'"((?:boot|load|transition|check|kernel|new|revert|unload)-[a-z-]+)"', source))
    assert len(rules) > 8
    assert rules == set(re.findall(r'<a id="([a-z-]+)"></a>', ERRORS))


def options(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
    """Every long option of a command and those below it."""
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            yield from ((name, word) for word in parameter.opts if word not in {"-h", "--help"})
    if isinstance(command, click.Group):
        context = click.Context(command, **command.context_settings)
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from options(found, f"{name} {child}")


@pytest.mark.parametrize(
    ("command", "pages"),
    [
        (elivepatch.client.cli.cli, ["docs/client.md", "docs/cves.md"]),
        (elivepatch.server.cli.cli, ["docs/operator.md", "docs/cves.md"]),
    ],
)
def test_every_option_is_documented(command: click.Command, pages: list[str]) -> None:
    text = "\n".join((ROOT / page).read_text() for page in pages)
    words = set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", text))
    missing = sorted({f"{name} {word}" for name, word in options(command, "") if word not in words})
    assert not missing, f"not in {', '.join(pages)}: {missing}"


def test_what_the_makefile_offers_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    goals = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [goal for goal in goals if f"make {goal}" not in readme] == []


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_every_field_of_the_json_of_the_client_is_documented() -> None:
    page = (ROOT / "docs/client.md").read_text()
    rows = re.findall(
        r"^\| (.*) \| (.*) \|$", page.partition("| JSON of | fields |")[2].partition("\n\n")[0], re.MULTILINE
    )
    told = {row: tuple(re.findall(r"`(\w+)`", fields)) for row, fields in rows if fields != "---"}
    models: dict[str, type[BaseModel]] = {
        "`status`, `repair`": HostStatus,
        "each of `livepatches`, and `held`": LivepatchState,
        "each of `functions` there": FunctionState,
        "each of `absent`": AbsentLivepatch,
        "`history`": History,
        "each of `steps` there": HistoryStep,
        "`info`": ModuleInfo,
        "`boot`": Booted,
        "`allow`": Allowed,
        "`revert`, and each of `reverted`": Reverted,
        "`revert --all`": RevertedAll,
        "each of `failed`": NotReverted,
        "`uninstall`": Uninstalled,
    }
    assert {row: set(fields) for row, fields in told.items()} == {
        row: set(model.model_fields) for row, model in models.items()
    }
    outcome = (
        page.partition("With `--json` stdout holds one object")[2].partition("\n\n")[0]
        + page.partition("With `--json` the outcome has `status` `dry-run`")[2].partition("\n\n")[0]
    )
    assert [name for name in Outcome.model_fields if f"`{name}`" not in outcome] == []
