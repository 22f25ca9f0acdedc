# SPDX-License-Identifier: GPL-2.0-or-later
"""A stand-in for the gentoo repository, of which an overlay has its eclasses, categories, licences and profiles.

``data/gentoo-master`` has only what our ebuilds name: eclasses that set the variables which others rely on and do
nothing else, and one profile. For each package that is depended on an empty one is made. So it cannot tell whether the
real eclasses take what our ebuilds give them, nor whether the real repository has these packages at these versions.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

_DATA = Path(__file__).parent / "data/gentoo-master"
_PYTHONS = ("python3_11", "python3_12", "python3_13", "python3_14")
#: A dependency: category/name, version, flags in brackets.
_ATOM = re.compile(r"(?<![\w/])([a-z-]+/[a-z0-9-]+?)(?:-(\d[\d.]*))?(?:\[([^\]]*)\])?(?=\s|$)", re.MULTILINE)
_DEPENDENCIES = re.compile(r'^\t?(?:COMMON_|[BR])?DEPEND="(.*?)^"', re.MULTILINE | re.DOTALL)
#: What the eclasses add by themselves.
_BY_ECLASSES = ("dev-python/hatchling", "dev-vcs/git", "acct-group/kvm")
_EBUILD = """\
# Copyright 2026 Gentoo Authors
# Distributed under the terms of the GNU General Public License v2

EAPI=8

DESCRIPTION="A stand-in"
HOMEPAGE="https://example.org/"

LICENSE="BSD"
SLOT="0"
KEYWORDS="amd64"
IUSE="{flags}"
"""


def make_master(place: Path, ebuilds: Sequence[Path]) -> list[str]:
    """Make the repository with what the ebuilds of an overlay depend on; gives the packages that these are."""
    shutil.copytree(_DATA, place)
    own = {f"{path.parent.parent.name}/{path.parent.name}" for path in ebuilds}
    versions: dict[str, str] = dict.fromkeys(_BY_ECLASSES, "1")
    flags: dict[str, set[str]] = {}
    for ebuild in ebuilds:
        for block in _DEPENDENCIES.findall(ebuild.read_text()):
            for package, version, use in _ATOM.findall(block):
                if package not in own:
                    versions[package] = version or versions.get(package, "1")
                    flags.setdefault(package, set()).update(re.findall(r"(?:^|,)([a-z]+)", use))
    categories = {name.partition("/")[0] for name in own | versions.keys()}
    (place / "profiles/categories").write_text("".join(f"{one}\n" for one in sorted(categories)))
    (place / "licenses").mkdir()
    for licence in ("GPL-2+", "BSD"):
        (place / "licenses" / licence).write_text("A stand-in.\n")
    for package, version in versions.items():
        directory = place / package
        directory.mkdir(parents=True)
        iuse = [*(f"python_targets_{one}" for one in _PYTHONS), *sorted(flags.get(package, ()))]
        (directory / f"{directory.name}-{version}.ebuild").write_text(_EBUILD.format(flags=" ".join(iuse)))
    return sorted(versions)
