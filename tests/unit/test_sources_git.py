# SPDX-License-Identifier: GPL-2.0-or-later
"""Trees from git: repositories of the test's own, over file:// and git://."""

from __future__ import annotations

import os
import socketserver
import subprocess
import threading
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import pytest

from elivepatch import git
from elivepatch.errors import (
    DownloadFailedError,
    InputTooLargeError,
    InvalidInputError,
    KernelUnavailableError,
    SourceRejectedError,
)
from elivepatch.progress import Progress
from elivepatch.sources.git import GitRepository
from elivepatch.sources.trees import SourceTree

MAKEFILE = "VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = {}\nEXTRAVERSION =\n"


class Repository(NamedTuple):
    path: Path
    cache: Path

    def git(self, *words: str) -> str:
        settings = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "core.autocrlf=false"]
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"}
        done = subprocess.run(
            ["git", *settings, *words], cwd=self.path, check=True, capture_output=True, text=True, env=environment
        )
        return done.stdout.strip()

    def commit(self, number: int) -> str:
        (self.path / "Makefile").write_text(MAKEFILE.format(number))
        self.git("add", "-A")
        self.git("commit", "-qm", f"Linux 6.12.{number}")
        return self.git("rev-parse", "HEAD")

    def source(self, **words: bool | float) -> GitRepository:
        return GitRepository(f"file://{self.path}", self.cache, local=True, **words)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Two commits: tags v6.12.1 (annotated) and v6.12.2 (light), branches main and old."""
    path = tmp_path / "linux"
    path.mkdir()
    made = Repository(path, tmp_path / "cache")
    made.git("init", "-q", "-b", "main")
    (path / "Kconfig").write_text("x\n")
    (path / "scripts").mkdir()
    (path / "scripts/checkpatch.pl").write_text("#!/usr/bin/perl\n")
    (path / "scripts/checkpatch.pl").chmod(0o755)
    (path / "link").symlink_to("scripts/checkpatch.pl")
    (path / "binary").write_bytes(bytes(range(256)) + b"\r\n$Id$ $Format:%H$\n")
    made.commit(1)
    made.git("tag", "-a", "v6.12.1", "-m", "Linux 6.12.1")
    made.git("branch", "old")
    made.commit(2)
    made.git("tag", "v6.12.2")
    return made


def composed(tree: SourceTree, target: Path) -> dict[str, tuple[bytes, bool]]:
    target.mkdir()
    tree.fetch(Progress())
    tree.compose(target, Progress())
    return contents(target)


def contents(top: Path) -> dict[str, tuple[bytes, bool]]:
    found: dict[str, tuple[bytes, bool]] = {}
    for path in top.rglob("*"):
        name = str(path.relative_to(top))
        if path.is_symlink():
            found[name] = (os.fsencode(path.readlink()), False)
        elif path.is_file() and not name.startswith(".git/"):
            found[name] = (path.read_bytes(), bool(path.stat().st_mode & 0o100))
    return found


@pytest.mark.parametrize("whole", [False, True])
def test_tags_branches_and_commits(repository: Repository, tmp_path: Path, *, whole: bool) -> None:
    first, second = repository.git("rev-parse", "old"), repository.git("rev-parse", "main")
    repository.git("config", "uploadpack.allowAnySHA1InWant", "true")
    identities: dict[str, set[str]] = {first: set(), second: set()}
    refs = {"v6.12.1": first, "v6.12.2": second, "main": second, "refs/heads/old": first, first: first}
    for number, (ref, commit) in enumerate(refs.items()):
        tree = repository.source(whole=whole).tree(ref, Progress())
        identities[commit].add(tree.identity)
        assert ref in tree.origin
        assert commit[:12] in tree.origin
        repository.git("checkout", "-q", commit)
        assert composed(tree, tmp_path / str(number)) == contents(repository.path)
    assert [len(found) for found in identities.values()] == [1, 1]
    assert identities[first] != identities[second]


def test_a_branch_is_followed_and_its_past_stays(repository: Repository, tmp_path: Path) -> None:
    source = repository.source()
    before = source.tree("main", Progress())
    before.fetch(Progress())
    third = repository.commit(3)
    after = source.tree("main", Progress())
    assert after.identity != before.identity
    assert third[:12] in after.origin
    assert composed(after, tmp_path / "after")["Makefile"][0] == MAKEFILE.format(3).encode()
    assert composed(before, tmp_path / "before")["Makefile"][0] == MAKEFILE.format(2).encode()


def test_one_commit_comes_without_its_history(repository: Repository) -> None:
    source = repository.source()
    source.tree("main", Progress()).fetch(Progress())
    log = subprocess.run(
        ["git", f"--git-dir={source.mirror}", "rev-list", "--all"], check=True, capture_output=True, text=True
    )
    assert log.stdout.split() == [repository.git("rev-parse", "main")]
    assert len(repository.git("rev-list", "main").split()) == 2


def test_a_full_id_that_is_here_asks_nobody(repository: Repository, tmp_path: Path) -> None:
    source = repository.source()
    source.tree("v6.12.1", Progress()).fetch(Progress())
    commit = repository.git("rev-parse", "v6.12.1^{commit}")
    repository.path.rename(tmp_path / "gone")
    assert composed(source.tree(commit, Progress()), tmp_path / "x")["Makefile"][0] == MAKEFILE.format(1).encode()
    with pytest.raises(DownloadFailedError, match="linux"):
        source.tree("v6.12.1", Progress())


def test_nothing_of_a_repository_runs_or_changes_its_files(repository: Repository, tmp_path: Path) -> None:
    (repository.path / "text").write_bytes(b"one\ntwo\n$Id$ $Format:%H$\n")
    (repository.path / "hidden").write_bytes(b"x\n")
    (repository.path / ".gitattributes").write_text(
        "text text eol=crlf ident export-subst filter=lfs working-tree-encoding=UTF-16\nhidden export-ignore\n"
    )
    (repository.path / ".git/info/attributes").write_text("* -text -ident -filter -working-tree-encoding\n")
    repository.commit(3)
    found = composed(repository.source().tree("main", Progress()), tmp_path / "x")
    assert found["text"] == (b"one\ntwo\n$Id$ $Format:%H$\n", False)
    assert found["hidden"] == (b"x\n", False)
    assert found == contents(repository.path)


def test_submodules_and_links_that_lead_out_are_refused(repository: Repository, tmp_path: Path) -> None:
    (repository.path / "out").symlink_to("../../etc/passwd")
    repository.commit(3)
    (tmp_path / "x").mkdir()
    tree = repository.source().tree("main", Progress())
    tree.fetch(Progress())
    with pytest.raises(SourceRejectedError, match="out is a link"):
        tree.compose(tmp_path / "x", Progress())
    (repository.path / "out").unlink()
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{repository.git('rev-parse', 'old')},sub")
    repository.git("commit", "-qm", "sub")
    tree = repository.source().tree("main", Progress())
    tree.fetch(Progress())
    with pytest.raises(SourceRejectedError, match="submodules"):
        tree.compose(tmp_path / "x", Progress())


def test_what_is_not_there(repository: Repository, tmp_path: Path) -> None:
    source = repository.source()
    with pytest.raises(KernelUnavailableError, match=r"v6\.12\.99") as caught:
        source.tree("v6.12.99", Progress())
    assert "v6.12.1" in (caught.value.hint or "")
    assert f"git ls-remote {source.url}" in (caught.value.hint or "")
    with pytest.raises(KernelUnavailableError) as caught:
        source.tree("refs/heads/mian", Progress())
    assert "Like it are main." in (caught.value.hint or "")
    with pytest.raises(KernelUnavailableError) as caught:
        source.tree(repository.git("rev-parse", "--short", "old"), Progress())
    assert "full id" in (caught.value.hint or "")
    unknown = "1" * 40
    with pytest.raises(KernelUnavailableError, match=unknown):
        source.tree(unknown, Progress()).fetch(Progress())
    with pytest.raises(KernelUnavailableError, match=r"v6\.12\.99") as caught:
        repository.source(whole=True).tree("v6.12.99", Progress())
    assert "v6.12.2" in (caught.value.hint or "")
    nowhere = GitRepository(f"file://{tmp_path}/nowhere", repository.cache, local=True)
    with pytest.raises(DownloadFailedError, match="nowhere"):
        nowhere.tree("main", Progress())


@pytest.mark.parametrize("whole", [False, True])
def test_what_could_not_be_fetched_leaves_no_mirror(repository: Repository, tmp_path: Path, *, whole: bool) -> None:
    nowhere = GitRepository(f"file://{tmp_path}/nowhere", repository.cache, whole=whole, local=True)
    with pytest.raises(DownloadFailedError, match="nowhere"):
        nowhere.bring("1" * 40, Progress())
    assert not nowhere.mirror.exists()
    source = repository.source(whole=whole)
    source.bring("main", Progress())
    repository.path.rename(tmp_path / "moved")
    with pytest.raises(DownloadFailedError):
        source.bring("2" * 40, Progress())
    assert source.query("for-each-ref").stdout, "what is here already stays"


def test_a_server_that_gives_away_only_what_it_names(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In git's older protocol a server gives away the ends of branches and tags only."""
    monkeypatch.setitem(git._OPTIONS, "protocol.version", "0")
    source = repository.source()
    inside = repository.commit(3)
    tree = source.tree("main", Progress())
    repository.commit(4)
    with pytest.raises(KernelUnavailableError, match=inside):  # it was the end of main a moment ago
        tree.fetch(Progress())
    with pytest.raises(KernelUnavailableError, match=inside) as caught:
        source.tree(inside, Progress()).fetch(Progress())
    assert "whole repository" in (caught.value.hint or "")
    assert composed(source.tree("main", Progress()), tmp_path / "x")["Makefile"][0] == MAKEFILE.format(4).encode()
    whole = repository.source(whole=True)
    assert composed(whole.tree(inside, Progress()), tmp_path / "y")["Makefile"][0] == MAKEFILE.format(3).encode()


