# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of /etc/portage/patches, one by one, and what the database of installed packages says of a kernel."""

from __future__ import annotations

import bz2
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from elivepatch.client.portage_patches import (
    InstalledKernel,
    collect_patches,
    find_installed_kernel,
    installed_kernels,
    read_environment,
    source_directory,
)
from elivepatch.errors import InputTooLargeError, InvalidInputError
from elivepatch.protocol import limits

PLAIN = InstalledKernel("gentoo-sources", "6.1.170", "r0", "6.1.170")
REVISED = InstalledKernel("gentoo-sources", "6.12.60", "r1", "6.12.60-r1")


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    to: str


@dataclass(frozen=True)
class Directory:
    """An empty directory."""


@dataclass(frozen=True)
class Case:
    """What lies below etc/portage/patches/sys-kernel, and what portage makes of it: names and contents, or an error."""

    rule: str
    files: dict[str, str | Link | Directory]
    expected: dict[str, str] | str
    kernel: InstalledKernel = PLAIN
    configroot: str = ""
    elsewhere: dict[str, str | Link | Directory] = field(default_factory=dict[str, str | Link | Directory])


# From portage's bin/phase-helpers.sh, eapply_user: directories {PN,P,P-PR}{,:SLOT%/*} in this order; names that end in
# .diff or .patch; [[ -s ]] takes, otherwise the name is taken out; sort -z in LC_ALL=C; __readdir says what is a
# directory. Names are relative to etc/portage/patches/sys-kernel.
CASES = [
    # there is nothing: nothing is applied, and nothing is wrong
    Case("no directory", {}, {}),
    Case("empty directory", {"gentoo-sources": Directory()}, {}),
    # the first directory is that of the package's name, for every version
    Case("PN", {"gentoo-sources/a.patch": "a"}, {"a.patch": "a"}),
    # any directory may have the slot behind a colon; that of sources is PVR
    Case("PN:SLOT", {"gentoo-sources:6.1.170/a.patch": "a"}, {"a.patch": "a"}),
    Case("PN:SLOT of another slot", {"gentoo-sources:6.1.169/a.patch": "a"}, {}),
    # P is name and version without the revision
    Case("P", {"gentoo-sources-6.1.170/a.patch": "a"}, {"a.patch": "a"}),
    Case("P of another version", {"gentoo-sources-6.1.17/a.patch": "a"}, {}),
    Case("P:SLOT", {"gentoo-sources-6.1.170:6.1.170/a.patch": "a"}, {"a.patch": "a"}),
    # P-PR, with r0 written out where there is no revision
    Case("P-r0", {"gentoo-sources-6.1.170-r0/a.patch": "a"}, {"a.patch": "a"}),
    Case("P-r0:SLOT", {"gentoo-sources-6.1.170-r0:6.1.170/a.patch": "a"}, {"a.patch": "a"}),
    Case("P-r1", {"gentoo-sources-6.12.60-r1/a.patch": "a"}, {"a.patch": "a"}, REVISED),
    Case("P-r1:SLOT", {"gentoo-sources-6.12.60-r1:6.12.60-r1/a.patch": "a"}, {"a.patch": "a"}, REVISED),
    Case("P of a revision leaves the revision out", {"gentoo-sources-6.12.60/a.patch": "a"}, {"a.patch": "a"}, REVISED),
    Case("P-r0 is not for a revision", {"gentoo-sources-6.12.60-r0/a.patch": "a"}, {}, REVISED),
    # a subslot is no part of the directory's name: ${SLOT%/*}
    Case(
        "no subslot",
        {"gentoo-sources:6.1.170/a.patch": "a", "gentoo-sources:6.1.170/1/b.patch": "b"},
        {"a.patch": "a"},
    ),
    # the package counts, not its likes
    Case("another package", {"gentoo-kernel/a.patch": "a", "gentoo-sources-extra/b.patch": "b"}, {}),
    # all directories together give one list
    Case(
        "directories are joined",
        {"gentoo-sources/b.patch": "b", "gentoo-sources-6.1.170/a.patch": "a", "gentoo-sources:6.1.170/c.patch": "c"},
        {"a.patch": "a", "b.patch": "b", "c.patch": "c"},
    ),
    # of one name, that of the later directory counts
    Case(
        "PN:SLOT over PN",
        {"gentoo-sources/a.patch": "PN", "gentoo-sources:6.1.170/a.patch": "slot"},
        {"a.patch": "slot"},
    ),
    Case(
        "P over PN:SLOT",
        {"gentoo-sources-6.1.170/a.patch": "P", "gentoo-sources:6.1.170/a.patch": "PN:SLOT"},
        {"a.patch": "P"},
    ),
    Case(
        "P:SLOT over P",
        {"gentoo-sources-6.1.170/a.patch": "P", "gentoo-sources-6.1.170:6.1.170/a.patch": "P:SLOT"},
        {"a.patch": "P:SLOT"},
    ),
    Case(
        "P-PR over P:SLOT",
        {"gentoo-sources-6.1.170-r0/a.patch": "P-PR", "gentoo-sources-6.1.170:6.1.170/a.patch": "P:SLOT"},
        {"a.patch": "P-PR"},
    ),
    Case(
        "P-PR:SLOT over all",
        {
            "gentoo-sources/a.patch": "1",
            "gentoo-sources:6.1.170/a.patch": "2",
            "gentoo-sources-6.1.170/a.patch": "3",
            "gentoo-sources-6.1.170:6.1.170/a.patch": "4",
            "gentoo-sources-6.1.170-r0/a.patch": "5",
            "gentoo-sources-6.1.170-r0:6.1.170/a.patch": "6",
        },
        {"a.patch": "6"},
    ),
    # the name decides, not where it is: one that is overridden stays in its place of the order
    Case(
        "an override keeps its place",
        {"gentoo-sources/1.patch": "1", "gentoo-sources/2.patch": "2", "gentoo-sources-6.1.170/1.patch": "P"},
        {"1.patch": "P", "2.patch": "2"},
    ),
    # .patch and .diff are two names
    Case(
        "no override by another suffix",
        {"gentoo-sources/a.patch": "patch", "gentoo-sources-6.1.170/a.diff": "diff"},
        {"a.diff": "diff", "a.patch": "patch"},
    ),
    # what is empty, and a link to /dev/null, takes the name out again
    Case("empty cancels", {"gentoo-sources/a.patch": "a", "gentoo-sources-6.1.170/a.patch": ""}, {}),
    Case(
        "/dev/null cancels",
        {"gentoo-sources/a.patch": "a", "gentoo-sources-6.1.170/a.patch": Link("/dev/null")},
        {},
    ),
    Case("a link to an empty file cancels", {"gentoo-sources/a.patch": Link("empty"), "gentoo-sources/empty": ""}, {}),
    Case(
        "a dangling link cancels",
        {"gentoo-sources/a.patch": "a", "gentoo-sources:6.1.170/a.patch": Link("nowhere")},
        {},
    ),
    Case(
        "a cancelled name can come back",
        {"gentoo-sources:6.1.170/a.patch": "", "gentoo-sources-6.1.170/a.patch": "a"},
        {"a.patch": "a"},
    ),
    Case(
        "empty in a less specific one cancels nothing",
        {"gentoo-sources/a.patch": "", "gentoo-sources-6.1.170-r0/a.patch": "a"},
        {"a.patch": "a"},
    ),
    Case(
        "empty cancels its own name only",
        {"gentoo-sources/a.patch": "a", "gentoo-sources-6.1.170/b.patch": ""},
        {"a.patch": "a"},
    ),
    # links are followed, for files and for directories
    Case("a link to a file", {"gentoo-sources/a.patch": Link("../pool/x"), "pool/x": "x"}, {"a.patch": "x"}),
    Case("a link to a directory", {"gentoo-sources-6.1.170": Link("pool"), "pool/a.patch": "a"}, {"a.patch": "a"}),
    # the order is that of bytes: digits, capitals, small letters, then what is beyond ASCII
    Case(
        "the order is that of the C locale",
        {f"gentoo-sources/{name}.patch": f"{name}.patch" for name in ("ä", "b", "B", "_", "10", "9", "a")},
        {name: name for name in ("10.patch", "9.patch", "B.patch", "_.patch", "a.patch", "b.patch", "ä.patch")},
    ),
    Case(
        "the order does not know directories",
        {
            "gentoo-sources-6.1.170-r0/1.patch": "1",
            "gentoo-sources/2.patch": "2",
            "gentoo-sources:6.1.170/3.patch": "3",
        },
        {"1.patch": "1", "2.patch": "2", "3.patch": "3"},
    ),
    # only what ends in .patch or .diff, in small letters, and is not hidden
    Case(
        "suffixes",
        {
            f"gentoo-sources/{name}": "x"
            for name in ("a.patch", "b.diff", "c.patch.gz", "d.PATCH", "e.patch~", "f.txt", "g", "patch")
        },
        {"a.patch": "x", "b.diff": "x"},
    ),
    Case("hidden ones are left out", {"gentoo-sources/.a.patch": "a", "gentoo-sources/.patch": "b"}, {}),
    Case(
        "names with spaces and stars",
        {"gentoo-sources/a b.patch": "1", "gentoo-sources/*.patch": "2"},
        {"*.patch": "2", "a b.patch": "1"},
    ),
    # what lies deeper is not looked at
    Case("no recursion", {"gentoo-sources/more/a.patch": "a", "gentoo-sources/b.patch": "b"}, {"b.patch": "b"}),
    # what has the place of a directory and is none ends it
    Case("a file in the place of a directory", {"gentoo-sources": "text"}, "cannot be read as a directory"),
    Case(
        "a dangling link in the place of a directory",
        {"gentoo-sources-6.1.170": Link("nowhere")},
        "cannot be read as a directory",
    ),
    Case(
        "a loop in the place of a directory",
        {"gentoo-sources-6.1.170-r0": Link("gentoo-sources-6.1.170-r0")},
        "cannot be read as a directory",
    ),
    # a directory that is called a patch has a size, so it is taken, and patch fails on it
    Case("a directory called a patch", {"gentoo-sources/a.patch/x": "x"}, "is no file"),
    # PORTAGE_CONFIGROOT stands before etc, with or without a slash at its end
    Case("PORTAGE_CONFIGROOT", {"gentoo-sources/a.patch": "a"}, {"a.patch": "a"}, configroot="/mnt/config"),
    Case(
        "PORTAGE_CONFIGROOT with a slash", {"gentoo-sources/a.patch": "a"}, {"a.patch": "a"}, configroot="/mnt/config/"
    ),
    Case(
        "PORTAGE_CONFIGROOT leaves /etc/portage out",
        {},
        {},
        configroot="/mnt/config",
        elsewhere={"etc/portage/patches/sys-kernel/gentoo-sources/a.patch": "a"},
    ),
]


