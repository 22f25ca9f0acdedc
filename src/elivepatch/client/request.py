# SPDX-License-Identifier: GPL-2.0-or-later
"""The main job of the client: from a patch to a livepatch in the running kernel, each step in the journal before it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from elivepatch.client.acceptance import AcceptedModule, check_fits, check_layout, check_module, layout_findings
from elivepatch.client.connection import Connection, is_protected
from elivepatch.client.host import Host
from elivepatch.client.inputs import InputFile, Inputs, read_file, read_patches
from elivepatch.client.journal import Entry, Input, Journal, Record, StepName, StoredModule, new_id
from elivepatch.client.loader import Loader, LoaderStep
from elivepatch.client.outcome import Failure, ModuleOnHost, Outcome
from elivepatch.client.output import Output, finding_text
from elivepatch.client.settings import Settings
from elivepatch.client.state import StateDirectory, write_whole
from elivepatch.errors import (
    ElivepatchError,
    HostError,
    InvalidInputError,
    ModuleRejectedError,
    ServerUnavailableError,
)
from elivepatch.kernel.host_configuration import find_configuration
from elivepatch.kernel.running import RunningKernel, livepatch, running_kernel, taint_flags
from elivepatch.progress import Event
from elivepatch.protocol import limits
from elivepatch.protocol.models import Build, BuildRequest, BuildStatus, HostFacts, Report


@dataclass(frozen=True)
class Wish:
    """What the command line asks for, beside the settings."""

    patches: tuple[Path, ...]
    base_patches: tuple[Path, ...] = ()
    output: Path | None = None
    check: Path | None = None
    accept_warnings: bool = False


def host_facts(kernel: RunningKernel) -> HostFacts:
    """The facts of this host as the server takes them; what is too long for it is cut."""
    return HostFacts(
        release=kernel.release,
        version=kernel.version[:512] or None,
        build_id=kernel.build_id,
        machine=kernel.machine[:32],
        distribution=kernel.distribution[:64],
        distribution_version=kernel.distribution_version[:64] if kernel.distribution_version else None,
        compiler=kernel.compiler[:256] if kernel.compiler else None,
        taint=kernel.taint,
        livepatches=tuple(patch.name for patch in kernel.livepatches[:256]),
    )


@dataclass
class RequestRun:
    """One request, from the facts of the host to the outcome."""

    wish: Wish
    settings: Settings
    host: Host
    output: Output
    warnings: list[str] = field(default_factory=list[str])
    record: Record | None = None

    def run(self) -> Outcome:
        """Do it. Raises any ElivepatchError of the client's side; how a build ended is in the outcome."""
        kernel = running_kernel(self.host.root)
        target = self.settings.kernel_version or kernel.release
        running = target == kernel.release
        load = self.settings.load and running
        if self.settings.load and not running:
            self._warn(f"{target} is not the running kernel ({kernel.release}): its module will not be loaded.")
        if load:
            self._check_can_load(kernel)
        self._check_output()
        inputs = self._read_inputs(target, running=running)
        request = self._request(target, kernel if running else None)
        if not is_protected(self.settings.url):
            self._warn(f"{self.settings.url} is plain HTTP: whoever is on the way can change what is loaded here.")
        state = StateDirectory(self.settings.state_dir, self.host.user)
        if load or self.wish.output is None:
            self._begin(state, kernel, target, inputs)
        try:
            with Connection(
                self.settings.url, self.host.clock, ca_certificate=self.settings.ca_certificate
            ) as connection:
                build = self._build(connection, request, inputs)
                if build.status is not BuildStatus.DONE:
                    outcome = _refusal(build, target, tuple(self.warnings))
                    self._step("failed", kernel, detail=outcome.error.message if outcome.error else None)
                    return outcome
                return self._receive(connection, build, kernel, state, load=load, running=running)
        except ElivepatchError as error:
            self._step("failed", kernel, detail=error.message)
            raise
        except KeyboardInterrupt:
            self._step("failed", kernel, detail="interrupted")
            raise

    # -- before

    def _check_can_load(self, kernel: RunningKernel) -> None:
        hint = "With --no-load -o FILE the module is only fetched."
        if self.host.user != 0:
            raise HostError("Loading a livepatch needs root.", hint=f"Run this with sudo. {hint}")
        if not kernel.can_livepatch:
            raise HostError("This kernel cannot be live patched: it has no /sys/kernel/livepatch.", hint=hint)
        if kernel.policy.loading_disabled:
            raise HostError("This kernel loads no more modules: kernel.modules_disabled is set.", hint=hint)
        if kernel.build_id is None:
            raise HostError("This kernel does not tell its build ID: /sys/kernel/notes has none.", hint=hint)
        if kernel.policy.signature_needed:
            self._warn("this kernel takes only signed modules; one that the server did not sign will not be loaded.")

    def _check_output(self) -> None:
        output = self.wish.output
        if output and (output.is_dir() or not output.parent.is_dir()):
            raise InvalidInputError(
                f"The module cannot be written to {output}: that is a directory, or its directory is not there.",
                hint="Give -o the name of a file in a directory that exists.",
            )

    def _read_inputs(self, target: str, *, running: bool) -> Inputs:
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
        check = self.wish.check
        return Inputs(
            patches=read_patches(self.wish.patches),
            base_patches=read_patches(self.wish.base_patches),
            config=InputFile("config", found.data) if found else None,
            check=read_file(check, "check script", limits.CHECK_BYTES) if check else None,
        )

    def _request(self, target: str, kernel: RunningKernel | None) -> BuildRequest:
        try:
            request = BuildRequest(
                kernel=target,
                build_id=kernel.build_id if kernel else None,
                verify=self.settings.verify,
                host=host_facts(kernel) if kernel else None,
            )
        except ValidationError as error:
            raise InvalidInputError(
                f"{target!r} cannot be the name of a kernel: {error.errors()[0]['msg']}.",
                hint="Give a release as 'uname -r' prints it, or leave -a out for the running kernel.",
            ) from error
        about = f"kernel: {target}"
        if kernel:
            about += f", build ID {kernel.build_id}, {kernel.distribution} {kernel.distribution_version or ''}".rstrip()
        self.output.line(about)
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
            patches=tuple(Input(name=file.name, sha256=file.sha256) for file in inputs.patches),
            base_patches=tuple(Input(name=file.name, sha256=file.sha256) for file in inputs.base_patches),
        )
        self.record = Journal(state).begin(entry)
        self._step("requested", kernel)

    # -- the build

    def _build(self, connection: Connection, request: BuildRequest, inputs: Inputs) -> Build:
        parts = inputs.parts()
        self.output.line(f"asking {self.settings.url}")
        build_id = connection.submit(request, parts)
        self.output.line(f"build: {build_id}")
        endings: list[Event] = []

        def hear(event: Event) -> None:
            if event.kind == "done":
                endings.append(event)
            else:
                self.output.event(event)

        with self.output.working("waiting for the server"):
            build = connection.follow(build_id, hear, self.output.line, timeout=self.settings.build_timeout)
            # why a build gave no module is said once, as the outcome: it can be long
            said = build.report.message if build.report and build.status is not BuildStatus.DONE else None
            for event in endings:
                if event.message != said:
                    self.output.event(event)
        return build

    # -- after

    def _receive(
        self,
        connection: Connection,
        build: Build,
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
            check_fits(module, report, kernel, verify=self.settings.verify)
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
            warnings=tuple(self.warnings),
        )
        if self.record is None:
            return outcome
        with state.locked():
            stored = state.modules(module.release) / f"{module.name}.ko"
            on_host = on_host.model_copy(update={"stored": str(stored)})
            known = StoredModule(name=module.name, sha256=on_host.sha256, size=on_host.size, path=str(stored))
            if load and self._is_present(module, on_host.sha256, state, kernel):
                self._step("present", kernel, module=known, build=build.id, key=build.key)
                return outcome.model_copy(update={"status": "present", "module": on_host})
            if load and not self.wish.accept_warnings:
                check_layout(report)
            accepted = sorted({finding.rule for finding in layout_findings(report)}) if load else []
            verification = report.verification
            self._step(
                "received",
                kernel,
                detail=f"accepted with --accept-warnings: {', '.join(accepted)}" if accepted else None,
                build=build.id,
                key=build.key,
                module=known,
                proof=report.proof.level if report.proof else None,
                verified=bool(verification and verification.reverted),
                changed=report.changed,
            )
            state.prepare(stored.parent)
            write_whole(stored, data)
            outcome = outcome.model_copy(update={"module": on_host})
            return self._load(module, stored, kernel, outcome) if load else outcome

    def _tell_findings(self, report: Report) -> None:
        """What the build found and did not refuse: whoever loads the module must know it before."""
        self.output.findings(report.diagnosis)
        self.warnings.extend(
            finding_text(finding) + (f" Hint: {finding.hint}" if finding.hint else "") for finding in report.diagnosis
        )

    def _is_present(self, module: AcceptedModule, sha256: str, state: StateDirectory, kernel: RunningKernel) -> bool:
        """Whether the kernel holds this very module. Raises HostError where it holds another of that name."""
        held = livepatch(module.name, self.host.root)
        if held is None:
            return False
        entry = Journal(state).latest_of(module.name)
        ours = entry and entry.module and entry.module.sha256 == sha256 and entry.last
        if ours and ours.step == "loaded" and ours.boot_id == kernel.boot_id and held.enabled and not held.transition:
            return True
        raise HostError(
            f"The kernel already holds a livepatch named {module.name}, and it is not known to be this one.",
            hint=f"See 'elivepatch status'; revert it first with 'elivepatch revert {module.name}'.",
        )

    def _load(self, module: AcceptedModule, stored: Path, kernel: RunningKernel, outcome: Outcome) -> Outcome:
        def step(name: LoaderStep) -> None:
            self._step(name, kernel)

        loader = Loader(self.host, self.settings.transition_timeout, self.output.line, step)
        self.output.line(f"loading {module.name}")
        with self.output.working("the kernel's tasks move to the patched code"):
            sha256 = outcome.module.sha256 if outcome.module else ""
            loaded = loader.load(stored, sha256, module.file, module.functions, through_kpatch=self.settings.kpatch)
        self._step(
            "loaded",
            kernel,
            transition_seconds=round(loaded.transition_seconds, 3),
            taint_before=loaded.taint_before,
            taint_after=loaded.taint_after,
        )
        flags = taint_flags(loaded.new_taint)
        if flags:
            self._warn(f"the kernel has a new taint: {'; '.join(meaning for _, meaning in flags)}. See dmesg.")
        return outcome.model_copy(
            update={
                "status": "loaded",
                "transition_seconds": round(loaded.transition_seconds, 3),
                "taint": "".join(letter for letter, _ in flags) or None,
                "warnings": tuple(self.warnings),
            }
        )

    def _step(self, step: StepName, kernel: RunningKernel, *, detail: str | None = None, **more: object) -> None:
        if self.record is not None:
            self.record.step(step, boot_id=kernel.boot_id, detail=detail, **more)

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.output.warn(text)


def _refusal(build: Build, kernel: str, warnings: tuple[str, ...]) -> Outcome:
    """The outcome of a build that gave no module."""
    report = build.report
    if report is None and build.status is not BuildStatus.CANCELLED:
        raise ServerUnavailableError(
            f"The server says that the build {build.id} is {build.status}, and not why.", hint="Look at its log."
        )
    status = {BuildStatus.REFUSED: "refused", BuildStatus.CANCELLED: "cancelled"}.get(build.status, "failed")
    error = Failure(
        code=(report.error if report else None) or status,
        message=(report.message if report else None) or f"The build was {status}.",
        hint=report.hint if report else None,
    )
    return Outcome.model_validate(
        {
            "status": status,
            "exit_status": (report.exit_status if report else 0) or 1,
            "kernel": kernel,
            "build": build,
            "error": error,
            "warnings": warnings,
        }
    )
