# SPDX-License-Identifier: GPL-2.0-or-later
"""Which source files of a kernel include a header: an index over what the kernel contains.

Where no build has left dependency files, the ``#include`` lines are all there is. They are followed without looking at
``#if``, so the index says "may include": it names too many files, and must not miss one. The search order is that of
kbuild's ``c_flags`` (scripts/Makefile.lib): the includer's own directory for ``"…"``, then LINUXINCLUDE, and last what
the makefiles of the directories add, which is not worked out: there, every file whose path ends so is taken.
"""

from __future__ import annotations

import gzip
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from posixpath import basename, dirname, normpath

from pydantic import BaseModel, ValidationError

#: Raised when what is written changes: an index of another format is made again.
_FORMAT = 2
#: An include of a macro is kept as ``=NAME``; where nothing defines it to a file name, it may be any file.
_MACRO = "="
#: ``#include TRACE_INCLUDE(TRACE_INCLUDE_FILE)`` of include/trace/define_trace.h and its like reads the header again
#: that has included it and that this macro names: what that includes, its includer has included already.
_TRACE = "TRACE_INCLUDE_FILE"
_INCLUDE = re.compile(
    rb"""^[ \t]*\#(?:[ \t]|\\\n|/\*.*?\*/)*include(?:_next)?(?:[ \t]|\\\n|/\*.*?\*/)*
    (?:"(?P<quoted>[^"\n]+)"|<(?P<angled>[^>\n]+)>|(?P<macro>[A-Za-z_]\w*(?:\([^)\n]*\))?))""",
    re.MULTILINE | re.VERBOSE,
)
#: A macro that stands for a file name, and the way the trace headers name themselves.
_NAMED = re.compile(
    rb"""^[ \t]*\#[ \t]*define[ \t]+(?P<name>\w+)[ \t]+(?P<spelled>"[^"\n]+"|<[^>\n]+>)[ \t]*$""",
    re.MULTILINE | re.VERBOSE,
)
_TRACE_FILE = re.compile(rb"^[ \t]*#[ \t]*define[ \t]+TRACE_INCLUDE_FILE[ \t]+([\w/-]+)", re.MULTILINE)
_FORCED = re.compile(r"-include\s+(\S+\.h)\b")
_MAKEFILES = ("Makefile", "Kbuild")
#: The top directories that hold nothing a kernel is compiled from.
_OUTSIDE = frozenset(("Documentation", "tools", "samples", "LICENSES", "rust", ".git"))


@dataclass(frozen=True)
class Tree:
    """The files of a kernel's tree: layers over each other, the topmost first, and paths that the patch has changed.

    ``texts`` are files as the patch leaves them; None is a file that it removes.
    """

    layers: tuple[Path, ...]
    texts: Mapping[str, bytes | None] = field(default_factory=dict[str, bytes | None])

    def read(self, path: str) -> bytes:
        """The text of a file; empty where it cannot be read."""
        if path in self.texts:
            return self.texts[path] or b""
        for layer in self.layers:
            try:
                return (layer / path).read_bytes()
            except OSError:
                continue
        return b""

    def files(self) -> set[str]:
        """The paths of all files that something could include."""
        found: set[str] = set()
        for layer in self.layers:
            top = str(layer)
            for directory, names, files in os.walk(top):
                place = directory[len(top) + 1 :]
                if not place:
                    names[:] = [name for name in names if name not in _OUTSIDE]
                found.update(f"{place}/{name}" if place else name for name in files)
        found |= {path for path, text in self.texts.items() if text is not None}
        return found - {path for path, text in self.texts.items() if text is None}


@dataclass(frozen=True)
class Scanned:
    """What one file says: its includes as spelled (``"x.h"``, ``<x.h>``, ``=MACRO``), and macros that name files."""

    includes: tuple[str, ...]
    macros: tuple[tuple[str, str], ...] = ()


def scan(text: bytes) -> Scanned:
    """The includes of a file, in any branch of any conditional, and in comments too."""
    found: dict[str, None] = {}
    for match in _INCLUDE.finditer(text):
        quoted, angled, macro = match.group("quoted", "angled", "macro")
        if quoted is not None:
            found[f'"{quoted.decode(errors="replace")}"'] = None
        elif angled is not None:
            found[f"<{angled.decode(errors='replace')}>"] = None
        else:
            found[f"{_MACRO}{macro.decode()}"] = None
    macros = [(m["name"].decode(), m["spelled"].decode(errors="replace")) for m in _NAMED.finditer(text)]
    macros += [(_TRACE, f"<{m[1].decode()}.h>") for m in _TRACE_FILE.finditer(text)]
    return Scanned(tuple(found), tuple(macros))


