# SPDX-License-Identifier: GPL-2.0-or-later
"""The symbol layout of a kernel: where each symbol of its text lies, as the running kernel and as its image tell it.

Two kernels of the same layout have the same functions, of the same sizes, in the same order. It is what a server-built
image is held against where the build IDs cannot be equal. Offsets are from ``_stext``, so that they do not depend on
where the kernel was put (KASLR).

What /proc/kallsyms holds of the text is what ``nm -n vmlinux`` prints, without the names that scripts/mksysmap and
scripts/kallsyms.c leave out (Linux 6.1 and 6.12: undefined, absolute and debugging symbols; ``$…``, ``.L…`` and the
other prefixes below). The same names are left out on both sides, so that it does not matter which of them a release
leaves out. Everything else stays: ``__pfx_``, ``.cold``, ``.constprop.0``, ``.isra.0``, aliases, and symbols that occur
several times. Lines with a name in brackets belong to modules, BPF programs and trampolines.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from elivepatch.errors import InputTooLargeError, InvalidInputError, UnavailableError

if TYPE_CHECKING:  # a host has no pyelftools
    from elivepatch.kernel.elf import ElfImage

KALLSYMS = Path("/proc/kallsyms")
BTF = Path("/sys/kernel/btf/vmlinux")

#: Bytes of a packed layout, packed and unpacked, and its symbols; the largest kernel known has 105 000 in 3 MB.
PACKED_LIMIT = 16 * 1024**2
_TEXT_LIMIT = 64 * 1024**2
_KALLSYMS_LIMIT = 256 * 1024**2
_SYMBOL_LIMIT = 1_000_000
_SPAN_LIMIT = 1 << 31  # the kernel's text lies in 2 GB (Documentation/arch/x86/x86_64/mm.rst)

_MAGIC = b"elivepatch symbol layout 1"
_LINE = re.compile(rb"([0-9a-f]{1,8}) ([!-~]{1,511})", re.ASCII)
#: scripts/mksysmap: prefixes, suffixes and whole names that do not go into kallsyms.
_IGNORED = re.compile(
    rb"\$|\.L|__efistub_|__pi_\$|__pi_\.L|__kvm_nvhe_|__[A-Za-z0-9]*Thunk_|__kcfi_typeid_|__pi___kcfi_typeid_"
    rb"|__crc_|__kstrtab_|__kstrtabns_|L0\Z|_SDA2?_BASE_\Z|.*(?:_from_arm|_from_thumb|_veneer)\Z"
    rb"|.*\.(?:long|plt)_branch\."
)
#: KSYM_NAME_LEN (include/linux/kallsyms.h): longer names do not go into kallsyms.
_NAME_LIMIT = 512
#: What nm calls a symbol of the text: global, local, weak, weak object (binutils, nm(1)).
_TEXT_TYPES = b"TtWwVv"

_SYMBOL = struct.Struct("<IBBHQQ")
_STT_SECTION, _STT_FILE = 3, 4
_SHN_UNDEF, _SHN_LORESERVE = 0, 0xFF00

Entry = tuple[int, bytes]


@dataclass(frozen=True)
class _Place:
    """All that lies at one offset; ``size`` reaches up to the next symbol."""

    offset: int
    size: int
    names: tuple[bytes, ...]

    @property
    def text(self) -> str:
        shown = ", ".join(name.decode() for name in self.names[:3])
        return f"{shown} and {len(self.names) - 3} more" if len(self.names) > 3 else shown


@dataclass(frozen=True)
class SymbolLayout:
    """The symbols of a kernel's text: ``entries`` are (offset from _stext in bytes, name), sorted.

    ``size`` is the size of the text in bytes (_etext - _stext).
    """

    size: int
    entries: Sequence[Entry] = field(repr=False)

    @cached_property
    def canonical(self) -> bytes:
        """The layout as text, in the one form that it has: what is digested and packed."""
        lines = [_MAGIC, b"%x %d" % (self.size, len(self.entries))]
        lines += [b"%x %b" % entry for entry in self.entries]
        return b"\n".join(lines) + b"\n"

    def digest(self) -> str:
        """SHA-256 of the layout, in hex: equal where, and only where, the layouts are equal."""
        return hashlib.sha256(self.canonical).hexdigest()

    def pack(self) -> bytes:
        """The layout as bytes to send: zlib, of a line with the format, one with size and count, one for each entry."""
        return zlib.compress(self.canonical, 6)

    @staticmethod
    def unpack(data: bytes) -> SymbolLayout:
        """What `pack` gave. Raises InputTooLargeError beyond the limits, InvalidInputError for anything else."""
        return _unpack(data)

    def differences(
        self, other: SymbolLayout, *, limit: int = 8, here: str = "here", there: str = "there"
    ) -> list[str]:
        """What is different, in the order of addresses, at most ``limit`` findings; empty where nothing is.

        Each finding names the symbols, with offsets and sizes; what only moved because something before it differs is
        none. ``here`` and ``there`` are what to call this layout and the other one.
        """
        if self == other:
            return []
        findings = _compare(list(self._places()), list(other._places()), here, there)
        found = [finding for finding, _ in zip(findings, range(limit), strict=False)]
        if not found:
            found.append(f"the text is {self.size:#x} bytes {here}, {other.size:#x} bytes {there}")
        return found

    def _places(self) -> Iterator[_Place]:
        groups = [(at, tuple(name for _, name in group)) for at, group in groupby(self.entries, lambda entry: entry[0])]
        ends = [*(at for at, _ in groups[1:]), *([self.size] if groups else [])]
        for (at, names), end in zip(groups, ends, strict=True):
            yield _Place(at, end - at, names)


def from_kallsyms(path: Path = KALLSYMS) -> SymbolLayout:
    """The layout of the running kernel.

    Raises UnavailableError where the kernel does not tell it: no such file, or addresses that read as zero because of
    ``kernel.kptr_restrict`` or a missing privilege (kernel/ksyms_common.c: CAP_SYSLOG). InvalidInputError for a file
    that is no list of symbols.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_KALLSYMS_LIMIT + 1)
    except OSError as error:
        raise UnavailableError(
            f"The symbols of the running kernel cannot be read from {path}: {error.strerror or error}.",
            hint="Mount /proc; the kernel needs CONFIG_KALLSYMS, which every kernel with livepatching has.",
        ) from error
    if len(data) > _KALLSYMS_LIMIT:
        raise InputTooLargeError(f"{path} is larger than {_KALLSYMS_LIMIT // 1024**2} MB.")
    symbols: list[Entry] = []
    stext = etext = None
    seen_address = False
    for line in data.splitlines():
        address, _, rest = line.partition(b" ")
        kind, _, name = rest.partition(b" ")
        try:
            value = int(address, 16)
        except ValueError:
            raise InvalidInputError(f"{path} holds a line that is no symbol: {line[:80]!r}.") from None
        if len(kind) != 1 or not name:
            raise InvalidInputError(f"{path} holds a line that is no symbol: {line[:80]!r}.")
        seen_address = seen_address or value != 0
        if b"\t" in name:
            continue
        if name == b"_stext":
            stext = value
        elif name == b"_etext":
            etext = value
        if kind in _TEXT_TYPES:
            symbols.append((value, name))
    if not seen_address:
        raise UnavailableError(
            f"The kernel hides the addresses of its symbols: all in {path} are zero.",
            hint="Run as root; if it stays so, set 'sysctl kernel.kptr_restrict=1' for as long as it takes.",
        )
    return _layout(str(path), stext, etext, symbols)


