# SPDX-License-Identifier: GPL-2.0-or-later
"""The livepatch selftests of a kernel's own source, made ready for a guest and read back from there.

A script of tools/testing/selftests/livepatch holds several cases, each from one ``start_test`` to the next, and ends
with the first that fails. Here each case is a script of its own, with what stands before the first case and with the
assignments of the cases before it; the lines are the kernel's. A case compares the kernel's log with what it expects,
word for word.

Cases are run twice: with kmod's programs, and with ``insmod``, ``modprobe`` and ``rmmod`` standing first in PATH, which
hand livepatches to elivepatch (kernel_selftests.sh).
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from elivepatch.build.prepared import PreparedKernel
from elivepatch.toolchains.sandbox import JOB, TREE, give_to_sandbox

HERE = Path(__file__).parent
_SELFTESTS = "tools/testing/selftests/livepatch"
#: Where the modules of the tests are: since Linux 6.9 beside the scripts, before that in the tree itself.
_MODULES = (f"{_SELFTESTS}/test_modules", "lib/livepatch")
_HAMMER = "test_klp-call_getpid"
_ASSIGNMENT = re.compile(r"^MOD_\w+=\S+\n", re.MULTILINE)

#: Takes the place of unload_lp() of functions.sh in the run through elivepatch, which unloads by itself what a load has
#: replaced. The function would wait for a module that is gone; what it writes to the log stays as it is.
_ADAPTER = """
unload_lp() {
	if [[ -e "/sys/module/$1" ]]; then
		unload_mod "$1"
	else
		log "% rmmod $1"
		echo "@unloaded $1"
	fi
}
"""


@dataclass(frozen=True)
class Case:
    """A case of the kernel's tests."""

    script: str
    name: str
    text: str

    @property
    def title(self) -> str:
        return f"{self.script}: {self.name}"

    @property
    def own(self) -> str:
        """What is the case's alone."""
        return self.text[self.text.index("start_test ") :]


@dataclass(frozen=True)
class Result:
    """How a case went. ``client`` is what elivepatch was called with and said, ``left`` what was there afterwards.

    ``unloaded`` are the modules that the case would have unloaded and elivepatch had unloaded already.
    """

    passed: bool
    output: str
    client: str
    unloaded: frozenset[str]
    left: str

    @property
    def word(self) -> str:
        return "ok" if self.passed else "not ok"


def cases(source: Path) -> list[Case]:
    """All cases of the scripts of a kernel's source, in the order of the kernel's own Makefile."""
    directory = source / _SELFTESTS
    scripts = re.findall(r"\btest-[\w-]+\.sh", (directory / "Makefile").read_text())
    assert scripts
    assert set(scripts) == {path.name for path in directory.glob("test-*.sh")}
    return [case for script in scripts for case in _split(script, (directory / script).read_text())]


def _split(script: str, text: str) -> list[Case]:
    head, *parts = re.split(r"^(?=start_test )", text, flags=re.MULTILINE)
    assert parts, f"{script} has no case"
    found: list[Case] = []
    assigned = ""
    for part in parts:
        name = re.match(r'start_test "(.*)"\n', part)
        assert name, part[:80]
        found.append(Case(script, name[1], head + assigned + part))
        assigned += "".join(_ASSIGNMENT.findall(part))
    return found


def build(kernel: PreparedKernel, work: Path) -> dict[str, bytes]:
    """The modules of the tests, and the program that one of them takes; by their names."""
    job = work / "job"
    job.mkdir(parents=True)
    source = next(kernel.source / place for place in _MODULES if (kernel.source / place / "Makefile").exists())
    for path in source.iterdir():
        shutil.copyfile(path, job / path.name)
    program = kernel.source / _SELFTESTS / f"{_HAMMER}.c"
    if program.exists():
        shutil.copyfile(program, job / program.name)
    give_to_sandbox(job)
    words = [f"{name}={value}" for name, value in {"KERNELRELEASE": kernel.release, **kernel.variables}.items()]
    with kernel.sandbox(work, job=job) as sandbox:
        make = ["make", "-s", "-j2", *words, "CONFIG_TEST_LIVEPATCH=m", f"M={JOB}", "modules"]
        done = sandbox.run(make, cwd=TREE, check=False)
        if done.returncode == 0 and program.exists():
            done = sandbox.run(["gcc", "-O2", "-static", "-o", _HAMMER, program.name], cwd=JOB, check=False)
    if done.returncode != 0:
        pytest.fail(f"the kernel's test modules do not build:\n{done.stdout}{done.stderr}")
    found = {path.name: path.read_bytes() for path in job.glob("*.ko")}
    if program.exists():
        found[_HAMMER] = (job / _HAMMER).read_bytes()
    return found


