# SPDX-License-Identifier: GPL-2.0-or-later
"""The settings of the server: command line over environment over file over default.

The environment's names are the settings' names in capitals behind ``ELIVEPATCH_``; the file is TOML with the plain
names. docs/operator.md lists every setting, and a test holds it to that.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from elivepatch.errors import InvalidInputError, InvalidSettingError
from elivepatch.overlay.settings import OverlayName, OverlaySettings, check_place
from elivepatch.protocol.models import ProofLevel
from elivepatch.sources.reference import KERNEL_ORG, parse_reference
from elivepatch.toolchains.roots import COMMON_PACKAGES, RootSpec
from elivepatch.workshop import CvePolicy, SourcePolicy, Workshop

if TYPE_CHECKING:
    from elivepatch.cves.index import Index

SETTINGS_FILE = Path("/etc/elivepatch/server.toml")
PREFIX = "ELIVEPATCH_"
#: In place of a certificate's file: the server makes one, as ``-C adhoc`` always did.
ADHOC = Path("adhoc")

_GIB = 1024**3


def _place(for_root: str, variable: str, fallback: str) -> Path:
    """A directory of the system for root, and one of the person for anybody else (XDG base directories)."""
    if os.geteuid() == 0:
        return Path(for_root)
    base = os.environ.get(variable, "")
    # The XDG specification says to ignore values that are not absolute.
    return (Path(base) if base.startswith("/") else Path.home() / fallback) / "elivepatch"


def default_data() -> Path:
    """Where the database, the builds and the artifacts lie."""
    return _place("/var/lib/elivepatch", "XDG_DATA_HOME", ".local/share")


def default_cache() -> Path:
    """Where what takes long to get lies: packages, roots, kernels."""
    return _place("/var/cache/elivepatch", "XDG_CACHE_HOME", ".cache")


Count = Annotated[int, Field(ge=1, le=1024)]
Seconds = Annotated[float, Field(gt=0, le=30 * 86400)]
Bytes = Annotated[int, Field(ge=1)]
Address = Annotated[str, Field(min_length=1, max_length=500)]


class RootSettings(BaseModel):
    """A build root beside the known ones: a suite of Debian or of something like it, with its compiler."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: str = Field(pattern=r"^[a-z0-9][a-z0-9.+-]{0,63}$", description="suite that mmdebstrap knows")
    packages: tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]{1,127}$")], ...] = Field(
        max_length=64, description="packages beside those of every root; the compiler is one of them (gcc-13)"
    )
    mirror: Address | None = Field(default=None, description="archive of the suite")


