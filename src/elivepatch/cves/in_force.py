# SPDX-License-Identifier: GPL-2.0-or-later
"""Which fixes the livepatches of a host have already: plans write into each patch what it is (`Fix.patch`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from elivepatch.job import InputFile
from elivepatch.patches.files import PATCH_LINE
from elivepatch.protocol.cves import CveEntry

_COMMIT = re.compile(rb"commit ([0-9a-f]{40})\n")
_CVE = re.compile(rb"^CVE: (CVE-[0-9]{4}-[0-9]{4,19})$", re.MULTILINE)


@dataclass(frozen=True)
class InForce:
    """The commits that patches in force are, and the vulnerabilities that they were planned for."""

    commits: frozenset[str]
    planned: frozenset[str]

    @classmethod
    def of(cls, patches: Sequence[InputFile]) -> InForce:
        """What patches say of themselves; those that no plan made say nothing."""
        commits: set[str] = set()
        planned: set[str] = set()
        for patch in patches:
            change = PATCH_LINE.search(patch.data)
            head = patch.data[: change.start() if change else 0]
            if match := _COMMIT.match(head):
                commits.add(match[1].decode())
                planned.update(name.decode() for name in _CVE.findall(head))
        return cls(frozenset(commits), frozenset(planned))

    def lacking(self, entries: Iterable[CveEntry]) -> dict[str, list[str | None]]:
        """What is called closed and was planned, and the commits that its fixes are now and that are not in force.

        Data get better: a fault whose fix was not enough gets a second one, under the same name. What people closed
        with patches of their own they know themselves.
        """
        found: dict[str, list[str | None]] = {}
        for entry in entries:
            if entry.state == "closed" and entry.id in self.planned:
                missing = [fix.commit for fix in entry.fixes if fix.commit not in self.commits]
                if missing:
                    found[entry.id] = missing
        return found
