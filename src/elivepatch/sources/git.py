# SPDX-License-Identifier: GPL-2.0-or-later
"""Trees from git: a branch, tag or commit of a repository, kept in a bare mirror of its own.

Nothing of a repository runs here: no hooks, filters, submodules or large file storage, and only the transports named.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import hashlib
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from elivepatch.errors import (
    DiskFullError,
    DownloadFailedError,
    InputTooLargeError,
    InvalidInputError,
    KernelUnavailableError,
    SourceRejectedError,
)
from elivepatch.git import FETCH_OPTIONS, OBJECT, Git, asks_who_we_are, is_forbidden_transport, said_last
from elivepatch.process import Completed, Guard, ProgramError
from elivepatch.progress import Progress
from elivepatch.sources.archives import settle
from elivepatch.sources.download import RESERVE_BYTES
from elivepatch.sources.reference import check_git
from elivepatch.sources.trees import SourceTree

_GB = 1024**3
#: More than any kernel tree holds.
_FILES = 400_000
#: Branches and tags that are looked through for one that is like what was named.
_NAMES = 20_000
_SHOWN = re.compile(r"[\w.+/@-]{1,100}", re.ASCII)
_HINT_REF = "Name a branch, a tag, or the full id of a commit that the server gives away."


@dataclass(frozen=True)
class GitRepository:
    """A repository by its address; its mirror lies below ``cache``.

    What is fetched is the one commit that is asked for, without history (a kernel: some 250 MB); ``whole`` keeps all
    branches and tags with their history instead (linux-stable: 5 GB), for commits that a server does not give away on
    their own, and for short ids. ``limit_bytes`` bounds what one fetch brings and what a tree holds; ``timeout`` is
    seconds. ``local`` also allows ``file://``.
    """

    url: str
    cache: Path
    whole: bool = False
    local: bool = False
    limit_bytes: int = 12 * _GB
    timeout: float = 3 * 3600.0
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    @property
    def mirror(self) -> Path:
        """The bare repository."""
        return self.cache / "git" / f"{hashlib.sha256(self.url.encode()).hexdigest()[:32]}.git"

    def tree(self, ref: str, progress: Progress) -> SourceTree:
        """The tree of what a branch, tag or commit id names now; the server is asked, but for a full id that is here.

        Raises InvalidInputError for a reference that is none, KernelUnavailableError for one that is not there,
        DownloadFailedError where the repository cannot be reached.
        """
        commit = self._commit_of(ref, progress)
        identity = hashlib.sha256(f"elivepatch-git-1 {commit}".encode()).hexdigest()
        short = "" if ref == commit else f" (commit {commit[:12]})"

        def fetch(progress: Progress) -> None:
            if not self._has(commit):
                self._fetch(commit, ref, progress)

        def compose(target: Path, progress: Progress) -> None:
            progress.step(f"checking out {commit[:12]} of {self.url}")
            self._check_out(commit, target)

        return SourceTree(f"git:{self.url}#{ref}{short}", identity, fetch, compose)

    # -- what a mirror holds, for those who want no tree

    def bring(self, ref: str, progress: Progress) -> str:
        """Have what a branch, tag or commit id names now in the mirror, and give its commit. For errors see `tree`."""
        commit = self._commit_of(ref, progress)
        if not self._has(commit):
            self._fetch(commit, ref, progress)
        return commit

    def bring_all(self, progress: Progress) -> None:
        """Have all branches and tags with their history in a whole mirror. Raises DownloadFailedError."""
        self._fetch_all(progress)

    def query(
        self, *words: str, stdin: bytes | None = None, stdout: Path | None = None, check: bool = True
    ) -> Completed:
        """Ask git something about the mirror. ``stdout`` writes what it says to a file. Raises ProgramError."""
        return self._git(*words, stdin=stdin, stdout=stdout, check=check)

    # -- git

    def _git(
        self,
        *words: str,
        check: bool = True,
        guard: Guard | None = None,
        timeout: float = 300.0,
        index: Path | None = None,
        place: Sequence[str] = (),
        stdin: bytes | None = None,
        stdout: Path | None = None,
    ) -> Completed:
        git = Git(self.mirror, ("https", "ssh", "git", *(["file"] if self.local else [])))
        environment = {"GIT_INDEX_FILE": str(index)} if index else None
        return git(
            *words,
            check=check,
            guard=guard,
            timeout=timeout,
            environment=environment,
            place=place,
            stdin=stdin,
            stdout=stdout,
        )

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        """The mirror, made if need be, while nobody else writes to it."""
        self.mirror.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, self.mirror.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (self.mirror / "elivepatch").exists():
                shutil.rmtree(self.mirror, ignore_errors=True)  # of one that was killed while it made it
                Git(self.mirror).init()
                (self.mirror / "elivepatch").write_text(f"{self.url}\n")
            Git(self.mirror).remove_leftovers()  # we hold the lock that counts
            try:
                yield
            except BaseException:
                if not self._git("for-each-ref", "--count=1", check=False).stdout:
                    shutil.rmtree(self.mirror, ignore_errors=True)  # nothing has ever been fetched
                raise

    def _has(self, commit: str) -> bool:
        """Whether a commit is here with its whole tree: the ref that keeps it is written last."""
        if not (self.mirror / "elivepatch").exists():
            return False
        if self.whole:
            return self._git("cat-file", "-e", f"{commit}^{{commit}}", check=False).returncode == 0
        return self._git("rev-parse", "--quiet", "--verify", _keep(commit), check=False).stdout.strip() == commit

    # -- the server

    def _commit_of(self, ref: str, progress: Progress) -> str:
        """The commit that a reference names now; a whole mirror is brought up to date for that."""
        check_git(self.url, ref)
        if self.url.startswith("file:") and not self.local:
            raise InvalidInputError(
                f"{self.url}: paths of the server are not allowed.", hint="https://, ssh:// or git://"
            )
        if self.whole and not (OBJECT.fullmatch(ref) and self._has(ref)):
            self._fetch_all(progress)
            return self._resolved(ref)
        return ref if OBJECT.fullmatch(ref) else self._ask(ref)

    def _ask(self, ref: str) -> str:
        """The commit that a branch or tag of the server is now."""
        names = [ref] if ref.startswith("refs/") else [f"refs/tags/{ref}", f"refs/heads/{ref}"]
        wanted = [word for name in names for word in (name, f"{name}^{{}}")]
        done = self._remote("ls-remote", "--quiet", self.url, *wanted, timeout=120)
        if done.returncode != 0:
            raise self._failed(done, "the list of refs")
        found = {name: commit for commit, _, name in (line.partition("\t") for line in done.stdout.splitlines())}
        for name in names:
            commit = found.get(f"{name}^{{}}") or found.get(name)
            if commit and OBJECT.fullmatch(commit):
                return commit
        if re.fullmatch(r"[0-9a-f]{7,63}", ref):
            hint = "A short id is only known where the whole repository is mirrored: name the full id."
        else:
            listed = self._remote("ls-remote", "--quiet", "--refs", "--heads", "--tags", self.url, timeout=120).stdout
            hint = self._hint(ref, [line.partition("\t")[2] for line in listed.splitlines()])
        raise KernelUnavailableError(f"{self.url} has no branch or tag '{ref}'.", hint=hint)

    def _hint(self, ref: str, known: Sequence[str]) -> str:
        """What to name instead of a reference that is not there; ``known`` are the full names of those that are."""
        names = [short for name in known[:_NAMES] if _SHOWN.fullmatch(short := _short(name))]
        near = difflib.get_close_matches(_short(ref), names, n=3)
        like = f" Like it are {', '.join(near)}." if near else ""
        return f"{_HINT_REF}{like} All of them: git ls-remote {self.url}"

    def _fetch(self, commit: str, ref: str, progress: Progress) -> None:
        with self._locked():
            if self._has(commit):
                return
            progress.step(f"fetching {commit[:12]} from {self.url}")
            done = self._bring("--depth=1", "--no-tags", self.url, f"+{commit}:{_keep(commit)}", progress=progress)
            if done.returncode != 0 and not OBJECT.fullmatch(ref):
                # a server that gives no commits away by their id gives refs; one that has moved on meanwhile is told
                names = [ref] if ref.startswith("refs/") else [f"refs/tags/{ref}", f"refs/heads/{ref}"]
                for name in names:
                    done = self._bring(
                        "--depth=1", "--no-tags", self.url, f"+{name}:refs/elivepatch/new", progress=progress
                    )
                    if done.returncode == 0:
                        break
                self._git("update-ref", _keep(commit), commit, check=False)
            if done.returncode != 0:
                raise self._failed(done, commit)
            if not self._has(commit):
                raise KernelUnavailableError(
                    f"'{ref}' of {self.url} is not the commit {commit} any more.", hint="Start the build again."
                )

    def _fetch_all(self, progress: Progress) -> None:
        with self._locked():
            progress.step(f"fetching all of {self.url}")
            shallow = ["--unshallow"] if (self.mirror / "shallow").exists() else []
            heads = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
            done = self._bring("--prune", *shallow, self.url, *heads, progress=progress)
            if done.returncode != 0:
                raise self._failed(done, "all")
            refs = self._git("for-each-ref", "--format=%(objectname) %(refname)").stdout
            stamp = self.mirror / "elivepatch-refs"  # stands for what is here; written anew only when that changed
            digest = hashlib.sha256(refs.encode()).hexdigest()
            if not stamp.exists() or stamp.read_text() != digest:
                stamp.write_text(digest)

    def _resolved(self, ref: str) -> str:
        """The commit of a branch, tag or id in a whole mirror."""
        for name in (f"refs/tags/{ref}", f"refs/heads/{ref}", ref):
            done = self._git("rev-parse", "--quiet", "--verify", f"{name}^{{commit}}", check=False)
            if done.returncode == 0 and OBJECT.fullmatch(done.stdout.strip()):
                return done.stdout.strip()
        known = self._git("for-each-ref", "--format=%(refname)", "refs/heads", "refs/tags").stdout.splitlines()
        raise KernelUnavailableError(f"{self.url} has no branch, tag or commit '{ref}'.", hint=self._hint(ref, known))

    def _bring(self, *words: str, progress: Progress) -> Completed:
        return self._remote("fetch", *FETCH_OPTIONS, *words, guard=self._watch(progress), timeout=self.timeout)

    def _remote(self, *words: str, timeout: float, guard: Guard | None = None) -> Completed:
        try:
            return self._git(*words, check=False, guard=guard, timeout=timeout)
        except ProgramError as error:  # the time limit
            raise DownloadFailedError(f"{self.url} took too long:\n{error.message}", hint="Try again later.") from error

    def _failed(self, done: Completed, what: str) -> DownloadFailedError | KernelUnavailableError:
        said = said_last(done)
        if re.search(r"not our ref|unadvertised object|couldn't find remote ref|no such remote ref", said):
            return KernelUnavailableError(f"{self.url} does not give {what} away:\n{said}", hint=_HINT_WHOLE)
        if is_forbidden_transport(said):
            return DownloadFailedError(
                f"{self.url}: this transport is not allowed.", hint="Use https://, ssh:// or git://"
            )
        if asks_who_we_are(said):
            return DownloadFailedError(
                f"{self.url} asks who we are:\n{said}",
                hint="Give the server's user an ssh key and the host's key, or /etc/gitconfig a credential helper.",
            )
        return DownloadFailedError(
            f"{what} of {self.url} cannot be fetched:\n{said}", hint="Check address and network."
        )

    def _watch(self, progress: Progress) -> Guard:
        """Tells how much a fetch has brought, and ends one that brings more than it may or would fill the disk."""
        packs = self.mirror / "objects/pack"
        told = time.monotonic()

        def guard() -> None:
            nonlocal told
            size = 0
            for path in packs.glob("tmp_*"):
                with contextlib.suppress(FileNotFoundError):
                    size += path.stat().st_size
            if size > self.limit_bytes:
                raise InputTooLargeError(f"{self.url} sends more than the limit of {self.limit_bytes / _GB:.1f} GB.")
            if time.monotonic() - told > 2:
                told = time.monotonic()
                progress.step(f"fetching from {self.url}, {size / 1024**2:.0f} MB")
            if shutil.disk_usage(self.mirror).free < RESERVE_BYTES:
                raise DiskFullError(f"No space is left in {self.mirror.parent} for {self.url}.")

        return guard

    # -- the tree

    def _check_out(self, commit: str, target: Path) -> None:
        if not self._has(commit):
            raise DownloadFailedError(f"{commit} of {self.url} is not here any more.", hint="Start the build again.")
        self._measure(commit)
        with tempfile.TemporaryDirectory(prefix="elivepatch-index.") as scratch:
            index = Path(scratch) / "index"
            try:
                self._git("read-tree", f"{commit}^{{tree}}", index=index)
                place = ["-c", "core.bare=false", f"--work-tree={target}"]
                self._git("checkout-index", "--quiet", "--all", index=index, place=place, timeout=1800)
            except ProgramError as error:
                raise SourceRejectedError(f"{commit} of {self.url} cannot be checked out:\n{error.message}") from error
        settle(target, f"git:{self.url}#{commit}")

    def _measure(self, commit: str) -> None:
        listing = self._git("ls-tree", "-r", "-l", "--full-tree", commit).stdout
        lines = [line.split("\t", 1)[0].split() for line in listing.splitlines()]
        if any(fields[1] == "commit" for fields in lines if len(fields) > 1):
            raise SourceRejectedError(
                f"{commit} of {self.url} has submodules, which are not fetched.", hint="No kernel has submodules."
            )
        total = sum(int(fields[3]) for fields in lines if len(fields) > 3 and fields[3].isdigit())
        if total > self.limit_bytes or len(lines) > _FILES:
            raise InputTooLargeError(
                f"{commit} of {self.url} has {len(lines)} files of {total / _GB:.1f} GB; the limits are {_FILES} files "
                f"and {self.limit_bytes / _GB:.1f} GB."
            )


_HINT_WHOLE = (
    "Name a branch or tag that leads to it, or have the whole repository mirrored (linux-stable: some 5 GB), where any "
    "commit can be named."
)


def _short(ref: str) -> str:
    """The name of a branch or tag as people say it."""
    return ref.removeprefix("refs/heads/").removeprefix("refs/tags/")


def _keep(commit: str) -> str:
    """The ref that keeps a commit in the mirror."""
    return f"refs/elivepatch/{commit}"
