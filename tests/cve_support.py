# SPDX-License-Identifier: GPL-2.0-or-later
"""Feeds for tests, and a second way to say which kernels a vulnerability affects."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """An entry of a feed: the lines of its dyads, its title, files and score."""

    dyads: Sequence[str]
    title: str = "a fault"
    files: Sequence[str] = ("kernel/fork.c",)
    score: float | None = None


def write_feed(target: Path, entries: Mapping[str, Entry]) -> Path:
    """Write a feed as the vulns repository has it; gives its directory."""
    for name, entry in entries.items():
        place = target / "cve/published" / name.split("-")[1]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.dyad").write_text("# dyad version: 1.2.0\n" + "".join(f"{line}\n" for line in entry.dyads))
        (place / f"{name}.json").write_text(record(name, entry))
        (place / f"{name}.sha1").write_text("f" * 40 + "\n")
    return target


def record(name: str, entry: Entry) -> str:
    """The record of an entry."""
    cna: dict[str, object] = {"title": entry.title, "affected": [{"programFiles": list(entry.files)}]}
    if entry.score is not None:
        cna["metrics"] = [{"cvssV3_1": {"baseScore": entry.score, "vectorString": "CVSS:3.1/AV:L/AC:L"}}]
    return json.dumps({"containers": {"cna": cna}, "cveMetadata": {"cveId": name, "state": "PUBLISHED"}})


def affected(dyads: Sequence[str], version: str) -> bool:
    """Whether a version is affected: the rule, written down once more, slowly and on tuples of numbers."""
    kernel = tuple(map(int, version.split(".")))
    branch, step = kernel[:2], kernel[2] if len(kernel) > 2 else 0

    def split(text: str) -> tuple[tuple[int, ...], int]:
        numbers = tuple(map(int, text.split(".")))
        if numbers[:2] == (2, 6):
            return numbers[:3], numbers[3] if len(numbers) > 3 else 0
        return numbers[:2], numbers[2] if len(numbers) > 2 else 0

    def has(text: str) -> bool:
        base, stable = split(text)
        return base <= branch if stable == 0 else base == branch and stable <= step

    lines = [line.split(":") for line in dyads]
    of_branch = [line for line in lines if line[2] != "0" and split(line[2])[0] == branch]
    of_mainline = [line for line in lines if line[2] == "0" or split(line[2])[1] == 0]
    counted = of_branch or of_mainline or lines
    return any((line[0] == "0" or has(line[0])) and (line[2] == "0" or not has(line[2])) for line in counted)