class Settings(BaseSettings):
    """All settings. Times are seconds and sizes are bytes unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)
    #: The file that `load` reads; a class variable because pydantic-settings asks the class for its sources.
    settings_file: ClassVar[Path] = SETTINGS_FILE

    host: str = Field(default="127.0.0.1", min_length=1, max_length=253, description="address to listen on")
    port: int = Field(default=5000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one")
    tls_certificate: Path | None = Field(
        default=None, description="PEM file of the certificate chain, or 'adhoc'; with it, HTTPS"
    )
    tls_key: Path | None = Field(default=None, description="PEM file with the private key of the certificate")
    data: Path = Field(default_factory=default_data, description="database, builds and artifacts")
    cache: Path = Field(default_factory=default_cache, description="downloads, build roots and prepared kernels")
    database_url: str | None = Field(
        default=None, max_length=1024, description="SQLAlchemy URL; default is SQLite in the data directory"
    )
    jobs: Count = Field(default=2, description="builds that run at once")
    parallel: Count = Field(default=2, description="programs that one build runs at once")
    queue: int = Field(default=200, ge=1, le=100_000, description="builds that may wait; more are told to come back")
    uploads: Count = Field(default=8, description="uploads that are read at once")
    streams: int = Field(default=500, ge=1, le=100_000, description="event streams that are open at once")
    attempts: int = Field(default=2, ge=1, le=10, description="how often a build is started whose process died")
    upload_seconds: Seconds = Field(
        default=60.0, description="how long an upload, or the head of a request, may take to arrive"
    )
    image_seconds: Seconds = Field(default=3600.0, description="how long an image of a host may take to arrive")
    build_seconds: Seconds = Field(default=3600.0, description="how long a build may run")
    plan_seconds: Seconds = Field(default=12 * 3600.0, description="how long a plan for vulnerabilities may be made")
    cancel_seconds: Seconds = Field(default=5.0, description="how long a cancelled build may take to end by itself")
    keepalive_seconds: Seconds = Field(default=15.0, description="silence in an event stream before a comment")
    retention_days: float = Field(
        default=7.0, ge=0, le=3650, description="how long the inputs, events and logs of ended builds are kept"
    )
    kernels_limit_bytes: Bytes = Field(default=40 * _GIB, description="disk that prepared kernels may take")
    mirror: str | None = Field(
        default=None,
        max_length=500,
        description="package mirror for build roots, instead of the suite's own",
    )
    roots: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")], RootSettings] = Field(
        default_factory=dict, max_length=64, description="build roots beside those for Debian 12 and 13"
    )
    kernel_org: Address = Field(default=KERNEL_ORG, description="kernel.org's files, or a mirror of them")
    keyring: Path | None = Field(
        default=None, description="file with the keys that sign them; without it kernel.org is not used"
    )
    git: tuple[Address, ...] = Field(
        default=(), max_length=64, description="beginnings of the addresses of repositories that sources may come from"
    )
    directories: tuple[Path, ...] = Field(
        default=(), max_length=64, description="directories of this machine that sources may lie in"
    )
    gentoo_repositories: tuple[Path, ...] = Field(
        default=(), max_length=16, description="ebuild repositories, for Gentoo's kernels; the first has precedence"
    )
    gentoo_mirrors: tuple[Address, ...] = Field(
        default=(), max_length=16, description="mirrors of Gentoo's distfiles, asked before the files' makers"
    )
    debuginfod: tuple[Address, ...] = Field(
        default=(), max_length=16, description="debuginfod servers, asked for the images of kernels nobody publishes"
    )
    cve_feed: Address | None = Field(
        default=None, description="kernel CVE data: a directory, an archive, or the address of a git repository"
    )
    cve_sync_hours: float = Field(
        default=6.0, ge=0, le=8760, description="hours after which the data are asked for again; 0 for never"
    )
    stable_git: Address | None = Field(
        default=None, description="git repository of the stable kernels, for fixes and what they need"
    )
    stable_http: Address | None = Field(
        default=None, description="address that gives one commit as a patch, with {commit} in it; without history"
    )
    overlays: dict[OverlayName, OverlaySettings] = Field(
        default_factory=dict, max_length=64, description="overlays that are watched and built ahead, each by a name"
    )
    overlay_sync_hours: float = Field(
        default=1.0, ge=0, le=8760, description="hours after which overlays are looked at again; 0 for never"
    )
    disk_reserve_bytes: int = Field(
        default=_GIB, ge=0, description="free disk below which the server says it is not well"
    )
    v1: bool = Field(default=False, description="answer clients of the first version too, by its protocol")
    v1_kernel: str = Field(
        default="gentoo:gentoo-sources-{version}",
        min_length=1,
        max_length=300,
        description="where the source of a kernel comes from of which such a client tells no more than its version",
    )
    v1_proof: ProofLevel = Field(default="layout", description="the weakest proof that is good enough for such clients")
    v1_request_bytes: int = Field(
        default=16 * 1024**2, ge=64 * 1024, le=256 * 1024**2, description="size of one request of theirs"
    )
    v1_waiting: Count = Field(default=16, description="requests of theirs that are held at once while builds are made")
    v1_wait_seconds: Seconds = Field(default=4 * 3600.0, description="how long one is held")
    v1_sessions: int = Field(default=1000, ge=1, le=1_000_000, description="sessions of theirs that are kept")
    v1_session_seconds: Seconds = Field(default=86400.0, description="how long one is kept after it was last used")
    debug: bool = Field(default=False, description="log everything")

    @property
    def database(self) -> str:
        """The SQLAlchemy URL of the database."""
        return self.database_url or f"sqlite:///{self.data / 'db.sqlite'}"

    @property
    def cve_index(self) -> Index:
        """The index of the CVE data."""
        from elivepatch.cves.index import Index  # with HTTP and all, which most commands do not need

        return Index(self.data / "cves/index.sqlite")

    @property
    def workshop(self) -> Workshop:
        """Where builds are made."""
        return Workshop(
            cache=self.cache,
            parallel=self.parallel,
            kernels_limit_bytes=self.kernels_limit_bytes,
            mirror=self.mirror,
            sources=SourcePolicy(
                kernel_org=self.kernel_org,
                keyring=self.keyring,
                git=self.git,
                directories=tuple(path.resolve() for path in self.directories),
                gentoo_repositories=self.gentoo_repositories,
                gentoo_mirrors=self.gentoo_mirrors,
                debuginfod=self.debuginfod,
            ),
            cves=CvePolicy(self.data / "cves/index.sqlite", self.stable_git, self.stable_http),
            more_roots={
                name: RootSpec(one.suite, (*COMMON_PACKAGES, *one.packages), mirror=one.mirror)
                for name, one in self.roots.items()
            },
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The order of what overrides what."""
        del dotenv_settings, file_secret_settings  # no other places: what holds is findable
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=cls.settings_file))


