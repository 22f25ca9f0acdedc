# SPDX-License-Identifier: GPL-2.0-or-later
# Runs in the guest: looks at what a power cut left, then loads and reverts until the power goes.
"""The host's side of the power cuts. Prints one line of JSON, then ``=== go``, then works without end."""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

from elivepatch.client.cli import cli
from elivepatch.client.journal import Journal
from elivepatch.client.state import DEFAULT_STATE, StateDirectory


def run(*words: str) -> tuple[int | str | None, str, str]:
    out, err = io.StringIO(), io.StringIO()
    status: int | str | None = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(list(words), standalone_mode=False)
        except SystemExit as end:
            status = end.code
    return status, out.getvalue(), err.getvalue()


def journal() -> tuple[dict[str, list[str]], list[str]]:
    entries, problems = Journal(StateDirectory(DEFAULT_STATE, 0)).entries()
    return {e.module.name: [s.step for s in e.steps] for e in entries if e.module}, problems


def held() -> list[str]:
    return sorted(path.name for path in Path("/sys/kernel/livepatch").iterdir())


steps, problems = journal()
litter = [str(path) for path in DEFAULT_STATE.rglob(".*.new")]
if sys.argv[1] == "unguarded":  # for this step alone: later ones would count as survived at once what they load
    os.environ["ELIVEPATCH_CRASH_GUARD"] = "0"
boot = run("boot")
os.environ.pop("ELIVEPATCH_CRASH_GUARD", None)
after, later_problems = journal()
found = {
    "before": steps,
    "problems": problems + later_problems,
    "litter": litter,
    "boot": boot,
    "after": after,
    "held": held(),
    "status": json.loads(run("status", "--json")[1]),
    "cleared": not list(DEFAULT_STATE.rglob(".*.new")),
}
print(json.dumps(found), flush=True)
print("=== go", flush=True)
while True:
    told = [run("revert", "--all")]
    for name, patches in (("lp_good", ["lp_good"]), ("lp_second", ["lp_good", "lp_second"])):
        words = [word for patch in patches for word in ("-p", f"{patch}.patch")]
        told.append(run("load", f"{name}.ko", "--report", f"{name}.json", *words))
    told.append(run("revert"))
    failed = [one for one in told if one[0]]
    print("=== round", len(told), failed, flush=True)
    if failed:
        sys.exit("a step failed: the test has lost its meaning")
