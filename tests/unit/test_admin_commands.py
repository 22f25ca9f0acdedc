# SPDX-License-Identifier: GPL-2.0-or-later
"""Administration: what is listed, found and removed of a cache, on caches made by hand."""

import fcntl
import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from elivepatch.build.store import Store
from elivepatch.errors import BusyError, NotFoundError, UnavailableError
from elivepatch.kernel.release import parse_release
from elivepatch.server.admin_commands import choose, collect, kernel_data
from elivepatch.server.cli import cli
from elivepatch.server.downloads import collect_downloads, collect_packages, collect_trials
from elivepatch.toolchains import roots
from elivepatch.workshop import Workshop

RELEASE = "6.12.1+deb13-cloud-amd64"
ROOT = {
    "name": "trixie",
    "digest": "d" * 64,
    "packages": 3,
    "created": 0.0,
    "kpatch": "0.9.10-1",
    "format": roots._FORMAT,
}


def make_kernel(workshop: Workshop, key: str, *, release: str = RELEASE, used: float = 1000.0) -> Path:
    return _make(workshop.kernels.store, workshop.cache / "kernels/prepared", key, release, used)


def make_source(workshop: Workshop, key: str, *, used: float = 1000.0) -> Path:
    return _make(workshop.kernels.sources, workshop.cache / "kernels/sources", key, RELEASE, used)


def _make(store: Store, directory: Path, key: str, release: str, used: float) -> Path:
    data = {
        "release": release,
        "origin": "debian:linux 6.12.1-1 (trixie)",
        "build_id": "0123",
        "compiler": "gcc",
        "config_sha256": "4567",
        "modules": {"xfs": "kernel/fs/xfs/xfs.ko.xz"},
    }

    def fill(work: Path) -> None:
        (work / "kernel.json").write_text(json.dumps(data))
        (work / "image").mkdir()
        (work / "image/vmlinux").write_bytes(b"x" * 100_000)

    with store.use(key, fill) as (path, _):
        pass
    os.utime(directory / f".{key}.used", (used, used))
    return path


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def run(workshop: Workshop, *words: str) -> Result:
    return CliRunner(env={"ELIVEPATCH_CACHE": str(workshop.cache)}).invoke(cli, words)


# -- the cache


@pytest.mark.parametrize("command", [("kernel", "list"), ("root", "list"), ("gc",), ("kernel", "show", "x")])
def test_a_cache_that_cannot_be_used_is_not_taken_for_an_empty_one(command: tuple[str, ...]) -> None:
    with pytest.raises(UnavailableError, match="/proc cannot be used") as caught:
        CliRunner(env={"ELIVEPATCH_CACHE": "/proc"}).invoke(cli, command, catch_exceptions=False)
    assert "ELIVEPATCH_CACHE" in (caught.value.hint or "")


def test_a_cache_that_is_not_there_is_said_and_not_made(tmp_path: Path) -> None:
    done = run(Workshop(tmp_path / "mistyped"), "kernel", "list")
    assert done.exit_code == 0
    assert f"the cache {tmp_path}/mistyped is not there yet" in done.stderr
    assert not (tmp_path / "mistyped").exists()


# -- kernels


def test_kernels_are_listed_most_recent_first(workshop: Workshop) -> None:
    make_kernel(workshop, "aaa1", used=100)
    make_kernel(workshop, "bbb1", used=200)
    done = run(workshop, "kernel", "list", "--json")
    assert done.exit_code == 0
    assert [one["key"] for one in json.loads(done.stdout)] == ["bbb1", "aaa1"]
    listed = run(workshop, "kernel", "list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["bbb1", "aaa1"]
    assert all("0123  debian:linux 6.12.1-1 (trixie)" in line for line in listed), "namesakes cannot be told apart"


def test_a_kernel_is_shown_by_key_beginning_and_release(workshop: Workshop) -> None:
    make_kernel(workshop, "aaa1")
    for name in ("aaa1", "aa", RELEASE):
        shown = json.loads(run(workshop, "kernel", "show", name, "--json").stdout)
        assert shown["key"] == "aaa1"
        assert shown["modules"] == 1
        assert shown["kept_objects"] == 0
        assert shown["parts"]["image"] >= 100_000
    assert RELEASE in run(workshop, "kernel", "show", "aaa1").stdout


@pytest.mark.parametrize("name", ["nope", "", "..", "../sources", "/"])
def test_a_kernel_that_is_not_there(workshop: Workshop, name: str) -> None:
    make_kernel(workshop, "aaa1")
    with pytest.raises(NotFoundError) as caught:
        choose(workshop.kernels.store, name)
    assert caught.value.exit_status == 2
    assert "kernel list" in (caught.value.hint or "")


def test_a_name_of_several_kernels_is_refused_with_their_keys(workshop: Workshop) -> None:
    make_kernel(workshop, "aaa1")
    make_kernel(workshop, "aaa2")
    with pytest.raises(NotFoundError) as caught:
        choose(workshop.kernels.store, RELEASE)
    assert "aaa1 (debian:linux 6.12.1-1 (trixie), build ID 0123); aaa2 (" in (caught.value.hint or "")


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"release": 1}'])
def test_a_damaged_kernel_hides_no_other_and_can_be_removed(workshop: Workshop, content: str | None) -> None:
    path = make_kernel(workshop, "aaa1")
    make_kernel(workshop, "bbb1")
    (path / "kernel.json").unlink()
    if content is not None:
        (path / "kernel.json").write_text(content)
    listed = run(workshop, "kernel", "list")
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["bbb1"]
    assert "kernel remove aaa1" in listed.stderr
    with pytest.raises(NotFoundError) as caught:
        kernel_data(choose(workshop.kernels.store, "aaa1"))
    assert "kernel remove aaa1" in (caught.value.hint or "")
    assert run(workshop, "kernel", "remove", "aaa1").exit_code == 0
    assert not path.exists()