def test_a_short_id_is_known_in_a_whole_mirror(repository: Repository, tmp_path: Path) -> None:
    short = repository.git("rev-parse", "--short", "old")
    found = composed(repository.source(whole=True).tree(short, Progress()), tmp_path / "x")
    assert found["Makefile"][0] == MAKEFILE.format(1).encode()


def test_paths_and_other_transports_are_not_allowed(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="not allowed"):
        GitRepository(f"file://{repository.path}", tmp_path / "c").tree("main", Progress())
    for url in (str(repository.path), "ext::sh -c touch% /tmp/x", "http://127.0.0.1/x", "-u/x", "fd::17/foo"):
        with pytest.raises(InvalidInputError):
            GitRepository(url, tmp_path / "c", local=True).tree("main", Progress())
    for ref in ("--upload-pack=touch", "-x", "a..b", "main:main", "+main", "main^{tree}"):
        with pytest.raises(InvalidInputError):
            repository.source().tree(ref, Progress())


def test_a_tree_over_the_limit_is_not_checked_out(repository: Repository, tmp_path: Path) -> None:
    (repository.path / "large").write_bytes(b"\0" * 2_000_000)
    repository.commit(3)
    tree = repository.source(limit_bytes=1_000_000).tree("main", Progress())
    tree.fetch(Progress())
    with pytest.raises(InputTooLargeError, match="files"):
        tree.compose(tmp_path, Progress())


