# SPDX-License-Identifier: GPL-2.0-or-later
"""How sure it is that an image is the host's."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from elf_builder import ALLOC, EXEC, FUNC, GLOBAL, NOTYPE, Part, Sym, elf
from elivepatch.build.level import image_level
from elivepatch.build.prepared import PreparedKernel
from elivepatch.errors import BuildIdMismatchError, ProofFailedError
from elivepatch.kernel import layout
from elivepatch.protocol.models import BuildRequest, HostFacts, ProofLevel
from elivepatch.toolchains.roots import Root

OURS, OTHER = "a" * 40, "b" * 40
BASE = 0xFFFFFFFF81000000


def vmlinux(shift: int = 0, types: bytes = b"types") -> bytes:
    parts = [Part(".text", b"\x90" * 4096, ALLOC | EXEC, address=BASE), Part(".BTF", types, 0)]
    symbols = [
        Sym("_stext", NOTYPE, GLOBAL, value=BASE),
        Sym("first", FUNC, GLOBAL, value=BASE, size=16),
        Sym("second", FUNC, GLOBAL, value=BASE + 16 + shift, size=16),
        Sym("_etext", NOTYPE, GLOBAL, value=BASE + 4096),
    ]
    data = elf(parts, symbols)
    return data[:16] + struct.pack("<H", 2) + data[18:]  # e_type is ET_EXEC


def prepared(path: Path, image: str = "built") -> PreparedKernel:
    (path / "image").mkdir(parents=True)
    (path / "image/vmlinux").write_bytes(vmlinux())
    root = Root("trixie", path, "d" * 64, 1, 0.0, None)
    return PreparedKernel(path, path, root, "6.12.1-own", "dir:/x", OURS, "c" * 64, "gcc", {}, {}, {}, image=image)


def layout_of(path: Path, data: bytes) -> layout.SymbolLayout:
    path.write_bytes(data)
    return layout.from_vmlinux(path)


def request(
    build_id: str | None = None, *, proof: ProofLevel = "layout", symbols: str | None = None, btf: str | None = None
) -> BuildRequest:
    host = HostFacts(build_id=build_id, symbols_sha256=symbols, btf_sha256=btf)
    return BuildRequest(kernel="dir:/x", proof=proof, host=host)


@pytest.mark.parametrize("image", ["published", "debuginfod", "uploaded", "built"])
def test_the_same_build_id_is_exact(tmp_path: Path, image: str) -> None:
    assert image_level(prepared(tmp_path, image), request(OURS, proof="exact"), None) == "exact"


@pytest.mark.parametrize("image", ["published", "debuginfod", "uploaded"])
def test_an_image_that_is_not_the_hosts(tmp_path: Path, image: str) -> None:
    kernel = prepared(tmp_path, image)
    assert image_level(kernel, BuildRequest(kernel="dir:/x"), None) == "exact", "nobody named another one"
    with pytest.raises(BuildIdMismatchError, match=OTHER):
        image_level(kernel, request(OTHER), None)


def test_a_layout_that_is_the_hosts(tmp_path: Path) -> None:
    kernel = prepared(tmp_path / "kernel")
    same = layout_of(tmp_path / "vmlinux", vmlinux())
    for _ in range(2):  # the second time from what was kept
        assert image_level(kernel, request(OTHER, symbols=same.digest()), None) == "layout"
    with pytest.raises(ProofFailedError, match="'layout', less than the 'exact'"):
        image_level(kernel, request(OTHER, symbols=same.digest(), proof="exact"), None)


def test_a_layout_that_is_another(tmp_path: Path) -> None:
    kernel = prepared(tmp_path / "kernel")
    other = layout_of(tmp_path / "vmlinux", vmlinux(shift=16))
    with pytest.raises(ProofFailedError, match="lie elsewhere") as caught:
        image_level(kernel, request(OTHER, symbols=other.digest()), None)
    assert [finding.rule for finding in caught.value.as_diagnosis()] == ["layout-mismatch"]
    with pytest.raises(ProofFailedError, match=r"first|second"):
        image_level(kernel, request(OTHER, symbols=other.digest()), other.pack())
    with pytest.raises(ProofFailedError):
        image_level(kernel, request(OTHER, symbols=other.digest(), proof="none"), None)


def test_types_that_are_others(tmp_path: Path) -> None:
    kernel = prepared(tmp_path / "kernel")
    same = layout_of(tmp_path / "vmlinux", vmlinux()).digest()
    with pytest.raises(ProofFailedError) as caught:
        image_level(kernel, request(OTHER, symbols=same, btf="0" * 64), None)
    assert [finding.rule for finding in caught.value.as_diagnosis()] == ["types-mismatch"]


def test_a_host_that_tells_nothing(tmp_path: Path) -> None:
    kernel = prepared(tmp_path)
    with pytest.raises(ProofFailedError, match="'none'") as caught:
        image_level(kernel, BuildRequest(kernel="dir:/x"), None)
    assert [finding.rule for finding in caught.value.as_diagnosis()] == ["proof-level"]
    assert image_level(kernel, BuildRequest(kernel="dir:/x", proof="none"), None) == "none"