def test_a_kernel_is_removed(workshop: Workshop) -> None:
    path = make_kernel(workshop, "aaa1")
    other = make_kernel(workshop, "bbb1")
    done = run(workshop, "kernel", "remove", "aaa1", "--json")
    assert json.loads(done.stdout)["freed"] >= 100_000
    assert not path.exists()
    assert other.exists()


def test_a_kernel_in_use_is_not_removed(workshop: Workshop) -> None:
    path = make_kernel(workshop, "aaa1")
    with workshop.kernels.store.use("aaa1", lambda _: None):
        done = run(workshop, "kernel", "remove", "aaa1")
        assert isinstance(done.exception, BusyError)
        assert path.exists()
    assert run(workshop, "kernel", "remove", "aaa1").exit_code == 0
    assert not path.exists()


# -- cleaning


def test_the_least_recently_used_go_first_whatever_they_are(workshop: Workshop) -> None:
    old_kernel = make_kernel(workshop, "aaa1", used=100)
    old_source = make_source(workshop, "src1", used=200)
    kernel = make_kernel(workshop, "bbb1", used=300)
    source = make_source(workshop, "src2", used=400)
    size = workshop.kernels.store.entries()[0].size
    removed = collect(workshop.kernels, 2 * size + size // 2)
    assert [(one.kind, one.name) for one in removed] == [("kernel", "aaa1"), ("source", "src1")]
    assert not old_kernel.exists()
    assert not old_source.exists()
    assert kernel.exists()
    assert source.exists()


def test_what_is_in_use_stays_and_the_next_goes(workshop: Workshop) -> None:
    held = make_kernel(workshop, "aaa1")
    free = make_kernel(workshop, "bbb1")
    with workshop.kernels.store.use("aaa1", lambda _: None):
        removed = collect(workshop.kernels, 0)
    assert [one.name for one in removed] == ["bbb1"]
    assert held.exists()
    assert not free.exists()


def test_within_the_limit_nothing_goes(workshop: Workshop) -> None:
    path = make_kernel(workshop, "aaa1")
    done = run(workshop, "gc")
    assert done.stdout == "Nothing to remove.\n"
    assert path.exists()


def test_what_killed_makers_left_goes_and_that_of_living_ones_stays(workshop: Workshop) -> None:
    directory = workshop.cache / "kernels/prepared"
    for name in (".aaa1.part.x1", ".bbb1.part.x2"):
        (directory / name).mkdir(parents=True)
        (directory / name / "half").write_bytes(b"x" * 5000)

    def fill(work: Path) -> None:
        (work / "kernel.json").write_text("{}")
        freed = json.loads(run(workshop, "gc", "--json").stdout)["freed"]
        assert freed >= 5000
        assert work.is_dir()  # ours: its lock is held

    with workshop.kernels.store.use("bbb1", fill):
        pass
    assert not (directory / ".aaa1.part.x1").exists()


def make_packages(workshop: Workshop, releases: list[str]) -> Path:
    """Downloads, and what the source remembers of them."""
    root = workshop.cache / "roots/trixie"
    root.mkdir(parents=True)
    (root / "root.json").write_text(json.dumps(ROOT))
    records = workshop.cache / "apt/trixie/releases"
    records.mkdir(parents=True)
    packages = workshop.cache / "packages"
    packages.mkdir()
    for release in releases:

        def package(part: str, release: str = release) -> dict[str, object]:
            return {"uri": "u", "file": f"{part}-{release}.deb", "size": 1, "sha256": "0"}

        parts = {name: package(name) for name in ("debug", "headers", "kbuild", "source")}
        data = {**parts, "images": [package("image")], "origin": "o", "toolchain": "trixie"}
        (records / f"{parse_release(release)}.json").write_text(json.dumps(data))
        for part in ("debug", "headers", "kbuild", "source", "image"):
            (packages / f"{part}-{release}.deb").write_bytes(b"x" * 9000)
    return packages


def test_packages_of_prepared_kernels_stay(workshop: Workshop) -> None:
    other = "6.12.2+deb13-amd64"
    packages = make_packages(workshop, [RELEASE, other])
    make_kernel(workshop, "aaa1")
    (packages / "source-x.deb.part").write_bytes(b"half")
    removed = collect_packages(workshop, rest_seconds=-1)
    assert {one.name for one in removed} == {
        *(f"{part}-{other}.deb" for part in ("debug", "headers", "kbuild", "source", "image")),
        "source-x.deb.part",
    }
    assert len(list(packages.iterdir())) == 5


def test_packages_that_just_came_stay(workshop: Workshop) -> None:
    packages = make_packages(workshop, [RELEASE])
    for path in packages.iterdir():
        long_ago = time.time() - 10**6
        os.utime(path, (long_ago, long_ago))  # as the server dates them
    assert collect_packages(workshop) == []
    assert len(list(packages.iterdir())) == 5


# -- roots


def test_roots_are_listed_with_those_that_can_be_made(workshop: Workshop) -> None:
    make_packages(workshop, [])
    listed = {one["name"]: one for one in json.loads(run(workshop, "root", "list", "--json").stdout)}
    assert listed["trixie"]["installed"]
    assert listed["trixie"]["digest"] == "d" * 64
    assert listed["bookworm"] == {"name": "bookworm", "installed": False}
    assert "not made" in run(workshop, "root", "list").stdout


def test_a_root_is_removed(workshop: Workshop) -> None:
    make_packages(workshop, [])
    (workshop.cache / "roots/trixie/root").mkdir()
    assert run(workshop, "root", "remove", "trixie").exit_code == 0
    assert not (workshop.cache / "roots/trixie").exists()
    assert isinstance(run(workshop, "root", "remove", "trixie").exception, NotFoundError)


@pytest.mark.parametrize("command", ["add", "remove", "verify"])
@pytest.mark.parametrize("name", ["../packages", "sid", "."])
def test_a_root_without_recipe_is_not_found(workshop: Workshop, command: str, name: str) -> None:
    (workshop.cache / "packages").mkdir()
    done = run(workshop, "root", command, name)
    assert isinstance(done.exception, NotFoundError)
    assert "bookworm, trixie" in (done.exception.hint or "")
    assert (workshop.cache / "packages").is_dir()


def _aged(path: Path, days: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 5000)
    moment = time.time() - days * 86400
    os.utime(path, (moment, moment))
    return path


def test_what_can_be_downloaded_again_is_removed_and_mirrors_in_use_stay(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    gone = [
        _aged(tmp_path / "sources/distfiles/linux-6.12.tar.xz", 1),
        _aged(tmp_path / "sources/kernel.org/v6.x/patch-6.12.1.xz", 1),
        _aged(tmp_path / "fixes" / f"{'a' * 40}.patch", 1),
    ]
    lock = _aged(tmp_path / "sources/distfiles/.linux-6.12.tar.xz.lock", 1)
    old, used, held = (tmp_path / f"git/{name}.git" for name in ("old", "used", "held"))
    for mirror in (old, used, held):
        _aged(mirror / "packed-refs", 0 if mirror == used else 40)
        moment = time.time() - 40 * 86400
        os.utime(mirror, (moment, moment))
    with held.with_suffix(".lock").open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        removed = collect_downloads(workshop, rest_seconds=-1)
    assert {one.kind for one in removed} == {"download", "mirror"}
    assert sum(one.size for one in removed) >= 4 * 5000
    assert not any(path.exists() for path in (*gone, old))
    assert lock.exists()
    assert used.is_dir()
    assert held.is_dir()
    assert [one.name for one in collect_downloads(workshop)] == ["held.git"]


def test_what_just_came_stays(tmp_path: Path) -> None:
    path = _aged(tmp_path / "fixes" / f"{'a' * 40}.patch", 0)
    assert collect_downloads(Workshop(tmp_path)) == []
    assert path.exists()


def test_old_trials_are_removed(tmp_path: Path) -> None:
    old = _aged(tmp_path / "cves/trials/old.json", 100)
    new = _aged(tmp_path / "cves/trials/new.json", 1)
    index = _aged(tmp_path / f"cves/{'b' * 64}.sqlite", 100)
    assert {one.name for one in collect_trials(Workshop(tmp_path))} == {old.name, index.name}
    assert new.exists()
