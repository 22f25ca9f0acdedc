# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of the client that need neither a server nor a kernel: settings, state, journal, events, text."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from client_fakes import BOOT_ID, NAME, FakeKernel, fake_host
from elivepatch.client.cli import cli
from elivepatch.client.event_stream import EventStream, Message
from elivepatch.client.inputs import InputFile, Inputs
from elivepatch.client.journal import Entry, Journal, Step, StoredModule, new_id
from elivepatch.client.output import Output, printable
from elivepatch.client.settings import Settings, load_settings
from elivepatch.client.state import StateDirectory, require_trusted, write_whole
from elivepatch.client.status import host_status
from elivepatch.errors import (
    Diagnosis,
    DiskFullError,
    HostError,
    InputTooLargeError,
    InvalidSettingError,
    ServerUnavailableError,
)
from elivepatch.progress import Event

# -- settings


def settings(
    tmp_path: Path,
    text: str | None = None,
    *,
    file: Path | None = None,
    environment: dict[str, str] | None = None,
    **flags: object,
) -> Settings:
    default = tmp_path / "client.toml"
    if text is not None:
        default.write_text(text)
    return load_settings(file=file, environment=environment or {}, flags=flags, default_file=default)


def test_without_anything_the_defaults_hold(tmp_path: Path) -> None:
    found = settings(tmp_path)
    assert found == Settings()
    assert found.url == "http://127.0.0.1:5000"
    assert found.load
    assert found.verify


def test_flags_count_over_the_environment_over_the_file(tmp_path: Path) -> None:
    text = 'url = "http://file:1"\ntransition_timeout = 7\nbuild_timeout = 8\nverify = false\n'
    environment = {"ELIVEPATCH_URL": "http://env:2/", "ELIVEPATCH_TRANSITION_TIMEOUT": "9", "ELIVEPATCH_KPATCH": ""}
    found = settings(tmp_path, text, environment=environment, transition_timeout=10.0)
    assert found.url == "http://env:2"
    assert found.transition_timeout == 10
    assert found.build_timeout == 8
    assert found.verify is False
    assert found.kpatch is False


def test_the_classic_file_is_understood(tmp_path: Path) -> None:
    classic = tmp_path / "elivepatch.conf"
    classic.write_text(
        "[Defaults]\nurl = http://classic:5000\nconfig = /usr/src/.config\npatch = /root/a%20.patch\nkernel_version =\n"
    )
    found = settings(tmp_path, 'url = "http://not-this:1"\n', file=classic)
    assert found.url == "http://classic:5000"
    assert found.config == Path("/usr/src/.config")
    assert found.patch == (Path("/root/a%20.patch"),)
    assert found.kernel_version is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("url = \n", "cannot be understood"),
        ('colour = "red"\n', "'colour' of .*client.toml cannot be used"),
        ("url = 5\n", "'url' of"),
        ("transition_timeout = -1\n", "'transition_timeout'"),
        ('[overlays.x]\nkeys = "/k"\n', r"'overlays\.x\.url' of .* Field required"),
        ('[overlays.x]\nurl = "file:///x"\nsecret = 1\n', r"'overlays\.x\.secret' of .* no such setting"),
        ('url = "file:///etc/passwd"\n', "not the address of a server"),
        ("[Defaults]\nsecret = x\n", "'secret' is none of"),
        ("[Defaults\n", "cannot be understood"),
        ("# \xff\n" + "#" * 70000, "larger than"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidSettingError, match=words) as caught:
        settings(tmp_path, text)
    assert caught.value.hint


def test_the_source_of_a_wrong_value_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="'build_timeout' of the environment"):
        settings(tmp_path, environment={"ELIVEPATCH_BUILD_TIMEOUT": "soon"})
    with pytest.raises(InvalidSettingError, match="'transition_timeout' of the command line"):
        settings(tmp_path, transition_timeout=0.0)


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="cannot be read"):
        settings(tmp_path, file=tmp_path / "none")


def test_settings_that_others_can_write_are_refused(tmp_path: Path) -> None:
    (tmp_path / "client.toml").write_text('url = "http://x:1"\n')
    (tmp_path / "client.toml").chmod(0o666)
    with pytest.raises(InvalidSettingError, match="can be written to by others") as caught:
        settings(tmp_path)
    assert caught.value.hint
    assert "chmod go-w" in caught.value.hint


