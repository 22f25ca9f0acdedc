# SPDX-License-Identifier: GPL-2.0-or-later
"""What kpatch's create-diff-object and create-klp-module can say, and which rule each message falls under.

The texts are those of kpatch 0.9.8 to 0.9.11 (kpatch-build/{create-diff-object,lookup,kpatch-elf,create-klp-module}.c).
Up to 0.9.10 the reasons of a refusal come on standard output, later on standard error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """A message of the tool: ``says`` matches all of it; the template takes its groups. ``function`` is one of them.

    A message without a rule is progress, and one that is a ``total`` counts reasons that were given before it.
    """

    says: re.Pattern[str]
    rule: str | None = None
    template: str = ""
    total: bool = False


def _message(says: str, rule: str | None = None, template: str = "", *, total: bool = False) -> Message:
    return Message(re.compile(says), rule, template, total)


_F = r"(?P<function>\S+)"
_N = r"(?P<name>\S+)"
_AT = rf"{_F}\(\)\+0x[0-9a-f]+"

#: Sections that are compared as a whole, by what their change means. The name comes without ``.rela``.
_SECTIONS: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern), rule, template)
    for pattern, rule, template in (
        (
            r"\.(init|exit|meminit|cpuinit|devinit)\.|\.(con_|security_)?initcall|\.exitcall|\.init_array",
            "init-code",
            "Code or data in {section} has changed: it is for the boot, or the load or removal of a module.",
        ),
        (
            r"_{2,3}k(sym|str|crc)tab|\.export_symbol",
            "export-changed",
            "The exported symbols have changed ({section}).",
        ),
        (r"\.altinstr_aux$", "alternative-aux", "A test of a CPU feature (static_cpu_has) has changed ({section})."),
        (r"runtime_(ptr|shift)_", "runtime-constant", "The uses of the boot-time constant '{constant}' have changed."),
        (
            r"__param|\.modinfo|__modver|__versions",
            "module-parameter",
            "Module information or a module parameter has changed ({section}).",
        ),
        (
            r"__syscalls_metadata",
            "system-call",
            "A system call is new, or its name or parameters have changed ({section}): none can be added.",
        ),
        (
            r"__tracepoint|_ftrace_|__bpf_raw_tp|__trace",
            "tracepoint-changed",
            "A tracepoint or trace event has changed ({section}).",
        ),
        (r"\.BTF", "btf-ids-changed", "A list of types or functions for BPF has changed ({section})."),
        (
            r"\.data\.\.percpu",
            "data-object-changed",
            "The initial value of a per-CPU variable has changed ({section}).",
        ),
        (
            r"\.(data|bss|rodata)$|\.(data|bss|rodata)\.\.",
            "data-object-changed",
            "Variables in the shared section {section} have changed.",
        ),
        (r"\.(data|bss|rodata)\b", "data-object-changed", "The value of the variable '{object}' has changed."),
        (
            r"\.text\.(?!\.)",
            "section-changed",
            "The code in section {section} has changed, and belongs to no function that could be replaced.",
        ),
        (
            r"\.text(\.\.|$)|\.[\w.]+\.text",
            "shared-text-section",
            "A function in the shared section {section} has changed.",
        ),
    )
)

MESSAGES: tuple[Message, ...] = (
    # -- progress
    _message(r"changed function: \S+|new function: \S+"),
    _message(r"unreconcilable difference"),
    # -- what the patch asked for
    _message(rf"found callback: {_F}", "callbacks", "'{function}' runs when the livepatch is loaded or unloaded."),
    _message(
        rf"function '{_F}' marked with KPATCH_FORCE_UNSAFE!",
        "forced-function",
        "The consistency check is switched off for '{function}'.",
    ),
    _message(
        rf"ignoring function: {_F}", "ignored-change", "The change of '{function}' is left out, as the patch says."
    ),
    _message(r"ignoring (?:Lubsan )?section: \S*Lubsan\S*"),
    _message(
        rf"ignoring section: {_N}", "ignored-change", "Changes of section {name} are left out, as the patch says."
    ),
    _message(
        rf"NOTICE: no change detected in function {_F}, unnecessary KPATCH_IGNORE_FUNCTION\(\)\?",
        "ignored-change",
        "The patch says to ignore the change of '{function}', but it does not change.",
    ),
    # -- functions
    _message(
        rf"function {_F} (?:has no fentry/mcount call|doesn't have patchable function entry), unable to patch",
        "no-fentry",
        "'{function}' has changed and cannot be redirected: it was compiled without a call for the function tracer.",
    ),
    _message(
        rf"function {_F} within section \S+ has invalid padding|"
        r"(?P<function2>[^\s:]+): unexpected (?:instruction (?:in patch section of|at the start of the) function|"
        r"missing call to _mcount\(\))",
        "no-fentry",
        "The beginning of '{function}' is not one that can be redirected.",
    ),
    _message(
        r"\d+ function\(s\) can not be patched", "no-fentry", "A changed function cannot be redirected.", total=True
    ),
    _message(
        rf"Found an unsupported sibling call at {_AT}\. .*",
        "sibling-call",
        "'{function}' ends in a jump to another function.",
    ),
    _message(r"Found \d+ unsupported sibling call\(s\).*", "sibling-call", "A function ends in a jump.", total=True),
    _message(
        rf"failed to find parent function for {_N}",
        "parent-function-missing",
        "'{name}' was split off by the compiler, and the function that it is a part of is not there.",
    ),
    # -- sections
    _message(r"changed section (?P<section>\S+) not selected for inclusion", "section-changed"),
    _message(r"data section (?P<section>\S+) selected for inclusion", "section-changed"),
    _message(
        r"changed section (?P<section>\S+) is part of a section group",
        "section-group",
        "Section {section} has changed or is new, and belongs to a section group.",
    ),
    _message(
        r"new/changed group sections are not supported", "section-group", "The change brings a new section group along."
    ),
    _message(
        r"\d+ unsupported section change\(s\)",
        "section-changed",
        "A section has changed that no livepatch can carry.",
        total=True,
    ),
    _message(
        r"(?P<section>\S+) section header details differ from \S+",
        "section-attributes-changed",
        "Section {section} has another type, alignment or other flags than in the original.",
    ),
    # -- symbols
    _message(
        rf"symbol info mismatch: {_N}",
        "symbol-kind-changed",
        "'{name}' is not what it was: static, global, weak, a function or a variable.",
    ),
    _message(
        rf"symbol changed sections: {_N}",
        "symbol-moved",
        "'{name}' has moved to another kind of section (zeroed, initialised or constant data, boot code).",
    ),
    _message(
        rf"object size mismatch: {_N}",
        "data-size-changed",
        "The variable '{name}' has another size than in the kernel.",
    ),
    _message(
        rf"reference to static local variable {_N} in {_F} was removed",
        "static-local-changed",
        "'{function}' no longer uses its static variable '{name}', or uses it in another way than before.",
    ),
    _message(
        rf"static local {_N} has been correlated with \S+, but patched {_F} is missing a reference to it",
        "static-local-changed",
        "'{function}' no longer uses the static variable '{name}'.",
    ),
    _message(
        rf"bundle mismatch for symbol {_N}|sections \S+ and \S+ aren't correlated for symbol (?P<name2>\S+)",
        "static-local-changed",
        "The static variable '{name}' has moved to another section.",
    ),
    _message(
        rf"WARNING: unable to correlate static local variable {_N} used by {_F}, assuming variable is new",
        "static-local-new",
        "The static variable '{name}' in '{function}' is taken to be new and starts from its initial value.",
    ),
    _message(
        rf"can't find (?:local )?symbol '{_N}' in symbol table",
        "symbol-not-found",
        "'{name}' is not in the symbol table of the kernel or module that is to be patched.",
    ),
    _message(
        rf"duplicate (?P<bind>local|global|exported) symbol found for {_N}",
        "symbol-ambiguous",
        "The kernel has more than one {bind} symbol '{name}' that could be meant.",
    ),
    _message(
        rf"found duplicate matches for {_N} local symbols in (?P<parent>\S+) symbol table",
        "symbol-ambiguous",
        "{parent} contains more than one file '{name}' with the same static symbols.",
    ),
    _message(
        r"(?P<section>\S+)\+0x[0-9a-f]+: (?:can't find replacement symbol for (?P<name>\S+)\+-?\d+ reference|"
        r"out-of-range relocation (?P<name2>\S+)\+[0-9a-f]+)",
        "unresolved-reference",
        "{section} refers to a place in '{name}' that belongs to no known variable.",
    ),
    # -- tables that the kernel processes when a module loads
    _message(
        rf"Found a jump label at {_AT}, using key {_N}, which is defined in a module\. .*",
        "jump-label-module",
        "'{function}' tests the static key '{name}', which belongs to a module.",
    ),
    _message(
        rf"Found a jump label at {_AT}, using key {_N}\.  Jump labels aren't supported .*",
        "jump-label-unsupported",
        "'{function}' tests the static key '{name}'.",
    ),
    _message(
        r"Found \d+ unsupported jump label\(s\).*",
        "jump-label-module",
        "The changed code tests a static key.",
        total=True,
    ),
    _message(
        rf"Found a static call at {_AT}, using key {_N}, which is defined in a module\. .*",
        "static-call-module",
        "'{function}' makes a static call with the key '{name}', which belongs to a module.",
    ),
    _message(
        r"Found \d+ unsupported static call\(s\).*",
        "static-call-module",
        "The changed code has a static call.",
        total=True,
    ),
    _message(
        r"unsupported klp relocation reference to symbol '(?P<name>\S+)' in module-specific special section '"
        r"(?P<section>\S+)'",
        "special-section-reference",
        "An entry of {section} in the changed code refers to '{name}', which is not exported.",
    ),
    _message(
        rf"KPATCH_IGNORE_SECTION: can't find {_N}", "kpatch-macro", "KPATCH_IGNORE_SECTION names {name}: there is none."
    ),
    _message(
        r"expected (?:bundled|function) symbol",
        "kpatch-macro",
        "KPATCH_IGNORE_FUNCTION names something else than a function.",
    ),
    # -- our side
    _message(
        r"\w+_STRUCT_SIZE not set|bad ORC_STRUCT_SIZE|bad \.orc_unwind size|\.orc_unwind/\.orc_unwind_ip size mismatch|"
        r"BUG: \S+ has an unexpected format",
        "struct-sizes",
    ),
    _message(
        r"symbol \S+ at offset \d+ within section \S+, expected \d+|missing func for \S+|ELF headers differ|"
        r"ELF contains program header|missing symbol table|missing \.(?:symtab|strtab) section|group section not found|"
        r"scn NULL|bad section size|elf_(?:begin|strptr|getdata|getshdrnum|getshdrstrndx|getphdrnum)|"
        r"gelf_(?:getehdr|getshdr|getsym|getrela)|could(?:n't| not) (?:find|lookup) (?:section|extended|rela) .*|"
        r"can't find base section for rela section \S+|can't decode instruction in section .*",
        "object-malformed",
    ),
    _message(r"couldn't find matching \S+ local symbols in \S+ symbol table", "image-mismatch"),
    _message(
        r"fopen|Module\.symvers: invalid format|unknown symbol (?:bind|type) .*",
        "symbol-table-unreadable",
    ),
    _message(r"malloc.*|realloc|calloc|strn?dup", "tool-out-of-memory"),
    _message(
        r"open|creat|elf_(?:newscn|newdata|flagdata|update)|gelf_(?:newehdr|update_\w+)",
        "tool-io",
    ),
    _message(r"unsupported arch|Unsupported target architecture|\.toc entry not found .*", "architecture-unsupported"),
    _message(
        r"no instruction changes detected for changed section \S+|missing (?:\.rela__ex_table|\.fixup) section|"
        r"can't find (?:\.fixup rela group|instruction for rela|\.kpatch\.strings).*|unhandled rela type \d+|"
        r"size mismatch in (?:funcs sections|rebuilt rela section)|(?:shstrtab|strtab) size mismatch|expected NULL|"
        r"status_str|find_section_by_name|missing \.shstrtab, \.strtab sections",
        "tool-inconsistent",
    ),
    _message(
        r"missing \.kpatch\.(?:strings|symbols section|relocations section)|number of krelas and ksyms do not match|"
        r"find_rela_by_offset|name of ksym not found\?|objname of ksym not found\?|error finding or adding .*|"
        r"base sec of kpatch_arch entry not found",
        "module-malformed",
    ),
    _message(r"Usage: create-(?:diff-object|klp-module) .*", "tool-misused"),
)


def section_meaning(section: str) -> tuple[str, str]:
    """The rule and the message for a section that has changed and cannot be carried by a livepatch."""
    name = section.removeprefix(".rela")
    for pattern, rule, template in _SECTIONS:
        if pattern.match(name):
            found = {
                "section": name,
                "object": re.sub(r"^\.(?:data|bss|rodata)\.(?:rel\.)?(?:ro\.)?(?:local\.)?", "", name),
                "constant": re.sub(r"^runtime_(?:ptr|shift)_", "", name),
            }
            return rule, template.format_map(found)
    return "section-changed", f"Section {name} has changed, and no changed function owns it."
