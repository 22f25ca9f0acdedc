# SPDX-License-Identifier: GPL-2.0-or-later
"""What the person sees: results on stdout, all else on stderr; plain lines, on a terminal with the current step.

What comes from a server is printed without control characters, so that it cannot play with the terminal.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from elivepatch.errors import Diagnosis, ElivepatchError, HostError, InvalidSettingError
from elivepatch.progress import Event

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

#: How many findings of one rule are shown; ``--json`` has them all.
FINDINGS_SHOWN = 10
#: A pipe in place of the log must not keep anybody waiting.
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def printable(text: str) -> str:
    """The text without control characters; lines and tabs stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def _terminal() -> Console | None:
    """A console where stderr is a terminal. Only then is rich loaded, which takes a fifth of the start."""
    # it is None where stderr is closed, whatever its type says
    if not sys.__stderr__ or not sys.stderr.isatty():
        return None
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False)


def _plain(text: str) -> str:
    """The text for a place where rich would read markup."""
    from rich.markup import escape

    return escape(printable(text).replace("\n", " "))


def _quietly(call: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):
        call()


def _print(text: str, in_ascii: str) -> None:
    """Write to stdout, in ASCII where its encoding does not have all of it. Raises HostError where it takes nothing."""
    try:
        try:
            click.echo(text)
        except UnicodeEncodeError:
            click.echo(in_ascii)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritten(error) from error


def unwritten(error: OSError) -> HostError:
    """What there is to say where stdout takes nothing; nothing more is tried there."""
    give_up_stdout()
    return HostError(
        f"The outcome could not be written to stdout: {error.strerror}.",
        hint="What was done stays done: 'elivepatch status' shows what is loaded.",
    )


def give_up_stdout() -> None:
    """Let what is left for stdout go nowhere: at its end Python would try again, and end with a status of its own."""
    _give_up(sys.stdout)


def give_up_stderr() -> None:
    """Likewise where stderr takes nothing: what was not told does not change how it ended."""
    try:
        if sys.__stderr__:  # as in `_terminal`
            sys.stderr.flush()
    except (OSError, ValueError):
        _give_up(sys.stderr)


def _give_up(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _append(path: Path, text: str) -> None:
    descriptor = os.open(path, _APPEND, 0o600)
    try:
        os.write(descriptor, text.encode("utf-8", "replace"))
    finally:
        os.close(descriptor)


def finding_text(finding: Diagnosis) -> str:
    """A finding about the input on one line: severity, rule, place, reason."""
    place = ":".join(str(part) for part in (finding.file, finding.line) if part is not None)
    where = " ".join(part for part in (place, f"{finding.function}()" if finding.function else "") if part)
    return f"{finding.severity} [{finding.rule}] {where + ': ' if where else ''}{finding.message}"


class Output:
    """Where the client writes to."""

    def __init__(self, *, debug: bool = False, as_json: bool = False) -> None:
        self.debug_wanted = debug
        self.as_json = as_json
        self._terminal = _terminal()
        self._status: Status | None = None
        self._log: Path | None = None

    def log_to(self, path: Path) -> None:
        """Write what is told to a file too, a plain line with the time for each. Raises InvalidSettingError.

        Only its owner can read a file that is made for it; a link is not followed.
        """
        try:
            _append(path, "")
        except OSError as error:
            raise InvalidSettingError(
                f"The log {path} cannot be written: {error.strerror}.", hint="Name another file (log_output)."
            ) from error
        self._log = path

    def _note(self, text: str) -> None:
        if self._log is not None:
            now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            with contextlib.suppress(OSError):  # a full disk is no reason to leave a load half done
                _append(self._log, "".join(f"{now} {line}\n" for line in printable(text).splitlines()))

    @contextlib.contextmanager
    def working(self, what: str) -> Generator[None]:
        """Show, on a terminal, that something goes on; `event` says what."""
        if self._terminal is None:
            yield
            return
        with contextlib.ExitStack() as stack:
            self._status = status = self._terminal.status(what)
            stack.callback(_quietly, status.stop)
            _quietly(status.start)
            try:
                yield
            finally:
                self._status = None

    def line(self, text: str, *, style: str = "") -> None:
        """A line about what is done. A terminal that is gone, or a full disk behind it, keeps nothing from it."""
        self._note(text)
        with contextlib.suppress(OSError):
            if self._terminal:
                self._terminal.print(printable(text), style=style, markup=False, emoji=False, soft_wrap=True)
            else:
                click.echo(printable(text), err=True)

    def debug(self, text: str) -> None:
        """A line that only those see who asked for more."""
        if self.debug_wanted:
            self.line(text, style="dim")

    def warn(self, text: str) -> None:
        """Something that the person should know."""
        self.line(f"warning: {text}", style="yellow")

    def event(self, event: Event) -> None:
        """What the build tells. On a terminal a step replaces the one before it."""
        fraction = event.fraction
        message = event.message if fraction is None or not 0 <= fraction <= 1 else f"{event.message} {fraction:4.0%}"
        if event.kind == "log":
            self.debug(f"    {event.message}")
        elif event.kind == "step" and self._status is not None and not self.debug_wanted:
            self._note(f"server: {message}")
            self._show(message)
        else:
            self.line(f"server: {message}")

    def own_event(self, event: Event) -> None:
        """What this program does itself: how far it is only a terminal shows, in place."""
        if self._status is not None and event.fraction is not None:
            self._show(f"{event.message} {event.fraction:4.0%}")
        elif event.fraction is None:
            self.line(event.message)

    def _show(self, text: str) -> None:
        if self._status is not None:
            with contextlib.suppress(OSError):
                self._status.update(_plain(text))

    def diagnosis(self, finding: Diagnosis) -> None:
        """A finding about the input: rule, place, reason, what to do."""
        self.line(finding_text(finding), style="yellow" if finding.severity == "warning" else "")
        if finding.hint:
            self.line(f"  hint: {finding.hint}")
        if finding.doc:
            self.line(f"  see: {finding.doc}")

    def findings(self, findings: Iterable[Diagnosis]) -> None:
        """All findings, those of one rule together; of a rule that has many only the first."""
        by_rule: dict[str, list[Diagnosis]] = {}
        for finding in findings:
            by_rule.setdefault(finding.rule, []).append(finding)
        for rule, found in by_rule.items():
            for finding in found[:FINDINGS_SHOWN]:
                self.diagnosis(finding)
            if len(found) > FINDINGS_SHOWN:
                self.line(f"… and {len(found) - FINDINGS_SHOWN} more [{rule}]")

    def error(self, error: ElivepatchError) -> None:
        """Why it did not go on, and what to do."""
        self.failure(error.message, error.hint, error.diagnosis)

    def failure(self, message: str, hint: str | None, diagnosis: tuple[Diagnosis, ...]) -> None:
        """Why it did not go on, and what to do."""
        self.line(f"elivepatch: {message}", style="red")
        if hint:
            self.line(f"  hint: {hint}")
        self.findings(finding for finding in diagnosis if finding.message != message)

    def result(self, text: str) -> None:
        """The outcome in words, on stdout; not where JSON was asked for."""
        self._note(text)
        if not self.as_json:
            text = printable(text)
            _print(text, text.encode("ascii", "backslashreplace").decode())

    def data(self, data: dict[str, Any], *, always: bool = False) -> None:  # Any: JSON
        """The outcome as JSON, on stdout, where that was asked for, or ``always``."""
        if self.as_json or always:
            text = json.dumps(data, indent=2, ensure_ascii=False)
            # a terminal takes orders from U+009B too, which JSON lets stand
            shown = "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
            _print(shown, json.dumps(data, indent=2))
