# SPDX-License-Identifier: GPL-2.0-or-later
"""What a hostile patch can do: its makefile runs programs in the sandbox, and all that they reach is nothing.

Each attack is part of a patch that goes through `pipeline.build`. It says in the compiler's output what it achieved;
what it could do outside is looked for outside.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Generator
from functools import partial
from pathlib import Path

import pytest

from build_support import Builder, Built, diff, mounts, processes_with
from elivepatch.build import prepared
from elivepatch.protocol.models import BuildStatus
from elivepatch.toolchains.sandbox import SANDBOX_UID, Limits

pytestmark = pytest.mark.integration

MAKEFILE = "fs/proc/Makefile"
#: Tries things and says as JSON which of them worked.
PROBE = """\
import json, os, socket, subprocess, sys
secrets, writes, port, parent = json.loads(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
done = []

def attempt(name, call):
    try:
        result = call()
    except BaseException:
        return
    done.append(name + " " + str(result)[:60])

def syscall(number, *arguments):
    words = ", ".join(arguments) or "0"
    program = "my @a = (%s); exit(syscall(%d, @a) == -1)" % (words, number)  # perl takes no literal strings here
    subprocess.run(["perl", "-e", program], check=True)

for path in secrets:
    attempt("read " + path, lambda: open(path).read(80))
for path in writes:
    attempt("write " + path, lambda: open(path, "w").write("x"))
attempt("loopback", lambda: socket.create_connection(("127.0.0.1", port), 3))
attempt("internet", lambda: socket.create_connection(("1.1.1.1", 53), 3))
attempt("name", lambda: socket.getaddrinfo("example.org", 80))
syscall(39)  # getpid: whatever follows does not fail for the way it is called
attempt("root", lambda: os.setuid(0))
attempt("remount", lambda: syscall(165, "'none'", "'/'", "'none'", "0x1020", "0"))
attempt("mount", lambda: syscall(165, "'none'", "'/tmp'", "'tmpfs'", "0", "0"))
attempt("ptrace", lambda: syscall(101, "16", parent, "0", "0"))
attempt("module", lambda: syscall(175, "'x'", "1", "''"))
attempt("clock", lambda: syscall(227, "0", "'0123456789abcdef'"))
attempt("signal", lambda: os.kill(int(parent), 0))
attempt("device", lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(8, 0)))
links = []
for fd in os.listdir("/proc/self/fd"):
    if os.path.exists("/proc/self/fd/" + fd):
        links.append(os.readlink("/proc/self/fd/" + fd))
status = open("/proc/self/status").read()
outside = [link for link in links if not link.startswith(("pipe:", "/dev/null", "/proc/"))]
told = {
    "user": os.getuid(),
    "capabilities": [status.partition(name)[2][:17].strip() for name in ("CapEff:", "CapPrm:", "CapBnd:")],
    "groups": status.partition("Groups:")[2].partition(chr(10))[0].strip(),
    "host": os.uname().nodename,
    "descriptors": outside,
    "processes": len([pid for pid in os.listdir("/proc") if pid.isdigit()]),
    "tree": open("fs/proc/made-here", "w").write("x"),
    "environment": sorted(name for name in os.environ if "TOKEN" in name or "ELIVEPATCH" in name or "proxy" in name),
}
print("ATTACK" + json.dumps([done, told]))
"""


def makefile_patch(builder: Builder, command: str, *, stop: bool, code: bytes = b"") -> bytes:
    """A patch whose makefile runs a shell command; with ``stop`` its output ends the build as make's error."""
    old = (builder.source / MAKEFILE).read_text()
    call = f"$(shell {command.replace('$', '$$').replace('#', chr(92) + '#')})"
    line = f"$(error {call})" if stop else f"attack := {call}"
    meminfo = code or builder.change("fs/proc/meminfo.c", ("VmallocChunk:", "VMALLOCCHUNK:"))
    return diff(MAKEFILE, old, f"{line}\n{old}") + meminfo


def script_patch(builder: Builder, script: str, arguments: str = "", *, stop: bool) -> bytes:
    """The same for a Python script, which the patch brings along."""
    return makefile_patch(builder, f"python3 fs/proc/attack.txt {arguments} 2>&1", stop=stop) + diff(
        "fs/proc/attack.txt", "", script
    )


@pytest.fixture
def listener() -> Generator[tuple[int, list[object]]]:
    """A server on the loopback of this machine, and the connections that it got."""
    connections: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connection, peer = server.accept()
                except OSError:
                    return
                connections.append(peer)
                connection.close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1], connections
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.fixture
def secret_files(tmp_path: Path) -> Generator[list[Path]]:
    """Files that a build has no business with: in the home directory, in the project, in the temporary directory."""
    name = f".elivepatch-test-{secrets.token_hex(8)}"
    files = [Path.home() / name, Path(__file__).parents[2] / name, tmp_path / name, Path("/tmp") / name]
    for path in files:
        path.write_text("TOP-SECRET")
        path.chmod(0o644)
    yield files
    for path in files:
        path.unlink()


