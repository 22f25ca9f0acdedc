# SPDX-License-Identifier: GPL-2.0-or-later
"""The one door to programs.

Every program is started here: an argv list, never a shell line; stdin closed unless given; a small fixed environment;
a timeout; its whole process group ended with it; and ended too when this process dies, however it dies.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from elivepatch.errors import DiskFullError, ProgramFailedError, ResourceExhaustedError, ToolUnavailableError

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: What a program sees of our environment: how to reach the outside belongs to the machine (proxies, certificates).
_PASSED_ON = (
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "TMPDIR",
)
#: Bytes of output that are kept of each stream; what a program says beyond is not kept, but it is not ended for it.
OUTPUT_LIMIT = 64 * 1024 * 1024
_TAIL_LINES = 25
_TAIL_CHARACTERS = 8000

#: How programs say that the disk is full; the second is tar's way.
NO_SPACE = re.compile(r"No space left on device|Wrote only \d+ of \d+ bytes")

Guard = Callable[[], None]
LineSink = Callable[[str], None]


@dataclass(frozen=True)
class Completed:
    """A program that has ended. ``seconds`` is wall time, ``returncode`` 128 + n where signal n ended it."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def signalled(self) -> bool:
        """Whether a signal ended it; negative is what the standard library says of one that we ended."""
        return self.returncode < 0 or 128 < self.returncode < 160


class ProgramError(ProgramFailedError):
    """A program failed."""

    def __init__(self, completed: Completed, *, shown: Sequence[str] | None = None, reason: str | None = None) -> None:
        self.completed = completed
        self.reason = reason or f"exit status {completed.returncode}"
        end = (completed.stderr or completed.stdout)[-_TAIL_CHARACTERS:]
        tail = "\n".join(end.rstrip().splitlines()[-_TAIL_LINES:])
        super().__init__(f"{command_line(shown or completed.argv)}\n{self.reason}\n{tail}".rstrip())


def command_line(argv: Sequence[str]) -> str:
    """The command as a line that can be pasted into a shell."""
    return shlex.join(argv)


def find_program(name: str, *, hint: str | None = None) -> Path:
    """The path of an installed program.

    Raises ToolUnavailableError, with the hint, where it is not installed.
    """
    found = shutil.which(name, path=PATH)
    if found is None:
        raise ToolUnavailableError(f"The program '{name}' is not installed.", hint=hint or f"Install '{name}'.")
    return Path(found)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment programs get: fixed PATH and language, the machine's proxies, and what is given."""
    env = {"PATH": PATH, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}
    env.update({k: os.environ[k] for k in _PASSED_ON if k in os.environ})
    if extra:
        env.update(extra)
    return env


#: Stands over a program ($2...) and ends its whole process group when our process ($1) is gone. Were only the program
#: told to die with us, what it has started by then would live on, and that need not come to an end by itself: bwrap
#: waits for ever for a parent that was killed while it set up the sandbox. A signal cuts a wait short: begin it anew.
#: Input goes by way of 3: 0 of what a shell runs in the background is /dev/null.
_STAND_OVER = """
trap 'kill -KILL 0' USR1
trap : TERM
[ "$PPID" = "$1" ] || exit 137
shift
{ "$@" <&3 3<&- & } 3<&0
while :; do
    wait $!
    status=$?
    kill -0 $! 2>/dev/null || exit $status
done"""


def _die_with_us(argv: Sequence[str]) -> list[str]:
    return ["setpriv", "--pdeathsig", "USR1", "--", "sh", "-c", _STAND_OVER, "elivepatch", str(os.getpid()), *argv]


def _drain(stream: IO[bytes], kept: bytearray, sink: LineSink | None) -> None:
    pending = b""
    while chunk := os.read(stream.fileno(), 65536):
        if len(kept) < OUTPUT_LIMIT:
            kept += chunk[: OUTPUT_LIMIT - len(kept)]
        if sink:
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                sink(line.decode(errors="replace"))
            if len(pending) > 65536:
                pending = b""
    if sink and pending:
        sink(pending.decode(errors="replace"))


