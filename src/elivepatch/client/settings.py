# SPDX-License-Identifier: GPL-2.0-or-later
"""The settings of the client: its file, then the environment, then the command line; the later counts."""

from __future__ import annotations

import configparser
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from elivepatch.client.address import check_url
from elivepatch.client.classic import is_defaults, read_defaults
from elivepatch.client.state import DEFAULT_STATE, require_trusted
from elivepatch.errors import InvalidSettingError
from elivepatch.overlay.settings import OverlayName, OverlaySettings

CONFIG_FILE = Path("/etc/elivepatch/client.toml")
DEFAULT_URL = "http://127.0.0.1:5000"
_FILE_BYTES = 64 * 1024
_PREFIX = "ELIVEPATCH_"
#: Tables have no form that fits in a variable.
_FILE_ONLY = {"overlays"}

Seconds = Annotated[float, Field(gt=0, le=7 * 24 * 3600)]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str | Path) else value


def _absolute(path: Path) -> Path:
    if not path.is_absolute():  # the units that load again after a restart run somewhere else
        raise ValueError("it must be a path that begins with /")
    return path


class Settings(BaseModel):
    """All settings; docs/client.md describes each. Times are seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    url: str = Field(default=DEFAULT_URL, description="address of the build server")
    config: Path | None = Field(default=None, description="configuration of the kernel; found by itself if not set")
    kernel_version: str | None = Field(default=None, description="kernel to build for; the running one if not set")
    patch: Annotated[tuple[Path, ...], BeforeValidator(_as_list)] = Field(default=(), description="patches to convert")
    kernel_source: str | None = Field(default=None, description="where the source of the running kernel comes from")
    base_patches: Annotated[tuple[Path, ...], BeforeValidator(_as_list)] = Field(
        default=(), description="patches that the running kernel already has, or directories of them"
    )
    collect_base_patches: bool = Field(
        default=True, description="whether the patches of the host's package manager are collected"
    )
    build_directory: Path | None = Field(default=None, description="where the running kernel was built")
    send_image: bool = Field(default=True, description="whether the image of a self-built kernel is sent")
    image_timeout: Seconds = Field(default=3600.0, description="how long sending the image may take")
    load: bool = Field(default=True, description="whether the module is loaded")
    kpatch: bool = Field(default=False, description="whether it is loaded by the program kpatch")
    verify: bool = Field(default=True, description="whether the module must have passed a boot test")
    proof: Literal["exact", "layout"] = Field(default="layout", description="the weakest proof that is taken")
    transition_timeout: Seconds = Field(default=120.0, description="how long a transition may take")
    crash_guard: Annotated[float, Field(ge=0, le=7 * 24 * 3600)] = Field(
        default=600.0, description="how long the host must stay up after a load, so that it is loaded again at boot"
    )
    clock_tolerance: Annotated[float, Field(ge=0, le=7 * 24 * 3600)] = Field(
        default=900.0, description="how far the clocks of host and server may be apart"
    )
    journal_entries: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=100, description="how many finished entries the journal keeps; 0 for all"
    )
    build_timeout: Seconds = Field(default=4 * 3600.0, description="how long a build may take")
    state_dir: Annotated[Path, AfterValidator(_absolute)] = Field(
        default=DEFAULT_STATE, description="where journal and modules lie"
    )
    ca_certificate: Path | None = Field(default=None, description="certificates to trust in place of the host's")
    overlays: dict[OverlayName, OverlaySettings] = Field(
        default_factory=dict[str, OverlaySettings], description="overlays by name: tables with url, branch, keys"
    )
    debug: bool = Field(default=False, description="whether the output of the build is shown")
    log_output: Path | None = Field(default=None, description="file that all that is told is written to as well")
    cve: bool = Field(default=False, description="whether the CVE mode is run, as with -e")
    clear: bool = Field(default=False, description="whether the record of closed CVEs is cleared, as with -l")


def load_settings(
    *,
    file: Path | None,
    environment: Mapping[str, str],
    flags: Mapping[str, object],
    default_file: Path = CONFIG_FILE,
    user: int | None = None,
) -> Settings:
    """Put the settings together. ``file`` takes the place of ``default_file``, which need not be there.

    ``flags`` are the values of the command line that were given. Raises InvalidSettingError, naming where the value
    comes from, and also where somebody else could have written the file.
    """
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    for origin, found in (
        _from_file(file, default_file, os.geteuid() if user is None else user),
        ("the environment", _from_environment(environment)),
        ("the command line", flags),
    ):
        values.update(found)
        origins.update(dict.fromkeys(found, origin))
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part != "[key]"] or [
            "?"
        ]  # overlays, its name, what is wrong of it
        said = "there is no such setting" if first["type"] == "extra_forbidden" else first["msg"]
        raise InvalidSettingError(
            f"The setting '{'.'.join(place)[:200]}' of {origins.get(place[0], 'the settings')} cannot be used: {said}.",
            hint="docs/client.md lists the settings: " + ", ".join(Settings.model_fields) + ".",
        ) from error
    return settings.model_copy(update={"url": check_url(settings.url)})


def _from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    return {
        key: environment[_PREFIX + key.upper()]
        for key in Settings.model_fields
        if key not in _FILE_ONLY and environment.get(_PREFIX + key.upper())
    }


def _is_named(path: Path) -> bool:
    """Whether there is something of that name, also where it may not be looked at or leads nowhere."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # not to go on as if nothing had been set
        return True
    return True


def _from_file(file: Path | None, default: Path, user: int) -> tuple[str, dict[str, object]]:
    path = file or default
    if file is None and not _is_named(default):
        return "", {}
    try:
        if path.exists() and not path.is_file():
            raise InvalidSettingError(f"The settings {path} are not a file.", hint="Name a file with -c.")
        with path.open("rb") as stream:
            data = stream.read(_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidSettingError(
            f"The settings {path} cannot be read: {error.strerror}.",
            hint="Name another file with -c, or mend this one.",
        ) from error
    require_trusted(path, user)
    if len(data) > _FILE_BYTES:
        raise InvalidSettingError(
            f"The settings {path} are larger than {_FILE_BYTES} bytes.", hint="That is no file of settings."
        )
    try:
        text = data.decode()
        if is_defaults(text):
            return str(path), read_defaults(text)
        return str(path), dict(tomllib.loads(text))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, configparser.Error) as error:
        raise InvalidSettingError(
            f"The settings {path} cannot be understood: {' '.join(str(error).split())}.",
            hint='They are TOML, for instance: url = "http://build.example:5000"',
        ) from error
