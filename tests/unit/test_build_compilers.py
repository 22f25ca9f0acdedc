# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels whose compiler or language no build root has: told with what is lacking, never built otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from elivepatch.build.prepared import require_gcc, require_rust
from elivepatch.errors import ToolUnavailableError
from elivepatch.kernel.config import KernelConfig
from elivepatch.progress import Progress
from elivepatch.selection import find_root
from elivepatch.toolchains.roots import Root, Roots, RootSpec
from elivepatch.workshop import Workshop


def config(text: str, **options: str) -> KernelConfig:
    return KernelConfig({"CC_VERSION_TEXT": f'"{text}"', **options})


@pytest.mark.parametrize(
    "text", ["Debian clang version 19.1.7 (3)", "clang version 18.1.3", "Ubuntu clang version 18.1"]
)
def test_clang_is_named_with_its_tools(text: str) -> None:
    with pytest.raises(ToolUnavailableError) as caught:
        require_gcc(config(text), "7.3.4-own")
    assert caught.value.exit_status == 6
    assert text in caught.value.message
    assert "7.3.4-own" in caught.value.message
    major = text.partition("version ")[2].partition(".")[0]
    assert caught.value.hint is not None
    assert all(f"{tool}-{major}" in caught.value.hint for tool in ("clang", "lld", "llvm"))


def test_gcc_is_not_taken_for_clang() -> None:
    require_gcc(config("x86_64-linux-gnu-gcc-14 (Debian 14.2.0-19) 14.2.0"), "7.3.4")
    require_gcc(KernelConfig({}), "7.3.4")


def test_rust_needs_its_compiler(tmp_path: Path) -> None:
    root = Root("trixie", tmp_path, "0", 1, 0.0, None)
    (tmp_path / "usr/bin").mkdir(parents=True)
    rust = config("gcc (Debian 14.2.0-19) 14.2.0", RUST="y", RUSTC_VERSION_TEXT='"rustc 1.85.1"')
    with pytest.raises(ToolUnavailableError) as caught:
        require_rust(rust, root, "7.3.4-own")
    assert caught.value.exit_status == 6
    assert all(word in caught.value.message for word in ("rustc 1.85.1", "lacks rustc and bindgen", "trixie"))
    assert "root add" in str(caught.value.hint)
    (tmp_path / "usr/bin/rustc").touch()
    with pytest.raises(ToolUnavailableError, match="lacks bindgen"):
        require_rust(rust, root, "7.3.4-own")
    (tmp_path / "usr/bin/bindgen").touch()
    require_rust(rust, root, "7.3.4-own")
    require_rust(config("gcc (Debian 14.2.0-19) 14.2.0"), root, "7.3.4-own")


def test_of_roots_with_the_compiler_one_that_has_rust_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def root(_roots: Roots, name: str, _progress: Progress | None = None) -> Root:
        made.append(name)
        return Root(name, tmp_path / name, "0", 1, 0.0, None)

    def installed(roots: Roots) -> list[Root]:
        return [root(roots, name) for name in ("trixie", "with-rust") if (tmp_path / name).exists()]

    def version(_root: Root, _name: str) -> str:
        return "gcc-14 (Debian 14.2.0-19) 14.2.0"

    monkeypatch.setattr(Roots, "ensure", root)
    monkeypatch.setattr(Roots, "installed", installed)
    monkeypatch.setattr(Root, "compiler_version", version)
    (tmp_path / "trixie").mkdir()
    (tmp_path / "with-rust/usr/bin").mkdir(parents=True)
    for program in ("rustc", "bindgen"):
        (tmp_path / "with-rust/usr/bin" / program).touch()
    plain = config("gcc-14 (Debian 14.2.0-19) 14.2.0")
    rust = config("gcc-14 (Debian 14.2.0-19) 14.2.0", RUST="y", RUSTC_VERSION_TEXT='"rustc 1.85.1"')
    more = {"with-rust": RootSpec("trixie", ("gcc-14", "rustc", "bindgen")), "without": RootSpec("trixie", ("gcc-14",))}
    workshop = Workshop(tmp_path, more_roots=more)
    assert find_root(plain, workshop, Progress()).name == "trixie"
    assert find_root(rust, workshop, Progress()).name == "with-rust"
    (tmp_path / "with-rust").rename(tmp_path / "moved")
    made.clear()
    with pytest.raises(ToolUnavailableError, match="'trixie' lacks rustc and bindgen"):
        find_root(rust, workshop, Progress())
    assert "without" not in made, "it would be made for nothing"
