# SPDX-License-Identifier: GPL-2.0-or-later
"""The client against a real HTTP server on loopback, on a host made of files."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import re
import stat
import time
import types
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from client_fakes import BUILD_ID, CONFIG, NAME, RELEASE, elf_module, fake_host, put
from client_rig import PATCH, Rig
from client_server import KEY, Server, done_report, serving
from elivepatch.client.host import Host
from elivepatch.kernel.running import livepatch, livepatches
from elivepatch.protocol.models import HostFacts

pytestmark = pytest.mark.integration


@pytest.fixture
def rig(tmp_path: Path) -> Generator[Rig]:
    host, kernel = fake_host(tmp_path, user=0)
    with serving(Server()) as server:
        yield Rig(server, host, kernel, tmp_path)


def test_a_patch_becomes_a_loaded_livepatch(rig: Rig) -> None:
    result = rig.run()
    assert result.exit_code == 0, result.output
    assert f"{NAME} is loaded, its transition took 1." in result.stdout
    patch = livepatch(NAME, rig.host.root)
    assert patch is not None
    assert patch.enabled
    assert rig.module.read_bytes() == rig.server.module
    assert "server: preparing" in result.stderr
    assert "compile fs/proc/meminfo.o" in result.stderr
    assert "CC fs/proc/meminfo.o" not in result.stderr
    assert rig.steps() == ["requested", "received", "loading", "loaded"]


def test_what_is_sent_is_the_hosts_own_facts(rig: Rig) -> None:
    put(rig.tmp, {"base.patch": PATCH, "second.patch": PATCH + "\n", "check.sh": "#!/bin/sh\n"})
    rig.kernel.add("livepatch_old", moved=True)
    result = rig.run(
        *("-p", rig.tmp / "second.patch", "--base-patch", rig.tmp / "base.patch", "--check", rig.tmp / "check.sh"),
        "--drop-earlier",
    )
    assert result.exit_code == 0, result.output
    parts = rig.server.seen[0].parts()
    assert [(name, file) for name, file, _ in parts] == [
        ("request", None),
        ("patch", "meminfo.patch"),
        ("patch", "second.patch"),
        ("base_patch", "base.patch"),
        ("config", "config"),
        ("check", "check.sh"),
    ]
    assert parts[1][2] == PATCH.encode()
    assert parts[4][2] == CONFIG
    request = json.loads(parts[0][2])
    assert request["kernel"] == RELEASE
    assert request["build_id"] == BUILD_ID
    assert request["verify"] is True
    assert request["host"]["compiler"] == "x86_64-linux-gnu-gcc-14 (Debian 14.2.0-19) 14.2.0"
    assert request["host"]["distribution"] == "debian"
    assert request["host"]["livepatches"] == ["livepatch_old"]


def test_the_state_is_nobody_elses(rig: Rig) -> None:
    rig.run()
    for place in (rig.state, rig.state / "journal", rig.module.parent, rig.module.parent.parent):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert stat.S_IMODE(rig.module.stat().st_mode) == 0o600
    assert [path.name for path in rig.module.parent.iterdir()] == [rig.module.name]


def test_the_outcome_as_json(rig: Rig) -> None:
    outcome = json.loads(rig.run("--json", "-o", rig.tmp / "out.ko").stdout)
    assert outcome["status"] == "loaded"
    assert outcome["exit_status"] == 0
    assert outcome["kernel"] == RELEASE
    assert outcome["build"]["report"]["proof"]["level"] == "exact"
    assert outcome["module"] == {
        "name": NAME,
        "sha256": hashlib.sha256(rig.server.module).hexdigest(),
        "size": len(rig.server.module),
        "stored": str(rig.module),
        "output": str(rig.tmp / "out.ko"),
    }
    assert outcome["transition_seconds"] > 0.9
    assert (rig.tmp / "out.ko").read_bytes() == rig.server.module


def test_debug_shows_the_output_of_the_build(rig: Rig) -> None:
    assert "CC fs/proc/meminfo.o" in rig.run("-d").stderr


def test_a_terminal_is_not_played_with(rig: Rig) -> None:
    rig.server.events[0]["message"] = "prep\x1b]0;owned\x07aring"
    result = rig.run()
    assert "\x1b" not in result.output
    assert "prep\N{REPLACEMENT CHARACTER}" in result.stderr


def test_the_same_again_changes_nothing(rig: Rig) -> None:
    rig.run()
    result = rig.run()
    assert result.exit_code == 0
    assert f"{NAME} is already loaded" in result.stdout
    assert rig.kernel.log.count(f"load {NAME}") == 1
    assert "already contained: meminfo.patch" in result.stderr
    assert rig.server.paths("POST") == ["/builds"]
    assert len(rig.journal()) == 1
    assert rig.steps()[-1] == "loaded"


def test_what_the_server_gives_again_is_not_loaded_again(rig: Rig) -> None:
    rig.run()
    result = rig.run("--drop-earlier")
    assert result.exit_code == 0
    assert f"{NAME} is already loaded" in result.stdout
    assert rig.server.paths("POST") == ["/builds"] * 2
    assert rig.kernel.log.count(f"load {NAME}") == 1
    assert rig.steps() == ["requested", "present"]


def test_another_module_of_the_same_name_is_not_put_over_it(rig: Rig) -> None:
    rig.run()
    before = rig.module.read_bytes()
    rig.server.module = elf_module() + b"other"
    result = rig.run("--drop-earlier")
    assert result.exit_code == 4
    assert "already holds a livepatch named" in result.stderr
    assert rig.module.read_bytes() == before


def test_no_load_stores_and_checks_only(rig: Rig) -> None:
    result = rig.run("--no-load")
    assert result.exit_code == 0
    assert "fetched and checked, not loaded" in result.stdout
    assert rig.module.exists()
    assert rig.kernel.log == []


def test_fetching_to_a_file_needs_no_root_and_no_state(rig: Rig) -> None:
    host = Host(root=rig.host.root, calls=rig.kernel, clock=rig.kernel, user=0)
    rig.host = host
    result = rig.run("--no-load", "-o", rig.tmp / "out.ko")
    assert result.exit_code == 0
    assert (rig.tmp / "out.ko").read_bytes() == rig.server.module
    assert not rig.state.exists()


def test_loading_needs_root_and_says_so_before_anything_is_sent(rig: Rig) -> None:
    rig.host = Host(root=rig.host.root, calls=rig.kernel, clock=rig.kernel, user=1000)
    result = rig.run()
    assert result.exit_code == 4
    assert "needs root" in result.stderr
    assert rig.server.seen == []


def test_another_kernel_is_never_loaded(rig: Rig) -> None:
    other = "6.12.118+deb13-cloud-amd64"
    module = elf_module({"name": NAME, "livepatch": "Y", "vermagic": f"{other} SMP preempt mod_unload modversions "})
    rig.server.module = module
    rig.server.report = done_report(module, kernel={"release": other, "build_id": "cd" * 20})
    result = rig.run("-a", other)
    assert result.exit_code == 0, result.output
    assert f"{other} is not the running kernel" in result.stderr
    assert rig.kernel.log == []
    assert (rig.state / "modules" / other / f"{NAME}.ko").exists()
    request = json.loads(rig.server.seen[0].parts()[0][2])
    assert request == {"kernel": other, "verify": True, "proof": "layout"}
    assert [name for name, _, _ in rig.server.seen[0].parts()] == ["request", "patch"]


# -- a kernel of one's own


SOURCE = "kernel.org:6.12.60"


def test_the_source_is_named_and_the_module_is_held_against_the_running_kernel(rig: Rig) -> None:
    result = rig.run("--kernel", SOURCE)
    assert result.exit_code == 0, result.output
    request = json.loads(rig.server.seen[0].parts()[0][2])
    assert request["kernel"] == SOURCE
    assert (request["host"]["release"], request["build_id"]) == (RELEASE, BUILD_ID)
    assert f"source: {SOURCE}" in result.stderr
    assert rig.journal()[-1]["source"] == SOURCE
    assert rig.journal()[-1]["release"] == RELEASE
    assert livepatch(NAME, rig.host.root)


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        ({"release": "6.12.60", "build_id": BUILD_ID}, f"is for the kernel {RELEASE}, not for {RELEASE}"),
        ({"release": RELEASE, "build_id": "cd" * 20}, f"this host runs {BUILD_ID}"),
    ],
)
def test_a_module_of_a_named_source_for_another_kernel_is_not_loaded(
    rig: Rig, kernel: dict[str, str], words: str
) -> None:
    rig.server.report = done_report(rig.server.module, kernel=kernel)
    result = rig.run("--kernel", SOURCE)
    assert result.exit_code == 4
    assert words in result.stderr
    assert rig.kernel.log == []


def test_the_source_can_be_a_setting_and_is_the_running_kernels_only(rig: Rig) -> None:
    environment = {"ELIVEPATCH_KERNEL_SOURCE": "git:https://git.example/linux.git#v6.12-local"}
    assert rig.run(env=environment).exit_code == 0
    assert json.loads(rig.server.seen[0].parts()[0][2])["kernel"] == environment["ELIVEPATCH_KERNEL_SOURCE"]
    rig.server.seen.clear()
    result = rig.run("-a", "6.1.0-56-cloud-amd64", env=environment)
    assert json.loads(rig.server.seen[0].parts()[0][2])["kernel"] == "6.1.0-56-cloud-amd64"
    assert "is that of the running kernel, not used" in result.stderr


@pytest.mark.parametrize("source", ["6.12.60", RELEASE, "kernel.org:", ":6.12", "git:a b", "Git:x"])
def test_what_is_no_source_is_refused_before_anything_is_sent(rig: Rig, source: str) -> None:
    result = rig.run("--kernel", source)
    assert result.exit_code == 2
    assert "does not name the source of a kernel" in result.stderr
    assert rig.server.seen == []


def base_parts(rig: Rig) -> list[str | None]:
    return [file for name, file, _ in rig.server.seen[0].parts() if name == "base_patch"]


def test_base_patches_are_sent_in_order_and_told(rig: Rig) -> None:
    put(rig.tmp, {"d/b.patch": PATCH, "d/a.diff": PATCH, "d/README": "x", "z.patch": PATCH})
    result = rig.run("--base-patch", rig.tmp / "z.patch", "--base-patch", rig.tmp / "d")
    assert result.exit_code == 0, result.output
    assert base_parts(rig) == ["z.patch", "a.diff", "b.patch"]
    told = result.stderr.splitlines()
    lines = [f"base patch: {rig.tmp / name}" for name in ("z.patch", "d/a.diff", "d/b.patch")]
    assert [line for line in told if line.startswith("base patch")] == lines
    assert told.index(lines[-1]) < told.index(f"asking {rig.server.url}")
    assert [patch["name"] for patch in rig.journal()[-1]["base_patches"]] == ["z.patch", "a.diff", "b.patch"]


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ((), ["ours.patch"]),
        (("--no-base-patches",), []),
        (("--kernel", "git:https://git.example/linux.git#mine"), []),
        (("--kernel", "gentoo:gentoo-sources-6.12.117"), ["ours.patch"]),
    ],
)
def test_the_patches_of_portage_are_sent_unless_they_are_left_out(
    rig: Rig, flags: tuple[str, ...], names: list[str]
) -> None:
    package = "var/db/pkg/sys-kernel/gentoo-sources-6.12.117"
    tree = f"lib/modules/{RELEASE}/source/dist-kernel"
    put(
        rig.host.root,
        {
            f"{package}/INHERITED": "kernel-2\n",
            f"{package}/SLOT": "6.12.117\n",
            "usr/src/linux/dist-kernel": "sys-kernel/gentoo-sources-6.12.117\n",
            "etc/portage/patches/sys-kernel/gentoo-sources/ours.patch": PATCH,
        },
    )
    link = (rig.host.root / tree).parent
    link.parent.mkdir(parents=True)
    link.symlink_to("/usr/src/linux")
    result = rig.run("--no-load", *flags)
    assert result.exit_code == 0, result.output
    assert base_parts(rig) == names
    assert ("base patch: ours.patch (portage" in result.stderr) == bool(names)
    request = json.loads(rig.server.seen[0].parts()[0][2])
    assert request["host"]["package"] == {
        "name": "gentoo-sources",
        "version": "6.12.117",
        "use": [],
        "variables": {},
    }


def test_the_flag_counts_over_the_configured_base_patches(rig: Rig) -> None:
    put(rig.tmp, {"d/a.patch": PATCH, "z.patch": PATCH, "client.toml": f'base_patches = "{rig.tmp}/d"\n'})
    (rig.tmp / "client.toml").chmod(0o644)
    assert rig.run("-c", rig.tmp / "client.toml", "--no-load").exit_code == 0
    assert base_parts(rig) == ["a.patch"]
    rig.server.seen.clear()
    assert rig.run("-c", rig.tmp / "client.toml", "--no-load", "--base-patch", rig.tmp / "z.patch").exit_code == 0
    assert base_parts(rig) == ["z.patch"]


def test_a_directory_without_base_patches_is_told(rig: Rig) -> None:
    (rig.tmp / "d").mkdir()
    assert f"base patches: none in {rig.tmp / 'd'}" in rig.run("--base-patch", rig.tmp / "d").stderr


def test_a_compressed_configuration_is_sent_as_text(rig: Rig) -> None:
    put(rig.tmp, {"config.gz": gzip.compress(CONFIG + b"CONFIG_MINE=y\n")})
    assert rig.run("-k", rig.tmp / "config.gz").exit_code == 0
    assert [data for name, _, data in rig.server.seen[0].parts() if name == "config"] == [CONFIG + b"CONFIG_MINE=y\n"]


KALLSYMS = "".join(
    f"{0xFFFFFFFF81000000 + at:x} T {name}\n" for at, name in ((0, "_stext"), (16, "meminfo_proc_show"), (64, "_etext"))
)


def layout_report(rig: Rig, image: str = "built") -> None:
    put(rig.host.root, {"proc/kallsyms": KALLSYMS, "sys/kernel/btf/vmlinux": "types"})
    kernel = {"release": RELEASE, "build_id": "cd" * 20, "image": image}
    rig.server.report = done_report(rig.server.module, kernel=kernel, proof={"level": "layout"})


def test_a_kernel_that_the_server_built_is_taken_by_its_layout(rig: Rig) -> None:
    layout_report(rig)
    result = rig.run("--kernel", SOURCE)
    assert result.exit_code == 0, result.output
    host = json.loads(rig.server.seen[0].parts()[0][2])["host"]
    assert host["btf_sha256"] == hashlib.sha256(b"types").hexdigest()
    assert len(host["symbols_sha256"]) == 64
    assert "warning: the proof is 'layout'" in result.stderr
    assert rig.journal()[-1]["proof"] == "layout"


def test_the_layout_is_not_enough_where_more_is_asked_for(rig: Rig) -> None:
    layout_report(rig)
    result = rig.run("--proof", "exact")
    assert result.exit_code == 4
    assert "only what is proven 'exact' is loaded" in result.stderr
    assert json.loads(rig.server.seen[0].parts()[0][2])["proof"] == "exact"
    assert rig.kernel.log == []


def test_the_layout_of_an_image_that_was_not_built_for_this_is_no_proof(rig: Rig) -> None:
    layout_report(rig, image="published")
    result = rig.run()
    assert result.exit_code == 4
    assert "the server did not build the kernel" in result.stderr
    assert rig.kernel.log == []


# -- facts


def test_the_facts_are_those_that_a_request_sends(rig: Rig) -> None:
    rig.run()
    sent = json.loads(rig.server.seen[0].parts()[0][2])["host"]
    shown = json.loads(rig.run("facts", patch=False).stdout)
    rig.run("revert", NAME, patch=False)
    assert shown == {**sent, "livepatches": [NAME], "taint": 1 << 12 | 1 << 13 | 1 << 15}
    assert HostFacts.model_validate(shown).build_id == BUILD_ID


def test_the_facts_go_to_a_file(rig: Rig) -> None:
    rig.host = Host(root=rig.host.root, calls=rig.kernel, clock=rig.kernel, user=1000)
    result = rig.run("facts", "-o", rig.tmp / "facts.json", patch=False)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert json.loads((rig.tmp / "facts.json").read_text())["release"] == RELEASE
    failed = rig.run("facts", "--json", "-o", rig.tmp / "none/facts.json", patch=False)
    assert failed.exit_code == 2
    assert json.loads(failed.stdout)["error"]["code"] == "invalid-input"


# -- events


def test_events_that_break_off_are_taken_up_again(rig: Rig) -> None:
    rig.server.break_after = [1, 0, 2]
    result = rig.run("-d")
    assert result.exit_code == 0, result.output
    asked = [seen.headers.get("last-event-id") for seen in rig.server.seen if seen.path.endswith("/events")]
    assert asked == [None, "1", "1", "3"]
    for words in ("server: preparing", "compile fs/proc/meminfo.o", "CC fs/proc/meminfo.o"):
        assert result.stderr.count(words) == 1
    assert "the events broke off" in result.stderr


def test_a_server_that_restarts_is_waited_for(rig: Rig) -> None:
    rig.server.break_after = [1]
    rig.server.down = 3
    result = rig.run()
    assert result.exit_code == 0, result.output
    assert "Trying again (3 of 8)" in result.stderr
    assert rig.server.down == 0


def test_a_server_that_stays_away_is_given_up(rig: Rig) -> None:
    rig.server.break_after = [1] + [0] * 20
    rig.server.down = 100
    result = rig.run()
    assert result.exit_code == 6
    assert rig.server.down == 100 - 9
    assert rig.steps() == ["requested", "failed"]


def test_a_build_without_end_is_given_up(rig: Rig) -> None:
    rig.server.break_after = [0] * 1000
    result = rig.run(env={"ELIVEPATCH_BUILD_TIMEOUT": "120"})
    assert result.exit_code == 6
    assert "did not end within 120 s" in result.stderr


# -- refusals


def test_a_refused_patch_is_explained(rig: Rig) -> None:
    rig.server.status = "refused"
    rig.server.report = {
        "status": "refused",
        "key": KEY,
        "exit_status": 3,
        "error": "cannot-livepatch",
        "message": "The change cannot be made while the kernel runs.",
        "diagnosis": [
            {
                "rule": "init-code",
                "severity": "error",
                "file": "fs/proc/meminfo.c",
                "line": 171,
                "function": "proc_meminfo_init",
                "message": "The function runs only at boot.",
                "hint": "Leave it out.",
                "doc": "docs/errors.md#init-code",
            }
        ],
    }
    result = rig.run()
    assert result.exit_code == 3
    assert "elivepatch: The change cannot be made" in result.stderr
    assert (
        "error [init-code] fs/proc/meminfo.c:171 proc_meminfo_init(): The function runs only at boot." in result.stderr
    )
    assert "hint: Leave it out." in result.stderr
    assert rig.steps() == ["requested", "failed"]
    assert json.loads(rig.run("--json").stdout)["error"]["code"] == "cannot-livepatch"


@pytest.mark.parametrize(
    ("status", "exit_status", "ends"), [("failed", 6, 6), ("failed", 1, 1), ("failed", 0, 1), ("cancelled", 1, 1)]
)
def test_the_exit_status_is_that_of_the_report(rig: Rig, status: str, exit_status: int, ends: int) -> None:
    rig.server.status = status
    rig.server.report = {"status": status, "key": KEY, "exit_status": exit_status, "message": "So it ended."}
    result = rig.run()
    assert result.exit_code == ends
    assert "So it ended." in result.stderr


PROBLEM = {
    "type": "urn:elivepatch:error:x",
    "title": "Title.",
    "detail": "In words.",
    "hint": "Do that.",
    "diagnosis": [{"rule": "r", "message": "Found this.", "severity": "error"}],
}


@pytest.mark.parametrize(
    ("status", "code", "ends"),
    [
        (422, "invalid-patch", 2),
        (413, "input-too-large", 2),
        (422, "does-not-apply", 3),
        (404, "kernel-unavailable", 6),
        (503, "busy", 6),
        (500, "internal-error", 1),
        (507, "disk-full", 1),
        (422, "a-code-of-tomorrow", 2),
        (503, "a-code-of-tomorrow", 6),
    ],
)
def test_a_problem_is_the_error_it_was(rig: Rig, status: int, code: str, ends: int) -> None:
    rig.server.problem = (status, {**PROBLEM, "status": status, "code": code})
    result = rig.run("--json")
    assert result.exit_code == ends
    for words in ("elivepatch: In words.", "hint: Do that.", "Found this."):
        assert words in result.stderr
    assert json.loads(result.stdout)["error"]["message"] == "In words."


@pytest.mark.parametrize("body", [b"<html>nginx</html>", b"", b"{}", b"[1]", b"\xff\xfe"])
def test_what_is_no_elivepatch_server_is_told_so(rig: Rig, body: bytes) -> None:
    rig.server.problem = (404, body)
    result = rig.run()
    assert result.exit_code == 6
    assert "answers HTTP 404, and not as an elivepatch server" in result.stderr


def test_no_redirect_is_followed(rig: Rig) -> None:
    with serving(Server()) as other:
        rig.server.redirect = f"{other.url}/elivepatch/api/v2/builds"
        result = rig.run()
        assert other.seen == []
    assert result.exit_code == 6
    assert "points elsewhere" in result.stderr


def test_a_server_that_is_not_there_is_named(rig: Rig) -> None:
    result = rig.run("-u", "http://127.0.0.1:1")
    assert result.exit_code == 6
    assert "http://127.0.0.1:1 cannot be reached" in result.stderr
    assert "-u URL" in result.stderr


# -- what comes back


def test_a_download_that_is_cut_is_begun_again(rig: Rig) -> None:
    rig.server.module_bytes = [100, 0]
    result = rig.run()
    assert result.exit_code == 0, result.output
    assert rig.server.paths("GET").count("/builds/b-1/module") == 3


def test_a_download_that_is_cut_again_and_again_is_an_error(rig: Rig) -> None:
    rig.server.module_bytes = [100] * 10
    result = rig.run()
    assert result.exit_code == 6
    assert "did not arrive whole" in result.stderr
    assert not rig.module.exists()


def elf(**changes: str) -> bytes:
    fields = {"name": NAME, "livepatch": "Y", "vermagic": f"{RELEASE} SMP preempt mod_unload modversions "}
    return elf_module(fields | changes)


WRONG: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "digest": (elf(), {"module": {"name": NAME, "sha256": "0" * 64, "size": len(elf())}}, "SHA-256 differs"),
    "longer": (elf(), {"module": {"name": NAME, "sha256": "0" * 64, "size": 20}}, "SHA-256 differs"),
    "too large": (elf(), {"module": {"name": NAME, "sha256": "0" * 64, "size": 1 << 40}}, "the limit is"),
    "no module": (elf(), {"module": None}, "reports no module"),
    "not elf": (b"#!/bin/sh\nreboot\n" * 20, {}, "not a kernel module"),
    "vermagic": (elf(vermagic="6.1.0 SMP "), {}, f"for the kernel 6.1.0, not for {RELEASE}"),
    "reported release": (elf(), {"kernel": {"release": "6.1.0", "build_id": BUILD_ID}}, f"not for {RELEASE}"),
    "not a livepatch": (elf(livepatch="N"), {}, "not marked as a livepatch"),
    "name": (elf(name="other"), {}, "the module calls itself other"),
    "machine": (elf_module(machine=183), {}, "another machine than this x86_64"),
    "build id": (elf(), {"kernel": {"release": RELEASE, "build_id": "cd" * 20}}, f"this host runs {BUILD_ID}"),
    "no build id": (elf(), {"kernel": {"release": RELEASE}}, "build ID (unknown)"),
    "no proof": (elf(), {"proof": None}, "its proof is 'absent'"),
    "weak proof": (elf(), {"proof": {"level": "none"}}, "its proof is 'none'"),
    "layout not told": (elf(), {"proof": {"level": "layout"}}, "did not tell the layout of its kernel"),
    "no boot test": (elf(), {"verification": None}, "has not passed a boot test"),
    "nothing changed": (elf(), {"changed": []}, "names no function"),
    "functions": (
        elf(),
        {"changed": [{"object": "vmlinux", "function": "x", "kind": "changed"}]},
        "does not patch what",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_as_it_should_be_is_not_loaded(rig: Rig, case: str) -> None:
    module, changes, words = WRONG[case]
    rig.server.module = module
    rig.server.report = {k: v for k, v in (done_report(module) | changes).items() if v is not None}
    result = rig.run()
    assert result.exit_code == 4, result.output
    assert words in result.stderr
    assert "hint: " in result.stderr
    assert livepatches(rig.host.root) == ()
    assert (rig.kernel.log == []) == (case != "functions")
    assert "failed" in rig.steps()


@pytest.mark.parametrize("name", ["../../evil", "a" * 60, "", "a b"])
def test_a_module_name_that_is_none_writes_nothing(rig: Rig, name: str) -> None:
    rig.server.module = elf(name=name)
    data = rig.server.module
    said = {"name": name, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    rig.server.report = {**done_report(data), "module": said}
    result = rig.run("--no-load")
    assert result.exit_code == 4
    assert "cannot be the name of a module" in result.stderr
    assert not list(rig.tmp.rglob("*.ko"))


def test_without_a_boot_test_only_when_asked_for(rig: Rig) -> None:
    rig.server.report = done_report(rig.server.module, verification=None)
    result = rig.run("--no-verify")
    assert result.exit_code == 0, result.output
    assert json.loads(rig.server.seen[0].parts()[0][2])["verify"] is False


# -- the kernel says no


def test_a_transition_that_sticks_is_undone_and_journalled(rig: Rig) -> None:
    rig.kernel.stuck = True
    result = rig.run("--timeout", "3")
    assert result.exit_code == 4
    assert "did not finish within 3 s." in result.stderr
    assert "It was undone." in result.stderr
    assert "1234 (cat)" in result.stderr
    assert livepatches(rig.host.root) == ()
    assert rig.steps() == ["requested", "received", "loading", "undoing", "undone", "failed"]


def test_a_refused_load_is_explained_and_journalled(rig: Rig) -> None:
    rig.kernel.refuse = errno.EKEYREJECTED
    result = rig.run()
    assert result.exit_code == 4
    assert "EKEYREJECTED" in result.stderr
    assert rig.steps() == ["requested", "received", "loading", "undone", "failed"]


def test_enforced_signatures_are_told_of_first_and_then_kept(rig: Rig) -> None:
    put(rig.host.root, {"sys/module/module/parameters/sig_enforce": "Y\n"})
    result = rig.run()
    assert result.exit_code == 4
    assert "warning: this kernel takes only signed modules" in result.stderr
    assert "is not signed" in result.stderr
    assert rig.kernel.log == []


def test_ctrl_c_in_the_transition_undoes_it(rig: Rig) -> None:
    rig.kernel.seconds = 60
    rig.kernel.interrupt_at = rig.kernel.time + 5
    result = rig.run()
    assert result.exit_code == 130
    assert livepatches(rig.host.root) == ()
    assert rig.steps()[-3:] == ["undoing", "undone", "failed"]


def test_new_taint_is_a_warning(rig: Rig) -> None:
    rig.kernel.taint |= 1 << 9
    outcome = json.loads(rig.run("--json").stdout)
    assert outcome["taint"] == "W"
    assert "kernel issued a warning" in outcome["warnings"][0]


# -- status and revert


def test_status_joins_kernel_and_journal(rig: Rig) -> None:
    rig.run()
    rig.kernel.add("livepatch_foreign", moved=True)
    data = json.loads(rig.run("status", "--json", patch=False).stdout)
    foreign, ours = data["livepatches"]
    assert ours["name"] == NAME
    assert ours["enabled"] is True
    assert ours["patches"] == ["meminfo.patch"]
    assert ours["proof"] == "exact"
    assert ours["verified"] is True
    assert ours["since"] > 1_000_000
    assert {"object": "vmlinux", "function": "meminfo_proc_show", "patched": True} in ours["functions"]
    assert "since" not in foreign
    assert data["taint_letters"] == "OEK"
    (disagreement,) = data["disagreements"]
    assert "livepatch_foreign, which the journal does not know" in disagreement
    text = rig.run("status", patch=False).stdout
    assert f"{NAME}: enabled since" in text
    assert "from meminfo.patch" in text


def test_revert_takes_it_out_again(rig: Rig) -> None:
    rig.run()
    result = rig.run("revert", NAME.replace("_", "-"), patch=False)
    assert result.exit_code == 0, result.output
    assert livepatches(rig.host.root) == ()
    assert rig.steps() == ["requested", "received", "loading", "loaded", "reverting", "reverted"]
    assert json.loads(rig.run("status", "--json", patch=False).stdout)["disagreements"] == []
    again = rig.run("revert", NAME, patch=False)
    assert again.exit_code == 4
    assert "no livepatch" in again.stderr


def test_a_revert_that_sticks_leaves_it_loaded_in_the_journal_too(rig: Rig) -> None:
    rig.run()
    rig.kernel.stuck_back = True
    result = rig.run("revert", "--timeout", "2", NAME, patch=False)
    assert result.exit_code == 4
    assert "transition back" in result.stderr
    assert rig.steps()[-4:] == ["reverting", "undoing", "undone", "loaded"]
    assert json.loads(rig.run("status", "--json", patch=False).stdout)["disagreements"] == []


def test_after_a_revert_it_can_be_loaded_again(rig: Rig) -> None:
    rig.run()
    rig.run("revert", NAME, patch=False)
    assert "is loaded" in rig.run().stdout


def test_a_foreign_livepatch_can_be_reverted(rig: Rig) -> None:
    rig.kernel.add("foreign", moved=True)
    assert rig.run("revert", "foreign", patch=False).exit_code == 0
    assert livepatches(rig.host.root) == ()


# -- the command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "There is nothing to do"),
        (("-p", "/nonexistent.patch"), "cannot be read"),
        (("-p", "{empty}"), "is empty"),
        (("-p", "{text}"), "is not a patch"),
        (("-p", "{large}"), "larger than"),
        (("-p", "/"), "is not a file"),
        (("-p", "{good}", "-k", "{text}"), "not a kernel configuration"),
        (("-p", "{good}", "--check", "/nonexistent"), "cannot be read"),
        (("-p", "{good}", "-a", "../../x y"), "cannot be the name of a kernel"),
        (("-p", "{good}", "-u", "ftp://x"), "not the address of a server"),
        (("-p", "{good}", "--timeout", "0"), "transition_timeout"),
        (("revert", "../x"), "cannot be the name of a livepatch"),
        (("-p", "{good}", "status"), "has no meaning for 'status'"),
        (("-e", "revert", "x"), "has no meaning for 'revert'"),
        (("-p", "{good}", "-o", "/"), "/ cannot be written"),
        (("-p", "{good}", "-o", "/nonexistent/x.ko"), "/nonexistent/x.ko cannot be written"),
        (("--no-such-flag",), "No such option"),
    ],
)
def test_wrong_usage_is_exit_status_two(rig: Rig, arguments: tuple[str, ...], words: str) -> None:
    files = put(rig.tmp, {"empty": "\n", "text": "hello\n", "large": "+" * (4 << 20) + "\n", "good": PATCH})
    filled = [word.format(**{name: files / name for name in ("empty", "text", "large", "good")}) for word in arguments]
    result = rig.run(*filled, patch=False)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert rig.server.seen == []


def test_version_and_help(rig: Rig) -> None:
    assert rig.run("-v", patch=False).stdout.startswith("elivepatch ")
    usage = rig.run("-h", patch=False).stdout
    for flag in ("-c", "-e", "-p", "-k", "-a", "-l", "-u", "-d", "-v", "--base-patch", "--no-load", "-o", "--check"):
        assert f"{flag}" in usage


# -- clocks


@pytest.mark.parametrize(("seconds", "words"), [(-3600, r"3[56]\d\d s behind"), (3600, r"3[56]\d\d s ahead of")])
def test_a_clock_that_is_an_hour_off_loads_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, seconds: int, words: str
) -> None:
    now = time.time
    monkeypatch.setattr("elivepatch.client.connection.time", types.SimpleNamespace(time=lambda: now() + seconds))
    result = rig.run()
    assert result.exit_code == 4, result.output
    assert re.search(words, result.stderr), result.stderr
    assert "clock_tolerance" in result.stderr
    assert rig.kernel.log == []
    assert livepatches(rig.host.root) == ()
    assert rig.run("--no-load", "-o", rig.tmp / "out.ko").exit_code == 0
    assert rig.run(env={"ELIVEPATCH_CLOCK_TOLERANCE": "0"}).exit_code == 0
