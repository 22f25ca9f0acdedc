# SPDX-License-Identifier: GPL-2.0-or-later
"""kbuild, entered where the work is.

The kernel's top Makefile spends more time than the compiler does on one object: it checks the compiler, the
configuration and the host tools at each call. All that it hands down to the makefiles of the directories is its
environment. That is caught once per kernel; from then on scripts/Makefile.build is called as the top Makefile calls it
(rule of ``$(build-dir)`` in the kernel's Makefile), which knows every flag of every directory.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from elivepatch.errors import InternalError
from elivepatch.process import Completed
from elivepatch.toolchains.sandbox import JOB, TREE, Sandbox

SECTION_FLAGS = "-ffunction-sections -fdata-sections"
#: objtool is left to the link of vmlinux where IBT is on; without the option it runs on each object, as we need it.
#: The compiler's flags do not change: they are in the caught environment.
_OBJTOOL_PER_OBJECT = ("CONFIG_X86_KERNEL_IBT=", "delay-objtool=")
_CATCH = """\
ifeq ($(obj),scripts/basic)
$(shell cat /proc/$$PPID/environ > {job}/environment)
endif
"""


@dataclass(frozen=True)
class Kbuild:
    """How kbuild is called for one kernel. ``release`` and ``variables`` are as its makers gave them to make."""

    release: str
    variables: Mapping[str, str]
    environment: Mapping[str, str]

    def objects(
        self,
        sandbox: Sandbox,
        targets: Sequence[str],
        *,
        extra_flags: str = "",
        parallel: int = 1,
        directory: str = ".",
        spelled: Mapping[str, str] | None = None,
    ) -> Completed:
        """Build objects, paths from the top of the tree; the exit status is make's.

        ``spelled`` are the names that makefiles give to objects of other directories, by their paths, both without
        suffix (see `elsewhere`).
        """
        if not targets:  # make without a goal would build the whole kernel
            return Completed((), 0, "", "", 0.0)
        env = dict(self.environment)
        env["KBUILD_MODULES"] = "1"
        if extra_flags:
            env["KBUILD_CFLAGS"] = f"{env['KBUILD_CFLAGS']} {extra_flags}"
        # arch/x86/pci and its like are entered twice, from arch/x86 and as drivers: two makes would write one object
        if any(target.startswith(tuple(env.get("ARCH_DRIVERS", "").split())) for target in targets):
            parallel = 1
        names = [_spelled(target, spelled or {}) for target in targets]
        goals = [f"{directory}/{name}" for name in names] if directory == "." else names
        argv = ["make", f"-j{parallel}", "--keep-going", "-f", "scripts/Makefile.build", f"obj={directory}"]
        argv += ["need-builtin=1", "need-modorder=1", *_OBJTOOL_PER_OBJECT, *goals]
        return sandbox.run(argv, cwd=TREE, env=env, check=False)

    def step(self, sandbox: Sandbox, makefile: str, variables: Mapping[str, str]) -> Completed:
        """Run one of kbuild's own makefiles (modpost, modfinal); raises ProgramError when it fails."""
        env = {**self.environment, "KBUILD_MODULES": "1", **variables}
        env.pop("KBUILD_BUILTIN", None)  # else modfinal wants a vmlinux for BTF
        return sandbox.run(["make", "-f", makefile], cwd=TREE, env=env)


def _spelled(target: str, spelled: Mapping[str, str]) -> str:
    stem, dot, suffix = target.rpartition(".")
    return f"{spelled.get(stem, stem)}{dot}{suffix}"


def catch_environment(sandbox: Sandbox, release: str, variables: Mapping[str, str]) -> dict[str, str]:
    """The environment that the top Makefile hands down; the sandbox must have a job directory.

    Raises InternalError where the makefiles do not work as expected.
    """
    if sandbox.job is None:
        raise InternalError("The environment of kbuild is caught in the job's directory.")
    (sandbox.job / "catch.mk").write_text(_CATCH.format(job=JOB))
    words = [f"{name}={value}" for name, value in {"KERNELRELEASE": release, **variables}.items()]
    done = sandbox.run(
        ["make", *words, "scripts_basic"], cwd=TREE, env={"MAKEFILES": f"{JOB}/catch.mk", "SRCARCH": "x86"}, check=False
    )
    caught = sandbox.job / "environment"
    if not caught.exists():
        raise InternalError(f"kbuild of {release} could not be entered:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    pairs = (entry.partition("=") for entry in caught.read_bytes().decode().split("\0") if "=" in entry)
    environment = {name: value for name, _, value in pairs}
    for name in ("MAKEFILES", "PWD", "OLDPWD", "SHLVL", "_", "MAKE_TERMOUT", "MAKE_TERMERR"):
        environment.pop(name, None)
    if "KBUILD_CFLAGS" not in environment or "sub_make_done" not in environment:
        raise InternalError(f"kbuild of {release} handed down no compiler flags.")
    return environment


def saved_command(path: str) -> str:
    """Where kbuild saves the command line of a target (scripts/Kbuild.include)."""
    directory, slash, name = path.rpartition("/")
    return f"{directory}{slash}.{name}.cmd"


def saved_parent(directory: Path, path: str) -> str | None:
    """What a target of ours belongs to: vmlinux, or the name of its module; None where kbuild has not made it.

    The saved command line names it (scripts/Makefile.lib); an object of several modules has them all, ``a:b``.
    """
    try:
        line = (directory / saved_command(path)).read_text(errors="replace").splitlines()[0]
        words = shlex.split(line.partition(":=")[2])
    except (OSError, IndexError, ValueError):
        return None
    if "-DMODULE" not in words:
        return "vmlinux"
    for word in words:
        if word.startswith("-DKBUILD_MODNAME="):
            return word.partition("=")[2].strip('"')
    return None
