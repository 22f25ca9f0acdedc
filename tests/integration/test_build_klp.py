# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own tools on a real kernel: its configuration, positions of symbols, refusals, bytes."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from build_support import ENGINES, Builder, livepatch_file, livepatch_names
from elivepatch.build.prepared import SIGNING_OPTIONS, PreparedKernel
from elivepatch.build.sealed import sealed_functions
from elivepatch.kernel.config import parse_config
from elivepatch.kernel.elf import ElfImage, Symbol, unpack_symbols
from elivepatch.kernel.elf_object import ElfObject
from elivepatch.protocol.models import BuildStatus
from elivepatch.workshop import Workshop

pytestmark = pytest.mark.integration


@pytest.fixture
def kernel(kernel_of: Callable[[str], PreparedKernel]) -> PreparedKernel:
    return kernel_of("klp")


# -- the configuration


def test_the_configuration_in_use_is_the_published_one_option_by_option(builder: Builder) -> None:
    """What kbuild and the compiler read, after builds, against what the packages say."""
    assert builder(livepatch_file("string.patch", "klp").read_bytes()).report.status is BuildStatus.DONE
    kernel = builder.kernel
    published = {k: v for k, v in kernel.config().options.items() if k not in SIGNING_OPTIONS}
    makefiles = parse_config((kernel.products / "include/config/auto.conf").read_bytes()).options
    # auto.conf is for make: it has what is set, and strings without quotes
    assert {name: value.strip('"') for name, value in published.items() if value != '""'} == {
        name: value.strip('"') for name, value in makefiles.items() if value.strip('"') and name not in SIGNING_OPTIONS
    }
    header = (kernel.products / "include/generated/autoconf.h").read_text()
    compiled: dict[str, str] = {}
    for name, value in re.findall(r"^#define CONFIG_(\w+) (.*)$", header, re.MULTILINE):
        module = name.endswith("_MODULE") and published.get(name.removesuffix("_MODULE")) == "m"
        compiled[name.removesuffix("_MODULE") if module else name] = "m" if module else value
    expected = {name: "1" if value == "y" else value for name, value in published.items()}
    assert {name: value for name, value in compiled.items() if name not in SIGNING_OPTIONS} == expected
    assert len(expected) > 3000
    assert published["RUST"] == "y"
    assert not (kernel.root.path / "usr/bin/rustc").exists(), "the point is that the root has none"


# -- positions


def positions(module: bytes) -> dict[str, int]:
    """The position of each function that a livepatch replaces (struct klp_func_ext)."""
    image = ElfObject(module)
    index = image.find(".init.klp_funcs")
    assert index is not None
    found: dict[str, int] = {}
    with ElfImage(module) as read:
        table = read.symbol_table()
        section = read.section(".init.klp_funcs")
        assert section is not None
        for one in read.relocations(section):
            if one.offset % 24 == 8:  # new_func; the position follows
                found[table[one.symbol].name] = struct.unpack_from("<Q", image.content(index), one.offset + 8)[0]
    return found


def place_in_order(symbols: list[Symbol], file: str | None) -> int:
    """The position, from 1, of the symbol of a file among those of its name; None is the global one."""
    ordered = sorted(symbols, key=lambda symbol: symbol.value)
    return 1 + [symbol.file for symbol in ordered].index(file)


def vmlinux_symbols(kernel: PreparedKernel, name: str) -> list[Symbol]:
    with ElfImage(kernel.vmlinux) as image:
        return [one for one in image.iter_symbols(lambda raw: raw == name.encode()) if one.section]


