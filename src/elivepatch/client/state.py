# SPDX-License-Identifier: GPL-2.0-or-later
"""What the client keeps on disk: files written whole or not at all, in directories that nobody else can write to."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Generator, Iterator
from pathlib import Path

from elivepatch.errors import DiskFullError, HostError, InvalidInputError, InvalidSettingError
from elivepatch.protocol import limits

#: Seconds that a lock is waited for, and between two tries.
_LOCK_PATIENCE = 0.5
_LOCK_POLL = 0.05

#: How many links the kernel follows in one name (MAXSYMLINKS in include/linux/namei.h).
_LINKS = 40

DEFAULT_STATE = Path("/var/lib/elivepatch-client")


#: What the kernel says where a file system takes no changes, or cannot any more.
_UNWRITABLE = {errno.EROFS, errno.EIO}


class LockedError(HostError):
    """Another elivepatch is changing this kernel."""


class UnwritableError(HostError):
    """The file system takes no changes."""


def write_whole(path: Path, data: bytes, *, mode: int = 0o600, public: bool = False) -> None:
    """Write a file aside, get it to the disk, then put it in its place: at any moment there is the old one or the new.

    ``public`` gives it its mode whatever the umask. Raises DiskFullError, UnwritableError and HostError.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                if public:
                    os.fchmod(stream.fileno(), mode)
                os.fsync(stream.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError(
                f"No space is left to write {path}.", hint="Free some space on that file system and try again."
            ) from error
        if error.errno in _UNWRITABLE:
            raise UnwritableError(
                f"{path} cannot be written: {error.strerror}.", hint="Make that file system writable and try again."
            ) from error
        raise HostError(
            f"{path} cannot be written: {error.strerror}.", hint="Check the directory and its permissions."
        ) from error


def read_regular(path: Path, limit_bytes: int) -> bytes:
    """The first bytes of a file, at most ``limit_bytes``. Raises OSError, also for a link, a pipe or a device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return stream.read(limit_bytes)


def check_output(path: Path) -> None:
    """Check that a file can be put there, before the work is done. Raises InvalidInputError.

    What is put there takes the place of what it finds: of a file, but never of a device, a pipe or a link.
    """
    try:
        no_file = path.is_symlink() or (path.exists() and not path.is_file() and not path.is_dir())
        no_place = path.is_dir() or not path.parent.is_dir()
    except OSError as error:
        raise InvalidInputError(
            f"{path} cannot be written: {error.strerror}.", hint="Name a file in a directory that you may write to."
        ) from error
    if no_file:
        raise InvalidInputError(
            f"{path} cannot be written: it is no file but a link, a device or a pipe.",
            hint="Give the name of a file, new or old; it is written whole.",
        )
    if no_place:
        raise InvalidInputError(
            f"{path} cannot be written: that is a directory, or its directory is not there.",
            hint="Give the name of a file in a directory that exists.",
        )


def sync_directory(path: Path) -> None:
    """Bring to the disk which files a directory has. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_trusted(path: Path, user: int) -> None:
    """Check that nobody but root and ``user`` can change what ``path`` names: not it, nor a directory or link above it.

    A directory with the sticky bit (/tmp) may stand above, for nobody can rename what is not theirs in it. Raises
    InvalidSettingError, which names the path that others can write to.
    """
    try:
        places = [(place, place.lstat()) for place in _on_the_way(path)]
    except OSError as error:
        raise InvalidSettingError(
            f"{error.filename or path} cannot be looked at: {error.strerror}.",
            hint="Run this as root, or name another place.",
        ) from error
    for place, status in reversed(places):
        above_and_sticky = place != places[-1][0] and status.st_mode & stat.S_ISVTX
        if status.st_uid not in {0, user}:
            raise InvalidSettingError(
                f"{place} belongs to user {status.st_uid}, who could change what is loaded into this kernel.",
                hint=f"Give it to root: chown root {place}",
            )
        open_to_all = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not stat.S_ISLNK(status.st_mode)
        if open_to_all and not above_and_sticky:
            raise InvalidSettingError(
                f"{place} can be written to by others, who could change what is loaded into this kernel.",
                hint=f"Take that away: chmod go-w {place}",
            )


def _on_the_way(path: Path) -> Iterator[Path]:
    """All that is passed on the way to what ``path`` names, links and what they lead through included; that last.

    Raises OSError.
    """
    todo = list(reversed(path.absolute().parts))
    at = Path("/")
    links = 0
    while todo:
        part = todo.pop()
        if part == "..":
            at = at.parent
            continue
        place = at / part
        yield place
        if not place.is_symlink():
            at = place
            continue
        links += 1
        if links > _LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        todo += reversed(place.readlink().parts)


def _make(path: Path) -> None:
    try:
        new = [place for place in (path, *path.parents) if not place.exists()]
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for place in reversed(new):  # or a power cut takes it away with all that was written in it since
            sync_directory(place.parent)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError(
                f"No space is left to make {path}.", hint="Free some space on that file system and try again."
            ) from error
        if error.errno in _UNWRITABLE:
            raise UnwritableError(
                f"{path} cannot be made: {error.strerror}.",
                hint="Make that file system writable, set another state_dir, or use --no-load -o FILE.",
            ) from error
        raise HostError(
            f"{path} cannot be made: {error.strerror}.",
            hint="Run this as root, set another state_dir, or use --no-load -o FILE.",
        ) from error


def _lock(descriptor: int, patience: float) -> bool:
    """Take the lock; some tries, for `StateDirectory.holder` holds it too, for an instant."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOCK_POLL)


def _process_in(descriptor: int) -> str:
    return os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"


class StateDirectory:
    """The directory of the client: ``journal/``, ``modules/RELEASE/``, ``patches/`` and the lock."""

    def __init__(self, path: Path, user: int) -> None:
        self.path = path
        self.user = user

    @property
    def journal(self) -> Path:
        """Where the journal lies."""
        return self.path / "journal"

    @property
    def patches(self) -> Path:
        """Where the patches of livepatches lie, each under its SHA-256."""
        return self.path / "patches"

    def modules(self, release: str) -> Path:
        """Where the modules for a kernel release lie."""
        return self.path / "modules" / release

    def place_for(self, release: str, name: str, sha256: str) -> Path:
        """Where a module for a kernel release is to be put: what lies there and is another is left alone.

        The journal may name that one, to be loaded when the host comes up, whatever becomes of the new one.
        """
        place = self.modules(release) / f"{name}.ko"
        try:
            there = hashlib.sha256(read_regular(place, limits.MODULE_BYTES + 1)).hexdigest()
        except OSError:
            there = sha256
        return place if there == sha256 else place.with_name(f"{name}-{sha256[:12]}.ko")

    def prepare(self, *directories: Path) -> None:
        """Make the directory and those below it with mode 0700, and check that nobody else can write to them.

        Raises HostError where they cannot be made, InvalidSettingError where they cannot be trusted.
        """
        _make(self.path)
        require_trusted(self.path, self.user)
        for directory in directories:
            below = directory.relative_to(self.path)
            for place in (*reversed(below.parents), below):
                _make(self.path / place)
            require_trusted(directory, self.user)

    def holder(self) -> str | None:
        """The process that is changing the kernel at this moment; None where there is none, or it cannot be seen."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _process_in(descriptor)
        finally:
            os.close(descriptor)
        return None

    @contextlib.contextmanager
    def locked(self, patience: float = _LOCK_PATIENCE, *, unwritable: bool = False) -> Generator[None]:
        """Hold the lock that lets one client at a time change the kernel.

        With ``unwritable`` it is had on a file system that takes no changes too: for who undoes something. Raises
        LockedError where another holds it for longer than ``patience`` seconds, HostError where it cannot be.
        """
        try:
            self.prepare()
            descriptor = self._open_lock(unwritable=unwritable)
        except (UnwritableError, DiskFullError):
            if not unwritable or os.path.lexists(self.path / "lock"):
                raise
            yield  # nobody else can make a lock there either
            return
        try:
            while True:
                if not _lock(descriptor, patience):
                    raise LockedError(
                        f"Another elivepatch (process {_process_in(descriptor)}) is changing this kernel.",
                        hint="Wait until it has ended, then try again.",
                    )
                if self._is_lock(descriptor):
                    break
                self.prepare()  # 'uninstall' had it before, and has removed it
                gone, descriptor = descriptor, self._open_lock(unwritable=unwritable)
                os.close(gone)
            with contextlib.suppress(OSError):  # a full disk: the lock is held all the same, only its holder not named
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # the number will be another process's
                    os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)

    def _open_lock(self, *, unwritable: bool) -> int:
        path = self.path / "lock"
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno in _UNWRITABLE and unwritable:
                with contextlib.suppress(OSError):
                    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            cls = UnwritableError if error.errno in _UNWRITABLE else HostError
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                cls = DiskFullError
            raise cls(f"{path} cannot be opened: {error.strerror}.", hint="Look at what lies there.") from error

    def _is_lock(self, descriptor: int) -> bool:
        """Whether what was locked is the file that the next one will open."""
        try:
            return os.path.samestat(os.fstat(descriptor), (self.path / "lock").lstat())
        except OSError:
            return False