def test_a_mirror_that_was_left_half_made_is_made_again(repository: Repository, tmp_path: Path) -> None:
    source = repository.source()
    source.mirror.mkdir(parents=True)
    (source.mirror / "HEAD").write_text("nonsense")
    assert composed(source.tree("main", Progress()), tmp_path / "x")
    (source.mirror / "shallow.lock").write_text("")
    (source.mirror / "objects/pack/tmp_pack_x").write_text("")
    repository.commit(3)
    assert composed(source.tree("main", Progress()), tmp_path / "y")
    assert not list(source.mirror.glob("objects/pack/tmp_*"))


def test_two_at_once_use_one_mirror(repository: Repository, tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def get(number: int) -> None:
        try:
            tree = repository.source().tree(("main", "old")[number % 2], Progress())
            assert len(composed(tree, tmp_path / f"two{number}")) == 5
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=get, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(list((repository.cache / "git").glob("*.git"))) == 1


@pytest.fixture
def daemon(repository: Repository) -> Generator[str]:
    """The repository over git://, from git's own daemon behind a socket of ours."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            base = f"--base-path={repository.path.parent}"
            words = ["git", "daemon", "--inetd", "--export-all", base, str(repository.path.parent)]
            with self.request.makefile("rwb", buffering=0) as stream:
                subprocess.run(words, stdin=stream, stdout=stream, stderr=subprocess.DEVNULL, check=False)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"git://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_over_the_network(repository: Repository, daemon: str, tmp_path: Path) -> None:
    source = GitRepository(f"{daemon}/linux", tmp_path / "c")
    found = composed(source.tree("v6.12.1", Progress()), tmp_path / "x")
    repository.git("checkout", "-q", "v6.12.1")
    assert found == contents(repository.path)
    with pytest.raises(DownloadFailedError, match="none"):
        GitRepository(f"{daemon}/none", tmp_path / "c").tree("main", Progress())
    with pytest.raises(DownloadFailedError, match=r"127\.0\.0\.1:1/"):
        GitRepository("git://127.0.0.1:1/linux", tmp_path / "c").tree("main", Progress())
