# SPDX-License-Identifier: GPL-2.0-or-later
"""Which base patches are sent, in which order, and what is no base patch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from client_fakes import host_tree, put
from elivepatch.client.base_patches import base_patches
from elivepatch.client.facts import host_facts
from elivepatch.errors import ElivepatchError, InputTooLargeError, InvalidInputError, InvalidPatchError
from elivepatch.kernel.running import RunningKernel, running_kernel
from elivepatch.protocol import limits

PATCH = "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+%s\n"


def found(tmp_path: Path, *named: str) -> list[str]:
    patches = base_patches(None, tmp_path, named=[tmp_path / name for name in named], collect=True)
    assert [patch.file.data for patch in patches] == [Path(patch.origin).read_bytes() for patch in patches]
    names = [Path(patch.origin).name for patch in patches]
    told = [os.fsencode(name).decode(errors="replace") for name in names]  # what is no text cannot be told as it is
    assert [patch.file.name for patch in patches] == told
    return [str(Path(patch.origin).relative_to(tmp_path)) for patch in patches]


def patches_in(tmp_path: Path, *names: str) -> None:
    put(tmp_path, {name: PATCH % number for number, name in enumerate(names)})


def test_files_are_taken_as_they_are_named(tmp_path: Path) -> None:
    patches_in(tmp_path, "b.patch", "a.txt")
    assert found(tmp_path, "b.patch", "a.txt") == ["b.patch", "a.txt"]


def test_a_directory_is_read_in_the_order_of_bytes_and_not_below(tmp_path: Path) -> None:
    patches_in(
        tmp_path, "d/10.patch", "d/9.diff", "d/a.patch", "d/B.patch", "d/ä.patch", "d/_.patch", "d/below.patch/0.patch"
    )
    assert found(tmp_path, "d") == ["d/10.patch", "d/9.diff", "d/B.patch", "d/_.patch", "d/a.patch", "d/ä.patch"]


@pytest.mark.parametrize(
    "name", ["d/README", "d/a.patch~", "d/a.patch.orig", "d/.hidden.patch", "d/.patch", "d/a.PATCH", "d/patch"]
)
def test_what_is_not_called_a_patch_does_not_count(tmp_path: Path, name: str) -> None:
    patches_in(tmp_path, "d/a.patch", name)
    assert found(tmp_path, "d") == ["d/a.patch"]


def test_a_name_that_is_not_text_has_its_place_in_the_order(tmp_path: Path) -> None:
    patches_in(tmp_path, "d/z.patch")
    strange = os.fsencode(tmp_path / "d") + b"/\xff.patch"
    Path(os.fsdecode(strange)).write_text(PATCH % "x")
    assert [os.fsencode(name)[2:] for name in found(tmp_path, "d")] == [b"z.patch", b"\xff.patch"]


def test_links_to_patches_count_and_directories_mix_with_files(tmp_path: Path) -> None:
    patches_in(tmp_path, "real", "last.patch")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.patch").symlink_to(tmp_path / "real")
    (tmp_path / "d/gone.patch").symlink_to(tmp_path / "nowhere")
    assert found(tmp_path, "d", "last.patch") == ["d/a.patch", "last.patch"]


def test_an_empty_directory_gives_nothing(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    assert found(tmp_path, "d") == []


WRONG: list[tuple[dict[str, str], type[ElivepatchError], str]] = [
    ({"d/a.patch": "hello\n"}, InvalidPatchError, "a.patch is not a patch"),
    ({"d/a.patch": "\n"}, InvalidPatchError, "a.patch is empty"),
    ({"d/a.patch": PATCH % "x" + "+" * limits.PATCH_BYTES}, InputTooLargeError, "larger than"),
    (
        {f"d/{number:03}.patch": PATCH % number for number in range(limits.PATCHES + 1)},
        InputTooLargeError,
        f"more than {limits.PATCHES}",
    ),
    ({}, InvalidInputError, "cannot be read"),
]


@pytest.mark.parametrize(("files", "error", "words"), WRONG)
def test_what_cannot_be_sent_is_named(
    tmp_path: Path, files: dict[str, str], error: type[ElivepatchError], words: str
) -> None:
    put(tmp_path, dict(files))
    with pytest.raises(error, match=words) as caught:
        found(tmp_path, "d")
    assert caught.value.hint


# -- a host with portage


GENTOO = "6.12.60-gentoo-r1"


def gentoo(root: Path, release: str = GENTOO) -> RunningKernel:
    """A host that runs gentoo-sources with two patches of its own; three more do not count."""
    host_tree(root)
    package = "var/db/pkg/sys-kernel/gentoo-sources-6.12.60-r1"
    patches = "etc/portage/patches/sys-kernel"
    put(
        root,
        {
            "proc/sys/kernel/osrelease": f"{release}\n",
            "etc/os-release": "ID=gentoo\n",
            f"{package}/INHERITED": "kernel-2 toolchain-funcs\n",
            f"{package}/SLOT": "6.12.60-r1\n",
            f"{package}/USE": "experimental symlink\n",
            f"{package}/repository": "gentoo\n",
            f"{patches}/gentoo-sources/b.patch": PATCH % "b",
            f"{patches}/gentoo-sources/a.patch": PATCH % "a",
            f"{patches}/gentoo-sources/cancelled.patch": PATCH % "c",
            f"{patches}/gentoo-sources-6.12.60-r1/cancelled.patch": "",
            f"{patches}/gentoo-sources-6.1.170/other.patch": PATCH % "o",
        },
    )
    return running_kernel(root)


def test_the_patches_of_portage_go_before_those_that_are_named(tmp_path: Path) -> None:
    kernel = gentoo(tmp_path / "root")
    patches_in(tmp_path, "mine.patch")
    found = base_patches(kernel, tmp_path / "root", named=[tmp_path / "mine.patch"], collect=True)
    assert [patch.file.name for patch in found] == ["a.patch", "b.patch", "mine.patch"]
    assert found[0].origin == "a.patch (portage, sys-kernel/gentoo-sources-6.12.60-r1)"
    only = base_patches(kernel, tmp_path / "root", named=[tmp_path / "mine.patch"], collect=False)
    assert [patch.file.name for patch in only] == ["mine.patch"]


def test_a_kernel_that_is_of_no_package_has_no_patches_of_portage(tmp_path: Path) -> None:
    kernel = gentoo(tmp_path, "6.12.61-mine")
    assert base_patches(kernel, tmp_path, named=[], collect=True) == ()
    assert host_facts(kernel, tmp_path).package is None


def test_what_portage_would_refuse_can_be_left_out(tmp_path: Path) -> None:
    kernel = gentoo(tmp_path)
    put(tmp_path, {"etc/portage/patches/sys-kernel/gentoo-sources/d.patch/x": ""})
    with pytest.raises(InvalidInputError, match=r"d\.patch") as caught:
        base_patches(kernel, tmp_path, named=[], collect=True)
    assert "--no-base-patches" in (caught.value.hint or "")


def test_the_package_of_the_kernel_is_a_fact(tmp_path: Path) -> None:
    package = host_facts(gentoo(tmp_path), tmp_path).package
    assert package is not None
    assert (package.name, package.version) == ("gentoo-sources", "6.12.60-r1")
    assert package.use == ("experimental", "symlink")
