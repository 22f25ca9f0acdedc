# SPDX-License-Identifier: GPL-2.0-or-later
"""The kpatch engine: create-diff-object and create-klp-module, for kernels up to 6.18.

The binaries are used, not the kpatch-build script, which builds the whole kernel. What they need of their surroundings:
sizes of the kernel's special structures in the environment, a symbol table of the parent as readelf prints it, and
Module.symvers. Interface: kpatch-build/create-diff-object.c and kmod/patch of kpatch 0.9.10.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

from elivepatch.build.collect import collect
from elivepatch.build.compiler import CompiledObject
from elivepatch.build.diagnose import diagnose_differ, differ_error, link_error
from elivepatch.build.engines.engine import DiffObject, FunctionChange
from elivepatch.build.engines.kpatch_object import with_sections_of
from elivepatch.build.engines.results import gather, localise
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.store import made_aside
from elivepatch.errors import ElivepatchError, InternalError
from elivepatch.process import ProgramError
from elivepatch.toolchains.roots import Root
from elivepatch.toolchains.sandbox import JOB, TREE, Sandbox, give_to_sandbox

_TOOLS = "/elivepatch/kpatch/usr/lib/kpatch"
_DATA = "elivepatch/kpatch/usr/share/kpatch/patch"
_CHANGE = re.compile(r"^\S+: (changed|new) function: (\S+)$", re.MULTILINE)
#: The directory of the module in the tree.
_PLACE = "elivepatch"
_HOOK_MAKEFILE = "obj-m += livepatch.o\nlivepatch-objs := patch-hook.o\n"
#: One run of the sandbox for the whole link; only our own words in it. $1 is the module's name.
_LINK = """\
set -e
name=$1; shift
cd elivepatch
$LD $KBUILD_LDFLAGS -r -o output.o "$@"
$LD $KBUILD_LDFLAGS -r -T kpatch.lds -o "$name.o" patch-hook.o output.o
cd ..
make -f scripts/Makefile.modpost
make -f scripts/Makefile.modfinal
cp "elivepatch/$name.ko" {job}/linked.ko
"""


class KpatchEngine:
    """kpatch's tools for one kernel, from a root that has them."""

    def __init__(self, kernel: PreparedKernel, tools: Root) -> None:
        if tools.kpatch is None:
            raise InternalError(f"The build root '{tools.name}' has no kpatch tools.")
        self._kernel = kernel
        self._tools = tools

    @property
    def name(self) -> str:
        """The name in reports."""
        return "kpatch"

    @property
    def version(self) -> str:
        """The version of kpatch's tools."""
        return self._tools.kpatch or ""

    @property
    def headers(self) -> Path | None:
        """Where kpatch-macros.h and kpatch-syscall.h are."""
        return self._tools.path / _DATA

    def examine(self, paths: Sequence[str]) -> None:
        """See `Engine.examine`: what cannot be redirected is told by the compiled object."""

    # -- diff

    def diff(self, objects: Sequence[CompiledObject], work: Path) -> list[DiffObject]:
        """See `Engine.diff`; every object is looked at, so that a refusal names all that is wrong."""
        work.mkdir()
        give_to_sandbox(work)
        for parent in {compiled.parent for compiled in objects}:
            (work / f"{parent}.symtab").write_text(self._symbols(parent))
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(self._diff_one, objects, repeat(work), range(len(objects))))
        return gather(results)

    def _symbols(self, parent: str) -> str:
        kernel = self._kernel
        return kernel.vmlinux_readelf() if parent == "vmlinux" else kernel.module_symbols(parent).readelf()

    def _diff_one(self, compiled: CompiledObject, work: Path, number: int) -> DiffObject | ElivepatchError:
        place = work / str(number)
        name = Path(compiled.path).name
        for side in ("original", "patched", "out"):
            (place / side).mkdir(parents=True)
        original, patched = compiled.original.read_bytes(), compiled.patched.read_bytes()
        (place / "original" / name).write_bytes(original)
        (place / "patched" / name).write_bytes(with_sections_of(original, patched))
        give_to_sandbox(place / "out")
        sandbox = Sandbox(self._tools.path, job=work, read_only={TREE: self._kernel.path})
        inside = JOB / str(number)
        done = sandbox.run(
            [
                f"{_TOOLS}/create-diff-object",
                *(f"{inside}/original/{name}", f"{inside}/patched/{name}", compiled.parent),
                f"{JOB}/{compiled.parent}.symtab",
                *(f"{TREE}/products/Module.symvers", "livepatch_elivepatch", f"{inside}/out/{name}"),
            ],
            cwd=inside,
            env={f"{kind}_STRUCT_SIZE": str(size) for kind, size in self._kernel.sizes.items()},
            check=False,
        )
        output = done.stdout + done.stderr
        if done.returncode != 0 or not collect(place / "out", name, place / "diff.o"):
            return differ_error(output, done.returncode, source=compiled.source)
        changes = [
            FunctionChange(compiled.parent, function, "new" if kind == "new" else "changed")
            for kind, function in _CHANGE.findall(output)
        ]
        return DiffObject(compiled, place / "diff.o", changes, diagnose_differ(output, 0, source=compiled.source))

    # -- link

    def link(self, diffs: Sequence[DiffObject], name: str, work: Path) -> Path:
        """See `Engine.link`."""
        hook = self._hook(work)
        job = work / "job"
        place = work / "link/upper" / _PLACE
        for directory in (job, work / "link/upper", place):
            directory.mkdir(parents=True, exist_ok=True)
            give_to_sandbox(directory)
        for file in hook.iterdir():
            shutil.copy2(file, place / file.name)
            give_to_sandbox(place / file.name)
        inputs: list[str] = []
        shared = [path for path, count in Counter(diff.source.path for diff in diffs).items() if count > 1]
        for number, diff in enumerate(diffs):
            inputs.append(f"diff-{number}.o")
            shutil.copyfile(diff.path, place / inputs[-1])
            if diff.source.path in shared:
                localise(self._kernel, place / inputs[-1])
                give_to_sandbox(place / inputs[-1])
        # what kbuild would have left behind for modpost, had it compiled the module
        files = {
            "Makefile": "",
            "modules.order": f"{_PLACE}/{name}.{self._order_suffix()}\n",
            f"{name}.mod": f"{_PLACE}/patch-hook.o\n{_PLACE}/output.o\n",
            ".patch-hook.o.cmd": f"savedcmd_{_PLACE}/patch-hook.o := true\n",
            ".output.o.cmd": f"savedcmd_{_PLACE}/output.o := true\n",
        }
        for file, text in files.items():
            (place / file).write_text(text)
        env = self._link_environment()
        with self._kernel.sandbox(work / "link", job=job) as sandbox:
            try:
                sandbox.run(["sh", "-c", _LINK.format(job=JOB), "link", name, *inputs], cwd=TREE, env=env)
                # the tools may come from another root than the compiler: objects are just files
                argv = [f"{_TOOLS}/create-klp-module", "--no-klp-arch-sections"]
                Sandbox(self._tools.path, job=job).run([*argv, f"{JOB}/linked.ko", f"{JOB}/module.ko"])
            except ProgramError as error:
                raise link_error(error.completed.stdout + error.completed.stderr, error.completed.returncode) from error
        module = work / f"{name}.ko"
        if not collect(job, "module.ko", module):
            raise InternalError("create-klp-module wrote no module.")
        return module

    def _order_suffix(self) -> str:
        """What modules.order lists: objects since 6.3, modules before (scripts/Makefile.modfinal)."""
        makefile = (self._kernel.source / "scripts/Makefile.modfinal").read_text()
        return "o" if "$(modules:%.o=%.ko)" in makefile else "ko"

    def _link_environment(self) -> Mapping[str, str]:
        env = {**self._kernel.environment, "KBUILD_MODULES": "1", "KBUILD_EXTMOD": _PLACE}
        env |= {"extmod_prefix": f"{_PLACE}/", "MODORDER": f"{_PLACE}/modules.order"}
        env["KBUILD_CFLAGS"] += " -g0"
        env.pop("KBUILD_BUILTIN", None)  # else modfinal asks for a vmlinux, to make BTF against
        return env

    def _hook(self, work: Path) -> Path:
        """The part of the module that is the same for all patches of a kernel: kpatch's hook, kept with the kernel."""
        kept = self._kernel.path / f"kpatch-{self._tools.digest[:16]}"
        if kept.is_dir():
            return kept
        place = work / "hook/upper" / _PLACE
        place.mkdir(parents=True)
        for path in (self._tools.path / _DATA).iterdir():
            if path.suffix in {".c", ".h", ".S"}:
                shutil.copyfile(path, place / path.name)
        (place / "Makefile").write_text(_HOOK_MAKEFILE)
        (place / "modules.order").write_text("")
        for path in (place.parent, place, *place.iterdir()):
            give_to_sandbox(path)
        with self._kernel.sandbox(work / "hook") as sandbox:
            done = self._kernel.kbuild.objects(sandbox, [f"{_PLACE}/patch-hook.o"], directory=_PLACE, extra_flags="-g0")
            if not (place / "patch-hook.o").exists():
                raise InternalError(f"kpatch's hook does not compile for {self._kernel.release}:\n{done.stderr}")
            script = f"$CPP -P -D__KERNEL__ -o {_PLACE}/kpatch.lds {_PLACE}/kpatch.lds.S"
            # only kernels that have it know this target (scripts/Makefile.modfinal)
            common = f"make -f scripts/Makefile.modfinal {_PLACE}/.module-common.o >/dev/null 2>&1 || true"
            sandbox.run(["sh", "-e", "-c", f"{script}; {common}"], cwd=TREE, env=self._link_environment())
        with made_aside(kept) as aside:
            for file in ("patch-hook.o", "kpatch.lds", ".module-common.o", "..module-common.o.cmd"):
                if (place / file).exists():
                    shutil.copy2(place / file, aside / file)
        return kept
