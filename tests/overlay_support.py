# SPDX-License-Identifier: GPL-2.0-or-later
"""Overlays as files of a test: a good one, and what can be changed about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

PATCH = """\
Say it louder.

--- a/fs/proc/meminfo.c
+++ b/fs/proc/meminfo.c
@@ -129,3 +129,3 @@
 \tshow_val_kb(m, "VmallocUsed:    ", vmalloc_nr_pages());
-\tshow_val_kb(m, "VmallocChunk:   ", 0ul);
+\tshow_val_kb(m, "VMALLOCCHUNK:   ", 0ul);
 \tshow_val_kb(m, "Percpu:         ", pcpu_nr_pages());
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DESCRIPTION = f"""\
# the overlay of the tests
schema: 1
title: Patches of the tests
licence: GPL-2.0-only
repositories:
  stable: https://git.example.org/linux.git
patches:
- id: first
  title: Say it louder
  kernels: ["6.12.*", ">=6.1.100 <6.1.175"]
  distributions: ["debian:13", "gentoo"]
  patch: proc/first.patch
  cves: [CVE-2026-12345]
  author: A Person <a@example.org>
  tested-with: ["6.12.117+deb13-cloud-amd64"]
  check: proc/first.sh
- id: second
  kernels: ["6.12.117+deb13-cloud-amd64"]
  commit:
    repository: stable
    id: "{COMMIT}"
  requires: [first]
- id: third
  kernels: [">=6.12.100"]
  patch: third.patch
  after: [second]
  licence: GPL-2.0-or-later
"""
FILES = {
    "patches/proc/first.patch": PATCH,
    "patches/proc/first.sh": "#!/bin/sh\ngrep -q VMALLOCCHUNK /proc/meminfo\n",
    "patches/third.patch": PATCH.replace("VMALLOCCHUNK:  ", "VmallocLump:   "),
}
#: An own example in the shape of the old format, with its mistakes: a list behind a mapping, patches without a colon.
OLD = f"""\
elivepatch_version: 0.1

- 5.10.3
      - patch_id: 1
        cve_id: CVE-2020-99999\x20
        commit_id: {COMMIT}
        repository: https://git.example.org/linux
        comment: net: close a hole: twice
      - patch_id: 2
        path: patches/5.10.3/shout.patch
        comment: Say it louder
        license: GPLv2
- 5.10.4
      - patch_id: 1
        path: patches/5.10.3/shout.patch
"""


def make_overlay(
    root: Path, description: str | bytes | None = DESCRIPTION, files: Mapping[str, str | bytes] = FILES
) -> Path:
    """Write an overlay."""
    root.mkdir(parents=True, exist_ok=True)
    everything = dict(files) if description is None else {"elivepatch.yml": description, **files}
    for name, content in everything.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root
