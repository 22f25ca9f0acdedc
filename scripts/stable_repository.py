# SPDX-License-Identifier: GPL-2.0-or-later
"""A repository that plays linux-stable, and a feed for it, made from two versions of Debian's linux-source.

The difference of the two trees is taken apart into commits: each changed source file is one, together with the changed
headers whose new names it uses and the files that share them. CVEs of the real data whose files are in a commit, and
whose fixes lie between the two versions, get the id of that commit.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from elivepatch.process import run
from elivepatch.progress import Progress
from elivepatch.sources.linux_source import debian_tree
from elivepatch.sources.reference import DebianReference
from elivepatch.workshop import Workshop

DATA = Path(__file__).resolve().parent.parent / "tests/data/stable-cves.json"

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
class StableCve:
    """A CVE with the files of the commit that plays its fix; ``commit`` is that commit's place in the order."""

    name: str
    title: str
    score: float | None
    files: tuple[str, ...]
    group: tuple[str, ...]


@dataclass(frozen=True)
class StableData:
    """The CVEs between two versions of Debian's linux-source, and the kernel that was built from the older one."""

    old: str
    new: str
    release: str
    cves: tuple[StableCve, ...]


@dataclass(frozen=True)
class StableKernel:
    """The repository, and which commit fixes which CVE. ``version`` is the release that has all of them."""

    repository: Path
    release: str
    version: str
    cves: Mapping[str, StableCve]
    commits: Mapping[tuple[str, ...], str]

    def entries(self, names: Iterable[str]) -> dict[str, FeedEntry]:
        """What `write_feed` takes, for some of the CVEs."""
        return {
            name: FeedEntry(one.title, self.commits[one.group], one.files, one.score)
            for name in names
            for one in (self.cves[name],)
        }


@dataclass(frozen=True)
class FeedEntry:
    """An entry of a feed: one fix, in the branch."""

    title: str
    commit: str
    files: tuple[str, ...]
    score: float | None


def read_stable(only: Collection[str] = ()) -> StableData:
    """The data that come with the project; of ``only`` these CVEs, if any are named."""
    data = json.loads(DATA.read_text())
    cves = tuple(
        StableCve(one["id"], one["title"], one["score"], tuple(one["files"]), tuple(one["commit"]))
        for one in data["cves"]
        if not only or one["id"] in only
    )
    return StableData(data["old"], data["new"], data["release"], cves)


def branch_trees(data: StableData, workshop: Workshop, progress: Progress) -> tuple[Path, Path]:
    """Both trees, unpacked once and kept in the cache."""
    root = workshop.roots.ensure("bookworm", progress)
    found: list[Path] = []
    for version in (data.old, data.new):
        place = workshop.cache / "stable-trees" / version
        if not place.exists():
            tree = debian_tree(DebianReference(version), [workshop.source(root)], progress)
            tree.fetch(progress)
            aside = place.with_name(f".{version}.{os.getpid()}")
            aside.mkdir(parents=True)
            tree.compose(aside, progress)
            aside.rename(place)
        found.append(place)
    return found[0], found[1]


def make_stable(data: StableData, old: Path, new: Path, work: Path) -> StableKernel:
    """The repository for the CVEs of the data."""
    tags = (f"v{data.old.partition('-')[0]}", f"v{data.new.partition('-')[0]}")
    wanted = sorted({one.group for one in data.cves})
    made = make_repository(work / "linux-stable", old, new, wanted, tags)
    return StableKernel(
        work / "linux-stable",
        data.release,
        tags[1].removeprefix("v"),
        {one.name: one for one in data.cves},
        {one.files: one.commit for one in made},
    )


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


def write_feed(target: Path, entries: Mapping[str, FeedEntry], version: str) -> None:
    """Write a feed, as the kernel's vulns repository has it; all are fixed in ``version`` of the branch."""
    for name, entry in entries.items():
        place = target / "cve/published" / name.split("-")[1]
        place.mkdir(parents=True, exist_ok=True)
        since = f"2.6.12:{'1' * 40}"
        (place / f"{name}.dyad").write_text(
            f"# dyad version: 1.2.0\n{since}:{version}:{entry.commit}\n{since}:99.1:{'f' * 40}\n"
        )
        (place / f"{name}.json").write_text(_record(name, entry))


def _record(name: str, entry: FeedEntry) -> str:
    cna: dict[str, object] = {"title": entry.title, "affected": [{"programFiles": list(entry.files)}]}
    if entry.score is not None:
        cna["metrics"] = [{"cvssV3_1": {"baseScore": entry.score, "vectorString": "CVSS:3.1"}}]
    return json.dumps(
        {
            "containers": {"cna": cna},
            "cveMetadata": {"cveId": name, "state": "PUBLISHED"},
            "dataType": "CVE_RECORD",
            "dataVersion": "5.1.1",
        }
    )
