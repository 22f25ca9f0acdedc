# SPDX-License-Identifier: GPL-2.0-or-later
"""The mirror of an overlay on a host: a bare repository, and the state that was last found good.

A new head is fetched aside, checked, and only then becomes the state: signature, no rewind, a description without
errors. Whatever is wrong with it, what was there before stays.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from elivepatch.errors import (
    DiskFullError,
    DownloadFailedError,
    InputTooLargeError,
    InvalidInputError,
    NotFoundError,
    SourceRejectedError,
    UnavailableError,
)
from elivepatch.git import FETCH_OPTIONS, OBJECT, Git, asks_who_we_are, is_forbidden_transport, said_last
from elivepatch.overlay.findings import Findings
from elivepatch.overlay.lint import usable_overlay
from elivepatch.overlay.model import Overlay
from elivepatch.overlay.repository import GitFiles
from elivepatch.overlay.settings import check_place
from elivepatch.overlay.signatures import PinnedKeys, SignatureRejectedError, require_signed
from elivepatch.process import Completed, Guard, ProgramError

_FETCH_BYTES = 512 * 1024**2
_FETCH_SECONDS = 900.0
_FETCH_MEMORY = 2 * 1024**3
_INCOMING = "refs/elivepatch/incoming"
_KEPT = "refs/elivepatch/kept"
#: What a repository sends is checked as it arrives: no broken trees, no '.git' or '..' in them.
_FETCH_SETTINGS = {"fetch.fsckObjects": "true", "transfer.fsckObjects": "true", "fetch.unpackLimit": "1"}
_PACKS = 30
#: How git names an object with a fault, and the fault (git-fsck(1), "FSCK MESSAGES").
_FSCK = re.compile(r"^(?:remote: )?error: object ([0-9a-f]{40,64}): (\w+: .+)$", re.ASCII | re.MULTILINE)
_REPAIR = (
    "What was here stays. The repository itself must be repaired, its address is right: whoever runs it sees the same "
    "with 'git fsck --strict', and makes the commit with that object anew."
)
_ROOM = "Make room there, and ask again. What is in force stays."


class RewindError(SourceRejectedError):
    """The overlay's head does not follow from the one that is here."""

    code = "overlay-rewound"
    default_hint = (
        "What was here stays. Whoever runs the overlay knows whether its history was rewritten on purpose; then "
        "'overlay sync --allow-rewind NAME' (of elivepatch on a host, of elivepatch-server on a server) takes it, once."
    )


@dataclass(frozen=True)
class MirrorState:
    """What is in force of an overlay: a commit, where it came from, when (seconds since the epoch), who signed it.

    ``keys`` is the digest of the pinned keys that it was checked with.
    """

    commit: str
    url: str
    ref: str
    synced: float
    signer: str | None = None
    keys: str | None = None


@dataclass(frozen=True)
class Synced:
    """What a sync gave. ``before`` is the commit that was in force."""

    state: MirrorState
    overlay: Overlay
    before: str | None

    @property
    def changed(self) -> bool:
        """Whether there is anything new."""
        return self.before != self.state.commit


