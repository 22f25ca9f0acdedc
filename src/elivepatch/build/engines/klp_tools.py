# SPDX-License-Identifier: GPL-2.0-or-later
"""What the klp engine needs of a kernel, made once and kept with it: objtool, and a livepatch module as a model.

objtool is built from the kernel's own tree: what a distributor ships beside its headers lacks the klp commands. The
model is the smallest livepatch (scripts/livepatch/init.c and an empty file) that kbuild makes in the ordinary way,
once; from then on the commands that kbuild saved for it are run again with other names, which takes no make at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from elivepatch.build.collect import collect
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.store import made_aside, remove_tree
from elivepatch.errors import ConfigurationMismatchError, InternalError, ToolUnavailableError
from elivepatch.toolchains.sandbox import JOB, TREE, Overlay, Sandbox, give_to_sandbox

#: Raised when what is kept changes, so that it is made again.
FORMAT = 1
INIT = "scripts/livepatch/init.c"
#: What the model is called, in commands and in files: a word that nothing else there contains.
MODEL = "livepatch_model"
#: The second object of the model, in the place of which the diff objects are linked.
_FILLER = "filler"
_OBJTOOL = "tools/objtool/objtool"
_MAKE_OBJTOOL = ("make", "-s", "-j2", "-C", "tools/objtool", "SRCARCH=x86", "HOSTCC=gcc", "HOSTLD=ld", "HOSTAR=ar")
#: The commands that are kept, by the targets that kbuild saved them for.
_COMMANDS = {
    "object": f"{MODEL}.o",
    "modpost": "Module.symvers",
    "mod": f"{MODEL}.mod.o",
    "module": f"{MODEL}.ko",
}
_KEPT = ("init.o", ".init.o.cmd", ".module-common.o")


@dataclass(frozen=True)
class KlpTools:
    """The tools of one kernel, in a directory that is only read. ``commands`` are shell text, by what they make."""

    path: Path
    commands: Mapping[str, str]

    @property
    def objtool(self) -> Path:
        """Objtool with the klp commands."""
        return self.path / "objtool"

    @property
    def kept(self) -> list[Path]:
        """The files that a module is linked from, beside its own."""
        return [self.path / name for name in _KEPT if (self.path / name).exists()]


def klp_tools(kernel: PreparedKernel, work: Path) -> KlpTools:
    """The tools of a kernel, made if they are not there; several callers at once end with one set of them."""
    kept = kernel.path / f"klp-{FORMAT}"
    if not kept.is_dir():
        with made_aside(kept) as aside:
            _make_objtool(kernel, work / "objtool", aside / "objtool")
            _make_model(kernel, work / "model", aside)
    return KlpTools(kept, json.loads((kept / "commands.json").read_text()))


def _make_objtool(kernel: PreparedKernel, work: Path, target: Path) -> None:
    upper, overlay_work, mountpoint, empty = (work / name for name in ("upper", "work", "tree", "empty"))
    for directory in (upper, overlay_work, mountpoint, empty):
        directory.mkdir(parents=True)
        give_to_sandbox(directory)
    # the source alone: a distributor's objtool in the layer above it would pass for the one that is to be made
    overlay = Overlay((kernel.source, empty), upper, overlay_work, mountpoint)
    done = Sandbox(kernel.root.path, overlay).run(_MAKE_OBJTOOL, check=False)
    if done.returncode != 0 or not collect(upper, _OBJTOOL, target):
        raise InternalError(f"objtool of {kernel.release} cannot be built:\n{done.stderr[-3000:]}")
    target.chmod(0o755)
    inside = Path("/elivepatch/job/objtool")
    asked = Sandbox(kernel.root.path, job=target.parent).run([str(inside), "klp"], check=False)
    if "checksum" not in asked.stdout + asked.stderr:
        raise ToolUnavailableError(
            f"objtool of {kernel.release} was built without its klp commands.",
            hint=f"The build root '{kernel.root.name}' lacks libxxhash-dev (0.8 or later): add it to the root's "
            f"packages and make the root again (elivepatch-server root remove {kernel.root.name}).",
        )
    remove_tree(work)


def _make_model(kernel: PreparedKernel, work: Path, target: Path) -> None:
    job = work / "job"
    job.mkdir(parents=True)
    shutil.copyfile(kernel.source / INIT, job / "init.c")
    (job / f"{_FILLER}.c").write_text("")
    (job / "Makefile").write_text(f"obj-m := {MODEL}.o\n{MODEL}-y := init.o {_FILLER}.o\n")
    for path in (job, *job.iterdir()):
        give_to_sandbox(path)
    words = [f"{name}={value}" for name, value in {"KERNELRELEASE": kernel.release, **kernel.variables}.items()]
    with kernel.sandbox(work, job=job) as sandbox:
        # without debug information: it would hold where things lay
        argv = ["make", "-s", *words, "KCFLAGS=-g0", f"M={JOB}", "modules"]
        done = sandbox.run(argv, cwd=TREE, check=False)
    if done.returncode != 0 or not (job / f"{MODEL}.ko").exists():
        raise InternalError(f"A livepatch module cannot be built for {kernel.release}:\n{done.stderr[-3000:]}")
    if (work / "upper/include/config/auto.conf").exists():
        raise ConfigurationMismatchError(
            f"kbuild configures {kernel.release} anew when a module is built for it.",
            hint="The build root lacks a tool that the configuration asks for.",
        )
    commands = {kind: _saved(job, name) for kind, name in _COMMANDS.items()}
    for name in _KEPT:
        collect(job, name, target / name)
    (target / "commands.json").write_text(json.dumps(commands, indent=1))
    remove_tree(work)


def _saved(directory: Path, target: str) -> str:
    """The command that kbuild saved for a target, as the shell gets it (scripts/Kbuild.include)."""
    try:
        line = (directory / f".{target}.cmd").read_text().splitlines()[0]
    except (OSError, IndexError) as error:
        raise InternalError(f"kbuild saved no command for {target}.") from error
    return line.partition(":=")[2].strip().replace("$$", "$").replace("$(pound)", "#")