def test_every_setting_and_flag_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs/client.md").read_text()
    for name in Settings.model_fields:
        assert f"`{name}`" in text, name
    usage = CliRunner().invoke(cli, ["-h"]).output
    options = [option for command in (cli, *cli.commands.values()) for p in command.params for option in p.opts]
    assert "--base-patch" in usage
    for option in options:
        if option.startswith("-") and "_" not in option:
            assert f"`{option}" in text or f", {option}" in text, option


# -- state


def test_a_file_is_written_whole_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"one")
    write_whole(tmp_path / "a", b"two", mode=0o644)
    assert (tmp_path / "a").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a", b"one")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="No space"):
        write_whole(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_link_at_the_place_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "a").symlink_to(tmp_path / "target")
    write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "target").read_text() == "old"
    assert not (tmp_path / "a").is_symlink()


def test_a_file_in_the_way_is_an_error_of_ours(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state", os.geteuid())
    state.prepare()
    (state.path / "modules").write_text("")
    with pytest.raises(HostError, match="cannot be made"):
        state.prepare(state.modules("6.1"))


def test_a_directory_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot be written"):
        write_whole(tmp_path / "no/a", b"x")


@pytest.mark.parametrize("mode", [0o770, 0o707])
@pytest.mark.parametrize("which", ["state", "state/modules", "state/modules/6.1"])
def test_a_place_that_others_can_write_to_is_refused(tmp_path: Path, mode: int, which: str) -> None:
    state = StateDirectory(tmp_path / "state", os.geteuid())
    state.prepare(state.modules("6.1"))
    (tmp_path / which).chmod(mode)
    with pytest.raises(InvalidSettingError, match="can be written to by others"):
        state.prepare(state.modules("6.1"))


def test_a_sticky_bit_helps_above_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    StateDirectory(tmp_path / "state", os.geteuid()).prepare()
    with pytest.raises(InvalidSettingError, match="can be written to by others"):
        require_trusted(tmp_path, os.geteuid())


def test_a_place_below_one_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(InvalidSettingError, match=str(shared)):
        StateDirectory(shared / "state", os.geteuid()).prepare()


def test_a_place_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, 0)
        with pytest.raises(InvalidSettingError, match="belongs to user 12345"):
            require_trusted(tmp_path, 0)
    else:
        with pytest.raises(InvalidSettingError, match="belongs to user"):
            require_trusted(tmp_path, os.geteuid() + 1)


def test_a_link_to_an_untrusted_place_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    bad.chmod(0o777)
    (tmp_path / "state").symlink_to(bad)
    with pytest.raises(InvalidSettingError, match="bad"):
        StateDirectory(tmp_path / "state", os.geteuid()).prepare()


def test_one_client_at_a_time(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state", os.geteuid())
    with state.locked(), pytest.raises(HostError, match=f"process {os.getpid()}"), state.locked():
        pass
    (state.path / "lock").unlink()
    (state.path / "lock").symlink_to("/etc/passwd")
    with pytest.raises(HostError, match="cannot be opened"), state.locked():
        pass
    (state.path / "lock").unlink()
    with state.locked(), (state.path / "lock").open() as stream, pytest.raises(BlockingIOError):
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


# -- journal and status


def entry(name: str, *steps: str, boot_id: str = BOOT_ID, **more: object) -> Entry:
    return Entry.model_validate(
        {
            "id": new_id(),
            "release": "6.1.0",
            "module": StoredModule(name=name, sha256="0" * 64, size=1),
            "steps": [
                Step.model_validate({"step": s, "time": 1000.0 + n, "boot_id": boot_id}) for n, s in enumerate(steps)
            ],
            **more,
        }
    )


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path / "state", os.geteuid())


def save(state: StateDirectory, found: Entry) -> None:
    state.prepare(state.journal)
    write_whole(state.journal / f"{found.id}.json", found.model_dump_json().encode())


def test_each_step_is_on_the_disk_when_the_call_returns(state: StateDirectory) -> None:
    record = Journal(state).begin(Entry(id=new_id(), release="6.1.0"))
    record.step("requested", boot_id=BOOT_ID)
    on_disk = json.loads(record.path.read_text())
    assert [step["step"] for step in on_disk["steps"]] == ["requested"]
    record.step("received", boot_id=BOOT_ID, proof="exact")
    (found,), problems = Journal(state).entries()
    assert found == record.entry
    assert found.proof == "exact"
    assert problems == []


