# SPDX-License-Identifier: GPL-2.0-or-later
"""The klp engine: the kernel's own tools, for kernels from 6.19 on.

``objtool klp`` is used, not scripts/livepatch/klp-build, which builds the whole kernel twice. What it needs of its
surroundings: objects with checksums, named after what they belong to, Module.symvers, and two tables that tell symbols
of one name apart (`klp_image`). Interface: tools/objtool/klp-*.c of 7.3.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

from elivepatch.build.collect import collect
from elivepatch.build.compiler import CompiledObject
from elivepatch.build.diagnose import link_error
from elivepatch.build.engines import klp_object
from elivepatch.build.engines.engine import DiffObject, FunctionChange
from elivepatch.build.engines.klp_files import refuse_files
from elivepatch.build.engines.klp_image import Located, ParentSymbols, locate, stand_in, symid_section
from elivepatch.build.engines.klp_tools import MODEL, KlpTools, klp_tools
from elivepatch.build.engines.results import gather, localise
from elivepatch.build.klp_messages import new_functions, notes_of, tool_error, unchanged
from elivepatch.build.prepared import PreparedKernel
from elivepatch.errors import CannotLivepatchError, ElivepatchError, InternalError
from elivepatch.kernel.elf_object import ElfObject
from elivepatch.process import Completed, ProgramError
from elivepatch.toolchains.sandbox import JOB, TREE, Sandbox, give_to_sandbox

#: objtool takes what an object belongs to from its ``.modinfo``, and reads the tables only beside one of this name.
_OBJECT = "vmlinux.o"
_IMAGE = "vmlinux"


class KlpEngine:
    """The kernel's own tools for one kernel, built from its tree; ``work`` is a directory for making them."""

    def __init__(self, kernel: PreparedKernel, work: Path) -> None:
        self._kernel = kernel
        self._tools: KlpTools = klp_tools(kernel, work)

    @property
    def name(self) -> str:
        """The name in reports."""
        return "klp"

    @property
    def version(self) -> str:
        """The version of the tools: that of the kernel whose tree they are from."""
        return self._kernel.release

    @property
    def headers(self) -> None:
        """None: the macros are in the kernel's own linux/livepatch_helpers.h."""
        return None

    def examine(self, paths: Sequence[str]) -> None:
        """See `Engine.examine`."""
        refuse_files(self._kernel, paths)

    # -- diff

    def diff(self, objects: Sequence[CompiledObject], work: Path) -> list[DiffObject]:
        """See `Engine.diff`; every object is looked at, so that a refusal names all that is wrong."""
        work.mkdir()
        give_to_sandbox(work)
        shutil.copy2(self._tools.objtool, work / "objtool")
        parents = {parent: ParentSymbols(self._kernel, parent) for parent in {one.parent for one in objects}}
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(self._diff_one, objects, repeat(parents), repeat(work), range(len(objects))))
        return gather(results)

    def _diff_one(
        self, compiled: CompiledObject, parents: dict[str, ParentSymbols], work: Path, number: int
    ) -> DiffObject | ElivepatchError:
        parent = parents[compiled.parent]
        located = locate(self._kernel, parent, compiled.path, compiled.exact, compiled.original)
        place = work / str(number)
        self._lay_out(compiled, parent, located, place)
        inside = JOB / str(number)
        said = ""
        for side in ("original", "patched"):
            done = self._objtool(work, ["checksum", _OBJECT], inside / side)
            said += done.stdout + done.stderr
            if done.returncode != 0:
                return tool_error(said, done.returncode, source=compiled.source, original=side == "original")
        argv = ["diff", _OBJECT, f"../patched/{_OBJECT}", f"../out/{_OBJECT}"]
        done = self._objtool(work, argv, inside / "original")
        said = done.stdout + done.stderr
        if done.returncode != 0:
            return tool_error(said, done.returncode, source=compiled.source, original=False)
        if not collect(place / "out", _OBJECT, place / "raw.o"):
            return unchanged(compiled.source)
        try:
            changed = klp_object.settle(place / "raw.o", place / "diff.o", compiled, parent)
        except CannotLivepatchError as error:
            return error
        changes = [FunctionChange(compiled.parent, name, "changed") for name in changed]
        changes += [FunctionChange(compiled.parent, name, "new") for name in new_functions(said)]
        notes = [*notes_of(said, source=compiled.source), *klp_object.callbacks(place / "diff.o", compiled.source)]
        return DiffObject(compiled, place / "diff.o", changes, notes)

    def _lay_out(self, compiled: CompiledObject, parent: ParentSymbols, located: Located, place: Path) -> None:
        """The files of one run: original and patched object, each with what objtool asks of it, and the stand-in."""
        for side in ("original", "patched", "out"):
            (place / side).mkdir(parents=True)
        original, patched = ElfObject(compiled.original.read_bytes()), ElfObject(compiled.patched.read_bytes())
        klp_object.name_parent(original, compiled.parent)
        klp_object.import_namespaces(original, patched, self._kernel.symvers)
        klp_object.declare_known(original, patched, parent)
        (place / "original" / _IMAGE).write_bytes(stand_in(original, located))
        symid_section(original, located)
        (place / "original" / _OBJECT).write_bytes(original.write())
        (place / "patched" / _OBJECT).write_bytes(patched.write())
        shutil.copyfile(self._kernel.symvers, place / "original/Module.symvers")
        for path in (*place.iterdir(), place / "original" / _OBJECT, place / "patched" / _OBJECT):
            give_to_sandbox(path)

    def _objtool(self, work: Path, words: Sequence[str], cwd: Path) -> Completed:
        return Sandbox(self._kernel.root.path, job=work).run([f"{JOB}/objtool", "klp", *words], cwd=cwd, check=False)

    # -- link

    def link(self, diffs: Sequence[DiffObject], name: str, work: Path) -> Path:
        """See `Engine.link`."""
        job = work / "job"
        job.mkdir(parents=True, exist_ok=True)
        give_to_sandbox(job)
        for file in (self._tools.objtool, *self._tools.kept):
            shutil.copy2(file, job / file.name)
        names = ["init.o"]
        paths = [diff.source.path for diff in diffs]
        # what one klp object is changed in stands together: its entries become one
        for number, diff in enumerate(
            sorted(diffs, key=lambda diff: (diff.source.parent != "vmlinux", diff.source.parent))
        ):
            names.append(f"diff-{number}.o")
            shutil.copyfile(diff.path, job / names[-1])
            (job / f".{names[-1]}.cmd").write_text(f"savedcmd_{names[-1]} := true\n")
            if paths.count(diff.source.path) > 1:
                localise(self._kernel, job / names[-1])
        (job / f"{name}.mod").write_text("".join(f"./{one}\n" for one in names))
        (job / "modules.order").write_text(f"{name}.o\n")
        for path in job.iterdir():
            give_to_sandbox(path)
        self._run_link(name, job, work)
        module = work / f"{name}.ko"
        if not collect(job, f"{name}.ko", module):
            raise InternalError("The link wrote no module.")
        return module

    def _run_link(self, name: str, job: Path, work: Path) -> None:
        commands = {
            kind: command.replace(MODEL, name).replace(f"{TREE}/tools/objtool/objtool", "./objtool")
            for kind, command in self._tools.commands.items()
        }
        joining, _, checking = commands["object"].partition(";")
        finishing = f"{self._kernel.environment['OBJCOPY']} --remove-section=.BTF {name}.ko"
        rest = [checking, commands["modpost"], commands["mod"], commands["module"], finishing]
        rest.append(f"./objtool klp post-link {name}.ko")
        with self._kernel.sandbox(work / "link", job=job) as sandbox:
            try:
                sandbox.run(["sh", "-e", "-c", joining], cwd=JOB)
                collect(job, f"{name}.o", work / "joined.o")
                merged = klp_object.merge_objects((work / "joined.o").read_bytes())
                if merged is not None:
                    (job / f"{name}.o").unlink()
                    (job / f"{name}.o").write_bytes(merged)
                    give_to_sandbox(job / f"{name}.o")
                sandbox.run(["sh", "-e", "-c", "\n".join(rest)], cwd=JOB)
            except ProgramError as error:
                raise link_error(error.completed.stdout + error.completed.stderr, error.completed.returncode) from error
