# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel means when it does not take a module, and what to do about it."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

SIGNATURE_HINT = (
    "Sign the module with a key that this kernel trusts (a machine owner key enrolled with mokutil, or one built into "
    "the kernel), or boot without module.sig_enforce and lockdown."
)
LOG_HINT = "The kernel log says more: dmesg | tail -n 20"

#: What the errno of finit_module means for a livepatch, and a hint (kernel/module/main.c, kernel/livepatch/core.c).
_MEANINGS: dict[int, tuple[str, str]] = {
    errno.EPERM: (
        "this process may not load modules, or the kernel is locked down",
        "Run as root, outside of a container. " + SIGNATURE_HINT,
    ),
    errno.EKEYREJECTED: ("its signature is missing or was rejected", SIGNATURE_HINT),
    errno.ENOKEY: ("it is signed with a key that this kernel does not trust", SIGNATURE_HINT),
    errno.EBADMSG: ("its signature is malformed", "Have it built and signed again."),
    errno.ENOEXEC: ("it is not a module for this kernel (vermagic, symbol versions or format)", LOG_HINT),
    errno.EEXIST: (
        "a module of this name is already loaded",
        "See 'elivepatch status'; revert that one first with 'elivepatch revert NAME'.",
    ),
    errno.EBUSY: (
        "another livepatch loads at this moment, or a probe has hold of a function that it replaces",
        f"Wait for its end, or take the probe away, then try again. {LOG_HINT}",
    ),
    errno.ENOENT: ("it needs a symbol that this kernel does not have", LOG_HINT),
    errno.EINVAL: ("the kernel's livepatch core refused it", LOG_HINT),
    errno.ENOMEM: ("the kernel has no memory for it", "Free some memory and try again."),
    errno.EACCES: (
        "a security module of this kernel forbids it",
        "Look at the audit log; loadpin, IMA or SELinux may.",
    ),
    errno.ENOSYS: ("the kernel cannot load modules or livepatches", "A kernel with CONFIG_LIVEPATCH=y is needed."),
    errno.ETXTBSY: ("its file is open for writing", "See who writes to it: fuser -v FILE"),
}


def load_error(number: int, root: Path | None = None) -> tuple[str, str]:
    """The meaning of an errno of a load, and a hint; ``root`` is the host's, where that may tell more."""
    if number == errno.EBUSY and root is not None:
        with contextlib.suppress(OSError):
            # register_ftrace_function() has the same errno for it (kernel/trace/ftrace.c)
            if (root / "proc/sys/kernel/ftrace_enabled").read_text().strip() == "0":
                return "ftrace is switched off, which livepatches need", "Switch it on: sysctl kernel.ftrace_enabled=1"
    return _MEANINGS.get(number, (os.strerror(number), LOG_HINT))
