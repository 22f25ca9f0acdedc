# SPDX-License-Identifier: GPL-2.0-or-later
"""Trees of a made-up Gentoo, from a loopback mirror: as made by hand, file by file; and what can go wrong."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import pytest

import gentoo_support as made_up
from elivepatch.cves.kernel import distributor_patches
from elivepatch.cves.vendor import named_commits
from elivepatch.errors import DownloadFailedError, KernelUnavailableError, SourceRejectedError
from elivepatch.progress import Event, Progress
from elivepatch.selection import WantedKernel
from elivepatch.sources.gentoo.distfiles import Distfiles, hashed_directory
from elivepatch.sources.gentoo.package import parse_package
from elivepatch.sources.gentoo.recipe import Host
from elivepatch.sources.gentoo.source import GentooKernel, GentooSource
from elivepatch.workshop import SourcePolicy, Workshop
from upstream_mirror import Mirror

pytestmark = pytest.mark.integration
QUIET = Progress()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elivepatch.sources.download.WAITS", (0.01, 0.01))


@pytest.fixture
def mirror(tmp_path: Path) -> Generator[Mirror]:
    (tmp_path / "mirror/distfiles").mkdir(parents=True)
    for name, data in made_up.distfiles().items():
        (tmp_path / "mirror/distfiles" / name).write_bytes(data)
    server = Mirror(tmp_path / "mirror")
    yield server
    server.close()


class World:
    """A repository, a mirror, and the source that uses both."""

    def __init__(self, mirror: Mirror, work: Path) -> None:
        self.mirror, self.work = mirror, work
        self.repository = made_up.Repository(work / "repository")
        self.distfiles = Distfiles(work / "distfiles", (mirror.address,), upstream=False)
        self.source = GentooSource((self.repository.root,), self.distfiles)

    def kernel(
        self,
        package: str,
        *,
        use: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        gcc_major: int | None = None,
    ) -> GentooKernel:
        host = Host(use=frozenset(use), variables=variables or {}, gcc_major=gcc_major)
        return self.source.kernel(parse_package(package), host, QUIET)

    def composed(self, kernel: GentooKernel, name: str = "tree") -> dict[str, tuple[str, str]]:
        kernel.tree.fetch(QUIET)
        target = self.work / name
        target.mkdir()
        before = set(self.work.iterdir())
        kernel.tree.compose(target, QUIET)
        assert set(self.work.iterdir()) == before, "something was left beside the tree"
        return made_up.listing(target)

    def by_hand(self, steps: Sequence[tuple[str, str, int]], extraversion: str | None) -> dict[str, tuple[str, str]]:
        """The tree as a person makes it: each patch at the depth that is written down for it."""
        hand = self.work / "hand"
        tree = hand / "linux-6.12"
        hand.mkdir()
        files = self.mirror.directory / "distfiles"
        subprocess.run(["tar", "xf", files / "linux-6.12.tar.xz", "--no-same-owner"], cwd=hand, check=True)
        subprocess.run(["find", ".", "-name", "*~", "-delete"], cwd=tree, check=True)
        for archive, name, depth in steps:
            if archive.endswith(".tar.xz"):
                text = subprocess.run(["tar", "xOf", files / archive, name], check=True, capture_output=True).stdout
            else:
                text = subprocess.run(["xz", "-dc", files / archive], check=True, capture_output=True).stdout
            command = ["patch", f"-p{depth}", "--no-backup-if-mismatch", "-f"]
            subprocess.run(command, cwd=tree, input=text, check=True, capture_output=True)
        if extraversion is not None:
            edit = rf"s/^\(EXTRAVERSION =\).*/\1 {extraversion}/"
            subprocess.run(["sed", "-i", edit, "Makefile"], cwd=tree, check=True)
        subprocess.run(["chmod", "-R", "a+rX,u+w,go-w", "."], cwd=tree, check=True)
        return made_up.listing(tree)


@pytest.fixture
def world(mirror: Mirror, tmp_path: Path) -> World:
    return World(mirror, tmp_path)


G4 = "genpatches-6.12-4"
BASE_STEPS = [
    (f"{G4}.base.tar.xz", "1000_linux-6.12.1.patch", 1),
    (f"{G4}.base.tar.xz", "1001_linux-6.12.2.patch", 1),
    (f"{G4}.base.tar.xz", "1510_fs-links.patch", 1),
    (f"{G4}.base.tar.xz", "2000_fuzzy.patch", 1),
    (f"{G4}.base.tar.xz", "2920_new-files.patch", 0),
]
EXTRAS_STEPS = [
    (f"{G4}.extras.tar.xz", "4300_plain.diff", 1),
    (f"{G4}.extras.tar.xz", "4310_new.diff", 1),
    (f"{G4}.extras.tar.xz", "4400_deep.patch2", 2),
    (f"{G4}.extras.tar.xz", "4567_distro-Gentoo-Kconfig.patch", 1),
]
EXPERIMENTAL_STEPS = [
    (f"{G4}.experimental.tar.xz", "5010_enable-cpu-optimizations-universal.patch", 1),
    (f"{G4}.experimental.tar.xz", "5020_BMQ.patch", 1),
]
ACTION = "tools/testing/selftests/tc-testing/action-ebpf"


def without(tree: Mapping[str, tuple[str, str]], *names: str) -> dict[str, tuple[str, str]]:
    return {name: entry for name, entry in tree.items() if name not in names}


def test_gentoo_sources_as_made_by_hand(world: World) -> None:
    world.repository.add("gentoo-sources-6.12.2", made_up.SOURCES_EBUILD)
    kernel = world.kernel("sys-kernel/gentoo-sources-6.12.2")
    tree = world.composed(kernel)
    hand = world.by_hand([*BASE_STEPS, *EXTRAS_STEPS], "-gentoo")
    assert ACTION in hand
    assert tree == without(hand, ACTION)
    # what the hand shows is what was meant: depth 0, depth kept by a .diff, fuzz, modes, links, deletions
    assert tree["b/scripts/new.sh"] == ("-rwxr-xr-x", "#!/bin/sh\necho new\n")
    assert "scripts/new.sh" not in tree
    assert tree["scripts/other.sh"][0] == "-rwxr-xr-x"
    assert tree["kernel/sched.c"][0] == "-rw-r--r--"
    assert "fuzzy" in tree["kernel/sched.c"][1]
    assert tree["arch/x86/link"] == ("lrwxrwxrwx", "../../kernel/sched.c")
    assert not {"include/old.h", "scripts/left~"} & set(tree)
    assert "\nSUBLEVEL = 2\nEXTRAVERSION = -gentoo\n" in tree["Makefile"][1]
    assert kernel.release == "6.12.2-gentoo"
    assert kernel.tree.origin == "gentoo:gentoo-sources-6.12.2"
    assert not [path for path, _ in world.mirror.asked if "experimental" in path]


def test_the_fixes_that_the_patches_bring_are_known(world: World) -> None:
    world.repository.add("gentoo-sources-6.12.2", made_up.SOURCES_EBUILD)
    policy = SourcePolicy(gentoo_repositories=(world.repository.root,), gentoo_mirrors=(world.mirror.address,))
    workshop = Workshop(world.work / "cache", sources=policy)
    wanted = WantedKernel("gentoo:gentoo-sources-6.12.2")
    patches = distributor_patches("gentoo:gentoo-sources-6.12.2 with 1 base patch", wanted, workshop, QUIET)
    assert [name for name, _ in patches] == [name for _, name, _ in [*BASE_STEPS, *EXTRAS_STEPS]]
    assert named_commits(patches) == {made_up.BACKPORTED: "1510_fs-links.patch"}
    assert distributor_patches("kernel.org:6.12.2", wanted, workshop, QUIET) == ()


def test_the_fixes_of_patches_that_cannot_be_had_are_not_known(world: World) -> None:
    told: list[Event] = []
    wanted = WantedKernel("gentoo:gentoo-sources-6.12.2")
    nothing = Workshop(world.work / "cache")
    assert distributor_patches("gentoo:gentoo-sources-6.12.2", wanted, nothing, Progress(told.append)) == ()
    assert "the patches of gentoo:gentoo-sources-6.12.2 cannot be read" in told[-1].message


def test_a_revision_is_part_of_extraversion(world: World) -> None:
    world.repository.add("gentoo-sources-6.12.2-r3", made_up.SOURCES_EBUILD)
    kernel = world.kernel("gentoo-sources-6.12.2-r3")
    assert world.composed(kernel) == without(world.by_hand([*BASE_STEPS, *EXTRAS_STEPS], "-gentoo-r3"), ACTION)
    assert kernel.release == "6.12.2-gentoo-r3"
    assert kernel.makes("6.12.2-gentoo-r3-mylocal")
    assert not kernel.makes("6.12.2-gentoo-r31")


def test_use_experimental(world: World) -> None:
    world.repository.add("gentoo-sources-6.12.2", made_up.SOURCES_EBUILD)
    plain, experimental = (
        world.kernel("gentoo-sources-6.12.2"),
        world.kernel("gentoo-sources-6.12.2", use=["experimental"]),
    )
    hand = world.by_hand([*BASE_STEPS, *EXTRAS_STEPS, *EXPERIMENTAL_STEPS], "-gentoo")
    assert world.composed(experimental) == without(hand, ACTION)
    assert experimental.tree.identity != plain.tree.identity
    # flags that change no tree leave it the same
    assert world.kernel("gentoo-sources-6.12.2", use=["symlink", "build"]).tree.identity == plain.tree.identity


def test_an_old_gcc_leaves_out_the_cpu_optimizations(world: World) -> None:
    world.repository.add("gentoo-sources-6.12.2", made_up.SOURCES_EBUILD)
    kernel = world.kernel("gentoo-sources-6.12.2", use=["experimental"], gcc_major=8)
    hand = world.by_hand([*BASE_STEPS, *EXTRAS_STEPS, EXPERIMENTAL_STEPS[1]], "-gentoo")
    assert world.composed(kernel) == without(hand, ACTION)


def test_unipatch_exclude(world: World) -> None:
    world.repository.add("gentoo-sources-6.12.2", made_up.SOURCES_EBUILD)
    kernel = world.kernel("gentoo-sources-6.12.2", variables={"UNIPATCH_EXCLUDE": " 1510 2920_new-files.patch\n4567"})
    left = [step for step in [*BASE_STEPS, *EXTRAS_STEPS] if step[1][:4] not in {"1510", "2920", "4567"}]
    assert len(left) == len([*BASE_STEPS, *EXTRAS_STEPS]) - 3
    assert world.composed(kernel) == without(world.by_hand(left, "-gentoo"), ACTION)
    assert kernel.tree.identity != world.kernel("gentoo-sources-6.12.2").tree.identity


def test_a_list_of_the_ebuilds_own(world: World) -> None:
    """UNIPATCH_LIST: a distfile, and a file beside the ebuild; both sort in by their names."""
    text = made_up.SOURCES_EBUILD.replace(
        "SRC_URI=", 'UNIPATCH_LIST="${DISTDIR}/notes.patch.bz2 ${FILESDIR}/1200_own.diff"\nSRC_URI='
    )
    directory = world.repository.add("gentoo-sources-6.12.2", text)
    (directory / "files").mkdir()
    own = made_up.diff("Own", "", "beside the ebuild\n")
    (directory / "files/1200_own.diff").write_text(own)
    tree = world.composed(world.kernel("gentoo-sources-6.12.2"))
    hand = without(world.by_hand([*BASE_STEPS, *EXTRAS_STEPS], "-gentoo"), ACTION)
    # both only make files, and are called .patch in unipatch's directory: depth 0
    assert tree["b/Own"][1] == "beside the ebuild\n"
    assert tree["b/Notes"][1] == "from a distfile\n"
    assert without(tree, "b/Own", "b/Notes") == hand
    before = world.kernel("gentoo-sources-6.12.2").tree.identity
    (directory / "files/1200_own.diff").write_text(own.replace("beside", "near"))
    assert world.kernel("gentoo-sources-6.12.2").tree.identity != before


def test_vanilla_sources_take_the_patch_of_kernel_org(world: World) -> None:
    text = made_up.SOURCES_EBUILD.replace('K_WANT_GENPATCHES="base extras experimental"\n', "")
    text = text.replace('K_GENPATCHES_VER="4"\n', 'K_NOUSENAME="yes"\n').replace('IUSE="experimental"\n', "")
    world.repository.add("vanilla-sources-6.12.2", text)
    kernel = world.kernel("vanilla-sources-6.12.2")
    assert world.composed(kernel) == without(world.by_hand([("patch-6.12.2.xz", "", 1)], ""), ACTION)
    assert kernel.release == "6.12.2"


DIST = "linux-gentoo-patches-6.12.1.tar.xz"
DIST_STEPS = [
    ("patch-6.12.2.xz", "", 1),
    (DIST, "linux-gentoo-patches-6.12.1/0001-kernel-sched.patch", 1),
    (DIST, "linux-gentoo-patches-6.12.1/0002-Add-Gentoo-Linux-support-config-settings.patch", 1),
    (DIST, "linux-gentoo-patches-6.12.1/0003-experimental.patch", 1),
]


@pytest.mark.parametrize(
    ("ebuild", "use", "steps"),
    [
        pytest.param(made_up.DIST_EBUILD, [], DIST_STEPS[:3], id="until Gentoo's Kconfig"),
        pytest.param(made_up.DIST_EBUILD, ["experimental"], DIST_STEPS, id="experimental"),
        pytest.param(made_up.WHOLE_SET_EBUILD, [], DIST_STEPS, id="the whole set"),
    ],
)
def test_dist_kernels_as_made_by_hand(
    world: World, ebuild: str, use: list[str], steps: Sequence[tuple[str, str, int]]
) -> None:
    world.repository.add("gentoo-kernel-6.12.2_p1", ebuild)
    kernel = world.kernel("gentoo-kernel-6.12.2_p1", use=use)
    # dist kernels take no backups out and remove nothing
    hand = world.by_hand(steps, "-p1")
    assert without(world.composed(kernel), "scripts/left~") == hand
    assert kernel.release == "6.12.2-p1-gentoo-dist"


def test_dist_kernels_of_genpatches(world: World) -> None:
    """eapply knows -p1 only, and takes *.patch only; so the numbered one and the .diff files stay out."""
    world.repository.add("gentoo-kernel-6.12.2", made_up.GENPATCHES_EBUILD)
    kernel = world.kernel("gentoo-kernel-6.12.2", use=["hardened"])
    steps = [*BASE_STEPS[:4], (BASE_STEPS[4][0], BASE_STEPS[4][1], 1), EXTRAS_STEPS[3]]
    tree = world.composed(kernel)
    assert without(tree, "scripts/left~") == world.by_hand(steps, None)
    assert "\nEXTRAVERSION =\n" in tree["Makefile"][1]
    assert kernel.release == "6.12.2-gentoo-dist-hardened"


def test_the_same_inputs_give_the_same_tree(world: World) -> None:
    world.repository.add("gentoo-sources-6.12.2", made_up.SOURCES_EBUILD)
    kernel = world.kernel("gentoo-sources-6.12.2")
    first = world.composed(kernel)
    asked = len(world.mirror.asked)
    mask = os.umask(0o077)
    try:
        assert world.composed(world.kernel("gentoo-sources-6.12.2"), "again") == first
    finally:
        os.umask(mask)
    assert len(world.mirror.asked) == asked, "what is here was asked for again"
    assert kernel.tree.identity == world.kernel("gentoo-sources-6.12.2").tree.identity


def test_mirrors_with_hashed_directories(world: World) -> None:
    top = world.mirror.directory / "distfiles"
    for path in [path for path in top.iterdir() if path.is_file()]:
        (top / hashed_directory(path.name)).mkdir(exist_ok=True)
        path.rename(top / hashed_directory(path.name) / path.name)
    world.repository.add("gentoo-sources-6.12.2", made_up.SOURCES_EBUILD)
    world.kernel("gentoo-sources-6.12.2").tree.fetch(QUIET)
    assert len(world.mirror.asked) == 3


# -- what can be wrong


def broken(world: World, package: str = "gentoo-sources-6.12.2") -> GentooKernel:
    world.repository.add(package, made_up.SOURCES_EBUILD)
    return world.kernel(package)


def test_a_bad_digest(world: World) -> None:
    name = f"{G4}.base.tar.xz"
    data = bytearray((world.mirror.directory / "distfiles" / name).read_bytes())
    data[100] ^= 1
    world.mirror.replaced[name] = bytes(data)
    with pytest.raises(SourceRejectedError, match=rf"{name} from .* is rejected: its blake2b is"):
        broken(world).tree.fetch(QUIET)


def test_a_truncated_distfile(world: World) -> None:
    name = "linux-6.12.tar.xz"
    size = (world.mirror.directory / "distfiles" / name).stat().st_size
    world.mirror.replaced[name] = (world.mirror.directory / "distfiles" / name).read_bytes()[:-7]
    with pytest.raises(SourceRejectedError, match=rf"{name} from .* has {size - 7} bytes, expected {size}"):
        broken(world).tree.fetch(QUIET)


def test_a_transfer_that_always_breaks_off(world: World) -> None:
    name = "linux-6.12.tar.xz"
    world.mirror.cut[name] = 100
    world.mirror.plain.add(name)  # no ranges: nothing can be continued
    with pytest.raises(DownloadFailedError, match=rf"{name} could not be downloaded: "):
        broken(world).tree.fetch(QUIET)
    world.mirror.plain.clear()  # with ranges, the pieces make the file
    world.kernel("gentoo-sources-6.12.2").tree.fetch(QUIET)


def test_a_longer_distfile(world: World) -> None:
    name = "linux-6.12.tar.xz"
    world.mirror.replaced[name] = (world.mirror.directory / "distfiles" / name).read_bytes() + b"more"
    with pytest.raises(SourceRejectedError, match="longer than expected"):
        broken(world).tree.fetch(QUIET)


def test_a_missing_distfile(world: World) -> None:
    (world.mirror.directory / "distfiles" / f"{G4}.extras.tar.xz").unlink()
    with pytest.raises(KernelUnavailableError, match=rf"No mirror has the distfile {G4}\.extras\.tar\.xz") as caught:
        broken(world).tree.fetch(QUIET)
    assert caught.value.hint


def test_a_missing_entry_of_the_manifest(world: World) -> None:
    del world.repository.files[f"{G4}.experimental.tar.xz"]
    broken(world)  # without the flag it is not needed
    with pytest.raises(
        KernelUnavailableError, match=rf"gentoo-sources has no entry for .* {G4}\.experimental\.tar\.xz"
    ):
        world.kernel("gentoo-sources-6.12.2", use=["experimental"])


def test_a_distfile_that_was_changed_after_its_download(world: World) -> None:
    kernel = broken(world)
    kernel.tree.fetch(QUIET)
    (path,) = world.distfiles.directory.glob(f"*/{G4}.extras.tar.xz")
    path.write_bytes(path.read_bytes() + b"x")
    (world.work / "tree").mkdir()
    with pytest.raises(SourceRejectedError, match="was changed after its download"):
        kernel.tree.compose(world.work / "tree", QUIET)
    kernel.tree.fetch(QUIET)
    world.composed(kernel, "again")


def test_genpatches_of_another_version(world: World) -> None:
    """The guard of unipatch: some patch's name has the version."""
    kernel = broken(world, "gentoo-sources-6.12.3")
    with pytest.raises(SourceRejectedError, match=rf"No patch for Linux 6\.12\.3 is in {G4}\.base") as caught:
        world.composed(kernel)
    assert "K_GENPATCHES_VER" in (caught.value.hint or "")


