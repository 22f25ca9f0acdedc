# SPDX-License-Identifier: GPL-2.0-or-later
"""``elivepatch-server root``, ``kernel`` and ``gc``: what lies in the cache, and how to be rid of it.

All of them work on the cache directory alone, with the server running or not: the locks of the cache keep what is in
use.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence

import click

from elivepatch.build.host_images import HostImages
from elivepatch.build.kernels import Kernels, list_kernels, read_entry
from elivepatch.build.store import Entry, Store, disk_usage
from elivepatch.errors import BusyError, NotFoundError
from elivepatch.progress import Progress, to_terminal
from elivepatch.server import settings as server_settings
from elivepatch.server.downloads import Removed, collect_downloads, collect_packages, collect_trials
from elivepatch.toolchains.roots import Root
from elivepatch.workshop import Workshop

_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")


def _workshop() -> Workshop:
    """The workshop of the settings; what is mistyped must not look like an empty cache."""
    workshop = server_settings.load().workshop
    if workshop.cache.exists():
        workshop.check()
    else:
        click.echo(f"elivepatch-server: the cache {workshop.cache} is not there yet", err=True)
    return workshop


# -- build roots


@click.group("root")
def root() -> None:
    """Build roots: the compilers and tools that kernels were built with."""


@root.command("list")
@_JSON
def root_list(as_json: bool) -> None:
    """List the build roots, and those that can be made."""
    roots = _workshop().roots
    installed = roots.installed()
    missing = [name for name in roots.names() if name not in {one.name for one in installed}]
    if as_json:
        _print([*(root_data(one) for one in installed), *({"name": name, "installed": False} for name in missing)])
        return
    rows = [
        (one.name, f"{one.packages} packages", _date(one.created), f"kpatch {one.kpatch or 'none'}", one.digest[:12])
        for one in installed
    ]
    _table([*rows, *((name, "not made", "", "", "") for name in missing)])


@root.command("add")
@click.argument("name")
@_JSON
def root_add(name: str, as_json: bool) -> None:
    """Make a build root, from the packages of the suite of that name; about two minutes."""
    roots = _workshop().roots
    _require_recipe(name, roots.names())
    made = roots.ensure(name, Progress(to_terminal(sys.stderr)))
    if as_json:
        _print(root_data(made))
    else:
        click.echo(f"{made.name}: {made.packages} packages, digest {made.digest[:12]}")


@root.command("remove")
@click.argument("name")
@_JSON
def root_remove(name: str, as_json: bool) -> None:
    """Remove a build root. Kernels prepared with it stay; they are of use again if the root is made alike."""
    roots = _workshop().roots
    _require_recipe(name, roots.names())
    gone = roots.get(name)
    size = disk_usage(gone.path)
    roots.remove(name)
    if as_json:
        _print({"name": name, "removed": True, "freed": size})
    else:
        click.echo(f"{name}: removed, {_size(size)} freed")


@root.command("verify")
@click.argument("name")
@_JSON
def root_verify(name: str, as_json: bool) -> None:
    """Check that a build root still holds the packages that were recorded when it was made."""
    roots = _workshop().roots
    _require_recipe(name, roots.names())
    roots.verify(name)
    found = roots.get(name)
    if as_json:
        _print({**root_data(found), "verified": True})
    else:
        click.echo(f"{name}: as it was made, {found.packages} packages, digest {found.digest[:12]}")


def _require_recipe(name: str, known: Sequence[str]) -> None:
    """Names are looked up, never used as paths."""
    if name not in known:
        raise NotFoundError(f"There is no recipe for a build root '{name}'.", hint=f"Known: {', '.join(known)}.")


def root_data(one: Root) -> dict[str, object]:
    """A build root as it is printed with ``--json``; sizes are bytes, times seconds since the epoch."""
    return {
        "name": one.name,
        "installed": True,
        "path": str(one.path),
        "digest": one.digest,
        "packages": one.packages,
        "created": one.created,
        "kpatch": one.kpatch,
        "size": disk_usage(one.path),
    }


# -- prepared kernels


@click.group("kernel")
def kernel() -> None:
    """Prepared kernels: what all builds for one kernel share."""


@kernel.command("list")
@_JSON
def kernel_list(as_json: bool) -> None:
    """List the prepared kernels, the most recently used first."""
    store = _workshop().kernels.store
    found = list_kernels(store)[::-1]
    for entry in store.entries():
        if read_entry(entry) is None and entry.path.exists():
            click.echo(f"{entry.key} cannot be read: elivepatch-server kernel remove {entry.key}", err=True)
    if as_json:
        _print(found)
    elif found:
        _table(
            [
                (
                    str(one["key"])[:12],
                    str(one["release"]),
                    str(one["build_id"])[:12],
                    str(one["source"]),
                    _size(one["size"]),
                    _date(one["last_used"]),
                )
                for one in found
            ]
        )
    else:
        click.echo("No kernel is prepared; the first build for one prepares it.")


@kernel.command("show")
@click.argument("key")
@_JSON
def kernel_show(key: str, as_json: bool) -> None:
    """Show a prepared kernel, named by its key, the beginning of it, or its release."""
    store = _workshop().kernels.store
    entry = choose(store, key)
    data, parts = kernel_data(entry), parts_of(entry)
    if as_json:
        _print({**data, "parts": parts})
        return
    for name, value in data.items():
        shown = _size(value) if name == "size" else _date(value) if name == "last_used" else value
        click.echo(f"{name:16} {shown}")
    for name, size in parts.items():
        click.echo(f"{'':16} {name}: {_size(size)}")


@kernel.command("remove")
@click.argument("key")
@_JSON
def kernel_remove(key: str, as_json: bool) -> None:
    """Remove a prepared kernel; the next build for it prepares it again."""
    store = _workshop().kernels.store
    entry = choose(store, key)
    if not store.remove(entry.key):
        raise BusyError(f"The prepared kernel {entry.key} is in use.", hint="Try again when its builds have ended.")
    if as_json:
        _print({"key": entry.key, "removed": True, "freed": entry.size})
    else:
        click.echo(f"{entry.key}: removed, {_size(entry.size)} freed")


def choose(store: Store, name: str) -> Entry:
    """The entry of a prepared kernel by its key, the beginning of that, or its release.

    Raises NotFoundError where there is none, or more than one.
    """
    entries = {entry.key: entry for entry in store.entries()}
    known = {str(one["key"]): one for one in list_kernels(store)}
    if name in entries:
        return entries[name]
    releases = {key: one["release"] for key, one in known.items()}
    fitting = [key for key in sorted(entries) if name and (key.startswith(name) or releases.get(key) == name)]
    if len(fitting) != 1:
        what = f"{len(fitting)} prepared kernels are called" if fitting else "There is no prepared kernel"
        shown = {key: f"{key} ({one['source']}, build ID {one['build_id']})" for key, one in known.items()}
        listed = "; ".join(shown.get(key, key) for key in fitting[:10])
        raise NotFoundError(
            f"{what} '{name[:100]}'.",
            hint=f"Name one by its key: {listed}." if fitting else "See: elivepatch-server kernel list",
        )
    return entries[fitting[0]]


def kernel_data(entry: Entry) -> dict[str, object]:
    """A prepared kernel as it is printed with ``--json``; sizes are bytes, times seconds since the epoch.

    Raises NotFoundError for one that is damaged.
    """
    data = read_entry(entry)
    if data is None:
        raise NotFoundError(
            f"The prepared kernel {entry.key} cannot be read: it is damaged, or was removed just now.",
            hint=f"Remove it: elivepatch-server kernel remove {entry.key}",
        )
    objects = entry.path / "objects"
    return {
        "key": entry.key,
        "release": data.release,
        "build_id": data.build_id,
        "source": data.origin,
        "compiler": data.compiler,
        "config_sha256": data.config_sha256,
        "modules": len(data.modules),
        "kept_objects": sum(not path.name.startswith(".") for path in objects.iterdir()) if objects.is_dir() else 0,
        "size": entry.size,
        "last_used": entry.last_used,
    }


def parts_of(entry: Entry) -> dict[str, int]:
    """What the parts of a prepared kernel take, in bytes."""
    return {path.name: disk_usage(path) for path in sorted(entry.path.iterdir()) if path.is_dir()}


# -- cleaning


@click.command("gc")
@click.option(
    "--limit",
    type=click.IntRange(0),
    metavar="BYTES",
    help="Bytes that kernels and sources may take; by default what the setting kernels_limit_bytes says.",
)
@click.option(
    "--packages",
    is_flag=True,
    help="Remove downloads that no prepared kernel was made of, and git mirrors unused for a month, too.",
)
@_JSON
def gc(limit: int | None, packages: bool, as_json: bool) -> None:
    """Remove kernels, sources and images of hosts, the least recently used first, until they are within a limit.

    What is in use stays; so do build roots, and what was downloaded within the last hour.
    """
    settings = server_settings.load()
    workshop = settings.workshop
    if workshop.cache.exists():
        workshop.check()
    limit_bytes = settings.kernels_limit_bytes if limit is None else limit
    removed = collect(workshop.kernels, limit_bytes, workshop.images)
    if packages:
        removed += [*collect_packages(workshop), *collect_downloads(workshop)]
    removed += collect_trials(workshop)
    if as_json:
        freed = sum(one.size for one in removed)
        _print({"freed": freed, "removed": [{"kind": r.kind, "name": r.name, "size": r.size} for r in removed]})
        return
    for one in removed:
        click.echo(f"{one.kind:8} {one.name}: removed, {_size(one.size)} freed")
    if not removed:
        click.echo("Nothing to remove.")


def collect(kernels: Kernels, limit_bytes: int, images: HostImages | None = None) -> list[Removed]:
    """Bring what kernels are made of and from within a limit in bytes, the least recently used first.

    That is prepared kernels, sources, whole builds that came to nothing, and images that hosts have sent.
    """
    removed: list[Removed] = []
    stores = {"kernel": kernels.store, "source": kernels.sources, "build": kernels.builds}
    if images is not None:
        stores["image"] = images.store
    for store in stores.values():
        freed = store.sweep()
        if freed:
            removed.append(Removed("left", "of processes that were killed", freed))
    entries = [(kind, store, entry) for kind, store in stores.items() for entry in store.entries()]
    total = sum(entry.size for _, _, entry in entries)
    for kind, store, entry in sorted(entries, key=lambda item: item[2].last_used):
        if total <= limit_bytes:
            break
        if store.remove(entry.key):
            total -= entry.size
            removed.append(Removed(kind, entry.key, entry.size))
    return removed


# -- output


def _print(data: object) -> None:
    click.echo(json.dumps(data, indent=2))


def _table(rows: Iterable[Sequence[str]]) -> None:
    listed = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    for row in listed:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _size(size: object) -> str:
    return f"{size / 1024**2:.0f} MB" if isinstance(size, int) else "unknown"


def _date(seconds: object) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if isinstance(seconds, int | float) else "unknown"
