# SPDX-License-Identifier: GPL-2.0-or-later
"""How a request or a load ended, on one line, or with the reason why it did not come to that."""

from __future__ import annotations

import sys

from elivepatch.client.outcome import Outcome
from elivepatch.client.output import Output


def summary(outcome: Outcome) -> str:
    """How it ended, for a person who sees one line."""
    module = outcome.module
    name = module.name if module else "the module"
    places = [place for place in (module.output, module.stored) if place] if module else []
    where = f" ({', '.join(places)})" if places else ""
    if outcome.status == "loaded":
        more = ""
        if outcome.replaced:
            names = ", ".join(patch.name for patch in outcome.patches)
            more = f"; it replaced {', '.join(outcome.replaced)}" + (f" and contains {names}" if names else "")
        for lost in outcome.dropped:
            more += f"; {lost.name} is gone with {', '.join(lost.patches) or 'its effects'}"
        if outcome.forced:
            more += "; the transition was ended by force"
        return f"{name} is loaded, its transition took {outcome.transition_seconds:.1f} s{where}{more}"
    if outcome.status == "dry-run":
        return "dry run: nothing was sent, and nothing was changed"
    if outcome.status == "nothing":
        return f"no overlay has anything for {outcome.kernel}"
    if outcome.status == "present":
        return f"{name} is already loaded{where}"
    return f"{name} for {outcome.kernel} is fetched and checked, not loaded{where}"


def tell(outcome: Outcome, output: Output) -> None:
    """Print how a request ended; ends the program with its exit status where that is not 0."""
    output.data(outcome.dump())
    report = outcome.build.report if outcome.build else None
    if outcome.error:
        output.failure(outcome.error.message, outcome.error.hint, report.diagnosis if report else ())
        sys.exit(outcome.exit_status)
    output.result(summary(outcome))
