# SPDX-License-Identifier: GPL-2.0-or-later
"""Compiling the objects of a change: the original exactly as the kernel's makers did, and a pair for the differ.

Three objects per source file: ``exact`` (for the proof), and ``original`` and ``patched`` with a section per function,
compiled alike (for the differ). Nothing but the changed files is compiled; the first two are kept with the kernel.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from elivepatch.build.collect import collect
from elivepatch.build.diagnose import RULES, diagnose_compiler
from elivepatch.build.forms import Form
from elivepatch.build.kbuild import saved_command, saved_parent
from elivepatch.build.lines import Texts
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.rules import finding
from elivepatch.build.store import remove_tree
from elivepatch.errors import (
    Diagnosis,
    DiskFullError,
    DoesNotCompileError,
    InternalError,
    InvalidInputError,
    ResourceExhaustedError,
    SandboxViolationError,
    ToolCrashedError,
)
from elivepatch.kernel.elf import ElfImage
from elivepatch.process import Completed, ProgramError
from elivepatch.toolchains.sandbox import Sandbox, give_to_sandbox, sandbox_owner

#: How the compiler and the linker say that they got no more memory.
_NO_MEMORY = re.compile(
    r"^.*(?:out of memory|virtual memory exhausted|memory exhausted|Cannot allocate memory).*$", re.M
)
#: Age in seconds at which what is being put into the cache of originals is nobody's any more.
_LEFT_SECONDS = 3600.0
#: Where the headers for authors of patches are seen: in the sandbox's own /tmp. No object holds the path.
_HEADERS = Path("/tmp/elivepatch-headers")  # noqa: S108
#: Objects of one run of kbuild: with debug information one takes up to 10 MB, and the time of a run is limited.
_BATCH = 16


@dataclass(frozen=True)
class CompiledObject:
    """The objects of one source file. ``path`` is that of the object, from the top of the tree."""

    path: str
    exact: Path
    original: Path
    patched: Path
    parent: str
    cached: bool

    @property
    def source(self) -> str:
        """The source file it was compiled from."""
        return f"{self.path.removesuffix('.o')}.c"


@dataclass(frozen=True)
class OriginalObject:
    """The objects of a file as the kernel has it. ``parent`` is vmlinux or the name of the module it belongs to."""

    path: str
    exact: Path
    original: Path
    parent: str
    cached: bool
    form: Form = Form.FAST


@dataclass(frozen=True)
class NewObject:
    """An object that the kernel does not have, compiled by itself. ``parent`` is what the makefiles make it part of."""

    path: str
    file: Path
    parent: str | None


class Compiler:
    """Compiles for one kernel in one working directory; ``headers`` is a directory of headers for patches.

    ``spelled`` are the names of objects that lie elsewhere than their makefile (see `elsewhere`).
    """

    def __init__(
        self,
        kernel: PreparedKernel,
        work: Path,
        parallel: int,
        headers: Path | None = None,
        spelled: Mapping[str, str] | None = None,
    ) -> None:
        self._kernel = kernel
        self._work = work
        self._parallel = max(1, parallel)
        self._cache = kernel.path / "objects"
        self._parents: dict[str, str] = {}
        self._spelled = spelled or {}
        self._headers: dict[Path, Path] = {_HEADERS: headers} if headers is not None else {}

    def compile(
        self, objects: Sequence[str], patched: Mapping[str, bytes], plain: Mapping[str, bytes] | None = None
    ) -> tuple[list[CompiledObject], list[Diagnosis]]:
        """Compile objects, given by their paths in the tree; ``patched`` are the texts of the changed files.

        ``plain`` are the texts without directives for line numbers. An object that does not compile is tried with them
        once more, and where the compiler speaks of lines, it is what it says of those that counts.
        Raises DoesNotCompileError with the compiler's findings for the patched side, InternalError for the original.
        """
        files = Texts(patched, plain or patched)
        kept = {path: self._cached(path) for path in objects}
        missing = [path for path, original in kept.items() if original is None]
        fast = [path for path, original in kept.items() if original is None or original.form is Form.FAST]
        with ThreadPoolExecutor(3) as pool:
            exact = pool.submit(self._build, "exact", missing, "", {})
            pair = pool.submit(self._build, "original", missing, self._flags(Form.FAST), {})
            other = pool.submit(self._build_patched, fast, files, Form.FAST)
            exact_files, pair_files = exact.result(), pair.result()
            built, findings = other.result()
        self._keep_all(missing, exact_files, pair_files)
        compiled: list[CompiledObject] = []
        originals = {path: self._cached(path) for path in objects}
        for form in (Form.DEBUG, Form.PLAIN, Form.PLAIN_DEBUG):
            again = [path for path, original in originals.items() if original is not None and original.form is form]
            if again:
                more, said = self._build_patched(again, files, form)
                built.update(more)
                findings += said
        for path, original in originals.items():
            if original is None:
                raise InternalError(f"The original of {path} was compiled and is gone.")
            compiled.append(
                CompiledObject(
                    path, original.exact, original.original, built[path], original.parent, path not in missing
                )
            )
        return compiled, list(dict.fromkeys(findings))  # a header says the same for each of its users

    def _keep_all(self, missing: Sequence[str], exact: Mapping[str, Path], fast: Mapping[str, Path]) -> None:
        """Find the form of each original in which the differ sees the kernel's own functions, and keep that."""
        left = list(missing)
        for form in Form:
            now = [path for path in left if form.suits(exact[path])]
            built = (
                fast if form is Form.FAST else self._build(f"original-{form.name}", now, self._flags(form), form.files)
            )
            for path in now:
                if _functions(exact[path]) == _functions(built[path]):
                    self._keep(path, exact[path], built[path], self._parents[path], form)
                    left.remove(path)
        if left:
            raise InternalError(
                f"Compiled with a section for each function, {', '.join(left)} has other functions than the kernel.",
                hint="This object cannot be patched yet; please report it.",
            )

    def originals(self, objects: Sequence[str]) -> dict[str, OriginalObject | str]:
        """The exact objects of the unpatched kernel, for a survey of the proof; a text says why there is none."""
        missing = [path for path in objects if not self._cached(path)]
        work = self._work / "survey"
        found: dict[str, OriginalObject | str] = {}
        with self._kernel.sandbox(work) as sandbox:
            done = self._make(sandbox, missing, "")
        for path in objects:
            if path in missing:
                built = work / "upper" / path
                if built.exists():
                    parent = _require_parent(work / "upper", path)
                    found[path] = OriginalObject(path, built, built, parent, cached=False)
                else:
                    found[path] = done.stderr[-300:] or "not built"
            elif cached := self._cached(path):
                found[path] = cached
        return found

    # -- building

    def _flags(self, form: Form) -> str:
        """The flags of a pair. The headers come behind all other directories, and both sides are compiled alike."""
        return f"{form.flags} -idirafter {_HEADERS}" if self._headers else form.flags

    def _make(self, sandbox: Sandbox, objects: Sequence[str], flags: str) -> Completed:
        kbuild = self._kernel.kbuild
        return kbuild.objects(sandbox, objects, extra_flags=flags, parallel=self._parallel, spelled=self._spelled)

    @contextmanager
    def _sandbox(self, work: Path) -> Generator[Sandbox]:
        with self._kernel.sandbox(work) as sandbox:
            yield replace(sandbox, read_only=self._headers)

    def _build(self, name: str, objects: Sequence[str], flags: str, files: Mapping[str, bytes]) -> dict[str, Path]:
        """Compile objects of the original tree; they must compile, the kernel's makers did it too."""
        built: dict[str, Path] = {}
        for number, batch in _batches(objects):
            work = self._work / f"{name}-{number}"
            place_files(work / "upper", files)
            with self._sandbox(work) as sandbox:
                done = self._make(sandbox, batch, flags)
            built |= self._collect(work, batch)
            lacking = [path for path in batch if path not in built]
            if lacking:
                raise InternalError(
                    f"The unpatched {', '.join(lacking)} of {self._kernel.release} cannot be compiled:\n"
                    f"{done.stderr[-3000:]}",
                    hint="The prepared kernel or its build root lacks something; the patch is not to blame.",
                )
            self._parents |= {path: _require_parent(work / "upper", path) for path in batch}
            remove_tree(work / "upper")
        return built

    def _build_patched(
        self, objects: Sequence[str], files: Texts, form: Form
    ) -> tuple[dict[str, Path], list[Diagnosis]]:
        built: dict[str, Path] = {}
        findings: list[Diagnosis] = []
        for number, batch in _batches(objects):
            work = self._work / f"patched-{form.name}-{number}"
            some, stderr = self._run_patched(batch, files.patched, form, work)
            lacking = [path for path in batch if path not in some]
            if files.plain != files.patched and (lacking or files.tells_of(diagnose_compiler(stderr))):
                aside = work.with_name(f"{work.name}-plain")
                more, stderr = self._run_patched(batch, files.plain, form, aside)
                lines_lost = [path for path in lacking if path in more]
                some |= {path: more[path] for path in lines_lost}
                findings += [_moved_lines(path) for path in lines_lost]
            findings += self._judge(batch, some, stderr)
            built |= some
        return built, findings

    def compile_new(
        self, objects: Sequence[str], patched: Mapping[str, bytes]
    ) -> tuple[dict[str, NewObject], list[Diagnosis]]:
        """Compile objects that the kernel does not have, each by itself, as the patched makefiles say.

        Raises DoesNotCompileError.
        """
        work = self._work / "new"
        built, stderr = self._run_patched(objects, patched, Form.FAST, work)
        findings = self._judge(objects, built, stderr)
        found = {path: NewObject(path, file, saved_parent(work / "objects", path)) for path, file in built.items()}
        return found, findings

    def _run_patched(
        self, objects: Sequence[str], files: Mapping[str, bytes], form: Form, work: Path
    ) -> tuple[dict[str, Path], str]:
        place_files(work / "upper", {**files, **form.files})
        flags = self._flags(form)
        with limits_of_patch(), self._sandbox(work) as sandbox:
            done = self._make(sandbox, objects, flags)
        built = self._collect(work, objects)
        for path, file in built.items():
            _check_object(path, file)
            collect(work / "upper", saved_command(path), work / "objects" / saved_command(path))
        remove_tree(work / "upper")
        return built, done.stderr

    @staticmethod
    def _judge(objects: Sequence[str], built: Mapping[str, Path], stderr: str) -> list[Diagnosis]:
        """What the compiler found; raises DoesNotCompileError where an object was not built."""
        findings = list(diagnose_compiler(stderr))
        lacking = [path for path in objects if path not in built]
        if not lacking:
            return findings
        if short := _NO_MEMORY.search(stderr):
            raise SandboxViolationError(
                f"Compiling the patched source takes more memory than the sandbox gives: {short[0]}",
                hint="Leave out of the patch whatever makes its compilation grow without end.",
            )
        errors = [each for each in findings if each.severity == "error"]
        if not errors:
            errors = [
                Diagnosis(
                    rule="compile-error",
                    message=f"{path} was not built: {stderr.strip()[-1000:]}",
                    file=f"{path.removesuffix('.o')}.c",
                )
                for path in lacking
            ]
        ours = [each for each in errors if each.rule in RULES and RULES[each.rule].ours]
        if ours:
            raise ToolCrashedError(f"The compiler failed: {ours[0].message}", diagnosis=ours)
        first = errors[0]
        raise DoesNotCompileError(
            f"The patched source does not compile: {_place_of(first)}{first.message}",
            hint="Build the patched kernel source with this configuration, and correct the patch.",
            diagnosis=errors,
        )

    @staticmethod
    def _collect(work: Path, objects: Sequence[str]) -> dict[str, Path]:
        """The objects that were built, taken out of the layer that the sandbox wrote to."""
        taken = {path: work / "objects" / path for path in objects}
        return {path: target for path, target in taken.items() if collect(work / "upper", path, target)}

    # -- what is kept with the kernel

    def _cache_entry(self, path: str) -> Path:
        return self._cache / hashlib.sha256(path.encode()).hexdigest()[:32]

    def _cached(self, path: str) -> OriginalObject | None:
        entry = self._cache_entry(path)
        try:
            parent, form = (entry / "parent").read_text(), Form[(entry / "form").read_text()]
        except OSError:
            return None
        return OriginalObject(path, entry / "exact.o", entry / "original.o", parent, cached=True, form=form)

    def _keep(self, path: str, exact: Path, original: Path, parent: str, form: Form) -> None:
        self._cache.mkdir(exist_ok=True)
        for left in self._cache.glob(".part.*"):  # of a build that was killed: none takes an hour here
            if time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                remove_tree(left)
        work = Path(tempfile.mkdtemp(prefix=".part.", dir=self._cache))
        try:
            work.chmod(0o755)
            shutil.copyfile(exact, work / "exact.o")
            shutil.copyfile(original, work / "original.o")
            (work / "parent").write_text(parent)
            (work / "form").write_text(form.name)
            work.rename(self._cache_entry(path))
        except OSError:
            remove_tree(work)
            if self._cached(path) is None:  # else another build was first, with the same bytes
                raise