def test_local_symbols_that_vmlinux_has_several_times(builder: Builder) -> None:
    built = builder(livepatch_file("same-names.patch", "klp").read_bytes())
    shows, prints = (vmlinux_symbols(builder.kernel, name) for name in ("type_show", "print_cpu"))
    assert len(shows) > 5
    assert len(prints) > 1
    assert positions(built.module) == {"type_show": place_in_order(shows, "irqdesc.c"), "timer_list_show": 0}
    wanted = place_in_order(prints, "timer_list.c")
    with ElfImage(built.module) as image:
        names = {symbol.name for symbol in image.symbols()}
    assert f".klp.sym.vmlinux.print_cpu,{wanted}" in names
    assert [name for name in names if name.startswith(".klp.sym.vmlinux.print_cpu,")] == [
        f".klp.sym.vmlinux.print_cpu,{wanted}"
    ]


def test_a_global_function_whose_name_a_static_one_has_too(builder: Builder) -> None:
    symbols = vmlinux_symbols(builder.kernel, "user_read")
    assert {symbol.file for symbol in symbols} > {None}
    patch = builder.change(
        "security/keys/user_defined.c", ("	ret = upayload->datalen;", "	ret = upayload->datalen + 0x100;")
    )
    assert positions(builder(patch).module)["user_read"] == place_in_order(symbols, None)


def test_local_symbols_that_a_module_has_several_times(builder: Builder) -> None:
    tables = builder.kernel.module_symbols("md_mod")
    named = [one for one in unpack_symbols(tables.symtab, tables.strtab) if one.name == "metadata_show"]
    assert sorted(str(one.file) for one in named) == ["md-bitmap.c", "md.c"]
    patch = builder.change("drivers/md/md-bitmap.c", ('sprintf(page, "clustered\\n")', 'sprintf(page, "CLUSTERED\\n")'))
    order = [one.file for one in named]
    assert positions(builder(patch).module) == {"metadata_show": 1 + order.index("md-bitmap.c")}


def test_a_symbol_of_another_file_that_is_used_for_the_first_time(builder: Builder) -> None:
    assert "\tnr_context_switches\t" not in builder.kernel.symvers.read_text()
    text = (builder.source / "fs/proc/version.c").read_text()
    assert "nr_context_switches" not in text
    patch = builder.change(
        "fs/proc/version.c",
        ("#include <linux/kernel.h>\n", "#include <linux/kernel.h>\n#include <linux/kernel_stat.h>\n"),
        (
            "	return 0;\n}\n\nstatic int __init",
            '	seq_printf(m, "%llu\\n", nr_context_switches());\n	return 0;\n}\n\nstatic int __init',
        ),
    )
    built = builder(patch)
    assert built.report.status is BuildStatus.DONE, built.told
    with ElfImage(built.module) as image:
        assert ".klp.sym.vmlinux.nr_context_switches,0" in {symbol.name for symbol in image.symbols()}


# -- refusals