def from_vmlinux(image: ElfImage | Path) -> SymbolLayout:
    """The layout that a kernel has which was started from this vmlinux.

    Raises InvalidInputError where it is no vmlinux with a symbol table.
    """
    if isinstance(image, Path):
        from elivepatch.kernel.elf import ElfImage as Image

        with Image(image) as opened:
            return from_vmlinux(opened)
    strings = image.data_of(".strtab")
    executable = [bool(section.flags & 4) for section in image.sections]
    symbols: list[Entry] = []
    stext = etext = None
    symtab = image.data_of(".symtab")
    if not symtab or len(symtab) % _SYMBOL.size:
        raise InvalidInputError(
            f"{image.name} has no symbol table.", hint="Give a vmlinux that was not stripped of it."
        )
    for name_at, info, _other, section, value, _size in _SYMBOL.iter_unpack(symtab):
        if section == _SHN_UNDEF or section >= _SHN_LORESERVE or section >= len(executable):
            continue
        if info & 15 in (_STT_SECTION, _STT_FILE):
            continue
        name = strings[name_at : strings.find(b"\0", name_at)]
        if name == b"_stext":
            stext = value
        elif name == b"_etext":
            etext = value
        if executable[section] and name:
            symbols.append((value, name))
    return _layout(image.name, stext, etext, symbols)


def _layout(what: str, stext: int | None, etext: int | None, symbols: Iterable[Entry]) -> SymbolLayout:
    if stext is None or etext is None or not 0 < etext - stext < _SPAN_LIMIT:
        raise InvalidInputError(f"{what} does not say where the kernel's text begins and ends (_stext, _etext).")
    entries = [
        (value - stext, name)
        for value, name in symbols
        if stext <= value < etext and len(name) < _NAME_LIMIT and not _IGNORED.match(name)
    ]
    return SymbolLayout(etext - stext, tuple(sorted(entries)))