def test_a_patch_that_does_not_apply(world: World) -> None:
    """Without the patches before it, one is left whose change has nothing to hold on to."""
    broken(world)
    kernel = world.kernel("gentoo-sources-6.12.2", variables={"UNIPATCH_EXCLUDE": "4300"})
    with pytest.raises(SourceRejectedError, match=r"4400_deep\.patch2 does not apply at any depth: .*FAILED"):
        world.composed(kernel)


def test_a_dist_patch_that_does_not_apply(world: World) -> None:
    world.repository.files["patch-6.12.2.xz"] = made_up.lzma.compress(made_up.STABLE_2.encode())
    (world.mirror.directory / "distfiles/patch-6.12.2.xz").write_bytes(world.repository.files["patch-6.12.2.xz"])
    world.repository.add("gentoo-kernel-6.12.2", made_up.DIST_EBUILD)
    with pytest.raises(SourceRejectedError, match=r"patch-6\.12\.2 does not apply with -p1"):
        world.composed(world.kernel("gentoo-kernel-6.12.2"))


def test_a_tree_of_another_version(world: World) -> None:
    world.repository.add("gentoo-kernel-6.12.3", made_up.DIST_EBUILD)
    world.repository.files["patch-6.12.3.xz"] = world.repository.files["patch-6.12.2.xz"]
    (world.mirror.directory / "distfiles/patch-6.12.3.xz").write_bytes(world.repository.files["patch-6.12.3.xz"])
    world.repository.add("gentoo-kernel-6.12.3", made_up.DIST_EBUILD)
    with pytest.raises(SourceRejectedError, match=r"The tree is of Linux 6\.12\.2, and 6\.12\.3-gentoo-dist was asked"):
        world.composed(world.kernel("gentoo-kernel-6.12.3"))


