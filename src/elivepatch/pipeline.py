# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of a build: the one place that knows the order of patches, build, boot test and signature."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from elivepatch.build import objects as lookup
from elivepatch.build.compiler import CompiledObject, Compiler
from elivepatch.build.engines.choose import choose_engine
from elivepatch.build.engines.engine import DiffObject, Engine
from elivepatch.build.engines.klp import KlpEngine
from elivepatch.build.engines.klp_tools import FORMAT as KLP_FORMAT
from elivepatch.build.engines.kpatch import KpatchEngine
from elivepatch.build.image import HostImage
from elivepatch.build.level import image_level
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.proof import ObjectProof, Prover
from elivepatch.build.references import check_references
from elivepatch.build.rules import finding
from elivepatch.build.sealed import check_sealed
from elivepatch.build.store import remove_tree
from elivepatch.errors import (
    CancelledError,
    ConfigurationMismatchError,
    Diagnosis,
    DiskFullError,
    ElivepatchError,
    InternalError,
    InvalidInputError,
    ProofFailedError,
    UnavailableError,
)
from elivepatch.kernel.config import parse_config
from elivepatch.patches import doctor
from elivepatch.patches.apply import apply_series
from elivepatch.patches.macros import foreign_macros
from elivepatch.patches.series import parse_series
from elivepatch.patches.tree import Tree
from elivepatch.progress import Progress
from elivepatch.protocol.models import (
    BuildRequest,
    BuildStatus,
    CacheReport,
    ChangedFunction,
    EngineName,
    EngineReport,
    HostFacts,
    KernelReport,
    ModuleReport,
    Proof,
    ProofLevel,
    ProvenFunction,
    Report,
    Timings,
    Verification,
)
from elivepatch.selection import WantedKernel, hold_kernel
from elivepatch.toolchains.sandbox import tool_prefix
from elivepatch.version import installed_version
from elivepatch.vm.boot_test import BootTestRejectedError, GuestKernel, Subject, boot_test
from elivepatch.workshop import TOOLS_ROOT, Workshop

#: Characters of a message in the last event; the report has all of it.
_LINE = 200


@dataclass(frozen=True)
class InputFile:
    """A file that came with a request. ``name`` is for people only, it is never a path."""

    name: str
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Job:
    """Everything a build is made from.

    ``symbols`` is the packed symbol layout of the host's kernel, ``image`` its own image, where they were sent.
    """

    request: BuildRequest
    patches: tuple[InputFile, ...]
    base_patches: tuple[InputFile, ...] = ()
    config: bytes | None = field(default=None, repr=False)
    check: bytes | None = field(default=None, repr=False)
    symbols: bytes | None = field(default=None, repr=False)
    image: HostImage | None = None


