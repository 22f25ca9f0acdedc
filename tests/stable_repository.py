# SPDX-License-Identifier: GPL-2.0-or-later
"""A repository that plays linux-stable, and a feed for it, made from two versions of Debian's linux-source.

The difference of the two trees is taken apart into commits: each changed source file is one, together with the changed
headers whose new names it uses and the files that share them. CVEs of the real data whose files are in a commit, and
whose fixes lie between the two versions, get the id of that commit.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from elivepatch.process import run

_WORD = re.compile(r"[A-Za-z_]\w{3,}")
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*|\"(?:[^\"\\\n]|\\.)*\"", re.DOTALL)
#: A word that more files are given than this is an everyday one.
_COMMON = 12
_CODE = (".c", ".h", ".S")
_ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "Nobody",
    "GIT_AUTHOR_EMAIL": "nobody@localhost",
    "GIT_COMMITTER_NAME": "Nobody",
    "GIT_COMMITTER_EMAIL": "nobody@localhost",
}


@dataclass(frozen=True)
class StableCommit:
    """A commit of the repository: its id, and the files that it changes."""

    commit: str
    files: tuple[str, ...]


def changed_files(old: Path, new: Path, directories: Sequence[str]) -> list[str]:
    """The source files that both trees have and that differ."""
    found: list[str] = []
    for directory in directories:
        for path in sorted((old / directory).rglob("*")):
            name = str(path.relative_to(old))
            if path.suffix not in _CODE or path.is_symlink() or not path.is_file() or not (new / name).is_file():
                continue
            if path.read_bytes() != (new / name).read_bytes():
                found.append(name)
    return found


def groups(old: Path, new: Path, files: Iterable[str]) -> list[tuple[str, ...]]:
    """Files that belong together: a header with those that use a name which it is given."""
    parent = {name: name for name in files}

    def top(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    added = {name: _added(old / name, new / name) for name in parent}
    uses = Counter(word for words in added.values() for word in words)
    telling = {word for word, number in uses.items() if number <= _COMMON}
    for header in [name for name in parent if name.endswith(".h")]:
        words = added[header] & telling
        for user in parent:
            if user != header and words & added[user]:
                parent[top(user)] = top(header)
    found: dict[str, list[str]] = {}
    for name in sorted(parent):
        found.setdefault(top(name), []).append(name)
    return sorted(tuple(names) for names in found.values())


def _added(old: Path, new: Path) -> set[str]:
    """The names that the new text has and the old one has not."""
    before, after = (path.read_text(errors="replace") for path in (old, new))
    return set(_WORD.findall(_COMMENT.sub("", after))) - set(_WORD.findall(before))


def make_repository(
    target: Path, old: Path, new: Path, commits: Sequence[tuple[str, ...]], tags: tuple[str, str]
) -> list[StableCommit]:
    """Make the repository: the old text of all files that change, then a commit for each group; tagged at both ends."""
    target.mkdir(parents=True)
    _git(target, "init", "--quiet", "--initial-branch=linux-6.1.y")
    for name in (name for group in commits for name in group):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(old / name, target / name)
    _commit(target, "the old version", 0)
    _git(target, "tag", tags[0])
    made: list[StableCommit] = []
    for number, group in enumerate(commits, start=1):
        for name in group:
            shutil.copyfile(new / name, target / name)
        made.append(StableCommit(_commit(target, f"{group[0]}: what changed up to {tags[1]}", number), group))
    _git(target, "tag", tags[1])
    return made


def _commit(target: Path, message: str, number: int) -> str:
    _git(target, "add", "--all")
    _git(target, "commit", "--quiet", "--message", message, date=f"{1_700_000_000 + number} +0000")
    return _git(target, "rev-parse", "HEAD").strip()


def _git(target: Path, *words: str, date: str = "1700000000 +0000") -> str:
    environment = {**_ENVIRONMENT, "GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    return run(["git", *words], cwd=target, env=environment).stdout


def write_feed(
    target: Path, entries: Mapping[str, tuple[str, str, Sequence[str]]], version: str, since: str = "2.6.12"
) -> None:
    """Write a feed: CVE id to its title, its commit and its files; all are fixed in ``version`` of the branch."""
    for name, (title, commit, files) in entries.items():
        place = target / "cve/published" / name.split("-")[1]
        place.mkdir(parents=True, exist_ok=True)
        mainline = "f" * 40
        (place / f"{name}.dyad").write_text(
            f"# dyad version: 1.2.0\n{since}:{'1' * 40}:{version}:{commit}\n{since}:{'1' * 40}:99.1:{mainline}\n"
        )
        (place / f"{name}.json").write_text(_record(name, title, files))


def _record(name: str, title: str, files: Sequence[str]) -> str:
    return json.dumps(
        {
            "containers": {"cna": {"title": title, "affected": [{"programFiles": list(files)}]}},
            "cveMetadata": {"cveId": name, "state": "PUBLISHED"},
            "dataType": "CVE_RECORD",
            "dataVersion": "5.1.1",
        }
    )