def lay_out(base: Path, files: dict[str, str | Link | Directory]) -> None:
    for name, content in files.items():
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Link):
            path.symlink_to(content.to)
        elif isinstance(content, Directory):
            path.mkdir()
        else:
            path.write_text(content)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_the_rules_of_portage(case: Case, tmp_path: Path) -> None:
    lay_out(tmp_path / case.configroot.strip("/") / "etc/portage/patches/sys-kernel", case.files)
    lay_out(tmp_path, case.elsewhere)
    environment = {"PORTAGE_CONFIGROOT": case.configroot} if case.configroot else {}
    if isinstance(case.expected, str):
        with pytest.raises(InvalidInputError, match=case.expected):
            collect_patches(case.kernel, root=tmp_path, environment=environment)
    else:
        found = collect_patches(case.kernel, root=tmp_path, environment=environment)
        assert [(file.name, file.data.decode()) for file in found] == list(case.expected.items())


def test_there_are_enough_rules() -> None:
    assert len({case.rule for case in CASES}) == len(CASES) >= 25


def test_a_directory_that_may_not_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path / "etc/portage/patches/sys-kernel", {"gentoo-sources/a.patch": "a"})

    def refuse(path: bytes) -> list[bytes]:
        raise PermissionError(13, "Permission denied")

    # root may read everything, so the refusal of the system is put in its place
    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(
        InvalidInputError, match=r"gentoo-sources exists, and cannot be read .*Permission denied"
    ) as caught:
        collect_patches(PLAIN, root=tmp_path, environment={})
    assert caught.value.hint


