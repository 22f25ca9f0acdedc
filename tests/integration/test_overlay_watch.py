# SPDX-License-Identifier: GPL-2.0-or-later
"""A real server that watches real repositories; only the builds are short, and the kernels are prepared by hand."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from server_support import ServerProcess, get, serving

from elivepatch.process import Completed, run
from overlay_git import Repository, keys, repository

pytestmark = pytest.mark.integration

RELEASE, OLDER = "6.12.118+deb13-cloud-amd64", "6.1.0-47-cloud-amd64"
BUILD_ID, OTHER_ID = "a" * 40, "b" * 40
PATCH = "--- a/fs/proc/meminfo.c\n+++ b/fs/proc/meminfo.c\n@@ -1,2 +1,2 @@\n /* first */\n-/* old */\n+/* {} */\n"
DESCRIPTION = """\
schema: 1
patches:
- id: first
  kernels: 6.12.*
  distributions: debian:13
  patch: first.patch
- id: stable
  kernels: ">=6.1.170 <6.1.175"
  patch: second.patch
- id: nobody
  kernels: 5.10.*
  patch: second.patch
"""
FILES = {"patches/first.patch": PATCH.format("first"), "patches/second.patch": PATCH.format("second")}


@dataclass
class Rig:
    server: ServerProcess
    overlay: Repository

    def state(self) -> dict[str, Any]:  # Any: JSON
        return get(self.server, "/overlays").json()

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while not wanted(state := self.state()):
            assert time.monotonic() < deadline, f"{state}\n{self.server.log()}"
            time.sleep(0.1)
        return state


def prepare(cache: Path, key: str, release: str, build_id: str, origin: str, image: str = "published") -> None:
    """A prepared kernel, as far as it is read here."""
    place = cache / "kernels/prepared" / key
    (place / "image").mkdir(parents=True)
    (place / "image/config").write_text("CONFIG_64BIT=y\n")
    data = {"release": release, "build_id": build_id, "origin": origin, "image": image}
    (place / "kernel.json").write_text(json.dumps(data))


def settings(**overlays: Repository) -> str:
    return json.dumps({name: {"url": one.url} for name, one in overlays.items()})


@pytest.fixture
def overlay(tmp_path: Path) -> Repository:
    return repository(tmp_path / "team", DESCRIPTION, FILES)


@pytest.fixture
def rig(tmp_path: Path, overlay: Repository) -> Generator[Rig]:
    cache = tmp_path / "data/cache"
    prepare(cache, "1", RELEASE, BUILD_ID, "debian:linux 6.12.118-1 (trixie)")
    prepare(cache, "2", OLDER, OTHER_ID, "debian:linux 6.1.170-3 (bookworm)")
    prepare(cache, "3", "6.12.60", "c" * 40, "kernel.org:6.12.60", "built")
    with serving(tmp_path / "data", overlays=settings(team=overlay), overlay_sync_hours="0.0002") as server:
        yield Rig(server, overlay)


def done(state: dict[str, Any]) -> bool:
    return len(state["builds"]) == 2 and all(one.get("status") == "done" for one in state["builds"])


def test_what_is_there_for_the_kernels_that_are_known_is_built_before_anybody_asks(rig: Rig) -> None:
    state = rig.until(done)
    (team,) = state["overlays"]
    assert (team["name"], team["commit"], team["entries"]) == ("team", rig.overlay.git("rev-parse", "HEAD"), 3)
    assert time.time() - team["synced"] < 60
    built = {one["kernel"]: one for one in state["builds"]}
    assert {name: one["entries"] for name, one in built.items()} == {RELEASE: ["team/first"], OLDER: ["team/stable"]}
    assert built[RELEASE]["build_id"] == BUILD_ID
    build = get(rig.server, f"/builds/{built[RELEASE]['build']}").json()
    assert (build["kernel"], build["status"]) == (RELEASE, "done")


def test_each_build_is_made_once(rig: Rig) -> None:
    rig.until(done)
    time.sleep(3)  # some rounds
    assert len(get(rig.server, "/builds").json()["builds"]) == 2


def test_a_new_head_is_built_and_the_old_one_forgotten(rig: Rig) -> None:
    before = {one["build"] for one in rig.until(done)["builds"]}
    (rig.overlay.path / "patches/first.patch").write_text(PATCH.format("better"))
    head = rig.overlay.commit()
    state = rig.until(lambda state: done(state) and not before >= {one["build"] for one in state["builds"]})
    after = {one["kernel"]: one["build"] for one in state["builds"]}
    assert state["overlays"][0]["commit"] == head
    assert after[RELEASE] not in before
    assert after[OLDER] in before, "what did not change was built again"


def test_a_kernel_that_is_prepared_later_is_found(rig: Rig, tmp_path: Path) -> None:
    rig.until(done)
    prepare(tmp_path / "data/cache", "4", "6.12.118+deb13-amd64", "d" * 40, "debian:linux 6.12.118-1 (trixie)")
    state = rig.until(lambda state: len(state["builds"]) == 3)
    assert {one["kernel"] for one in state["builds"]} == {RELEASE, OLDER, "6.12.118+deb13-amd64"}


def test_a_bad_head_changes_nothing_and_is_told(rig: Rig) -> None:
    before = rig.until(done)
    (rig.overlay.path / "elivepatch.yml").write_text("schema: 1\npatches: nonsense\n")
    rig.overlay.commit()
    state = rig.until(lambda state: "problem" in state["overlays"][0])
    assert state["overlays"][0]["commit"] == before["overlays"][0]["commit"]
    assert state["builds"] == before["builds"]
    health = get(rig.server, "/health")
    assert health.status_code == 503
    assert "The overlay team is not up to date" in health.json()["problems"][0]
    (rig.overlay.path / "elivepatch.yml").write_text(DESCRIPTION)
    rig.overlay.commit()
    rig.until(lambda state: "problem" not in state["overlays"][0])
    assert get(rig.server, "/health").json()["status"] == "ok"


def test_after_a_restart_what_was_found_good_is_used_though_the_repository_is_gone(rig: Rig) -> None:
    before = rig.until(done)
    rig.server.stop()
    rig.overlay.path.rename(rig.overlay.path.with_name("gone"))
    rig.server.start()
    state = rig.until(done)
    assert state["overlays"][0]["commit"] == before["overlays"][0]["commit"]
    assert "problem" in state["overlays"][0]
    assert {one["build"] for one in state["builds"]} == {one["build"] for one in before["builds"]}


def test_several_overlays_are_built_alone_and_together(tmp_path: Path, overlay: Repository) -> None:
    more = repository(tmp_path / "more", DESCRIPTION, {**FILES, "patches/first.patch": PATCH.format("more")})
    prepare(tmp_path / "data/cache", "1", RELEASE, BUILD_ID, "debian:linux 6.12.118-1 (trixie)")
    overlays = settings(team=overlay, more=more)
    with serving(tmp_path / "data", overlays=overlays, overlay_sync_hours="0.001") as server:
        state = Rig(server, overlay).until(lambda state: len(state["builds"]) == 3)
    assert [one["overlays"] for one in state["builds"]] == [["team"], ["more"], ["team", "more"]]
    assert [one["entries"] for one in state["builds"]] == [["team/first"], ["more/first"], ["team/first", "more/first"]]


def test_a_patch_that_cannot_be_built_is_said_and_not_asked_for_again(rig: Rig) -> None:
    rig.until(done)
    (rig.overlay.path / "patches/first.patch").write_text("nonsense\n")
    rig.overlay.commit()
    state = rig.until(lambda state: any("problem" in one for one in state["builds"]))
    (bad,) = [one for one in state["builds"] if "problem" in one]
    assert "first.patch" in bad["problem"]
    assert "build" not in bad
    assert rig.server.log().count("Not built ahead") == 1


def test_an_overlay_must_be_signed_where_keys_are_named(tmp_path: Path, overlay: Repository) -> None:
    prepare(tmp_path / "data/cache", "1", RELEASE, BUILD_ID, "debian:linux 6.12.118-1 (trixie)")
    with keys("author") as author:
        named = json.dumps({"team": {"url": overlay.url, "keys": str(author.openpgp)}})
        with serving(tmp_path / "data", overlays=named, overlay_sync_hours="0.0002") as server:
            rig = Rig(server, overlay)
            state = rig.until(lambda state: "problem" in state["overlays"][0])
            assert state["builds"] == []
            overlay.signed(author)
            state = rig.until(lambda state: bool(state["builds"]))
            assert state["overlays"][0]["signer"] == f"OpenPGP key {author.fingerprint}"


def administer(rig: Rig, *words: str) -> Completed:
    """A command of the administrator, beside the server that runs."""
    overlays = settings(team=rig.overlay)
    environment = {"ELIVEPATCH_DATA": str(rig.server.data), "ELIVEPATCH_OVERLAYS": overlays}
    return run([Path(sys.executable).parent / "elivepatch-server", "overlay", *words], env=environment, check=False)


def test_a_rewritten_history_is_taken_when_the_administrator_says_so(rig: Rig) -> None:
    before = rig.until(done)["overlays"][0]["commit"]
    (listed,) = json.loads(administer(rig, "list", "--json").stdout)
    assert (listed["name"], listed["commit"]) == ("team", before)
    rig.overlay.git("commit", "--amend", "-m", "written anew")
    head = rig.overlay.git("rev-parse", "HEAD")
    state = rig.until(lambda state: "problem" in state["overlays"][0])
    assert "elivepatch-server overlay sync --allow-rewind team" in state["overlays"][0]["problem"]
    refused = administer(rig, "sync", "--json")
    assert (refused.returncode, json.loads(refused.stdout)[0]["error"]["code"]) == (6, "overlay-rewound")
    assert "Name the one" in administer(rig, "sync", "--allow-rewind").stderr
    taken = administer(rig, "sync", "--allow-rewind", "team")
    assert (taken.returncode, taken.stdout) == (0, f"team: now at {head[:12]}, 3 entries\n"), taken.stderr
    state = rig.until(lambda state: "problem" not in state["overlays"][0])
    assert state["overlays"][0]["commit"] == head


def test_an_overlay_that_the_settings_do_not_have(rig: Rig) -> None:
    refused = administer(rig, "sync", "other", "--json")
    assert refused.returncode == 2
    assert "Those that there are: team" in refused.stderr


def test_kernels_for_which_there_is_nothing_are_not_listed(rig: Rig, tmp_path: Path) -> None:
    prepare(tmp_path / "data/cache", "5", "6.6.1-amd64", "e" * 40, "debian:linux 6.6.1-1 (sid)")
    rig.until(done)
    time.sleep(2)  # some rounds
    assert {one["kernel"] for one in rig.state()["builds"]} == {RELEASE, OLDER}


def test_without_overlays_there_is_nothing_to_watch(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as server:
        assert get(server, "/overlays").json() == {"overlays": [], "builds": []}
