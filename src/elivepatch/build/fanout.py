# SPDX-License-Identifier: GPL-2.0-or-later
"""What a changed header reaches: from all objects that may include it to those that change with it.

Three sieves, each finer and slower than the one before: the include index, the preprocessed text, and whether what has
changed in it is used by anything that the object is made of. What is left is compiled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import dirname

from elivepatch.build.elsewhere import lie_elsewhere, spell, unspelled
from elivepatch.build.includes import IncludeIndex, Tree
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.preprocess import compare
from elivepatch.build.rules import finding
from elivepatch.errors import Diagnosis
from elivepatch.progress import Progress

#: Source files that are preprocessed for one patch (twice each, a third of a second), and objects that are compiled.
CANDIDATES_LIMIT = 400
OBJECTS_LIMIT = 120
#: How many directories and files a refusal names.
_NAMED = 5


@dataclass(frozen=True)
class Users:
    """The objects that change with a header. ``reached`` are the headers that anything of the kernel includes,
    ``included`` the new files that come into an object by being included.
    """

    objects: Sequence[str] = ()
    reached: frozenset[str] = frozenset()
    included: frozenset[str] = frozenset()
    notes: Sequence[Diagnosis] = ()
    refused: Sequence[Diagnosis] = field(default_factory=list[Diagnosis])
    spelled: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Fanout:
    """The search for one patch; ``tree`` has the patched texts, ``files`` are those to preprocess with."""

    kernel: PreparedKernel
    index: IncludeIndex
    tree: Tree
    files: Mapping[str, bytes]
    parallel: int
    progress: Progress

    def users(self, changed: Sequence[str], new: Sequence[str], known: Sequence[str], work: Path) -> Users:
        """The objects that change with the files; ``new`` ones count where something includes them.

        ``known`` are objects that are compiled anyway.
        """
        before = {file: self.index.includers([file]) for file in changed}
        patched = self.index.patched(self.tree)
        after = {file: patched.includers([file]) for file in (*changed, *new)}
        # what includes something unknown may include anything; that alone is no sign that it does
        opaque = self.index.includers([]).keys()
        reached = {file for found in (before, after) for file, units in found.items() if units.keys() - opaque}
        if not reached:
            return Users()
        taken = {f"{path.removesuffix('.o')}.c" for path in known}
        # a C file that others include is all there is to them
        whole = {unit for file in reached if file.endswith(".c") for unit in before.get(file, {}).keys() - opaque}
        headers = [file for file in (*changed, *new) if file in reached and not file.endswith(".c")]
        users = {unit for found in (before, after) for file in headers for unit in found.get(file, ())}
        candidates = sorted(users - taken - whole)
        objects = [f"{unit.removesuffix('.c')}.o" for unit in sorted(whole - taken)]
        included = frozenset(file for file in new if file in reached)
        if len(candidates) > CANDIDATES_LIMIT:
            return Users(reached=frozenset(reached), refused=[_too_many(headers, candidates, CANDIDATES_LIMIT)])
        elsewhere = lie_elsewhere(self.kernel, {file: self.index.units[file] for file in (*candidates, *whole)})
        spelled = spell(self.kernel, elsewhere, work.with_name(f"{work.name}-makefiles"))
        unknown = {file: module for file, module in elsewhere.items() if file.rpartition(".")[0] not in spelled}
        lost = [unspelled(file, unknown[file]) for file in sorted(whole - taken) if file in unknown]
        if lost or not candidates:
            return Users(objects, frozenset(reached), included, refused=lost, spelled=spelled)
        more, refused = self._sieve(headers, candidates, unknown, spelled, work)
        if len(more) > OBJECTS_LIMIT:
            refused = [_too_many(headers, [f"{path.removesuffix('.o')}.c" for path in more], OBJECTS_LIMIT)]
        said = (
            f"{_names(headers)} may be included by {len(candidates)} source files of this kernel besides those of the "
            f"patch; {len(more)} objects can change with it."
        )
        notes = [finding("header-users", said, file=headers[0])]
        return Users([*objects, *more], frozenset(reached), included, notes, refused, spelled)

    def _sieve(
        self,
        headers: Sequence[str],
        candidates: Sequence[str],
        unknown: Mapping[str, str],
        spelled: Mapping[str, str],
        work: Path,
    ) -> tuple[list[str], list[Diagnosis]]:
        objects: list[str] = []
        assembly: list[str] = []
        elsewhere: list[Diagnosis] = []
        done = 0
        for each in compare(self.kernel, candidates, self.files, work, self.parallel, spelled):
            done += 1
            if done % 20 == 0:
                self.progress.step(f"{done} of {len(candidates)} users preprocessed, {len(objects)} change")
            if each.changed and each.file in unknown:
                elsewhere.append(unspelled(each.file, unknown[each.file]))
                continue
            if not each.changed or not self._contains(each.file, each.parent):
                continue
            if each.file.endswith(".S"):
                assembly.append(each.file)
            else:
                objects.append(f"{each.file.removesuffix('.c')}.o")
        refused = elsewhere + [
            finding("header-assembly", f"{file} is assembly, and changes with {_names(headers)}.", file=file)
            for file in assembly
        ]
        return objects, refused

    def _contains(self, file: str, parent: str | None) -> bool:
        """Whether the kernel has the object there: the base name of a module's file may stand for several."""
        owners = self.index.units[file]
        return parent is None or any(each in owners for each in parent.split(":"))


def _names(headers: Sequence[str]) -> str:
    return f"{', '.join(headers[:2])}{f' and {len(headers) - 2} more' if len(headers) > 2 else ''}"


def _too_many(headers: Sequence[str], users: Sequence[str], limit: int) -> Diagnosis:
    """The refusal of a header with too many users: how many, and who the biggest are."""
    places = Counter(_place(user) for user in users)
    biggest = ", ".join(f"{place} ({count})" for place, count in places.most_common(_NAMED))
    first = [user for user in users if _place(user) == places.most_common(1)[0][0]]
    said = (
        f"{_names(headers)} reaches {len(users)} objects of this kernel; up to {limit} can be looked at. "
        f"Most are in {biggest}; among them {', '.join(first[:_NAMED])}."
    )
    return finding("header-fan-out", said, file=headers[0])


def _place(user: str) -> str:
    """The directory that users are counted under: the second level of the tree at most."""
    return "/".join(dirname(user).split("/")[:2])
