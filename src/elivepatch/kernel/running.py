# SPDX-License-Identifier: GPL-2.0-or-later
"""The facts of a running host: which kernel it runs, what is patched in it, and what it lets in.

Everything is read below a root, ``/`` unless told otherwise, so that a tree of plain files can stand for a host.
What a host does not tell is None or empty, never guessed.
"""

from __future__ import annotations

import contextlib
import platform
import re
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from elivepatch.errors import InvalidInputError, UnavailableError

#: What a release may look like where it becomes part of a path. The kernel itself only limits it to 64 characters.
RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~_-]{0,127}")
Lockdown = Literal["none", "integrity", "confidentiality"]
_LOCKDOWN: dict[str, Lockdown] = {"none": "none", "integrity": "integrity", "confidentiality": "confidentiality"}
_FACT_BYTES = 64 * 1024
_NT_GNU_BUILD_ID = 3
_NOTES_HINT = "Compare with what 'readelf -n' says about the same notes."

#: Documentation/admin-guide/tainted-kernels.rst: letter and meaning of each bit, bit 0 first.
TAINT_BITS: tuple[tuple[str, str], ...] = (
    ("P", "proprietary module was loaded"),
    ("F", "module was force loaded"),
    ("S", "kernel runs on an out of specification system"),
    ("R", "module was force unloaded"),
    ("M", "processor reported a machine check exception"),
    ("B", "bad page referenced or unexpected page flags"),
    ("U", "taint requested by userspace"),
    ("D", "kernel died recently (OOPS or BUG)"),
    ("A", "ACPI table overridden by user"),
    ("W", "kernel issued a warning"),
    ("C", "staging driver was loaded"),
    ("I", "workaround for a bug in platform firmware applied"),
    ("O", "externally built (out-of-tree) module was loaded"),
    ("E", "unsigned module was loaded"),
    ("L", "soft lockup occurred"),
    ("K", "kernel has been live patched"),
    ("X", "auxiliary taint, defined by the distribution"),
    ("T", "kernel was built with the struct randomization plugin"),
    ("N", "an in-kernel test has been run"),
    ("J", "userspace used a mutating debug operation in fwctl"),
)


@dataclass(frozen=True)
class Note:
    """An ELF note: whose it is, its type, and its content."""

    owner: str
    type: int
    content: bytes


@dataclass(frozen=True, order=True)
class PatchedFunction:
    """A function of a livepatch in sysfs. ``object`` is vmlinux or a module's name; ``sympos`` counts from 1."""

    object: str
    function: str
    sympos: int


@dataclass(frozen=True)
class Livepatch:
    """A livepatch that the kernel holds. ``transition`` is true while tasks move to (or from) it.

    ``patched`` says for each klp object whether the kernel has it loaded and patched (None before Linux 6.1, which
    does not tell), ``replace`` whether it ends all others when its transition does (None before Linux 6.11).
    """

    name: str
    enabled: bool
    transition: bool
    functions: tuple[PatchedFunction, ...]
    patched: tuple[tuple[str, bool | None], ...] = ()
    replace: bool | None = None


@dataclass(frozen=True)
class ModulePolicy:
    """What the kernel demands of a module before it lets it in.

    ``lockdown`` is None where the kernel has none, or does not show it (securityfs not mounted).
    """

    signature_enforced: bool
    loading_disabled: bool
    lockdown: Lockdown | None

    @property
    def signature_needed(self) -> bool:
        """Whether an unsigned module is refused."""
        return self.signature_enforced or self.lockdown in {"integrity", "confidentiality"}


@dataclass(frozen=True, kw_only=True)
class RunningKernel:
    """What a host says about the kernel it runs. ``version`` is /proc/version, ``taint`` the bit mask."""

    release: str
    version: str
    machine: str
    build_id: str | None
    distribution: str
    distribution_version: str | None
    compiler: str | None
    taint: int | None
    boot_id: str | None
    livepatches: tuple[Livepatch, ...]
    policy: ModulePolicy
    can_livepatch: bool


