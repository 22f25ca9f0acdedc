# SPDX-License-Identifier: GPL-2.0-or-later
"""How many real fixes of a stable branch can be livepatches: what was said before building, and what came of it.

The fixes are those of the CVEs in tests/data/stable-cves.json, for Debian 12's 6.1.170 cloud kernel. Writes all figures
as JSON, and the table for docs/cves.md to standard output.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import click
from stable_repository import branch_trees, make_stable, read_stable, write_feed

from elivepatch.cves.feed import open_feed
from elivepatch.cves.fixes import open_fixes
from elivepatch.cves.index import Index
from elivepatch.cves.plan import Planner
from elivepatch.job import Job
from elivepatch.progress import Progress, to_terminal
from elivepatch.protocol.cves import CvePlan, CveWish, FixTrial
from elivepatch.protocol.models import BuildRequest
from elivepatch.server import settings as server_settings

#: Reasons in words, by what the message of a refusal says; the first that fits counts.
REASONS = (
    (r"reaches \d+ objects", "a header that too many objects include"),
    (r"does not compile", "does not compile without other commits"),
    (r"__init|__exit", "code that runs only once (__init, __exit)"),
    (r"changes nothing that runs", "changes nothing that runs"),
    (r"does not contain", "touches a file that this kernel does not contain"),
    (r"another size|[Ii]nitialiser|value of the variable|has changed \(", "changes data that exists already"),
    (r"cannot be redirected", "a function that cannot be redirected"),
    (r"does not go together", "does not go together with the others"),
)


def reason(trial: FixTrial) -> str:
    """Why a fix is no livepatch, as one of a few reasons."""
    message = trial.message or ""
    return next((words for pattern, words in REASONS if re.search(pattern, message)), f"other: {message[:80]}")


def table(plan: CvePlan) -> Iterable[str]:
    """The figures as tables in Markdown; what is counted are commits, each of which can fix several CVEs."""
    tried = [entry for entry in plan.scan.cves if entry.trial is not None and entry.trial.state != "not-tried"]
    closed = sum(entry.trial is not None and entry.trial.state == "works" for entry in tried)
    trials = {entry.fix_commit: entry.trial for entry in tried if entry.trial is not None}
    works = sum(trial.state == "works" for trial in trials.values())
    yield f"{works} of {len(trials)} commits ({works / len(trials):.0%}), which close {closed} of {len(tried)} CVEs"
    yield ""
    yield "| said before building | works | does not |"
    yield "|---|---|---|"
    said = {True: "possible", False: "impossible", None: "nothing: it does not apply"}
    cells = Counter((said[trial.predicted], trial.state == "works") for trial in trials.values())
    for word in said.values():
        if cells[word, True] or cells[word, False]:
            yield f"| {word} | {cells[word, True]} | {cells[word, False]} |"
    yield ""
    yield "| reason | commits |"
    yield "|---|---|"
    refused = Counter(reason(trial) for trial in trials.values() if trial.state != "works")
    for words, number in refused.most_common():
        yield f"| {words} | {number} |"


@click.command()
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write all figures to this file.")
@click.option("--alone", is_flag=True, help="Try each fix for itself, and not all of them together.")
def main(file: Path | None, alone: bool) -> None:
    """Measure it; half an hour the first time."""
    progress = Progress(to_terminal(sys.stderr))
    workshop = server_settings.load().workshop
    data = read_stable()
    old, new = branch_trees(data, workshop, progress)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="elivepatch-fixes.") as scratch:
        place = Path(scratch)
        place.chmod(0o755)
        stable = make_stable(data, old, new, place)
        write_feed(place / "feed", stable.entries(stable.cves), stable.version)
        index = Index(place / "index.sqlite")
        index.update(open_feed(str(place / "feed"), place), progress)
        source = open_fixes(f"file://{stable.repository}", None, place / "mirrors")
        source.update(progress)
        request = BuildRequest(kernel=stable.release, cves=CveWish())
        plan = Planner(index, source, workshop, joint=not alone).plan(Job(request, ()), place, progress)
    for line in table(plan):
        click.echo(line)
    if file is not None:
        figures = {"seconds": round(time.monotonic() - began, 1), "plan": plan.dump()}
        file.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
