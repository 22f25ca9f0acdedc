# SPDX-License-Identifier: GPL-2.0-or-later
"""Mirrors of overlays: what is fetched, checked and kept, and that nothing of a repository does any harm."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from elivepatch.errors import (
    DownloadFailedError,
    ElivepatchError,
    InputTooLargeError,
    InvalidInputError,
    InvalidSettingError,
    SourceRejectedError,
)
from elivepatch.overlay import mirror as mirror_module
from elivepatch.overlay.commits import CommitPatches
from elivepatch.overlay.findings import Findings, OverlayRejectedError
from elivepatch.overlay.mirror import Mirror, RewindError, Synced
from elivepatch.overlay.model import CommitSource
from elivepatch.overlay.repository import GitFiles
from elivepatch.overlay.signatures import PinnedKeys, SignatureRejectedError
from elivepatch.patches.series import parse_patch
from overlay_git import Keys, Repository, gpg, keys, repository, signing
from overlay_support import DESCRIPTION, FILES, PATCH

pytestmark = pytest.mark.integration

#: Names with which a tree could reach what is not its own.
FORBIDDEN = [b".git", b"..", b".", b".GIT", b"a/b", b"../../etc/x", b"git~1", ".g\u200cit".encode()]


@dataclass
class Rig:
    repository: Repository
    mirror: Mirror

    def sync(self, *, allow_rewind: bool = False) -> Synced:
        findings = Findings()
        return self.mirror.sync("team", lambda path, data: _write(path, data), findings, allow_rewind=allow_rewind)

    def pinned(self, **files: Path) -> None:
        self.mirror = replace(self.mirror, keys=PinnedKeys(**files))

    @property
    def commit(self) -> str | None:
        state = self.mirror.state()
        return state.commit if state else None


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    (tmp_path / "mirror").mkdir()
    made = repository(tmp_path / "overlay")
    return Rig(made, Mirror(tmp_path / "mirror", made.url))


@pytest.fixture(scope="module")
def ours() -> Generator[Keys]:
    with keys("ours") as made:
        yield made


@pytest.fixture(scope="module")
def theirs() -> Generator[Keys]:
    with keys("theirs") as made:
        yield made


# -- fetching and keeping


def test_what_is_fetched_is_read_without_a_work_tree(rig: Rig) -> None:
    done = rig.sync()
    assert done.changed
    assert [entry.id for entry in done.overlay.entries] == ["first", "second", "third"]
    overlay, files = rig.mirror.read("team", Findings())
    assert overlay == done.overlay
    assert files.read("patches/third.patch").decode() == FILES["patches/third.patch"]
    assert sorted(files.sizes) == sorted(["elivepatch.yml", *FILES])
    assert not (rig.mirror.repository / "index").exists()
    assert not rig.sync().changed


def test_an_overlay_that_was_never_fetched(rig: Rig) -> None:
    with pytest.raises(ElivepatchError, match="not here yet"):
        rig.mirror.read("team", Findings())


def test_a_new_head_is_taken_and_a_bad_one_keeps_what_was_there(rig: Rig) -> None:
    first = rig.sync().state.commit
    (rig.repository.path / "elivepatch.yml").write_text(DESCRIPTION.replace("id: third", "id: fourth"))
    second = rig.repository.commit()
    assert (rig.sync().before, rig.commit) == (first, second)
    (rig.repository.path / "elivepatch.yml").write_text("schema: 9\n")
    rig.repository.commit()
    with pytest.raises(OverlayRejectedError) as error:
        rig.sync()
    assert error.value.diagnosis[0].rule == "schema-version"
    assert rig.commit == second
    assert rig.mirror.read("team", Findings())[0].entries[-1].id == "fourth"
    refs = [path.name for path in (rig.mirror.repository / "refs/elivepatch").iterdir()]
    assert refs == ["kept"]


def test_a_rewritten_history_is_refused_unless_it_is_allowed(rig: Rig) -> None:
    first = rig.repository.git("rev-parse", "HEAD")
    rig.repository.commit("second")
    second = rig.sync().state.commit
    rig.repository.git("reset", "-q", "--hard", first)
    for _ in range(2):
        with pytest.raises(RewindError, match="does not follow"):
            rig.sync()
        assert rig.commit == second
    rig.repository.commit("another second", "-c", "user.name=y")
    with pytest.raises(RewindError):
        rig.sync()
    assert rig.sync(allow_rewind=True).state.commit == rig.commit != second


def test_what_was_kept_of_another_address_does_not_count(rig: Rig, tmp_path: Path) -> None:
    rig.sync()
    other = repository(tmp_path / "other")
    rig.mirror = replace(rig.mirror, url=other.url)
    assert rig.commit is None
    assert rig.sync().before is None


@pytest.mark.parametrize(
    "url",
    [
        *["--upload-pack=touch /tmp/x", "ext::sh -c true", "-x", "file:relative", "http://example.org/x", "https://-x"],
        *["/etc", "", "https://a b", "ssh://-oProxyCommand=x/y", "file:///a\nb"],
    ],
)
def test_addresses_that_are_none(rig: Rig, url: str) -> None:
    rig.mirror = replace(rig.mirror, url=url)
    with pytest.raises(InvalidSettingError):
        rig.sync()


@pytest.mark.parametrize("ref", ["--x", "", "a..b", "refs/heads/../x", ".x", "a//b", "a b", "+main", "main:refs/x"])
def test_branches_that_are_none(rig: Rig, ref: str) -> None:
    rig.mirror = replace(rig.mirror, ref=ref)
    with pytest.raises(InvalidSettingError):
        rig.sync()


def test_a_repository_that_is_not_there(rig: Rig) -> None:
    rig.sync()
    rig.mirror = replace(rig.mirror, ref="other")
    with pytest.raises(DownloadFailedError) as error:
        rig.sync()
    assert error.value.hint


def test_a_sync_that_was_killed_leaves_nothing_in_the_way(rig: Rig) -> None:
    rig.mirror.repository.mkdir()
    (rig.mirror.repository / "HEAD").write_text("nonsense")
    assert rig.sync().changed
    (rig.mirror.repository / "packed-refs.lock").touch()
    rig.repository.commit()
    assert rig.sync().changed


# -- signatures


def test_a_signed_head_is_taken(rig: Rig, ours: Keys) -> None:
    rig.pinned(openpgp=ours.openpgp)
    rig.repository.signed(ours)
    assert rig.sync().state.signer == f"OpenPGP key {ours.fingerprint}"
    assert rig.commit


def test_a_head_signed_with_an_ssh_key_is_taken(rig: Rig, ours: Keys) -> None:
    rig.pinned(ssh=ours.signers)
    rig.repository.signed(ours, ssh=True)
    signer = rig.sync().state.signer
    assert signer is not None
    assert signer.startswith("ours@example.org, ED25519 key SHA256:")


def test_both_kinds_may_be_pinned(rig: Rig, ours: Keys, theirs: Keys) -> None:
    rig.pinned(openpgp=ours.openpgp, ssh=theirs.signers)
    rig.repository.signed(ours)
    rig.sync()
    rig.repository.signed(theirs, ssh=True)
    rig.sync()
    rig.repository.signed(theirs)
    with pytest.raises(SignatureRejectedError):
        rig.sync()


def test_an_unsigned_head_is_refused_and_what_was_there_stays(rig: Rig, ours: Keys) -> None:
    rig.pinned(openpgp=ours.openpgp)
    with pytest.raises(SignatureRejectedError, match="not signed"):
        rig.sync()
    assert rig.commit is None
    good = rig.repository.signed(ours)
    rig.sync()
    rig.repository.commit("unsigned")
    with pytest.raises(SignatureRejectedError):
        rig.sync()
    assert rig.commit == good


@pytest.mark.parametrize("ssh", [False, True])
def test_a_head_signed_by_somebody_else_is_refused(rig: Rig, ours: Keys, theirs: Keys, ssh: bool) -> None:
    rig.pinned(openpgp=ours.openpgp, ssh=ours.signers)
    rig.repository.signed(theirs, ssh=ssh)
    with pytest.raises(SignatureRejectedError, match="not one of"):
        rig.sync()


@pytest.mark.parametrize("ssh", [False, True])
def test_a_signature_of_the_kind_that_is_not_pinned_is_refused(rig: Rig, ours: Keys, ssh: bool) -> None:
    rig.pinned(**({"openpgp": ours.openpgp} if ssh else {"ssh": ours.signers}))
    rig.repository.signed(ours, ssh=ssh)
    with pytest.raises(SignatureRejectedError):
        rig.sync()


def test_a_signature_that_was_moved_to_another_commit_is_refused(rig: Rig, ours: Keys) -> None:
    rig.pinned(openpgp=ours.openpgp)
    signed = rig.repository.git("cat-file", "commit", rig.repository.signed(ours))
    forged = rig.repository.object("commit", signed.replace("\n\nsigned", "\n\nforged").encode() + b"\n")
    rig.repository.git("update-ref", "refs/heads/main", forged)
    with pytest.raises(SignatureRejectedError, match="something else"):
        rig.sync()


def test_a_key_that_has_expired_or_was_revoked_does_not_count(rig: Rig, tmp_path: Path) -> None:
    with keys("short", expires="seconds=2") as short:
        rig.pinned(openpgp=short.openpgp)
        rig.repository.signed(short)
        time.sleep(3)
        with pytest.raises(SignatureRejectedError, match="expired"):
            rig.sync()
    with keys("lost") as lost:
        rig.repository.signed(lost)
        certificate = lost.home / f"openpgp-revocs.d/{lost.fingerprint}.rev"
        text = certificate.read_text().replace(":-----BEGIN", "-----BEGIN")
        (tmp_path / "revocation").write_text(text[text.index("-----BEGIN") :])
        gpg(lost.home, "--import", str(tmp_path / "revocation"))
        lost.openpgp.write_text(gpg(lost.home, "--armor", "--export"))
        rig.pinned(openpgp=lost.openpgp)
        with pytest.raises(SignatureRejectedError, match="revoked"):
            rig.sync()


@pytest.mark.parametrize(
    ("option", "date", "good"),
    [
        ('valid-before="20200101"', "2019-06-01T00:00:00Z", False),  # whoever has the old key can set the clock back
        ("valid-before=20200101Z", "2019-06-01T00:00:00Z", False),
        ('valid-after="20990101"', "2099-06-01T00:00:00Z", False),
        ('valid-after="20200101",valid-before="209901010000Z"', None, True),
        ('valid-before="yesterday"', None, False),
    ],
)
def test_an_allowed_signer_must_be_valid_today(
    rig: Rig, ours: Keys, tmp_path: Path, option: str, date: str | None, good: bool
) -> None:
    signers = tmp_path / "signers"
    signers.write_text(ours.signers.read_text().replace('namespaces="git"', f'namespaces="git",{option}'))
    rig.pinned(ssh=signers)
    if date is not None:
        rig.repository.environment.update(GIT_COMMITTER_DATE=date, GIT_AUTHOR_DATE=date)
    head = rig.repository.signed(ours, ssh=True)
    if good:
        assert rig.sync().state.commit == head
        return
    with pytest.raises(SignatureRejectedError):
        rig.sync()
    assert rig.commit is None


@pytest.mark.parametrize("ssh", [False, True])
def test_a_signed_tag_is_taken_whatever_its_commit_is(rig: Rig, ours: Keys, ssh: bool) -> None:
    rig.pinned(openpgp=ours.openpgp, ssh=ours.signers)
    rig.mirror = replace(rig.mirror, ref="refs/tags/v1")
    rig.repository.git(*signing(ours, ssh=ssh), "tag", "-s", "-m", "one", "v1")
    assert rig.sync().state.signer
    rig.repository.git("tag", "-f", "-a", "-m", "unsigned", "v1")
    with pytest.raises(SignatureRejectedError, match="The tag"):
        rig.sync()
    rig.repository.signed(ours)
    rig.repository.git("tag", "-f", "v1")  # a light one has no signature: whoever holds the repository can move it
    with pytest.raises(SignatureRejectedError, match=r"refs/tags/v1 of the overlay .* no signed tag"):
        rig.sync()


def test_a_signed_tag_is_not_taken_for_another(rig: Rig, ours: Keys) -> None:
    rig.pinned(openpgp=ours.openpgp)
    rig.mirror = replace(rig.mirror, ref="refs/tags/v2")
    rig.repository.git(*signing(ours), "tag", "-s", "-m", "tag v2", "v1")
    rig.repository.git("update-ref", "refs/tags/v2", rig.repository.git("rev-parse", "refs/tags/v1"))
    with pytest.raises(SignatureRejectedError, match="another name"):
        rig.sync()


def test_what_was_taken_unsigned_does_not_count_once_keys_are_pinned(rig: Rig, ours: Keys, theirs: Keys) -> None:
    rig.sync()
    rig.pinned(openpgp=ours.openpgp)
    assert rig.commit is None
    rig.repository.signed(ours)
    rig.sync()
    rig.pinned(openpgp=theirs.openpgp)
    assert rig.commit is None
    with pytest.raises(SignatureRejectedError):
        rig.sync()


def test_settings_and_keyrings_of_the_user_play_no_part(
    rig: Rig, theirs: Keys, ours: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    config.write_text(f'[gpg]\n\tprogram = /bin/true\n[gpg "ssh"]\n\tallowedSignersFile = {theirs.signers}\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "gpg.ssh.allowedSignersFile")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(theirs.signers))
    monkeypatch.setenv("GNUPGHOME", str(theirs.home))
    rig.pinned(openpgp=ours.openpgp, ssh=ours.signers)
    for ssh in (False, True):
        rig.repository.signed(theirs, ssh=ssh)
        with pytest.raises(SignatureRejectedError):
            rig.sync()


@pytest.mark.parametrize("content", [b"", b"hello\n", None])
def test_keys_that_cannot_be_used(rig: Rig, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    rig.pinned(openpgp=tmp_path / "keys")
    with pytest.raises(InvalidSettingError):
        rig.sync()


# -- a malicious repository


def blob(rig: Rig, data: bytes = PATCH.encode()) -> str:
    return rig.repository.object("blob", data)


def tree(rig: Rig, *entries: tuple[str, bytes, str]) -> str:
    data = b"".join(mode.encode() + b" " + name + b"\0" + bytes.fromhex(oid) for mode, name, oid in entries)
    return rig.repository.object("tree", data)


def with_patches(rig: Rig, patches: str) -> str:
    """A commit with the good description and that tree as patches/."""
    description = blob(rig, b"schema: 1\npatches: []\n")
    top = tree(rig, ("100644", b"elivepatch.yml", description), ("40000", b"patches", patches))
    return rig.repository.commit_tree(top)


@pytest.mark.parametrize(
    ("mode", "name", "rule"),
    [
        ("120000", b"link.patch", "file-kind"),
        ("160000", b"module", "file-kind"),
        ("100644", b"-rf", "file-name"),
        ("100644", b"--output=x", "file-name"),
        ("100644", b"a\nb.patch", "file-name"),
        ("100644", b"a\x1b[2Jb", "file-name"),
        ("100644", b"\xff\xfe", "file-name"),
        ("100644", "ü.patch".encode(), "file-name"),
        ("100644", b"a b", "file-name"),
        ("100644", b".hidden", "file-name"),
        ("100644", b"x" * 300, "file-name"),
    ],
)
def test_strange_files_are_not_read(rig: Rig, mode: str, name: bytes, rule: str) -> None:
    oid = rig.repository.git("rev-parse", "HEAD") if mode == "160000" else blob(rig, b"/etc/passwd")
    commit = with_patches(rig, tree(rig, (mode, name, oid)))
    findings = Findings()
    files = GitFiles(rig.repository.path / ".git", commit, findings)
    assert list(files.sizes) == ["elivepatch.yml"]
    assert [one.rule for one in findings.found] == [rule]
    assert all(one.message.isprintable() and (one.file or "").isprintable() for one in findings.found)
    with pytest.raises(OverlayRejectedError):
        rig.sync()
    assert rig.commit is None


@pytest.mark.parametrize("name", FORBIDDEN)
def test_names_that_git_forbids_are_refused_as_they_arrive_or_not_read(rig: Rig, name: bytes) -> None:
    with_patches(rig, tree(rig, ("100644", name, blob(rig))))
    with pytest.raises((SourceRejectedError, OverlayRejectedError)):
        rig.sync()
    assert rig.commit is None


def test_what_fsck_found_is_told_and_whose_it_is_to_mend(rig: Rig) -> None:
    bad = tree(rig, ("100644", b".git", blob(rig)))
    with_patches(rig, bad)
    with pytest.raises(SourceRejectedError) as error:
        rig.sync()
    assert f"{bad[:12]}: hasDotgit: contains '.git'" in error.value.message
    assert "must be repaired" in (error.value.hint or "")
    assert "Check url" not in (error.value.hint or "")


def test_hooks_filters_and_submodules_do_not_run(rig: Rig, tmp_path: Path) -> None:
    root, trap = rig.repository.path, tmp_path / "sprung"
    (root / ".gitattributes").write_text("* filter=evil diff=evil\n")
    (root / ".gitmodules").write_text(f'[submodule "x"]\n\tpath = sub\n\turl = ext::touch {trap}\n')
    for name in ("post-checkout", "post-update", "pre-receive", "reference-transaction"):
        hook = root / ".git/hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch {trap}\n")
    rig.repository.git("config", "filter.evil.smudge", f"touch {trap}")
    rig.repository.git("config", "diff.evil.textconv", f"touch {trap}")
    rig.repository.git("config", "uploadpack.packObjectsHook", f"touch {trap}")
    rig.repository.git("add", ".gitattributes")
    rig.repository.git("update-index", "--add", "--cacheinfo", f"160000,{rig.repository.git('rev-parse', 'HEAD')},sub")
    rig.repository.git("commit", "-qm", "evil")
    for hook in (root / ".git/hooks").iterdir():
        hook.chmod(0o755)
    rig.sync()
    overlay, files = rig.mirror.read("team", Findings())
    for path in files.sizes:
        files.read(path)
    assert len(overlay.entries) == 3
    assert not trap.exists()


def test_alternates_of_a_repository_give_nothing_of_this_host(rig: Rig, tmp_path: Path) -> None:
    secret = repository(tmp_path / "secret", "schema: 1\npatches: []\ntitle: secret\n", {})
    oid = secret.git("rev-parse", "HEAD")
    (rig.repository.path / ".git/objects/info/alternates").write_text(f"{secret.path}/.git/objects\n")
    rig.sync()
    assert not list(rig.mirror.repository.glob("objects/info/alternates"))
    with pytest.raises(ElivepatchError):
        GitFiles(rig.mirror.repository, oid, Findings())


@pytest.mark.parametrize("commit", ["HEAD", "--help", "-x", "0" * 39, "main", "a" * 40 + "\n"])
def test_only_ids_of_commits_are_given_to_git(rig: Rig, commit: str) -> None:
    with pytest.raises(InvalidInputError):
        GitFiles(rig.repository.path / ".git", commit, Findings())


def test_a_tree_without_end_is_looked_at_to_its_limit(rig: Rig) -> None:
    below = tree(rig, ("100644", b"x", blob(rig)))
    for _ in range(60):  # ten times ten times ten …: more files than there are atoms
        below = tree(rig, *(("40000", b"d%d" % n, below) for n in range(10)))
    commit = with_patches(rig, below)
    findings = Findings()
    began = time.monotonic()
    files = GitFiles(rig.repository.path / ".git", commit, findings)
    assert time.monotonic() - began < 60
    assert list(files.sizes) == ["elivepatch.yml"]
    assert [one.rule for one in findings.found] == ["too-many-files"]


def test_a_directory_with_too_many_files(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elivepatch.overlay.repository.FILES", 20)
    one = blob(rig)
    commit = with_patches(rig, tree(rig, *(("100644", b"f%03d" % n, one) for n in range(30))))
    with pytest.raises(InputTooLargeError):
        GitFiles(rig.repository.path / ".git", commit, Findings())


def test_a_huge_file_is_not_read(rig: Rig) -> None:
    commit = with_patches(rig, tree(rig, ("100644", b"huge.patch", blob(rig, bytes(64 * 1024**2)))))
    findings = Findings()
    files = GitFiles(rig.repository.path / ".git", commit, findings)
    assert [one.rule for one in findings.found] == ["file-size"]
    with pytest.raises(InvalidInputError):
        files.read("patches/huge.patch")


def test_a_repository_that_sends_too_much_is_cut_off(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    (rig.repository.path / "noise").write_bytes(os.urandom(40 * 1024**2))
    rig.repository.commit()
    monkeypatch.setattr(mirror_module, "_FETCH_BYTES", 1024**2)
    with pytest.raises(InputTooLargeError):
        rig.sync()
    assert rig.commit is None


def test_a_description_that_is_a_link(rig: Rig) -> None:
    rig.repository.commit_tree(tree(rig, ("120000", b"elivepatch.yml", blob(rig, b"/etc/passwd"))))
    with pytest.raises(OverlayRejectedError, match="symbolic link"):
        rig.sync()


# -- patches by commit


@pytest.fixture
def linux(tmp_path: Path) -> Repository:
    """Something like a kernel's repository: the commit HEAD changes one file."""
    path = tmp_path / "linux"
    (path / "fs").mkdir(parents=True)
    made = Repository(path)
    made.git("init", "-q", "-b", "main")
    made.git("config", "uploadpack.allowFilter", "true")
    made.git("config", "uploadpack.allowAnySHA1InWant", "true")
    (path / "fs/a.c").write_text("int a;\nint b;\n")
    (path / "fs/other.c").write_text("int other;\n")
    made.commit("first")
    (path / "fs/a.c").write_text("int a;\nint c;\n")
    made.commit("second")
    return made