def running_kernel(root: Path = Path("/")) -> RunningKernel:
    """The facts of the host whose file systems lie below ``root``.

    Raises UnavailableError where /proc does not name the kernel, InvalidInputError where what it says is malformed.
    """
    release = _text(root / "proc/sys/kernel/osrelease")
    if release is None:
        raise UnavailableError(
            "The running kernel cannot be read from /proc/sys/kernel/osrelease.", hint="Mount /proc on this host."
        )
    if not RELEASE.fullmatch(release):
        raise InvalidInputError(
            f"The running kernel calls its release {release!r}.",
            hint="Only letters, digits and . + ~ _ - can be handled: set another CONFIG_LOCALVERSION.",
        )
    version = _text(root / "proc/version") or ""
    distribution = os_release(root)
    return RunningKernel(
        release=release,
        version=version,
        machine=_text(root / "proc/sys/kernel/arch") or platform.machine(),
        build_id=kernel_build_id(root),
        distribution=distribution.get("ID") or "linux",
        distribution_version=distribution.get("VERSION_ID") or None,
        compiler=compiler_of(version),
        taint=taint(root),
        boot_id=_text(root / "proc/sys/kernel/random/boot_id"),
        livepatches=livepatches(root),
        policy=module_policy(root),
        can_livepatch=(root / "sys/kernel/livepatch").is_dir(),
    )


def kernel_build_id(root: Path = Path("/")) -> str | None:
    """The build ID of the running kernel in hex, from /sys/kernel/notes; None where it has none."""
    try:
        with (root / "sys/kernel/notes").open("rb") as stream:
            data = stream.read(_FACT_BYTES)
    except OSError:
        return None
    return build_id_of(data)


def build_id_of(notes: bytes) -> str | None:
    """The build ID (hex) in a sequence of ELF notes; None where there is none. Raises InvalidInputError."""
    for note in parse_notes(notes):
        if note.owner == "GNU" and note.type == _NT_GNU_BUILD_ID:
            if not 8 <= len(note.content) <= 32:
                raise InvalidInputError(f"A build ID of {len(note.content)} bytes is not one.", hint=_NOTES_HINT)
            return note.content.hex()
    return None


def parse_notes(data: bytes, *, byteorder: Literal["little", "big"] = sys.byteorder) -> Iterator[Note]:
    """The ELF notes in ``data`` (elf(5), "Notes"; words of 4 bytes, name and content padded to 4).

    Raises InvalidInputError where a note reaches beyond the end.
    """
    header = struct.Struct("<III" if byteorder == "little" else ">III")
    position = 0
    while position < len(data):
        if position + header.size > len(data):
            raise InvalidInputError(f"The ELF notes end within a header, at byte {position}.", hint=_NOTES_HINT)
        name_size, content_size, kind = header.unpack_from(data, position)
        name_at = position + header.size
        content_at = name_at + _padded(name_size)
        end = content_at + content_size
        if end > len(data):
            raise InvalidInputError(f"The ELF note at byte {position} reaches beyond the end.", hint=_NOTES_HINT)
        owner = data[name_at : name_at + name_size].rstrip(b"\0").decode("ascii", errors="replace")
        yield Note(owner=owner, type=kind, content=data[content_at:end])
        position = content_at + _padded(content_size)


def _padded(size: int) -> int:
    return (size + 3) & ~3


def os_release(root: Path = Path("/")) -> dict[str, str]:
    """The fields of os-release, /etc before /usr/lib as os-release(5) says; empty where there is none."""
    for place in ("etc/os-release", "usr/lib/os-release"):
        text = _text(root / place)
        if text is not None:
            return parse_os_release(text)
    return {}


