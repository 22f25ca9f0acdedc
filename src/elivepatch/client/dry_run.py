# SPDX-License-Identifier: GPL-2.0-or-later
"""``--dry-run``: all of a request that changes nothing. What would be sent and loaded is told, and nothing is.

The server is asked which kernels it has at hand, and no more; on this host nothing is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from elivepatch.client.connection import Connection
from elivepatch.client.image import is_wanted
from elivepatch.client.inputs import Part
from elivepatch.client.outcome import DryRunReport, Outcome, SentFile
from elivepatch.client.request import RequestRun
from elivepatch.kernel.build_directory import find_build_directory
from elivepatch.kernel.running import RunningKernel
from elivepatch.protocol.models import BuildRequest, Kernels


class DryRun(RequestRun):
    """A request that is only told."""

    def run(self) -> Outcome:
        """Tell it. Raises what a request raises before it sends anything, and UnavailableError without a server."""
        kernel, target, load, _ = self.prepare(settle=False)
        running = target == kernel.release
        if self.plan.present:
            self.output.line("nothing would be sent, and nothing loaded: all that was named is in force")
            return self._told(target, None)
        inputs = self.read_inputs(target, kernel if running else None)
        request = self.request(target, kernel if running else None)
        image = self._image(request, kernel, base_patches=bool(inputs.base_patches))
        with Connection(self.settings.url, self.host.clock, ca_certificate=self.settings.ca_certificate) as connection:
            prepared = self._is_prepared(connection, request)
        report = DryRunReport(
            url=self.settings.url, load=load, prepared=prepared, files=_files(inputs.parts()), image=image
        )
        self._tell(report, target)
        return self._told(target, report)

    def _told(self, target: str, report: DryRunReport | None) -> Outcome:
        return Outcome(
            status="dry-run",
            exit_status=0,
            kernel=target,
            patches=self.plan.contained(),
            replaced=self.plan.replaces if report and report.load else (),
            dropped=self.plan.dropped,
            dry_run=report,
            warnings=tuple(self.warnings),
        )

    def _image(self, request: BuildRequest, kernel: RunningKernel, *, base_patches: bool) -> str | None:
        """The directory from which the image of the kernel would be sent."""
        if request.host is None or not is_wanted(self.settings, request.host, base_patches=base_patches):
            return None
        directory = self.settings.build_directory or find_build_directory(kernel.release, self.host.root)
        return str(directory) if directory else None

    def _is_prepared(self, connection: Connection, request: BuildRequest) -> bool:
        known = connection.get("/kernels", Kernels).kernels
        if request.build_id is not None:
            return any(entry.build_id == request.build_id for entry in known)
        return any(entry.release == request.kernel for entry in known)

    def _tell(self, report: DryRunReport, target: str) -> None:
        for file in report.files:
            self.output.line(f"would send {file.part}: {file.name}, {file.size} bytes, SHA-256 {file.sha256[:12]}")
        if report.image:
            self.output.line(f"would send the kernel's image from {report.image}, if the server does not have it")
        at_hand = "has this kernel at hand" if report.prepared else "would have to prepare this kernel first"
        self.output.line(f"the server {self.settings.url} answers and {at_hand}")
        if not report.load:
            self.output.line(f"would fetch the module for {target} and check it, and not load it")
            return
        self.output.line(f"would load the module into {target}, once it has passed all checks")
        for name in self.plan.replaces:
            self.output.line(f"would unload {name}, which it replaces")


def _files(parts: Sequence[Part]) -> tuple[SentFile, ...]:
    return tuple(
        SentFile(part=part.part, name=part.name, size=len(part.data), sha256=hashlib.sha256(part.data).hexdigest())
        for part in parts
    )
