# SPDX-License-Identifier: GPL-2.0-or-later
"""``elivepatch-server proof survey``: how much of a kernel is proven to be what its source says."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Generator
from contextlib import contextmanager

import click

from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.survey import Survey, survey
from elivepatch.errors import ProofFailedError
from elivepatch.kernel.release import parse_release
from elivepatch.progress import Progress, to_terminal
from elivepatch.server import settings as server_settings
from elivepatch.server.scratch import scratch
from elivepatch.workshop import Workshop, find_kernel, newest_kernel

#: Where the kernel comes from that is surveyed if none is named, and which it is.


@click.group("proof")
def proof() -> None:
    """Look at the proof that the source is what runs."""


@proof.command("survey")
@click.option("--kernel", "release", help="Release of the kernel; by default the newest 6.12 cloud kernel on offer.")
@click.option("--objects", "count", type=click.IntRange(1, 100_000), default=50, show_default=True, metavar="N")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Draws the same objects again; by default a new one.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
@click.option("-d", "--debug", is_flag=True, help="Show the output of the programs that run.")
def survey_command(release: str | None, count: int, seed: int | None, as_json: bool, debug: bool) -> None:
    """Compile N random objects of a kernel as its makers did and compare every function with the kernel's.

    Objects are drawn from vmlinux and modules in proportion; those whose source kbuild generates are left out. Exit
    status: 0 nothing differs, 4 something does, 6 kernel or tool not available.
    """
    settings = server_settings.load()
    progress = Progress(to_terminal(sys.stderr, verbose=debug))
    seed = secrets.randbelow(2**31) if seed is None else seed
    with (
        prepared_kernel(release, settings.workshop, progress) as kernel,
        scratch(settings.cache) as place,
    ):
        found = survey(kernel, count, seed, place, settings.parallel, progress)
        result = as_data(found, kernel, seed)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        show(found, kernel, seed)
    require_identical(found, kernel)


def require_identical(found: Survey, kernel: PreparedKernel) -> None:
    """Raise ProofFailedError where anything differs, or an object is not found in the kernel at all."""
    different, lacking = found.functions("different"), found.not_contained()
    if different or lacking:
        names = [f"{proof.path}: {function.function}()" for proof, function in different]
        names += [proof.path for proof in lacking]
        raise ProofFailedError(
            f"{len(different)} functions differ from {kernel.release}, and {len(lacking)} objects are not in it: "
            f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}",
            hint="The kernel was built from other source, with another configuration or compiler, or the proof errs.",
        )


def as_data(found: Survey, kernel: PreparedKernel, seed: int) -> dict[str, object]:
    """The survey as it is printed with ``--json``."""
    return {
        "kernel": {"release": kernel.release, "build_id": kernel.build_id, "source": kernel.origin},
        "seed": seed,
        "objects": {
            "known": len(found.candidates.objects),
            "generated": found.candidates.generated,
            "ambiguous": found.candidates.ambiguous,
            "drawn": len(found.proofs) + len(found.not_built) + len(found.foreign),
            "compared": len(found.proofs),
            "vmlinux": sum(proof.parent == "vmlinux" for proof in found.proofs),
            "modules": sum(proof.parent != "vmlinux" for proof in found.proofs),
            "without_functions": sum(not proof.functions for proof in found.proofs),
        },
        "functions": {
            "identical": len(found.functions("identical")),
            "absent": len(found.functions("absent")),
            "different": len(found.functions("different")),
        },
        "absent": _functions(found, "absent"),
        "different": _functions(found, "different"),
        "not_contained": [{"path": proof.path, "object": proof.parent} for proof in found.not_contained()],
        "not_built": [{"path": item.candidate.path, "why": item.why} for item in found.not_built],
        "foreign": [{"path": item.candidate.path, "why": item.why} for item in found.foreign],
    }


def _functions(found: Survey, outcome: str) -> list[dict[str, object]]:
    listed = found.functions("absent" if outcome == "absent" else "different")
    return [
        {"path": proof.path, "object": proof.parent, "function": function.function, "why": function.why}
        for proof, function in listed
    ]


def show(found: Survey, kernel: PreparedKernel, seed: int) -> None:
    """The survey in words, for a terminal."""
    known = found.candidates
    vmlinux = sum(proof.parent == "vmlinux" for proof in found.proofs)
    click.echo(f"kernel     {kernel.release}, {kernel.origin}, build ID {kernel.build_id}")
    click.echo(f"objects    {vmlinux} of vmlinux, {len(found.proofs) - vmlinux} of modules, with --seed {seed}")
    click.echo(
        f"           drawn from {len(known.objects)}; left out: {known.generated} of generated source, "
        f"{known.ambiguous} whose file cannot be told"
    )
    for item in (*found.not_built, *found.foreign):
        last = (item.why.splitlines() or ["no message"])[-1]
        click.echo(f"not built  {item.candidate.path} ({item.candidate.parent}): {last}")
    for lacking in found.not_contained():
        click.echo(f"not there  {lacking.path}: {lacking.parent} has none of its functions")
    click.echo(f"identical  {len(found.functions('identical'))} functions")
    click.echo(f"absent     {len(found.functions('absent'))} functions")
    for why, times in sorted(found.absences().items()):
        click.echo(f"           {times}: {why}")
    click.echo(f"different  {len(found.functions('different'))} functions")
    for where, function in found.functions("different"):
        click.echo(f"           {where.path}: {function.function}(): {function.why}")


# -- the kernel


@contextmanager
def prepared_kernel(name: str | None, workshop: Workshop, progress: Progress) -> Generator[PreparedKernel]:
    """A prepared kernel, held while the block runs; made if need be. None stands for the newest 6.12 cloud kernel.

    Raises KernelUnavailableError where no suite offers it.
    """
    release = parse_release(name) if name is not None else newest_kernel(workshop, progress)
    files, root, source = find_kernel(release, workshop, progress)
    with workshop.kernels.prepared(files, root, lambda: source.download(files, progress), progress) as (kernel, _):
        yield kernel
