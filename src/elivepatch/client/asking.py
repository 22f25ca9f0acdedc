# SPDX-License-Identifier: GPL-2.0-or-later
"""Asking a server for a build until it has ended; and once more where that is what the answer calls for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from elivepatch.client.connection import Connection
from elivepatch.client.inputs import Part
from elivepatch.client.output import Output
from elivepatch.errors import HostError, InvalidInputError, NotFoundError, UnavailableError
from elivepatch.kernel.layout import from_kallsyms
from elivepatch.progress import Event
from elivepatch.protocol import limits
from elivepatch.protocol.models import Build, BuildRequest, BuildStatus

#: Of the part 'request' and of the form around the parts.
_FORM_BYTES = 128 * 1024


@dataclass(frozen=True)
class Asking:
    """A connection to the server at ``url``, and how to tell what comes over it. ``timeout`` is seconds for a build.

    ``clock_tolerance`` is how far (seconds) the clocks of host and server may be apart; 0 for as far as may be.
    """

    connection: Connection
    url: str
    output: Output
    root: Path
    timeout: float
    clock_tolerance: float = 0

    def ask(self, request: BuildRequest, parts: Sequence[Part], send_image: Callable[[], str | None]) -> Build:
        """The build of a request, ended.

        The image that a request names may have gone from the server meanwhile: then it is sent again. A refusal
        because the kernel is laid out in another way is asked for again with the layout, so that it names what differs.
        """
        try:
            build = self._build(request, parts)
            gone = request.image is not None and _error(build) == NotFoundError.code
        except NotFoundError:
            if request.image is None:
                raise
            build, gone = None, True
        if gone:
            self.output.line("the server has the image no more")
            request = request.model_copy(update={"image": send_image()})
            build = None
        build = build or self._build(request, parts)
        return self._explained(build, request, parts)

    def _check_clock(self) -> None:
        """Check that both clocks agree: certificates and signatures are valid or not by the clock of this host."""
        ahead = self.connection.clock_ahead
        if ahead is None or not self.clock_tolerance or abs(ahead) <= self.clock_tolerance:
            return
        raise HostError(
            f"The clock of this host is {abs(ahead):.0f} s {'behind' if ahead > 0 else 'ahead of'} that of {self.url}: "
            "what is valid here and now cannot be told.",
            hint="Nothing was loaded. Set the clock that is wrong (timedatectl, chronyc), then ask again; the setting "
            "clock_tolerance says how far they may be apart.",
        )

    def _explained(self, build: Build, request: BuildRequest, parts: Sequence[Part]) -> Build:
        report = build.report
        differs = report is not None and any(found.rule == "layout-mismatch" for found in report.diagnosis)
        if not differs or any(part.part == "symbols" for part in parts):
            return build
        try:
            symbols = Part("symbols", "symbols", from_kallsyms(self.root / "proc/kallsyms").pack())
            if sum(len(part.data) for part in (*parts, symbols)) > limits.REQUEST_BYTES - _FORM_BYTES:
                return build
            self.output.line("the kernel's layout differs: asking again with this host's, to learn where")
            again = self._build(request, [*parts, symbols])
        except (InvalidInputError, UnavailableError) as error:
            self.output.line(f"note: where it differs is not known: {error.message}")
            return build
        return again if again.report else build

    def _build(self, request: BuildRequest, parts: Sequence[Part]) -> Build:
        self.output.line(f"asking {self.url}")
        build_id = self.connection.submit(request, parts)
        self._check_clock()
        self.output.line(f"build: {build_id}")
        endings: list[Event] = []

        def hear(event: Event) -> None:
            if event.kind == "done":
                endings.append(event)
            else:
                self.output.event(event)

        with self.output.working("waiting for the server"):
            build = self.connection.follow(build_id, hear, self.output.line, timeout=self.timeout)
            # why a build gave no module is said once, as the outcome: it can be long
            said = build.report.message if build.report and build.status is not BuildStatus.DONE else None
            for event in endings:
                if event.message != said:
                    self.output.event(event)
        return build


def _error(build: Build) -> str | None:
    return build.report.error if build.report else None
