# SPDX-License-Identifier: GPL-2.0-or-later
"""Overlays in git, with keys to sign them: real repositories and real keys, made by the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from overlay_support import DESCRIPTION, FILES, make_overlay


@dataclass
class Keys:
    """A key of OpenPGP and one of ssh, each in a file as a host pins it."""

    home: Path
    openpgp: Path
    ssh: Path
    signers: Path
    fingerprint: str

    def gpg(self, *words: str) -> str:
        return gpg(self.home, *words)


def gpg(home: Path, *words: str) -> str:
    argv = [
        "gpg",
        "--homedir",
        str(home),
        "--batch",
        "--quiet",
        "--pinentry-mode",
        "loopback",
        "--passphrase",
        "",
        *words,
    ]
    return subprocess.run(
        argv, check=True, capture_output=True, text=True, env={**os.environ, "GNUPGHOME": str(home)}
    ).stdout


@contextmanager
def keys(name: str, expires: str = "never") -> Generator[Keys]:
    """Keys of somebody. The home of gpg has a short path: a socket lies in it."""
    home = Path(tempfile.mkdtemp(prefix="ek-", dir="/tmp"))
    try:
        gpg(home, "--quick-generate-key", f"{name} <{name}@example.org>", "ed25519", "sign", expires)
        listing = gpg(home, "--with-colons", "--list-keys")
        fingerprint = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))
        openpgp, ssh = home / "public.asc", home / "id"
        openpgp.write_text(gpg(home, "--armor", "--export"))
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(ssh)], check=True)
        signers = home / "signers"
        kind, key = ssh.with_suffix(".pub").read_text().split()[:2]
        signers.write_text(f'{name}@example.org namespaces="git" {kind} {key}\n')
        yield Keys(home, openpgp, ssh, signers, fingerprint)
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "gpg-agent"], check=False)
        shutil.rmtree(home, ignore_errors=True)


@dataclass
class Repository:
    """A repository with an overlay in its work tree."""

    path: Path
    environment: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def url(self) -> str:
        return f"file://{self.path}"

    def git(self, *words: str, data: bytes | None = None, check: bool = True) -> str:
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", **self.environment}
        settings = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "core.fsync=none"]
        argv = ["git", "-C", str(self.path), *settings, *words]
        return (
            subprocess.run(argv, check=check, capture_output=True, input=data, env=environment).stdout.decode().strip()
        )

    def commit(self, message: str = "change", *words: str) -> str:
        self.git("add", "-A")
        self.git(*words, "commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def signed(self, who: Keys, *, ssh: bool = False) -> str:
        return self.commit("signed", *signing(who, ssh=ssh), "-c", "commit.gpgSign=true")

    def object(self, kind: str, data: bytes) -> str:
        return self.git("hash-object", "-t", kind, "-w", "--stdin", "--literally", data=data)

    def commit_tree(self, tree: str) -> str:
        """Put a tree on the branch, whatever is in it."""
        commit = self.git("commit-tree", tree, "-m", "made", "-p", "HEAD")
        self.git("update-ref", "refs/heads/main", commit)
        return commit


def signing(who: Keys, *, ssh: bool = False) -> list[str]:
    if ssh:
        return ["-c", "gpg.format=ssh", "-c", f"user.signingKey={who.ssh}"]
    program = who.home / "sign"
    program.write_text(
        f'#!/bin/sh\nexec gpg --homedir {who.home} --batch --pinentry-mode loopback --passphrase "" "$@"\n'
    )
    program.chmod(0o755)
    return ["-c", f"gpg.program={program}", "-c", f"user.signingKey={who.fingerprint}"]


def repository(path: Path, description: str = DESCRIPTION, files: Mapping[str, str | bytes] = FILES) -> Repository:
    """A repository with one commit, unsigned, on the branch main."""
    made = Repository(make_overlay(path, description, files))
    made.git("init", "-q", "-b", "main")
    made.commit("first")
    return made
