# SPDX-License-Identifier: GPL-2.0-or-later
"""Where settings come from, what is refused, and that each is documented."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from elivepatch.errors import InvalidSettingError
from elivepatch.server import settings
from elivepatch.server.settings import Settings, load

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "operator.md"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("ELIVEPATCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(settings, "SETTINGS_FILE", tmp_path / "absent.toml")


def test_command_line_over_environment_over_file_over_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "server.toml"
    file.write_text('port = 1\njobs = 2\nhost = "127.0.0.2"\n')
    monkeypatch.setenv("ELIVEPATCH_PORT", "3")
    monkeypatch.setenv("ELIVEPATCH_JOBS", "4")
    found = load(file, port=5, debug=None)
    assert (found.port, found.jobs, found.host, found.parallel) == (5, 4, "127.0.0.2", 2)
    monkeypatch.setenv("ELIVEPATCH_SETTINGS", str(file))
    assert load().host == "127.0.0.2"


def test_defaults_of_root_and_of_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    found = load()
    assert (found.host, found.port) == ("127.0.0.1", 5000)
    assert (found.data, found.cache) == (Path("/var/lib/elivepatch"), Path("/var/cache/elivepatch"))
    assert found.database == "sqlite:////var/lib/elivepatch/db.sqlite"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/x/data")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", "/home/somebody")
    found = load()
    assert (found.data, found.cache) == (Path("/x/data/elivepatch"), Path("/home/somebody/.cache/elivepatch"))
    monkeypatch.setenv("ELIVEPATCH_CACHE", "/elsewhere")
    assert load().cache == Path("/elsewhere")
    assert load().workshop.cache == Path("/elsewhere")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "70000"),
        ("port", "five"),
        ("jobs", "0"),
        ("build_seconds", "-1"),
        ("data", "relative/path"),
        ("tls_certificate", "/etc/hostname"),
        ("debug", "perhaps"),
    ],
)
def test_a_bad_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"ELIVEPATCH_{name.upper()}", value)
    with pytest.raises(InvalidSettingError, match=f"'{name}'") as caught:
        load()
    assert caught.value.hint


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    for text, expected in (
        ("prot = 1\n", "'prot' .*server.toml.* is not a setting"),
        ("port = \n", "server.toml' cannot be read"),
        ('jobs = "many"\n', "'jobs'"),
    ):
        file.write_text(text)
        with pytest.raises(InvalidSettingError, match=expected):
            load(file)
    with pytest.raises(InvalidSettingError, match="no settings file"):
        load(tmp_path / "none.toml")


def test_where_a_bad_value_was_set_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELIVEPATCH_PORT", "-1")
    with pytest.raises(InvalidSettingError, match="in the environment as ELIVEPATCH_PORT"):
        load()
    with pytest.raises(InvalidSettingError, match="on the command line"):
        load(port=-1)


def test_a_certificate_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="there is no file"):
        load(tls_certificate=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")


def test_every_setting_is_documented() -> None:
    text = DOCUMENTATION.read_text()
    for name, field in Settings.model_fields.items():
        row = next((line for line in text.splitlines() if line.startswith(f"| `{name}` |")), None)
        assert row is not None, f"docs/operator.md does not list the setting '{name}'"
        if field.default_factory is None and not isinstance(field.default, bool) and field.default is not None:
            assert f"`{field.default}`" in row.replace(" ", "").replace("_", ""), f"the default of '{name}' is {row}"


def test_a_list_that_is_no_json_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELIVEPATCH_GIT", "foo")
    with pytest.raises(InvalidSettingError, match="ELIVEPATCH_GIT in the environment") as caught:
        load()
    assert "JSON" in (caught.value.hint or "")


def test_a_place_with_control_characters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELIVEPATCH_CACHE", "/tmp/a\nb")
    with pytest.raises(InvalidSettingError, match="control characters"):
        load()


@pytest.mark.parametrize(
    ("url", "branch", "said"),
    [
        ("https://user:secret@host/x", "main", "holds a name or a password"),
        ("https://user@host/x", "main", "holds a name or a password"),
        ("ssh://user:secret@host/x", "main", "holds a name or a password"),
        ("/srv/overlay", "main", "no address of an overlay"),
        ("https://host/x", "--upload-pack=x", "no branch"),
    ],
)
def test_where_an_overlay_cannot_be(tmp_path: Path, url: str, branch: str, said: str) -> None:
    file = tmp_path / "server.toml"
    file.write_text(f'[overlays.team]\nurl = "{url}"\nbranch = "{branch}"\n')
    with pytest.raises(InvalidSettingError) as caught:
        load(file)
    assert "overlays.team" in caught.value.message
    assert said in caught.value.message
    assert "secret" not in f"{caught.value.message}{caught.value.hint}"


def test_an_overlay_by_ssh_may_name_its_user(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('[overlays.team]\nurl = "ssh://git@host/x"\n')
    assert load(file).overlays["team"].branch == "main"


@pytest.mark.parametrize("value", ["nope", "http://host/x", "ftp://host/{commit}"])
def test_an_address_of_commits_needs_a_place_for_them(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ELIVEPATCH_STABLE_HTTP", value)
    with pytest.raises(InvalidSettingError, match=r"stable_http.*gives no single commits") as caught:
        load()
    assert "{commit}" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("value", "stray"),
    [
        ("http://{x}/{commit}", "{x}"),
        ("https://host/{commit}?h={branch}", "{branch}"),
        ("https://host/{commit}{", "{"),
        ("https://host/{{commit}}", "{}"),
        ("https://host/{commit}}", "}"),
    ],
)
def test_an_address_of_commits_has_no_other_placeholder(
    monkeypatch: pytest.MonkeyPatch, value: str, stray: str
) -> None:
    monkeypatch.setenv("ELIVEPATCH_STABLE_HTTP", value)
    with pytest.raises(InvalidSettingError, match="nothing is known to put there") as caught:
        load()
    assert f"has {stray}," in caught.value.message
    assert "{commit}" in (caught.value.hint or "")
