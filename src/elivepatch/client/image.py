# SPDX-License-Identifier: GPL-2.0-or-later
"""The image of the host's own kernel: collected from its build directory, and sent to a server that lacks it."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import ValidationError

from elivepatch.client.connection import Connection
from elivepatch.client.host import Host
from elivepatch.client.output import Output
from elivepatch.client.settings import Settings
from elivepatch.client.state import StateDirectory, write_whole
from elivepatch.errors import DiskFullError, ElivepatchError, HostError, InvalidInputError, KernelUnavailableError
from elivepatch.kernel.build_directory import Collected, collect, find_build_directory
from elivepatch.kernel.running import RunningKernel
from elivepatch.progress import Progress
from elivepatch.protocol.models import HostFacts, Model, Sha256

_MB = 1024**2
_MEMORY_BYTES = 4096


class KnownImage(Model):
    """What the last archive was, as image.json keeps it: the build ID of its kernel, and its digest."""

    build_id: str
    sha256: Sha256


class WrittenImage(Model):
    """An archive that was written to a file. ``size`` is bytes."""

    status: Literal["written"] = "written"
    exit_status: Literal[0] = 0
    path: str
    size: int
    sha256: str
    release: str
    build_id: str
    members: tuple[str, ...]


def is_wanted(settings: Settings, facts: HostFacts, *, base_patches: bool) -> bool:
    """Whether the server will not take the kernel as somebody publishes it, so that an image saves it a whole build."""
    own = settings.kernel_source or settings.build_directory or base_patches or facts.package
    return settings.send_image and bool(own or facts.distribution == "gentoo")


@dataclass(frozen=True)
class HostImage:
    """The image of the running kernel, for one request. ``warn`` takes what keeps it from being sent."""

    kernel: RunningKernel
    settings: Settings
    host: Host
    output: Output
    state: StateDirectory
    warn: Callable[[str], None]

    def send(self, connection: Connection, place: str | None) -> str | None:
        """Make sure that the server has the image; gives its digest, and None where there is none to send.

        ``place`` is the directory that the kernel was built in, as the modules have it. Raises UnavailableError where
        the server cannot be reached or cannot take it now.
        """
        memory = self._memory()
        known = self._known(memory)
        if known and connection.has_image(known.sha256):
            self.output.line(f"image: the server has it ({known.sha256[:12]})")
            return known.sha256
        directory = self._directory(place)
        if directory is None:
            return None
        with _scratch(memory.parent if memory else None) as archive:
            try:
                found = collect_from(directory, self.kernel, archive, self.host, self.output)
            except ElivepatchError as error:
                self._without(error)
                return None
            if connection.has_image(found.sha256):
                self.output.line(f"image: the server has it ({found.sha256[:12]})")
            elif not self._upload(connection, archive, found):
                return None
        if memory:
            self._remember(memory, found)
        return found.sha256

    def _directory(self, place: str | None) -> Path | None:
        if self.settings.build_directory:
            return self.settings.build_directory
        directory = find_build_directory(self.kernel.release, self.host.root)
        if directory is None and place and (self.host.root / place.lstrip("/")).is_dir():
            self.warn(f"no image is sent: {place} holds no vmlinux any more. The server builds the kernel.")
        elif directory is None:
            self.output.line("image: no build directory of this kernel on this host (--build-directory names one)")
        return directory

    def _upload(self, connection: Connection, archive: BinaryIO, found: Collected) -> bool:
        self.output.line(f"sending the kernel's image to {self.settings.url} ({found.size / _MB:.1f} MB)")
        progress = Progress(self.output.own_event)
        try:
            with self.output.working("sending the kernel's image"):
                connection.send_image(
                    archive,
                    found.sha256,
                    found.size,
                    lambda fraction: progress.step("sending the kernel's image", fraction),
                    timeout=self.settings.image_timeout,
                )
        except InvalidInputError as error:
            self._without(error)
            return False
        return True

    def _without(self, error: ElivepatchError) -> None:
        hint = f" {error.hint}" if error.hint else ""
        self.warn(f"no image is sent: {error.message}{hint} The server builds the kernel.")

    # -- what was sent before

    def _memory(self) -> Path | None:
        """The file that remembers; None where this user has no state directory to write to."""
        try:
            self.state.prepare()
        except ElivepatchError:
            return None
        return self.state.path / "image.json" if os.access(self.state.path, os.W_OK) else None

    def _known(self, memory: Path | None) -> KnownImage | None:
        try:
            if memory is None:
                return None
            with memory.open("rb") as stream:
                known = KnownImage.model_validate_json(stream.read(_MEMORY_BYTES))
        except (OSError, ValidationError):
            return None
        return known if known.build_id == self.kernel.build_id else None

    def _remember(self, memory: Path, found: Collected) -> None:
        known = KnownImage(build_id=found.facts.build_id, sha256=found.sha256)
        with contextlib.suppress(HostError, DiskFullError):  # only a saving of time
            write_whole(memory, json.dumps(known.dump()).encode() + b"\n")


def collect_from(directory: Path, kernel: RunningKernel, out: BinaryIO, host: Host, output: Output) -> Collected:
    """Write the archive of the running kernel, and tell how it goes. Raises what `build_directory.collect` raises."""
    output.line(f"collecting the kernel's image from {directory}")
    with output.working("collecting the kernel's image"):
        return collect(directory, kernel.release, out, Progress(output.own_event), root=host.root)


def write_image(path: Path, kernel: RunningKernel, settings: Settings, host: Host, output: Output) -> WrittenImage:
    """Write the archive of the running kernel to a file, whole or not at all, for a build that is made elsewhere.

    Raises KernelUnavailableError where no build directory is found, and what `build_directory.collect` raises.
    """
    directory = settings.build_directory or find_build_directory(kernel.release, host.root)
    if directory is None:
        raise KernelUnavailableError(
            f"No build directory of {kernel.release} with a vmlinux is found on this host.",
            hint="Name the directory in which the running kernel was built: --build-directory DIR.",
        )
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    except OSError as error:
        raise InvalidInputError(
            f"{path} cannot be written: {error.strerror}.", hint="Give -o the name of a file that you may write."
        ) from error
    aside = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            found = collect_from(directory, kernel, stream, host, output)
        aside.chmod(0o644)
        aside.replace(path)
    except OSError as error:  # what collecting meets are errors of ours already
        raise HostError(f"{path} cannot be written: {error.strerror}.", hint="Check the directory.") from error
    finally:
        aside.unlink(missing_ok=True)
    return WrittenImage(
        path=str(path),
        size=found.size,
        sha256=found.sha256,
        release=found.facts.release,
        build_id=found.facts.build_id,
        members=found.members,
    )


@contextlib.contextmanager
def _scratch(directory: Path | None) -> Generator[BinaryIO]:
    """A file without a name: it is gone when it is closed, however that comes about."""
    try:
        stream = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 closed below
    except OSError as error:
        raise HostError(
            f"No file for the image can be made: {error.strerror}.", hint="--no-image does without it."
        ) from error
    with stream:
        yield stream