def load(file: Path | None = None, **overrides: Any) -> Settings:  # Any: pydantic checks the values
    """The settings that hold: ``overrides`` that are not None, then the environment, then the file, then defaults.

    Without ``file``, ``ELIVEPATCH_SETTINGS`` names it, or else it is /etc/elivepatch/server.toml, which need not
    exist. Raises InvalidSettingError, naming the setting and where it was set.
    """
    named = file or (Path(os.environ[PREFIX + "SETTINGS"]) if os.environ.get(PREFIX + "SETTINGS") else None)
    if named is not None and not named.is_file():
        raise InvalidSettingError(
            f"There is no settings file '{named}'.", hint="Correct its name, or write it; docs/operator.md shows one."
        )
    given = {name: value for name, value in overrides.items() if value is not None}

    class FromFile(Settings):
        settings_file: ClassVar[Path] = named or SETTINGS_FILE

    try:
        settings = FromFile(**given)
    except pydantic.ValidationError as error:
        raise InvalidSettingError(
            _explain(error, given, FromFile.settings_file),
            hint="docs/operator.md lists every setting.",
        ) from error
    except SettingsError as error:
        # A list or a table in the environment that is not JSON; pydantic-settings names the field.
        field = re.search(r'field "(\w+)"', str(error))
        name = PREFIX + field[1].upper() if field else PREFIX + "…"
        raise InvalidSettingError(
            f"What {name} in the environment says cannot be read.",
            hint="Lists and tables are JSON there: ELIVEPATCH_GIT='[\"https://git.example.org/\"]'.",
        ) from error
    except (ValueError, OSError) as error:
        # A file that is not TOML, or cannot be read.
        raise InvalidSettingError(
            f"The settings file '{FromFile.settings_file}' cannot be read: {error}",
            hint="It is TOML: one 'name = value' a line, text in double quotes.",
        ) from error
    return _checked(settings)


def _explain(error: pydantic.ValidationError, given: dict[str, Any], file: Path) -> str:
    lines: list[str] = []
    for problem in error.errors(include_url=False):
        name = ".".join(str(part) for part in problem["loc"])
        variable = PREFIX + name.upper()
        if name in given:
            where = "on the command line"
        elif variable in os.environ:
            where = f"in the environment as {variable}"
        else:
            where = f"in {file}"
        what = "is not a setting" if problem["type"] == "extra_forbidden" else problem["msg"]
        lines.append(f"Setting '{name}' ({where}): {what}.")
    return "\n".join(lines)


def _checked(settings: Settings) -> Settings:
    """What no single value shows. Raises InvalidSettingError."""
    if settings.tls_certificate == ADHOC:
        if settings.tls_key is not None:
            raise InvalidSettingError(
                "Setting 'tls_key' has no meaning with a certificate that the server makes ('adhoc').",
                hint="Leave it (-K) out, or name a certificate's file (-C).",
            )
    elif (settings.tls_certificate is None) != (settings.tls_key is None):
        raise InvalidSettingError(
            "Settings 'tls_certificate' and 'tls_key' go together: only one of them is set.",
            hint="Set both (-C FILE -K FILE), or neither.",
        )
    for name in ("tls_certificate", "tls_key"):
        path: Path | None = getattr(settings, name)
        if path not in (None, ADHOC) and not path.is_file():
            raise InvalidSettingError(f"Setting '{name}': there is no file '{path}'.", hint="Name a PEM file.")
    for name in ("data", "cache"):
        directory: Path = getattr(settings, name)
        if not str(directory).isprintable():
            raise InvalidSettingError(
                f"Setting '{name}' must not hold control characters: {str(directory)!r}.",
                hint="Name another directory.",
            )
        if not directory.is_absolute():
            raise InvalidSettingError(
                f"Setting '{name}' must be an absolute path, not '{directory}'.", hint="Begin it with '/'."
            )
    for name, overlay in settings.overlays.items():
        try:
            check_place(overlay.url, overlay.branch)
        except InvalidSettingError as error:
            raise InvalidSettingError(f"Setting 'overlays.{name}': {error.message}", hint=error.hint) from error
    if settings.stable_http is not None:
        _check_address_of_commits(settings.stable_http)
    try:
        parse_reference(settings.v1_kernel.replace("{version}", "6.12.60"))
    except InvalidInputError as error:
        raise InvalidSettingError(f"Setting 'v1_kernel': {error.message}", hint=error.hint) from error
    return settings


def _check_address_of_commits(address: str) -> None:
    """Raise InvalidSettingError for an address that gives no single commits."""
    hint = "It is an http or https address with {commit} in the place of a commit's id, and no other braces."
    if not re.fullmatch(r"https?://\S*\{commit\}\S*", address):
        raise InvalidSettingError(f"Setting 'stable_http': '{address}' gives no single commits.", hint=hint)
    # what nothing is put in the place of would be asked for as it stands
    if stray := re.search(r"\{[^{}]*\}?|\}", address.replace("{commit}", "")):
        raise InvalidSettingError(
            f"Setting 'stable_http': '{address}' has {stray[0]}, and nothing is known to put there.", hint=hint
        )
