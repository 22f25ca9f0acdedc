# SPDX-License-Identifier: GPL-2.0-or-later
"""The server's mirrors of the overlays in its settings: what the thread that watches them and the commands share."""

from __future__ import annotations

import os
from pathlib import Path

from elivepatch.errors import InvalidSettingError, NotFoundError
from elivepatch.overlay.mirror import Mirror
from elivepatch.overlay.signatures import PinnedKeys
from elivepatch.server.settings import Settings


def mirror_of(settings: Settings, name: str) -> Mirror:
    """The mirror of an overlay of the settings; its directory is made.

    Raises NotFoundError for a name that the settings do not have, InvalidSettingError where its keys are not there or
    its directory is not the server's to write.
    """
    one = settings.overlays.get(name)
    if one is None:
        known = ", ".join(settings.overlays) or "none"
        raise NotFoundError(f"There is no overlay {name[:64]} in the settings.", hint=f"Those that there are: {known}.")
    for path in (one.keys, one.allowed_signers):
        if path is not None and not path.is_file():
            raise InvalidSettingError(
                f"The keys {path} of the overlay {name} are not there.", hint="Put them there, or name others."
            )
    directory = settings.data / "overlays" / name
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InvalidSettingError(
            f"The overlay {name} cannot be kept in {directory}: {error.strerror}.",
            hint="Run it as the user of the server.",
        ) from error
    owner = directory.stat().st_uid
    if owner != os.getuid():
        raise InvalidSettingError(
            f"{directory} belongs to the user {owner}: what another one writes there the server could not use.",
            hint="Run it as the user of the server.",
        )
    return Mirror(directory, one.url, one.branch, PinnedKeys(one.keys, one.allowed_signers))


def write(path: Path, data: bytes) -> None:
    """Write aside and rename: there is the old file or the new one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    aside.write_bytes(data)
    aside.replace(path)