#: What is changed: file, the text and what it becomes, the rule, and whether anything was compiled.
REFUSED: dict[str, tuple[str, tuple[str, str], str, bool]] = {
    "untraced directory": (
        "lib/kasprintf.c",
        ("	va_end(ap);", "	va_end(ap); barrier();"),
        "untraced-file",
        False,
    ),
    "untraced file": (
        "kernel/irq_work.c",
        ("	preempt_enable();", "	preempt_enable(); barrier();"),
        "untraced-file",
        False,
    ),
    "vdso": (
        "arch/x86/entry/vdso/common/vclock_gettime.c",
        ("	return __cvdso_gettimeofday(tv, tz);", "	return __cvdso_gettimeofday(tv, tz) + 1;"),
        "other-image",
        False,
    ),
    "untraced function": (
        "kernel/time/timekeeping.c",
        (
            "	return READ_ONCE(tk->xtime_sec);\n}\n\nstatic inline",
            "	return READ_ONCE(tk->xtime_sec) + 1;\n}\n\nstatic inline",
        ),
        "no-fentry",
        True,
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refusal_names_its_rule(builder: Builder, name: str) -> None:
    file, replacement, rule, compiled = REFUSED[name]
    built = builder(builder.change(file, replacement))
    assert (built.report.exit_status, built.report.status) == (3, BuildStatus.REFUSED), built.told
    assert rule in {finding.rule for finding in built.report.diagnosis if finding.severity == "error"}, built.told
    assert built.report.hint
    assert any(event.message.startswith("compiling") for event in built.events) is compiled


def test_changed_data_is_refused(builder: Builder) -> None:
    patch = builder.change(
        "drivers/tty/sysrq.c", ('.action_msg	= "Show Regs",', '.action_msg	= "Show All Regs",')
    )
    built = builder(patch)
    assert built.report.exit_status == 3, built.told
    assert "data-object-changed" in built.rules, built.told


VERSION = "fs/proc/version.c"
INCLUDE = "#include <linux/kernel.h>\n"
END = "	return 0;\n}\n\nstatic int __init"


def test_the_address_of_a_sealed_function_is_refused(builder: Builder) -> None:
    assert "nr_context_switches" in sealed_functions(builder.kernel)
    used = f'	seq_printf(m, "%ps\\n", nr_context_switches);\n{END}'
    built = builder(builder.change(VERSION, (INCLUDE, f"{INCLUDE}#include <linux/kernel_stat.h>\n"), (END, used)))
    assert built.report.exit_status == 3, built.told
    assert built.rules == {"sealed-endbr"}, built.told


def test_initialisation_code_is_refused(builder: Builder) -> None:
    declared = f"{INCLUDE}void proc_tty_init(void);\n"
    built = builder(builder.change(VERSION, (INCLUDE, declared), (END, f"	proc_tty_init();\n{END}")))
    assert built.report.exit_status == 3, built.told
    assert "init-reference" in built.rules, built.told
    assert "proc_tty_init" in built.told


def test_what_nothing_defines_is_refused(builder: Builder) -> None:
    declared = f"{INCLUDE}void elivepatch_nowhere(void);\n"
    built = builder(builder.change(VERSION, (INCLUDE, declared), (END, f"	elivepatch_nowhere();\n{END}")))
    assert built.report.exit_status == 3, built.told
    assert "undefined-symbol" in built.rules, built.told


def test_a_change_of_nothing_that_runs(builder: Builder) -> None:
    built = builder(
        builder.change(VERSION, ("	return 0;\n}\n\nstatic int __init", "	return 1 - 1;\n}\n\nstatic int __init"))
    )
    assert (built.report.exit_status, built.report.error) == (3, "no-functional-change"), built.told


# -- bytes


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("engine", ENGINES)
def test_ten_patches_twice_in_another_order(
    workshop: Workshop, kernel_of: Callable[[str], PreparedKernel], tmp_path: Path, engine: str
) -> None:
    builder = Builder(workshop, kernel_of(engine), tmp_path)
    names = livepatch_names()
    assert len(names) >= 10
    digests: dict[str, set[str]] = {name: set() for name in names}
    for number, order in enumerate((names, names[::-1])):
        for name in order:
            output = tmp_path / ("deep/er" if number else ".") / f"{engine}-{number}-{name}"
            report = builder(livepatch_file(f"{name}.patch", engine).read_bytes(), output=output).report
            assert report.module is not None, report.message
            digests[name].add(report.module.sha256)
    assert {name: len(found) for name, found in digests.items()} == dict.fromkeys(names, 1)
    assert len({digest for found in digests.values() for digest in found}) == len(names)


def test_a_static_variable_that_goes_to_another_function_is_refused(builder: Builder) -> None:
    lost = ("\tstatic int warncount = 5;\n", "\tint warncount = 0;\n")
    first = "\tmemset(stat, 0, sizeof(*stat));\n"
    won = (
        first,
        f"\tstatic int warncount = 5;\n\n\tif (warncount > 0 && request_mask == 1)\n\t\twarncount--;\n{first}",
    )
    report = builder(builder.change("fs/stat.c", lost, won)).report
    assert (report.exit_status, report.diagnosis[0].rule) == (3, "static-local-changed"), report
    assert "warncount" in (report.message or "")
    both = builder(builder.change("fs/stat.c", won))  # each has its own
    assert both.report.status is BuildStatus.DONE, both.told
