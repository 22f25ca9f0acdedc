# SPDX-License-Identifier: GPL-2.0-or-later
"""The store: made once by whoever is first, whole or not there, bounded, and never removed under a user."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path
from queue import Queue

import pytest

from elivepatch.build.store import Store, disk_usage, remove_tree

FORK = multiprocessing.get_context("fork")
PARTS = 20


def fill(work: Path, size: int = 4096) -> None:
    """An entry of several files, with a moment between them in which a kill can fall."""
    for number in range(PARTS):
        (work / str(number)).write_bytes(b"x" * size)
        time.sleep(0.002)


def whole(path: Path) -> bool:
    return sorted(int(each.name) for each in path.iterdir()) == list(range(PARTS))


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.is_dir() and path.name.startswith(".")]


def test_threads_that_ask_at_once_make_one(tmp_path: Path) -> None:
    store = Store(tmp_path, 10**9)
    made: list[int] = []
    found: Queue[bool] = Queue()
    barrier = threading.Barrier(8)

    def make(work: Path) -> None:
        made.append(1)
        fill(work)

    def ask() -> None:
        barrier.wait()
        with store.use("key", make) as (path, was_there):
            assert whole(path)
            found.put(was_there)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(made) == 1
    assert sorted(found.get_nowait() for _ in range(8)) == [False, *[True] * 7]


def test_processes_that_ask_at_once_make_one(tmp_path: Path) -> None:
    log = tmp_path / "log"
    store = Store(tmp_path / "store", 10**9)

    def make(work: Path) -> None:
        with log.open("a") as stream:
            stream.write("made\n")
        fill(work)

    def ask() -> None:
        with store.use("key", make) as (path, _):
            os._exit(0 if whole(path) else 1)

    children = [FORK.Process(target=ask) for _ in range(6)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0] * 6
    assert log.read_text() == "made\n"


def test_a_kill_in_the_middle_leaves_nothing_that_is_served(tmp_path: Path) -> None:
    chance = random.Random(11)
    store = Store(tmp_path, 10**9)

    def make_forever() -> None:
        with store.use("key", fill):
            time.sleep(60)

    interrupted = 0
    for _ in range(15):
        child = FORK.Process(target=make_forever)
        child.start()
        assert child.pid is not None
        time.sleep(chance.uniform(0, 0.09))
        os.kill(child.pid, signal.SIGKILL)
        child.join(10)
        there = (tmp_path / "key").exists()
        assert not there or whole(tmp_path / "key")
        interrupted += not there
        with store.use("key", fill) as (path, was_there):
            assert whole(path)
            assert was_there == there
        assert not leftovers(tmp_path), "what the killed maker left is still there"
        assert store.remove("key")
    assert interrupted > 3, "no kill fell into the making: the test tests nothing"


def test_a_kill_is_swept_up_also_if_nobody_asks_for_the_entry_again(tmp_path: Path) -> None:
    store = Store(tmp_path, 10**9)

    def killed(work: Path) -> None:
        fill(work)
        os.kill(os.getpid(), signal.SIGKILL)

    def make() -> None:
        with store.use("key", killed):
            pass

    child = FORK.Process(target=make)
    child.start()
    child.join(10)
    assert leftovers(tmp_path)
    assert store.sweep() >= PARTS * 4096
    assert not leftovers(tmp_path)
    assert store.sweep() == 0


def test_what_is_being_made_is_not_swept(tmp_path: Path) -> None:
    store = Store(tmp_path, 10**9)

    def make(work: Path) -> None:
        fill(work)
        assert store.sweep() == 0

    with store.use("key", make) as (path, _):
        assert whole(path)


def test_a_maker_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path, 10**9)

    def fail(work: Path) -> None:
        fill(work)
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"), store.use("key", fail):
            pass
    assert not leftovers(tmp_path)
    assert store.entries() == []
    with store.use("key", fill) as (path, was_there):
        assert whole(path)
        assert not was_there


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    store = Store(tmp_path, 10**9)
    for key in ("a", "b", "c"):
        with store.use(key, lambda work: fill(work, 8192)):
            pass
    for key, age in (("a", 300), ("b", 200), ("c", 100)):
        then = time.time() - age
        os.utime(tmp_path / f".{key}.used", (then, then))
    with store.use("a", fill):
        pass  # now it is the youngest
    assert [entry.key for entry in store.entries()] == ["b", "c", "a"]
    size = store.entries()[0].size
    assert size >= PARTS * 8192
    assert [entry.key for entry in store.collect(2 * size)] == ["b"]
    assert [entry.key for entry in store.collect(0)] == ["c", "a"]
    assert store.entries() == []


def test_a_new_entry_makes_room_for_itself_but_not_in_itself(tmp_path: Path) -> None:
    store = Store(tmp_path, PARTS * 4096 + 1)
    with store.use("a", fill):
        pass
    with store.use("b", fill) as (path, _):
        assert whole(path)
        assert [entry.key for entry in store.entries()] == ["b"]
    tiny = Store(tmp_path, 1)
    with tiny.use("c", fill) as (path, _):
        assert whole(path), "an entry was removed while its maker uses it"


def test_an_entry_in_use_is_never_removed(tmp_path: Path) -> None:
    store = Store(tmp_path, 10**9)
    ready, done = FORK.Event(), FORK.Event()

    def hold() -> None:
        with store.use("key", fill):
            ready.set()
            done.wait(30)

    child = FORK.Process(target=hold)
    child.start()
    assert ready.wait(10)
    assert not store.remove("key")
    assert store.collect(0) == []
    assert whole(tmp_path / "key")
    with store.use("key", fill) as (_, was_there):  # sharing is allowed
        assert was_there
    done.set()
    child.join(10)
    assert store.remove("key")
    assert not store.remove("key")


def test_an_entry_held_by_a_killed_process_can_be_removed(tmp_path: Path) -> None:
    store = Store(tmp_path, 10**9)
    ready = FORK.Event()

    def hold() -> None:
        with store.use("key", fill):
            ready.set()
            time.sleep(60)

    child = FORK.Process(target=hold)
    child.start()
    assert ready.wait(10)
    child.kill()
    child.join(10)
    assert store.remove("key")


# -- removing


def test_any_tree_can_be_removed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (outside / "kept").write_text("kept")
    tree = tmp_path / "tree"
    (tree / "closed/inner").mkdir(parents=True)
    (tree / "closed/inner/file").write_text("")
    (tree / "closed").chmod(0)
    (tree / "link").symlink_to(outside)
    (tree / "file-link").symlink_to(outside / "kept")
    os.mkfifo(tree / "pipe")
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        os.chdir(tree)
        for _ in range(3000):  # deeper than a path may be long, than a call stack and than files can be open
            Path("d").mkdir()
            os.chdir("d")
            Path("f").write_text("")
    finally:
        os.fchdir(here)
        os.close(here)
    os.chdir("/")
    remove_tree(tree)
    assert not tree.exists()
    assert (outside / "kept").read_text() == "kept"
    assert outside.stat().st_mode & 0o777 == 0o755
    remove_tree(tree)  # there is none: nothing happens
    link = tmp_path / "link"
    link.symlink_to(outside)
    remove_tree(link)
    assert (outside / "kept").exists()


def test_disk_usage_is_of_blocks(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as stream:
        stream.truncate(10**9)
    (tmp_path / "full").write_bytes(b"x" * 65536)
    assert 65536 <= disk_usage(tmp_path) < 10**6
