# SPDX-License-Identifier: GPL-2.0-or-later
"""Loading a module that was built elsewhere: its file and the report of its build take the place of a server.

A module that no build of elivepatch made has no report. It is loaded where somebody says so, checked for what it says
about itself and no more, and for the running boot alone.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from elivepatch.client.acceptance import (
    AcceptedModule,
    check_can_load,
    check_fits,
    check_layout,
    check_module,
    check_unproven,
)
from elivepatch.client.activation import FORCE_WARNING, Activation, is_present
from elivepatch.client.host import Host
from elivepatch.client.inputs import named_cves, read_file, read_patches
from elivepatch.client.journal import Entry, Journal, Record, StoredModule, new_id
from elivepatch.client.outcome import ModuleOnHost, Outcome
from elivepatch.client.output import Output, finding_text
from elivepatch.client.plan import Plan, PlannedPatch, keep_patches, make_plan
from elivepatch.client.settings import Settings
from elivepatch.client.settle import Settling
from elivepatch.client.state import StateDirectory, write_whole
from elivepatch.errors import ElivepatchError, HostError, InvalidInputError, ModuleRejectedError
from elivepatch.kernel.running import RunningKernel, livepatch, running_kernel
from elivepatch.protocol import limits
from elivepatch.protocol.models import BuildRequest, ChangedFunction, Report

_REPORT_BYTES = 16 * 1024 * 1024
#: A parameter of a module. Within quotes the kernel takes all but a quote (kernel/params.c, lib/cmdline.c).
_PARAMETER = re.compile(r'([A-Za-z0-9_-]+)(?:=([^"\x00-\x1f\x7f]*))?')
_PARAMETERS_BYTES = 4096
UNPROVEN_WARNING = (
    "--no-report: nothing is known of what this module changes. It is not proven to fit this kernel and was not tried; "
    "it is loaded until the host goes down, and not again at boot."
)


@dataclass(frozen=True)
class FileWish:
    """What the command line asks for: a module, its report, and the patches that it was made from, if known.

    Without a report it may have ``parameters`` and be loaded ``beside`` the livepatches in force.
    """

    module: Path
    report: Path | None
    patches: tuple[Path, ...] = ()
    parameters: tuple[str, ...] = ()
    accept_warnings: bool = False
    drop_earlier: bool = False
    beside: bool = False
    force: bool = False


@dataclass(frozen=True)
class FileLoad:
    """Loads one module from a file. ``warnings`` takes what the person should know."""

    wish: FileWish
    settings: Settings
    host: Host
    output: Output
    warnings: list[str]

    def run(self) -> Outcome:
        """Check the module as one that comes from a server is checked, keep it, load it.

        Raises HostError, ModuleRejectedError and what else `Loader.load` raises, InvalidInputError for what is no
        report and no parameter.
        """
        parameters = self._parameters()
        kernel = running_kernel(self.host.root)
        for text in check_can_load(kernel, self.host.user):
            self._warn(text)
        if self.wish.force:
            self._warn(FORCE_WARNING)
        data = read_file(self.wish.module, "module", limits.MODULE_BYTES).data
        report = None
        if self.wish.report is None:
            module = check_unproven(data, kernel)
            self._warn(UNPROVEN_WARNING)
        else:
            report = self._report(self.wish.report)
            module = self._checked(data, report, kernel)
        state = StateDirectory(self.settings.state_dir, self.host.user)
        with state.locked(patience=10):
            Settling(self.host, self.settings, state, self.output).run(kernel)
            kernel = running_kernel(self.host.root)
            digest = hashlib.sha256(data).hexdigest()
            stored = state.place_for(module.release, module.name, digest)
            outcome = Outcome(
                status="present",
                exit_status=0,
                kernel=kernel.release,
                module=ModuleOnHost(name=module.name, sha256=digest, size=len(data), stored=str(stored)),
                warnings=tuple(self.warnings),
            )
            if is_present(module.name, digest, kernel, state, self.host, parameters=parameters):
                return outcome
            plan = self._plan(module, kernel, state)
            entry = self._entry(report, module, plan, kernel, outcome)
            entry = entry.model_copy(update={"parameters": parameters})
            return self._load(data, stored, entry, module, plan, kernel, state, outcome)

    def _parameters(self) -> str:
        """The module's parameters as the kernel parses them. Raises InvalidInputError."""
        words: list[str] = []
        for text in self.wish.parameters:
            found = _PARAMETER.fullmatch(text)
            if not found:
                raise InvalidInputError(f"{text[:80]!r} is no parameter of a module.", hint="Write NAME=VALUE.")
            words.append(f'{found[1]}="{found[2]}"' if found[2] and " " in found[2] else text)
        joined = " ".join(words)
        if len(joined.encode()) > _PARAMETERS_BYTES:
            raise InvalidInputError(
                f"The module's parameters take {len(joined.encode())} bytes.",
                hint=f"At most {_PARAMETERS_BYTES} are passed on.",
            )
        if joined and self.settings.kpatch:
            raise InvalidInputError("The program kpatch takes no parameters.", hint="Load it without --kpatch.")
        return joined

    def _report(self, path: Path) -> Report:
        data = read_file(path, "report", _REPORT_BYTES).data
        try:
            return Report.model_validate_json(data)
        except ValidationError as error:
            raise InvalidInputError(
                f"{path} is not the report of a build: {error.errors()[0]['msg']}.",
                hint="Give what 'elivepatch-server build --json' prints.",
            ) from error

    def _checked(self, data: bytes, report: Report, kernel: RunningKernel) -> AcceptedModule:
        said = report.module
        if report.status != "done" or said is None:
            raise InvalidInputError(
                f"{self.wish.report} is the report of a build that gave no module.", hint="Build it again."
            )
        if len(data) != said.size or hashlib.sha256(data).hexdigest() != said.sha256:
            raise ModuleRejectedError(
                f"{self.wish.module} is not the module that the report describes (SHA-256 or size differ).",
                hint="It was not loaded. Take both from the same build; copy anew what is cut off or changed.",
            )
        module = check_module(data, report, kernel.release)
        asked = BuildRequest(
            kernel=kernel.release,
            build_id=kernel.build_id,
            verify=self.settings.verify,
            proof=self.settings.proof,
        )
        check_fits(module, report, kernel, asked)
        self.output.findings(report.diagnosis)
        self.warnings.extend(finding_text(finding) for finding in report.diagnosis)
        if not self.wish.accept_warnings:
            check_layout(report)
        return module

    def _plan(self, module: AcceptedModule, kernel: RunningKernel, state: StateDirectory) -> Plan:
        """What the module contains and replaces. Raises HostError where effects would be lost without a word."""
        named = read_patches(self.wish.patches)
        plan = make_plan(named, kernel, state, drop=self.wish.drop_earlier or self.wish.beside or not named)
        if self.wish.beside:
            return Plan(tuple(PlannedPatch.of(file) for file in named), replaces=plan.replaces)
        if not self.wish.drop_earlier and plan.replaces:
            contained = {file.sha256 for file in named}
            lost = [patch.name for patch in plan.patches if patch.sha256 not in contained]
            if lost or plan.dropped:
                raise HostError(
                    f"{module.name} would replace {', '.join(plan.replaces)} and is not said to contain "
                    f"{', '.join(lost) or 'its patches'}.",
                    hint="It was not loaded. Name all patches that it was made from with -p, or let the effects of the "
                    "earlier one go with --drop-earlier.",
                )
        for text in plan.losses():
            self._warn(text)
        patches = tuple(PlannedPatch.of(file) for file in named)
        return Plan(patches, replaces=plan.replaces, dropped=plan.dropped)

    def _entry(
        self, report: Report | None, module: AcceptedModule, plan: Plan, kernel: RunningKernel, outcome: Outcome
    ) -> Entry:
        known = outcome.module
        entry = Entry(
            id=new_id(),
            release=kernel.release,
            build_id=kernel.build_id,
            patches=plan.journalled(),
            replaces=() if self.wish.beside else plan.replaces,
            cves=named_cves(plan.files),
            module=known and StoredModule(name=module.name, sha256=known.sha256, size=known.size, path=known.stored),
            verified=False,
            unproven=report is None,
        )
        if report is None:
            return entry
        verification = report.verification
        return entry.model_copy(
            update={
                "key": report.key,
                "proof": report.proof.level if report.proof else None,
                "verified": bool(verification and verification.reverted),
                "changed": report.changed,
            }
        )

    def _load(
        self,
        data: bytes,
        stored: Path,
        entry: Entry,
        module: AcceptedModule,
        plan: Plan,
        kernel: RunningKernel,
        state: StateDirectory,
        outcome: Outcome,
    ) -> Outcome:
        record = Journal(state).begin(entry)
        record.step("received", boot_id=kernel.boot_id, detail="from a file")
        try:
            state.prepare(stored.parent)
            keep_patches(plan.files, state)
            write_whole(stored, data)
            activation = Activation(self.host, self.settings, state, kernel, self.output, self._warn)
            done = activation.run(
                record,
                module,
                stored,
                hashlib.sha256(data).hexdigest(),
                replaces=plan.replaces,
                beside=self.wish.beside,
                force=self.wish.force,
            )
            if module.functions is None:
                self._note_functions(record, module.name)
        except ElivepatchError as error:
            record.fail(error.message, boot_id=kernel.boot_id)
            raise
        except KeyboardInterrupt:
            record.fail("interrupted", boot_id=kernel.boot_id)
            raise
        return outcome.model_copy(
            update={
                "status": "loaded",
                "patches": plan.contained(),
                "replaced": done.replaced,
                "dropped": plan.dropped,
                "transition_seconds": done.transition_seconds,
                "forced": done.forced or None,
                "taint": done.taint,
                "warnings": tuple(self.warnings),
            }
        )

    def _note_functions(self, record: Record, name: str) -> None:
        try:
            record.note(changed=self._functions(name))
        except ElivepatchError as error:  # it is in force
            self._warn(f"the journal could not be told what {name} changes: {error.message}")

    def _functions(self, name: str) -> tuple[ChangedFunction, ...]:
        """What the kernel says that the livepatch changes."""
        held = livepatch(name, self.host.root)
        return tuple(
            ChangedFunction(object=one.object, function=one.function, kind="changed")
            for one in (held.functions if held else ())
        )

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.output.warn(text)
