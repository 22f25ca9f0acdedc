# SPDX-License-Identifier: GPL-2.0-or-later
"""Names and versions of Gentoo's kernel packages, and what a running release says of them."""

from __future__ import annotations

import pytest

from elivepatch.errors import InvalidInputError
from elivepatch.sources.gentoo.package import choose_package, parse_package, possible_packages, version_key


@pytest.mark.parametrize(
    ("text", "name", "pvr"),
    [
        ("gentoo-sources-6.12.60", "gentoo-sources", "6.12.60"),
        ("sys-kernel/gentoo-sources-6.12.60-r1", "gentoo-sources", "6.12.60-r1"),
        ("gentoo-kernel-bin-6.12.60_p3-r2", "gentoo-kernel-bin", "6.12.60_p3-r2"),
        ("gentoo-sources-7.2-r0", "gentoo-sources", "7.2"),
    ],
)
def test_a_package(text: str, name: str, pvr: str) -> None:
    package = parse_package(text)
    assert (package.name, package.pvr) == (name, pvr)
    assert str(package) == f"{name}-{pvr}"


@pytest.mark.parametrize(
    "text",
    ["", "gentoo-sources", "sys-apps/portage-3.0.1", "../gentoo-sources-6.1", "gentoo-sources-6.1/../..",
     "gentoo-sources-6.1\n", "-6.1", "gentoo-sources-6.1-r", "a b-6.1", "gentoo-sources-" + "6" * 300],
)  # fmt: skip
def test_what_is_no_package(text: str) -> None:
    with pytest.raises(InvalidInputError, match="is not a kernel package of Gentoo"):
        parse_package(text)


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("6.12.60-gentoo", ["gentoo-sources-6.12.60"]),
        ("6.12.60-gentoo-r1", ["gentoo-sources-6.12.60-r1"]),
        ("6.12.60-gentoo-r1-mylocal", ["gentoo-sources-6.12.60-r1"]),
        ("6.12.60-gentoo-mylocal", ["gentoo-sources-6.12.60"]),
        ("6.12.60-gentoo-x86_64", ["gentoo-sources-6.12.60"]),
        ("6.12.60-gentoo-r1x", ["gentoo-sources-6.12.60"]),
        ("6.12.60-gentoo-dist", ["gentoo-kernel-6.12.60", "gentoo-kernel-bin-6.12.60", "gentoo-sources-6.12.60"]),
        ("6.12.60-gentoo-dist-hardened",
         ["gentoo-kernel-6.12.60", "gentoo-kernel-bin-6.12.60", "gentoo-sources-6.12.60"]),
        ("6.12.60-p2-gentoo-dist",
         ["gentoo-kernel-6.12.60_p2", "gentoo-kernel-bin-6.12.60_p2", "gentoo-sources-6.12.60_p2"]),
        ("6.12.60-gentoo-distant", ["gentoo-sources-6.12.60"]),
        ("6.12.60-zen", []),
        ("6.12.117+deb13-cloud-amd64", []),
        ("nonsense", []),
    ],
)  # fmt: skip
def test_the_packages_that_a_release_can_be_of(release: str, expected: list[str]) -> None:
    assert [str(package) for package in possible_packages(release)] == expected


@pytest.mark.parametrize(
    ("release", "named", "expected"),
    [
        ("6.12.60-gentoo-r1", None, "gentoo-sources-6.12.60-r1"),
        ("6.12.60-gentoo-dist", "gentoo-kernel", "gentoo-kernel-6.12.60"),
        ("6.12.60-gentoo-dist", "sys-kernel/gentoo-kernel-6.12.60-r1", "gentoo-kernel-6.12.60-r1"),
        ("6.12.60-gentoo-r1", "gentoo-sources-6.12.60", "gentoo-sources-6.12.60"),
        ("6.12.60-zen", "zen-sources", "zen-sources-6.12.60"),
        ("7.2.0-gentoo", "gentoo-sources-7.2", "gentoo-sources-7.2"),
    ],
)
def test_the_package_of_a_release(release: str, named: str | None, expected: str) -> None:
    assert str(choose_package(release, named)) == expected


@pytest.mark.parametrize(
    ("release", "named", "message"),
    [
        ("6.12.60-gentoo-dist", None, "several packages: gentoo-kernel, gentoo-kernel-bin, gentoo-sources"),
        ("6.12.60-zen", None, "does not say which Gentoo package"),
        (
            "6.12.60-gentoo",
            "gentoo-kernel",
            "not a kernel of the package gentoo-kernel, but of one of these: gentoo-sources",
        ),
        (
            "6.12.60-gentoo",
            "gentoo-sources-6.12.61",
            "gentoo-sources-6.12.61 is not the package of a kernel 6.12.60-gentoo",
        ),
        ("6.12.6-gentoo", "gentoo-sources-6.12.60", "is not the package of a kernel"),
        ("6.12.60-gentoo", "../x", "is not the name of a package"),
    ],
)
def test_a_package_that_has_to_be_named(release: str, named: str | None, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        choose_package(release, named)
    assert caught.value.hint


def test_versions_are_sorted_by_their_numbers() -> None:
    versions = ["6.12.9", "6.12.60-r1", "6.6.100", "6.12.60", "6.12.60_p1", "7.2"]
    assert sorted(versions, key=version_key) == ["6.6.100", "6.12.9", "6.12.60", "6.12.60-r1", "6.12.60_p1", "7.2"]