def test_too_large_a_patch_and_too_many_are_refused(tmp_path: Path) -> None:
    base = tmp_path / "etc/portage/patches/sys-kernel/gentoo-sources"
    lay_out(base, {"a.patch": "a"})
    os.truncate(base / "a.patch", limits.PATCH_BYTES + 1)
    with pytest.raises(InputTooLargeError, match=r"a\.patch is larger than"):
        collect_patches(PLAIN, root=tmp_path, environment={})
    lay_out(base, {f"{number}.patch": "x" for number in range(limits.PATCHES)})
    with pytest.raises(InputTooLargeError, match=f"has {limits.PATCHES + 1} patches"):
        collect_patches(PLAIN, root=tmp_path, environment={})


# -- which package a running kernel is of

_ENVIRONMENT = r"""declare -- A="1"
declare -x UNIPATCH_EXCLUDE="1500 2000_some
4567_distro"
declare -a ARRAY=([0]="declare -x KV_FULL=\"wrong\"" [1]=$'it\'s' [2]="(")
declare -A NAMED=([a]="b" )
declare -- TEXT="a
declare -- KV_FULL=\"wrong\"
b"
declare -- KV_FULL="{full}"
declare -r QUOTED="\"\$HOME\" \`x\` \\n"
declare -- ODD=$'tab\there\nand \'quotes\''
declare -x NOTHING
install_it ()
{{
    local x=1;
declare -- KV_FULL="wrong";
    cat <<EOF
text
EOF
}}
declare -- K_GENPATCHES_VER="66"
"""


