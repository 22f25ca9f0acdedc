# SPDX-License-Identifier: GPL-2.0-or-later
"""How a request or a load ended, on one line."""

from __future__ import annotations

from elivepatch.client.outcome import Outcome


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
            more = f"; it replaced {', '.join(outcome.replaced)} and contains {names}"
        for lost in outcome.dropped:
            more += f"; {lost.name} is gone with {', '.join(lost.patches) or 'its effects'}"
        if outcome.forced:
            more += "; the transition was ended by force"
        return f"{name} is loaded, its transition took {outcome.transition_seconds:.1f} s{where}{more}"
    if outcome.status == "dry-run":
        return "dry run: nothing was sent, and nothing was changed"
    if outcome.status == "present":
        return f"{name} is already loaded{where}"
    return f"{name} for {outcome.kernel} is fetched and checked, not loaded{where}"
