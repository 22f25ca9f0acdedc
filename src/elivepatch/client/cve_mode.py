# SPDX-License-Identifier: GPL-2.0-or-later
"""The CVE mode: which vulnerabilities the running kernel has, which can be closed now, and closing them.

The server knows the data and tries the fixes; the host says what it runs, which modules it has loaded and which
vulnerabilities its livepatches fix already. What is to be loaded is then asked for as any other patch is.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import click

from elivepatch.client.connection import Connection
from elivepatch.client.host import Host
from elivepatch.client.inputs import InputFile, Wish
from elivepatch.client.outcome import Outcome, refusal
from elivepatch.client.output import Output
from elivepatch.client.request import RequestRun
from elivepatch.client.settings import Settings
from elivepatch.client.state import StateDirectory, write_whole
from elivepatch.errors import (
    HostError,
    InvalidInputError,
    KernelUnavailableError,
    ServerUnavailableError,
    UnavailableError,
)
from elivepatch.kernel.running import RunningKernel
from elivepatch.protocol.cves import CveEntry, CvePlan, CveScan, CveWish
from elivepatch.protocol.models import BuildStatus, Model

#: Written by ``-l``: what was closed before that counts as open again.
_CLEARED = "cves-cleared"
_ONLY_TOLD = (
    "'elivepatch cve list' shows the vulnerabilities of this kernel, and 'elivepatch cve plan' which of them a "
    "livepatch could close: both load nothing."
)


class CveOutcome(Model):
    """How the CVE mode ended.

    ``status``: ``listed`` (nothing was tried), ``planned`` (nothing was loaded), ``applied``, ``stored`` (fetched,
    and not loaded, as ``load = false`` of the settings says), ``nothing`` (there is nothing that can be closed now),
    ``declined``, ``refused`` (see ``outcome``). ``closed`` are the vulnerabilities that the livepatches in force fix
    now.
    """

    status: Literal["listed", "planned", "applied", "stored", "nothing", "declined", "refused"]
    exit_status: int
    kernel: str
    scan: CveScan
    patches: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    outcome: Outcome | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class CveChoice:
    """What the command line asks for: ``until`` says how far to go, ``yes`` that nobody is to be asked."""

    until: Literal["list", "plan", "apply"] = "apply"
    only: tuple[str, ...] = ()
    min_score: float | None = None
    yes: bool = False
    patches: tuple[Path, ...] = ()
    force: bool = False
    accept_warnings: bool = False


@dataclass
class CveRun:
    """One run of the CVE mode."""

    choice: CveChoice
    settings: Settings
    host: Host
    output: Output
    warnings: list[str] = field(default_factory=list[str])

    def run(self) -> CveOutcome | Outcome:
        """Do it; an `Outcome` says why the server made no plan. Raises any ElivepatchError of the client's side."""
        loading = self.choice.until == "apply"
        settings = self.settings if loading else self.settings.model_copy(update={"load": False})
        # the patches that were named come before the fixes, in the plan as in the livepatch
        scanning = self._request(Wish(self.choice.patches), settings)
        kernel, target, _, state = scanning.prepare(settle=loading)
        if scanning.plan.present is not None:  # all that was named is in force: then it is as if nothing was
            scanning = self._request(Wish(()), settings)
            kernel, target, _, state = scanning.prepare(settle=False)
        if target != kernel.release:
            raise InvalidInputError(
                f"The CVE mode is about the running kernel, not about {target}.",
                hint="Leave -a out; elivepatch-server cve scan --kernel looks up any kernel.",
            )
        cleared = state.path / _CLEARED
        closed = tuple(dict.fromkeys(scanning.plan.cves)) if not _is_there(cleared) else ()
        plan = self._ask(scanning, kernel, state, closed)
        if isinstance(plan, Outcome):
            return plan
        self.show(plan)
        ended = self._go_on(plan, kernel, closed)
        if ended.status == "applied":
            with contextlib.suppress(OSError):
                cleared.unlink(missing_ok=True)
        return ended

    def _request(self, wish: Wish, settings: Settings) -> RequestRun:
        return RequestRun(wish, settings, self.host, self.output, self.warnings, otherwise=_ONLY_TOLD)

    # -- asking

    def _ask(
        self, scanning: RequestRun, kernel: RunningKernel, state: StateDirectory, closed: tuple[str, ...]
    ) -> CvePlan | Outcome:
        """The plan, or how it ended without one."""
        inputs = scanning.read_inputs(kernel.release, kernel)
        try:
            wish = CveWish(
                loaded=loaded_modules(self.host.root),
                closed=tuple(sorted(closed)),
                only=tuple(sorted(set(self.choice.only))),
                min_score=self.choice.min_score,
                fixes=self.choice.until != "list",
            )
        except ValueError as error:
            raise InvalidInputError(
                f"These cannot be asked for: {', '.join(self.choice.only) or f'a score of {self.choice.min_score}'}.",
                hint="Names are like CVE-2026-46300, scores from 0 to 10.",
            ) from error
        request = scanning.request(kernel.release, kernel).model_copy(update={"cves": wish})
        with Connection(self.settings.url, self.host.clock, ca_certificate=self.settings.ca_certificate) as connection:
            build = scanning.ask(connection, request, inputs, kernel, state)
        if build.status is not BuildStatus.DONE:
            if build.report is not None and build.report.error == KernelUnavailableError.code:
                self._warn(
                    "what a kernel lacks by its upstream version alone, the server's operator can look up: "
                    f"elivepatch-server cve scan --version X.Y.Z ({kernel.release} is made from one)"
                )
            return refusal(build, kernel.release, tuple(self.warnings))
        if build.report is None or build.report.cves is None:
            raise ServerUnavailableError(
                f"The server {self.settings.url} calls the plan {build.id} done and reports none.",
                hint="Look at the server's log, and whether it is of this version.",
            )
        return build.report.cves

    # -- telling

    def show(self, plan: CvePlan) -> None:
        """The table, and what is not in it."""
        scan = plan.scan
        counts = ", ".join(f"{number} {state}" for state, number in sorted(scan.counts.items()))
        self.output.result(f"{scan.kernel}, made from {scan.version}: {scan.affected} CVEs ({counts})")
        self.output.result(
            f"data of {scan.data_date}" + (", which is older than this kernel" if scan.lower_bound else "")
        )
        if scan.lower_bound:
            self._warn("the data knows less than this kernel: vulnerabilities found since are not in this list")
        if scan.unreadable:
            self._warn(f"entries of the data that cannot be read: {', '.join(scan.unreadable)}")
        for line in table(scan, all_of_them=self.choice.until == "list"):
            self.output.result(line)
        known = {entry.id: entry for entry in scan.cves}
        for name in self.choice.only:
            entry = known.get(name)
            if entry is None:
                self._warn(f"{name} is not among the vulnerabilities of {scan.version}: it is fixed there, or unknown")
            elif entry.trial is None:
                why = f" ({entry.why})" if entry.why else ""
                self.output.result(f"{name} is {what_happens(entry)}{why}")

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.output.warn(text)

    # -- closing

    def _go_on(self, plan: CvePlan, kernel: RunningKernel, closed: tuple[str, ...]) -> CveOutcome:
        states = {entry.id: entry.state for entry in plan.scan.cves}
        # the server knows better than the journal: of some a fix is missing, of others one is in force unrecorded
        kept = {name for name in closed if states.get(name, "closed") == "closed"}
        closed = tuple(sorted(kept | {name for name, state in states.items() if state == "closed"}))
        works = [entry.id for entry in plan.scan.cves if entry.trial is not None and entry.trial.state == "works"]
        ended = CveOutcome(
            status="listed",
            exit_status=0,
            kernel=kernel.release,
            scan=plan.scan,
            patches=tuple(patch.name for patch in plan.patches),
            closed=closed,
            warnings=tuple(self.warnings),
        )
        if self.choice.until == "list":
            return ended
        if plan.problem is not None and self.choice.until == "apply":
            raise UnavailableError(
                plan.problem, hint="Nothing was loaded. Its operator finds in docs/cves.md what the server needs."
            )
        if plan.problem is not None:
            self._warn(plan.problem)
        if not works and not self.choice.patches:
            self.output.result("nothing to do: no vulnerability of this kernel can be closed by a livepatch now")
            return ended.model_copy(update={"status": "nothing"})
        self.output.result(f"{len(works)} CVEs can be closed with {len(plan.patches)} patches")
        if self.choice.until == "plan":
            return ended.model_copy(update={"status": "planned"})
        if not self._agreed(len(works)):
            return ended.model_copy(update={"status": "declined"})
        files = tuple(InputFile(patch.name, patch.text.encode()) for patch in plan.patches)
        wish = Wish(
            self.choice.patches,
            accept_warnings=self.choice.accept_warnings,
            force=self.choice.force,
            given=files,
            cves=tuple(works),
        )
        outcome = self._request(wish, self.settings).run()
        in_force = outcome.status in {"loaded", "present"}
        status = "applied" if in_force else "stored" if outcome.status == "stored" else "refused"
        return ended.model_copy(
            update={
                "status": status,
                "exit_status": outcome.exit_status,
                "outcome": outcome,
                "closed": tuple(sorted({*closed, *works})) if in_force else closed,
                "warnings": tuple(self.warnings),
            }
        )

    def _agreed(self, number: int) -> bool:
        """Whether to load: nobody is asked who said so before, and who cannot be asked has to say so."""
        if self.choice.yes:
            return True
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise HostError(
                "Nothing was loaded: there is no terminal to ask on.", hint="Say it on the command line: --yes."
            )
        return click.confirm(f"Close {number} CVEs in the running kernel?", default=False, err=True)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # what root has closed, and cleared, is not for this user to see
        return False


