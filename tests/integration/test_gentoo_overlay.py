# SPDX-License-Identifier: GPL-2.0-or-later
"""The Gentoo overlay: pkgcheck finds nothing in it, and its archive holds what the ebuild installs.

The gentoo repository is a stand-in here (see gentoo_master): what only the real one can tell is not tested.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tarfile
from pathlib import Path

import gentoo_overlay
import pytest
from guest_image import installer_environment

from elivepatch import process
from gentoo_master import make_master

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> gentoo_overlay.Overlay:
    return gentoo_overlay.make_overlay(tmp_path_factory.mktemp("overlay"))


@pytest.fixture(scope="module")
def pkgcheck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, at the versions and digests of requirements/gentoo.txt."""
    place = tmp_path_factory.mktemp("pkgcheck") / "venv"
    uv = Path(sys.executable).with_name("uv")
    environment = installer_environment()
    process.run([uv, "venv", "--quiet", "--python", sys.executable, place], env=environment, timeout=120)
    words = ["--quiet", "--require-hashes", "-r", PROJECT / "requirements/gentoo.txt"]
    process.run([uv, "pip", "install", "--python", place / "bin/python", *words], env=environment, timeout=300)
    return place / "bin/pkgcheck"


def scan(pkgcheck: Path, overlay: Path, work: Path) -> str:
    """What pkgcheck finds in an overlay."""
    work.mkdir()
    master, config = work / "gentoo", work / "etc/portage"
    make_master(master, sorted(overlay.glob("*/*/*.ebuild")))
    config.mkdir(parents=True)
    config.joinpath("repos.conf").write_text(
        f"[DEFAULT]\nmain-repo = gentoo\n[gentoo]\nlocation = {master}\n[elivepatch]\nlocation = {overlay}\n"
    )
    config.joinpath("make.conf").write_text(f'DISTDIR="{work / "distfiles"}"\n')
    config.joinpath("make.profile").symlink_to(master / "profiles/default")
    done = process.run(
        [pkgcheck, "--config", config, "scan", "--config", "no", "--repo", overlay],
        env={"HOME": str(work)},
        timeout=300,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def test_pkgcheck_finds_nothing(made: gentoo_overlay.Overlay, pkgcheck: Path, tmp_path: Path) -> None:
    assert scan(pkgcheck, made.place, tmp_path / "work") == ""


def test_pkgcheck_would_find_mistakes(made: gentoo_overlay.Overlay, pkgcheck: Path, tmp_path: Path) -> None:
    """Against a stand-in it could well find nothing whatever is wrong."""
    overlay = shutil.copytree(made.place, tmp_path / "overlay")
    versioned = next(path for path in overlay.glob("app-admin/elivepatch/*.ebuild") if "9999" not in path.name)
    text = versioned.read_text()
    broken = text.replace("sys-apps/kmod", "sys-apps/kmod[no-such-flag]").replace('LICENSE="GPL-2+"', 'LICENSE="None"')
    versioned.write_text(broken.replace('IUSE="server"', 'IUSE="sever"').replace("EAPI=8\n", "EAPI=8\nfi\n", 1))
    assert "elivepatch" in scan(pkgcheck, overlay, tmp_path / "first")
    versioned.write_text(broken.replace('IUSE="server"', 'IUSE="sever"'))
    (overlay / "app-admin/elivepatch/Manifest").unlink()
    found = scan(pkgcheck, overlay, tmp_path / "second")
    for word in ("no-such-flag", "None", "UnknownUseFlags", "MissingManifest"):
        assert word in found


def test_every_ebuild_is_bash(made: gentoo_overlay.Overlay) -> None:
    ebuilds = sorted(made.place.glob("*/*/*.ebuild"))
    assert len(ebuilds) == 6
    for path in (*ebuilds, *made.place.glob("*/*/files/*.initd")):
        process.run(["bash", "-n", path])


def test_the_archive_is_the_one_in_the_manifest_and_has_what_is_installed(made: gentoo_overlay.Overlay) -> None:
    data = made.archive.read_bytes()
    manifest = (made.place / "app-admin/elivepatch/Manifest").read_text().split()
    assert manifest[:3] == ["DIST", made.archive.name, str(len(data))]
    assert manifest[6] == hashlib.sha512(data).hexdigest()
    called = made.archive.name.removesuffix(".tar.gz")
    with tarfile.open(made.archive) as archive:
        names = {name.removeprefix(f"{called}/") for name in archive.getnames()}
    ebuild = (made.place / f"app-admin/elivepatch/{called}.ebuild").read_text()
    installed = re.findall(r"(?<= )packaging/\S+", ebuild.replace("{,-shutdown,-alive}", "-shutdown"))
    assert len(installed) == 4
    assert names >= {*installed, "README.md", "docs/install.md", "src/elivepatch/client/entry.py", "pyproject.toml"}


#: What the ebuild calls of its eclasses and of the package manager; calls that install something are written down.
_PHASES = r"""
for name in python_gen_cond_dep distutils-r1_python_install_all; do
    eval "$name() { :; }"
done
inherit() {
    for eclass; do
        case $eclass in
            distutils-r1) pkg_setup() { python-single-r1_pkg_setup; } ;;  # with DISTUTILS_SINGLE_IMPL
            linux-info) pkg_setup() { linux-info_pkg_setup; } ;;
        esac
    done
}
for name in newbashcomp newzshcomp newfishcomp doman systemd_dounit doinitd newinitd keepdir \
        python-single-r1_pkg_setup linux-info_pkg_setup; do
    eval "$name() { echo $name \"\$@\"; }"
done
use() { test "$1" = "$FLAG"; }
usev() { use "$1" && echo "$2"; return 0; }
die() { exit 9; }
. "$1"
FILESDIR=files ED=$T/image D=$T/image
mkdir -p "$T/image/usr/bin"
touch "$T/image/usr/bin/elivepatch" "$T/image/usr/bin/elivepatch-server"  # where that eclass leaves them
pkg_setup && python_compile_all && python_install_all
"""


@pytest.mark.parametrize(("flag", "pages"), [("", ["elivepatch"]), ("server", ["elivepatch", "elivepatch-server"])])
def test_the_phases_of_the_ebuild_make_and_install_manual_pages(
    made: gentoo_overlay.Overlay, tmp_path: Path, flag: str, pages: list[str]
) -> None:
    with tarfile.open(made.archive) as archive:
        archive.extractall(tmp_path, filter="data")
    called = made.archive.name.removesuffix(".tar.gz")
    temporary = tmp_path / "T"
    temporary.mkdir()
    version = called.removeprefix("elivepatch-")
    env = {"T": str(temporary), "PV": version, "EPYTHON": sys.executable, "FLAG": flag, "PYTHONDONTWRITEBYTECODE": "1"}
    argv = ["bash", "-ec", _PHASES, "phases", str(made.place / f"app-admin/elivepatch/{called}.ebuild")]
    calls = process.run(argv, cwd=tmp_path / called, env=env, timeout=300).stdout.splitlines()
    files = [temporary / f"man/{page}.8" for page in pages]
    (installed,) = (call.split()[1:] for call in calls if call.startswith("doman "))
    assert sorted(installed) == sorted(map(str, files))
    assert sorted((temporary / "man").iterdir()) == sorted(files)
    for file in files:
        assert f'"elivepatch {version}"' in file.read_text().replace("\\-", "-")
    for shell in ("bash", "zsh", "fish"):
        completions = [call.split()[1] for call in calls if call.startswith(f"new{shell}comp ")]
        assert completions == [str(temporary / f"{page}.{shell}") for page in pages]
        for file, page in zip(completions, pages, strict=True):
            assert page.replace("-", "_") in Path(file).read_text().replace("-", "_")
    assert {"python-single-r1_pkg_setup", "linux-info_pkg_setup"} <= {call.strip() for call in calls}
    programs = {path.name for path in (temporary / "image/usr/bin").iterdir()}
    assert programs == {"elivepatch", *pages}


def test_the_same_source_gives_the_same_archive(made: gentoo_overlay.Overlay, tmp_path: Path) -> None:
    assert gentoo_overlay.make_overlay(tmp_path).archive.read_bytes() == made.archive.read_bytes()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("2.0.0", "2.0.0"), ("2.0.0.dev3", "2.0.0_alpha_pre3"), ("2.0.0rc1", "2.0.0_rc1"), ("2.0.0a2", "2.0.0_alpha2")],
)
def test_versions(ours: str, theirs: str) -> None:
    assert gentoo_overlay.gentoo_version(ours) == theirs


def test_the_ebuild_asks_for_what_the_project_needs() -> None:
    project = (PROJECT / "pyproject.toml").read_text()
    block = project[project.index("dependencies = [") : project.index("[dependency-groups]")]
    ebuild = (PROJECT / "packaging/gentoo/app-admin/elivepatch/elivepatch-9999.ebuild").read_text()
    needed = re.findall(r'"([a-z0-9-]+)>=([\d.]+)"', block)
    assert len(needed) == 16
    for name, version in needed:
        assert re.search(rf">=dev-(python|libs)/{name}-{re.escape(version)}\[", ebuild), name