def add_package(root: Path, pf: str, full: str, *, slot: str = "6.12.60", inherited: str = "kernel-2") -> Path:
    directory = root / "var/db/pkg/sys-kernel" / pf
    lay_out(
        directory,
        {
            "SLOT": f"{slot}\n",
            "USE": "abi_x86_64 amd64 experimental symlink\n",
            "INHERITED": f"toolchain-funcs {inherited}\n",
            "repository": "gentoo\n",
            "PF": f"{pf}\n",
        },
    )
    (directory / "environment.bz2").write_bytes(bz2.compress(_ENVIRONMENT.format(full=full).encode()))
    return directory


def test_what_bash_prints_is_read_without_bash() -> None:
    text = _ENVIRONMENT.format(full="6.12.60-gentoo")
    names = ("UNIPATCH_EXCLUDE", "KV_FULL", "QUOTED", "ODD", "ARRAY", "NOTHING", "K_GENPATCHES_VER", "MISSING")
    assert read_environment(text, names) == {
        "UNIPATCH_EXCLUDE": "1500 2000_some\n4567_distro",
        "KV_FULL": "6.12.60-gentoo",
        "QUOTED": '"$HOME" `x` \\n',
        "ODD": "tab\there\nand 'quotes'",
        "K_GENPATCHES_VER": "66",
    }


def test_an_installed_package_is_read(tmp_path: Path) -> None:
    add_package(tmp_path, "gentoo-sources-6.12.60-r1", "6.12.60-gentoo-r1", slot="6.12.60-r1/7")
    add_package(tmp_path, "linux-headers-6.12", "6.12", inherited="kernel-2")
    add_package(tmp_path, "installkernel-60", "", slot="0", inherited="tmpfiles")
    add_package(tmp_path, "-MERGING-gentoo-sources-6.12.61", "6.12.61-gentoo")
    (kernel,) = installed_kernels(root=tmp_path, environment={})
    assert (kernel.pn, kernel.pv, kernel.pr, kernel.slot) == ("gentoo-sources", "6.12.60", "r1", "6.12.60-r1")
    assert kernel.pf == "gentoo-sources-6.12.60-r1"
    assert kernel.repository == "gentoo"
    assert "experimental" in kernel.use
    assert kernel.variables == {
        "UNIPATCH_EXCLUDE": "1500 2000_some\n4567_distro",
        "KV_FULL": "6.12.60-gentoo-r1",
        "K_GENPATCHES_VER": "66",
    }


def test_the_link_to_the_source_says_which_package_it_is(tmp_path: Path) -> None:
    for pf, full in (("6.12.60", "6.12.60-gentoo"), ("6.12.60-r1", "6.12.60-gentoo-r1"), ("6.12.6", "6.12.6-gentoo")):
        add_package(tmp_path, f"gentoo-sources-{pf}", full)
    # the text alone could be a revision, or a local version of the user's
    release = "6.12.60-gentoo-r1"
    lay_out(tmp_path, {"usr/src/linux-6.12.60-gentoo/Makefile": "", "usr/src/linux": Link("linux-6.12.60-gentoo")})
    lay_out(tmp_path, {f"lib/modules/{release}/build": Link("/usr/src/linux")})
    found = find_installed_kernel(release, root=tmp_path, environment={})
    assert found is not None
    assert found.pf == "gentoo-sources-6.12.60"


