# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of a build: the one place that knows the order of patches, build, boot test and signature."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from elivepatch.build import objects as lookup
from elivepatch.build.compiler import CompiledObject, Compiler
from elivepatch.build.constants import check_constants
from elivepatch.build.definitions import check_definitions
from elivepatch.build.engines.choose import choose_engine
from elivepatch.build.engines.engine import DiffObject, Engine
from elivepatch.build.engines.klp import KlpEngine
from elivepatch.build.engines.kpatch import KpatchEngine
from elivepatch.build.level import image_level
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.proof import ObjectProof, Prover
from elivepatch.build.read_only import check_read_only
from elivepatch.build.references import check_references
from elivepatch.build.registrations import check_registrations
from elivepatch.build.rules import finding
from elivepatch.build.sealed import check_sealed
from elivepatch.build.static_locals import check_static_locals
from elivepatch.build.store import remove_tree
from elivepatch.errors import (
    CancelledError,
    ConfigurationMismatchError,
    Diagnosis,
    DiskFullError,
    ElivepatchError,
    InternalError,
    ProofFailedError,
)
from elivepatch.job import Job, request_key, wanted_kernel
from elivepatch.kernel.config import parse_config
from elivepatch.patches import doctor
from elivepatch.patches.apply import apply_series
from elivepatch.patches.macros import foreign_macros, macros_without_header
from elivepatch.patches.series import parse_series
from elivepatch.patches.tree import Tree
from elivepatch.progress import Progress
from elivepatch.protocol.models import (
    BuildStatus,
    CacheReport,
    ChangedFunction,
    EngineName,
    EngineReport,
    KernelReport,
    ModuleReport,
    Proof,
    ProofLevel,
    ProvenFunction,
    Report,
    Timings,
    Verification,
)
from elivepatch.selection import hold_kernel
from elivepatch.toolchains.sandbox import check_tools, tool_prefix
from elivepatch.vm.boot_test import BootTestRejectedError, GuestKernel, Subject, boot_test
from elivepatch.workshop import TOOLS_ROOT, Workshop

#: Characters of a message in the last event; the report has all of it.
_LINE = 200


def build(job: Job, workshop: Workshop, output: Path, progress: Progress) -> Report:
    """Build, prove and try the livepatch; leaves ``report.json`` and the module in ``output``.

    Whatever the end, the report says it; only DiskFullError is raised, where not even the report can be written.
    """
    began = time.monotonic()
    key = ""
    state = _State()
    try:
        key = request_key(job, workshop)
        _run(job, workshop, output, progress, state)
        status, ending = BuildStatus.DONE, None
    except ElivepatchError as error:
        status, ending = _status(error), error
        if isinstance(error, BootTestRejectedError):
            state.verification = error.verification
    except OSError as error:
        if error.errno != 28:  # ENOSPC
            raise
        status, ending = BuildStatus.FAILED, DiskFullError(f"No space is left on the device: {error.filename}")
    report = Report(
        status=status,
        key=key,
        exit_status=ending.exit_status if ending else 0,
        error=ending.code if ending else None,
        message=ending.message if ending else None,
        hint=ending.hint if ending else None,
        engine=state.engine,
        kernel=state.kernel,
        module=state.module,
        changed=tuple(state.changed),
        proof=state.proof,
        diagnosis=(*(ending.as_diagnosis() if ending else ()), *state.notes),
        verification=state.verification,
        timings=_timings(progress.timings, time.monotonic() - began),
        cache=state.cache,
    )
    try:
        _write(output / "report.json", report.dump_json().encode())
    except OSError as error:
        # a disk so full that not even the report fits: whoever asked learns it from the exit of this process
        raise DiskFullError(f"The report cannot be written: {error.strerror}.") from error
    ended = report.message or (state.module.name if state.module else "")
    progress.done(f"{status}: {ended if len(ended) <= _LINE else f'{ended[:_LINE]}…'}")
    return report


def report_of(error: ElivepatchError) -> Report:
    """The report of a build that ended before it could begin; it has no key."""
    return Report(
        status=_status(error),
        key="",
        exit_status=error.exit_status,
        error=error.code,
        message=error.message,
        hint=error.hint,
        diagnosis=error.as_diagnosis(),
    )


@dataclass
class _State:
    """What is known so far: a report says it, however the build ends."""

    kernel: KernelReport | None = None
    engine: EngineReport | None = None
    module: ModuleReport | None = None
    proof: Proof | None = None
    verification: Verification | None = None
    cache: CacheReport | None = None
    changed: list[ChangedFunction] = field(default_factory=list[ChangedFunction])
    notes: list[Diagnosis] = field(default_factory=list[Diagnosis])


def _status(error: ElivepatchError) -> BuildStatus:
    if isinstance(error, CancelledError):
        return BuildStatus.CANCELLED
    return BuildStatus.REFUSED if error.exit_status in {2, 3, 4, 5} else BuildStatus.FAILED


