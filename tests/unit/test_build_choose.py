# SPDX-License-Identifier: GPL-2.0-or-later
"""Which engine a kernel gets, and what is said where it cannot have one."""

from __future__ import annotations

from pathlib import Path

import pytest

from elivepatch.build.engines.choose import choose_engine
from elivepatch.build.prepared import PreparedKernel
from elivepatch.errors import ToolUnavailableError
from elivepatch.toolchains.roots import Root

PARTS = ("tools/objtool/klp-diff.c", "tools/objtool/klp-sympos.c", "scripts/livepatch/init.c")
CONFIG = "CONFIG_LIVEPATCH=y\nCONFIG_KLP_BUILD=y\n"


def kernel(place: Path, release: str, config: str = CONFIG, parts: tuple[str, ...] = PARTS) -> PreparedKernel:
    (place / "image").mkdir()
    (place / "image/config").write_text(config)
    for part in parts:
        (place / part).parent.mkdir(parents=True, exist_ok=True)
        (place / part).touch()
    root = Root("trixie", place, "0", 1, 0.0, None)
    names = ("origin", "build_id", "config_sha256", "compiler")
    nothing: dict[str, str] = {}
    return PreparedKernel(
        path=place, source=place, root=root, release=release, variables=nothing, environment=nothing, sizes={},
        **dict.fromkeys(names, "x"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("release", "engine"),
    [("6.1.0-56-cloud-amd64", "kpatch"), ("6.18.9", "kpatch"), ("6.19.0", "klp"), ("7.3.4+deb13-cloud-amd64", "klp")],
)
def test_the_version_decides(tmp_path: Path, release: str, engine: str) -> None:
    assert choose_engine(kernel(tmp_path, release), None) == engine


def test_kpatch_is_not_forced_on_a_kernel_that_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ToolUnavailableError, match=r"up to 6\.18") as caught:
        choose_engine(kernel(tmp_path, "7.3.4"), "kpatch")
    assert caught.value.exit_status == 6


def test_klp_is_not_forced_on_a_tree_without_it(tmp_path: Path) -> None:
    with pytest.raises(ToolUnavailableError, match=r"klp-diff\.c") as caught:
        choose_engine(kernel(tmp_path, "6.12.118", parts=()), "klp")
    assert "'kpatch'" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("CONFIG_LIVEPATCH=y\n", "CONFIG_KLP_BUILD is not set"),
        ("CONFIG_KLP_BUILD=y\n", "CONFIG_LIVEPATCH is not set"),
        (f"{CONFIG}CONFIG_GCC_PLUGIN_RANDSTRUCT=y\n", "CONFIG_GCC_PLUGIN_RANDSTRUCT is set"),
    ],
)
def test_the_configuration_must_allow_it(tmp_path: Path, config: str, words: str) -> None:
    with pytest.raises(ToolUnavailableError, match=words) as caught:
        choose_engine(kernel(tmp_path, "7.3.4", config), None)
    assert "CONFIG_KLP_BUILD" in str(caught.value.hint)
