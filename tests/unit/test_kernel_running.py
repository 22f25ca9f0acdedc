# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_fakes import RELEASE, VERSION, elf_module, put
from elivepatch.errors import (
    InputTooLargeError,
    InvalidInputError,
    ModuleRejectedError,
    UnavailableError,
)
from elivepatch.kernel.host_configuration import find_configuration, read_configuration
from elivepatch.kernel.module_file import read_module
from elivepatch.kernel.running import (
    PatchedFunction,
    build_id_of,
    compiler_of,
    livepatch,
    livepatches,
    module_policy,
    parse_notes,
    parse_os_release,
    running_kernel,
    taint_flags,
)


def note(owner: bytes, kind: int, content: bytes, order: str = "<") -> bytes:
    name = owner + b"\0"
    return (
        struct.pack(order + "III", len(name), len(content), kind)
        + name.ljust(-(-len(name) // 4) * 4, b"\0")
        + content.ljust(-(-len(content) // 4) * 4, b"\0")
    )


BUILD_ID = bytes(range(20))
NOTES = note(b"Linux", 0x101, b"\0\0\0\0") + note(b"GNU", 3, BUILD_ID) + note(b"Xen", 6, b"linux\0")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return put(
        tmp_path,
        {
            "proc/sys/kernel/osrelease": RELEASE + "\n",
            "proc/version": VERSION + "\n",
            "proc/sys/kernel/arch": "x86_64\n",
            "proc/sys/kernel/tainted": "4096\n",
            "proc/sys/kernel/random/boot_id": "11111111-2222-3333-4444-555555555555\n",
            "sys/kernel/notes": NOTES,
            "etc/os-release": 'ID=debian\nVERSION_ID="13"\n',
            "sys/kernel/livepatch/livepatch_a/enabled": "1\n",
            "sys/kernel/livepatch/livepatch_a/transition": "0\n",
            "sys/kernel/livepatch/livepatch_a/vmlinux/patched": "1\n",
            "sys/kernel/livepatch/livepatch_a/vmlinux/meminfo_proc_show,1/x": "",
            "sys/kernel/livepatch/livepatch_a/af_packet/patched": "0\n",
            "sys/kernel/livepatch/livepatch_a/af_packet/show,comma,2/x": "",
        },
    )


def test_a_host_tells_all_its_facts(root: Path) -> None:
    kernel = running_kernel(root)
    assert kernel.release == RELEASE
    assert kernel.version == VERSION
    assert kernel.machine == "x86_64"
    assert kernel.build_id == BUILD_ID.hex()
    assert (kernel.distribution, kernel.distribution_version) == ("debian", "13")
    assert kernel.compiler == "x86_64-linux-gnu-gcc-14 (Debian 14.2.0-19) 14.2.0"
    assert kernel.taint == 4096
    assert kernel.boot_id == "11111111-2222-3333-4444-555555555555"
    assert kernel.can_livepatch
    (patch,) = kernel.livepatches
    assert patch.name == "livepatch_a"
    assert patch.enabled
    assert not patch.transition
    assert patch.functions == (
        PatchedFunction("af_packet", "show,comma", 2),
        PatchedFunction("vmlinux", "meminfo_proc_show", 1),
    )
    assert patch.patched == (("af_packet", False), ("vmlinux", True))


def test_a_host_that_tells_little_is_not_guessed_about(tmp_path: Path) -> None:
    kernel = running_kernel(put(tmp_path, {"proc/sys/kernel/osrelease": "6.1.0\n"}))
    assert kernel.build_id is None
    assert kernel.taint is None
    assert kernel.compiler is None
    assert kernel.distribution == "linux"
    assert not kernel.can_livepatch
    assert kernel.livepatches == ()


def test_without_proc_there_is_no_kernel_to_name(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="osrelease"):
        running_kernel(tmp_path)


def test_a_release_that_could_leave_its_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="release"):
        running_kernel(put(tmp_path, {"proc/sys/kernel/osrelease": "../../etc\n"}))


def test_a_livepatch_half_gone_is_not_there(root: Path) -> None:
    (root / "sys/kernel/livepatch/livepatch_a/transition").unlink()
    assert livepatch("livepatch_a", root) is None
    assert livepatches(root) == ()


# -- notes


@pytest.mark.parametrize("order", ["<", ">"])
def test_notes_are_read_in_both_byte_orders(order: str) -> None:
    data = note(b"Linux", 257, b"abcde", order) + note(b"GNU", 3, BUILD_ID, order)
    found = list(parse_notes(data, byteorder="little" if order == "<" else "big"))
    assert [(n.owner, n.type, n.content) for n in found] == [("Linux", 257, b"abcde"), ("GNU", 3, BUILD_ID)]


def test_a_build_id_is_the_gnu_note_of_type_three_only() -> None:
    assert build_id_of(note(b"Linux", 3, BUILD_ID) + note(b"GNU", 1, BUILD_ID)) is None
    assert build_id_of(b"") is None


@pytest.mark.parametrize("size", [0, 4, 33])
def test_a_build_id_of_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(InvalidInputError, match="build ID"):
        build_id_of(note(b"GNU", 3, b"x" * size))


@pytest.mark.parametrize("cut", range(1, 36))
def test_notes_that_are_cut_off_are_refused(cut: int) -> None:
    with pytest.raises(InvalidInputError, match="ELF note"):
        list(parse_notes(note(b"GNU", 3, BUILD_ID)[:cut]))


@given(st.binary(max_size=200))
def test_any_bytes_are_notes_or_refused(data: bytes) -> None:
    try:
        total = sum(12 + len(n.owner) + len(n.content) for n in parse_notes(data, byteorder="little"))
    except InvalidInputError:
        return
    # a name may hold bytes that decode to more than one; contents never exceed what was there
    assert total <= 12 + len(data) * 3


# -- os-release


def test_os_release_is_read_as_its_manual_page_says() -> None:
    text = "\n".join(
        [
            "# a comment",
            "ID=debian",
            'PRETTY_NAME="Debian \\"trixie\\" costs \\$5 \\`x\\` back\\\\slash"',
            "SINGLE='as \\$it is'",
            "EMPTY=",
            "VERSION_ID='13'  ",
            "not an assignment",
            "BAD=two words",
            "CODE=$(reboot)",
            'OPEN="never closed',
            "ID=last-one-counts",
        ]
    )
    assert parse_os_release(text) == {
        "ID": "last-one-counts",
        "PRETTY_NAME": 'Debian "trixie" costs $5 `x` back\\slash',
        "SINGLE": "as \\$it is",
        "EMPTY": "",
        "VERSION_ID": "13",
    }


def test_os_release_of_usr_lib_serves_where_etc_has_none(tmp_path: Path) -> None:
    put(tmp_path, {"proc/sys/kernel/osrelease": "6.1.0", "usr/lib/os-release": "ID=gentoo\n"})
    assert running_kernel(tmp_path).distribution == "gentoo"


# -- compiler, taint, policy


@pytest.mark.parametrize(
    ("version", "compiler"),
    [
        (
            "Linux version 4.19.0 (a@b) (gcc version 8.3.0 (Debian 8.3.0-6)) #1 SMP",
            "gcc version 8.3.0 (Debian 8.3.0-6)",
        ),
        ("Linux version 6.6.1 (a@b) (clang version 17.0.6, LLD 17.0.6) #1", "clang version 17.0.6"),
        ("Linux version 6.6.1 (a@b) (gcc (a, b) 1, ld) #1", "gcc (a, b) 1"),
        ("Linux version 6.6.1", None),
        ("", None),
    ],
)
def test_the_compiler_is_taken_from_proc_version(version: str, compiler: str | None) -> None:
    assert compiler_of(version) == compiler


def test_taint_bits_have_their_letters() -> None:
    assert [letter for letter, _ in taint_flags(1 << 12 | 1 << 13 | 1 << 15)] == ["O", "E", "K"]
    assert taint_flags(0) == ()
    assert taint_flags(1 << 30) == (("?", "unknown (bit 30)"),)


@pytest.mark.parametrize(
    ("files", "needed"),
    [
        ({}, False),
        ({"sys/module/module/parameters/sig_enforce": "N\n"}, False),
        ({"sys/module/module/parameters/sig_enforce": "Y\n"}, True),
        ({"sys/kernel/security/lockdown": "[none] integrity confidentiality\n"}, False),
        ({"sys/kernel/security/lockdown": "none [integrity] confidentiality\n"}, True),
        ({"sys/kernel/security/lockdown": "none integrity [confidentiality]\n"}, True),
    ],
)
def test_when_a_signature_is_needed(tmp_path: Path, files: dict[str, str | bytes], needed: bool) -> None:
    assert module_policy(put(tmp_path, files)).signature_needed is needed


def test_modules_disabled_is_seen(tmp_path: Path) -> None:
    assert module_policy(put(tmp_path, {"proc/sys/kernel/modules_disabled": "1\n"})).loading_disabled


# -- configuration

CONFIG = b"#\n# Linux/x86 6.12.117 Kernel Configuration\n#\nCONFIG_LIVEPATCH=y\n# CONFIG_FOO is not set\n"
PLACES = [
    ("proc/config.gz", gzip.compress(b"CONFIG_A=y\n", mtime=0)),
    (f"boot/config-{RELEASE}", b"CONFIG_B=y\n"),
    (f"lib/modules/{RELEASE}/config", b"CONFIG_C=y\n"),
    (f"lib/modules/{RELEASE}/build/.config", gzip.compress(b"CONFIG_D=y\n", mtime=0)),
]


def test_configurations_are_looked_for_in_order(tmp_path: Path) -> None:
    for name, content in reversed(PLACES):
        put(tmp_path, {name: content})
        found = find_configuration(RELEASE, limit_bytes=1000, root=tmp_path)
        assert found is not None
        assert found.origin == tmp_path / name
        assert found.data.startswith(b"CONFIG_")


def test_the_running_kernels_configuration_is_not_another_kernels(tmp_path: Path) -> None:
    put(tmp_path, {PLACES[0][0]: PLACES[0][1]})
    assert find_configuration("6.1.0", limit_bytes=1000, running=False, root=tmp_path) is None


def test_a_given_configuration_counts_alone(tmp_path: Path) -> None:
    put(tmp_path, {PLACES[0][0]: PLACES[0][1], "mine": CONFIG})
    found = find_configuration(RELEASE, limit_bytes=1000, given=tmp_path / "mine", root=tmp_path)
    assert found is not None
    assert found.data == CONFIG


def test_a_decompression_bomb_is_stopped_at_the_limit(tmp_path: Path) -> None:
    put(tmp_path, {"bomb": gzip.compress(b"CONFIG_A=y\n" * 2_000_000, mtime=0)})
    with pytest.raises(InputTooLargeError, match="larger than 100000 bytes"):
        read_configuration(tmp_path / "bomb", limit_bytes=100_000)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", InvalidInputError),
        (b"hello\n", InvalidInputError),
        (b"# only a comment\n", InvalidInputError),
        (b"CONFIG_A=y\n#!/bin/sh\nrm -rf x\n", InvalidInputError),
        (b"\x7fELF\0\0", InvalidInputError),
        (b"CONFIG_A=y\n" * 200, InputTooLargeError),
        (gzip.compress(CONFIG, mtime=0)[:-12], InvalidInputError),
        (gzip.compress(CONFIG, mtime=0) + gzip.compress(CONFIG, mtime=0), InvalidInputError),
        (b"\x1f\x8b" + b"rubbish" * 4, InvalidInputError),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path: Path, content: bytes, error: type[Exception]) -> None:
    put(tmp_path, {"config": content})
    with pytest.raises(error) as caught:
        read_configuration(tmp_path / "config", limit_bytes=1000)
    assert type(caught.value) is error


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_configuration_that_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match="configuration"):
        read_configuration(tmp_path / name, limit_bytes=1000)


# -- module files


FIELDS = {"name": "livepatch_a", "livepatch": "Y", "vermagic": f"{RELEASE} SMP preempt mod_unload modversions "}


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_module_file_is_read_in_every_elf_kind(wide: bool, order: str) -> None:
    module = read_module(elf_module(FIELDS, wide=wide, order=order))
    assert (module.name, module.release, module.livepatch) == ("livepatch_a", RELEASE, True)
    assert not module.signed
    assert module.is_for_machine("x86_64") is True
    assert module.is_for_machine("aarch64") is False
    assert module.is_for_machine("pdp11") is None


def test_a_signature_at_the_end_is_seen() -> None:
    assert read_module(elf_module(FIELDS) + b"\0" * 12 + b"~Module signature appended~\n").signed


def test_a_module_that_is_no_livepatch_says_so() -> None:
    module = read_module(elf_module({"name": "af_packet"}))
    assert not module.livepatch
    assert module.release is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an ELF file"),
        (b"<html>not found</html>" * 10, "not an ELF file"),
        (elf_module(FIELDS)[:40], "cut off"),
        (elf_module(FIELDS)[:-1], "cut off"),
        (elf_module(FIELDS, kind=3), "not a relocatable object"),
        (elf_module(FIELDS).replace(b".modinfo", b".nothing"), "no .modinfo"),
    ],
)
def test_what_is_no_module_is_rejected(data: bytes, reason: str) -> None:
    with pytest.raises(ModuleRejectedError, match=reason):
        read_module(data)


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_module_is_read_or_rejected(position: int, value: int) -> None:
    data = bytearray(elf_module(FIELDS))
    data[position % len(data)] = value
    try:
        read_module(bytes(data))
    except ModuleRejectedError as error:
        assert error.hint
