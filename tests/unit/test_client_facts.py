# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host tells of its kernel, and what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from client_fakes import RELEASE, host_tree, put
from elivepatch.client.facts import check_source, host_facts
from elivepatch.errors import InvalidInputError
from elivepatch.kernel.running import running_kernel
from elivepatch.protocol.models import HostFacts


def facts(root: Path) -> HostFacts:
    return host_facts(running_kernel(root), root)


def link_build(root: Path, to: str) -> None:
    place = root / "lib/modules" / RELEASE / "build"
    place.parent.mkdir(parents=True)
    place.symlink_to(to)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ((), True),  # it was built there, and is gone
        (("usr/src/tree/init/main.c", "usr/src/tree/vmlinux"), True),
        (("usr/src/tree/source/Makefile",), True),  # make O=
        (("usr/src/tree/Makefile", "usr/src/tree/.config"), False),  # headers
    ],
)
def test_the_place_of_the_build_is_told_and_headers_are_none(
    tmp_path: Path, files: tuple[str, ...], told: bool
) -> None:
    host_tree(tmp_path)
    put(tmp_path, dict.fromkeys(files, "x"))
    link_build(tmp_path, "/usr/src/tree")
    assert facts(tmp_path).place == ("/usr/src/tree" if told else None)


@pytest.mark.parametrize("to", ["../relative", "/" + "x" * 1100])
def test_a_link_that_is_no_place_is_not_told(tmp_path: Path, to: str) -> None:
    host_tree(tmp_path)
    link_build(tmp_path, to)
    assert facts(tmp_path).place is None


def test_what_may_not_be_read_is_left_out(tmp_path: Path) -> None:
    host_tree(tmp_path)
    assert facts(tmp_path).symbols_sha256 is None
    assert facts(tmp_path).btf_sha256 is None
    put(tmp_path, {"proc/kallsyms": "0000000000000000 T _stext\n0000000000000000 T _etext\n"})
    assert facts(tmp_path).symbols_sha256 is None
    put(tmp_path, {"proc/kallsyms": "ff00 T _stext\nff10 t f\nff20 T _etext\n"})
    assert facts(tmp_path).symbols_sha256 is not None


@pytest.mark.parametrize("text", ["kernel.org:6.12.60", "git:https://x/y.git#v6", "dir:/srv/linux", "debian:6.12"])
def test_a_source_is_a_kind_and_what_of_it(text: str) -> None:
    check_source(text)
    with pytest.raises(InvalidInputError):
        check_source(text.replace(":", " ", 1))
