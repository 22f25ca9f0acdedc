# SPDX-License-Identifier: GPL-2.0-or-later
"""What cannot become a livepatch, through the command itself: exit status, error, rule, and words that say where."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from build_support import LIVEPATCHES, Builder, diff
from elivepatch.build import prepared
from elivepatch.build.prepared import PreparedKernel
from elivepatch.errors import CompilerMismatchError, ElivepatchError, ToolUnavailableError
from elivepatch.kernel.config import KernelConfig
from elivepatch.kernel.release import Release
from elivepatch.server import cli
from elivepatch.workshop import Workshop

pytestmark = pytest.mark.integration

Patch = Callable[[Builder], bytes]
UPTIME = "fs/proc/uptime.c"
STRING = (LIVEPATCHES / "string.patch").read_bytes()


@dataclass(frozen=True)
class Ended:
    """How the command ended."""

    status: int
    report: dict[str, Any]  # Any: JSON
    error: str
    module: Path

    @property
    def rules(self) -> list[str]:
        return [finding["rule"] for finding in self.report["diagnosis"]]

    @property
    def findings(self) -> str:
        return "\n".join(
            f"{each.get('file')}:{each.get('line')}:{each.get('function')}: {each['message']} {each.get('hint')}"
            for each in self.report["diagnosis"]
        )


class Command:
    """``elivepatch-server build`` in this process, from its arguments to its exit status."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], directory: Path) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self._directory = directory

    def file(self, name: str, data: bytes) -> str:
        path = self._directory / name
        path.write_bytes(data)
        return str(path)

    def __call__(self, kernel: str, patch: bytes, *words: str) -> Ended:
        return self.run(kernel, [self.file("change.patch", patch)], *words)

    def run(self, kernel: str, patches: Sequence[str], *words: str) -> Ended:
        module = self._directory / "out.ko"
        module.unlink(missing_ok=True)
        argv = ["elivepatch-server", "build", "--kernel", kernel, "--no-verify", "--json", "-o", str(module), *words]
        self._monkeypatch.setattr(sys, "argv", [*argv, *(word for patch in patches for word in ("--patch", patch))])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = self._capsys.readouterr()
        assert isinstance(caught.value.code, int)
        report: dict[str, Any] = json.loads(said.out) if said.out else {}
        if caught.value.code:
            assert not module.exists(), "there is a module although the build was refused"
        if report:
            assert report["exit_status"] == caught.value.code
        return Ended(caught.value.code, report, said.err, module)


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, workshop: Workshop
) -> Command:
    monkeypatch.setenv("ELIVEPATCH_CACHE", str(workshop.cache))
    monkeypatch.setenv("ELIVEPATCH_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return Command(monkeypatch, capsys, tmp_path)


def uptime(before: str, after: str) -> Patch:
    return lambda builder: builder.change(UPTIME, (before, after))


def renamed(name: str) -> Patch:
    return lambda _: STRING.replace(b"fs/proc/meminfo.c", name.encode())


def link(target: str) -> Patch:
    """A patch that makes a file a symbolic link, and then one that writes through it."""
    made = (
        f"diff --git a/fs/link b/fs/link\nnew file mode 120000\nindex 0000000..1111111\n"
        f"--- /dev/null\n+++ b/fs/link\n@@ -0,0 +1 @@\n+{target}\n\\ No newline at end of file\n"
    )
    through = diff("fs/link/meminfo.c", "one\n", "two\n")
    return lambda _: made.encode() + through


BINARY = (
    b"diff --git a/fs/proc/logo b/fs/proc/logo\nindex 1111111..2222222 100644\n"
    b"GIT binary patch\nliteral 4\nLcmZQzWMXCk00aO5\n\nliteral 0\nHcmV?d00001\n\n"
)
INIT = uptime('proc_create_single("uptime", 0,', 'proc_create_single("uptime2", 0,')
DEVICES = "fs/proc/devices.c"

#: name: the patch, exit status, error, the rule that is given, words of the findings.
CASES: dict[str, tuple[Patch, int, str, str, tuple[str, ...]]] = {
    "not a patch": (lambda _: b"Dear maintainer, please fix it.\n", 2, "invalid-patch", "not-a-patch", ()),
    "not text": (lambda _: bytes(range(256)) * 64, 2, "invalid-patch", "binary", ()),
    "empty": (lambda _: b"", 2, "invalid-patch", "empty", ()),
    "100 MB": (lambda _: STRING + b"\n" * 100_000_000, 2, "input-too-large", "patch-too-large", ()),
    "binary hunk": (lambda _: STRING + BINARY, 2, "invalid-patch", "binary", ("binary",)),
    "CRLF": (lambda _: STRING.replace(b"\n", b"\r\n"), 2, "invalid-patch", "crlf", ("CR",)),
    "escaping name": (renamed("../../../etc/passwd"), 2, "invalid-patch", "escaping-name", ()),
    "escaping name in the middle": (renamed("fs/../../../../etc/passwd"), 2, "invalid-patch", "escaping-name", ()),
    "absolute name": (
        lambda _: STRING.replace(b"a/fs/proc", b"/fs/proc").replace(b"b/fs/proc", b"/fs/proc"),
        2,
        "invalid-patch",
        "absolute-name",
        (),
    ),
    "symbolic link": (link("/etc"), 2, "invalid-patch", "symlink", ()),
    "symbolic link upwards": (link("../../.."), 2, "invalid-patch", "symlink", ()),
    "does not apply": (
        lambda _: STRING.replace(b'-\tshow_val_kb(m, "Vmalloc', b'-\tshow_val_kb(m, "Vmallox'),
        3,
        "does-not-apply",
        "hunk-failed",
        ("fs/proc/meminfo.c", "129"),
    ),
    "only documentation": (
        lambda builder: builder.change("Documentation/filesystems/proc.rst", ("VmallocChunk", "VMALLOCCHUNK")),
        3,
        "nothing-to-patch",
        "only-documentation",
        (),
    ),
    "a driver that is not selected": (
        lambda builder: builder.change("net/appletalk/atalk_proc.c", ("Address", "ADDRESS")),
        3,
        "nothing-to-patch",
        "not-in-kernel",
        ("net/appletalk/atalk_proc.c",),
    ),
    "another file of the same name": (
        lambda builder: builder.change("drivers/net/wireless/realtek/rtlwifi/stats.c", ("= 0;", "= 1;")),
        3,
        "nothing-to-patch",
        "not-in-kernel",
        ("rtlwifi/stats.c",),
    ),
    "a file of another architecture": (
        lambda builder: builder.change("arch/mips/kernel/proc.c", ("isa\\t\\t\\t:", "ISA\\t\\t\\t:")),
        3,
        "nothing-to-patch",
        "not-in-kernel",
        ("arch/mips/kernel/proc.c",),
    ),
    "does not compile": (
        uptime("	u64 idle_nsec;\n", "	u64 idle_nsec = undeclared;\n"),
        3,
        "does-not-compile",
        "compile-error",
        (f"{UPTIME}:16:uptime_proc_show", "undeclared"),
    ),
    "does not parse": (
        uptime("	return 0;\n}\n", "	return 0;\n"),
        3,
        "does-not-compile",
        "compile-error",
        (UPTIME,),
    ),
    "only a comment": (
        uptime("static int uptime_proc_show", "/* new */\nstatic int uptime_proc_show"),
        3,
        "nothing-to-patch",
        "only-documentation",
        (),
    ),
    "code that compiles to the same": (
        uptime("	idle_nsec = 0;\n", "	idle_nsec = 1 - 1;\n"),
        3,
        "no-functional-change",
        "no-functional-change",
        (),
    ),
    "init code": (INIT, 3, "cannot-livepatch", "init-code", (UPTIME, "proc_uptime_init")),
    "initialiser of data": (
        lambda builder: builder.change(DEVICES, (".show  = devinfo_show", ".show  = NULL")),
        3,
        "cannot-livepatch",
        "data-object-changed",
        (DEVICES, "devinfo_ops"),
    ),
    "a header": (
        lambda builder: builder.change("include/linux/list.h", ("return list->next == head;", "return head == list;")),
        3,
        "cannot-livepatch",
        "header-fan-out",
        ("include/linux/list.h",),
    ),
    "a new file": (
        lambda _: STRING + diff("fs/proc/new.c", "", "int elivepatch_new;\n"),
        3,
        "cannot-livepatch",
        "new-file",
        ("fs/proc/new.c",),
    ),
    "a function without fentry": (
        lambda builder: builder.change(
            "lib/string.c",
            ("	unsigned char c1, c2;\n\n	if (!len)\n", "	unsigned char c1, c2;\n\n	if (len == 4321)\n"),
        ),
        3,
        "cannot-livepatch",
        "no-fentry",
        ("lib/string.c", "strncasecmp"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_patch_that_cannot_be_one(command: Command, builder: Builder, name: str) -> None:
    make, status, error, rule, words = CASES[name]
    ended = command(builder.kernel.release, make(builder))
    assert (ended.status, ended.report.get("error")) == (status, error), f"{ended.error}\n{ended.report}"
    assert ended.report["diagnosis"], "nothing says why"
    assert ended.report["hint"], "nothing says what to do"
    assert rule in ended.rules, ended.findings
    for word in words:
        assert word in ended.findings, ended.findings


def test_files_that_cannot_be_read(command: Command, builder: Builder, tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.patch", tmp_path):
        ended = command.run(builder.kernel.release, [str(path)])
        assert ended.status == 2
        assert str(path) in ended.error


def test_a_place_that_cannot_be_written(command: Command, builder: Builder, tmp_path: Path) -> None:
    ended = command(builder.kernel.release, STRING, "-o", str(tmp_path / "no such directory/out.ko"))
    assert ended.status == 2
    assert "no such directory" in ended.error


# -- the kernel


def test_a_kernel_that_is_not_offered(command: Command, kernel: PreparedKernel) -> None:
    name = "6.12.1+deb13-cloud-amd64"
    ended = command(name, STRING)
    assert (ended.status, ended.report["error"], ended.report["status"]) == (6, "kernel-unavailable", "failed")
    assert name in ended.report["message"]
    offered = ended.report["message"].partition("Offered are:")[2].strip(" .").split(", ")
    assert offered[0].startswith("6.12."), "the likely ones are not first"
    assert len(offered) <= 7, "nobody reads that"
    assert "debuginfod" in ended.report["hint"]
    assert any(each.endswith("-cloud-amd64") and each.startswith("6.12.") for each in offered), offered
    assert ended.report["hint"]


@pytest.mark.parametrize("name", ["", "latest", "6.12.117/../../etc", "-o", "6.12.117 x", "6.12.117\n", "\u0666.12.1"])
def test_what_is_no_kernel(command: Command, kernel: PreparedKernel, name: str) -> None:
    ended = command(name, STRING)
    assert ended.status == 2, ended.error


def test_what_is_registered_for_the_start_would_never_run(command: Command, builder: Builder) -> None:
    added = "static int __init late(void)\n{\n\treturn 0;\n}\nlate_initcall(late);\n"
    text = (builder.kernel.source / UPTIME).read_text()
    patch = diff(UPTIME, text, text.replace('"%lu.%02lu %lu', '"%lu.%02lu  %lu') + added)
    ended = command(builder.kernel.release, patch)
    assert (ended.status, ended.rules) == (3, ["late-registration"]), ended.findings
    assert ended.report["message"] == "late() is to run while the kernel boots, which is over."
    word = 'static int __init word(char *said)\n{\n\treturn 1;\n}\n__setup("uptime=", word);\n'
    patch = diff(UPTIME, text, text.replace('"%lu.%02lu %lu', '"%lu.%02lu  %lu') + f"#include <linux/init.h>\n{word}")
    assert command(builder.kernel.release, patch).rules == ["late-registration"]


def test_a_parameter_that_nobody_can_set_is_a_warning(command: Command, builder: Builder) -> None:
    text = (builder.kernel.source / UPTIME).read_text()
    head = "#include <linux/moduleparam.h>\nstatic bool wide;\nmodule_param(wide, bool, 0644);\n"
    shown = 'seq_printf(m, "%lu.%02lu %lu'
    assert shown in text
    start = text.index("static int uptime_proc_show")
    changed = (text[:start] + head + text[start:]).replace(shown, f'if (wide)\n\t\tseq_puts(m, " ");\n\t{shown}')
    ended = command(builder.kernel.release, diff(UPTIME, text, changed))
    assert ended.status == 0, ended.error
    assert "late-parameter" in ended.rules
    assert "The parameter wide cannot be set" in ended.findings


def test_the_forms_are_told_to_whoever_names_none(command: Command) -> None:
    ended = command("my kernel", STRING)
    assert "debian:SERIES" in ended.report["hint"]
    assert (
        command("debian:9.99", STRING).report["message"] == "No configured suite has the series 9.99 of linux-source."
    )


def test_base_patches_are_files_and_directories(command: Command, builder: Builder, tmp_path: Path) -> None:
    place = tmp_path / "base"
    place.mkdir()
    for path, said in ((place, "holds no base patch"), (tmp_path / "none", "cannot be read")):
        ended = command(builder.kernel.release, STRING, "--base-patch", str(path))
        assert (ended.status, ended.report["error"]) == (2, "invalid-input")
        assert said in ended.report["message"]
    (place / "2.patch").write_bytes(b"no patch\n")
    (place / "1.diff").write_bytes(STRING)
    (place / "README").write_bytes(b"not of them\n")
    ended = command(builder.kernel.release, STRING, "--base-patch", str(place))
    assert (ended.status, ended.report["error"]) == (2, "invalid-patch")
    assert ended.report["message"] == "The base patch 2.patch is not a patch: it names no file to change."


def test_a_damaged_archive_of_a_host_is_named(command: Command, builder: Builder) -> None:
    ended = command(builder.kernel.release, STRING, "--image", command.file("host.tar.xz", b"nothing"))
    assert ended.status == 2
    assert "host.tar.xz is not the archive of a host's build" in ended.report["message"]
    assert "elivepatch image" in ended.report["hint"]


def test_a_configuration_that_is_too_large_has_a_way_out(command: Command, builder: Builder) -> None:
    ended = command(builder.kernel.release, STRING, "--config", command.file("config", b"#" * (2 * 1024 * 1024)))
    assert (ended.status, ended.report["error"]) == (2, "input-too-large")
    assert "Check that it is the configuration" in ended.report["hint"]


def test_a_refusal_is_printed_once(builder: Builder, tmp_path: Path) -> None:
    patch = tmp_path / "no.patch"
    patch.write_bytes(b"Dear maintainer, please fix it.\n")
    done = CliRunner(env={"ELIVEPATCH_CACHE": str(builder.workshop.cache)}).invoke(
        cli.cli, ["build", "--kernel", builder.kernel.release, "--patch", str(patch)]
    )
    assert done.exit_code == 2
    assert done.stderr.count("is not a patch") == 1, done.stderr


def test_the_configuration_of_another_kernel(command: Command, builder: Builder) -> None:
    published = (builder.kernel.path / "image/config").read_bytes()
    same = command.file("config", b"# a comment\n" + published)
    assert command(builder.kernel.release, STRING, "--config", same).status == 0
    other = published.replace(b"CONFIG_LIVEPATCH=y\n", b"").replace(b"CONFIG_HZ=250\n", b"CONFIG_HZ=1000\n")
    assert other.count(b"\n") == published.count(b"\n") - 1
    ended = command(builder.kernel.release, STRING, "--config", command.file("config", other))
    assert (ended.status, ended.report["error"]) == (4, "configuration-mismatch")
    assert "2 options" in ended.report["message"]
    assert "CONFIG_HZ: 250, 1000" in ended.findings
    assert "CONFIG_LIVEPATCH: y, n" in ended.findings


@pytest.mark.parametrize(
    ("data", "status"), [(b"", 2), (b"\0\1", 2), (b"rm -rf /\n", 2), (b"\xff" * 50, 2), (b"#" * (2 * 1024 * 1024), 2)]
)
def test_what_is_no_configuration(command: Command, builder: Builder, data: bytes, status: int) -> None:
    ended = command(builder.kernel.release, STRING, "--config", command.file("config", data))
    assert ended.status == status, ended.error


def test_another_build_of_the_kernel(builder: Builder) -> None:
    built = builder(STRING, build_id="ab" * 20)
    assert (built.report.exit_status, built.report.error) == (4, "build-id-mismatch")
    assert builder.kernel.build_id in built.told
    assert builder(STRING, build_id=builder.kernel.build_id).report.exit_status == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x86_64-linux-gnu-gcc-14 (Debian 14.2.0-18) 14.2.0", ("14.2.0-18", "14.2.0-19")),
        ("x86_64-linux-gnu-gcc-13 (Debian 13.3.0-1) 13.3.0", ("gcc-13",)),
        ("Debian clang version 19.1.7", ("clang", "gcc")),
        ("", ()),
    ],
)
def test_another_compiler(kernel: PreparedKernel, release: Release, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ElivepatchError) as caught:
        prepared.check_compiler(KernelConfig({"CC_VERSION_TEXT": f'"{text}"'}), kernel.root, str(release))
    assert isinstance(caught.value, CompilerMismatchError | ToolUnavailableError)
    assert caught.value.exit_status in {4, 6}
    assert caught.value.hint
    assert all(word in f"{caught.value.message} {caught.value.hint}" for word in words)
    right = KernelConfig({"CC_VERSION_TEXT": f'"{kernel.compiler}"'})
    prepared.check_compiler(right, kernel.root, str(release))