@dataclass(frozen=True)
class SearchPath:
    """Where includes are looked for: directories in order, and headers that every file gets before its first line."""

    directories: tuple[str, ...]
    forced: tuple[str, ...]

    @staticmethod
    def of(linux_include: str) -> SearchPath:
        """From kbuild's LINUXINCLUDE, relative to the top of the tree."""
        words = linux_include.split()
        directories = [normpath(word.removeprefix("-I")) for word in words if word.startswith("-I")]
        forced = [normpath(after) for word, after in pairwise(words) if word == "-include"]
        # the last one is not in LINUXINCLUDE, c_flags adds it
        return SearchPath(tuple(directories), (*forced, "include/linux/compiler_types.h"))


class _Resolver:
    """From an include as spelled to the files of a tree that it can be."""

    def __init__(self, files: set[str], search: SearchPath) -> None:
        self.files = files
        self._search = search
        self._by_name: dict[str, list[str]] = {}
        arch = tuple(place.removesuffix("include") for place in search.directories if place.startswith("arch/"))
        for path in files:
            if not path.startswith("arch/") or path.startswith(arch):
                self._by_name.setdefault(basename(path), []).append(path)
        self.macros: dict[str, set[tuple[str, str]]] = {}
        self._known: dict[str, tuple[str, ...]] = {}

    def resolve(self, includer: str, spelled: str) -> tuple[str, ...]:
        """The files; none where it is no file of the tree (a generated one, the compiler's own)."""
        if spelled.startswith(_MACRO):
            name = spelled.removeprefix(_MACRO)
            if _TRACE in name:
                return ()
            return tuple({f for where, value in self.macros.get(name, ()) for f in (self.resolve(where, value) or ())})
        name = spelled[1:-1]
        if spelled[0] == '"':
            beside = normpath(f"{dirname(includer)}/{name}")
            if beside in self.files:
                return (beside,)
        if name not in self._known:
            self._known[name] = self._search_for(name)
        return self._known[name]

    def _search_for(self, name: str) -> tuple[str, ...]:
        for directory in self._search.directories:
            path = normpath(f"{directory}/{name}")
            if path in self.files:
                return (path,)
        # with -I of a makefile, from wherever: of "../a/b.h", what comes after the last ".."
        tail = normpath(name).split("../")[-1]
        return tuple(path for path in self._by_name.get(basename(tail), ()) if f"/{path}".endswith(f"/{tail}"))


@dataclass(frozen=True)
class IncludeIndex:
    """The index. ``units`` are the source files that the kernel contains, each with the objects it may belong to.

    ``scanned`` are all files that are reached from them, ``opaque`` those that include something unknown.
    ``forced`` are headers that units get by their compiler flags, by directory (an empty name is the top).
    """

    search: SearchPath
    units: Mapping[str, tuple[str, ...]]
    scanned: Mapping[str, Scanned]
    forced: Mapping[str, tuple[str, ...]]
    edges: Mapping[str, tuple[str, ...]]

    def includers(self, wanted: Collection[str]) -> dict[str, tuple[str, ...]]:
        """The units that may include one of the files, directly or not, each with what it may belong to.

        Files that include something unknown may include any file, and count always.
        """
        users, opaque = self._users
        reached = {*wanted, *opaque}
        todo = [*wanted, *opaque]
        while todo:
            for user in users.get(todo.pop(), ()):
                if user not in reached:
                    reached.add(user)
                    todo.append(user)
        everywhere = [path for path in self._all_forced() if path in reached]
        if any(path in self.search.forced for path in everywhere):
            return dict(self.units)
        directories = [place for place, forced in self.forced.items() if not reached.isdisjoint(forced)]
        return {
            unit: parents
            for unit, parents in self.units.items()
            if unit in reached or any(not place or unit.startswith(f"{place}/") for place in directories)
        }

    @cached_property
    def _users(self) -> tuple[Mapping[str, Collection[str]], Collection[str]]:
        """Who includes each file, and the files that include something unknown."""
        users: dict[str, list[str]] = {}
        for includer, included in self.edges.items():
            for path in included:
                users.setdefault(path, []).append(includer)
        return users, [path for path, scanned in self.scanned.items() if self._opaque(path, scanned, self.edges)]

    def _all_forced(self) -> Iterable[str]:
        yield from self.search.forced
        for forced in self.forced.values():
            yield from forced

    @staticmethod
    def _opaque(path: str, scanned: Scanned, edges: Mapping[str, tuple[str, ...]]) -> bool:
        unknown = [spelled for spelled in scanned.includes if spelled.startswith(_MACRO) and _TRACE not in spelled]
        return bool(unknown) and not edges.get(path)

    def patched(self, tree: Tree) -> IncludeIndex:
        """The index as the includes are with the changed texts of the tree in place, and files that come or go."""
        edges = dict(self.edges)
        changed = {path: scan(text) for path, text in tree.texts.items() if text is not None}
        names = {basename(path) for path, text in tree.texts.items() if text is None or path not in edges}
        resolver = _Resolver(tree.files(), self.search)
        for path, scanned in {**self.scanned, **changed}.items():
            for name, spelled in scanned.macros:
                resolver.macros.setdefault(name, set()).add((path, spelled))
        for path, scanned in self.scanned.items():
            if any(basename(spelled.strip('"<>')) in names for spelled in scanned.includes):
                edges[path] = _resolve_all(resolver, path, scanned)
        for path, scanned in changed.items():
            edges[path] = _resolve_all(resolver, path, scanned)
        return replace(self, edges=edges)


