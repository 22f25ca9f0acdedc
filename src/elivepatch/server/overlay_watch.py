# SPDX-License-Identifier: GPL-2.0-or-later
"""Watches overlays, and builds what they have for the published kernels that are prepared here, before a host asks.

A host with the same overlay and the same kernel asks for the same bytes, so its request has the key of the build that
is there. One build is made ahead at a time: hosts that wait go before.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from elivepatch.errors import BusyError, ElivepatchError, InputTooLargeError
from elivepatch.job import InputFile, Job
from elivepatch.overlay.commits import CommitPatches
from elivepatch.overlay.contents import joined_check, patch_of, script_of
from elivepatch.overlay.findings import Findings
from elivepatch.overlay.kernels import KernelIdentity, parse_version
from elivepatch.overlay.mirror import Mirror, RewindError
from elivepatch.overlay.model import Entry, Overlay
from elivepatch.overlay.repository import OverlayFiles
from elivepatch.overlay.selection import select
from elivepatch.overlay.settings import OverlaySettings
from elivepatch.protocol import limits
from elivepatch.protocol.models import BuildRequest, BuildStatus
from elivepatch.protocol.overlays import AheadBuild, WatchedOverlay, WatchedOverlays
from elivepatch.server.database import BuildRow, Database
from elivepatch.server.overlay_mirrors import mirror_of, write
from elivepatch.server.settings import Settings
from elivepatch.workshop import Workshop

_log = logging.getLogger(__name__)
#: Seconds after which it is looked for kernels that were prepared since.
_LOOK_SECONDS = 60.0
#: Seconds between looks at a build that was asked for.
_POLL_SECONDS = 1.0
#: Where a published kernel of Debian comes from, as `PreparedKernel.origin` has it.
_DEBIAN = re.compile(r"debian:linux (?P<version>\S+) \((?P<suite>[a-z]+)(?:-backports)?\)")
#: VERSION_ID of os-release by the name of the suite.
_DEBIAN_VERSIONS = {"bookworm": "12", "trixie": "13"}

Submit = Callable[[Job], BuildRow]


@dataclass(frozen=True)
class KnownKernel:
    """A published kernel that is prepared here."""

    identity: KernelIdentity
    build_id: str
    path: Path

    def config(self) -> bytes:
        """Its configuration, as the host has it in /boot."""
        return (self.path / "image/config").read_bytes()


def known_kernels(workshop: Workshop) -> Iterator[KnownKernel]:
    """The published kernels that are prepared. Those of hosts' own cannot be asked for without the hosts' facts."""
    for path in workshop.kernels.store.paths():
        try:
            data = json.loads((path / "kernel.json").read_text())
        except (OSError, ValueError):
            continue  # removed meanwhile, or damaged
        if data["image"] == "published":
            yield KnownKernel(identity_of(str(data["release"]), str(data["origin"])), str(data["build_id"]), path)


def identity_of(release: str, origin: str) -> KernelIdentity:
    """What patches are chosen by, of a kernel of that release and origin; what is not told is None."""
    match = _DEBIAN.fullmatch(origin)
    if match is None:
        return KernelIdentity(release)
    version = parse_version(match["version"], prefix=True)
    return KernelIdentity(release, version, "debian", _DEBIAN_VERSIONS.get(match["suite"]))


@dataclass(frozen=True)
class _Open:
    """An overlay that is in force."""

    name: str
    commit: str
    overlay: Overlay
    files: OverlayFiles


@dataclass
class _Watched:
    """What is known of one overlay."""

    settings: OverlaySettings
    opened: _Open | None = None
    problem: str | None = None
    signer: str | None = None
    synced: float | None = None


@dataclass
class OverlayWatch:
    """The overlays of the settings, and the thread that watches them."""

    settings: Settings
    database: Database
    _stop: threading.Event = field(default_factory=threading.Event)
    _builds: dict[tuple[object, ...], AheadBuild] = field(default_factory=dict[tuple[object, ...], AheadBuild])

    def __post_init__(self) -> None:
        self._watched = {name: _Watched(one) for name, one in self.settings.overlays.items()}
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self, submit: Submit) -> None:
        """Begin, if there is anything to watch; ``submit`` takes in a build."""
        if self._watched and self.settings.overlay_sync_hours > 0:
            self._thread = threading.Thread(target=self._run, args=(submit,), name="overlays", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ask it to end; what it does at the moment ends with this process."""
        self._stop.set()

    def problems(self) -> Sequence[str]:
        """What keeps overlays from being up to date."""
        return tuple(one.problem for one in self._watched.values() if one.problem is not None)

    def state(self) -> WatchedOverlays:
        """What is watched, and what was built."""
        with self._lock:
            builds = [build for build in self._builds.values() if build.entries or build.left_out]
        return WatchedOverlays(
            overlays=tuple(
                WatchedOverlay(
                    name=name,
                    url=one.settings.url,
                    branch=one.settings.branch,
                    commit=one.opened.commit if one.opened else None,
                    signer=one.signer,
                    synced=one.synced,
                    entries=len(one.opened.overlay.entries) if one.opened else None,
                    problem=one.problem,
                )
                for name, one in self._watched.items()
            ),
            builds=tuple(self._with_status(build) for build in builds),
        )

    def _with_status(self, build: AheadBuild) -> AheadBuild:
        row = self.database.get(build.build) if build.build is not None else None
        if row is None:
            return build
        said = row.report.get("message") if row.report is not None and row.state is not BuildStatus.DONE else None
        return build.model_copy(update={"status": row.state, "problem": said or build.problem})

    # -- the thread

    def _run(self, submit: Submit) -> None:
        due = 0.0
        while not self._stop.is_set():
            try:
                if time.monotonic() >= due:
                    self._sync()
                    due = time.monotonic() + self.settings.overlay_sync_hours * 3600
                self._build_ahead(submit)
            except Exception:  # the thread must live: whatever it was, it may be another time
                _log.exception("Overlays could not be watched.")
            self._stop.wait(min(_LOOK_SECONDS, self.settings.overlay_sync_hours * 3600))

    def _sync(self) -> None:
        for name, watched in self._watched.items():
            try:
                self._sync_one(name, watched)
            except ElivepatchError as error:
                watched.problem = f"The overlay {name} is not up to date: {error.message}{_way_out(name, error)}"
                _log.warning("%s", watched.problem)
                if watched.opened is None:
                    self._open_kept(name, watched)

    def _sync_one(self, name: str, watched: _Watched) -> None:
        mirror = mirror_of(self.settings, name)
        if not mirror.keys and watched.synced is None:
            _log.warning("The overlay %s is taken unsigned: whoever can change it says what is built here.", name)
        findings = Findings()
        synced = mirror.sync(name, write, findings)
        for found in findings.found:
            _log.warning("Overlay %s: %s, line %s: %s", name, found.file, found.line, found.message)
        if synced.changed:
            _log.info("Overlay %s: %s, %d entries.", name, synced.state.commit, len(synced.overlay.entries))
        self._take(name, watched, mirror)
        watched.problem = None

    def _open_kept(self, name: str, watched: _Watched) -> None:
        """What was found good before this server started, if anything was."""
        try:
            self._take(name, watched, mirror_of(self.settings, name))
        except ElivepatchError as error:
            _log.info("There is no earlier state of the overlay %s: %s", name, error.message)
        else:
            _log.info("The overlay %s stays as it was.", name)

    def _take(self, name: str, watched: _Watched, mirror: Mirror) -> None:
        overlay, files = mirror.read(name, Findings())
        if (state := mirror.state()) is not None:
            watched.opened = _Open(name, state.commit, overlay, files)
            watched.signer, watched.synced = state.signer, state.synced

    # -- building ahead

    def _build_ahead(self, submit: Submit) -> None:
        """Ask for what is not there, one after the other, and forget what nobody can ask for any more."""
        opened = [one.opened for one in self._watched.values() if one.opened is not None]
        sets = [(one,) for one in opened] + ([tuple(opened)] if len(opened) > 1 else [])
        wanted: set[tuple[object, ...]] = set()
        for kernel in list(known_kernels(self.settings.workshop)):
            for overlays in sets:
                if self._stop.is_set():
                    return
                key = (kernel.identity, kernel.build_id, tuple((one.name, one.commit) for one in overlays))
                wanted.add(key)
                if key not in self._builds and not self._ask(key, kernel, overlays, submit):
                    return
        with self._lock:
            self._builds = {key: build for key, build in self._builds.items() if key in wanted}

    def _ask(self, key: tuple[object, ...], kernel: KnownKernel, overlays: Sequence[_Open], submit: Submit) -> bool:
        """Ask for one build and wait for its end; False where there is no room for it now."""
        chosen, left = _selected(kernel.identity, overlays)
        ahead = AheadBuild(
            kernel=kernel.identity.release,
            build_id=kernel.build_id,
            overlays=tuple(one.name for one in overlays),
            entries=tuple(f"{one.name}/{entry.id}" for one, entry in chosen),
            left_out=left,
        )
        row: BuildRow | None = None
        if chosen:
            try:
                row = submit(self._job(kernel, chosen))
                ahead = ahead.model_copy(update={"build": row.id})
            except BusyError:
                return False
            except (ElivepatchError, OSError) as error:
                said = error.message if isinstance(error, ElivepatchError) else str(error)
                ahead = ahead.model_copy(update={"problem": said})
                _log.warning("Not built ahead for %s: %s", kernel.identity.release, said)
        with self._lock:
            self._builds[key] = ahead
        if row is not None:
            self._wait(row, ahead)
        return True

    def _job(self, kernel: KnownKernel, chosen: Sequence[tuple[_Open, Entry]]) -> Job:
        """What a host that runs the kernel asks for with these overlays."""
        place = self.settings.data / "overlays/.commits"
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        commits = CommitPatches(place)
        patches: dict[bytes, InputFile] = {}
        scripts: list[tuple[str, bytes]] = []
        for one, entry in chosen:
            data = patch_of(entry, one.files, commits)
            patches.setdefault(data, InputFile(f"{entry.id}.patch", data))
            if (script := script_of(entry, one.files)) is not None:
                scripts.append((entry.id, script))
        if len(patches) > limits.PATCHES:
            raise InputTooLargeError(f"{len(patches)} patches are more than the limit of {limits.PATCHES}.")
        return Job(
            request=BuildRequest(kernel=kernel.identity.release, build_id=kernel.build_id),
            patches=tuple(patches.values()),
            config=kernel.config(),
            check=joined_check(scripts),
        )

    def _wait(self, row: BuildRow, ahead: AheadBuild) -> None:
        while not self._stop.is_set():
            found = self.database.get(row.id)
            if found is None or found.state.final:
                ended = found.status if found is not None else "removed"
                _log.info("Built ahead for %s, %s: %s", ahead.kernel, ", ".join(ahead.overlays), ended)
                return
            self._stop.wait(_POLL_SECONDS)


def _way_out(name: str, error: ElivepatchError) -> str:
    """What whoever runs this server can do: that of a rewind is said for hosts."""
    if isinstance(error, RewindError):
        return f" If that was on purpose: elivepatch-server overlay sync --allow-rewind {name}"
    return f" {error.hint}" if error.hint else ""


def _selected(kernel: KernelIdentity, overlays: Sequence[_Open]) -> tuple[list[tuple[_Open, Entry]], tuple[str, ...]]:
    chosen: list[tuple[_Open, Entry]] = []
    left: list[str] = []
    for one in overlays:
        selection = select(one.overlay, kernel)
        chosen += [(one, entry) for entry in selection.chosen]
        left += [f"{one.name}/{each.entry.id}: {each.reason}" for each in (*selection.blocked, *selection.undecided)]
    return chosen, tuple(left)
