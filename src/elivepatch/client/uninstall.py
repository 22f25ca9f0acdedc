# SPDX-License-Identifier: GPL-2.0-or-later
"""Clearing up: the livepatches of this client out of the kernel, and all that it keeps off the disk."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from elivepatch.client.host import Host
from elivepatch.client.journal import Journal
from elivepatch.client.output import Output
from elivepatch.client.revert import Reverting
from elivepatch.client.settings import Settings
from elivepatch.client.state import StateDirectory, require_trusted
from elivepatch.errors import HostError
from elivepatch.kernel.running import livepatches
from elivepatch.protocol.models import Model

#: What the client puts into its directory; whatever else lies there is not its own.
_OURS = ("journal", "modules", "patches", "overlays", "commits", "image.json", "cves-cleared", "lock")


class Uninstalled(Model):
    """What was done. ``kept`` are livepatches that stay in the kernel until the host goes down."""

    status: Literal["uninstalled"] = "uninstalled"
    exit_status: Literal[0] = 0
    removed: str
    reverted: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Uninstalling:
    """Clears up one host; with ``keep_loaded`` the livepatches stay in the kernel."""

    settings: Settings
    host: Host
    output: Output
    keep_loaded: bool = False

    def plan(self) -> Iterator[str]:
        """What would be done, in words."""
        names = self._ours()
        if names:
            yield f"{', '.join(names)}: {'stays' if self.keep_loaded else 'would be reverted'}"
        yield f"{self.settings.state_dir}: journal, modules and patches would be removed"

    def run(self) -> Uninstalled:
        """Do it. Raises HostError where a livepatch cannot be reverted; then nothing is removed."""
        if self.host.user != 0:
            raise HostError("Uninstalling needs root.", hint="Run this with sudo.")
        state = StateDirectory(self.settings.state_dir, self.host.user)
        names = self._ours()
        self._check_known(state)
        reverted: list[str] = []
        if not self.keep_loaded:
            for name in names:
                Reverting(self.settings, self.host, self.output).one(name)
                reverted.append(name)
        if state.path.exists():
            self._remove(state)
        kept = tuple(names) if self.keep_loaded else ()
        return Uninstalled(removed=str(state.path), reverted=tuple(reverted), kept=kept)

    def _check_known(self, state: StateDirectory) -> None:
        """Raises HostError where the journal cannot say whose a livepatch is: it would be left without a word."""
        entries, problems = Journal(state).entries()
        known = {entry.module.name for entry in entries if entry.module}
        unknown = [patch.name for patch in livepatches(self.host.root) if patch.name not in known]
        if problems and unknown and not self.keep_loaded:
            raise HostError(
                f"{', '.join(unknown)} may be of this client; the journal cannot tell: {problems[0]}.",
                hint="Nothing was done. Revert it first ('elivepatch revert NAME'), or leave it in the kernel with "
                "--keep-loaded.",
            )

    def _ours(self) -> list[str]:
        """The livepatches of this client that the kernel holds."""
        state = StateDirectory(self.settings.state_dir, self.host.user)
        try:
            known = {
                entry.module.name for entry in Journal(state).entries()[0] if entry.module and entry.touched_kernel
            }
        except PermissionError as error:
            raise HostError(f"The journal below {state.path} may not be read.", hint="Run this with sudo.") from error
        return [patch.name for patch in livepatches(self.host.root) if patch.name in known]

    def _remove(self, state: StateDirectory) -> None:
        require_trusted(state.path, state.user)
        with state.locked():
            meanwhile = [] if self.keep_loaded else self._ours()
            if meanwhile:
                raise HostError(
                    f"{', '.join(meanwhile)} was loaded meanwhile, by another elivepatch; nothing was removed.",
                    hint="Wait until nobody loads anything any more, then do it again.",
                )
            try:
                for place in (*state.path.glob(".*.new"), *(state.path / name for name in _OURS)):
                    _remove(place)
            except OSError as error:
                raise HostError(
                    f"{error.filename or state.path} cannot be removed: {error.strerror}.",
                    hint="What was in force is reverted; see to that file system, then do it again.",
                ) from error
        with contextlib.suppress(OSError):  # a mount point, or something that is not ours lies there
            state.path.rmdir()


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
