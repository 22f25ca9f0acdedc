# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel configurations: the ``.config`` format of kconfig (Documentation/kbuild/kconfig.rst)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from elivepatch.errors import InvalidInputError

_SET = re.compile(r"CONFIG_([A-Za-z0-9_]+)=(.*)")
_UNSET = re.compile(r"# CONFIG_([A-Za-z0-9_]+) is not set")


@dataclass(frozen=True)
class KernelConfig:
    """A configuration. ``options`` maps names without ``CONFIG_`` to the text after ``=``; unset options are absent."""

    options: Mapping[str, str]

    def enabled(self, name: str) -> bool:
        """Whether an option is built in or, for a tristate, at least a module."""
        return self.options.get(name) in {"y", "m"}

    def string(self, name: str) -> str | None:
        """The value of a string option without its quotes."""
        value = self.options.get(name)
        if value is None or len(value) < 2 or value[0] != '"' or value[-1] != '"':
            return value
        return re.sub(r"\\(.)", r"\1", value[1:-1])

    @property
    def sha256(self) -> str:
        """A digest of what the configuration says, whatever the order and the comments."""
        text = "".join(f"{name}={value}\n" for name, value in sorted(self.options.items()))
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, other: KernelConfig) -> list[str]:
        """One line per option that the two set differently: ``NAME: here, there``."""
        names = sorted(self.options.keys() | other.options.keys())
        return [
            f"{name}: {self.options.get(name, 'n')}, {other.options.get(name, 'n')}"
            for name in names
            if self.options.get(name, "n") != other.options.get(name, "n")
        ]


def parse_config(data: bytes) -> KernelConfig:
    """Parse a ``.config``.

    Raises InvalidInputError for a line that kconfig would not write, naming it, and for a file that sets nothing.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            "The configuration is neither text nor gzip.", hint="Give /boot/config-RELEASE, or /proc/config.gz."
        ) from error
    options: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if match := _SET.fullmatch(line):
            options[match[1]] = match[2]
        elif match := _UNSET.fullmatch(line):
            options.pop(match[1], None)
        elif line and not line.startswith("#"):
            raise InvalidInputError(
                f"Line {number} of the configuration is not a line of a .config: {line[:80]!r}.",
                hint="Give the configuration of the running kernel, for example /boot/config-$(uname -r).",
            )
    if not options:
        raise InvalidInputError("The configuration sets no option.", hint="Give the file /boot/config-$(uname -r).")
    return KernelConfig(options)
