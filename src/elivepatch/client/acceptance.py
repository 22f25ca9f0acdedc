# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a module that came from a server is what was asked for, and may be loaded into this kernel.

Decides only; nothing here reads a file. The bytes are already those that the report describes (`Connection.module`).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from elivepatch.client.journal import Entry
from elivepatch.errors import BuildIdMismatchError, Diagnosis, HostError, ModuleRejectedError
from elivepatch.kernel.module_file import ModuleFile, read_module
from elivepatch.kernel.running import RELEASE, RunningKernel
from elivepatch.protocol.models import BuildRequest, BuildStatus, Report

#: MODULE_NAME_LEN is 64 less a pointer (include/linux/module.h), with the NUL.
MODULE_NAME = re.compile(r"[A-Za-z0-9_]{1,55}")

#: How many functions a report may name, so that the journal can keep them; and how long the names may be, with that
#: of the object: KSYM_NAME_LEN is 512 (include/linux/kallsyms.h).
_FUNCTIONS = 4096
_FUNCTION_NAME = 512 + 64

#: Rules of the doctor (docs/patches.md) whose warning means that patched code would meet memory of the old layout.
#: No boot test can rule that out: the guest has little of the memory that a host has in use.
LAYOUT_RULES = frozenset({"struct-layout", "data-layout"})

#: What a host that cannot load anything gets all the same, of a request for a module.
ONLY_FETCHED = "With --no-load -o FILE the module is only fetched."


@dataclass(frozen=True)
class AcceptedModule:
    """A module that passed. ``functions`` are the (object, function) that it replaces, None where no report says."""

    name: str
    release: str
    file: ModuleFile
    functions: frozenset[tuple[str, str]] | None


def kernel_name(name: str) -> str:
    """A module's name as the kernel writes it."""
    return name.replace("-", "_")


def check_module(data: bytes, report: Report, release: str | None) -> AcceptedModule:
    """Check that the file is the livepatch that the report describes, for the kernel ``release``.

    None for ``release`` takes the one that the report names. Raises ModuleRejectedError.
    """
    said = report.module
    if said is None or report.kernel is None:
        raise _rejected("the report of the server names no module or no kernel")
    if report.status is not BuildStatus.DONE or report.error or report.exit_status:
        raise _rejected(f"its report says that the build ended as {report.status} ({report.error or 'no error'})")
    wanted = release or report.kernel.release
    if not RELEASE.fullmatch(wanted):
        raise _rejected(f"the report names the kernel {wanted[:80]!r}, which cannot be a release")
    file = read_module(data)
    name = kernel_name(said.name)
    if not MODULE_NAME.fullmatch(name):
        raise _rejected(f"{said.name[:80]!r} cannot be the name of a module")
    if file.name is None or kernel_name(file.name) != name:
        raise _rejected(f"the server calls it {said.name}, the module calls itself {file.name}")
    if not file.livepatch:
        raise _rejected(f"{name} is not marked as a livepatch")
    if file.release != wanted or report.kernel.release != wanted:
        raise _rejected(f"{name} is for the kernel {file.release}, not for {wanted}")
    if len(report.changed) > _FUNCTIONS or any(len(f.object + f.function) > _FUNCTION_NAME for f in report.changed):
        raise _rejected(f"its report names more than {_FUNCTIONS} functions, or names that no function can have")
    changed = frozenset((kernel_name(f.object), f.function) for f in report.changed if f.kind == "changed")
    return AcceptedModule(name, wanted, file, changed)


def check_unproven(data: bytes, kernel: RunningKernel) -> AcceptedModule:
    """Check what a module without a report says about itself: that it is a livepatch for the running kernel.

    Raises ModuleRejectedError.
    """
    hint = 'It was not loaded. Build it for the running kernel, with MODULE_INFO(livepatch, "Y").'
    file = read_module(data)
    name = kernel_name(file.name or "")
    if not MODULE_NAME.fullmatch(name):
        raise _rejected(f"{name[:80]!r} cannot be the name of a module", hint=hint)
    if not file.livepatch:
        raise _rejected(f"{name} is not marked as a livepatch", hint=hint)
    if file.release != kernel.release or file.is_for_machine(kernel.machine) is False:
        host = f"this host runs {kernel.release} on {kernel.machine}"
        raise _rejected(f"{name} is for the kernel {file.release}, and {host}", hint=hint)
    return AcceptedModule(name, kernel.release, file, None)


def accept_stored(data: bytes, entry: Entry, kernel: RunningKernel) -> AcceptedModule:
    """Check a module that was accepted before and lay on the disk since, against the journal and the running kernel.

    Raises ModuleRejectedError and BuildIdMismatchError.
    """
    said = entry.module
    hint = "It was not loaded: something changed it on the disk. Ask for its patches again, which fetches it anew."
    if said is None or hashlib.sha256(data).hexdigest() != said.sha256:
        raise _rejected("it is not the one that was checked (its SHA-256 is another)", hint=hint)
    if entry.build_id is None or entry.build_id != kernel.build_id:
        raise BuildIdMismatchError(
            f"{said.name} is for the kernel with the build ID {entry.build_id or '(unknown)'}; "
            f"this host runs {kernel.build_id or '(unknown)'}.",
            hint="It was not loaded. Ask for its patches again, for the running kernel.",
        )
    file = read_module(data)
    if file.name is None or kernel_name(file.name) != said.name or not MODULE_NAME.fullmatch(said.name):
        raise _rejected(f"the journal calls it {said.name[:80]!r}, the module calls itself {file.name}", hint=hint)
    if not file.livepatch or file.release != kernel.release or file.is_for_machine(kernel.machine) is False:
        raise _rejected(f"{said.name} is no livepatch for {kernel.release} on {kernel.machine}", hint=hint)
    changed = frozenset((kernel_name(f.object), f.function) for f in entry.changed if f.kind == "changed")
    if not changed:
        raise _rejected(f"the journal does not know what {said.name} changes", hint=hint)
    return AcceptedModule(said.name, kernel.release, file, changed)


