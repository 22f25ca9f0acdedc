# SPDX-License-Identifier: GPL-2.0-or-later
"""What a rule is, and the rules about what a kernel contains. Each has its section in docs/refusals.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Rule:
    """A kind of finding. ``ours`` says that such an error is a fault of the build, never of the patch."""

    title: str
    hint: str
    severity: Severity = "error"
    ours: bool = False


#: What is found out about the kernel itself, not from the output of a tool.
KERNEL_RULES: dict[str, Rule] = {
    "not-in-kernel": Rule(
        "This kernel does not contain the file",
        "This kernel does not need the patch, unless the file is built outside of the kernel's tree.",
    ),
    "modules-unknown": Rule(
        "The patch may change a module of the kernel, and what modules the kernel has is not known",
        "Send the modules of the host with its image: 'elivepatch image' makes an archive of both, '--image' takes it.",
    ),
    "untraced-file": Rule(
        "The file is compiled without calls for the function tracer",
        "Make the change in the functions that call it, for instance with a corrected copy of it under a new name.",
    ),
    "other-image": Rule(
        "The file becomes code that runs outside of the kernel",
        "Leave it out if the rest of the change works without it; otherwise this needs a reboot.",
    ),
    "header-fan-out": Rule(
        "A header has changed that too many objects include",
        "Make the change in the .c files that need it, for example with a corrected copy of the function under a new "
        "name, or in a header that fewer files include.",
    ),
    "header-users": Rule(
        "How many objects include a changed header, and how many of them change with it",
        "Look at the list of changed functions: all of them are replaced.",
        severity="note",
    ),
    "header-assembly": Rule(
        "A changed header alters assembly code",
        "Leave the part of the header that assembly uses as it is; only functions of C can be replaced.",
    ),
    "read-only-written": Rule(
        "Code that runs later writes to data that is read-only once the kernel has started",
        "Keep what is to change in a variable of its own: one that is new, or a shadow variable. A constant, or what "
        "is __ro_after_init, is set before the kernel has started, or not at all.",
    ),
    "callers-left": Rule(
        "A function takes or gives something else than before, and code that calls it stays as it is",
        "Keep the function as it is, and give the new form another name; or change the callers' declarations as well.",
    ),
    "exported-signature": Rule(
        "An exported function takes or gives something else than before",
        "Load it only where no module from outside of the kernel's source (DKMS) calls the function; or keep it as it "
        "is, and give the new form another name.",
        severity="warning",
    ),
    "file-removed": Rule(
        "The patch removes a source file of this kernel",
        "Keep the file, and change its functions instead: code of the running kernel cannot be taken away.",
    ),
    "foreign-makefile": Rule(
        "The file lies elsewhere than the makefile that may compile it, which does not name it",
        "Make the change in a file that lies below the directory of its module, if one will do.",
    ),
    "line-numbers": Rule(
        "Unchanged lines of a file could not keep the numbers that they have in the kernel's source",
        "Look at the list of changed functions: WARN_ON() and its like tell the line that they stand on, so functions "
        "below the change may be replaced as well. Leave long parts of the file as they are, where that is possible.",
        severity="note",
    ),
    "build-file-ignored": Rule(
        "A file of the build system is ignored, in whole or in part",
        "Check that the change does not depend on it; leave it out of the patch to be sure.",
        severity="warning",
    ),
    "new-file": Rule(
        "The patch adds a source file that cannot become a part of the kernel's objects",
        "Put the new functions into a file that the patch changes anyway, or include the new file there.",
    ),
    "new-file-init": Rule(
        "A new source file has code or data for the start of the kernel or of a module",
        "Leave it out, and do what it does in a function that runs later and that the patch changes.",
    ),
    "variable-renamed": Rule(
        "A variable is gone, and one of the same size is new",
        "If it is the old one under another name, keep the old name: the new one has none of the old one's state.",
        severity="warning",
    ),
    "late-registration": Rule(
        "The patch registers a function that only runs while the kernel boots",
        "Leave it out, and do what it does in a function that runs later and that the patch changes, or in a callback "
        "of the livepatch (docs/macros.md).",
    ),
    "late-parameter": Rule(
        "The patch adds a parameter that cannot be set",
        "Give the variable the value that it is to have.",
        severity="warning",
    ),
    "new-file-export": Rule(
        "A new source file exports symbols",
        "Leave EXPORT_SYMBOL out: what the patch itself calls needs none, and modules cannot find new exports.",
    ),
    "new-file-joined": Rule(
        "A new source file is compiled as a part of one that the patch changes",
        "Static names of the two must differ.",
        severity="note",
    ),
    "proof-failed": Rule(
        "The original of a function is not the kernel's",
        "The running kernel was built from other source, with another configuration or compiler.",
    ),
    "proof-level": Rule(
        "The proof would be weaker than what is accepted",
        "Let the host tell its facts (the client does; 'elivepatch facts' prints them for a one-shot build), or send "
        "its image. To go without, accept a proof of level 'none' (--proof none): then nobody knows whether it fits.",
    ),
    "layout-mismatch": Rule(
        "The kernel that was built from the given source is not laid out as the host's",
        "Name the source, the configuration, the local patches and the compiler that the host's kernel was built with.",
    ),
    "types-mismatch": Rule(
        "The kernel that was built from the given source has other types than the host's",
        "Look for a local patch or an option that changes a structure. Another version of pahole can number the same "
        "types otherwise: then send the host's own image, with which nothing is built.",
    ),
    "init-reference": Rule(
        "The patch uses code or data that exists only while the kernel boots or the module loads",
        "Do without it, or bring along a copy of what is needed under a new name.",
    ),
    "sealed-endbr": Rule(
        "The patch takes the address of a function that the kernel has sealed against indirect calls",
        "Call the function directly, or through a new function of the patch that calls it.",
    ),
}
