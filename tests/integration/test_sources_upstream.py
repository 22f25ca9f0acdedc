# SPDX-License-Identifier: GPL-2.0-or-later
"""kernel.org's releases and their signatures, against a loopback mirror of the same layout, with keys of our own.

What is expected is composed by hand: tar for a tarball, tar and patch for increments.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import subprocess
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from test_debian_source import Archive, source_of

from elivepatch.errors import (
    DownloadFailedError,
    InvalidInputError,
    InvalidSettingError,
    KernelUnavailableError,
    SourceRejectedError,
)
from elivepatch.progress import Event, Progress
from elivepatch.sources import debian, openpgp
from elivepatch.sources import download as download_module
from elivepatch.sources.kernel_org import KernelOrg
from elivepatch.sources.linux_source import debian_tree
from elivepatch.sources.reference import DebianReference, tree_version
from elivepatch.sources.trees import SourceTree
from upstream_mirror import Mirror

pytestmark = pytest.mark.integration

PAST = "20200102T000000"


@dataclass
class Keys:
    """A GnuPG home with keys by name, and their fingerprints."""

    home: Path
    fingerprints: dict[str, str] = field(default_factory=dict[str, str])

    def gpg(self, *words: str, stdin: bytes | None = None) -> bytes:
        environment = {**os.environ, "GNUPGHOME": str(self.home)}
        command = ["gpg", "--batch", "--quiet", "--yes", "--passphrase", "", *words]
        return subprocess.run(command, env=environment, input=stdin, check=True, capture_output=True).stdout

    def make(self, name: str, *options: str, expires: str = "never") -> None:
        self.gpg(*options, "--quick-generate-key", f"{name} <{name}@example.org>", "ed25519", "sign", expires)
        listing = self.gpg("--with-colons", "--list-keys", f"{name}@example.org").decode()
        self.fingerprints[name] = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr"))

    def subkey(self, name: str) -> None:
        self.gpg("--quick-add-key", self.fingerprints[name], "ed25519", "sign", "never")

    def clear_sign(self, text: bytes, *names: str) -> bytes:
        users = [word for name in names for word in ("-u", self.fingerprints[name])]
        return self.gpg(*users, "--clear-sign", stdin=text)

    def detached(self, data: bytes, name: str, *options: str) -> bytes:
        return self.gpg(*options, "-u", self.fingerprints[name], "--armor", "--detach-sign", stdin=data)

    def exported(self, *names: str, armor: bool = True) -> bytes:
        blocks = [self.gpg(*["--armor"][: int(armor)], "--export", self.fingerprints[name]) for name in names]
        return b"".join(blocks)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Generator[Keys]:
    home = tmp_path_factory.mktemp("g")  # short: a socket lies in it
    home.chmod(0o700)
    made = Keys(home)
    for name in ("autosigner", "maker", "stranger", "revoked"):
        made.make(name)
    made.make("expired", "--faked-system-time", PAST, expires="10d")
    made.subkey("maker")
    yield made
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)


def git(top: Path, *words: str) -> bytes:
    settings = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "init.defaultBranch=main"]
    return subprocess.run(["git", *settings, *words], cwd=top, check=True, capture_output=True).stdout


#: Changes from one release to the next, as kernel.org's patches hold them: path to text, None where it is removed.
CHANGES: dict[str, dict[str, str | None]] = {
    "6.12": {
        "Kconfig": 'mainmenu "Linux"\n',
        "kernel/fork.c": "".join(f"int line{n};\n" for n in range(40)),
        "kernel/old.c": "int old;\n",
        "scripts/checkpatch.pl": "#!/usr/bin/perl\n",
        "Documentation/Changes.rst": "changes\n",
    },
    "6.12.1": {
        "kernel/fork.c": "".join(f"int line{n + (n == 20)};\n" for n in range(40)),
        "kernel/new.c": "int new;\n",
    },
    "6.12.2": {"kernel/old.c": None, "kernel/new.c": "int newer;\n"},
    "6.12.3": {"Documentation/Changes.rst": "more\n"},
}


@dataclass
class Site:
    """A mirror with releases, made as kernel.org makes them: git archive, git diff, one signed list."""

    mirror: Mirror
    keys: Keys
    top: Path
    repository: Path
    listed: dict[str, bytes] = field(default_factory=dict[str, bytes])

    @property
    def files(self) -> Path:
        return self.mirror.directory / "v6.x"

    def release(self, version: str, changes: dict[str, str | None]) -> None:
        number = version.split(".")[2] if version.count(".") == 2 else "0"
        makefile = f"VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = {number}\nEXTRAVERSION =\nNAME = x\n"
        for name, text in {"Makefile": makefile, **changes}.items():
            path = self.repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                path.unlink()
            else:
                path.write_text(text)
        script = self.repository / "scripts/checkpatch.pl"
        script.chmod(0o755)
        if not (self.repository / "Documentation/Changes").is_symlink():
            (self.repository / "Documentation/Changes").symlink_to("Changes.rst")
        git(self.repository, "add", "-A")
        git(self.repository, "commit", "-qm", version)
        git(self.repository, "tag", f"v{version}")
        tar = git(self.repository, "archive", "--format=tar", f"--prefix=linux-{version}/", f"v{version}")
        self.put(f"linux-{version}.tar.xz", lzma.compress(tar))
        (self.files / f"linux-{version}.tar.sign").write_bytes(self.keys.detached(tar, "maker"))
        if number != "0":
            last = int(number) - 1
            before = f"6.12.{last}" if last else "6.12"
            name = f"incr/patch-6.12.{last}-{number}.xz" if last else f"patch-{version}.xz"
            self.put(name, lzma.compress(git(self.repository, "diff", f"v{before}", f"v{version}")))

    def put(self, name: str, data: bytes) -> None:
        path = self.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.listed[name] = data

    def publish(self, *signers: str, without: Sequence[str] = ()) -> None:
        lines = [f"{hashlib.sha256(data).hexdigest()}  {name}" for name, data in sorted(self.listed.items())]
        text = "\n".join(line for line in lines if not line.endswith(tuple(without) or ("\0",))) + "\n"
        (self.files / "sha256sums.asc").write_bytes(self.keys.clear_sign(text.encode(), *(signers or ["autosigner"])))

    def source(self, **words: object) -> KernelOrg:
        keyring = self.top / "keyring.asc"
        if not keyring.exists():
            keyring.write_bytes(self.keys.exported("autosigner", "maker", "stranger"))
        arguments: dict[str, object] = {
            "list_signers": (self.keys.fingerprints["autosigner"],),
            "tarball_signers": (self.keys.fingerprints["maker"],),
            **words,
        }
        return KernelOrg(self.top / "cache", keyring, self.mirror.address, **arguments)  # pyright: ignore[reportArgumentType]

    def by_hand(self, version: str) -> dict[str, tuple[bytes, bool]]:
        """The tree of a version, unpacked by tar."""
        target = self.top / f"by-hand-{version}"
        target.mkdir()
        archive = self.files / f"linux-{version}.tar.xz"
        subprocess.run(["tar", "-xJf", archive, "-C", target, "--strip-components=1"], check=True)
        return contents(target)

    def cached(self) -> set[str]:
        return {path.name for path in (self.top / "cache/kernel.org/v6.x").rglob("*") if path.suffix != ".lock"}


def contents(top: Path) -> dict[str, tuple[bytes, bool]]:
    found: dict[str, tuple[bytes, bool]] = {}
    for path in top.rglob("*"):
        name = str(path.relative_to(top))
        if path.is_symlink():
            found[name] = (b"-> " + os.fsencode(path.readlink()), False)
        elif path.is_file():
            found[name] = (path.read_bytes(), bool(path.stat().st_mode & 0o100))
    return found


def composed(tree: SourceTree, target: Path) -> dict[str, tuple[bytes, bool]]:
    target.mkdir()
    tree.fetch(Progress())
    tree.compose(target, Progress())
    return contents(target)


@pytest.fixture
def site(tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> Generator[Site]:
    monkeypatch.setattr(download_module, "WAITS", (0.0, 0.0))
    (tmp_path / "mirror/v6.x").mkdir(parents=True)
    repository = tmp_path / "repository"
    repository.mkdir()
    git(repository, "init", "-q")
    mirror = Mirror(tmp_path / "mirror")
    made = Site(mirror, keys, tmp_path, repository)
    for version, changes in CHANGES.items():
        made.release(version, changes)
    made.publish()
    yield made
    mirror.close()


# -- trees


@pytest.mark.parametrize("trust", ["either", "both"])
@pytest.mark.parametrize("version", ["6.12", "6.12.0", "6.12.3"])
def test_a_release_is_what_tar_makes_of_its_tarball(site: Site, tmp_path: Path, version: str, trust: str) -> None:
    tree = site.source(trust=trust).tree(version)
    name = version.removesuffix(".0")
    assert tree.origin == f"kernel.org:{name}"
    assert composed(tree, tmp_path / "x") == site.by_hand(name)
    assert tree_version(tmp_path / "x") == ("6.12.3" if version == "6.12.3" else "6.12.0", "")
    assert not any("patch" in path for path, _ in site.mirror.asked)


def test_what_is_here_is_not_asked_for_again(site: Site, tmp_path: Path) -> None:
    composed(site.source().tree("6.12.1"), tmp_path / "x")
    site.mirror.close()
    assert composed(site.source(trust="both").tree("6.12.1"), tmp_path / "y") == contents(tmp_path / "x")


def test_the_identity_is_the_version_and_the_keys(site: Site) -> None:
    source = site.source()
    assert source.tree("6.12").identity == site.source(trust="both", increments=False).tree("6.12.0").identity
    others = [source.tree("6.12.1"), site.source(tarball_signers=(openpgp.GREGKH,)).tree("6.12")]
    assert len({source.tree("6.12").identity, *(tree.identity for tree in others)}) == 3


@pytest.mark.parametrize(
    ("start", "end"), [("6.12", "6.12.3"), ("6.12.1", "6.12.3"), ("6.12.2", "6.12.3"), ("6.12", "6.12.1")]
)
def test_increments_make_the_same_tree_as_the_tarball(site: Site, tmp_path: Path, start: str, end: str) -> None:
    expected = site.by_hand(end)
    source = site.source()
    source.tree(start).fetch(Progress())
    site.mirror.asked.clear()
    assert composed(source.tree(end), tmp_path / "x") == expected
    patched = tmp_path / "patched"
    patched.mkdir()
    subprocess.run(
        ["tar", "-xJf", site.files / f"linux-{start}.tar.xz", "-C", patched, "--strip-components=1"], check=True
    )
    first, last = (int(one.split(".")[2]) if one.count(".") == 2 else 0 for one in (start, end))
    names = [f"incr/patch-6.12.{n}-{n + 1}.xz" if n else "patch-6.12.1.xz" for n in range(first, last)]
    for name in names:
        text = lzma.decompress((site.files / name).read_bytes())
        subprocess.run(["patch", "-s", "-p1", "-F0", "-d", patched], input=text, check=True)
    assert contents(patched) == expected
    assert [path for path, _ in site.mirror.asked] == [f"/v6.x/{name}" for name in names]


def test_increments_are_listed_in_a_list_of_their_own(site: Site, tmp_path: Path) -> None:
    expected = site.by_hand("6.12.3")
    lines = [
        f"{hashlib.sha256(data).hexdigest()}  {name.removeprefix('incr/')}"
        for name, data in site.listed.items()
        if name.startswith("incr/")
    ]
    (site.files / "incr/sha256sums.asc").write_bytes(site.keys.clear_sign("\n".join(lines).encode(), "autosigner"))
    for name in [name for name in site.listed if name.startswith("incr/")]:
        del site.listed[name]
    site.publish()
    source = site.source()
    source.tree("6.12.1").fetch(Progress())
    assert composed(source.tree("6.12.3"), tmp_path / "x") == expected
    assert "linux-6.12.3.tar.xz" not in site.cached()


@pytest.mark.parametrize("fault", ["mode", "binary", "empty", "rename", "plain", "unlisted", "digest", "no xz", "gone"])
def test_increments_that_cannot_be_relied_on_give_way_to_the_tarball(site: Site, tmp_path: Path, fault: str) -> None:
    changes: dict[str, str | None] = {"x": "x\n"}
    if fault == "empty":
        changes = {"empty": ""}
    if fault == "rename":
        text = CHANGES["6.12.1"]["kernel/fork.c"]
        changes = {"kernel/fork.c": None, "kernel/spoon.c": text}
    if fault == "mode":
        (site.repository / "kernel/new.c").chmod(0o755)
    if fault == "binary":
        (site.repository / "image").write_bytes(bytes(range(256)))
    site.release("6.12.4", changes)
    name = "incr/patch-6.12.3-4.xz"
    if fault == "plain":  # without what git says of modes
        text = lzma.decompress((site.files / name).read_bytes())
        site.put(name, lzma.compress(b"".join(one for one in text.splitlines(keepends=True) if one[:4] != b"diff")))
    if fault == "no xz":
        site.put(name, b"nonsense")
    site.publish(without=[name] if fault == "unlisted" else [])
    if fault == "digest":
        site.mirror.replaced[Path(name).name] = b"other"
    if fault == "gone":
        (site.files / name).unlink()
    source = site.source()
    source.tree("6.12.3").fetch(Progress())
    assert composed(source.tree("6.12.4"), tmp_path / "x") == site.by_hand("6.12.4")
    assert "linux-6.12.4.tar.xz" in site.cached()


@pytest.mark.parametrize("words", [{"increments": False}, {"trust": "both"}])
def test_increments_are_not_taken_where_they_may_not_be(site: Site, words: dict[str, object]) -> None:
    site.source().tree("6.12.2").fetch(Progress())
    site.source(**words).tree("6.12.3").fetch(Progress())
    assert "linux-6.12.3.tar.xz" in site.cached()


def test_an_increment_that_does_not_apply_exactly_is_rejected(site: Site, tmp_path: Path) -> None:
    name = "incr/patch-6.12.2-3.xz"
    for text in (
        "diff --git a/kernel/fork.c b/kernel/fork.c\n--- a/kernel/fork.c\n+++ b/kernel/fork.c\n"
        "@@ -5,3 +5,3 @@\n int line5;\n-int line6;\n+int six;\n int line7;\n",  # it is a line further down
        "diff --git a/kernel/fork.c b/kernel/fork.c\n--- a/kernel/fork.c\n+++ b/kernel/fork.c\n"
        "@@ -1,3 +1,3 @@\n int nothing;\n-int line1;\n+int one;\n int line2;\n",
        "diff --git a/../../evil b/../../evil\nnew file mode 100644\n--- /dev/null\n+++ b/../../evil\n"
        "@@ -0,0 +1 @@\n+x\n",
    ):
        site.put(name, lzma.compress(text.encode()))
        site.publish()
        top = tmp_path / hashlib.sha256(text.encode()).hexdigest()[:8]
        (top / "a/b").mkdir(parents=True)
        source = KernelOrg(
            top / "cache", site.source().keyring, site.mirror.address,
            list_signers=site.source().list_signers, tarball_signers=site.source().tarball_signers,
        )  # fmt: skip
        source.tree("6.12.2").fetch(Progress())
        tree = source.tree("6.12.3")
        tree.fetch(Progress())
        with pytest.raises(SourceRejectedError, match=r"patch-6\.12\.2-3"):
            tree.compose(top / "a/b", Progress())
        assert not list(tmp_path.rglob("evil"))


# -- what is refused


def rejected(tree: SourceTree, *words: str) -> SourceRejectedError:
    with pytest.raises(SourceRejectedError) as caught:
        tree.fetch(Progress())
    for word in words:
        assert word in caught.value.message
    assert caught.value.hint
    return caught.value


def test_a_tarball_with_another_digest(site: Site) -> None:
    name = "linux-6.12.1.tar.xz"
    wrong = lzma.compress(b"other")
    site.mirror.replaced[name] = wrong
    right = hashlib.sha256((site.files / name).read_bytes()).hexdigest()
    rejected(site.source().tree("6.12.1"), name, right, hashlib.sha256(wrong).hexdigest())
    assert not {name, f"{name}.part"} & site.cached()


@pytest.mark.parametrize("trust", ["either", "both"])
def test_a_signature_of_something_else(site: Site, trust: str) -> None:
    (site.files / "linux-6.12.1.tar.sign").write_bytes(site.keys.detached(b"other", "maker"))
    rejected(site.source(trust=trust).tree("6.12.1"), "linux-6.12.1.tar.sign", "not of these contents")
    assert "linux-6.12.1.tar.xz" not in site.cached()


@pytest.mark.parametrize("fault", ["stranger", "unknown", "missing", "junk"])
def test_a_signature_that_cannot_be_checked(site: Site, tmp_path: Path, fault: str) -> None:
    """The list alone is enough where either is, and says so; where both must vouch it is refused."""
    path = site.files / "linux-6.12.1.tar.sign"
    tar = lzma.decompress((site.files / "linux-6.12.1.tar.xz").read_bytes())
    if fault in {"stranger", "unknown"}:
        path.write_bytes(site.keys.detached(tar, "stranger" if fault == "stranger" else "expired", *(
            ["--faked-system-time", PAST] if fault == "unknown" else [])))  # fmt: skip
    elif fault == "junk":
        path.write_bytes(b"junk")
    else:
        path.unlink()
    steps: list[Event] = []
    site.source().tree("6.12.1").fetch(Progress(steps.append))
    assert any("only the list of checksums vouches" in event.message for event in steps)
    both = site.source(trust="both").tree("6.12.1")
    with pytest.raises((SourceRejectedError, DownloadFailedError)) as caught:
        both.fetch(Progress())
    assert "linux-6.12.1.tar" in caught.value.message
    # and without a list nothing is left
    site.publish("stranger")
    (tmp_path / "cache/kernel.org/v6.x/sha256sums.asc").unlink()
    rejected(site.source().tree("6.12.1"), "nothing vouches for it")
    assert "linux-6.12.1.tar.xz" not in site.cached()


def test_a_list_of_the_wrong_key_or_none(site: Site, tmp_path: Path) -> None:
    good = (site.files / "sha256sums.asc").read_bytes()
    unsigned = b"".join(line + b"\n" for line in good.splitlines() if b"  linux" in line)
    stranger = site.keys.clear_sign(unsigned, "stranger")
    twice = site.keys.clear_sign(unsigned, "autosigner", "stranger")
    for number, (text, word) in enumerate(
        (
            (unsigned, "not signed"),
            (stranger, site.keys.fingerprints["stranger"]),
            (site.keys.clear_sign(unsigned, "maker"), "not one of those that may sign this"),
            (good.replace(b"linux-6.12.1.tar.xz", b"linux-6.12.9.tar.xz"), "not of these contents"),
            (twice, "2 signatures"),
            (b"", "not signed"),
            (good[: len(good) // 2], "sha256sums.asc"),
        )
    ):
        (site.files / "sha256sums.asc").write_bytes(text)
        rejected(site.source(trust="both").tree("6.12.1"), "sha256sums.asc", word)
        assert "sha256sums.asc" not in site.cached()
        # the maker's signature is enough where either is
        site.source().tree("6.12.1").fetch(Progress())
        (tmp_path / "cache/kernel.org/v6.x/linux-6.12.1.tar.xz").rename(tmp_path / f"{number}")


def test_what_stands_around_the_signed_text_is_not_read(site: Site) -> None:
    path = site.files / "sha256sums.asc"
    fake = b"0" * 64 + b"  linux-6.12.9.tar.xz\n"
    path.write_bytes(fake + path.read_bytes() + fake)
    with pytest.raises(KernelUnavailableError):
        site.source().tree("6.12.9").fetch(Progress())


def test_keys_that_have_expired_or_are_revoked(site: Site, keys: Keys, tmp_path: Path) -> None:
    text = tmp_path / "text.asc"
    ring = tmp_path / "ring.asc"
    for name, options, word in (("expired", ["--faked-system-time", PAST], "expired"), ("revoked", [], "revoked")):
        fingerprint = keys.fingerprints[name]
        text.write_bytes(keys.gpg(*options, "-u", fingerprint, "--clear-sign", stdin=b"x\n"))
        signature = tmp_path / "x.sign"
        signature.write_bytes(keys.detached(b"x\n", name, *options))
        if name == "revoked":
            certificate = (keys.home / f"openpgp-revocs.d/{fingerprint}.rev").read_bytes().replace(b":-----", b"-----")
            keys.gpg("--import", stdin=certificate)
        ring.write_bytes(keys.exported(name))
        with pytest.raises(SourceRejectedError, match=word) as caught:
            openpgp.clear_signed_text(text, "x", ring, [fingerprint])
        assert caught.value.hint
        with pytest.raises(SourceRejectedError, match=word):
            openpgp.check_detached(signature, [b"x\n"], "x", ring, [fingerprint])


def test_a_signature_by_a_subkey_counts_for_its_primary_key(keys: Keys, tmp_path: Path) -> None:
    signature = tmp_path / "x.sign"
    signature.write_bytes(keys.detached(b"a large file", "maker"))
    fingerprint = keys.fingerprints["maker"]
    packets = keys.gpg("--list-packets", str(signature)).decode()
    assert fingerprint not in packets, "gpg did not sign with the subkey"
    for armor in (True, False):
        ring = tmp_path / f"ring{armor}"
        ring.write_bytes(keys.exported("stranger", "maker", armor=armor))
        assert openpgp.check_detached(signature, [b"a large", b" file"], "x", ring, [fingerprint]) == fingerprint
        with pytest.raises(SourceRejectedError, match="not of these contents"):
            openpgp.check_detached(signature, [b"a large"], "x", ring, [fingerprint])


def test_a_keyring_that_cannot_be_used(site: Site, tmp_path: Path) -> None:
    ring = tmp_path / "ring"
    for data in (
        None,
        b"",
        b"nonsense",
        b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n?\n-----END PGP PUBLIC KEY BLOCK-----\n",
    ):
        if data is not None:
            ring.write_bytes(data)
        source = KernelOrg(tmp_path / "c", ring, site.mirror.address)
        with pytest.raises(InvalidSettingError, match=str(ring)) as caught:
            source.tree("6.12.1").fetch(Progress())
        assert "gpg --locate-keys" in (caught.value.hint or "")


def test_a_version_that_is_not_there(site: Site) -> None:
    with pytest.raises(KernelUnavailableError, match=r"6\.12\.99 .* 6\.12 up to 6\.12\.3") as caught:
        site.source().tree("6.12.99").fetch(Progress())
    assert caught.value.hint
    with pytest.raises(KernelUnavailableError, match=r"nothing of 6\.13"):
        site.source().tree("6.13.1").fetch(Progress())
    with pytest.raises(InvalidInputError, match="release candidates"):
        site.source().tree("6.13-rc1")
    # listed, and yet not there
    (site.files / "linux-6.12.1.tar.xz").unlink()
    with pytest.raises(KernelUnavailableError, match=r"linux-6\.12\.1\.tar\.xz"):
        site.source().tree("6.12.1").fetch(Progress())


def test_a_list_that_is_too_old_is_asked_for_again(site: Site, tmp_path: Path) -> None:
    source = site.source()
    source.tree("6.12.1").fetch(Progress())
    site.release("6.12.4", {"x": "x\n"})
    site.publish()
    assert composed(source.tree("6.12.4"), tmp_path / "x") == site.by_hand("6.12.4")


def test_a_server_that_is_not_there(site: Site) -> None:
    site.mirror.close()
    with pytest.raises((DownloadFailedError, SourceRejectedError), match="sha256sums"):
        site.source(trust="both").tree("6.12.1").fetch(Progress())


def test_a_transfer_that_breaks_goes_on_and_two_make_one(site: Site, tmp_path: Path) -> None:
    name = "linux-6.12.1.tar.xz"
    size = (site.files / name).stat().st_size
    site.mirror.cut[name] = size // 2 + 1
    site.mirror.slow[name] = 0.01
    failures: list[BaseException] = []

    def fetch() -> None:
        try:
            site.source().tree("6.12.1").fetch(Progress())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert site.mirror.ranges(name) == [None, f"bytes={size // 2 + 1}-"]
    (tmp_path / "x").mkdir()
    site.source().tree("6.12.1").compose(tmp_path / "x", Progress())
    assert contents(tmp_path / "x") == site.by_hand("6.12.1")


def test_what_was_removed_meanwhile_is_said(site: Site, tmp_path: Path) -> None:
    tree = site.source().tree("6.12.1")
    tree.fetch(Progress())
    (tmp_path / "cache/kernel.org/v6.x/linux-6.12.1.tar.xz").unlink()
    with pytest.raises(DownloadFailedError, match=r"linux-6\.12\.1\.tar\.xz"):
        tree.compose(tmp_path / "x", Progress())


# -- Debian's linux-source


class AptAskedError(Exception):
    """Apt was asked."""


def add_linux_source(archive: Archive, version: str, files: dict[str, str]) -> None:
    """A package as Debian makes it: the tree is a tarball below /usr/src."""
    series = ".".join(version.split(".")[:2])
    build = archive.directory / "build"
    top = build / f"tree/linux-source-{series}"
    for name, text in {"Makefile": f"# {version}\n", "Kconfig": "x\n", **files}.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    (build / "deb/usr/src").mkdir(parents=True)
    (build / "deb/DEBIAN").mkdir()
    tarball = build / f"deb/usr/src/linux-source-{series}.tar.xz"
    subprocess.run(["tar", "-cJf", tarball, "-C", build / "tree", top.name], check=True)
    (build / "deb/DEBIAN/control").write_text(
        f"Package: linux-source-{series}\nVersion: {version}\nArchitecture: all\n"
        "Maintainer: Nobody <nobody@example.org>\nDescription: a package of a test\n"
    )
    package = archive.directory / f"linux-source-{series}_{version}_all.deb"
    command = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", build / "deb", package]
    subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(build)


@pytest.fixture
def suites(tmp_path: Path) -> Generator[list[Archive]]:
    """Two suites: the second is newer."""
    made: list[Archive] = []
    for suite, versions in (("old", ["6.1.192-2", "6.12.9-1~bpo12+1"]), ("new", ["6.12.117-1", "6.12.118-1"])):
        (tmp_path / suite / "archive").mkdir(parents=True)
        archive = Archive(tmp_path / suite / "archive")
        for version in versions:
            add_linux_source(archive, version, {"kernel/version.c": f"{suite} {version}\n"})
        archive.publish()
        made.append(archive)
    yield made
    for archive in made:
        archive.close()


@pytest.mark.parametrize(
    ("wanted", "suite", "version"),
    [
        ("6.12", "new", "6.12.118-1"),
        ("6.12.117-1", "new", "6.12.117-1"),
        ("6.12.9-1~bpo12+1", "old", "6.12.9-1~bpo12+1"),
        ("6.1", "old", "6.1.192-2"),
    ],
)
def test_debian_source_by_series_and_version(
    suites: list[Archive], tmp_path: Path, wanted: str, suite: str, version: str
) -> None:
    sources = [source_of(archive, archive.directory.parent / "cache") for archive in suites]
    tree = debian_tree(DebianReference(wanted), sources, Progress())
    assert tree.origin == f"debian:{version}"
    assert not any(path.endswith(".deb") for archive in suites for path, _ in archive.asked), (
        "it is downloaded too early"
    )
    assert composed(tree, tmp_path / "x") == {
        "Makefile": (f"# {version}\n".encode(), False),
        "Kconfig": (b"x\n", False),
        "kernel/version.c": (f"{suite} {version}\n".encode(), False),
    }
    assert debian_tree(DebianReference(version), sources, Progress()).identity == tree.identity
    assert debian_tree(DebianReference("6.12.117-1"), sources, Progress()).identity != tree.identity or (
        version == "6.12.117-1"
    )


def test_a_version_that_is_here_is_asked_of_nobody(
    suites: list[Archive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest of a series is asked for each time, a version never changes; without its package, it is asked for."""
    sources = [source_of(archive, archive.directory.parent / "cache") for archive in suites]
    tree = debian_tree(DebianReference("6.12.117-1"), sources, Progress())
    tree.fetch(Progress())

    def asked(*_: object, **__: object) -> None:
        raise AptAskedError

    monkeypatch.setattr(debian, "run", asked)
    again = debian_tree(DebianReference("6.12.117-1"), sources, Progress())
    assert (again.origin, again.identity) == (tree.origin, tree.identity)
    assert composed(again, tmp_path / "x") == composed(tree, tmp_path / "y")
    with pytest.raises(AptAskedError):
        debian_tree(DebianReference("6.12"), sources, Progress())
    (tmp_path / "new/cache/packages/linux-source-6.12_6.12.117-1_all.deb").unlink()
    with pytest.raises(AptAskedError):
        debian_tree(DebianReference("6.12.117-1"), sources, Progress())


def test_a_debian_source_that_is_not_offered(suites: list[Archive], tmp_path: Path) -> None:
    sources = [source_of(archive, archive.directory.parent / "cache") for archive in suites]
    with pytest.raises(KernelUnavailableError, match=r"6\.12\.9-1~bpo12\+1, 6\.12\.118-1, 6\.12\.117-1") as caught:
        debian_tree(DebianReference("6.12.1-1"), sources, Progress())
    assert caught.value.hint
    with pytest.raises(KernelUnavailableError, match=r"has the series 6\.11") as caught:
        debian_tree(DebianReference("6.11"), sources, Progress())
    assert caught.value.hint == "The series that are offered: 6.1, 6.12."
    tree = debian_tree(DebianReference("6.12"), sources, Progress())
    with pytest.raises(DownloadFailedError, match=r"6\.12\.118-1"):
        tree.compose(tmp_path, Progress())  # not fetched
