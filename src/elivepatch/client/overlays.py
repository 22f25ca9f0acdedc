# SPDX-License-Identifier: GPL-2.0-or-later
"""The overlays that a host uses: those of its settings, mirrored in the state directory, or a directory by its name."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from elivepatch.client.host import Host
from elivepatch.client.inputs import InputFile
from elivepatch.client.output import Output
from elivepatch.client.settings import Settings
from elivepatch.client.state import StateDirectory, require_trusted, write_whole
from elivepatch.errors import (
    ElivepatchError,
    HostError,
    InvalidInputError,
    InvalidSettingError,
    NotFoundError,
)
from elivepatch.kernel.running import running_kernel
from elivepatch.overlay.commits import CommitPatches
from elivepatch.overlay.contents import patch_of, script_of
from elivepatch.overlay.findings import Findings
from elivepatch.overlay.kernels import KernelIdentity, KernelSyntaxError, identify, parse_distribution, parse_version
from elivepatch.overlay.kernels import upstream_version as version_of
from elivepatch.overlay.lint import usable_overlay
from elivepatch.overlay.mirror import Mirror, MirrorState, Synced
from elivepatch.overlay.model import Entry, Overlay
from elivepatch.overlay.repository import DirectoryFiles, OverlayFiles
from elivepatch.overlay.settings import OverlaySettings
from elivepatch.overlay.signatures import PinnedKeys


@dataclass(frozen=True)
class OpenOverlay:
    """An overlay that can be used. ``state`` is what is in force of its mirror; None for a directory."""

    name: str
    overlay: Overlay
    files: OverlayFiles
    state: MirrorState | None = None

    def script(self, entry: Entry) -> InputFile | None:
        """The check script of an entry, if it has one."""
        data = script_of(entry, self.files)
        return InputFile((entry.check or "").rpartition("/")[2], data) if data is not None else None

    def patch(self, entry: Entry, commits: CommitPatches) -> InputFile:
        """The patch of an entry, named after it."""
        return InputFile(f"{entry.id}.patch", patch_of(entry, self.files, commits))


@dataclass(frozen=True)
class Overlays:
    """What a host has of overlays."""

    settings: Settings
    host: Host
    output: Output

    @property
    def _state(self) -> StateDirectory:
        return StateDirectory(self.settings.state_dir, self.host.user)

    def open(self, name: str | None, unusable: dict[str, ElivepatchError] | None = None) -> list[OpenOverlay]:
        """The overlay of that name, of the settings or else a directory; without a name all of the settings.

        Of all, one that cannot be used does not keep back the others: it goes into ``unusable``, with the reason.
        Raises InvalidInputError where there is none, and where none can be used, what is the matter with the first:
        NotFoundError where it was never synchronised.
        """
        if name is None:
            if not self.settings.overlays:
                raise InvalidInputError(
                    "No overlay is configured on this host.",
                    hint="Add a table [overlays.NAME] with its url to client.toml, or name a directory.",
                )
            return self._usable({} if unusable is None else unusable)
        if name in self.settings.overlays:
            return [self._mirrored(name)]
        return [self._directory(Path(name))]

    def _usable(self, unusable: dict[str, ElivepatchError]) -> list[OpenOverlay]:
        found: list[OpenOverlay] = []
        for name in self.settings.overlays:
            try:
                found.append(self._mirrored(name))
            except ElivepatchError as error:
                unusable[name] = error
        if not found:
            raise next(iter(unusable.values()))
        for name, error in unusable.items():
            self.output.warn(left_out(name, error))
        return found

    def _mirrored(self, name: str) -> OpenOverlay:
        findings = Findings()
        try:
            mirror = self._mirror(name, self.settings.overlays[name])
            overlay, files = mirror.read(name, findings)
            state = mirror.state()
        except PermissionError as error:
            raise HostError(
                f"The overlays below {self._state.path} may not be read.", hint="Run this as root, or name a directory."
            ) from error
        self._warn(name, findings)
        return OpenOverlay(name, overlay, files, state)

    def _directory(self, path: Path) -> OpenOverlay:
        if not path.is_dir():
            known = ", ".join(self.settings.overlays) or "none"
            raise NotFoundError(
                f"'{path}' is neither an overlay of this host's settings nor a directory.", hint=f"Configured: {known}."
            )
        findings = Findings()
        files = DirectoryFiles(path, findings)
        overlay = usable_overlay(files, str(path), findings)
        self._warn(str(path), findings)
        return OpenOverlay(path.resolve().name, overlay, files)

    def _warn(self, name: str, findings: Findings) -> None:
        if findings.found:
            first = findings.found[0]
            more = f" (and {len(findings.found) - 1} more)" if len(findings.found) > 1 else ""
            self.output.warn(f"overlay {name}: {first.file}, line {first.line}: {first.message}{more}")

    def _mirror(self, name: str, settings: OverlaySettings) -> Mirror:
        for path in (settings.keys, settings.allowed_signers):
            if path is not None:
                if not path.is_file():
                    raise InvalidSettingError(
                        f"The keys {path} of the overlay {name} are not there.", hint="Put them there, or name others."
                    )
                require_trusted(path, self.host.user)
        keys = PinnedKeys(settings.keys, settings.allowed_signers)
        directory = self._state.path / "overlays" / name
        try:
            fetched = directory.exists()
        except PermissionError as error:
            raise HostError(
                f"The overlay {name} below {directory} may not be read.", hint="Run this as root."
            ) from error
        if fetched:
            require_trusted(directory, self.host.user)
        return Mirror(directory, settings.url, settings.branch, keys)

    def sync(self, names: Sequence[str], *, allow_rewind: bool) -> list[tuple[str, Synced | ElivepatchError]]:
        """Bring overlays of the settings up to date; all of them without names. What went wrong is told for each."""
        unknown = [name for name in names if name not in self.settings.overlays]
        if unknown or not self.settings.overlays:
            raise NotFoundError(
                f"There is no overlay {', '.join(unknown)} in the settings."
                if unknown
                else "No overlay is configured.",
                hint="Add a table [overlays.NAME] with its url to client.toml.",
            )
        found: list[tuple[str, Synced | ElivepatchError]] = []
        for name in names or tuple(self.settings.overlays):
            try:
                found.append((name, self._sync(name, allow_rewind=allow_rewind)))
            except ElivepatchError as error:
                found.append((name, error))
        return found

    def _sync(self, name: str, *, allow_rewind: bool) -> Synced:
        settings = self.settings.overlays[name]
        self._state.prepare()
        mirror = self._mirror(name, settings)
        if not mirror.keys and not settings.url.startswith("file:"):
            self.output.warn(f"the overlay {name} is taken unsigned: whoever can change it says what is patched here.")
        self._state.prepare(mirror.directory)
        findings = Findings()
        with self.output.working(f"fetching the overlay {name}"):
            synced = mirror.sync(name, write_whole, findings, allow_rewind=allow_rewind)
        self._warn(name, findings)
        return synced

    @contextlib.contextmanager
    def commits(self) -> Generator[CommitPatches]:
        """Patches by commit, kept in the state directory; or for as long as this lasts, where nothing can be kept."""
        place = self._state.path / "commits"
        try:
            self._state.prepare(place)
        except (HostError, InvalidSettingError):
            with tempfile.TemporaryDirectory(prefix="elivepatch-commits.") as scratch:
                yield CommitPatches(Path(scratch))
        else:
            yield CommitPatches(place)

    def kernel(self, release: str | None, upstream: str | None, distribution: str | None) -> KernelIdentity:
        """The kernel of that release, or the running one. Raises InvalidInputError."""
        running = identify(running_kernel(self.host.root))
        known = (
            running if release in (None, running.release) else KernelIdentity(release or "", version_of(release or ""))
        )
        version = parse_version(upstream) if upstream else known.version
        if upstream and version is None:
            raise InvalidInputError(f"'{upstream}' is no upstream version.", hint="For instance 6.1.174.")
        if distribution is None:
            return KernelIdentity(known.release, version, known.distribution, known.distribution_version)
        try:
            named = parse_distribution(distribution)
        except KernelSyntaxError as error:
            raise InvalidInputError(f"'{distribution}' {error}.", hint="For instance debian:13.") from error
        return KernelIdentity(known.release, version, named.id, named.version)


def left_out(name: str, error: ElivepatchError) -> str:
    """That an overlay is left out, and why, on one line."""
    hint = f" ({error.hint.rstrip('.')})" if error.hint else ""
    return f"the overlay {name} is left out: {error.message}{hint}"


def require_known(opened: Sequence[OpenOverlay], ids: Sequence[str]) -> None:
    """Raise NotFoundError for an id that no entry has."""
    known = {entry.id for one in opened for entry in one.overlay.entries}
    unknown = [name for name in ids if name not in known]
    if unknown:
        raise NotFoundError(f"No overlay has a patch {', '.join(unknown)}.", hint="'elivepatch overlay list' has all.")