def end_group(pid: int, *, grace: float = 0.0) -> None:
    """End a process group by the id of its leader: politely when a grace (seconds) is given, then for good."""
    if grace:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline:
            try:
                os.killpg(pid, 0)
            except (ProcessLookupError, PermissionError):
                return
            time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 600.0,
    stdin: bytes | Iterable[bytes] | None = None,
    stdout: Path | None = None,
    check: bool = True,
    sink: LineSink | None = None,
    guard: Guard | None = None,
    memory_bytes: int | None = None,
    shown: Sequence[str] | None = None,
) -> Completed:
    """Run a program to its end.

    ``timeout`` is wall seconds. ``stdin`` may come in pieces. ``stdout`` writes standard output to a file instead of
    keeping it. ``sink`` gets each line of both streams as it comes. ``guard`` is called five times a second and ends
    the program by raising. ``memory_bytes`` bounds what the program and all that it starts hold in memory together
    (looked at as often). ``shown`` is the command to name in an error, where the argv holds a sandbox's prefix. Raises
    ProgramError for a failure (unless ``check`` is false) and a timeout, ToolUnavailableError for a missing program.
    """
    words = [str(word) for word in argv]
    if shutil.which(words[0], path=PATH) is None:
        raise ToolUnavailableError(f"The program '{words[0]}' is not installed.", hint=f"Install '{words[0]}'.")
    started = time.monotonic()
    out, err = bytearray(), bytearray()
    with contextlib.ExitStack() as stack:
        target: IO[bytes] | int = subprocess.PIPE
        if stdout is not None:
            target = stack.enter_context(stdout.open("wb"))
        try:
            child = subprocess.Popen(
                _die_with_us(words),
                cwd=cwd,
                env=environment(env),
                stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
                stdout=target,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise ToolUnavailableError(f"'setpriv' is not installed ({error}).", hint="Install util-linux.") from error
        readers = [
            threading.Thread(target=_drain, args=(stream, kept, sink), daemon=True)
            for stream, kept in ((child.stdout, out), (child.stderr, err))
            if stream is not None
        ]
        try:
            for reader in readers:
                reader.start()
            if stdin is not None and child.stdin is not None:
                feeder = threading.Thread(target=_feed, args=(child.stdin, stdin), daemon=True)
                feeder.start()
            _await(child, deadline=started + timeout, guard=guard, memory_bytes=memory_bytes)
        except subprocess.TimeoutExpired:
            end_group(child.pid)
            child.wait()
            done = _completed(words, child, out, err, readers, started)
            raise ProgramError(done, shown=shown, reason=f"ended after its time limit of {timeout:.0f} s") from None
        except BaseException:
            end_group(child.pid)
            child.wait()
            _completed(words, child, out, err, readers, started)  # closes what we hold of it
            raise
        end_group(child.pid)  # whatever it left running
        done = _completed(words, child, out, err, readers, started)
    if check:
        require_success(done, shown=shown)
    return done


def require_success(done: Completed, *, shown: Sequence[str] | None = None) -> None:
    """Raise ProgramError, or DiskFullError where that is what it says, for a program that failed."""
    if done.returncode != 0:
        if NO_SPACE.search(done.stderr):
            raise DiskFullError(f"No space is left on the device: {command_line(shown or done.argv)}")
        raise ProgramError(done, shown=shown)


def _feed(stream: IO[bytes], data: bytes | Iterable[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError), stream:
        for piece in [data] if isinstance(data, bytes) else data:
            stream.write(piece)


def _await(
    child: subprocess.Popen[bytes], *, deadline: float, guard: Guard | None, memory_bytes: int | None = None
) -> None:
    watched = guard is not None or memory_bytes is not None
    with _end_of(child) as ended:
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(child.args, 0)
            if ended(min(left, 0.2) if watched else left):
                child.wait()
                return
            if guard:
                guard()
            if memory_bytes is not None and (held := _resident_bytes(child.pid)) > memory_bytes:
                raise ResourceExhaustedError(
                    f"A program and its children held {held} bytes of memory; the limit is {memory_bytes} bytes."
                )


def _resident_bytes(pid: int) -> int:
    """What a process and its descendants hold in memory, from /proc/PID/stat (proc(5)).

    In a process id namespace whoever loses its parent is given to the first process there: it stays a descendant.
    """
    children: dict[int, list[int]] = {}
    pages: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
                pages[int(entry.name)] = int(fields[21])
    total, todo = 0, [pid]
    while todo:
        at = todo.pop()
        total += pages.get(at, 0)
        todo += children.get(at, [])
    return total * resource.getpagesize()


@contextlib.contextmanager
def _end_of(child: subprocess.Popen[bytes]) -> Generator[Callable[[float], bool]]:
    """A call that waits up to so many seconds for the end of a program and says whether it has come.

    Its end wakes us at once. The wait of the standard library looks only twenty times a second, which adds up over the
    small programs of a build.
    """

    def look(seconds: float) -> bool:
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    try:
        handle = os.pidfd_open(child.pid)
    except OSError:  # Linux before 5.3, or a container that forbids it
        yield look
        return
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    try:
        yield lambda seconds: bool(poller.poll(min(seconds, 3600) * 1000))
    finally:
        os.close(handle)


def _completed(
    words: Sequence[str],
    child: subprocess.Popen[bytes],
    out: bytearray,
    err: bytearray,
    readers: Sequence[threading.Thread],
    started: float,
) -> Completed:
    for reader in readers:
        reader.join(timeout=5)
    for stream in (child.stdout, child.stderr):
        if stream is not None:
            stream.close()
    return Completed(
        argv=tuple(words),
        returncode=child.returncode,
        stdout=out.decode(errors="replace"),
        stderr=err.decode(errors="replace"),
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class Running:
    """A program that runs beside us. ``pid`` leads its process group."""

    pid: int
    _child: subprocess.Popen[bytes]

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self._child.poll()

    def wait(self, timeout: float) -> int | None:
        """Its exit status once it ends; None if it still runs after ``timeout`` seconds."""
        try:
            return self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def end(self, grace: float = 5.0) -> None:
        """End it and all that it started; ``grace`` is how long (seconds) it may take to end by itself."""
        if self._child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(grace)
        end_group(self.pid)
        self._child.wait()


@contextlib.contextmanager
def started(
    argv: Sequence[str | Path], *, log: Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Generator[Running]:
    """Start a program beside us, its output in ``log``; it is ended when the block is left."""
    running = launch(argv, log=log, cwd=cwd, env=env, die_with_us=True)
    try:
        yield running
    finally:
        running.end()


def launch(
    argv: Sequence[str | Path],
    *,
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    die_with_us: bool = False,
    pass_fds: Sequence[int] = (),
) -> Running:
    """Start a program in a session of its own, its output appended to ``log``.

    Without ``die_with_us`` it outlives this process: for builds, which survive a restart of the server. ``pass_fds``
    are descriptors that it inherits under the same numbers (a lock that it is to hold).
    """
    words = [str(word) for word in argv]
    with log.open("ab") as output:
        child = subprocess.Popen(
            _die_with_us(words) if die_with_us else words,
            cwd=cwd,
            env=environment(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
        )
    return Running(pid=child.pid, _child=child)


def peak_memory_bytes() -> int:
    """Peak resident memory in bytes of the largest process that this one has started and that has ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
