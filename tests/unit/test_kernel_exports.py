# SPDX-License-Identifier: GPL-2.0-or-later
"""Exported symbols, read from tables that were made by hand: each form that a kernel has had on x86-64."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from elf_builder import ALLOC, GLOBAL, NOTYPE, SECTION, Part, Sym, elf
from elivepatch.errors import InvalidInputError
from elivepatch.kernel.elf import ElfImage
from elivepatch.kernel.exports import Export, exports_of_image, exports_of_module, module_owner, symvers

STRINGS = b"first\0\0second\0NS\0third\0"
FIRST, NONE, SECOND, NAMESPACE, THIRD = 0, 5, 7, 14, 17
STRINGS_AT, PLAIN_AT, GPL_AT, CRC_AT, RODATA_AT = 0x1000, 0x2000, 0x3000, 0x4000, 0x6000
PC32, ABS32 = 2, 10


def distances(address: int, entries: Sequence[Sequence[int | None]]) -> bytes:
    """A linked table: each number leads from its place to an offset in the strings; None stays zero."""
    out = b""
    for entry in entries:
        for target in (-0x800, *entry):  # the value: somewhere else
            at = address + len(out)
            out += struct.pack("<i", 0 if target is None else STRINGS_AT + target - at)
    return out


def linked(
    plain: bytes, gpl: bytes = b"", crcs: bytes = b"", gpl_crcs: bytes = b"", *, flags: bytes = b"", rodata: bytes = b""
) -> ElfImage:
    parts = [
        Part("__ksymtab_strings", STRINGS, ALLOC, address=STRINGS_AT),
        Part("__ksymtab", plain, ALLOC, address=PLAIN_AT),
        Part("__ksymtab_gpl", gpl, ALLOC, address=GPL_AT),
        Part("__kcrctab", crcs, ALLOC, address=CRC_AT),
        Part("__kcrctab_gpl", gpl_crcs, ALLOC, address=CRC_AT + 0x1000),
        Part(".rodata", rodata, ALLOC, address=RODATA_AT),
    ]
    return ElfImage(elf([*parts, Part("__kflagstab", flags, ALLOC, address=0x7000)]))


PLAIN = distances(PLAIN_AT, [(FIRST, NONE), (SECOND, NAMESPACE)])
GPL = distances(GPL_AT, [(THIRD, None)])
EXPECTED = [
    Export("first", 0xDEADBEEF, "vmlinux", gpl=False, namespace=""),
    Export("second", 0x00000001, "vmlinux", gpl=False, namespace="NS"),
    Export("third", 0x7FFFFFFF, "vmlinux", gpl=True, namespace=""),
]
CRCS, GPL_CRCS = struct.pack("<2I", 0xDEADBEEF, 1), struct.pack("<I", 0x7FFFFFFF)


def test_the_tables_of_an_image() -> None:
    with linked(PLAIN, GPL, CRCS, GPL_CRCS) as image:
        assert exports_of_image(image) == EXPECTED


def test_the_text_is_that_of_modpost() -> None:
    assert symvers(reversed(EXPECTED)) == (
        "0xdeadbeef\tfirst\tvmlinux\tEXPORT_SYMBOL\t\n"
        "0x00000001\tsecond\tvmlinux\tEXPORT_SYMBOL\tNS\n"
        "0x7fffffff\tthird\tvmlinux\tEXPORT_SYMBOL_GPL\t\n"
    )


def test_relative_crcs() -> None:
    rodata = struct.pack("<3I", 1, 0xDEADBEEF, 0x7FFFFFFF)
    crcs = struct.pack("<2i", RODATA_AT + 4 - CRC_AT, RODATA_AT - CRC_AT - 4)
    gpl_crcs = struct.pack("<i", RODATA_AT + 8 - CRC_AT - 0x1000)
    with linked(PLAIN, GPL, crcs, gpl_crcs, rodata=rodata) as image:
        assert exports_of_image(image) == EXPECTED


def test_a_kernel_without_modversions() -> None:
    with linked(PLAIN, GPL) as image:
        assert {export.crc for export in exports_of_image(image)} == {0}


def test_entries_before_namespaces() -> None:
    with linked(distances(PLAIN_AT, [(FIRST,), (SECOND,), (THIRD,)])) as image:
        assert [(export.name, export.namespace) for export in exports_of_image(image)] == [
            ("first", ""),
            ("second", ""),
            ("third", ""),
        ]


def test_flags_instead_of_a_table_of_their_own() -> None:
    plain = distances(PLAIN_AT, [(FIRST, NONE), (SECOND, NAMESPACE), (THIRD, NONE)])
    with linked(plain, crcs=CRCS + GPL_CRCS, flags=b"\0\2\3") as image:
        assert exports_of_image(image) == EXPECTED


@pytest.mark.parametrize(
    "image",
    [
        linked(PLAIN[:-1], GPL, CRCS, GPL_CRCS),
        linked(PLAIN, GPL, CRCS[:4], GPL_CRCS),
        linked(PLAIN, GPL, CRCS + b"\0", GPL_CRCS),
        linked(bytes(24)),
        linked(distances(PLAIN_AT, [(NONE, NONE)])),  # no name
        linked(distances(PLAIN_AT, [(len(STRINGS), NONE)])),  # behind the strings
        linked(distances(PLAIN_AT, [(-1, NONE)])),
        linked(distances(PLAIN_AT, [(FIRST, len(STRINGS))])),
        linked(PLAIN, flags=b"\0"),
        ElfImage(elf([Part("__ksymtab", PLAIN, ALLOC, address=PLAIN_AT)])),
    ],
)
def test_tables_of_another_form_are_refused(image: ElfImage) -> None:
    with image, pytest.raises(InvalidInputError, match="not in a form"):
        exports_of_image(image)


def test_an_image_that_exports_nothing() -> None:
    with ElfImage(elf([Part(".text")])) as image:
        assert exports_of_image(image) == []
        assert exports_of_module(image, "fs/xfs/xfs") == []


# -- modules

SYMBOLS = [
    Sym("", SECTION, section="__ksymtab_strings"),
    Sym("__kstrtab_second", NOTYPE, section="__ksymtab_strings", value=SECOND),
    Sym("first", NOTYPE, GLOBAL, section=".rodata"),
    Sym("__crc_first", NOTYPE, GLOBAL, section=0xFFF1, value=0xDEADBEE0),
    Sym("", SECTION, section=".rodata"),
    Sym("gone", NOTYPE, GLOBAL, section=0),
]
STRTAB, KSTRTAB, VALUE, CRC_SYMBOL, RODATA, GONE = range(1, 7)
REFERENCES = [
    *((0, PC32, VALUE, 0), (4, PC32, STRTAB, FIRST), (8, PC32, STRTAB, NONE)),
    *((12, PC32, VALUE, 0), (16, PC32, KSTRTAB, 0), (20, PC32, STRTAB, NAMESPACE)),
]


Filled = Sequence[tuple[int, int, int, int]]


def module(references: Filled, crcs: bytes = b"", of_crcs: Filled = ()) -> ElfImage:
    parts = [
        Part("__ksymtab_strings", STRINGS),
        Part("__ksymtab", bytes(24), relocations=references),
        Part("__kcrctab", crcs, relocations=of_crcs),
        Part(".rodata", struct.pack("<2I", 7, 1)),
    ]
    return ElfImage(elf(parts, SYMBOLS))


def of_module(image: ElfImage) -> list[Export]:
    with image:
        return exports_of_module(image, "fs/xfs/xfs")


def test_the_tables_of_a_module() -> None:
    assert [export.line() for export in of_module(module(REFERENCES, CRCS))] == [
        "0xdeadbeef\tfirst\tfs/xfs/xfs\tEXPORT_SYMBOL\t",
        "0x00000001\tsecond\tfs/xfs/xfs\tEXPORT_SYMBOL\tNS",
    ]


def test_crcs_that_a_relocation_fills_in() -> None:
    filled = [(0, ABS32, CRC_SYMBOL, 15), (4, PC32, RODATA, 4)]
    assert [export.crc for export in of_module(module(REFERENCES, bytes(8), filled))] == [0xDEADBEEF, 1]


def test_a_namespace_that_nothing_fills_in() -> None:
    assert [export.namespace for export in of_module(module(REFERENCES[:5]))] == ["", ""]


@pytest.mark.parametrize(
    ("references", "of_crcs"),
    [
        (REFERENCES[:4] + REFERENCES[5:], []),  # a name that nothing fills in
        ([*REFERENCES[:4], (16, PC32, GONE, 0)], []),
        ([*REFERENCES[:4], (16, PC32, 99, 0)], []),
        ([*REFERENCES[:4], (16, PC32, STRTAB, 9999)], []),
        (REFERENCES, [(0, PC32, GONE, 0)]),
        (REFERENCES, [(0, PC32, 99, 0)]),
    ],
)
def test_a_module_that_leads_nowhere_is_refused(references: Filled, of_crcs: Filled) -> None:
    with pytest.raises(InvalidInputError):
        of_module(module(references, bytes(8), of_crcs))


@pytest.mark.parametrize(
    ("path", "owner"),
    [("kernel/fs/xfs/xfs.ko", "fs/xfs/xfs"), ("kernel/virt/lib/irqbypass.ko.xz", "virt/lib/irqbypass")],
)
def test_how_a_module_is_called(path: str, owner: str) -> None:
    assert module_owner(path) == owner