def test_an_entry_does_not_grow_for_ever(state: StateDirectory) -> None:
    """Each start of the host adds steps, with a reason where its load fails, and an entry has a limit."""
    record = Journal(state).begin(Entry(id=new_id(), release="6.1.0"))
    record.step("requested", boot_id=BOOT_ID)
    for number in range(300):
        record.step("loading", boot_id=BOOT_ID)
        record.step("loaded", boot_id=BOOT_ID, detail=f"start {number} {chr(0x1F980) * 4000}")
    (found,), problems = Journal(state).entries()
    assert problems == []
    assert found.steps[0].step == "requested"
    assert [step.step for step in found.steps[-2:]] == ["loading", "loaded"]
    assert (found.steps[-1].detail or "").startswith("start 299 ")
    assert found.number == 301  # with the one of its first step


def test_a_damaged_file_hides_no_other(state: StateDirectory) -> None:
    save(state, entry(NAME, "loading", "loaded"))
    (state.journal / "00.json").write_text("{half")
    (state.journal / ".aside.new").write_text("")
    found, problems = Journal(state).entries()
    assert [e.module.name for e in found if e.module] == [NAME]
    assert len(problems) == 1
    assert "00.json" in problems[0]


def test_fields_of_a_newer_client_do_not_hide_an_entry(state: StateDirectory) -> None:
    save(state, entry(NAME, "loading", "loaded"))
    (path,) = state.journal.iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_tomorrow": 1}))
    assert Journal(state).latest_of(NAME) is not None


OTHER_BOOT = "99999999-2222-3333-4444-555555555555"


@pytest.mark.parametrize(
    ("steps", "boot_id", "held", "words"),
    [
        (("loading", "loaded"), BOOT_ID, True, None),
        (("loading", "loaded"), OTHER_BOOT, False, None),
        (("loading", "loaded", "reverting", "reverted"), BOOT_ID, False, None),
        (("loading", "undoing", "undone"), BOOT_ID, False, None),
        (("loading", "loaded"), BOOT_ID, False, "the kernel does not hold it"),
        (("loading",), BOOT_ID, True, "interrupted while loading .* the kernel holds it"),
        (("loading",), BOOT_ID, False, "interrupted while loading .* the kernel does not hold it"),
        (("loading",), OTHER_BOOT, False, "host went down while .* was loading"),
        (("loading", "undoing"), BOOT_ID, True, "interrupted while undoing"),
        (("loading", "loaded", "reverting"), BOOT_ID, True, "interrupted while reverting"),
        (("loading", "loaded", "reverting", "reverted"), BOOT_ID, True, "was reverted at .* the kernel holds it"),
        (("requested", "received"), BOOT_ID, True, "which the journal does not know"),
    ],
)
def test_where_kernel_and_journal_disagree(
    tmp_path: Path, state: StateDirectory, steps: tuple[str, ...], boot_id: str, held: bool, words: str | None
) -> None:
    host, kernel = fake_host(tmp_path)
    save(state, entry(NAME, *steps, boot_id=boot_id))
    if held:
        kernel.add(NAME, moved=True)
    found = host_status(host, state.path).disagreements
    if words is None:
        assert found == ()
    else:
        assert len(found) == 1
        assert re.search(words, found[0])


def test_what_is_under_way_is_no_disagreement(tmp_path: Path, state: StateDirectory) -> None:
    host, kernel = fake_host(tmp_path)
    save(state, entry(NAME, "loading"))
    kernel.add(NAME)
    with state.locked():
        found = host_status(host, state.path)
        assert found.busy == str(os.getpid())
        assert found.disagreements == ()
    assert host_status(host, state.path).busy is None
    assert len(host_status(host, state.path).disagreements) == 2


def test_the_youngest_entry_counts(tmp_path: Path, state: StateDirectory) -> None:
    host, kernel = fake_host(tmp_path)
    save(state, entry(NAME, "loading", "loaded", "reverting", "reverted"))
    young = entry(NAME, "loading", "loaded", proof="exact")
    save(
        state, young.model_copy(update={"steps": tuple(s.model_copy(update={"time": s.time + 9}) for s in young.steps)})
    )
    kernel.add(NAME, moved=True)
    found = host_status(host, state.path)
    assert found.disagreements == ()
    assert found.livepatches[0].proof == "exact"


