# SPDX-License-Identifier: GPL-2.0-or-later
"""From ebuilds of the real forms to recipes: what is taken, from where, and what is refused rather than guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

import gentoo_support as made_up
from elivepatch.errors import ElivepatchError, KernelUnavailableError, SourceRejectedError
from elivepatch.progress import Progress
from elivepatch.sources.gentoo.distfiles import Distfile, Distfiles, hashed_directory
from elivepatch.sources.gentoo.manifest import ManifestEntry
from elivepatch.sources.gentoo.package import parse_package
from elivepatch.sources.gentoo.recipe import Host
from elivepatch.sources.gentoo.source import GentooKernel, GentooSource

QUIET = Progress()
_G4 = "/d/genpatches-6.12-4"
SOURCES, DIST = made_up.SOURCES_EBUILD, made_up.DIST_EBUILD


@pytest.fixture
def repository(tmp_path: Path) -> made_up.Repository:
    files = dict.fromkeys(made_up.distfiles(), b"x")
    return made_up.Repository(tmp_path / "repository", files)


def kernel(repository: made_up.Repository, package: str, text: str | None, host: Host | None = None) -> GentooKernel:
    if text is not None:
        repository.add(package, text)
    source = GentooSource((repository.root,), Distfiles(repository.root / "distfiles"))
    return source.kernel(parse_package(package), host or Host(), QUIET)


def refused(repository: made_up.Repository, package: str, text: str, host: Host | None = None) -> str:
    with pytest.raises(KernelUnavailableError) as caught:
        kernel(repository, package, text, host)
    assert caught.value.hint or "UNIPATCH_EXCLUDE" in caught.value.message
    return caught.value.message


def test_the_addresses_of_a_distfile(tmp_path: Path) -> None:
    file = Distfile(ManifestEntry("linux-6.12.tar.xz", 1, {"sha512": "ab" * 64}), ("https://upstream.invalid/x",))
    mirrors = ("https://one.invalid/gentoo/", "http://two.invalid/distfiles")
    directory = hashed_directory("linux-6.12.tar.xz")
    assert directory == "41"  # b2sum of the name
    assert Distfiles(tmp_path, mirrors).addresses(file) == [
        f"https://one.invalid/gentoo/distfiles/{directory}/linux-6.12.tar.xz",
        "https://one.invalid/gentoo/distfiles/linux-6.12.tar.xz",
        f"http://two.invalid/distfiles/{directory}/linux-6.12.tar.xz",
        "http://two.invalid/distfiles/linux-6.12.tar.xz",
        "https://upstream.invalid/x",
    ]
    assert Distfiles(tmp_path, (), upstream=False).addresses(file) == []


def test_an_unknown_version_lists_those_that_are_there(repository: made_up.Repository) -> None:
    for version in ("6.12.9", "6.12.59", "6.12.61-r1", "6.6.100", "7.2.8"):
        repository.add(f"gentoo-sources-{version}", SOURCES)
    with pytest.raises(KernelUnavailableError) as caught:
        kernel(repository, "gentoo-sources-6.12.60", None)
    assert (
        "no gentoo-sources-6.12.60; of gentoo-sources they have: 6.12.61-r1, 6.12.59, 6.12.9, 7.2.8, 6.6.100."
        in str(caught.value)
    )
    assert "git log -- sys-kernel/gentoo-sources/gentoo-sources-6.12.60.ebuild" in (caught.value.hint or "")
    with pytest.raises(KernelUnavailableError, match="no package sys-kernel/zen-sources"):
        kernel(repository, "zen-sources-6.12.60", None)


def test_repositories_are_asked_in_turn(repository: made_up.Repository, tmp_path: Path) -> None:
    repository.add("gentoo-sources-6.12.2", SOURCES)
    overlay = made_up.Repository(tmp_path / "overlay", repository.files)
    overlay.add("gentoo-sources-6.12.3", SOURCES)
    asked: list[Progress] = []

    def checked_out(progress: Progress) -> Path:
        asked.append(progress)
        return overlay.root

    source = GentooSource((repository.root, checked_out))
    assert source.kernel(parse_package("gentoo-sources-6.12.2"), Host(), QUIET).release == "6.12.2-gentoo"
    assert asked == []
    assert source.kernel(parse_package("gentoo-sources-6.12.3"), Host(), QUIET).release == "6.12.3-gentoo"
    assert asked == [QUIET]


def test_a_place_that_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(KernelUnavailableError, match="is not an ebuild repository"):
        GentooSource((tmp_path,)).kernel(parse_package("gentoo-sources-6.12.2"), Host(), QUIET)
    with pytest.raises(KernelUnavailableError, match="none is configured"):
        GentooSource().kernel(parse_package("gentoo-sources-6.12.2"), Host(), QUIET)


def test_files_of_the_repository_are_held_against_the_manifest(repository: made_up.Repository) -> None:
    directory = repository.add("gentoo-sources-6.12.2", SOURCES)
    manifest = directory / "Manifest"
    entries = manifest.read_text()
    manifest.write_text(
        entries + made_up.manifest_line("gentoo-sources-6.12.2.ebuild", SOURCES.encode(), kind="EBUILD")
    )
    kernel(repository, "gentoo-sources-6.12.2", None)
    (directory / "gentoo-sources-6.12.2.ebuild").write_text(SOURCES + "\n")
    with pytest.raises(SourceRejectedError, match=r"6\.12\.2\.ebuild has \d+ bytes"):
        kernel(repository, "gentoo-sources-6.12.2", None)
    manifest.unlink()
    with pytest.raises(KernelUnavailableError, match="Manifest cannot be read"):
        kernel(repository, "gentoo-sources-6.12.2", None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('K_GENPATCHES_VER="4"', 'K_GENPATCHES_VER="$(date +%j)"', "line 6: the value of K_GENPATCHES_VER"),
        ('K_GENPATCHES_VER="4"\n', "", "names no genpatches"),
        ('K_GENPATCHES_VER="4"', 'K_GENPATCHES_VER="../4"', "line 6: K_WANT_GENPATCHES is"),
        ("base extras experimental", "base more", "line 5: genpatches have no part 'more'"),
        ('EAPI="8"', 'EAPI="6"', "line 3: kernel-2.eclass takes EAPI 7 and 8"),
        ("detect_version\n", "", "it does not call detect_version"),
        ('IUSE="experimental"', 'K_NODRYRUN=1\nIUSE=""', "line 16: K_NODRYRUN is set"),
        ('IUSE="experimental"', 'PATCHES=( x )\nIUSE=""', "line 16: the value of PATCHES"),
        ('IUSE="experimental"', 'UNIPATCH_LIST="/etc/passwd"\nIUSE=""', "'/etc/passwd', which is neither in DISTDIR"),
        ('IUSE="experimental"', 'UNIPATCH_LIST="${FILESDIR}/../x.patch"\nIUSE=""', "which is neither in DISTDIR"),
        ('IUSE="experimental"', 'UNIPATCH_LIST="${DISTDIR}/x.zip"\nIUSE=""', "no entry for the distfile x.zip"),
        ("\tkernel-2_src_prepare\n", "\tkernel-2_src_prepare\n\tsed -i s/a/b/ Makefile\n", "line 25: src_prepare does"),
        ("${S}/tools/", "${S}/../tools/", "src_prepare does something that is not understood"),
        ("pkg_postinst() {", "pkg_setup() {", "pkg_setup does something that is not understood: kernel-2_pkg_postinst"),
        ("pkg_postinst() {", "src_unpack() {", "src_unpack does something that is not understood"),
        ("pkg_postinst() {", "kernel-2_insert_premake() {", "kernel-2_insert_premake does something"),
        ("kernel-2\n", "other\n", "inherits neither kernel-2 nor kernel-build"),
    ],
)  # fmt: skip
def test_an_ebuild_of_sources_that_is_not_known(
    repository: made_up.Repository, old: str, new: str, message: str
) -> None:
    assert old in SOURCES
    assert message in refused(repository, "gentoo-sources-6.12.2", SOURCES.replace(old, new))


@pytest.mark.parametrize(
    ("host", "message"),
    [
        (Host(variables={"K_GENPATCHES_VER": "3"}), "made with K_GENPATCHES_VER='3', and gentoo-sources-6.12.2.ebuild"),
        (Host(variables={"KV_FULL": "6.12.2-gentoo-r1"}), "made with KV_FULL='6.12.2-gentoo-r1'"),
        (Host(variables={"UNIPATCH_LIST": f"{_G4}.base.tar.xz {_G4}.extras.tar.xz /x/my.patch"}),
         "was made from genpatches-6.12-4.base.tar.xz genpatches-6.12-4.extras.tar.xz my.patch"),
        (Host(variables={"UNIPATCH_EXCLUDE": "15 ../../*"}), "UNIPATCH_EXCLUDE names '../../*'"),
    ],
)  # fmt: skip
def test_a_host_whose_package_is_another(repository: made_up.Repository, host: Host, message: str) -> None:
    assert message in refused(repository, "gentoo-sources-6.12.2", SOURCES, host)


def test_a_host_whose_package_is_the_same(repository: made_up.Repository) -> None:
    variables = {
        "K_GENPATCHES_VER": "4",
        "K_WANT_GENPATCHES": "base extras experimental",
        "KV_FULL": "6.12.2-gentoo",
        "EXTRAVERSION": "-gentoo",
        "UNIPATCH_LIST": "/d/genpatches-6.12-4.base.tar.xz  /d/genpatches-6.12-4.extras.tar.xz",
    }
    with_variables = kernel(repository, "gentoo-sources-6.12.2", SOURCES, Host(variables=variables))
    assert with_variables.tree.identity == kernel(repository, "gentoo-sources-6.12.2", SOURCES).tree.identity


def test_flags_whose_tree_is_not_known(repository: made_up.Repository) -> None:
    text = SOURCES.replace('IUSE="experimental"', 'IUSE="+experimental deblob"')
    assert "USE=deblob is on" in refused(repository, "gentoo-sources-6.12.2", text, Host(use=frozenset({"deblob"})))
    # a flag that the package does not have is somebody else's
    kernel(repository, "gentoo-sources-6.12.2", text, Host(use=frozenset({"vanilla"})))


def test_a_distfile_of_another_content_is_another_tree(repository: made_up.Repository) -> None:
    before = kernel(repository, "gentoo-sources-6.12.2", SOURCES).tree.identity
    repository.files["genpatches-6.12-4.experimental.tar.xz"] = b"y"
    assert kernel(repository, "gentoo-sources-6.12.2", SOURCES).tree.identity == before
    repository.files["genpatches-6.12-4.extras.tar.xz"] = b"y"
    assert kernel(repository, "gentoo-sources-6.12.2", SOURCES).tree.identity != before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("PATCH_PV=${PV%_p*}", "PATCH_PV=6.12.1", "PATCH_PV is '6.12.1'"),
        ("/${PATCHSET}.tar.xz", "/x.tar.xz", "unpacks linux-gentoo-patches-6.12.1.tar.xz, which its SRC_URI"),
        ("https://gentoo.invalid/~someone/dist/", "mirror://gentoo/", "is no address to download from"),
        ('\teapply "${WORKDIR}/patch-', '\teapply "${FILESDIR}/x.patch"\n\teapply "${WORKDIR}/patch-',
         "src_prepare is not understood: eapply \"${FILESDIR}/x.patch\""),
        ("\tdefault\n\n\tlocal extra", '\teapply "${FILESDIR}/x.patch"\n\tdefault\n\n\tlocal extra',
         "src_prepare is not understood: eapply \"${FILESDIR}/x.patch\""),
        ("! use experimental", "! use other", "src_prepare is not understood: if [["),
        ("\tlocal biendian=false\n", "\tlocal biendian=false\n\tsed -i s/a/b/ Makefile\n", "understood: sed -i s/a/b/"),
        ("\t\tamd64)\n", '\t\tamd64)\n\t\t\teapply "${FILESDIR}/a.patch"\n', 'understood: eapply "${FILESDIR}/a.patch'),
        ('"-gentoo-dist"', '"-other"', "the local version is not -gentoo-dist"),
        ("S=${WORKDIR}/${BASE_P}", "S=${WORKDIR}/linux-next\nBASE_P=linux-next", "the tree is 'linux-next'"),
        ("src_unpack() {", "src_other() {", "the function src_other is not known"),
        ("src_prepare() {", "my_prepare() {", "has no src_prepare"),
        ("EAPI=8", "EAPI=7", "kernel-build.eclass takes EAPI 8"),
    ],
)  # fmt: skip
def test_an_ebuild_of_a_dist_kernel_that_is_not_known(
    repository: made_up.Repository, old: str, new: str, message: str
) -> None:
    assert old in DIST
    assert message in refused(repository, "gentoo-kernel-6.12.2", DIST.replace(old, new, 1))


def test_what_a_dist_kernel_does_for_other_machines_is_left_out(repository: made_up.Repository) -> None:
    kernel(repository, "gentoo-kernel-6.12.2", DIST)
    assert "hppa.patch" in refused(repository, "gentoo-kernel-6.12.2", DIST, Host(arch="hppa"))


def test_the_binary_dist_kernel(repository: made_up.Repository) -> None:
    """Its source is that of gentoo-kernel without experimental patches, whatever the flags; S is WORKDIR."""
    text = DIST.replace("kernel-build", "kernel-install").replace(
        " &&\n\t\t\t! use experimental\n\t\tthen", "\n\t\tthen"
    )
    text = text.replace("S=${WORKDIR}/${BASE_P}", "S=${WORKDIR}\nKV_LOCALVERSION='-gentoo-dist'")
    text = text.replace("\tlocal patch\n", '\tlocal patch\n\tcd "${BASE_P}" || die\n')
    text = text[: text.index("\tlocal biendian")] + "}\n"
    host = Host(use=frozenset({"experimental"}))
    binary = kernel(repository, "gentoo-kernel-bin-6.12.2", text, host)
    repository.add("gentoo-kernel-6.12.2", DIST)
    assert binary.release == "6.12.2-gentoo-dist"
    assert binary.tree.identity == kernel(repository, "gentoo-kernel-6.12.2", DIST).tree.identity
    assert binary.tree.identity != kernel(repository, "gentoo-kernel-6.12.2", DIST, host).tree.identity


def test_whatever_an_ebuild_holds_the_error_is_ours(repository: made_up.Repository) -> None:
    """Each ebuild cut off anywhere: understood, or refused with an error of the tree."""
    for package, text in (("gentoo-sources-6.12.2", SOURCES), ("gentoo-kernel-6.12.2", DIST)):
        outcomes: set[bool] = set()
        for end in range(0, len(text), 7):
            try:
                kernel(repository, package, text[:end])
            except ElivepatchError as error:
                assert error.exit_status == 6
                outcomes.add(False)
            else:
                outcomes.add(True)
        assert False in outcomes
