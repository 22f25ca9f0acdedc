# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules by which a build explains a refusal: what each means and what the author of the patch can do instead.

Each rule has its section in docs/refusals.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from elivepatch.build.kernel_rules import KERNEL_RULES, Rule, Severity
from elivepatch.errors import Diagnosis

DOC = "docs/refusals.md"
#: Findings of one run that are worth showing.
FINDINGS_LIMIT = 50
#: Characters of a line of output that are looked at.
LINE_LIMIT = 2000
#: What SYSCALL_DEFINE and COMPAT_SYSCALL_DEFINE make of a system call (include/linux/syscalls.h, linux/compat.h and
#: arch/*/include/asm/syscall_wrapper.h): its body is inline, and so untraced where the compiler does not inline it.
_SYSTEM_CALL = re.compile(r"__(?:do|se|x64|ia32|arm64|s390x?|riscv)_(?:compat_)?sys_(?P<name>\w+)")
_SYSTEM_CALL_HINT = (
    "Move the body into a new function of its own, 'static noinline long', and let SYSCALL_DEFINE only call that: "
    "'{name}' is a system call, whose body the macro makes inline, and inline functions are not traced."
)


_STATE = (
    "Leave the data as it is and change the code that reads it; new variables are possible, and new fields of existing "
    "objects can live in shadow variables (klp_shadow_alloc)."
)
_REPORT = "This is not the patch's fault. Please report it with the log of the build."

