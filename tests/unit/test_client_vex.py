# SPDX-License-Identifier: GPL-2.0-or-later
"""The names by which scanners know the running kernel."""

from __future__ import annotations

from elivepatch.client.vex import product_names
from elivepatch.kernel.running import ModulePolicy, RunningKernel


def kernel(release: str, version: str) -> RunningKernel:
    return RunningKernel(
        release=release,
        version=version,
        machine="x86_64",
        build_id=None,
        distribution="debian",
        distribution_version="13",
        compiler=None,
        taint=0,
        boot_id=None,
        livepatches=(),
        policy=ModulePolicy(signature_enforced=False, loading_disabled=False, lockdown=None),
        can_livepatch=True,
    )


def test_package_urls_are_encoded_as_scanners_write_them() -> None:
    version = "Linux version 6.12.117+deb13-cloud-amd64 (x) (gcc) #1 SMP Debian 6.12.117-1~bpo12+1 (2026-11-01)"
    assert product_names(kernel("6.12.117+deb13-cloud-amd64", version)) == [
        "pkg:deb/debian/linux-image-6.12.117%2Bdeb13-cloud-amd64@6.12.117-1~bpo12%2B1?arch=amd64",
        "pkg:generic/linux@6.12.117%2Bdeb13-cloud-amd64",
    ]
    assert product_names(kernel("6.12.60-gentoo", "Linux version 6.12.60-gentoo")) == [
        "pkg:generic/linux@6.12.60-gentoo"
    ]
