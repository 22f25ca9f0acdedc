# SPDX-License-Identifier: GPL-2.0-or-later
"""The overlay that comes with the project: clean, and for the kernels that it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from elivepatch.overlay.kernels import KernelIdentity
from elivepatch.overlay.lint import lint
from elivepatch.overlay.selection import select

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/overlay"


def test_it_is_clean_and_has_enough_to_show() -> None:
    overlay, findings = lint(EXAMPLE)
    assert findings == ()
    assert overlay is not None
    assert len(overlay.entries) >= 20
    assert all(entry.cves and entry.commit is not None and entry.title for entry in overlay.entries)


@pytest.mark.parametrize(
    ("kernel", "chosen"),
    [
        (KernelIdentity("6.1.0-47-cloud-amd64", (6, 1, 170), "debian", "12"), 13),
        (KernelIdentity("6.1.0-56-cloud-amd64", (6, 1, 192), "debian", "12"), 0),
        (KernelIdentity("6.12.73+deb13-amd64", (6, 12, 73), "debian", "13"), 13),
        (KernelIdentity("6.12.73-gentoo", (6, 12, 73), "gentoo", "2.15"), 0),
    ],
)
def test_each_kernel_gets_its_own(kernel: KernelIdentity, chosen: int) -> None:
    overlay, _ = lint(EXAMPLE)
    assert overlay is not None
    found = select(overlay, kernel)
    assert len(found.chosen) == chosen
    series = ".".join(map(str, (kernel.version or ())[:2]))
    assert all(entry.id.endswith(f"-{series}") for entry in found.chosen)
