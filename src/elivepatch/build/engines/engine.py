# SPDX-License-Identifier: GPL-2.0-or-later
"""The one interface of the engines: from the objects of a change to a livepatch module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from elivepatch.build.compiler import CompiledObject
from elivepatch.errors import Diagnosis


@dataclass(frozen=True)
class FunctionChange:
    """A function that the livepatch replaces (changed) or brings along (new); ``object`` is its klp object."""

    object: str
    function: str
    kind: Literal["changed", "new"]


@dataclass(frozen=True)
class DiffObject:
    """What an engine made of one object: a relocatable object that holds the change alone."""

    source: CompiledObject
    path: Path
    changes: Sequence[FunctionChange]
    notes: Sequence[Diagnosis] = ()

    @property
    def acts(self) -> bool:
        """Whether anything of it would ever run: a function that is replaced, or a callback."""
        return any(change.kind == "changed" for change in self.changes) or any(
            note.rule == "callbacks" for note in self.notes
        )


class Engine(Protocol):
    """A differ and what belongs to it; what makes files does so below ``work``, a directory of the job."""

    @property
    def name(self) -> str:
        """The name in reports: ``kpatch`` or ``klp``."""
        ...

    @property
    def version(self) -> str:
        """The version of its tools; part of a build's key."""
        ...

    @property
    def headers(self) -> Path | None:
        """The directory with the headers of its macros for authors of patches, where the kernel does not bring them."""
        ...

    def examine(self, paths: Sequence[str]) -> None:
        """Raise CannotLivepatchError for files that no livepatch of this engine can change; nothing is compiled yet."""
        ...

    def diff(self, objects: Sequence[CompiledObject], work: Path) -> list[DiffObject]:
        """The changes of each object; those without a functional change are left out.

        Raises CannotLivepatchError with the findings for a change that cannot be made in a running kernel,
        NoChangeError where no object changes, ToolCrashedError where a tool fails.
        """
        ...

    def link(self, diffs: Sequence[DiffObject], name: str, work: Path) -> Path:
        """The module of that name, made of all diff objects."""
        ...