def test_a_makefile_reaches_nothing_of_this_machine(
    builder: Builder, listener: tuple[int, list[object]], secret_files: list[Path], tmp_path: Path
) -> None:
    port, connections = listener
    before = mounts()
    targets = [path.with_name(f"{path.name}-written") for path in secret_files]
    inside = ["/usr/bin/made-here", "/etc/made-here", "/dev/made-here", "/elivepatch/made-here", "/sys/made-here"]
    inside += ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"]
    reads = [*map(str, secret_files), "/etc/shadow", "/proc/1/root/etc/shadow", "/proc/kcore"]
    arguments = f"'{json.dumps(reads)}' '{json.dumps([*map(str, targets), *inside])}' {port} {os.getpid()}"
    built = builder(script_patch(builder, PROBE, arguments, stop=True))
    assert built.report.status is BuildStatus.REFUSED, built.told
    assert built.report.error == "does-not-compile"
    said = "\n".join(finding.message for finding in built.report.diagnosis)
    assert "ATTACK" in said, said  # the script ran: what follows is its own account
    done, told = json.JSONDecoder().raw_decode(said.partition("ATTACK")[2])[0]
    done.remove(f"write {targets[-1]} 1")  # into a /tmp of its own
    assert not done, f"it got through: {done}"
    as_root = os.geteuid() == 0
    assert told == {
        "user": SANDBOX_UID if as_root else os.geteuid(),
        "capabilities": ["0" * 16] * 3 if as_root else [*["0" * 16] * 2, told["capabilities"][2]],
        "groups": "" if as_root else told["groups"],
        "host": "elivepatch",
        "descriptors": [],
        "processes": told["processes"],
        "tree": 1,
        "environment": [],
    }
    assert told["processes"] < 30
    assert not connections
    assert not any(path.exists() for path in targets)
    for place in (builder.source, builder.kernel.products, builder.kernel.root.path):
        assert not any((place / name).exists() for name in ("fs/proc/made-here", "usr/bin/made-here", "etc/made-here"))
    assert mounts() == before
    assert all(path.read_text() == "TOP-SECRET" for path in secret_files)


# -- what it can use up


def limited(monkeypatch: pytest.MonkeyPatch, **limits: float) -> None:
    """Give sandboxes less than they have, so that a test need not use up so much."""
    monkeypatch.setattr(prepared, "Limits", partial(Limits, **limits))


def refused(built: Built, *words: str) -> None:
    """The patch was refused for what its build used up, and that is said."""
    assert (built.report.status, built.report.error, built.report.exit_status) == (
        BuildStatus.REFUSED,
        "sandbox-limit",
        3,
    ), built.told
    assert all(word in built.told for word in words), built.told


def said_by(built: Built) -> str:
    assert built.report.error == "does-not-compile", built.told
    return "\n".join(finding.message for finding in built.report.diagnosis).partition("ATTACK ")[2]


def test_what_says_that_there_is_no_sandbox_is_not_believed(builder: Builder) -> None:
    """It would be the server's fault, and not the patch's, if what makes the sandbox had said it."""
    built = builder(makefile_patch(builder, "echo bwrap: Creating new namespace failed >&2", stop=True))
    assert (built.report.error, built.report.exit_status) == ("does-not-compile", 3), built.told


def test_endless_files_are_refused(builder: Builder) -> None:
    endless = "for i in 1 2 3 4 5 6 7 8; do cat /dev/zero > fs/proc/fill$i; done"
    before = shutil.disk_usage(builder.workshop.cache).free
    refused(builder(makefile_patch(builder, endless, stop=False)), "bytes", "limit")
    assert shutil.disk_usage(builder.workshop.cache).free > before - 512 * 1024**2


def test_endless_empty_files_are_refused(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, written_bytes=128 * 1024**2)
    script = "import itertools\nfor n in itertools.count():\n    open('fs/proc/fill%d' % n, 'w').close()\n"
    refused(builder(script_patch(builder, script, stop=False)), "limit")


def test_a_program_that_never_ends_is_refused(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, seconds=8)
    builder(builder.change("fs/proc/meminfo.c", ("VmallocChunk:", "VMALLOCCHUNK:")))  # the originals are kept
    refused(builder(makefile_patch(builder, "while :; do :; done", stop=False)), "8 s")