def check_fits(module: AcceptedModule, report: Report, kernel: RunningKernel, asked: BuildRequest) -> None:
    """Check that the module may be loaded into the running kernel: proven for its very build, and tried.

    ``asked`` is the request: whether the module was to be tried in a VM, and the weakest proof that is taken. That of
    level 'layout' counts only where the symbol layout of this kernel was sent, for the server to compare with. Raises
    ModuleRejectedError and BuildIdMismatchError.
    """
    if module.file.is_for_machine(kernel.machine) is False:
        raise _rejected(f"{module.name} is for another machine than this {kernel.machine}")
    proof = report.proof
    taken = ("exact",) if asked.proof == "exact" else ("exact", "layout")
    if proof is None or proof.level not in taken:
        level = proof.level if proof else "absent"
        raise _rejected(f"its proof is {level!r}; only what is proven {' or '.join(map(repr, taken))} is loaded")
    different = [function.function for function in proof.functions if not function.identical]
    if different:
        raise _rejected(f"the original of {different[0]} is not the code of the kernel")
    if proof.level == "layout":
        # an image that the server built has another build ID than the host's own, or else the proof were exact
        if asked.host is None or asked.host.symbols_sha256 is None:
            raise _rejected("its proof is 'layout', and this host did not tell the layout of its kernel")
        if report.kernel is None or report.kernel.image != "built":
            raise _rejected("its proof is 'layout', and the server did not build the kernel that it was held against")
    else:
        _check_build_id(module, report, kernel)
    if not module.functions:
        raise _rejected("the report names no function that it changes")
    verification = report.verification
    if asked.verify and not (verification and verification.booted and verification.loaded and verification.reverted):
        raise _rejected("it has not passed a boot test", hint="With --no-verify it would be loaded all the same.")


def _check_build_id(module: AcceptedModule, report: Report, kernel: RunningKernel) -> None:
    built_for = report.kernel.build_id if report.kernel else None
    if kernel.build_id is None or built_for != kernel.build_id:
        raise BuildIdMismatchError(
            f"{module.name} was built for the kernel with the build ID {built_for or '(unknown)'}; "
            f"this host runs {kernel.build_id or '(unknown)'}.",
            hint="The kernel package was renewed under the same release: reboot into it, or build for the running one.",
        )


def check_can_load(kernel: RunningKernel, user: int, otherwise: str = ONLY_FETCHED) -> tuple[str, ...]:
    """Check that ``user`` can load a livepatch into the running kernel at all; gives what there is to be warned of.

    ``otherwise`` says what can be had without loading. Raises HostError.
    """
    if user != 0:
        raise HostError("Loading a livepatch needs root.", hint=f"Run this with sudo. {otherwise}")
    if not kernel.can_livepatch:
        raise HostError("This kernel cannot be live patched: it has no /sys/kernel/livepatch.", hint=otherwise)
    if kernel.policy.loading_disabled:
        raise HostError("This kernel loads no more modules: kernel.modules_disabled is set.", hint=otherwise)
    if kernel.build_id is None:
        raise HostError("This kernel does not tell its build ID: /sys/kernel/notes has none.", hint=otherwise)
    if kernel.policy.signature_needed:
        return ("this kernel takes only signed modules; one that the server did not sign will not be loaded.",)
    return ()


def layout_findings(report: Report) -> tuple[Diagnosis, ...]:
    """The findings of a build that is done which forbid to load its module, unless a person says otherwise."""
    return tuple(f for f in report.diagnosis if f.rule in LAYOUT_RULES and f.severity != "note")


def check_layout(report: Report) -> None:
    """Check that the patch leaves the layout of existing memory alone. Raises ModuleRejectedError."""
    found = layout_findings(report)
    if not found:
        return
    first = found[0]
    place = ":".join(str(part) for part in (first.file, first.line) if part is not None)
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    raise _rejected(
        f"the patch changes the layout of memory that the kernel has in use ({first.rule}{' in ' if place else ''}"
        f"{place}{more}), and loading it can corrupt data",
        hint="Change the patch so that the layout stays. If you have made sure that no such memory exists or that it "
        "does no harm, --accept-warnings loads it all the same.",
    )


def _rejected(reason: str, *, hint: str | None = None) -> ModuleRejectedError:
    return ModuleRejectedError(
        f"The module is rejected: {reason}.",
        hint=hint or "It was not loaded. Ask again; if it stays so, ask the server's administrator.",
    )