def btf_digest(path: Path = BTF) -> str | None:
    """SHA-256 (hex) of the type information that the running kernel shows; None where it shows none."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def btf_digest_of(image: ElfImage) -> str | None:
    """SHA-256 (hex) of what a kernel that is started from this vmlinux shows as its type information."""
    data = image.data_of(".BTF")
    return hashlib.sha256(data).hexdigest() if data else None


# -- what was sent


def _unpack(data: bytes) -> SymbolLayout:
    hint = "Send what the client of this version packs."
    if len(data) > PACKED_LIMIT:
        raise InputTooLargeError(f"The symbol layout is larger than {PACKED_LIMIT} bytes.")
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, _TEXT_LIMIT + 1)
    except zlib.error as error:
        raise InvalidInputError(f"The symbol layout is not packed as it must be: {error}.", hint=hint) from error
    if len(text) > _TEXT_LIMIT:
        raise InputTooLargeError(f"The symbol layout is larger than {_TEXT_LIMIT} bytes when it is unpacked.")
    if not unpacker.eof or unpacker.unused_data:
        raise InvalidInputError("The symbol layout is cut off, or has something behind its end.", hint=hint)
    lines = text.split(b"\n")
    head = re.fullmatch(rb"([0-9a-f]{1,8}) ([0-9]{1,7})", lines[1]) if len(lines) > 2 else None
    if head is None or lines[0] != _MAGIC or lines[-1] != b"" or int(head[2]) != len(lines) - 3:
        raise InvalidInputError("This is not a symbol layout.", hint=hint)
    size, count = int(head[1], 16), int(head[2])
    if count > _SYMBOL_LIMIT or not 0 < size < _SPAN_LIMIT:
        raise InputTooLargeError(f"The symbol layout has {count} symbols in {size} bytes.")
    entries: list[Entry] = []
    for line in lines[2:-1]:
        match = _LINE.fullmatch(line)
        entry = (int(match[1], 16), match[2]) if match else None
        if entry is None or entry[0] >= size or (entries and entry < entries[-1]):
            raise InvalidInputError(f"The symbol layout holds a line that cannot be in one: {line[:80]!r}.", hint=hint)
        entries.append(entry)
    layout = SymbolLayout(size, tuple(entries))
    if layout.canonical != text:  # leading zeros and the like: one layout, one form
        raise InvalidInputError("The symbol layout is not in the one form that it has.", hint=hint)
    return layout


# -- comparing

#: How many places to look ahead for where two layouts go on together; one object brings a few hundred symbols.
_WINDOW = 4096


def _compare(ours: Sequence[_Place], theirs: Sequence[_Place], here: str, there: str) -> Iterator[str]:
    i = j = 0
    while i < len(ours) and j < len(theirs):
        a, b = ours[i], theirs[j]
        if a.names == b.names:
            if a.size != b.size:
                yield f"{a.text}: {a.size:#x} bytes {here} {_at(a)}, {b.size:#x} bytes {there} {_at(b)}"
            i, j = i + 1, j + 1
            continue
        skip = _meeting(ours, i, theirs, j)
        if skip == (1, 1):
            yield f"{a.text} {here} {_at(a)} of {a.size:#x} bytes, {b.text} {there} {_at(b)} of {b.size:#x} bytes"
        else:
            for place in ours[i : i + skip[0]]:
                yield f"{place.text}: only {here}, {_at(place)} of {place.size:#x} bytes"
            for place in theirs[j : j + skip[1]]:
                yield f"{place.text}: only {there}, {_at(place)} of {place.size:#x} bytes"
        i, j = i + skip[0], j + skip[1]
    for rest, where in ((ours[i:], here), (theirs[j:], there)):
        for place in rest:
            yield f"{place.text}: only {where}, {_at(place)} of {place.size:#x} bytes"


def _at(place: _Place) -> str:
    return f"at _stext+{place.offset:#x}"


def _meeting(ours: Sequence[_Place], i: int, theirs: Sequence[_Place], j: int) -> tuple[int, int]:
    """How many places of each side to pass over until both go on with the same names, the fewest in all."""
    left: dict[tuple[bytes, ...], int] = {}
    right: dict[tuple[bytes, ...], int] = {}
    for distance in range(_WINDOW):
        for places, at, own, other, mine in ((ours, i, left, right, True), (theirs, j, right, left, False)):
            if at + distance < len(places):
                names = places[at + distance].names
                own.setdefault(names, distance)
                if names in other:
                    return (distance, other[names]) if mine else (other[names], distance)
    return (1, 1)