def test_endless_output_is_refused(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, seconds=8)
    refused(builder(makefile_patch(builder, "yes fs/proc/meminfo.c:1:1: error: x >&2", stop=False)), "8 s")


def test_directories_too_deep_for_a_path_are_removed(builder: Builder) -> None:
    script = "import os\nfor n in range(3000):\n    os.mkdir('d')\n    os.chdir('d')\n    open('f', 'w').close()\n"
    built = builder(script_patch(builder, script, stop=False))  # which checks that its directory is gone
    assert built.report.error in {None, "sandbox-limit"}, built.told  # as it is looked at in time or too late


def left_of(mark: str) -> list[str]:
    """The processes with the mark that are left when the kernel has had time to end those of the sandbox."""
    deadline = time.monotonic() + 10
    while (left := processes_with([mark])) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def test_processes_are_limited_and_end(builder: Builder) -> None:
    mark = f"987{secrets.randbelow(10**9)}"
    bomb = f"""\
import os, subprocess, time
made = 0
try:
    while made < 5000:
        subprocess.Popen(["setsid", "sleep", "{mark}"], stdout=-3, stderr=-3)
        made += 1
except OSError:
    print("ATTACK", made)
"""
    number = int(said_by(builder(script_patch(builder, bomb, stop=True))).split()[0].rstrip("."))
    assert 50 < number < 256
    assert not left_of(mark), "a process outlived its build"


def test_what_goes_into_the_background_ends_with_the_build(builder: Builder) -> None:
    mark = f"987{secrets.randbelow(10**9)}"
    daemon = f"setsid setsid sleep {mark} >/dev/null 2>&1 </dev/null & nohup sleep {mark} >/dev/null 2>&1 &"
    built = builder(makefile_patch(builder, daemon, stop=False))
    assert built.report.status is BuildStatus.DONE, built.told
    assert not left_of(mark), "a process outlived its build"


def test_memory_of_one_process_is_limited(builder: Builder) -> None:
    script = """\
blocks = []
try:
    while len(blocks) < 16384:
        blocks.append(bytearray(1024 * 1024))
except MemoryError:
    number = len(blocks)
    blocks = []
    print("ATTACK", number)
"""
    number = int(said_by(builder(script_patch(builder, script, stop=True))).split()[0].rstrip("."))
    assert 100 < number <= 3072


def test_memory_of_all_processes_is_limited(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, total_memory_bytes=1024**3)
    script = "import os, time\nos.fork(), os.fork(), os.fork()\nblock = b'x' * (400 * 1024 ** 2)\ntime.sleep(60)\n"
    began = time.monotonic()
    refused(builder(script_patch(builder, script, stop=False)), "memory")
    assert time.monotonic() - began < 40


def test_memory_backed_directories_are_bounded(builder: Builder) -> None:
    free = shutil.disk_usage("/dev/shm").free
    script = """\
import os
written = []
for directory in ("/tmp", "/dev/shm"):
    with open(directory + "/fill", "wb", buffering=0) as stream:
        total = 0
        try:
            while total < 2 * 1024 ** 3:
                total += stream.write(bytes(1024 * 1024))
        except OSError:
            pass
        written.append(total // 1024 ** 2)
print("ATTACK", *written)
"""
    tmp, shm = said_by(builder(script_patch(builder, script, stop=True))).split()[:2]
    assert int(tmp) <= 256
    assert int(shm.rstrip(".")) <= 16
    assert not Path("/tmp/fill").exists()
    assert shutil.disk_usage("/dev/shm").free >= free - 1024**2


# -- what it can leave where an object is expected


@pytest.mark.parametrize(
    "recipe",
    [
        "ln -sf {secret} $@",
        "ln -sf /dev/zero $@",
        "mkfifo $@",
        "mkdir $@",
        "rm -rf fs/proc && ln -s {directory} fs/proc",
        ": > $@",
        "echo not an object > $@",
    ],
)
def test_an_object_that_is_none_is_refused(builder: Builder, tmp_path: Path, recipe: str) -> None:
    directory = tmp_path / "secret"
    directory.mkdir()
    secret = directory / "meminfo.o"
    shutil.copyfile("/bin/true", secret)
    accessed = secret.stat().st_atime_ns
    old = (builder.source / MAKEFILE).read_text()
    rule = f"{old}\n$(obj)/meminfo.o: FORCE\n\t@{recipe.format(secret=secret, directory=directory)}\n"
    code = builder.change("fs/proc/meminfo.c", ("VmallocChunk:", "VMALLOCCHUNK:"))
    built = builder(diff(MAKEFILE, old, rule) + code)
    assert built.report.status is BuildStatus.REFUSED, built.told
    assert built.report.exit_status == 3
    assert secret.stat().st_atime_ns == accessed, "the server read what a link of the patch points at"