def test_without_a_link_the_longest_version_that_the_release_begins_with_counts(tmp_path: Path) -> None:
    for pf, full in (("6.12.60", "6.12.60-gentoo"), ("6.12.60-r1", "6.12.60-gentoo-r1"), ("6.12.6", "6.12.6-gentoo")):
        add_package(tmp_path, f"gentoo-sources-{pf}", full)
    for release, expected in (
        ("6.12.60-gentoo-r1-mylocal", "gentoo-sources-6.12.60-r1"),
        ("6.12.60-gentoo-mylocal", "gentoo-sources-6.12.60"),
        ("6.12.60-gentoo-r12", "gentoo-sources-6.12.60"),
        ("6.12.6-gentoo", "gentoo-sources-6.12.6"),
    ):
        found = find_installed_kernel(release, root=tmp_path, environment={})
        assert found is not None
        assert found.pf == expected, release
    assert find_installed_kernel("6.12.61-gentoo", root=tmp_path, environment={}) is None
    assert find_installed_kernel("../etc", root=tmp_path, environment={}) is None


def test_a_dist_kernel_says_itself_which_package_it_is(tmp_path: Path) -> None:
    release = "6.12.60-gentoo-dist"
    for name in ("gentoo-kernel-6.12.60-r1", "gentoo-kernel-bin-6.12.60"):
        add_package(tmp_path, name, release, inherited="kernel-install kernel-build")
    with pytest.raises(InvalidInputError, match=r"gentoo-kernel-6.12.60-r1, sys-kernel/gentoo-kernel-bin-6.12.60"):
        find_installed_kernel(release, root=tmp_path, environment={})
    lay_out(
        tmp_path,
        {
            f"usr/src/linux-{release}/dist-kernel": "sys-kernel/gentoo-kernel-6.12.60-r1:6.12.60\n",
            f"lib/modules/{release}/source": Link(f"../../../usr/src/linux-{release}"),
        },
    )
    found = find_installed_kernel(release, root=tmp_path, environment={})
    assert found is not None
    assert (found.pf, found.pn, found.slot) == ("gentoo-kernel-6.12.60-r1", "gentoo-kernel", "6.12.60")


def test_root_moves_the_database(tmp_path: Path) -> None:
    add_package(tmp_path / "mnt/gentoo", "gentoo-sources-6.12.60", "6.12.60-gentoo")
    assert installed_kernels(root=tmp_path, environment={}) == ()
    assert len(installed_kernels(root=tmp_path, environment={"ROOT": "/mnt/gentoo"})) == 1


def test_a_damaged_database_is_an_error(tmp_path: Path) -> None:
    directory = add_package(tmp_path, "gentoo-sources-6.12.60", "6.12.60-gentoo")
    whole = (directory / "environment.bz2").read_bytes()
    (directory / "environment.bz2").write_bytes(whole[:-20])
    with pytest.raises(InvalidInputError, match=r"environment\.bz2 is cut off"):
        installed_kernels(root=tmp_path, environment={})
    (directory / "environment.bz2").write_bytes(b"nonsense")
    with pytest.raises(InvalidInputError, match=r"environment\.bz2 is damaged"):
        installed_kernels(root=tmp_path, environment={})
    (directory / "environment.bz2").write_bytes(bz2.compress(b"\0" * (33 * 1024**2)))
    with pytest.raises(InvalidInputError, match="holds more than"):
        installed_kernels(root=tmp_path, environment={})
    (directory / "environment.bz2").write_bytes(whole)
    (directory / "SLOT").write_text("../..")
    with pytest.raises(InvalidInputError, match="its SLOT is"):
        installed_kernels(root=tmp_path, environment={})


@pytest.mark.parametrize("target", ["x" * 300, "/" + "y" * 300, "loop"])
def test_a_link_that_leads_nowhere_is_none(tmp_path: Path, target: str) -> None:
    modules = tmp_path / "lib/modules/6.12.60-gentoo"
    modules.mkdir(parents=True)
    (modules / "loop").symlink_to("loop")
    (modules / "source").symlink_to(target)
    assert source_directory("6.12.60-gentoo", root=tmp_path) is None