def _moved_lines(path: str) -> Diagnosis:
    said = f"{path} does not compile with the line numbers of its source kept: functions may change with their numbers."
    return finding("line-numbers", said, file=f"{path.removesuffix('.o')}.c")


def _place_of(found: Diagnosis) -> str:
    line = f":{found.line}" if found.line is not None else ""
    return f"{found.file}{line}: " if found.file else ""


def _check_object(path: str, file: Path) -> None:
    """What was built must be an object: its makefile is the patch's, and may have made anything."""
    try:
        ElfImage(file).close()
    except InvalidInputError as error:
        raise SandboxViolationError(
            f"The build left something else than an object as its result {path}.",
            hint="The patch changes how the kernel is built in a way that is not allowed.",
        ) from error


def place_files(upper: Path, files: Mapping[str, bytes]) -> None:
    """Put files into a writable layer, all of it owned by the sandbox's user."""
    upper.mkdir(parents=True, exist_ok=True)
    give_to_sandbox(upper)
    for name, data in files.items():
        target = upper / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    if files and sandbox_owner():
        for path in upper.rglob("*"):
            give_to_sandbox(path)


def _functions(path: Path) -> set[str]:
    with ElfImage(path) as image:
        return {symbol.name for symbol in image.symbols() if symbol.type == 2 and symbol.section}


def _require_parent(upper: Path, path: str) -> str:
    parent = saved_parent(upper, path)
    if parent is None:
        raise InternalError(f"kbuild's command for {path} names no module.")
    return parent


@contextmanager
def limits_of_patch() -> Generator[None]:
    """What runs over a limit of the sandbox in here is the patch's doing: the unpatched files stay within them."""
    try:
        yield
    except DiskFullError:
        raise
    except (ResourceExhaustedError, ProgramError) as error:
        raise SandboxViolationError(
            "Compiling the patched source overstepped a limit of the sandbox: "
            f"{error.reason if isinstance(error, ProgramError) else error.message}",
            hint="Leave out of the patch whatever makes its compilation write or run without end.",
        ) from error


def _batches(objects: Sequence[str]) -> Generator[tuple[int, Sequence[str]]]:
    for at in range(0, len(objects), _BATCH):
        yield at // _BATCH, objects[at : at + _BATCH]
