# SPDX-License-Identifier: GPL-2.0-or-later
"""The client, run on a host made of files against a server made of scripts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from client_fakes import NAME, RELEASE, FakeKernel
from client_server import Server
from elivepatch.client.cli import cli
from elivepatch.client.host import Host

PATCH = "--- a/fs/proc/meminfo.c\n+++ b/fs/proc/meminfo.c\n@@ -1 +1 @@\n-a\n+b\n"


@dataclass
class Rig:
    server: Server
    host: Host
    kernel: FakeKernel
    tmp: Path

    def run(self, *arguments: str | Path, patch: bool = True, env: dict[str, str] | None = None) -> Result:
        path = self.tmp / "meminfo.patch"
        if patch and not path.exists():
            path.write_text(PATCH)
        words = [str(word) for word in arguments]
        if patch:
            words = ["-p", str(path), "-u", self.server.url, *words]
        environment = {"ELIVEPATCH_STATE_DIR": str(self.state), **(env or {})}
        return CliRunner(env=environment).invoke(cli, words, obj=self.host, catch_exceptions=False)

    @property
    def state(self) -> Path:
        return self.tmp / "state"

    @property
    def module(self) -> Path:
        return self.state / "modules" / RELEASE / f"{NAME}.ko"

    def journal(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted((self.state / "journal").glob("*.json"))]

    def steps(self) -> list[str]:
        return [step["step"] for step in self.journal()[-1]["steps"]]
