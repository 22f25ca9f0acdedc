# SPDX-License-Identifier: GPL-2.0-or-later
"""`overlay list`, `sync`, `apply` and `test` on a host made of files, against a build server made of scripts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from client_fakes import NAME, RELEASE, fake_host
from client_rig import Rig
from client_server import Server, done_report, serving
from elivepatch.errors import InputTooLargeError
from elivepatch.overlay.contents import joined_check
from overlay_git import Repository, keys, repository
from overlay_support import DESCRIPTION, FILES, PATCH, make_overlay

pytestmark = pytest.mark.integration

#: The good overlay without its commit, which no host of a test can fetch.
_SECOND = DESCRIPTION[DESCRIPTION.index("- id: second") : DESCRIPTION.index("- id: third")]
_REPOSITORIES = DESCRIPTION[DESCRIPTION.index("repositories:") : DESCRIPTION.index("patches:")]
LOCAL = (
    DESCRIPTION.replace(_SECOND, "")
    .replace(_REPOSITORIES, "")
    .replace("  after: [second]\n", "  after: [first]\n  cves: [CVE-2026-22222]\n")
)


class HostRig(Rig):
    """A host with overlays in its settings."""

    config: Path

    def configure(self, **overlays: str) -> None:
        self.config = self.tmp / "client.toml"
        self.config.write_text("".join(f"[overlays.{name}]\n{text}\n" for name, text in overlays.items()))
        self.config.chmod(0o600)

    def overlay(self, *words: str | Path) -> Result:
        flags: list[str | Path] = ["-u", self.server.url]
        if hasattr(self, "config"):
            flags += ["-c", self.config]
        return self.run(*flags, "overlay", *words, patch=False)

    def data(self, *words: str | Path, status: int = 0) -> Any:
        done = self.overlay(*words, "--json")
        assert done.exit_code == status, done.output
        return json.loads(done.stdout)


@pytest.fixture
def rig(tmp_path: Path) -> Generator[HostRig]:
    host, kernel = fake_host(tmp_path, user=0)
    with serving(Server()) as server:
        yield HostRig(server, host, kernel, tmp_path)


@pytest.fixture
def team(rig: HostRig) -> Repository:
    made = repository(rig.tmp / "team", LOCAL)
    rig.configure(team=f'url = "{made.url}"')
    return made


def states(found: Any) -> dict[str, str]:
    return {entry["id"]: entry["state"] for overlay in found["overlays"] for entry in overlay["patches"]}


# -- list


def test_a_directory_is_listed_with_what_becomes_of_it(rig: HostRig, tmp_path: Path) -> None:
    root = make_overlay(tmp_path / "o")
    assert states(rig.data("list", root)) == {"first": "listed", "second": "listed", "third": "listed"}
    found = rig.data("list", root, "--for", RELEASE)
    assert (found["kernel"], states(found)) == (RELEASE, {"first": "chosen", "second": "chosen", "third": "chosen"})
    found = rig.data("list", root, "--for", "6.1.0-49-amd64", "--distribution", "debian:13")
    assert states(found) == {"first": "undecided", "second": "other-kernel", "third": "other-kernel"}
    words = ("list", root, "--for", "6.1.0-49-amd64", "--upstream", "6.1.120")
    assert states(rig.data(*words, "--distribution", "debian:13"))["first"] == "chosen"
    assert states(rig.data(*words, "--distribution", "debian:12"))["first"] == "other-kernel"
    lines = rig.overlay("list", root, "--for", "6.12.1-gentoo").stdout
    assert (
        "undecided     first: the distribution of 6.12.1-gentoo is not known  Say it louder (CVE-2026-12345)" in lines
    )


@pytest.mark.parametrize(
    "words",
    [
        ["list"],
        ["list", "none"],
        ["list", "{o}", "--for", "x y", "--upstream", "z"],
        ["list", "{o}", "--for", "6.1", "--distribution", "X"],
    ],
)
def test_what_cannot_be_listed(rig: HostRig, tmp_path: Path, words: list[str]) -> None:
    root = make_overlay(tmp_path / "o")
    done = rig.overlay(*(word.format(o=root) for word in words))
    assert done.exit_code == 2
    assert "hint:" in done.stderr


def test_an_overlay_with_errors_is_not_used(rig: HostRig, tmp_path: Path) -> None:
    root = make_overlay(tmp_path / "o", DESCRIPTION.replace("schema: 1", "schema: 3"))
    for command in ("list", "apply", "test"):
        done = rig.overlay(command, root)
        assert done.exit_code == 2
        assert "cannot be used: elivepatch.yml, line 2" in done.stderr
    assert rig.server.seen == []


# -- sync


def test_an_overlay_is_fetched_and_listed(rig: HostRig, team: Repository) -> None:
    assert "not here yet" in rig.overlay("list").stderr
    head = team.git("rev-parse", "HEAD")
    done = rig.overlay("sync")
    assert (done.exit_code, done.stdout) == (0, f"team: now at {head[:12]}, 2 patches\n")
    assert rig.overlay("sync", "team").stdout == f"team: unchanged at {head[:12]}, 2 patches\n"
    (overlay,) = rig.data("list")["overlays"]
    assert (overlay["name"], overlay["commit"]) == ("team", head)
    for path in (rig.state / "overlays", rig.state / "overlays/team"):
        assert path.stat().st_mode & 0o077 == 0


def test_what_goes_wrong_with_one_is_told_and_the_others_are_fetched(rig: HostRig, team: Repository) -> None:
    rig.configure(gone=f'url = "file://{rig.tmp}/gone"', team=f'url = "{team.url}"', wrong='url = "ext::x"')
    found = rig.data("sync", status=6)
    assert [one["name"] for one in found["overlays"]] == ["gone", "team", "wrong"]
    assert [one.get("error", {}).get("code") for one in found["overlays"]] == [
        "download-failed",
        None,
        "invalid-setting",
    ]
    assert rig.overlay("sync", "other").exit_code == 2


def test_signatures_are_checked_where_keys_are_named(rig: HostRig, team: Repository) -> None:
    with keys("ours") as ours:
        (rig.tmp / "keys").write_text(ours.openpgp.read_text())
        (rig.tmp / "signers").write_text(ours.signers.read_text())
        both = f'keys = "{rig.tmp}/keys"\nallowed_signers = "{rig.tmp}/signers"'
        rig.configure(team=f'url = "{team.url}"\n{both}')
        found = rig.data("sync", status=6)
        assert found["overlays"][0]["error"]["code"] == "signature-rejected"
        team.signed(ours, ssh=True)
        assert "signed by ours@example.org" in rig.overlay("sync").stdout
        team.git("reset", "-q", "--hard", "HEAD~1")
        team.signed(ours)
        assert rig.data("sync", status=6)["overlays"][0]["error"]["code"] == "overlay-rewound"
        assert rig.overlay("sync", "--allow-rewind").exit_code == 0
        (rig.tmp / "keys").chmod(0o666)
        assert "can be written to by others" in rig.overlay("sync").stderr


@pytest.mark.parametrize("text", ['url = "x"\nsecret = 1', "branch = 'x'", 'url = "https://x.example/y"\nbranch = 3'])
def test_settings_that_cannot_be_used(rig: HostRig, text: str) -> None:
    rig.configure(team=text)
    done = rig.overlay("list")
    assert done.exit_code == 2
    assert "The setting 'overlays" in done.stderr


@pytest.mark.parametrize(
    "where", ["elivepatch.overlay.mirror.Mirror.state", "elivepatch.client.overlays.require_trusted"]
)
def test_who_may_not_read_them_is_told_so(
    rig: HostRig, team: Repository, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    rig.overlay("sync")

    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(where, forbidden)
    done = rig.overlay("list")
    assert done.exit_code == 4
    assert "may not be read" in done.stderr
    assert team.path.exists()


def test_one_that_was_never_fetched_does_not_keep_back_the_others(rig: HostRig, team: Repository) -> None:
    rig.overlay("sync")
    rig.configure(late=f'url = "file://{rig.tmp}/late"', team=f'url = "{team.url}"')
    late = "The overlay late is not here yet"
    found = {one["name"]: one for one in rig.data("list")["overlays"]}
    assert late in found["late"]["problem"]
    assert len(found["team"]["patches"]) == 2
    done = rig.overlay("list")
    assert f"late: {late}" in done.stdout
    assert f"the overlay late is left out: {late}" in done.stderr
    outcome = rig.data("apply")
    assert (outcome["status"], len(outcome["patches"])) == ("loaded", 2)
    assert any(late in one for one in outcome["warnings"])
    assert rig.overlay("apply", "late").exit_code == 2, "what was asked for by its name is needed"


def test_of_what_is_for_another_kernel_the_list_says_for_which(rig: HostRig, tmp_path: Path) -> None:
    root = make_overlay(tmp_path / "o")
    words = ("list", root, "--for", "6.1.0-49-amd64", "--upstream", "6.1.120", "--distribution", "debian:12")
    (overlay,) = rig.data(*words)["overlays"]
    reasons = {one["id"]: one["reason"] for one in overlay["patches"]}
    assert reasons["first"].startswith("for debian:13")
    assert reasons["second"].startswith("for 6.12")


# -- apply


def test_all_that_is_for_the_kernel_becomes_one_request(rig: HostRig, team: Repository) -> None:
    rig.overlay("sync")
    done = rig.overlay("apply", "--json")
    assert done.exit_code == 0, done.output
    outcome = json.loads(done.stdout)
    assert (outcome["status"], [patch["name"] for patch in outcome["patches"]]) == (
        "loaded",
        ["first.patch", "third.patch"],
    )
    parts = rig.server.seen[0].parts()
    assert [(name, file) for name, file, _ in parts if name != "config"] == [
        ("request", None),
        ("patch", "first.patch"),
        ("patch", "third.patch"),
        ("check", "first.sh"),
    ]
    assert parts[1][2].decode() == PATCH
    entry = rig.journal()[-1]
    assert (entry["cves"], entry["overlays"]) == (["CVE-2026-12345", "CVE-2026-22222"], ["team"])
    (held,) = json.loads(rig.run("status", "--json", patch=False).stdout)["livepatches"]
    assert (held["cves"], held["overlays"]) == (["CVE-2026-12345", "CVE-2026-22222"], ["team"])
    assert "  of the overlay team\n" in rig.run("status", patch=False).stdout
    assert "    of team\n" in rig.run("info", NAME, patch=False).stdout
    assert team.git("status", "--short") == ""


def test_what_is_loaded_is_not_asked_for_again(rig: HostRig, team: Repository) -> None:
    rig.overlay("sync")
    rig.overlay("apply")
    again = rig.overlay("apply")
    assert again.exit_code == 0
    assert f"{NAME} is already loaded" in again.stdout
    assert rig.server.paths("POST") == ["/builds"]
    # one more: the server gets all of them, and the journal keeps what the earlier ones close
    more = "- id: fourth\n  kernels: 6.12.117\n  patch: fourth.patch\n  cves: CVE-2026-33333\n"
    (team.path / "elivepatch.yml").write_text(LOCAL + more)
    (team.path / "patches/fourth.patch").write_text(PATCH.replace("VMALLOCCHUNK:  ", "VmallocPiece:  "))
    team.commit()
    rig.overlay("sync")
    assert rig.overlay("apply", "--only", "fourth", "--no-load").exit_code == 0
    (request,) = [seen for seen in rig.server.seen[1:] if seen.method == "POST"]
    assert [file for name, file, _ in request.parts() if name == "patch"] == [
        "first.patch",
        "third.patch",
        "fourth.patch",
    ]
    assert rig.journal()[-1]["cves"] == ["CVE-2026-12345", "CVE-2026-22222", "CVE-2026-33333"]


def test_one_alone_and_all_but_one(rig: HostRig, team: Repository) -> None:
    rig.overlay("sync")
    for words, names in ((["--only", "third"], ["third.patch"]), (["--skip", "third"], ["first.patch"])):
        done = rig.overlay("apply", *words, "--dry-run", "--json")
        assert [patch["name"] for patch in json.loads(done.stdout)["patches"]] == names
    assert rig.overlay("apply", "--only", "none").exit_code == 2
    (team.path / "elivepatch.yml").write_text(LOCAL.replace("after: [first]", "requires: [first]"))
    team.commit()
    rig.overlay("sync")
    done = rig.overlay("apply", "--only", "third", "--dry-run", "--json")
    assert [patch["name"] for patch in json.loads(done.stdout)["patches"]] == ["first.patch", "third.patch"]
    done = rig.overlay("apply", "--skip", "first", "--dry-run")
    assert done.exit_code == 2
    assert "third requires first" in done.stderr
    assert rig.kernel.log == []


def test_nothing_for_this_kernel_is_said_and_nothing_sent(rig: HostRig, tmp_path: Path) -> None:
    root = make_overlay(tmp_path / "o", "schema: 1\npatches:\n- id: a\n  kernels: 5.10.*\n  patch: a.patch\n")
    done = rig.overlay("apply", root)
    assert (done.exit_code, done.stdout) == (0, f"no overlay has anything for {RELEASE}\n")
    assert rig.data("apply", root)["status"] == "nothing"
    assert rig.server.seen == []


def test_it_is_for_the_running_kernel_whatever_the_settings_name(
    rig: HostRig, team: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.overlay("sync")
    monkeypatch.setenv("ELIVEPATCH_KERNEL_VERSION", "5.10.1")
    done = rig.overlay("apply")
    assert done.exit_code == 0, done.output
    assert json.loads(rig.server.seen[0].parts()[0][2])["kernel"] == RELEASE
    assert team.path.exists()


def test_what_is_left_out_is_told(rig: HostRig, tmp_path: Path) -> None:
    text = LOCAL.replace("after: [first]", "requires: [old]") + "- id: old\n  kernels: 5.10.*\n  patch: third.patch\n"
    done = rig.overlay("apply", make_overlay(tmp_path / "o", text))
    assert done.exit_code == 0
    assert "warning: o: third is left out: requires old, which is not for this kernel." in done.stderr
    assert rig.journal()[-1]["overlays"] == ["o"]


def test_a_refusal_is_that_of_every_request(rig: HostRig, team: Repository) -> None:
    rig.overlay("sync")
    rig.server.status = "refused"
    rig.server.report = done_report(
        rig.server.module, status="refused", exit_status=3, error="does-not-apply", message="No."
    )
    done = rig.overlay("apply")
    assert done.exit_code == 3
    assert "elivepatch: No." in done.stderr
    assert rig.steps() == ["requested", "failed"]
    assert team.path.exists()


def test_several_check_scripts_become_one(tmp_path: Path) -> None:
    def ends(*bodies: str) -> int:
        script = joined_check([(f"e{n}", body.encode()) for n, body in enumerate(bodies)])
        assert script is not None
        (tmp_path / "check").write_bytes(script)
        return subprocess.run(["sh", str(tmp_path / "check")], check=False).returncode

    good, bad = "#!/bin/sh\nexit 0\n", "#!/bin/sh\necho no; exit 3"
    assert ends(good, good) == 0
    assert ends(good, bad) != 0
    assert ends(bad, good) != 0
    assert ends("test $(echo '$x') = '$x'", "x='\\n'; test \"$x\" = '\\n'", "cat <<EOF\nEND-\nEOF\n") == 0
    assert joined_check([]) is None
    with pytest.raises(InputTooLargeError):
        joined_check([(str(n), b"#" * 40_000) for n in range(2)])


# -- test


def test_each_patch_is_tried_with_what_it_requires(rig: HostRig, tmp_path: Path) -> None:
    text = LOCAL.replace("after: [first]", "requires: [first]") + "- id: rt\n  kernels: 6.1.5\n  patch: third.patch\n"
    root = make_overlay(tmp_path / "o", text)
    rig.server.reports = [done_report(rig.server.module)]
    found = rig.data("test", root, "--kernel", RELEASE)
    assert found["good"]
    assert [(one["id"], one["status"], one["tried_with"]) for one in found["results"]] == [
        ("first", "done", []),
        ("third", "done", ["first"]),
    ]
    requests = [seen.parts() for seen in rig.server.seen if seen.method == "POST"]
    assert [[file for name, file, _ in parts if name == "patch"] for parts in requests] == [
        ["first.patch"],
        ["first.patch", "third.patch"],
    ]
    assert [name for name, _, _ in requests[0]][-1] == "check"
    assert json.loads(requests[0][0][2]) == {"kernel": RELEASE, "verify": True, "proof": "layout"}
    assert rig.kernel.log == []
    assert not (rig.state / "journal").exists()


def test_a_patch_that_is_refused_is_in_the_table(rig: HostRig, tmp_path: Path) -> None:
    root = make_overlay(tmp_path / "o", LOCAL)
    rig.server.status = "refused"
    rig.server.report = done_report(
        rig.server.module, status="refused", exit_status=3, error="no-functional-change", message="Nothing changes."
    )
    done = rig.overlay("test", root, "--only", "third")
    assert done.exit_code == 3
    assert "o/third  refused" in done.stdout
    assert "no-functional-change: Nothing changes." in done.stdout
    assert f"0 of 1 can be livepatches of {RELEASE}" in done.stdout
    assert rig.overlay("test", root, "--only", "none").exit_code == 2


def test_a_kernel_for_which_nothing_is_there_is_no_success(rig: HostRig, tmp_path: Path) -> None:
    root = make_overlay(tmp_path / "o", LOCAL)
    done = rig.overlay("test", root, "--kernel", "5.4.1-mistyped")
    assert (done.exit_code, "No entry of o is for 5.4.1-mistyped" in done.stderr) == (2, True), done.stderr


def test_an_overlay_is_not_made_with_a_licence_that_is_none(rig: HostRig, tmp_path: Path) -> None:
    done = rig.overlay("init", tmp_path / "o", "--licence", "Nonsense")
    assert (done.exit_code, "not the expression of a licence" in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "o").exists()


def test_what_cannot_be_read_is_in_the_table_and_a_missing_server_is_an_error(rig: HostRig, tmp_path: Path) -> None:
    root = make_overlay(tmp_path / "o", LOCAL, {"patches/third.patch": FILES["patches/third.patch"]})
    found = rig.data("test", root, status=3)
    assert [(one["id"], one["status"], one.get("error")) for one in found["results"]] == [
        ("first", "error", "invalid-input"),
        ("third", "done", None),
    ]
    assert rig.run("-u", "http://127.0.0.1:9", "overlay", "test", root, patch=False).exit_code == 6


def test_the_files_of_overlays_go_with_the_client(rig: HostRig, team: Repository) -> None:
    rig.overlay("sync")
    assert team.path.exists()
    assert rig.run("uninstall", "--yes", patch=False).exit_code == 0
    assert not rig.state.exists()
