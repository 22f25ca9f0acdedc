# SPDX-License-Identifier: GPL-2.0-or-later
"""The beginning of the single-file client: finds, in the file itself, what this Python needs, and runs the program.

Nothing is unpacked. Modules are read from the archive by Python's own zipimport; a compiled one, which the C library
can load from a file only, is given to it as a file in memory (memfd_create(2)) that nobody else can name or change.

Every Python from 3.6 must be able to read this file, so that one that is too old is told so.
"""

import importlib.machinery
import importlib.util
import os
import sys

_ARCHIVE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib costs some milliseconds
_TAG = "py{}{}".format(*sys.version_info[:2])
#: MFD_CLOEXEC, and MFD_NOEXEC_SEAL (include/uapi/linux/memfd.h), which the sysctl vm.memfd_noexec can demand.
_CLOEXEC, _NOEXEC_SEAL = 1, 8
#: What the program itself says where something is not available (docs/client.md, exit status).
_UNAVAILABLE = 6


class _CompiledLoader(importlib.machinery.ExtensionFileLoader):
    """Loads a compiled module, which is that member of the archive."""

    def __init__(self, name, member):
        super().__init__(name, os.path.join(_ARCHIVE, member))  # noqa: PTH118
        self.member = member

    def create_module(self, spec):
        """Give the module to the C library as a file in memory, which lives for no longer than that."""
        try:
            descriptor = _memory(spec.name, __loader__.get_data(self.member))
        except OSError as error:
            raise ImportError(f"no file in memory: {error}") from error
        try:
            spec.origin = f"/proc/self/fd/{descriptor}"
            return super().create_module(spec)
        finally:
            spec.origin = self.path
            os.close(descriptor)


def _memory(name, data):
    try:
        descriptor = os.memfd_create(name, _CLOEXEC | _NOEXEC_SEAL)
    except OSError:  # a kernel before 6.3 does not know the second flag
        descriptor = os.memfd_create(name, _CLOEXEC)
    with os.fdopen(descriptor, "wb", closefd=False) as stream:
        stream.write(data)
    return descriptor


class _CompiledFinder:
    """Finds the compiled modules of the archive, which zipimport leaves out. ``members`` are they, by their names."""

    def __init__(self, members):
        self.members = members

    def find_spec(self, name, _path=None, _target=None):
        """The module of that name, if it is one."""
        if name not in self.members:
            return None
        loader = _CompiledLoader(name, self.members[name])
        return importlib.util.spec_from_file_location(name, loader.path, loader=loader)


def _compiled():
    """The compiled modules for this Python on this machine, as the archive's index names them. Raises OSError."""
    words = __loader__.get_data(f"{_TAG}/compiled").decode().split()
    members = dict(zip(words[::2], words[1::2]))  # noqa: B905 - older Pythons have no strict=
    ending = importlib.machinery.EXTENSION_SUFFIXES[0]  # names version, machine, and the build without the global lock
    return {name: member for name, member in members.items() if member.endswith(ending)}


def _fail(message):
    sys.stderr.write(f"elivepatch: {message}\n")
    sys.exit(_UNAVAILABLE)


def main():
    """Run the program."""
    try:
        compiled = _compiled()
    except OSError:
        compiled = {}
    if not compiled:
        _fail(
            f"This file holds nothing for this Python ({sys.implementation.name} {sys.version.split()[0]}).\n"
            "  hint: It is made for CPython @VERSIONS@ on x86_64. Run it with one of these, or install a package."
        )
    if not os.path.exists("/proc/self/fd"):  # noqa: PTH110
        _fail("/proc is not mounted.\n  hint: The client looks at the kernel through it: mount -t proc proc /proc")
    sys.meta_path.insert(0, _CompiledFinder(compiled))
    sys.path[0:1] = [os.path.join(_ARCHIVE, _TAG), os.path.join(_ARCHIVE, "lib")]  # noqa: PTH118
    sys.path.append(_ARCHIVE)  # for importlib.metadata
    try:
        from elivepatch.client.entry import main as program

        program()
    except ImportError as error:
        if error.name is not None or "no file in memory" not in str(error):
            raise
        _fail(f"This host does not let a program load code from memory: {error}\n  hint: Install the package.")


if __name__ == "__main__":
    main()