def _resolve_all(resolver: _Resolver, path: str, scanned: Scanned) -> tuple[str, ...]:
    spelled = [*scanned.includes]
    # a header that has another one read in its place: none does, but nothing keeps it from it
    spelled += [value for name, value in scanned.macros if name == _TRACE and basename(value[1:-1]) != basename(path)]
    return tuple(dict.fromkeys(file for each in spelled for file in resolver.resolve(path, each)))


def make_index(tree: Tree, search: SearchPath, units: Mapping[str, Collection[str]]) -> IncludeIndex:
    """Read everything that the units reach.

    ``units`` maps source files to what they belong to, as paths from the top of the tree.
    """
    files = tree.files()
    resolver = _Resolver(files, search)
    forced = _forced(tree, files, units)
    scanned: dict[str, Scanned] = {}
    todo = [*units, *search.forced, *(path for paths in forced.values() for path in paths)]
    waiting: list[str] = []
    while todo:
        path = todo.pop()
        if path in scanned:
            continue
        scanned[path] = scan(tree.read(path))
        for name, spelled in scanned[path].macros:
            resolver.macros.setdefault(name, set()).add((path, spelled))
        if any(spelled.startswith(_MACRO) for spelled in scanned[path].includes):
            waiting.append(path)
        todo += [file for file in _resolve_all(resolver, path, scanned[path]) if file not in scanned]
        if not todo:  # a macro can name a file that was defined after its use was read
            todo = [f for each in waiting for f in _resolve_all(resolver, each, scanned[each]) if f not in scanned]
    edges = {path: _resolve_all(resolver, path, said) for path, said in scanned.items()}
    return IncludeIndex(search, {unit: tuple(owners) for unit, owners in units.items()}, scanned, forced, edges)


def _forced(tree: Tree, files: set[str], units: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Headers that makefiles give to all files of a directory (``ccflags-y += -include …``), and of those below it."""
    directories: set[str] = set()
    for unit in units:
        place = dirname(unit)
        while place and place not in directories:
            directories.add(place)
            place = dirname(place)
    found: dict[str, tuple[str, ...]] = {}
    for place in sorted(directories):
        for name in _MAKEFILES:
            if f"{place}/{name}" in files:
                for match in _FORCED.finditer(tree.read(f"{place}/{name}").decode(errors="replace")):
                    tail = match[1].rpartition(")")[2].strip("/")
                    hits = tuple(path for path in files if f"/{path}".endswith(f"/{tail}"))
                    found[place] = (*found.get(place, ()), *hits)
    return found


# -- kept with a kernel


class _Kept(BaseModel):
    """An index as it is written; files by their numbers in ``names``."""

    format: int
    names: list[str]
    directories: tuple[str, ...]
    forced_everywhere: tuple[str, ...]
    units: dict[str, tuple[str, ...]]
    forced: dict[str, tuple[str, ...]]
    files: list[tuple[int, tuple[str, ...], tuple[tuple[str, str], ...], tuple[int, ...]]]


def load_index(path: Path) -> IncludeIndex | None:
    """Read an index that was written; None where there is none of this format."""
    try:
        kept = _Kept.model_validate_json(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValidationError):
        return None
    if kept.format != _FORMAT:
        return None
    names = kept.names
    return IncludeIndex(
        SearchPath(kept.directories, kept.forced_everywhere),
        kept.units,
        {names[at]: Scanned(includes, macros) for at, includes, macros, _ in kept.files},
        kept.forced,
        {names[at]: tuple(names[to] for to in edges) for at, _, _, edges in kept.files},
    )


def save_index(index: IncludeIndex, path: Path) -> None:
    """Write an index aside and rename it: who reads it sees all of it or nothing."""
    names = sorted({*index.scanned, *(file for files in index.edges.values() for file in files)})
    numbers = {name: number for number, name in enumerate(names)}
    kept = _Kept(
        format=_FORMAT,
        names=names,
        directories=index.search.directories,
        forced_everywhere=index.search.forced,
        units=dict(index.units),
        forced=dict(index.forced),
        files=[
            (numbers[file], said.includes, said.macros, tuple(numbers[to] for to in index.edges[file]))
            for file, said in index.scanned.items()
        ],
    )
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(gzip.compress(kept.model_dump_json().encode(), 3, mtime=0))
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