def clear_record(state: StateDirectory, output: Output) -> None:
    """Forget which vulnerabilities were closed: the next run of the CVE mode looks at all of them again.

    What is loaded stays loaded. Raises HostError.
    """
    output.warn("the record of closed CVEs is cleared: use this with caution, what is loaded stays loaded")
    state.prepare()
    with state.locked():
        write_whole(state.path / _CLEARED, f"{time.time():.0f}\n".encode())


def loaded_modules(root: Path) -> tuple[str, ...] | None:
    """The modules that are loaded (/proc/modules); None where that cannot be read."""
    try:
        text = (root / "proc/modules").read_text()
    except OSError:
        return None
    return tuple(sorted(line.split(" ", 1)[0] for line in text.splitlines() if line))


def table(scan: CveScan, *, all_of_them: bool) -> Iterable[str]:
    """The vulnerabilities in lines, the worst first: what will be done about each, or why nothing."""
    rows = [entry for entry in scan.cves if entry.state in {"affected", "undecided"}]
    rows.sort(key=lambda entry: (-(entry.score or 0), entry.id))
    shown = rows if all_of_them else [entry for entry in rows if entry.trial is not None]
    for entry in shown:
        score = "  - " if entry.score is None else f"{entry.score:4.1f}"
        yield f"{entry.id:16} {score} {what_happens(entry):32} {entry.title}"
        if entry.trial is not None and entry.trial.state in {"refused", "unavailable"} and entry.trial.message:
            yield f"{'':22}{entry.trial.message}"
    if left := len(rows) - len(shown):
        yield f"{left} more have no fix in this branch, or were not looked at; 'elivepatch cve list' shows them"


def what_happens(entry: CveEntry) -> str:
    """What will be done about a vulnerability, in a few words."""
    if entry.state != "affected":
        return entry.state
    if entry.trial is None:
        return f"fixed in {entry.fix_version}" if entry.fix_version else "no fix in this branch"
    if entry.trial.state == "works":
        return "can be closed"
    if entry.trial.state == "refused":
        return "cannot be a livepatch"
    return "fix cannot be had"