def _timings(measured: Mapping[str, float], total: float) -> Timings:
    return Timings(**{name: round(seconds, 3) for name, seconds in measured.items()}, total=round(total, 3))


def _run(job: Job, workshop: Workshop, output: Path, progress: Progress, state: _State) -> None:
    wanted_kernel(job)
    # what can be said without a kernel is said before one is prepared
    parse_series([(file.name, file.data) for file in job.patches])
    if workshop.check():
        progress.step(f"a new cache in {workshop.cache}: build roots and kernels are made once")
    progress.phase("preparing", f"preparing {job.request.kernel}")
    output.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".work.", dir=output))
    work.chmod(0o755)
    try:
        with ExitStack() as held:
            with progress.timed("prepare"):
                wanted = wanted_kernel(job)
                if job.request.image is not None and job.image is None:
                    wanted = replace(wanted, image=held.enter_context(workshop.images.use(job.request.image)))
                kernel, was_there = held.enter_context(hold_kernel(wanted, workshop, progress))
            state.kernel = KernelReport(
                release=kernel.release,
                build_id=kernel.build_id,
                source=kernel.origin,
                image=kernel.image,
                config_sha256=kernel.config_sha256,
                compiler=kernel.compiler,
            )
            level = image_level(kernel, job.request, job.symbols)
            _check_configuration(job, kernel)
            engine = _engine(kernel, job.request.engine, work, workshop, progress)
            state.engine = EngineReport(name=engine.name, version=engine.version)
            _build(job, kernel, level, was_there, engine, workshop, work, output, progress, state)
            if job.request.verify and state.module is not None:
                _verify(job, kernel, output / f"{state.module.name}.ko", work, workshop, progress, state)
    finally:
        log = work / "boot-test/boot-test.log"
        if log.exists():
            shutil.copyfile(log, output / "boot-test.log")
        remove_tree(work)


def _engine(
    kernel: PreparedKernel, forced: EngineName | None, work: Path, workshop: Workshop, progress: Progress
) -> Engine:
    """The engine for a kernel, with its tools; raises ToolUnavailableError."""
    if choose_engine(kernel, forced) == "klp":
        with progress.timed("prepare"):
            return KlpEngine(kernel, work / "klp")
    return KpatchEngine(kernel, workshop.roots.ensure(TOOLS_ROOT, progress))


def _check_configuration(job: Job, kernel: PreparedKernel) -> None:
    """What is built with is what was given; for a kernel that was built here, that is so already."""
    if job.config is None or kernel.image != "published":
        return
    if differences := kernel.config().differences(parse_config(job.config)):
        raise _configuration_mismatch(kernel.release, differences)


def _configuration_mismatch(release: str, differences: Sequence[str]) -> ConfigurationMismatchError:
    message = f"The configuration differs from that of {release} in {len(differences)} options"
    findings = [
        Diagnosis(rule="configuration-mismatch", message=f"CONFIG_{line} (published, given)")
        for line in differences[:50]
    ]
    return ConfigurationMismatchError(
        f"{message}: {'; '.join(differences[:5])}{'; …' if len(differences) > 5 else ''}",
        hint="Give the configuration of the running kernel (/boot/config-$(uname -r)), or none. A kernel of your own, "
        "built from the distributor's source, is named by that: --kernel debian:VERSION.",
        diagnosis=findings,
    )