_REFUSALS: dict[str, Rule] = {
    "no-functional-change": Rule(
        "The file compiles to the same code as before",
        "Check that the change is not compiled out by this kernel's configuration and touches more than comments, "
        "line numbers or removed functions.",
    ),
    "no-fentry": Rule(
        "The function cannot be redirected, because it does not begin with a call for the function tracer",
        "Make the change in the functions that call it instead, for instance with a copy of it under a new name.",
    ),
    "init-code": Rule(
        "Code or data that exists only while the kernel boots or the module loads has changed",
        "Leave this part out: start-up code has run already, and code for the end of a module cannot be replaced. If "
        "the fix is in there, it needs a reboot, or a corrected module.",
    ),
    "shared-text-section": Rule(
        "A function in a section that it shares with others has changed",
        "Make the change in the functions that call it; code placed by attributes such as __sched or noinstr, or by "
        "assembly, cannot be replaced one function at a time.",
    ),
    "data-object-changed": Rule("The initial value of a variable or table has changed", _STATE),
    "data-size-changed": Rule("A variable or table has another size than in the running kernel", _STATE),
    "static-local-changed": Rule(
        "A static variable inside a function was removed, moved, or is no longer used where it was",
        "Keep the variable and every use of it as it was; read it into a local variable that is not used otherwise.",
    ),
    "static-local-new": Rule(
        "A static variable inside a function has no counterpart in the original and is taken to be new",
        "Check that it may start from its initial value; if it is the renamed or moved form of an old one, keep the "
        "old name and place.",
        severity="warning",
    ),
    "section-changed": Rule(
        "A section that no changed function owns has changed",
        "Find the macro in the patch that places something into this section, and leave that part of the change out.",
    ),
    "section-attributes-changed": Rule(
        "A section has other attributes than in the original",
        "Keep the attributes and qualifiers (const, section, aligned) of what lives in it as they were.",
    ),
    "section-group": Rule(
        "A section that belongs to a section group has changed or is new",
        "Leave out what places code or data into a group (COMDAT) of sections, usually inline assembly.",
    ),
    "symbol-moved": Rule(
        "A function or variable has moved to another kind of section",
        "Keep its qualifiers and attributes as they were (const, __init, __ro_after_init), and whether it has an "
        "initial value other than zero.",
    ),
    "symbol-kind-changed": Rule(
        "A function or variable has changed between static, global and weak, or in its kind",
        "Keep the old declaration; add a new function with another name where one is needed elsewhere.",
    ),
    "symbol-not-found": Rule(
        "A function or variable that the patched code needs is not in the running kernel's symbol table",
        "It may be inlined away, replaced by a strong definition, or discarded at link time: change its callers, or "
        "put a copy under a new name into the patch.",
    ),
    "symbol-ambiguous": Rule(
        "A name occurs more than once in the kernel and the right one cannot be told",
        "Make the change in a function whose name is unique, or avoid the use of the ambiguous name in new code.",
    ),
    "parent-function-missing": Rule(
        "The compiler has split off a part of a function that cannot be assigned to one",
        "Simplify the change so that the compiler keeps the function whole, for instance with noinline on its helpers.",
    ),
    "unresolved-reference": Rule(
        "The code refers to a place in a section that belongs to no known variable",
        "Write the access that the change adds in another way (an index instead of a pointer beyond the object).",
    ),
    "export-changed": Rule(
        "The set of exported symbols has changed",
        "Remove EXPORT_SYMBOL from the patch: a function that only the patched files use needs none.",
    ),
    "module-parameter": Rule(
        "Module information or a module parameter has changed",
        "Leave out MODULE_* and module_param lines: they are read when a module loads, which has already happened.",
    ),
    "tracepoint-changed": Rule(
        "The definition of a tracepoint or trace event has changed",
        "Leave the trace header as it is and trace new code with an existing event, or not at all.",
    ),
    "system-call": Rule(
        "A system call is new, or its name or parameters have changed",
        "Leave it out: the table of system calls is fixed while the kernel runs. Bodies of existing ones can change.",
    ),
    "btf-ids-changed": Rule(
        "A list of types or functions for BPF has changed",
        "Leave out changes to BTF_ID and kfunc lists: they are resolved when the kernel is linked.",
    ),
    "alternative-aux": Rule(
        "Helper code of a CPU feature test (static_cpu_has) has changed",
        "Test the feature with boot_cpu_has() in the changed code, or move the code with the test to a new function.",
    ),
    "runtime-constant": Rule(
        "The change adds or moves a use of a constant that is filled in at boot",
        "Keep such accesses (user memory, directory cache lookups) in functions that do not change, and call those.",
    ),
    "jump-label-module": Rule(
        "The changed code tests a static key that belongs to a module",
        "Use static_key_enabled(&key) in the changed function instead of static_branch_likely() or _unlikely().",
    ),
    "jump-label-unsupported": Rule(
        "The changed code tests a static key, which livepatches of this kernel cannot do",
        "Use static_key_enabled(&key) in the changed function instead of static_branch_likely() or _unlikely().",
    ),
    "static-call-module": Rule(
        "The changed code makes a static call whose key belongs to a module",
        "Call through the function pointer of the key in the changed function (static_call_query) instead.",
    ),
    "special-section-reference": Rule(
        "Code of a module refers to an unexported symbol from a table that is processed when a module loads",
        "Keep the macro that makes the table entry (an alternative, a paravirtual call) out of the changed function, "
        "for instance in a new function of its own.",
    ),
    "sibling-call": Rule(
        "The changed function ends in a jump to another one, which livepatches of this architecture cannot do",
        'Add __attribute__((optimize("-fno-optimize-sibling-calls"))) to the changed function.',
    ),
    "kpatch-macro": Rule(
        "A kpatch macro in the patch names something that is not there",
        "Give KPATCH_IGNORE_SECTION the name of an existing section and KPATCH_IGNORE_FUNCTION a function.",
    ),
    "undefined-symbol": Rule(
        "The patched code uses a symbol that this kernel offers to no module",
        "Use a function that this kernel has, or bring the definition along in the patch.",
    ),
    "duplicate-definition": Rule(
        "A new global symbol has a name that the kernel, or another patched file, has already",
        "Make the new symbol static, or name it otherwise. Leave a function in its file, and change it there.",
    ),
    "symbol-namespace": Rule(
        "The patched code uses a symbol from a namespace that it does not import",
        "Use another function: the import of a namespace cannot be added to a running object.",
    ),
    "section-mismatch": Rule(
        "Code that stays refers to code or data that is freed after the boot",
        "Do not use __init or __exit functions and data in code that runs later.",
        severity="warning",
    ),
    "compile-error": Rule(
        "The compiler does not accept the patched source",
        "Build the patched kernel source with this configuration, and correct the patch.",
    ),
    "compile-warning": Rule(
        "The compiler warns about the patched source", "Check whether the change is what was meant.", severity="warning"
    ),
    "objtool": Rule(
        "objtool found code that it does not understand",
        "Look for inline assembly or a missing return in the function; stack traces through it may be unreliable, and "
        "a transition needs reliable ones.",
        severity="warning",
    ),
}

