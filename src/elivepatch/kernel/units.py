# SPDX-License-Identifier: GPL-2.0-or-later
"""The compile units of an image: which source files it was made from.

Only the first entry of each unit is read (DWARF 4 and 5, sections 7.5.1 and 7.5.3). A general reader takes a quarter of
a minute and a gigabyte for the vmlinux of a distribution; this one takes a blink, since it skips from unit to unit.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from elivepatch.kernel.sections import SHF_COMPRESSED, read_sections

_AT_NAME = 0x03
#: Sizes of the forms that can stand before the name, where they are fixed (DWARF 5, section 7.5.6); 64-bit addresses.
_FIXED = {0x01: 8, 0x05: 2, 0x06: 4, 0x07: 8, 0x0B: 1, 0x0C: 1, 0x0E: 4, 0x17: 4, 0x19: 0, 0x1F: 4, 0x1E: 16, 0x20: 8}
_STRING, _STRP, _LINE_STRP, _UDATA, _SDATA, _IMPLICIT = 0x08, 0x0E, 0x1F, 0x0F, 0x0D, 0x21


def compile_units(path: Path) -> list[str]:
    """The names of the compile units of an ELF file with DWARF, in order; empty where it has none.

    Names are as the compiler was given them: relative to the tree for a kernel that is built in it.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as image:
        spans: dict[str, tuple[int, int]] = {}
        for section in read_sections(image, str(path)).sections:
            spans.setdefault(section.name, (section.offset, section.file_size))
            if section.name == ".debug_info" and section.flags & SHF_COMPRESSED:
                return []  # the caller falls back on FILE symbols
        if ".debug_info" not in spans or ".debug_abbrev" not in spans:
            return []
        return _Reader(image, spans).names()


class _Reader:
    def __init__(self, image: mmap.mmap, spans: dict[str, tuple[int, int]]) -> None:
        self._image = image
        self._spans = spans

    def names(self) -> list[str]:
        start, size = self._spans[".debug_info"]
        at, end = start, start + size
        found: list[str] = []
        while at + 12 <= end:
            (length,) = struct.unpack_from("<I", self._image, at)
            if length >= 0xFFFFFFF0:  # 64-bit DWARF, which kernels do not use
                break
            name = self._name(at + 4)
            if name:
                found.append(name)
            at += 4 + length
        return found

    def _name(self, at: int) -> str | None:
        (version,) = struct.unpack_from("<H", self._image, at)
        if version >= 5:
            unit_type, _address, abbrev = struct.unpack_from("<BBI", self._image, at + 2)
            die = at + 8
            if unit_type != 1:  # DW_UT_compile
                return None
        else:
            (abbrev,) = struct.unpack_from("<I", self._image, at + 2)
            die = at + 7
        code, die = self._uleb(die)
        forms = self._abbreviation(self._spans[".debug_abbrev"][0] + abbrev, code)
        for attribute, form in forms:
            if attribute == _AT_NAME:
                return self._string(form, die)
            if form in _FIXED:
                die += _FIXED[form]
            elif form in (_UDATA, _SDATA):
                _, die = self._uleb(die)
            elif form == _STRING:
                die = self._image.find(b"\0", die) + 1
            elif form != _IMPLICIT:
                return None
        return None

    def _abbreviation(self, at: int, wanted: int) -> list[tuple[int, int]]:
        while True:
            code, at = self._uleb(at)
            if code == 0:
                return []
            _tag, at = self._uleb(at)
            at += 1
            forms: list[tuple[int, int]] = []
            while True:
                attribute, at = self._uleb(at)
                form, at = self._uleb(at)
                if form == _IMPLICIT:
                    _, at = self._uleb(at)
                if not attribute and not form:
                    break
                forms.append((attribute, form))
            if code == wanted:
                return forms

    def _string(self, form: int, at: int) -> str | None:
        if form == _STRING:
            start = at
        elif form in (_STRP, _LINE_STRP):
            (offset,) = struct.unpack_from("<I", self._image, at)
            section = ".debug_str" if form == _STRP else ".debug_line_str"
            start = self._spans[section][0] + offset
        else:
            return None
        return self._image[start : self._image.find(b"\0", start)].decode(errors="replace")

    def _uleb(self, at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = self._image[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if not byte & 0x80:
                return value, at
