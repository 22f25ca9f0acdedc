# SPDX-License-Identifier: GPL-2.0-or-later
"""A copy of a module that has no init and no exit: for modules that a guest has no device for.

Such a module says ENODEV as it is loaded and goes again, and what needs it cannot come either. The copy differs in
``struct module`` alone, where the addresses of both functions are not filled in, as in a module that has none
(do_init_module and delete_module in kernel/module). Code, symbols and tables are the module's own, so a livepatch is
applied to it as to the real one. Nothing of it is ever called.
"""

from __future__ import annotations

import io
import struct

from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

#: Where modpost puts ``struct module`` (scripts/mod/modpost.c, add_header).
_MODULE = ".rela.gnu.linkonce.this_module"
_FUNCTIONS = frozenset(("init_module", "cleanup_module"))
#: Appended by scripts/sign-file.c; before it stands struct module_signature, whose last four bytes are the length.
_SIGNED = b"~Module signature appended~\n"
_SIGNATURE_HEAD = 12


def without_init(elf: bytes) -> bytes:
    """The copy, unsigned. One that has no init already stays as it is."""
    data = bytearray(_unsigned(elf))
    file = ELFFile(io.BytesIO(bytes(data)))
    section, symbols = file.get_section_by_name(_MODULE), file.get_section_by_name(".symtab")
    if isinstance(section, RelocationSection) and isinstance(symbols, SymbolTableSection):
        for number, one in enumerate(section.iter_relocations()):
            if symbols.get_symbol(one["r_info_sym"]).name in _FUNCTIONS:
                place = section["sh_offset"] + number * section["sh_entsize"]
                data[place + 8 : place + 16] = bytes(8)  # r_info: R_X86_64_NONE
    return bytes(data)


def _unsigned(elf: bytes) -> bytes:
    if not elf.endswith(_SIGNED):
        return elf
    end = len(elf) - len(_SIGNED)
    (length,) = struct.unpack(">I", elf[end - 4 : end])
    return elf[: end - _SIGNATURE_HEAD - length]