def test_an_excluded_step_of_the_version(world: World) -> None:
    """The guard looks before patches are excluded, so only the Makefile tells that the version was not reached."""
    broken(world)
    kernel = world.kernel("gentoo-sources-6.12.2", variables={"UNIPATCH_EXCLUDE": "1001 1510"})
    with pytest.raises(SourceRejectedError, match=r"The tree is of Linux 6\.12\.1, and 6\.12\.2-gentoo was asked for"):
        world.composed(kernel)


def test_patches_that_lead_out_of_the_tree_change_nothing(world: World) -> None:
    outside = world.work / "outside.txt"
    outside.write_text("line\n")
    for name, path in (("1600_up.patch", "a/../../outside.txt"), ("1600_up.patch", f"a/{outside}")):
        text = f"--- {path}\n+++ {path}\n@@ -1 +1 @@\n-line\n+changed\n"
        world.repository.files[f"{G4}.base.tar.xz"] = made_up.tarball({**made_up.BASE, name: text})
        base = world.mirror.directory / "distfiles" / f"{G4}.base.tar.xz"
        base.write_bytes(world.repository.files[base.name])
        with pytest.raises(SourceRejectedError, match=r"1600_up\.patch does not apply"):
            world.composed(broken(world), f"tree{len(list(world.work.iterdir()))}")
        assert outside.read_text() == "line\n"