def archive(kernel: PreparedKernel, wanted: Sequence[Case], built: Mapping[str, bytes]) -> bytes:
    """A tar archive for a guest: ``plain`` and ``ours`` with the cases, and ``modules``."""
    functions = (kernel.source / _SELFTESTS / "functions.sh").read_text()
    files: dict[str, bytes] = {}
    for way, more in (("plain", ""), ("ours", _ADAPTER)):
        files[f"{way}/functions.sh"] = (functions + more).encode()
        files.update({f"{way}/{number}.sh": case.text.encode() for number, case in enumerate(wanted)})
        if _HAMMER in built:
            files[f"{way}/{_HAMMER}"] = built[_HAMMER]
    files.update({f"modules/{name}": data for name, data in built.items() if name.endswith(".ko")})
    shim = (HERE / "kernel_selftests.sh").read_bytes()
    files.update({f"programs/{name}": shim for name in ("insmod", "modprobe", "rmmod")})
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def script(wanted: Sequence[Case]) -> str:
    """What is to be run in the guest, where the archive is ``selftests.tar``."""
    return _SCRIPT.replace("COUNT", str(len(wanted)))


_SCRIPT = r"""
mkdir /tmp/selftests; tar -C /tmp/selftests -xf selftests.tar
/run/guest/busybox mount -t debugfs debugfs /sys/kernel/debug
ln -sfn /proc/self/fd /dev/fd
mkdir "/lib/modules/$(uname -r)/selftests"; cp /tmp/selftests/modules/*.ko "/lib/modules/$(uname -r)/selftests"; depmod
kept=$PATH
KDIR=/tmp/selftests/modules CLIENT=/tmp/selftests/client ELIVEPATCH_TRANSITION_TIMEOUT=30
export KDIR CLIENT ELIVEPATCH_TRANSITION_TIMEOUT
left() { ls /sys/kernel/livepatch; grep -o '^test_klp_[a-z_0-9]*' /proc/modules; }
clear_away() {
    for file in /sys/kernel/livepatch/*/enabled; do echo 0 >"$file"; done
    for _ in 1 2 3 4 5 6 7 8 9; do test -z "$(ls /sys/kernel/livepatch)" || sleep 1; done
    for module in $(left); do /usr/sbin/rmmod "$module"; done
} >/dev/null 2>&1
for way in plain ours; do
    cd "/tmp/selftests/$way"
    ln -s ../modules test_modules
    PATH=$kept; test "$way" = plain || PATH=/tmp/selftests/programs:$kept
    number=0
    while test "$number" -lt COUNT; do
        mark "$way-$number"
        : >"$CLIENT"
        timeout 400 bash "./$number.sh" 2>&1
        echo "@exit $?"
        sed 's/^/@client /' "$CLIENT"
        left | sed 's/^/@left /'
        test "$way" = plain || test -z "$(ls /sys/kernel/livepatch)" || elivepatch revert --all
        clear_away
        number=$((number + 1))
    done
done
mark status; elivepatch status --json; echo "@exit $?"
mark log; dmesg | grep -E 'WARNING|BUG|Oops|Call Trace'
mark end
"""


def result(section: str) -> Result:
    """How a case went, from what its section of the output holds."""

    def marked(mark: str) -> list[str]:
        return re.findall(rf"^@{mark} (.*)$", section, re.MULTILINE)

    (status,) = marked("exit")
    output = "\n".join(line for line in section.splitlines() if not line.startswith("@"))
    return Result(
        passed=status == "0" and re.search(r"^TEST: .* \.\.\. .*\bok$", output, re.MULTILINE | re.DOTALL) is not None,
        output=output,
        client="\n".join(marked("client")),
        unloaded=frozenset(re.findall(r"@unloaded (\S+)$", section, re.MULTILINE)),  # not always at the begin of a line
        left=" ".join(sorted(set(marked("left")))),
    )


def table(wanted: Sequence[Case], plain: Sequence[Result], ours: Sequence[Result]) -> str:
    """Both results of each case, side by side."""
    width = max(len(case.title) for case in wanted)
    lines = [f"{'case':{width}}  insmod  elivepatch"]
    for case, one, other in zip(wanted, plain, ours, strict=True):
        lines.append(f"{case.title:{width}}  {one.word:6}  {other.word}")
    count = f"{sum(one.passed for one in plain)} and {sum(one.passed for one in ours)} of {len(wanted)} pass"
    return "\n".join([*lines, count, ""])


def status(section: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(section[section.index("{") : section.rindex("}") + 1])
    return data
