# SPDX-License-Identifier: GPL-2.0-or-later
"""Findings about an overlay: each with file, line, rule, message and hint, and documented in docs/overlays.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from elivepatch.errors import Diagnosis, InvalidInputError

DOC = "docs/overlays.md"
#: The file at the root of an overlay that says what it has.
DESCRIPTION = "elivepatch.yml"
#: More findings than anybody reads; what comes after them is not kept.
_MOST = 500
_SHOWN = 80


@dataclass
class Findings:
    """The findings of one overlay, as they come."""

    found: list[Diagnosis] = field(default_factory=list[Diagnosis])

    def add(
        self,
        rule: str,
        line: int,
        message: str,
        hint: str,
        *,
        file: str = DESCRIPTION,
        severity: Literal["error", "warning"] = "error",
    ) -> None:
        """Note a finding. ``line`` counts from 1 in ``file``, which is relative to the overlay."""
        if not self.full:
            doc = f"{DOC}#{rule}"
            self.found.append(
                Diagnosis(rule=rule, severity=severity, file=file, line=line, message=message, hint=hint, doc=doc)
            )

    @property
    def full(self) -> bool:
        """Whether no more are kept."""
        return len(self.found) >= _MOST

    @property
    def errors(self) -> tuple[Diagnosis, ...]:
        """Those with which an overlay cannot be used."""
        return tuple(finding for finding in self.found if finding.severity == "error")

    def in_order(self) -> tuple[Diagnosis, ...]:
        """All of them, by file and line."""
        return tuple(sorted(self.found, key=lambda one: (one.file != DESCRIPTION, one.file or "", one.line or 0)))


class OverlayRejectedError(InvalidInputError):
    """The overlay is not one that can be used."""

    code = "overlay-rejected"
    default_hint = "Nothing of it was used. 'elivepatch overlay lint' on a copy of it shows all that is wrong."


def require_usable(what: str, findings: Findings) -> None:
    """Raise OverlayRejectedError where there are errors; ``what`` the overlay is goes into the message."""
    errors = findings.errors
    first = next(iter(errors), None)
    if first is not None:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise OverlayRejectedError(
            f"The overlay {what} cannot be used: {first.file}, line {first.line}: {first.message}{more}",
            diagnosis=findings.in_order(),
        )


def shown(text: str) -> str:
    """A text of somebody else's for a message: quoted, on one line, printable, of a bearable length."""
    plain = "".join(char if char.isprintable() else "?" for char in text[: _SHOWN + 1])
    return f"'{plain[:_SHOWN]}…'" if len(text) > _SHOWN else f"'{plain}'"


def listed(names: Sequence[str]) -> str:
    """Names for a message."""
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
