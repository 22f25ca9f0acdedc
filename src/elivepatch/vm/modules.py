# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel modules for guests: which files a module needs, in the order they are loaded.

`modules.dep` says it where depmod was run. In a package that was only unpacked it was not, and then each module says
itself what it depends on: the strings ``depends=`` and ``softdep=`` of its section ``.modinfo`` (modinfo(8), and
include/linux/module.h in the kernel's source).
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from elivepatch.errors import InvalidInputError, NotFoundError
from elivepatch.kernel.compressed import read_module

_PACKAGE_HINT = "Get the kernel's package again: what was unpacked of it is damaged."


def module_name(path: Path | str) -> str:
    """The name under which the kernel knows the module of this file: without suffixes, ``_`` for ``-``."""
    return Path(path).name.split(".ko")[0].replace("-", "_")


def modinfo(elf: bytes) -> dict[str, tuple[str, ...]]:
    """What a module says of itself: each key of its ``.modinfo`` with its values in order.

    Raises InvalidInputError for what is not a kernel module.
    """
    try:
        section = ELFFile(io.BytesIO(elf)).get_section_by_name(".modinfo")
    except (ELFError, AssertionError, ValueError) as error:
        raise InvalidInputError(f"This is not a kernel module: {error}", hint="A module is an ELF file.") from error
    if section is None:
        raise InvalidInputError("This is not a kernel module: it has no section .modinfo.", hint=_PACKAGE_HINT)
    data: bytes = section.data()
    found: dict[str, tuple[str, ...]] = {}
    for entry in data.split(b"\0"):
        key, equals, value = entry.decode(errors="replace").partition("=")
        if equals:
            found[key] = (*found.get(key, ()), value)
    return found


@dataclass(frozen=True)
class LoadableModule:
    """A module as a guest loads it: its name, and its ELF file uncompressed."""

    name: str
    elf: bytes = field(repr=False)


class ModuleDirectory:
    """The modules of one kernel, as in ``/usr/lib/modules/RELEASE``; depmod need not have been run there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = {module_name(path): path for path in sorted(directory.rglob("*.ko*")) if path.is_file()}
        self._listed = _read_modules_dep(directory / "modules.dep")
        self._builtin = _read_builtin(directory / "modules.builtin")
        self._elf: dict[str, bytes] = {}

    def __contains__(self, name: str) -> bool:
        return module_name(name) in self._files

    def elf(self, name: str) -> bytes:
        """The uncompressed ELF file of a module. Raises NotFoundError for one that is not here."""
        if name not in self._files:
            raise NotFoundError(
                f"The kernel has no module '{name}' below {self._directory}.",
                hint="Check the name of the klp object, and that the modules belong to this kernel.",
            )
        if name not in self._elf:
            self._elf[name] = read_module(self._files[name])
        return self._elf[name]

    def with_dependents(self, names: Iterable[str], among: Iterable[str]) -> set[str]:
        """Some modules, and those of others that cannot be loaded without them; ``among`` is in the order of load."""
        found = set(names)
        for name in among:
            if found & {module_name(needed) for needed in self._hard(name)}:
                found.add(name)
        return found

    def _hard(self, name: str) -> list[str]:
        listed = self._listed.get(name)
        if listed is not None:
            return list(listed)
        return [n for v in modinfo(self.elf(name)).get("depends", ()) for n in v.split(",") if n]

    def _needs(self, name: str) -> list[str]:
        info = modinfo(self.elf(name))
        hard = self._hard(name)
        # a soft dependency is a wish: one that the kernel has built in is no module here
        soft = [known for wish in _softdeps(info.get("softdep", ())) for known in self._answering(wish)]
        return [module_name(n) for n in (*soft, *hard)]

    def _answering(self, name: str) -> list[str]:
        """The module of that name, or the plain one that has the name as an alias, if there is one.

        Only depmod lists aliases, but what asks for an algorithm (``crc32c``, or since 6.12 ``crypto-crc32c``, see
        MODULE_ALIAS_CRYPTO in include/crypto/algapi.h) gets it from NAME_generic.
        """
        plain = name.removeprefix("crypto-")
        return [known for known in (name, plain, f"{plain}_generic") if known in self][:1]

    def load_order(self, names: Iterable[str]) -> list[LoadableModule]:
        """The modules of these names and all that they need, each behind what it needs.

        A name that the kernel says it has built in needs nothing. Raises NotFoundError for a module that the kernel
        does not have.
        """
        order: dict[str, LoadableModule] = {}
        visiting: set[str] = set()

        def visit(name: str) -> None:
            if name in order or name in visiting or (name in self._builtin and name not in self):
                return
            visiting.add(name)
            for needed in self._needs(name):
                visit(needed)
            order[name] = LoadableModule(name, self.elf(name))

        for name in names:
            visit(module_name(name))
        return list(order.values())


def _softdeps(values: Iterable[str]) -> list[str]:
    """The names behind ``pre:`` (modprobe.d(5)); those behind ``post:`` may as well not be there."""
    found: list[str] = []
    for value in values:
        before = False
        for word in value.split():
            if word.endswith(":"):
                before = word == "pre:"
            elif before:
                found.append(word)
    return found


def _read_modules_dep(path: Path) -> dict[str, tuple[str, ...]]:
    if not path.is_file():
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        file, colon, needed = line.partition(":")
        if colon:
            found[module_name(file)] = tuple(module_name(word) for word in needed.split())
    return found


def _read_builtin(path: Path) -> frozenset[str]:
    """The names of what would be modules in another configuration (Documentation/kbuild/kbuild.rst)."""
    if not path.is_file():
        return frozenset()
    return frozenset(module_name(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
