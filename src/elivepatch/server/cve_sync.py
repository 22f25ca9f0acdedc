# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps the CVE data and the mirror of the stable branches up to date while the server runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from elivepatch.cves.feed import open_feed
from elivepatch.cves.fixes import open_fixes
from elivepatch.errors import ElivepatchError
from elivepatch.progress import Progress
from elivepatch.server.settings import Settings

_log = logging.getLogger(__name__)


def sync(settings: Settings, progress: Progress) -> None:
    """Read what is new, once. Raises what the feed and the mirror do; without a feed there is nothing to do.

    A mirror that cannot be brought up to date does not keep the data from being: what is known of a kernel counts more
    than whether it can be fixed.
    """
    failed: ElivepatchError | None = None
    if settings.stable_git is not None:  # first: what the data name is to be there
        try:
            open_fixes(settings.stable_git, None, settings.cache).update(progress)
        except ElivepatchError as error:
            _log.warning("The mirror of %s could not be brought up to date: %s", settings.stable_git, error.message)
            failed = error
    if settings.cve_feed is not None:
        state = settings.cve_index.update(open_feed(settings.cve_feed, settings.cache), progress)
        _log.info("CVE data of %s: %d entries.", state.date, state.entries)
    if failed is not None:
        raise failed


class CveSync:
    """Does so again and again. A failure is told by `problems` until it has succeeded again."""

    def __init__(self, settings: Settings, once: Callable[[Settings, Progress], None] = sync) -> None:
        self._settings = settings
        self._once = once
        self._stop = threading.Event()
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._run, name="cve-sync", daemon=True)

    def start(self) -> None:
        """Begin, if there is a feed and a time to do it."""
        if self._settings.cve_feed is not None and self._settings.cve_sync_hours > 0:
            self._thread.start()

    def stop(self) -> None:
        """Ask it to end; what it does at the moment ends with this process."""
        self._stop.set()

    def problems(self) -> Sequence[str]:
        """What keeps the data from being new."""
        return (self._problem,) if self._problem is not None else ()

    def _run(self) -> None:
        while True:
            try:
                self._once(self._settings, Progress())
                self._problem = None
            except ElivepatchError as error:
                self._problem = f"The CVE data could not be brought up to date: {error.message}"
                _log.warning("%s", self._problem)
            except Exception:
                self._problem = "The CVE data could not be brought up to date: see the log."
                _log.exception("The CVE data could not be brought up to date.")
            if self._stop.wait(self._settings.cve_sync_hours * 3600):
                return