def source(linux: Repository, commit: str = "HEAD") -> CommitSource:
    return CommitSource("linux", linux.url, linux.git("rev-parse", commit))


def test_a_commit_becomes_a_patch_and_is_kept(linux: Repository, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    commits = CommitPatches(tmp_path / "cache", local=True)
    wanted = source(linux)
    data = commits.patch(wanted)
    (file,) = parse_patch("x", data).files
    assert (file.new_path, file.hunks[0].header) == ("fs/a.c", "@@ -1,2 +1,2 @@")
    linux.path.rename(tmp_path / "gone")
    assert commits.patch(wanted) == data
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"{wanted.id}.patch"]


def test_merges_first_commits_and_what_is_not_there(linux: Repository, tmp_path: Path) -> None:
    commits = CommitPatches(tmp_path, local=True)
    with pytest.raises(InvalidInputError, match="the first"):
        commits.patch(source(linux, "HEAD~1"))
    linux.git("checkout", "-qb", "side", "HEAD~1")
    (linux.path / "fs/other.c").write_text("int others;\n")
    linux.commit("side")
    linux.git("merge", "-q", "-m", "merge", "main")
    with pytest.raises(InvalidInputError, match="a merge"):
        commits.patch(source(linux))
    with pytest.raises(DownloadFailedError):
        commits.patch(CommitSource("linux", linux.url, "1" * 40))
    with pytest.raises(InvalidInputError):
        CommitPatches(tmp_path).patch(source(linux))  # no paths of this host, where an overlay names them


def test_a_commit_that_changes_too_much(linux: Repository, tmp_path: Path) -> None:
    (linux.path / "fs/a.c").write_text("int x;\n" * 1024**2)
    linux.commit("huge")
    with pytest.raises(InputTooLargeError):
        CommitPatches(tmp_path, local=True).patch(source(linux))


def test_attributes_of_a_repository_start_nothing(linux: Repository, tmp_path: Path) -> None:
    (linux.path / ".gitattributes").write_text("*.c diff=evil filter=evil\n")
    (linux.path / "fs/a.c").write_text("int d;\n")
    linux.commit("evil")
    assert b"+int d;" in CommitPatches(tmp_path, local=True).patch(source(linux))
