# SPDX-License-Identifier: GPL-2.0-or-later
"""``overlay test``: each patch of an overlay that is for a kernel, built boot-tested by the server; nothing loads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from elivepatch.client.connection import Connection, Part
from elivepatch.client.overlays import OpenOverlay, Overlays, require_known
from elivepatch.errors import ElivepatchError, InvalidInputError, NotFoundError, UnavailableError
from elivepatch.overlay.commits import CommitPatches
from elivepatch.overlay.kernels import KernelIdentity
from elivepatch.overlay.model import Entry
from elivepatch.overlay.selection import Selection, select, with_required
from elivepatch.progress import Event
from elivepatch.protocol.models import Build, BuildRequest, BuildStatus, Model


class Trial(Model):
    """How it went with one patch.

    ``status`` is that of its build, ``error`` where there was none, or ``undecided`` and ``blocked`` for what was not
    tried. ``error`` is a code of docs/errors.md, ``seconds`` how long the build took, ``tried_with`` what it requires.
    """

    overlay: str
    id: str
    status: str
    build: str | None = None
    error: str | None = None
    message: str | None = None
    seconds: float | None = None
    checked: bool | None = None
    tried_with: tuple[str, ...] = ()


class Trials(Model):
    """How it went with all of them; ``good`` is true where every one that was tried is done."""

    kernel: str
    good: bool
    results: tuple[Trial, ...] = ()


@dataclass(frozen=True)
class Trying:
    """One run of ``overlay test``."""

    overlays: Overlays
    verify: bool = True

    def run(self, name: str | None, kernel: KernelIdentity, only: tuple[str, ...]) -> Trials:
        """Try them one after the other. Raises UnavailableError where there is no server."""
        results: list[Trial] = []
        settings = self.overlays.settings
        with (
            Connection(settings.url, self.overlays.host.clock, ca_certificate=settings.ca_certificate) as connection,
            self.overlays.commits() as commits,
        ):
            opened = self.overlays.open(name)
            require_known(opened, only)
            for one in opened:
                selection = select(one.overlay, kernel)
                results += [
                    self._trial(connection, one, entry, selection, kernel, commits)
                    for entry in selection.chosen
                    if not only or entry.id in only
                ]
                results += [
                    Trial(overlay=one.name, id=left.entry.id, status=status, message=left.reason)
                    for status, several in (("blocked", selection.blocked), ("undecided", selection.undecided))
                    for left in several
                ]
        if not results and not only:
            names = ", ".join(one.name for one in opened)
            raise NotFoundError(
                f"No entry of {names} is for {kernel.release}: there is nothing to try.",
                hint="--kernel takes what 'uname -r' prints; 'overlay list --for RELEASE' says what is for it.",
            )
        tried = [result for result in results if result.status not in {"blocked", "undecided"}]
        good = all(result.status == BuildStatus.DONE for result in tried)
        return Trials(kernel=kernel.release, good=good, results=tuple(results))

    def _trial(
        self,
        connection: Connection,
        one: OpenOverlay,
        entry: Entry,
        selection: Selection,
        kernel: KernelIdentity,
        commits: CommitPatches,
    ) -> Trial:
        series = with_required(entry, selection)
        required = tuple(each.id for each in series if each is not entry)
        trial = Trial(overlay=one.name, id=entry.id, status="error", tried_with=required)
        self.overlays.output.line(f"{one.name}: {entry.id}")
        try:
            files = [one.patch(each, commits) for each in series]
            script = one.script(entry)
            parts = [Part("patch", file.name, file.data) for file in files]
            parts += [Part("check", script.name, script.data)] if script and self.verify else []
            build = self._build(connection, kernel, parts)
        except UnavailableError:
            raise
        except ElivepatchError as error:
            return trial.model_copy(update={"error": error.code, "message": error.message})
        report = build.report
        done = build.status is BuildStatus.DONE
        began = build.started or build.created
        return trial.model_copy(
            update={
                "status": str(build.status),
                "build": build.id,
                "error": report.error if report and not done else None,
                "message": report.message if report and not done else None,
                "seconds": round(build.finished - began, 1) if build.finished else None,
                "checked": report.verification.check_after if report and report.verification else None,
            }
        )

    def _build(self, connection: Connection, kernel: KernelIdentity, parts: list[Part]) -> Build:
        output = self.overlays.output
        try:
            request = BuildRequest(kernel=kernel.release, verify=self.verify)
        except ValidationError as error:
            raise InvalidInputError(f"{kernel.release!r} cannot be the name of a kernel.", hint="uname -r") from error
        build_id = connection.submit(request, parts)

        def hear(event: Event) -> None:
            if event.kind != "done":
                output.event(event)

        with output.working("waiting for the server"):
            return connection.follow(build_id, hear, output.line, timeout=self.overlays.settings.build_timeout)


def trial_lines(trials: Trials) -> Iterator[str]:
    """The results as a table."""
    width = max((len(f"{one.overlay}/{one.id}") for one in trials.results), default=0)
    for one in trials.results:
        seconds = f"{one.seconds:6.1f} s" if one.seconds is not None else " " * 8
        said = (one.message or "").splitlines()
        why = f"  {one.error + ': ' if one.error else ''}{said[0]}" if said else "  check passed" if one.checked else ""
        yield f"{f'{one.overlay}/{one.id}':<{width}}  {one.status:<9}  {seconds}{why}".rstrip()
    tried = [one for one in trials.results if one.status not in {"blocked", "undecided"}]
    done = sum(one.status == "done" for one in tried)
    yield f"{done} of {len(tried)} can be livepatches of {trials.kernel}"