@dataclass(frozen=True)
class Mirror:
    """The mirror of the overlay at ``url`` in ``directory``; ``ref`` is a branch, or a full name (``refs/tags/v1``)."""

    directory: Path
    url: str
    ref: str = "main"
    keys: PinnedKeys = field(default_factory=PinnedKeys)

    @property
    def repository(self) -> Path:
        """The bare repository."""
        return self.directory / "repository.git"

    def state(self) -> MirrorState | None:
        """What is in force; None where nothing is, or was checked with other keys than those that are pinned now.

        Raises PermissionError where it may not be read.
        """
        found = self._stored()
        return found if found is not None and found.keys == self.keys.digest() else None

    def _stored(self) -> MirrorState | None:
        """What was last put in force from where the overlay is configured to come from now."""
        try:
            with (self.directory / "state.json").open("rb") as stream:
                found = MirrorState(**json.loads(stream.read(64 * 1024)))
        except PermissionError:
            raise
        except (OSError, ValueError, TypeError):
            return None
        usable = found.url == self.url and found.ref == self.ref and OBJECT.fullmatch(str(found.commit))
        return found if usable else None

    def read(self, name: str, findings: Findings) -> tuple[Overlay, GitFiles]:
        """The overlay that is in force; ``name`` it is called by goes into messages.

        Raises NotFoundError where it was never synchronised, OverlayRejectedError, UnavailableError where the mirror is
        damaged.
        """
        state = self.state()
        if state is None:
            raise NotFoundError(
                f"The overlay {name} is not here yet, or its settings have changed.", hint="'elivepatch overlay sync'."
            )
        try:
            files = GitFiles(self.repository, state.commit, findings)
            return usable_overlay(files, name, findings), files
        except ProgramError as error:
            raise UnavailableError(
                f"The mirror of the overlay {name} cannot be read: {said_last(error.completed, 1) or error.reason}",
                hint=f"'overlay sync' brings what is missing. If that does not help, remove {self.repository} before.",
            ) from error

    def sync(
        self, name: str, write: Callable[[Path, bytes], None], findings: Findings, *, allow_rewind: bool = False
    ) -> Synced:
        """Fetch what the overlay has now, and put it in force if it is good.

        ``write`` puts a file in place, whole or not at all. Raises DownloadFailedError where the repository cannot be
        reached, SignatureRejectedError, RewindError, OverlayRejectedError, InputTooLargeError; DiskFullError and
        UnavailableError where the mirror cannot be written.
        """
        check_place(self.url, self.ref)
        with self._locked():
            git = self._git()
            before = self._stored()
            keys = self.keys.digest()
            try:
                found = self._fetched(git, name)
                commit, tag = self._commit(git, found, name)
                what = f"{'The tag' if tag else 'The head'} {found[:12]} of the overlay {name}"
                signer = None
                if self.keys:
                    if self.ref.startswith("refs/tags/") and not tag:
                        # its commit may be signed: that it is the one the tag means nobody has signed
                        raise SignatureRejectedError(f"{self.ref} of the overlay {name} is refused: no signed tag.")
                    signer = require_signed(git, found, tag=tag, keys=self.keys, what=what)
                    if tag:
                        self._check_tag_name(git, found, what)
                if before is not None and not allow_rewind:
                    self._check_follows(git, before.commit, commit, name)
                overlay = usable_overlay(GitFiles(self.repository, commit, findings), name, findings)
                git("update-ref", _KEPT, commit)
            finally:
                git("update-ref", "-d", _INCOMING, check=False)
            state = MirrorState(commit, self.url, self.ref, time.time(), signer, keys)
            write(self.directory / "state.json", (json.dumps(asdict(state), indent=1) + "\n").encode())
        return Synced(state, overlay, before.commit if before else None)

    # -- below

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        with contextlib.ExitStack() as stack:
            try:
                lock = stack.enter_context((self.directory / "lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX)
                git = self._made()
            except (OSError, ProgramError) as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise DiskFullError(f"No space is left in {self.directory}.", hint=_ROOM) from error
                why = said_last(error.completed) or error.reason if isinstance(error, ProgramError) else error.strerror
                raise UnavailableError(
                    f"The mirror {self.directory} cannot be written: {why}",
                    hint="See that it can be, and run this as the user whose directory it is. What is in force stays.",
                ) from error
            if self._bytes() > _FETCH_BYTES // 2 or len(list(self._packs.glob("*.pack"))) > _PACKS:
                git("gc", "--prune=now", "--quiet", timeout=_FETCH_SECONDS)  # what was refused goes
            yield

    def _git(self) -> Git:
        return Git(self.repository, [self.url.partition(":")[0]], settings=_FETCH_SETTINGS)

    def _made(self) -> Git:
        git = Git(self.repository)
        whole = (self.repository / "made").exists() and git("rev-parse", "--git-dir", check=False).returncode == 0
        if not whole:  # of one that was killed while it made it, or of a disk that lost it
            shutil.rmtree(self.repository, ignore_errors=True)
            git.init()
            (self.repository / "made").touch()
        git.remove_leftovers()
        return git

    @property
    def _packs(self) -> Path:
        return self.repository / "objects/pack"

    def _bytes(self) -> int:
        size = 0
        for path in self._packs.glob("*"):
            with contextlib.suppress(OSError):
                size += path.stat().st_size
        return size

    def _fetched(self, git: Git, name: str) -> str:
        """The object that the ref names now: a commit, or a tag."""
        done = self._fetch(git, name)
        if done.returncode != 0 and git("fsck", "--connectivity-only", check=False).returncode != 0:
            done = self._fetched_anew(name)  # git asks for nothing of what it only believes to have
        if done.returncode != 0:
            raise self._failed(done, name)
        return git("rev-parse", "--verify", _INCOMING).stdout.strip()

    def _fetch(self, git: Git, name: str) -> Completed:
        ref = self.ref if self.ref.startswith("refs/") else f"refs/heads/{self.ref}"
        words = ("fetch", *FETCH_OPTIONS, "--no-tags", self.url, f"+{ref}:{_INCOMING}")
        try:
            return git(*words, check=False, guard=self._guard(name), timeout=_FETCH_SECONDS, memory_bytes=_FETCH_MEMORY)
        except ProgramError as error:
            raise DownloadFailedError(
                f"The overlay {name} took too long: {error.reason}.", hint="Try later."
            ) from error

    def _fetched_anew(self, name: str) -> Completed:
        """Fetch into a new repository in the place of one that lost something; without success that one stays."""
        aside = self.repository.with_name("repository.old")
        shutil.rmtree(aside, ignore_errors=True)
        self.repository.rename(aside)
        good = False
        try:
            self._made()
            done = self._fetch(self._git(), name)
            good = done.returncode == 0
            return done
        finally:
            if good:
                shutil.rmtree(aside, ignore_errors=True)
            else:
                shutil.rmtree(self.repository, ignore_errors=True)
                aside.rename(self.repository)

    def _failed(self, done: Completed, name: str) -> DownloadFailedError | SourceRejectedError | DiskFullError:
        said = said_last(done)
        if "fsck error" in said:
            found = "; ".join(f"{oid[:12]}: {what}" for oid, what in _FSCK.findall(said)) or "a fault"
            return SourceRejectedError(
                f"The overlay {name} at {self.url} is refused: git's fsck found in its objects {found}.", hint=_REPAIR
            )
        if os.strerror(errno.ENOSPC) in said:
            return DiskFullError(f"No space is left in {self.directory} for the overlay {name}.", hint=_ROOM)
        hint = "Check url and branch of the overlay in the settings, and the network. What was here stays."
        if is_forbidden_transport(said):
            hint = "Name it with https://, ssh://, git:// or file:///."
        elif asks_who_we_are(said):
            hint = "Give the user that fetches it an ssh key and the host's key, or /etc/gitconfig a credential helper."
        return DownloadFailedError(f"The overlay {name} cannot be fetched from {self.url}:\n{said}", hint=hint)

    def _guard(self, name: str) -> Guard:
        def guard() -> None:
            if self._bytes() > _FETCH_BYTES:
                raise InputTooLargeError(
                    f"The overlay {name} has more than {_FETCH_BYTES // 1024**2} MiB.", hint="No overlay is so large."
                )

        return guard

    def _commit(self, git: Git, oid: str, name: str) -> tuple[str, bool]:
        kind = git("cat-file", "-t", oid).stdout.strip()
        done = git("rev-parse", "--quiet", "--verify", f"{oid}^{{commit}}", check=False)
        commit = done.stdout.strip()
        if done.returncode != 0 or not OBJECT.fullmatch(commit):
            raise InvalidInputError(
                f"{self.ref} of the overlay {name} names no commit.", hint="Name a branch or a tag."
            )
        return commit, kind == "tag"

    def _check_tag_name(self, git: Git, tag: str, what: str) -> None:
        """The name is part of what was signed: another tag of the same hand must not be given in its place."""
        head = git("cat-file", "tag", tag).stdout.partition("\n\n")[0].splitlines()
        if f"tag {self.ref.removeprefix('refs/tags/')}" not in head:
            raise SignatureRejectedError(f"{what} is refused: it was signed under another name than {self.ref}.")

    def _check_follows(self, git: Git, before: str, after: str, name: str) -> None:
        if git("merge-base", "--is-ancestor", before, after, check=False).returncode != 0:
            raise RewindError(
                f"The head {after[:12]} of the overlay {name} does not follow from {before[:12]}, which is here: "
                "somebody rewrote its history, or gives an older one."
            )