def _build(
    job: Job,
    kernel: PreparedKernel,
    level: ProofLevel,
    was_there: bool,
    engine: Engine,
    workshop: Workshop,
    work: Path,
    output: Path,
    progress: Progress,
    state: _State,
) -> None:
    progress.phase("building", f"building for {kernel.release}")
    with progress.timed("apply"):
        series = parse_series([(file.name, file.data) for file in job.patches], exists=Tree(kernel.source).exists)
        changes = work / "changes"
        changes.mkdir()
        check_tools(kernel.root.path, changes)
        applied = apply_series(series, kernel.source, changes, prefix=tool_prefix(kernel.root.path, changes))
        changed_files = doctor.changes_of(applied)
        examination = doctor.examine(changed_files)
        doctor.require_code(examination, series.paths)
        more = [*foreign_macros(changed_files, engine.name), *macros_without_header(changed_files, engine.name)]
        doctor.require_possible(examination, more)
        engine.examine(series.paths)
        change = lookup.change_of(applied)
        affected = lookup.affected_objects(kernel, change, work / "lookup", workshop.parallel, progress, engine.headers)
        state.notes += [*applied.findings, *examination.findings, *affected.notes]
    progress.step(f"compiling {', '.join(affected.paths[:5])}{', …' if len(affected.paths) > 5 else ''}")
    with progress.timed("compile"):
        compiler = Compiler(kernel, work / "compile", workshop.parallel, engine.headers, affected.spelled)
        compiled, findings = compiler.compile(affected.paths, affected.files, affected.plain)
        state.notes += [said for said in findings if said.severity != "error"]
        compiled = [part for each in compiled for part in lookup.in_parents(kernel, each)]
    state.cache = CacheReport(kernel=was_there, original_objects=sum(each.cached for each in compiled))
    with progress.timed("proof"):
        prover = Prover(kernel)
        proofs = [prover.prove(each.path, each.parent, each.exact) for each in compiled]
        state.proof = _proof(proofs, level)
        state.notes += [*check_registrations(compiled), *check_definitions(kernel, compiled)]
        check_read_only(kernel, compiled)
    progress.step("comparing original and patched objects")
    with progress.timed("diff"):
        diffs = engine.diff(compiled, work / "diff")
        check_static_locals(compiled)
    state.notes += [note for diff in diffs for note in diff.notes]
    check_constants(diffs)
    _require_proven(kernel, compiled, proofs, diffs)
    changed = [ChangedFunction(object=c.object, function=c.function, kind=c.kind) for d in diffs for c in d.changes]
    state.changed += changed
    progress.step(f"linking: {', '.join(f'{change.function} ({change.kind})' for change in changed)}")
    with progress.timed("link"):
        name = f"elivepatch_{_module_id(kernel, engine, series.digest)}"
        module = engine.link(diffs, name, work)
        check_sealed(kernel, module)
        state.notes += check_references(kernel, module, [diff.source.original for diff in diffs])
        data = module.read_bytes()
        _write(output / f"{name}.ko", data)
    state.module = ModuleReport(name=name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def _module_id(kernel: PreparedKernel, engine: Engine, series: str) -> str:
    """Twelve hex digits that stand for the module's content: the kernel, the change and the tools."""
    parts = [kernel.build_id, kernel.config_sha256, kernel.source.name, kernel.root.digest]
    parts += [engine.name, engine.version, series]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _proof(proofs: Sequence[ObjectProof], level: ProofLevel) -> Proof:
    """The proof of all functions; what differs makes it no proof."""
    functions = [
        ProvenFunction(
            object=proof.parent,
            function=function.function,
            size=function.size,
            masked=function.masked,
            identical=function.outcome == "identical",
        )
        for proof in proofs
        for function in proof.functions
        if function.outcome != "absent"
    ]
    return Proof(
        level=level if all(function.identical for function in functions) else "none",
        functions=tuple(functions),
        compared=len(functions),
        absent=sum(len(proof.of("absent")) for proof in proofs),
    )


def _require_proven(
    kernel: PreparedKernel,
    compiled: Sequence[CompiledObject],
    proofs: Sequence[ObjectProof],
    diffs: Sequence[DiffObject],
) -> None:
    """Every changed function, and every other function of the touched objects, is the kernel's own."""
    # an object of several modules has a diff for each
    changes = {
        (diff.source.path, diff.source.parent): {c.function for c in diff.changes if c.kind == "changed"}
        for diff in diffs
    }
    findings: list[Diagnosis] = []
    for source, proof in zip(compiled, proofs, strict=True):
        names = changes.get((source.path, source.parent), set())
        lacking = [f for f in proof.of("absent") if f.function in names]
        known = {f.function for f in proof.functions}
        findings += [
            finding(
                "proof-failed",
                f"The original of {function.function}() is not the kernel's: {function.why}.",
                file=source.source,
                function=function.function,
            )
            for function in [*proof.of("different"), *lacking]
        ]
        if names - known:
            raise InternalError(f"{source.path}: {', '.join(sorted(names - known))} changed and not proven.")
    if findings:
        raise ProofFailedError(
            f"{findings[0].message} {len(findings)} functions differ from {kernel.release}.", diagnosis=findings
        )


def _verify(
    job: Job, kernel: PreparedKernel, module: Path, work: Path, workshop: Workshop, progress: Progress, state: _State
) -> None:
    progress.phase("verifying", "boot test")
    place = work / "boot-test"
    place.mkdir()
    changed = [change for change in state.changed if change.kind == "changed"]
    subject = Subject(
        module=module,
        name=module.stem,
        objects=tuple(dict.fromkeys(change.object for change in changed or state.changed)),
        check=job.check,
        functions=tuple(f"{change.object}/{change.function}" for change in changed),
        only_callbacks=not changed,
    )
    guest = GuestKernel(release=kernel.release, vmlinuz=kernel.vmlinuz, modules=kernel.modules_directory)
    try:
        with progress.timed("verify"):
            state.verification = boot_test(
                guest, subject, place, progress, busybox=kernel.root.busybox, shared=workshop.cache / "guests"
            )
    except ElivepatchError:
        module.unlink()  # nothing that failed its test is left to be loaded
        state.module = None
        raise
    for name in state.verification.not_run:
        state.notes.append(finding("module-not-run", f"The boot test has no device for the module {name}."))


def _write(path: Path, data: bytes) -> None:
    """Write aside and rename: a reader sees all of it or nothing."""
    aside = path.with_name(f".{path.name}.part")
    aside.write_bytes(data)
    aside.replace(path)