def parse_os_release(text: str) -> dict[str, str]:
    """The assignments of an os-release file, quoting undone; lines that are no assignment are passed over."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", line.strip())
        if match:
            value = _unquoted(match[2].strip())
            if value is not None:
                fields[match[1]] = value
    return fields


def _unquoted(value: str) -> str | None:
    """A shell word as os-release(5) allows it: no variables, no concatenation; None for anything else."""
    if value[:1] == "'":
        return value[1:-1] if re.fullmatch(r"'[^']*'", value) else None
    if value[:1] == '"':
        if not re.fullmatch(r'"(?:[^"\\]|\\.)*"', value):
            return None
        return re.sub(r'\\([\\"$`])', r"\1", value[1:-1])
    if re.search(r"[\s\"'`$;&|<>()]", value):
        return None
    return re.sub(r"\\(.)", r"\1", value)


def compiler_of(version: str) -> str | None:
    """The compiler that /proc/version names.

    init/version-timestamp.c: ``Linux version RELEASE (USER@HOST) (COMPILER, LINKER) VERSION``, where compiler and
    linker may hold parentheses themselves; kernels before 5.8 name no linker.
    """
    groups = list(_outer_groups(version))
    if len(groups) < 2:
        return None
    text = groups[1]
    depth, cut = 0, len(text)
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and text.startswith(", ", index):
            cut = index
            break
    return text[:cut].strip() or None


def _outer_groups(text: str) -> Iterator[str]:
    depth, start = 0, 0
    for index, character in enumerate(text):
        if character == "(":
            depth += 1
            if depth == 1:
                start = index + 1
        elif character == ")" and depth:
            depth -= 1
            if depth == 0:
                yield text[start:index]


def taint(root: Path = Path("/")) -> int | None:
    """The taint mask of the running kernel."""
    return _number(root / "proc/sys/kernel/tainted")


def taint_flags(mask: int) -> tuple[tuple[str, str], ...]:
    """Letter and meaning of each bit that is set, in the order of the bits."""
    flags = [flag for bit, flag in enumerate(TAINT_BITS) if mask >> bit & 1]
    flags += [("?", f"unknown (bit {bit})") for bit in range(len(TAINT_BITS), mask.bit_length()) if mask >> bit & 1]
    return tuple(flags)


def module_policy(root: Path = Path("/")) -> ModulePolicy:
    """What the running kernel demands of modules."""
    shown = re.search(r"\[(none|integrity|confidentiality)\]", _text(root / "sys/kernel/security/lockdown") or "")
    return ModulePolicy(
        signature_enforced=_text(root / "sys/module/module/parameters/sig_enforce") == "Y",
        loading_disabled=_number(root / "proc/sys/kernel/modules_disabled") == 1,
        lockdown=_LOCKDOWN.get(shown[1]) if shown else None,
    )


def livepatches(root: Path = Path("/")) -> tuple[Livepatch, ...]:
    """The livepatches that the kernel holds, by name (Documentation/ABI/testing/sysfs-kernel-livepatch)."""
    found: list[Livepatch] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for place in sorted((root / "sys/kernel/livepatch").iterdir()):
            patch = livepatch(place.name, root)
            if patch:
                found.append(patch)
    return tuple(found)


def livepatch(name: str, root: Path = Path("/")) -> Livepatch | None:
    """One livepatch of the running kernel; None where it does not hold it (any more)."""
    place = root / "sys/kernel/livepatch" / name
    enabled, transition = _number(place / "enabled"), _number(place / "transition")
    if enabled is None or transition is None:
        return None
    functions: list[PatchedFunction] = []
    patched: list[tuple[str, bool | None]] = []
    with contextlib.suppress(FileNotFoundError):  # it may go while we look
        for klp_object in sorted(path for path in place.iterdir() if path.is_dir()):
            with contextlib.suppress(FileNotFoundError):  # one object may go alone, when an atomic replace ends
                entries = sorted(path.name for path in klp_object.iterdir())
                state = _number(klp_object / "patched")
                patched.append((klp_object.name, None if state is None else state == 1))
                for entry in entries:
                    function, comma, sympos = entry.rpartition(",")
                    if comma and sympos.isdecimal():
                        functions.append(PatchedFunction(klp_object.name, function, int(sympos)))
    replace = _number(place / "replace")
    return Livepatch(
        name, enabled == 1, transition == 1, tuple(functions), tuple(patched), None if replace is None else replace == 1
    )


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as stream:
            return stream.read(_FACT_BYTES).decode("utf-8", errors="replace").strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isdecimal() else None