def test_transition_and_disabled_are_told(tmp_path: Path, state: StateDirectory) -> None:
    host, kernel = fake_host(tmp_path, FakeKernel(tmp_path / "root"))
    save(state, entry(NAME, "loading", "loaded"))
    kernel.add(NAME)
    assert "is in transition to the patched code" in host_status(host, state.path).disagreements[0]
    place = host.root / "sys/kernel/livepatch" / NAME
    (place / "transition").write_text("0")
    (place / "enabled").write_text("0")
    assert host_status(host, state.path).disagreements == (f"{NAME} is loaded but disabled.",)


# -- events


def test_events_are_read_as_the_standard_says() -> None:
    stream = EventStream()
    data = (
        b": comment\n\nid: 1\nevent: step\ndata: a\ndata:b\n\r\n"
        b"data:  two spaces\r\rid\ndata: x\n\nevent: lost\n\nid: 7\ndata: cut off"
    )
    assert stream.feed(data) == [
        Message("1", "step", "a\nb"),
        Message("1", "message", " two spaces"),
        Message("", "message", "x"),
    ]
    assert stream.last_id == ""


def test_an_event_that_is_cut_off_has_not_been_heard() -> None:
    stream = EventStream("4")
    assert stream.feed(b"id: 5\ndata: x\n") == []
    assert stream.last_id == "4"
    assert stream.feed(b"\n") == [Message("5", "message", "x")]
    assert stream.last_id == "5"


@given(st.lists(st.sampled_from(["id: 3", "data: ä", "data", "event: step", "", ": c", "retry: 5", "x"])), st.data())
def test_how_the_bytes_are_cut_does_not_matter(lines: list[str], data: st.DataObject) -> None:
    end = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = end.join([*lines, "", ""]).encode()
    whole = EventStream().feed(text + b"\n")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    stream, found = EventStream(), list[Message]()
    for begin, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        found += stream.feed(text[begin:stop])
    found += stream.feed(b"\n")
    assert found == whole


def test_an_event_without_end_is_stopped() -> None:
    stream = EventStream()
    with pytest.raises(ServerUnavailableError, match="more than"):
        for _ in range(100):
            stream.feed(b"data: " + b"x" * 60_000 + b"\n")
    with pytest.raises(ServerUnavailableError, match="more than"):
        EventStream().feed(b"x" * 2_000_000)


# -- text


def test_all_files_together_have_a_limit() -> None:
    large = InputFile("p", b"x" * (4 << 20))
    with pytest.raises(InputTooLargeError, match="together"):
        Inputs((large,) * 5, (), None, None).parts()


@given(st.text())
def test_nothing_printable_is_lost_and_nothing_else_gets_through(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert printable(shown) == shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_words_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    output = Output()
    long = "[bold]x[/bold] :smile: " + "word " * 60
    with output.working("waiting [1]"):
        output.event(Event(kind="step", message="compile [link]a[/link]\x1b[2J"))
        output.line(long)
    output.warn("careful")
    shown = terminal.getvalue()
    assert long in shown  # neither wrapped, nor read as markup
    assert "\x1b[2J" not in shown
    assert "warning: careful" in shown


def test_a_finding_is_shown_with_all_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.diagnosis(
        Diagnosis(rule="r", message="m", file="a.c", line=3, function="f", hint="h", doc="d", severity="note")
    )
    output.diagnosis(Diagnosis(rule="r2", message="m2"))
    assert capsys.readouterr().err.splitlines() == [
        "note [r] a.c:3 f(): m",
        "  hint: h",
        "  see: d",
        "error [r2] m2",
    ]


def test_an_entry_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    journal = Journal(StateDirectory(tmp_path / "state", os.geteuid()))
    record = journal.begin(Entry(id="a", release="6.12.1"))
    record.step("requested", boot_id="b", detail="x" * 10_000_000)
    with pytest.raises(HostError, match="the limit is 4194304"):
        record.note(key="x" * 5_000_000)
    entries, problems = journal.entries()
    assert problems == []
    assert len(entries[0].steps[0].detail or "") < 5000
    assert entries[0].key is None
