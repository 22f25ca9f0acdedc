# SPDX-License-Identifier: GPL-2.0-or-later
"""The patch that a commit is, from the repository that an overlay names.

Only that commit, the one before it, and the files that it changes are fetched, where the server can leave out the rest
(partial clones); git checks each object by its id, so the patch is what that commit changes, whoever sent it.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from elivepatch.errors import DownloadFailedError, InputTooLargeError, InvalidInputError
from elivepatch.git import FETCH_OPTIONS, Git, said_last
from elivepatch.overlay.model import CommitSource
from elivepatch.patches.limits import PATCH_BYTES
from elivepatch.process import Completed, Guard, ProgramError

_FETCH_BYTES = 1024**3
_SECONDS = 1800.0
_DIFF = (
    "diff-tree",
    "-p",
    "--no-commit-id",
    "--no-renames",
    "--no-ext-diff",
    "--no-textconv",
    "--no-color",
    "--full-index",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)


@dataclass(frozen=True)
class CommitPatches:
    """Patches by commit. They are kept below ``cache``, which nobody else may be able to write to."""

    cache: Path
    local: bool = False

    def patch(self, source: CommitSource) -> bytes:
        """The patch of a commit.

        Raises DownloadFailedError where it cannot be fetched, InvalidInputError for a merge or the first commit,
        InputTooLargeError.
        """
        kept = self.cache / f"{source.id}.patch"
        with contextlib.suppress(OSError), kept.open("rb") as stream:
            return stream.read(PATCH_BYTES + 1)
        with tempfile.TemporaryDirectory(prefix="commit.", dir=self.cache) as scratch:
            data = self._fetched(source, Path(scratch))
            aside = Path(scratch) / "patch"
            aside.write_bytes(data)
            aside.replace(kept)
        return data

    def _fetched(self, source: CommitSource, scratch: Path) -> bytes:
        repository = scratch / "repository.git"
        git = Git(repository, [self._transport(source.url)])
        git.init()
        for name, value in (
            ("core.repositoryFormatVersion", "1"),
            ("extensions.partialClone", "origin"),
            ("remote.origin.url", source.url),
            ("remote.origin.promisor", "true"),
            ("remote.origin.partialCloneFilter", "blob:none"),
        ):
            git("config", name, value)
        guard = _guard(repository, source)
        words = ("fetch", *FETCH_OPTIONS, "--no-tags", "--depth=2", "--filter=blob:none", "origin", source.id)
        self._checked(git, words, source, guard)
        parents = git("rev-list", "--parents", "-n", "1", source.id).stdout.split()[1:]
        if len(parents) != 1:
            what = "a merge" if parents else "the first of its repository"
            raise InvalidInputError(
                f"The commit {source.id} is {what}: it is no patch.", hint="Name the commits that were merged."
            )
        target = scratch / "diff"
        output = _output_guard(target)
        self._checked(git, (*_DIFF, parents[0], source.id), source, _all(guard, output), stdout=target)
        output()
        return target.read_bytes()

    def _transport(self, url: str) -> str:
        kind = url.partition(":")[0]
        if kind not in {"https", "ssh", "git", *(["file"] if self.local else [])}:
            raise InvalidInputError(f"{url[:200]} is no address of a repository.", hint="https://, ssh:// or git://")
        return kind

    def _checked(
        self, git: Git, words: tuple[str, ...], source: CommitSource, guard: Guard, stdout: Path | None = None
    ) -> Completed:
        try:
            done = git(*words, check=False, guard=guard, timeout=_SECONDS, stdout=stdout)
        except ProgramError as error:
            raise DownloadFailedError(
                f"{source.url} took too long: {error.reason}.", hint="Try again later."
            ) from error
        if done.returncode != 0:
            raise DownloadFailedError(
                f"The commit {source.id} cannot be had from {source.url}:\n{said_last(done)}",
                hint="Check that the repository has it and gives single commits away; mirrors of kernel.org do.",
            )
        return done


def _guard(repository: Path, source: CommitSource) -> Guard:
    def guard() -> None:
        size = 0
        for path in (repository / "objects/pack").glob("*"):
            with contextlib.suppress(OSError):
                size += path.stat().st_size
        if size > _FETCH_BYTES:
            raise InputTooLargeError(f"{source.url} sends more than {_FETCH_BYTES // 1024**2} MiB for one commit.")

    return guard


def _output_guard(path: Path) -> Guard:
    def guard() -> None:
        if path.exists() and path.stat().st_size > PATCH_BYTES:
            raise InputTooLargeError(
                f"The change of the commit is larger than {PATCH_BYTES} bytes.", hint="A livepatch is a small change."
            )

    return guard


def _all(*guards: Guard) -> Guard:
    def guard() -> None:
        for one in guards:
            one()

    return guard
