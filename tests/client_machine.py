# SPDX-License-Identifier: GPL-2.0-or-later
"""A host made of files that can be restarted, whose client can be killed, and modules with reports to load on it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from client_fakes import BOOT_ID, FUNCTIONS, RELEASE, FakeKernel, elf_module, fake_host, put
from client_server import done_report
from elivepatch.client.cli import cli
from elivepatch.client.host import Host
from elivepatch.client.journal import Entry, Journal
from elivepatch.client.state import StateDirectory
from elivepatch.kernel.running import livepatches

FIRST, SECOND = "livepatch_first", "livepatch_second"


class KilledError(BaseException):
    """The client was killed: nothing that it does after this has an effect."""


@dataclass
class HostMachine:
    """A host. ``uptime`` is its clock since it came up; ``kill_at`` counts the effects until the client is killed."""

    tmp: Path
    monkeypatch: pytest.MonkeyPatch
    host: Host = field(init=False)
    kernel: FakeKernel = field(init=False)
    uptime: float = 1000.0
    boots: int = 0
    effects: int = 0
    kill_at: int | None = None

    def __post_init__(self) -> None:
        self.host, self.kernel = fake_host(self.tmp, user=0)
        self.monkeypatch.setattr("elivepatch.client.journal.uptime", lambda: self.uptime)
        self.monkeypatch.setattr("elivepatch.client.settle.uptime", lambda: self.uptime)
        for name in (FIRST, SECOND):
            self.provide(name)

    @property
    def state(self) -> Path:
        return self.tmp / "state"

    @property
    def journal(self) -> Journal:
        return Journal(StateDirectory(self.state, 0))

    def provide(self, name: str, **changes: Any) -> None:
        """Put a module, its report and its patch down."""
        fields = {"name": name, "livepatch": "Y", "vermagic": f"{RELEASE} SMP preempt mod_unload modversions "}
        module = elf_module(fields)
        report = done_report(module, **changes)
        report["module"]["name"] = name
        (self.tmp / f"{name}.ko").write_bytes(module)
        (self.tmp / f"{name}.json").write_text(json.dumps(report))
        (self.tmp / f"{name}.patch").write_text(f"Fixes CVE-2026-12345\n--- a/{name}.c\n+++ b/{name}.c\n")

    def run(self, *arguments: str | Path, **environment: str) -> Result:
        env = {"ELIVEPATCH_STATE_DIR": str(self.state), "ELIVEPATCH_TRANSITION_TIMEOUT": "20", **environment}
        words = [str(word) for word in arguments]
        return CliRunner(env=env).invoke(cli, words, obj=self.host, catch_exceptions=False)

    def load(self, name: str, *more: str, patches: tuple[str, ...] | None = None, **environment: str) -> Result:
        named = [word for patch in patches or (name,) for word in ("-p", str(self.tmp / f"{patch}.patch"))]
        return self.run(
            "load", self.tmp / f"{name}.ko", "--report", self.tmp / f"{name}.json", *named, *more, **environment
        )

    def load_unproven(self, name: str, *more: str) -> Result:
        return self.run("load", self.tmp / f"{name}.ko", "--no-report", *more)

    def status(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return data

    def held(self) -> list[str]:
        return [patch.name for patch in livepatches(self.host.root)]

    def entry(self, name: str) -> Entry:
        found = self.journal.latest_of(name)
        assert found is not None
        return found

    def steps(self, name: str) -> list[str]:
        return [step.step for step in self.entry(name).steps]

    # -- what befalls it

    def restart(self, *, orderly: bool = False) -> None:
        """Go down and come up again, with a kernel that holds nothing."""
        if orderly:
            assert self.run("mark", "shutdown").exit_code == 0
        self.boots += 1
        root = self.host.root
        for place in (root / "sys/kernel/livepatch", root / "sys/module"):
            for path in place.iterdir():
                if path.name != "module":
                    shutil.rmtree(path)
        self.kernel.targets.clear()
        self.kernel.leaves.clear()
        put(
            root,
            {"proc/sys/kernel/random/boot_id": f"{self.boots:08}{BOOT_ID[8:]}\n", "proc/sys/kernel/tainted": "0\n"},
        )
        self.uptime = 10.0

    def count_effects(self) -> None:
        """From now on count what the client does to disk and kernel, and kill it at the effect ``kill_at``."""
        replace, unlink, fsync = Path.replace, Path.unlink, os.fsync

        def counted_replace(path: Path, target: Path) -> Path:
            self.effect()
            result = replace(path, target)
            self.effect()
            return result

        def counted_unlink(path: Path, missing_ok: bool = False) -> None:
            self.effect()
            unlink(path, missing_ok)

        def counted_fsync(descriptor: int) -> None:
            self.effect()
            fsync(descriptor)

        self.monkeypatch.setattr(Path, "replace", counted_replace)
        self.monkeypatch.setattr(Path, "unlink", counted_unlink)
        self.monkeypatch.setattr(os, "fsync", counted_fsync)
        for name in ("load", "unload", "switch"):
            self.monkeypatch.setattr(self.kernel, name, self._counted(getattr(self.kernel, name)))
        sleep = self.kernel.sleep

        def counted_sleep(seconds: float) -> None:
            self.effect()
            sleep(seconds)

        self.monkeypatch.setattr(self.kernel, "sleep", counted_sleep)

    def _counted(self, call: Any) -> Any:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.effect()
            result = call(*arguments, **named)
            self.effect()
            return result

        return counted

    def effect(self) -> None:
        self.effects += 1
        if self.kill_at is not None and self.effects >= self.kill_at:
            raise KilledError

    def agreed(self) -> list[str]:
        """What kernel and journal agree on to be in force; fails where they do not agree."""
        entries, problems = self.journal.entries()
        assert problems == []
        status = self.status()
        assert status["disagreements"] == []
        assert status.get("busy") is None
        latest = {entry.module.name: entry for entry in entries if entry.module and entry.touched_kernel}
        boot_id = (self.host.root / "proc/sys/kernel/random/boot_id").read_text().strip()
        believed = [
            name
            for name, entry in latest.items()
            if entry.last and entry.last.step == "loaded" and entry.last.boot_id == boot_id
        ]
        assert sorted(believed) == sorted(self.held())
        for patch in livepatches(self.host.root):
            assert patch.enabled
            assert not patch.transition
            assert {(f.object, f.function) for f in patch.functions} == set(FUNCTIONS)
        return believed
