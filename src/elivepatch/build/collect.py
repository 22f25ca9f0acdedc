# SPDX-License-Identifier: GPL-2.0-or-later
"""Taking results out of directories that programs in the sandbox have written.

What runs there may be hostile: a result can be a symbolic link to a file of this machine, or lie behind one. So each is
opened without following any, and copied to a place of ours before it is looked at.
"""

from __future__ import annotations

from pathlib import Path

from elivepatch.errors import InputTooLargeError, InvalidPatchError, SandboxViolationError
from elivepatch.patches.tree import Tree


def collect(directory: Path, name: str, target: Path) -> bool:
    """Copy the file ``name`` (a path relative to the directory) to ``target``; False where there is none.

    Raises SandboxViolationError for anything but a regular file of a sensible size.
    """
    try:
        file = Tree(directory).read(name)
    except (InvalidPatchError, InputTooLargeError) as error:
        raise SandboxViolationError(
            f"The build left something else than a file as its result {name}.",
            hint="The patch changes how the kernel is built in a way that is not allowed.",
        ) from error
    if file is None:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(file.data)
    return True
