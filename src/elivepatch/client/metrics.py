# SPDX-License-Identifier: GPL-2.0-or-later
"""The status of a host as text for Prometheus: for the textfile collector of its node exporter.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/, "Text-based format".
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from elivepatch.client.state import check_output, write_whole
from elivepatch.client.status import HostStatus


def write_metrics(path: Path, status: HostStatus) -> None:
    """Write the metrics to a file that is there whole or not at all, readable by everybody.

    Raises InvalidInputError, DiskFullError and HostError.
    """
    check_output(path)
    write_whole(path, ("\n".join(metrics(status, time.time())) + "\n").encode(), mode=0o644, public=True)


def metrics(status: HostStatus, now: float) -> Iterator[str]:
    """The lines; ``now`` is seconds since the epoch."""
    host = _labels(release=status.release, build_id=status.build_id or "")
    yield from _head("elivepatch_status", "Exit status of 'elivepatch status': 0 all well, 7 look, 8 under way.")
    yield f"elivepatch_status{host} {status.exit_status}"
    yield from _head("elivepatch_checked_timestamp_seconds", "When this was written.")
    yield f"elivepatch_checked_timestamp_seconds {now:.0f}"
    yield from _head("elivepatch_attention", "What somebody should look at, by kind.")
    for kind, number in (
        ("disagreement", len(status.disagreements)),
        ("problem", len(status.problems)),
        ("guarded", sum(absent.state == "guarded" for absent in status.absent)),
        ("expected", sum(absent.state == "expected" for absent in status.absent)),
    ):
        yield f"elivepatch_attention{_labels(kind=kind)} {number}"
    yield from _head("elivepatch_livepatch_enabled", "Whether a livepatch that the kernel holds is enabled.")
    for patch in status.livepatches:
        labels = _labels(name=patch.name, proof=patch.proof or "", cves=",".join(patch.cves))
        yield f"elivepatch_livepatch_enabled{labels} {int(patch.enabled)}"
    yield from _head("elivepatch_livepatch_transition", "Whether tasks are moving to it, or back from it.")
    for patch in status.livepatches:
        yield f"elivepatch_livepatch_transition{_labels(name=patch.name)} {int(patch.transition)}"
    yield from _head("elivepatch_livepatch_loaded_timestamp_seconds", "Since when it is in force.")
    for patch in status.livepatches:
        if patch.since is not None:
            yield f"elivepatch_livepatch_loaded_timestamp_seconds{_labels(name=patch.name)} {patch.since:.0f}"


def _head(name: str, help_: str) -> Iterator[str]:
    yield f"# HELP {name} {help_}"
    yield f"# TYPE {name} gauge"


def _labels(**labels: str) -> str:
    """Labels, their values quoted as the format says."""
    quoted = {
        key: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for key, value in labels.items()
    }
    return "{" + ",".join(f'{key}="{value}"' for key, value in quoted.items()) + "}"