def request_key(job: Job, workshop: Workshop) -> str:
    """The key of a build: a digest of all that decides its bytes and its report. Cheap: no kernel is looked up."""
    request = job.request
    parts: dict[str, object] = {
        "elivepatch": installed_version(),
        "kernel": request.kernel,
        "build_id": request.build_id,
        "verify": request.verify,
        "proof": request.proof,
        "host": _kernel_facts(request.host),
        "image": job.image.digest if job.image is not None else request.image,
        "patches": [_digest(file.data) for file in job.patches],
        "base_patches": [_digest(file.data) for file in job.base_patches],
        "config": _digest(job.config),
        "check": _digest(job.check),
        "symbols": _digest(job.symbols),
        "engine": request.engine,
        "cves": _cves(request, workshop),
        "klp": KLP_FORMAT,  # kpatch's version is a part of its root's digest
        "roots": {root.name: root.digest for root in workshop.roots.installed()},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _cves(request: BuildRequest, workshop: Workshop) -> object:
    """What decides a plan beside the kernel: the wish, and the state of the data."""
    if request.cves is None:
        return None
    return [request.cves.dump(), workshop.cves.identity, workshop.cves.stable_git, workshop.cves.stable_http]


def _kernel_facts(host: HostFacts | None) -> Mapping[str, object] | None:
    """What a host tells of its kernel: the same for all hosts that run the same one."""
    if host is None:
        return None
    names = ("release", "version", "build_id", "place", "symbols_sha256", "btf_sha256")
    return {name: getattr(host, name) for name in names}


def _digest(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()


def build(job: Job, workshop: Workshop, output: Path, progress: Progress) -> Report:
    """Build, prove and try the livepatch; leaves ``report.json`` and the module in ``output``.

    Whatever the end, the report says it; only DiskFullError is raised, where not even the report can be written.
    """
    began = time.monotonic()
    key = request_key(job, workshop)
    state = _State()
    try:
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
    _check_cache(workshop.cache)
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


def _check_cache(cache: Path) -> None:
    """Raise UnavailableError for a cache that cannot be used, before anything is made there."""
    hint = "Give a directory of your own with ELIVEPATCH_CACHE; it takes some 10 GB."
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
        kernels = cache / "kernels/prepared"  # build roots are only read, they can be another user's
        if kernels.is_dir() and not os.access(kernels, os.W_OK | os.X_OK):
            raise UnavailableError(f"The cache {cache} belongs to another user.", hint=hint)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise UnavailableError(f"The cache {cache} cannot be used: {error.strerror}.", hint=hint) from error


def wanted_kernel(job: Job) -> WantedKernel:
    """The kernel that a job is for. Raises InvalidInputError where what is said of it cannot be."""
    if job.config is not None:
        parse_config(job.config)
    return WantedKernel(
        name=job.request.kernel,
        config=job.config,
        base_patches=[(file.name, file.data) for file in job.base_patches],
        host=job.request.host,
        image=job.image,
        build_id=job.request.build_id or (job.request.host.build_id if job.request.host else None),
    )


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
        applied = apply_series(series, kernel.source, changes, prefix=tool_prefix(kernel.root.path, changes))
        changed_files = doctor.changes_of(applied)
        examination = doctor.examine(changed_files)
        doctor.require_code(examination, series.paths)
        doctor.require_possible(examination, foreign_macros(changed_files, engine.name))
        engine.examine(series.paths)
        change = lookup.change_of(applied)
        affected = lookup.affected_objects(kernel, change, work / "lookup", workshop.parallel, progress, engine.headers)
        state.notes += [*applied.findings, *examination.findings, *affected.notes]
    progress.step(f"compiling {', '.join(affected.paths[:5])}{', …' if len(affected.paths) > 5 else ''}")
    with progress.timed("compile"):
        compiled, findings = Compiler(kernel, work / "compile", workshop.parallel, engine.headers).compile(
            affected.paths, affected.files, affected.plain
        )
        state.notes += [said for said in findings if said.severity != "error"]
        compiled = [part for each in compiled for part in lookup.in_parents(kernel, each)]
    state.cache = CacheReport(kernel=was_there, original_objects=sum(each.cached for each in compiled))
    with progress.timed("proof"):
        prover = Prover(kernel)
        proofs = [prover.prove(each.path, each.parent, each.exact) for each in compiled]
        state.proof = _proof(proofs, level)
    progress.step("comparing original and patched objects")
    with progress.timed("diff"):
        diffs = engine.diff(compiled, work / "diff")
    state.notes += [note for diff in diffs for note in diff.notes]
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
    changes = {diff.source.path: {c.function for c in diff.changes if c.kind == "changed"} for diff in diffs}
    findings: list[Diagnosis] = []
    for source, proof in zip(compiled, proofs, strict=True):
        names = changes.get(source.path, set())
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


def _write(path: Path, data: bytes) -> None:
    """Write aside and rename: a reader sees all of it or nothing."""
    aside = path.with_name(f".{path.name}.part")
    aside.write_bytes(data)
    aside.replace(path)


def read_inputs(paths: Sequence[Path], limit_bytes: int, what: str) -> tuple[InputFile, ...]:
    """Read files that a user named; raises InvalidInputError for one that cannot be read or is too large."""
    found: list[InputFile] = []
    for path in paths:
        try:
            with path.open("rb") as stream:
                data = stream.read(limit_bytes + 1)
        except OSError as error:
            raise InvalidInputError(
                f"The {what} {path} cannot be read: {error.strerror}.", hint="Name files, one by one in their order."
            ) from error
        found.append(InputFile(path.name, data))
    return tuple(found)
