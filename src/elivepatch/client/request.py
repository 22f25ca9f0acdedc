# SPDX-License-Identifier: GPL-2.0-or-later
"""The main job of the client: from a patch to a livepatch in the running kernel, each step in the journal before it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from elivepatch.client.acceptance import (
    ONLY_FETCHED,
    AcceptedModule,
    check_can_load,
    check_fits,
    check_layout,
    check_module,
    layout_findings,
)
from elivepatch.client.activation import FORCE_WARNING, Activation, is_present
from elivepatch.client.address import is_protected
from elivepatch.client.asking import Asking
from elivepatch.client.base_patches import base_patches
from elivepatch.client.classic import names_running
from elivepatch.client.connection import Connection
from elivepatch.client.facts import check_source, host_facts
from elivepatch.client.host import Host
from elivepatch.client.image import HostImage, is_wanted
from elivepatch.client.inputs import InputFile, Inputs, Wish, named_cves, read_file, read_patches
from elivepatch.client.journal import Entry, Input, Journal, Record, StepName, StoredModule, new_id
from elivepatch.client.outcome import ModuleOnHost, Outcome, refusal
from elivepatch.client.output import Output, finding_text
from elivepatch.client.plan import Active, Plan, PlannedPatch, keep_patches, make_plan
from elivepatch.client.settings import Settings
from elivepatch.client.settle import Settling
from elivepatch.client.state import LockedError, StateDirectory, check_output, write_whole
from elivepatch.errors import (
    ElivepatchError,
    InternalError,
    InvalidInputError,
    ModuleRejectedError,
)
from elivepatch.kernel.host_configuration import find_configuration
from elivepatch.kernel.running import RunningKernel, running_kernel, taint_flags
from elivepatch.protocol import limits
from elivepatch.protocol.models import Build, BuildRequest, BuildStatus, Report


@dataclass
class RequestRun:
    """One request, from the facts of the host to the outcome.

    ``otherwise`` is told where this host cannot load anything: what can be had all the same.
    """

    wish: Wish
    settings: Settings
    host: Host
    output: Output
    warnings: list[str] = field(default_factory=list[str])
    record: Record | None = None
    plan: Plan = field(default_factory=Plan)
    otherwise: str = ONLY_FETCHED

    def run(self) -> Outcome:
        """Do it. Raises any ElivepatchError of the client's side; how a build ended is in the outcome."""
        kernel, target, load, state = self.prepare(settle=True)
        running = target == kernel.release
        if self.plan.present:
            return self._present(self.plan.present, kernel)
        inputs = self.read_inputs(target, kernel if running else None)
        request = self.request(target, kernel if running else None)
        if load or self.wish.output is None:
            self._begin(state, kernel, target, inputs)
            self._step("requested", kernel)
        try:
            with Connection(
                self.settings.url, self.host.clock, ca_certificate=self.settings.ca_certificate
            ) as connection:
                build = self.ask(connection, request, inputs, kernel, state)
                if build.status is not BuildStatus.DONE:
                    outcome = refusal(build, target, tuple(self.warnings))
                    self._step("failed", kernel, detail=outcome.error.message if outcome.error else None)
                    return outcome
                return self._receive(connection, build, request, kernel, state, load=load, running=running)
        except ElivepatchError as error:
            self._fail(error.message, kernel)
            raise
        except KeyboardInterrupt:
            self._fail("interrupted", kernel)
            raise

    # -- before

    def prepare(self, *, settle: bool) -> tuple[RunningKernel, str, bool, StateDirectory]:
        """Make the plan. Gives the running kernel, the release to build for, whether to load, and the state.

        ``settle`` says to make good before what an earlier run left unfinished.
        """
        kernel = running_kernel(self.host.root)
        asked = self.settings.kernel_version or kernel.release
        target = kernel.release if names_running(asked, kernel) else asked
        if target != asked:
            self.output.line(f"{asked} is the version of the running kernel, {target}")
        running = target == kernel.release
        load = self.settings.load and running
        if self.settings.load and not running:
            self._warn(f"{target} is not the running kernel ({kernel.release}): its module will not be loaded.")
        if load:
            for text in check_can_load(kernel, self.host.user, self.otherwise):
                self._warn(text)
            if self.wish.force:
                self._warn(FORCE_WARNING)
        if self.wish.output:
            check_output(self.wish.output)
        state = StateDirectory(self.settings.state_dir, self.host.user)
        if load and settle and state.path.exists():
            kernel = self._settled(state, kernel)
        named = (*read_patches(self.wish.patches), *self.wish.given)
        self.plan = (
            make_plan(named, kernel, state, drop=self.wish.drop_earlier)
            if running
            else Plan(tuple(PlannedPatch.of(file) for file in named))
        )
        self._tell_plan()
        if not self.plan.present and not is_protected(self.settings.url):
            self._warn(f"{self.settings.url} is plain HTTP: whoever is on the way can change what is loaded here.")
        return kernel, target, load, state

    def _settled(self, state: StateDirectory, kernel: RunningKernel) -> RunningKernel:
        """The kernel after what an earlier run left unfinished was made good."""
        try:
            with state.locked():
                Settling(self.host, self.settings, state, self.output).run(kernel)
        except LockedError:
            return kernel  # whoever holds the lock has settled
        return running_kernel(self.host.root)

    def _tell_plan(self) -> None:
        """What the module will contain beside what was named, and what will be lost: before anything is sent."""
        for line in self.plan.lines():
            self.output.line(line)
        for line in self.plan.losses():
            self._warn(line)

    def _present(self, active: Active, kernel: RunningKernel) -> Outcome:
        """Everything that was named is in force: nothing is sent, and nothing is written into the journal."""
        module = active.entry.module
        if self.wish.output:
            write_whole(self.wish.output, active.module_data(), mode=0o644)
        on_host = ModuleOnHost(
            name=active.name,
            sha256=module.sha256 if module else "",
            size=module.size if module else 0,
            stored=module.path if module else None,
            output=str(self.wish.output) if self.wish.output else None,
        )
        return Outcome(
            status="present",
            exit_status=0,
            kernel=kernel.release,
            module=on_host,
            patches=self.plan.contained(),
            warnings=tuple(self.warnings),
        )

    def read_inputs(self, target: str, kernel: RunningKernel | None) -> Inputs:
        """The files to send; ``kernel`` is the running one, if it is the one to build for. Raises InvalidInputError."""
        running = kernel is not None
        found = find_configuration(
            target,
            limit_bytes=limits.CONFIG_BYTES,
            running=running,
            given=self.settings.config,
            root=self.host.root,
        )
        if found:
            self.output.line(f"configuration: {found.origin}")
        else:
            # the module 'configs' gives /proc/config.gz, which is that of the running kernel
            help_ = "modprobe configs may help" if running else "-k names another"
            self.output.line(f"configuration: none found on this host, the server takes the published one ({help_})")
        # a tree of one's own has the patches of the package manager in it, or never had them
        own_tree = (self.settings.kernel_source or "").startswith(("git:", "dir:"))
        base = base_patches(
            kernel,
            self.host.root,
            named=self.settings.base_patches,
            collect=self.settings.collect_base_patches and not own_tree,
        )
        for patch in base:
            self.output.line(f"base patch: {patch.origin}")
        if self.settings.base_patches and not base:
            self.output.line(f"base patches: none in {', '.join(str(path) for path in self.settings.base_patches)}")
        check = self.wish.check
        script = read_file(check, "check script", limits.CHECK_BYTES) if check else self.wish.script
        return Inputs(
            patches=self.plan.files,
            base_patches=tuple(patch.file for patch in base),
            config=InputFile("config", found.data) if found else None,
            check=script,
        )

    def request(self, target: str, kernel: RunningKernel | None) -> BuildRequest:
        """What is asked for. Raises InvalidInputError for what cannot be the name of a kernel."""
        source = self.settings.kernel_source if kernel else None
        if source:
            check_source(source)
        try:
            request = BuildRequest(
                kernel=source or target,
                build_id=kernel.build_id if kernel else None,
                verify=self.settings.verify,
                proof=self.settings.proof,
                host=host_facts(kernel, self.host.root) if kernel else None,
            )
        except ValidationError as error:
            raise InvalidInputError(
                f"{source or target!r} cannot be the name of a kernel: {error.errors()[0]['msg']}.",
                hint="Give a release as 'uname -r' prints it, or leave -a out for the running kernel.",
            ) from error
        about = f"kernel: {target}"
        if kernel:
            about += f", build ID {kernel.build_id}, {kernel.distribution} {kernel.distribution_version or ''}".rstrip()
        self.output.line(about)
        if source:
            self.output.line(f"source: {source}")
        elif self.settings.kernel_source:
            self.output.line(f"source: {self.settings.kernel_source} is that of the running kernel, not used")
        if kernel and kernel.taint:
            flags = "; ".join(f"{letter} ({meaning})" for letter, meaning in taint_flags(kernel.taint))
            self.output.line(f"taint: {flags}")
        return request

    def _begin(self, state: StateDirectory, kernel: RunningKernel, target: str, inputs: Inputs) -> None:
        entry = Entry(
            id=new_id(),
            release=target,
            build_id=kernel.build_id if target == kernel.release else None,
            url=self.settings.url,
            patches=self.plan.journalled(),
            base_patches=tuple(Input(name=file.name, sha256=file.sha256) for file in inputs.base_patches),
            source=self.settings.kernel_source if target == kernel.release else None,
            replaces=self.plan.replaces,
            cves=tuple(sorted({*named_cves(self.plan.files), *self.wish.cves, *self.plan.cves})),
            overlays=tuple(sorted({*self.wish.overlays, *self.plan.overlays})),
        )
        self.record = Journal(state).begin(entry)

    # -- the build

    def ask(
        self,
        connection: Connection,
        request: BuildRequest,
        inputs: Inputs,
        kernel: RunningKernel,
        state: StateDirectory,
    ) -> Build:
        """The build of a request, ended; the image of the kernel is sent before, where it is wanted."""
        parts = inputs.parts()
        facts = request.host
        image = HostImage(kernel, self.settings, self.host, self.output, state, self._warn)

        def send_image() -> str | None:
            return image.send(connection, facts.place if facts else None)

        if facts and is_wanted(self.settings, facts, base_patches=bool(inputs.base_patches)):
            request = request.model_copy(update={"image": send_image()})
        asking = Asking(
            connection,
            self.settings.url,
            self.output,
            self.host.root,
            self.settings.build_timeout,
            self.settings.clock_tolerance if self.settings.load else 0,
        )
        return asking.ask(request, parts, send_image)

    # -- after

    def _receive(
        self,
        connection: Connection,
        build: Build,
        asked: BuildRequest,
        kernel: RunningKernel,
        state: StateDirectory,
        *,
        load: bool,
        running: bool,
    ) -> Outcome:
        report = build.report
        if report is None or report.module is None:
            raise ModuleRejectedError(
                f"The server calls the build {build.id} done and reports no module.", hint="Look at the server's log."
            )
        self._tell_findings(report)
        data = connection.module(build.id, report.module)
        module = check_module(data, report, kernel.release if running else None)
        if load:
            check_fits(module, report, kernel, asked)
            if report.proof and report.proof.level == "layout":
                self._warn("the proof is 'layout': the server built this kernel anew, and its layout is this host's.")
        if self.wish.output:
            write_whole(self.wish.output, data, mode=0o644)
        on_host = ModuleOnHost(
            name=module.name,
            sha256=report.module.sha256,
            size=len(data),
            output=str(self.wish.output) if self.wish.output else None,
        )
        outcome = Outcome(
            status="stored",
            exit_status=0,
            kernel=module.release,
            build=build,
            module=on_host,
            patches=self.plan.contained(),
            warnings=tuple(self.warnings),
        )
        if self.record is None:
            return outcome
        with state.locked(patience=10):
            stored = state.place_for(module.release, module.name, on_host.sha256)
            on_host = on_host.model_copy(update={"stored": str(stored)})
            known = StoredModule(name=module.name, sha256=on_host.sha256, size=on_host.size, path=str(stored))
            if load and is_present(module.name, on_host.sha256, kernel, state, self.host):
                self._step("present", kernel, module=known, build=build.id, key=build.key[:128])
                return outcome.model_copy(update={"status": "present", "module": on_host})
            if load:
                self.plan.check_still_holds(self.host.root)
            if load and not self.wish.accept_warnings:
                check_layout(report)
            accepted = sorted({finding.rule for finding in layout_findings(report)}) if load else []
            verification = report.verification
            self._step(
                "received",
                kernel,
                detail=f"accepted with --accept-warnings: {', '.join(accepted)}" if accepted else None,
                build=build.id,
                key=build.key[:128],
                module=known,
                proof=report.proof.level if report.proof else None,
                verified=bool(verification and verification.reverted),
                changed=report.changed,
            )
            state.prepare(stored.parent)
            keep_patches(self.plan.files, state)
            write_whole(stored, data)
            outcome = outcome.model_copy(update={"module": on_host})
            return self._load(module, stored, kernel, state, outcome) if load else outcome

    def _tell_findings(self, report: Report) -> None:
        """What the build found and did not refuse: whoever loads the module must know it before."""
        self.output.findings(report.diagnosis)
        self.warnings.extend(
            finding_text(finding) + (f" Hint: {finding.hint}" if finding.hint else "") for finding in report.diagnosis
        )

    def _load(
        self, module: AcceptedModule, stored: Path, kernel: RunningKernel, state: StateDirectory, outcome: Outcome
    ) -> Outcome:
        if self.record is None or outcome.module is None:
            raise InternalError("A module is loaded without its entry in the journal.")
        activation = Activation(self.host, self.settings, state, kernel, self.output, self._warn)
        done = activation.run(
            self.record,
            module,
            stored,
            outcome.module.sha256,
            replaces=self.plan.replaces,
            force=self.wish.force,
        )
        return outcome.model_copy(
            update={
                "status": "loaded",
                "replaced": done.replaced,
                "dropped": self.plan.dropped,
                "transition_seconds": done.transition_seconds,
                "forced": done.forced or None,
                "taint": done.taint,
                "warnings": tuple(self.warnings),
            }
        )

    def _step(self, step: StepName, kernel: RunningKernel, *, detail: str | None = None, **more: object) -> None:
        if self.record is not None:
            self.record.step(step, boot_id=kernel.boot_id, detail=detail, **more)

    def _fail(self, detail: str, kernel: RunningKernel) -> None:
        if self.record is not None:
            self.record.fail(detail, boot_id=kernel.boot_id)

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.output.warn(text)
