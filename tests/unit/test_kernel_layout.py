# SPDX-License-Identifier: GPL-2.0-or-later
"""The symbol layout of a kernel, from a list of symbols and from an image made by hand."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elf_builder import ALLOC, EXEC, FILE, GLOBAL, NOTYPE, OBJECT, SECTION, WEAK, Part, Sym, elf
from elivepatch.errors import InputTooLargeError, InvalidInputError, UnavailableError
from elivepatch.kernel import layout as module
from elivepatch.kernel.elf import ElfImage
from elivepatch.kernel.layout import SymbolLayout, btf_digest, btf_digest_of, from_kallsyms, from_vmlinux

BASE = 0xFFFFFFFF81000000
SYMBOLS = [
    Sym("", SECTION, section=".text", value=BASE),
    Sym("a.c", FILE, section=0xFFF1),
    Sym("__pfx_helper", NOTYPE, value=BASE + 0x10),
    Sym("helper", value=BASE + 0x20, size=8),
    Sym("helper.cold", value=BASE + 0x60, size=8),
    Sym(".Lnumber", NOTYPE, value=BASE + 0x21),
    Sym("$x", NOTYPE, value=BASE + 0x21),
    Sym("__kcfi_typeid_helper", NOTYPE, value=BASE + 0x21),
    Sym("n" * 512, value=BASE + 0x22),
    Sym("n" * 511, value=BASE + 0x22),
    Sym("here", section=0xFFF1, value=BASE + 0x23),  # absolute
    Sym("helper", value=BASE + 0x70, size=8),
    Sym("state", OBJECT, section=".data", value=BASE + 0x1000),
    Sym("_text", NOTYPE, GLOBAL, value=BASE),
    Sym("_stext", NOTYPE, GLOBAL, value=BASE),
    Sym("table", OBJECT, WEAK, value=BASE + 0x30),
    Sym("alias", value=BASE + 0x20, bind=GLOBAL),
    Sym("_etext", NOTYPE, GLOBAL, value=BASE + 0x80),
    Sym("behind", NOTYPE, GLOBAL, section=".init.text", value=BASE + 0x2000),
    Sym("nowhere", NOTYPE, GLOBAL, section=0, value=BASE + 0x24),
]
IMAGE = elf(
    [
        Part(".text", bytes(0x80), ALLOC | EXEC, address=BASE),
        Part(".data", bytes(8), ALLOC, address=BASE + 0x1000),
        Part(".init.text", bytes(8), ALLOC | EXEC, address=BASE + 0x2000),
        Part(".BTF", b"types", ALLOC),
    ],
    SYMBOLS,
)
KALLSYMS = f"""\
0000000000000000 A fixed_percpu_data
{{0:x}} T _text
{{0:x}} T _stext
{{10:x}} t __pfx_helper
{{20:x}} t helper
{{20:x}} T alias
{{22:x}} t {"n" * 511}
{{30:x}} V table
{{60:x}} t helper.cold
{{70:x}} t helper
{{80:x}} T _etext
{{1000:x}} d state
{{2000:x}} T behind
ffffffffc0000000 t xfs_init\t[xfs]
ffffffffc0001000 t bpf_prog_6deef7357e7b4530\t[bpf]
ffffffffc0002000 t ftrace_trampoline\t[__builtin__ftrace]
"""


def kallsyms(base: int) -> str:
    offsets = (0x0, 0x10, 0x20, 0x22, 0x30, 0x60, 0x70, 0x80, 0x1000, 0x2000)
    text = KALLSYMS
    for offset in offsets:
        text = text.replace(f"{{{offset:x}:x}}", f"{base + offset:016x}")
    return text


def layout(*names: str, step: int = 0x10) -> SymbolLayout:
    """Functions of the same size, one behind the other."""
    return SymbolLayout(len(names) * step, tuple((at * step, name.encode()) for at, name in enumerate(names)))


# -- reading


@pytest.mark.parametrize("base", [BASE, 0xFFFFFFFF9AC00000])
def test_both_sides_read_alike_wherever_the_kernel_lies(tmp_path: Path, base: int) -> None:
    (tmp_path / "kallsyms").write_text(kallsyms(base))
    (tmp_path / "vmlinux").write_bytes(IMAGE)
    host, image = from_kallsyms(tmp_path / "kallsyms"), from_vmlinux(tmp_path / "vmlinux")
    assert host == image
    assert host.digest() == image.digest()
    assert host.size == 0x80
    assert [(at, name.decode()) for at, name in host.entries] == [
        (0, "_stext"),
        (0, "_text"),
        (0x10, "__pfx_helper"),
        (0x20, "alias"),
        (0x20, "helper"),
        (0x22, "n" * 511),
        (0x30, "table"),
        (0x60, "helper.cold"),
        (0x70, "helper"),
    ]


@pytest.mark.parametrize(
    "name", ["$d", ".L1", "__crc_f", "__kstrtab_f", "__kstrtabns_f", "__pi_.L1", "__pi_$x", "L0", "f_veneer"]
)
def test_names_that_kernels_leave_out_are_left_out_on_both_sides(tmp_path: Path, name: str) -> None:
    plain = kallsyms(BASE)
    (tmp_path / "plain").write_text(plain)
    (tmp_path / "more").write_text(plain + f"{BASE + 0x20:x} t {name}\n")
    assert from_kallsyms(tmp_path / "plain") == from_kallsyms(tmp_path / "more")


@pytest.mark.parametrize("name", ["__pfx_f", "f.cold", "f.constprop.0", "f.isra.0", "__pi_f", "L01", "_$", "a.L"])
def test_other_names_count(tmp_path: Path, name: str) -> None:
    plain = kallsyms(BASE)
    (tmp_path / "plain").write_text(plain)
    (tmp_path / "more").write_text(plain + f"{BASE + 0x20:x} t {name}\n")
    assert from_kallsyms(tmp_path / "plain") != from_kallsyms(tmp_path / "more")


def test_hidden_addresses_are_not_a_layout(tmp_path: Path) -> None:
    path = tmp_path / "kallsyms"
    path.write_text("0000000000000000 T _stext\n0000000000000000 t f\n0000000000000000 T _etext\n")
    with pytest.raises(UnavailableError) as caught:
        from_kallsyms(path)
    assert "hides the addresses" in caught.value.message
    assert "kptr_restrict" in (caught.value.hint or "")


def test_no_kallsyms_at_all(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="No such file"):
        from_kallsyms(tmp_path / "kallsyms")


@pytest.mark.parametrize(
    "text",
    [
        "ffffffff81000000 T _stext\n",  # no end
        "ffffffff81000000 T _etext\nffffffff81000000 T _stext\n",
        "ffffffff81000000 T _stext\nffffffff81000010 T _etext\nnonsense\n",
        "ffffffff81000000 T _stext\nffffffff81000010 T _etext\nffffffff81000004 TT f\n",
        "ffffffff81000000 T _stext\nffffffff81000010 T _etext\nffffffff81000004 t\n",
        "ffffffff81000000 T _stext\n\nffffffff81000010 T _etext\n",
    ],
)
def test_what_is_no_list_of_symbols_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "kallsyms").write_text(text)
    with pytest.raises(InvalidInputError):
        from_kallsyms(tmp_path / "kallsyms")


def test_an_image_without_symbols_is_refused() -> None:
    text = Part(".text", bytes(8), ALLOC | EXEC, address=BASE)
    with ElfImage(elf([text])) as image, pytest.raises(InvalidInputError, match="_stext"):
        from_vmlinux(image)


def test_types_of_both_sides(tmp_path: Path) -> None:
    (tmp_path / "btf").write_bytes(b"types")
    with ElfImage(IMAGE) as image:
        assert btf_digest(tmp_path / "btf") == btf_digest_of(image) == hashlib.sha256(b"types").hexdigest()
    assert btf_digest(tmp_path / "none") is None
    with ElfImage(elf([Part(".text")])) as image:
        assert btf_digest_of(image) is None


# -- packing


def test_packed_and_unpacked_it_is_the_same() -> None:
    with ElfImage(IMAGE) as image:
        one = from_vmlinux(image)
    assert SymbolLayout.unpack(one.pack()) == one


@given(
    st.lists(
        st.tuples(st.integers(0, 999), st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1)),
        max_size=20,
    )
)
def test_every_layout_comes_back(entries: list[tuple[int, str]]) -> None:
    one = SymbolLayout(1000, tuple(sorted((at, name.encode()) for at, name in entries)))
    two = SymbolLayout.unpack(one.pack())
    assert two == one
    assert two.digest() == one.digest()


@given(st.binary(max_size=100))
def test_nothing_else_breaks_the_reader(data: bytes) -> None:
    for sent in (data, zlib.compress(data)):
        with pytest.raises(InvalidInputError):
            SymbolLayout.unpack(sent)


GOOD = b"elivepatch symbol layout 1\n20 2\n0 a\n10 b\n"


def test_the_form_that_is_taken() -> None:
    assert SymbolLayout.unpack(zlib.compress(GOOD)) == layout("a", "b")


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace(b"layout 1", b"layout 2"),
        GOOD.replace(b"20 2", b"20 3"),
        GOOD.replace(b"20 2", b"020 2"),
        GOOD.replace(b"20 2", b"0 2"),
        GOOD.replace(b"20 2", b"80000000 2"),
        GOOD.replace(b"10 b", b"010 b"),
        GOOD.replace(b"10 b", b"0 A"),  # out of order
        GOOD.replace(b"10 b", b"20 b"),  # behind the end
        GOOD.replace(b"10 b", b"-1 b"),
        GOOD.replace(b"10 b", b"10 b c"),
        GOOD.replace(b"10 b", b"10 b\x1b"),
        GOOD.replace(b"10 b", b"10 " + b"b" * 512),
        GOOD.replace(b"10 b", "10 \N{BULLET}".encode()),
        GOOD[:-1],
        GOOD + b"\n",
        GOOD + b"11 c\n",
    ],
)
def test_other_forms_are_refused(text: bytes) -> None:
    with pytest.raises(InvalidInputError):
        SymbolLayout.unpack(zlib.compress(text))


def test_what_is_cut_off_or_goes_on_is_refused() -> None:
    data = layout("a", "b").pack()
    for sent in (data[:-1], data + b"x", data + data):
        with pytest.raises(InvalidInputError):
            SymbolLayout.unpack(sent)


def test_a_decompression_bomb_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TEXT_LIMIT", 1000)
    with pytest.raises(InputTooLargeError):
        SymbolLayout.unpack(zlib.compress(bytes(1_000_000)))
    monkeypatch.setattr(module, "PACKED_LIMIT", 10)
    with pytest.raises(InputTooLargeError):
        SymbolLayout.unpack(layout("a", "b").pack())


# -- differences


def test_equal_layouts_differ_in_nothing() -> None:
    assert layout("a", "b").differences(layout("a", "b")) == []


def test_the_first_function_of_another_size_is_named_and_what_moved_is_not() -> None:
    ours = layout("a", "b", "c", "d")
    theirs = SymbolLayout(0x50, ((0, b"a"), (0x10, b"b"), (0x30, b"c"), (0x40, b"d")))
    assert ours.differences(theirs, here="on the host", there="in the image") == [
        "b: 0x10 bytes on the host at _stext+0x10, 0x20 bytes in the image at _stext+0x10"
    ]


def test_functions_that_only_one_side_has() -> None:
    ours, theirs = layout("a", "b", "c", "d"), layout("a", "c", "x", "y", "d")
    assert ours.differences(theirs) == [
        "b: only here, at _stext+0x10 of 0x10 bytes",
        "x: only there, at _stext+0x20 of 0x10 bytes",
        "y: only there, at _stext+0x30 of 0x10 bytes",
    ]
    assert ours.differences(theirs, limit=1) == ["b: only here, at _stext+0x10 of 0x10 bytes"]


def test_a_function_of_another_name_at_the_same_place() -> None:
    assert layout("a", "b", "c").differences(layout("a", "x", "c")) == [
        "b here at _stext+0x10 of 0x10 bytes, x there at _stext+0x10 of 0x10 bytes"
    ]


def test_functions_at_the_end() -> None:
    assert layout("a").differences(layout("a", "b")) == ["b: only there, at _stext+0x10 of 0x10 bytes"]
    assert layout("a", "b").differences(layout("a")) == ["b: only here, at _stext+0x10 of 0x10 bytes"]


def test_an_alias_that_one_side_lacks() -> None:
    ours = SymbolLayout(0x10, ((0, b"a"), (0, b"alias")))
    assert ours.differences(layout("a")) == [
        "a, alias here at _stext+0x0 of 0x10 bytes, a there at _stext+0x0 of 0x10 bytes"
    ]


@given(st.lists(st.sampled_from("abcdef"), max_size=12), st.lists(st.sampled_from("abcdef"), max_size=12))
def test_a_difference_is_always_found(ours: list[str], theirs: list[str]) -> None:
    one, two = layout(*ours), layout(*theirs)
    assert (one.differences(two) == []) == (one.digest() == two.digest())