_NOTES: dict[str, Rule] = {
    "forced-function": Rule(
        "The patch switches off the consistency check for a function",
        "Make sure that old and new code may run at the same time, or remove KPATCH_FORCE_UNSAFE.",
        severity="warning",
    ),
    "ignored-change": Rule(
        "The patch tells the differ to ignore a change",
        "Check that it is harmless to leave it out.",
        severity="warning",
    ),
    "module-not-run": Rule(
        "The guest of the boot test has no device for a module that the patch changes",
        "The livepatch was applied to a copy of the module that has no init; none of its code ran. Try it first on a "
        "host that has such a device and is not needed.",
        severity="warning",
    ),
    "callbacks": Rule(
        "The patch runs code of its own when it is loaded or unloaded",
        "Check that the callback undoes what it did when the livepatch is reverted.",
        severity="note",
    ),
}

#: What only the kernel's own differ says.
KLP_RULES: dict[str, Rule] = {
    "module-dependency": Rule(
        "The change makes a module need another one",
        "Use a function of vmlinux, or of a module that the patched one needs already.",
    ),
    "tracepoint-off": Rule(
        "A tracepoint or pr_debug() of a module is without effect in the changed code",
        "Nothing needs to be done, unless it is wanted there: a livepatch cannot have those of a module.",
        severity="warning",
    ),
}

_OURS: dict[str, Rule] = {
    "tool-crashed": Rule("A tool was ended by a signal", _REPORT, ours=True),
    "compiler-crashed": Rule(
        "The compiler crashed or was killed",
        "Try again; if it happens again, report it with the log of the build and the patch.",
        ours=True,
    ),
    "tool-unknown-message": Rule("A tool failed with a message that is not known", _REPORT, ours=True),
    "tool-inconsistent": Rule("The differ met something it did not expect of itself", _REPORT, ours=True),
    "tool-misused": Rule("A tool was called with wrong arguments", _REPORT, ours=True),
    "tool-io": Rule("The differ could not read or write a file", _REPORT, ours=True),
    "tool-out-of-memory": Rule(
        "The differ could not get memory",
        "Try again with more memory. If that does not help, report it with the log of the build.",
        ours=True,
    ),
    "struct-sizes": Rule("The differ was given no or wrong sizes of the kernel's tables", _REPORT, ours=True),
    "object-malformed": Rule("The compiled objects are not of the form that the differ needs", _REPORT, ours=True),
    "image-mismatch": Rule("The original object is not found in the symbol table of the image", _REPORT, ours=True),
    "symbol-table-unreadable": Rule("The kernel's symbol table or Module.symvers cannot be read", _REPORT, ours=True),
    "architecture-unsupported": Rule("The differ does not know this architecture", _REPORT, ours=True),
    "module-malformed": Rule("The livepatch module cannot be put together", _REPORT, ours=True),
}

#: Rule id → what it means. The ids are stable: they go into reports and are anchors of docs/refusals.md.
RULES: Mapping[str, Rule] = MappingProxyType({**KERNEL_RULES, **_REFUSALS, **KLP_RULES, **_NOTES, **_OURS})


def finding(
    rule: str,
    message: str,
    *,
    file: str | None = None,
    line: int | None = None,
    function: str | None = None,
    severity: Severity | None = None,
) -> Diagnosis:
    """A finding under a rule, with the rule's hint, severity (unless given) and place in the documentation."""
    meaning = RULES[rule]
    hint = meaning.hint
    if rule == "no-fentry" and function and (call := _SYSTEM_CALL.fullmatch(function)):
        hint = _SYSTEM_CALL_HINT.format(name=call["name"])
    return Diagnosis(
        rule=rule,
        message=message,
        severity=severity or meaning.severity,
        file=file,
        line=line,
        function=function,
        hint=hint,
        doc=f"{DOC}#{rule}",
    )
