# SPDX-License-Identifier: GPL-2.0-or-later
"""The process of a build that is short: everything is real but the build itself.

What a build does, its kernel's name says (`short_build`): a behaviour, and after a dash how long a pause takes. Where
the kernel's name must be a release, the last patch says it, with ``do-BEHAVIOUR`` in it.
"""

from __future__ import annotations

import hashlib
import os
import re
import resource
import signal
import sys
import time
from pathlib import Path

from elivepatch import process
from elivepatch.errors import KernelUnavailableError, NoChangeError
from elivepatch.job import Job
from elivepatch.progress import Progress
from elivepatch.protocol.models import BuildStatus, ModuleReport, Report
from elivepatch.server.jobs import runner
from elivepatch.workshop import Workshop


def key_of(job: Job, _workshop: Workshop) -> str:
    """A key for the short builds: what decides their bytes."""
    digest = hashlib.sha256(job.request.model_dump_json().encode())
    for file in (*job.base_patches, *job.patches):
        digest.update(hashlib.sha256(file.data).digest())
    return digest.hexdigest()


def module_of(job: Job) -> bytes:
    """What a short build makes: large enough that half of it is imaginable."""
    return hashlib.sha256(job.patches[0].data).digest() * 4096


def short_build(job: Job, workshop: Workshop, output: Path, progress: Progress) -> Report:
    """A build of some milliseconds, which does what the kernel's name says."""
    behaviour = job.request.kernel.partition("-")[0]
    seconds = re.search(r"-(\d+(?:\.\d+)?)$", job.request.kernel)
    if said := re.search(rb"do-([a-z]+)", job.patches[-1].data):
        behaviour = said[1].decode()
    pause = float(seconds[1]) if seconds else 0.02
    key = key_of(job, workshop)
    progress.phase("preparing")
    time.sleep(pause)
    progress.phase("building")
    if behaviour == "refuse":
        error = NoChangeError("The patch changes nothing.", hint="Change something.")
        return Report(status=BuildStatus.REFUSED, key=key, exit_status=3, error=error.code, message=error.message)
    if behaviour == "nokernel":
        missing = KernelUnavailableError("No source offers it.")
        return Report(status=BuildStatus.FAILED, key=key, exit_status=6, error=missing.code, message=missing.message)
    if behaviour == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "raise":
        raise RuntimeError("secret detail")
    if behaviour == "chatter":
        for number in range(20_000):
            progress.log(f"line {number} " + "x" * 3000)
    if behaviour == "fill":
        with (output / "filling").open("wb") as stream:
            while True:
                stream.write(os.urandom(256 * 1024))
    if behaviour == "child":  # a program that would outlive a build that only ends itself
        process.run(["sleep", "1000"], timeout=1000)
    for number in range(5):
        progress.step(f"step {number}", fraction=number / 5)
        time.sleep(pause / 5)
    module = module_of(job)
    with (output / "livepatch-short.ko").open("wb") as stream:
        for start in range(0, len(module), 16384):
            stream.write(module[start : start + 16384])
            stream.flush()
            time.sleep(pause / 20)
    progress.phase("verifying")
    time.sleep(pause)
    progress.done("done")
    digest = hashlib.sha256(b"another" if behaviour == "lie" else module).hexdigest()
    made = ModuleReport(
        name="livepatch-short", sha256=digest, size=len(module), path=str(output / "livepatch-short.ko")
    )
    return Report(status=BuildStatus.DONE, key=key, module=made)


def main(*arguments: str) -> int:
    rest = list(arguments)
    if rest[0] == "--file-bytes":
        size = int(rest[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        rest = rest[2:]
    return runner.main(rest, build=short_build)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
