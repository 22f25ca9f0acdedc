# SPDX-License-Identifier: GPL-2.0-or-later
"""The sandbox that programs run in: a build root read-only, one tree and one job directory, and nothing else.

No network, private /proc and process ids, limits on memory, processes, file size and time; it dies with its parent. It
comes as an argv prefix, so what runs inside does not know which sandbox it is in.

Run by root, the program becomes a user of its own (the limit on processes is not applied to root); run by anybody else
it stays that user, in a user namespace. Layers are put over each other with overlayfs in a mount namespace of the
sandbox: nothing is mounted outside.

bwrap gets no session of its own: `process` has made one without a terminal, and ends it as a whole by its group.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from elivepatch.errors import DiskFullError, InvalidSettingError, ResourceExhaustedError, SandboxUnavailableError
from elivepatch.process import (
    NO_SPACE,
    Completed,
    Guard,
    LineSink,
    command_line,
    find_program,
    require_success,
    run,
)

#: In the range that Debian policy (section 9.2.2) keeps unused: no account has it, so its process limit is ours alone.
SANDBOX_UID = 65533
#: Where the tree and the job's directory stand inside; both are made when a root is made.
TREE = Path("/elivepatch/tree")
JOB = Path("/elivepatch/job")
_TREE = PurePosixPath(TREE)

#: Directories of a root that another place of the tree may lie in: what a root has there, no build needs.
_PLACES = ("/usr/src", "/home", "/root", "/srv", "/opt", "/mnt", "/media", "/var/tmp")  # noqa: S108
_PLACE = re.compile(r"(?:/[A-Za-z0-9_+@~%=.-]+){1,32}")

#: Not every program says that the disk was full. With less room than the first it was; than the second, if it says so.
_FULL_BYTES = 1024**2
_ROOM_BYTES = 16 * 1024**2
#: What a file takes on disk at least, and how deep the directories of a job may be; the kernel's source is 12 deep.
_BLOCK_BYTES = 4096
_DEPTH = 64
#: What a sandbox cannot be made without, by how its makers begin to complain, and what helps.
_NO_SANDBOX = tuple(
    (re.compile(said), hint)
    for said, hint in (
        (
            r"mount: [^\n]*overlay[^\n]*",
            "Overlayfs must be able to write there, which it cannot on the file system of a container: put the cache "
            "and the data on volumes (ELIVEPATCH_CACHE, ELIVEPATCH_DATA), and TMPDIR, where it is set.",
        ),
        (
            r"bwrap: Can't mount proc[^\n]*",
            "In a container parts of /proc are covered, so no other can be mounted: docs/install.md names the options "
            "that it needs.",
        ),
        (
            r"(?:unshare|bwrap): [^\n]*",
            "The server runs all that it does not trust in namespaces of its own: allow user namespaces (sysctl "
            "user.max_user_namespaces, kernel.unprivileged_userns_clone, "
            "kernel.apparmor_restrict_unprivileged_userns), and in a container the options that docs/install.md names.",
        ),
    )
)
_MOUNT = 'mount -t overlay -o "$1" overlay "$2" && shift 2 && exec "$@"'


@dataclass(frozen=True)
class Limits:
    """What a program in the sandbox may use: bytes, processes, seconds of wall time.

    ``memory_bytes`` is for each process, ``total_memory_bytes`` for all of them together.
    """

    memory_bytes: int = 3 * 1024**3
    total_memory_bytes: int = 4 * 1024**3
    file_bytes: int = 512 * 1024**2
    written_bytes: int = 1024**3
    processes: int = 256
    seconds: float = 300.0


def sandbox_owner() -> tuple[int, int]:
    """User and group that own what programs in the sandbox may write."""
    return (SANDBOX_UID, SANDBOX_UID) if os.geteuid() == 0 else (os.geteuid(), os.getegid())


def give_to_sandbox(path: Path) -> None:
    """Make a directory that programs in the sandbox may write to theirs; does nothing when not run by root."""
    if os.geteuid() == 0:
        os.chown(path, *sandbox_owner(), follow_symlinks=False)


@dataclass(frozen=True)
class Overlay:
    """Layers over each other: ``lower`` from the top down, read-only; ``upper`` takes what is written.

    ``work`` and ``mountpoint`` are empty directories, ``work`` on the file system of ``upper``.
    """

    lower: Sequence[Path]
    upper: Path
    work: Path
    mountpoint: Path

    def options(self) -> str:
        """The options for mount; raises InvalidSettingError for a path that they cannot carry."""
        for path in (*self.lower, self.upper, self.work):
            if any(char in str(path) for char in ':,\\"'):
                raise InvalidSettingError(
                    f'The path {path} holds one of the characters : , \\ " that overlayfs cannot take.',
                    hint="Move the cache with ELIVEPATCH_CACHE.",
                )
        lower = ":".join(str(path) for path in self.lower)
        own = "" if os.geteuid() == 0 else ",userxattr"  # trusted.* attributes are not for user namespaces
        return f"lowerdir={lower},upperdir={self.upper},workdir={self.work}{own}"


@dataclass(frozen=True)
class Sandbox:
    """A build root, and what can be seen in it beside the root: ``tree`` (an overlay) and ``job`` (writable).

    ``place`` is where the tree stands inside; see `can_stand_at`.
    """

    root: Path
    tree: Overlay | None = None
    job: Path | None = None
    read_only: Mapping[Path, Path] = field(default_factory=dict[Path, Path])
    place: PurePosixPath = _TREE
    limits: Limits = field(default_factory=Limits)

    def prefix(self, *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> list[str]:
        """The argv prefix. ``cwd`` is a path inside; ``env`` is the whole environment of the program besides PATH."""
        as_root = os.geteuid() == 0
        words: list[str] = []
        if self.tree is not None:
            words += ["unshare", "--mount", *([] if as_root else ["--user", "--map-root-user"]), "--"]
            words += ["sh", "-c", _MOUNT, "mount", self.tree.options(), str(self.tree.mountpoint)]
        words += [str(find_program("bwrap", hint="Install bubblewrap.")), "--unshare-ipc", "--unshare-pid"]
        words += ["--unshare-net", "--unshare-uts", "--unshare-cgroup-try", "--die-with-parent"]
        words += ["--hostname", "elivepatch", "--ro-bind", str(self.root), "/"]
        words += [
            "--proc",
            "/proc",
            "--dev",
            "/dev",
            "--size",
            str(256 * 1024**2),
            "--perms",
            "1777",
            "--tmpfs",
            "/tmp",  # noqa: S108  # its own, inside
        ]
        words += ["--size", str(16 * 1024**2), "--perms", "1777", "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]  # noqa: S108
        for inside, outside in self.read_only.items():
            words += ["--ro-bind", str(outside), str(inside)]
        if self.tree is not None:
            if above := _above(self.place):
                words += ["--tmpfs", above]
            words += ["--bind", str(self.tree.mountpoint), str(self.place)]
        if self.job is not None:
            words += ["--bind", str(self.job), str(JOB)]
        words += ["--chdir", str(cwd or (self.place if self.tree else "/")), "--clearenv"]
        for name, value in {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent", **(env or {})}.items():
            words += ["--setenv", name, value]
        if as_root:
            words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP", "--"]
            words += ["setpriv", f"--reuid={SANDBOX_UID}", f"--regid={SANDBOX_UID}", "--clear-groups"]
            words += ["--inh-caps=-all", "--bounding-set=-all", "--"]
        else:
            # in the user namespace that mounted the layers the program is called root: bwrap would leave it all of that
            words += ["--cap-drop", "ALL", "--"]
        limits = self.limits
        words += ["prlimit", f"--nproc={limits.processes}", f"--as={limits.memory_bytes}", "--core=0"]
        words += [f"--fsize={limits.file_bytes}", f"--cpu={int(limits.seconds * 2) + 1}", "--"]
        return words

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        sink: LineSink | None = None,
        stdout: Path | None = None,
    ) -> Completed:
        """Run a program inside; see `process.run`. What it writes is bounded as a whole too, not only file by file.

        Raises DiskFullError, also without ``check``, where it failed since this machine has no room: a directory in
        memory that it filled itself is no such case. Raises SandboxUnavailableError where this machine allows no
        sandbox.
        """
        writable = self.tree.upper if self.tree is not None else self.job
        done = run(
            [*self.prefix(cwd=cwd, env=env), *argv],
            timeout=self.limits.seconds,
            check=False,
            sink=sink,
            stdout=stdout,
            memory_bytes=self.limits.total_memory_bytes,
            guard=usage_guard(writable, self.limits.written_bytes) if writable is not None else None,
            shown=argv,
        )
        if done.returncode != 0 and writable is not None:
            free = shutil.disk_usage(writable).free
            if free < _FULL_BYTES or (free < _ROOM_BYTES and NO_SPACE.search(done.stderr)):
                raise DiskFullError(f"No space is left on the device: {command_line(argv)} in {writable}")
        if done.returncode != 0 and _no_sandbox(done.stderr):
            # what runs in it can say so as well: nothing does that by itself
            require_sandbox(run([*self.prefix(), "true"], check=False, shown=["true"]).stderr)
        if check:
            require_success(done, shown=argv)
        return done


def _no_sandbox(stderr: str) -> SandboxUnavailableError | None:
    for said, hint in _NO_SANDBOX:
        if found := said.match(stderr.lstrip()):
            message = f"This machine does not let a sandbox be made: {found[0].rstrip('.')}."
            return SandboxUnavailableError(message, hint=hint)
    return None


def require_sandbox(stderr: str) -> None:
    """Raise SandboxUnavailableError for what the programs say that make a sandbox, before anything runs in it."""
    if (error := _no_sandbox(stderr)) is not None:
        raise error


def can_stand_at(place: str) -> bool:
    """Whether a tree can stand at a path inside: where its host built it, so that what holds the path is the same."""
    return place == str(TREE) or (_above(PurePosixPath(place)) is not None and ".." not in place.split("/"))


def _above(place: PurePosixPath) -> str | None:
    """The directory of a root that is covered for a tree to stand at this place."""
    text = str(place)
    if not _PLACE.fullmatch(text):
        return None
    return next((above for above in _PLACES if text.startswith(f"{above}/")), None)


def usage_guard(directory: Path, limit_bytes: int) -> Guard:
    """A guard that ends a program whose output below ``directory`` grows past ``limit_bytes``.

    A file counts as one block at least: without contents it takes an inode of the disk, too. Directories nested so
    deep, or made unreadable, that what is below them cannot be counted are no better.
    """

    def check() -> None:
        total, todo = 0, [(str(directory), 0)]
        while todo:
            path, depth = todo.pop()
            try:
                entries = list(os.scandir(path))
            except FileNotFoundError:
                continue  # it was removed meanwhile
            except OSError as error:
                raise ResourceExhaustedError(f"What a program wrote cannot be counted: {error.strerror}.") from None
            for entry in entries:
                with contextlib.suppress(OSError):
                    total += max(entry.stat(follow_symlinks=False).st_blocks * 512, _BLOCK_BYTES)
                    if entry.is_dir(follow_symlinks=False):
                        todo.append((entry.path, depth + 1))
            if depth > _DEPTH:
                raise ResourceExhaustedError(f"A program nested directories more than {_DEPTH} deep.")
            if total > limit_bytes:
                raise ResourceExhaustedError(f"A program wrote {total} bytes; the limit of a job is {limit_bytes}.")

    return check


def check_tools(root: Path, directory: Path) -> None:
    """Run nothing in the way of `tool_prefix`; raises SandboxUnavailableError where this machine does not allow it."""
    done = run([*tool_prefix(root, directory), "true"], check=False, shown=["true"])
    require_sandbox(done.stderr)


def tool_prefix(root: Path, directory: Path) -> list[str]:
    """The argv prefix for a small tool of a root that works on files in one directory, at the path it has outside.

    Nothing else of this machine is there; no network, no capabilities, the process ends with its parent.
    """
    words = [str(find_program("bwrap", hint="Install bubblewrap.")), "--unshare-ipc", "--unshare-pid", "--unshare-net"]
    words += ["--unshare-uts", "--die-with-parent", "--ro-bind", str(root / "usr"), "/usr"]
    for name in ("bin", "lib", "lib64", "sbin"):
        words += ["--symlink", f"usr/{name}", f"/{name}"]
    words += ["--proc", "/proc", "--dev", "/dev", "--size", str(64 * 1024**2), "--tmpfs", "/tmp"]  # noqa: S108
    words += ["--bind", str(directory), str(directory), "--chdir", str(directory), "--clearenv"]
    words += ["--setenv", "PATH", "/usr/bin", "--setenv", "LANG", "C.UTF-8", "--"]
    return [*words, "prlimit", f"--fsize={64 * 1024**2}", f"--as={1024**3}", "--cpu=120", "--core=0", "--"]
