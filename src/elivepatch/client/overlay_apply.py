# SPDX-License-Identifier: GPL-2.0-or-later
"""``overlay apply``: all that overlays have for the running kernel, as one request, by the way of every request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from elivepatch.client.dry_run import DryRun
from elivepatch.client.inputs import InputFile, Wish
from elivepatch.client.outcome import Outcome
from elivepatch.client.overlays import OpenOverlay, Overlays, left_out, require_known
from elivepatch.client.request import RequestRun
from elivepatch.errors import ElivepatchError, InputTooLargeError, InvalidInputError
from elivepatch.overlay.contents import joined_check
from elivepatch.overlay.kernels import KernelIdentity
from elivepatch.overlay.model import Entry
from elivepatch.overlay.selection import Selection, select, with_required
from elivepatch.protocol import limits


@dataclass(frozen=True)
class ApplyWish:
    """What the command line asks for. ``only`` and ``skip`` are ids of entries."""

    overlay: str | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    output: Path | None = None
    accept_warnings: bool = False
    drop_earlier: bool = False
    force: bool = False
    dry_run: bool = False


@dataclass
class Applying:
    """One run of ``overlay apply``."""

    wish: ApplyWish
    overlays: Overlays
    warnings: list[str] = field(default_factory=list[str])

    def run(self) -> Outcome:
        """Do it. Raises what a request raises, and NotFoundError for an id that nothing has."""
        kernel = self.overlays.kernel(None, None, None)
        unusable: dict[str, ElivepatchError] = {}
        opened = self.overlays.open(self.wish.overlay, unusable)
        self.warnings += [left_out(name, error) for name, error in unusable.items()]
        require_known(opened, (*self.wish.only, *self.wish.skip))
        chosen = [(one, entry) for one in opened for entry in self._chosen(one, kernel)]
        if not chosen:
            return Outcome(status="nothing", exit_status=0, kernel=kernel.release, warnings=tuple(self.warnings))
        files: dict[str, InputFile] = {}
        with self.overlays.commits() as commits:
            for one, entry in chosen:
                file = one.patch(entry, commits)
                files.setdefault(file.sha256, file)
        if len(files) > limits.PATCHES:
            raise InputTooLargeError(
                f"{len(files)} patches are for this kernel; a livepatch has at most {limits.PATCHES}.",
                hint="Choose some of them with --only or --skip.",
            )
        wish = Wish(
            (),
            self.wish.output,
            None,
            self.wish.accept_warnings,
            self.wish.drop_earlier,
            self.wish.force,
            given=tuple(files.values()),
            script=_joined(chosen),
            cves=tuple(sorted({cve for _, entry in chosen for cve in entry.cves})),
            overlays=tuple(dict.fromkeys(one.name for one, _ in chosen)),
        )
        kind = DryRun if self.wish.dry_run else RequestRun
        overlays = self.overlays
        # what was chosen is for the running kernel, whatever kernel the settings name for other requests
        settings = overlays.settings.model_copy(update={"kernel_version": None})
        return kind(wish, settings, overlays.host, overlays.output, self.warnings).run()

    def _chosen(self, one: OpenOverlay, kernel: KernelIdentity) -> tuple[Entry, ...]:
        selection = select(one.overlay, kernel)
        for left in (*selection.blocked, *selection.undecided):
            self._warn(f"{one.name}: {left.entry.id} is left out: {left.reason}.")
        entries = picked(selection, self.wish.only, self.wish.skip)
        for entry in entries:
            about = f": {entry.title}" if entry.title else ""
            cves = f" ({', '.join(entry.cves)})" if entry.cves else ""
            self.overlays.output.line(f"{one.name}: {entry.id}{about}{cves}")
        return entries

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.overlays.output.warn(text)


def picked(selection: Selection, only: Sequence[str], skip: Sequence[str]) -> tuple[Entry, ...]:
    """Those of a selection that were asked for, with all that they require, in its order.

    Raises InvalidInputError where something requires what is to be left out.
    """
    wanted = {entry.id for entry in selection.chosen}
    if only:
        named = {selection.successors.get(name, name) for name in only}
        needed = [with_required(entry, selection) for entry in selection.chosen if entry.id in named]
        wanted = {entry.id for entries in needed for entry in entries}
    left = wanted - {selection.successors.get(name, name) for name in skip}
    for entry in selection.chosen:
        missing = [one.id for one in with_required(entry, selection) if one.id in wanted - left]
        if entry.id in left and missing:
            raise InvalidInputError(
                f"{entry.id} requires {', '.join(missing)}, which is to be left out.", hint=f"Add --skip {entry.id}."
            )
    return tuple(entry for entry in selection.chosen if entry.id in left)


def _joined(chosen: Sequence[tuple[OpenOverlay, Entry]]) -> InputFile | None:
    """One check script of those of all entries."""
    scripts = [(entry.id, script) for one, entry in chosen if (script := one.script(entry))]
    data = joined_check([(name, script.data) for name, script in scripts])
    return InputFile(scripts[0][1].name if len(scripts) == 1 else "check.sh", data) if data is not None else None
