# SPDX-License-Identifier: GPL-2.0-or-later
"""Prepared kernels that nobody publishes: a source, patches on top of it, and a configuration.

The image is the host's own where it can be had: its build directory sent it, or a debuginfod server has it. Then only
what a module needs of the tree is made. Otherwise the kernel is built in full, once, as its host built it: the same
compiler and path, and the user, machine, time and number that the host's version text names. If the build ID comes out
equal, it is the host's kernel, bit for bit.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from elivepatch.build import image as images
from elivepatch.build import unpack
from elivepatch.build.image import HostImage
from elivepatch.build.prepared import SIGNING_OPTIONS, PreparedKernel, check_compiler, finish, require_rust
from elivepatch.build.store import remove_tree
from elivepatch.errors import (
    ConfigurationMismatchError,
    Diagnosis,
    DoesNotFitError,
    InternalError,
    InvalidInputError,
    KernelUnavailableError,
)
from elivepatch.kernel.banner import Banner
from elivepatch.kernel.compressed import read_module
from elivepatch.kernel.config import KernelConfig, parse_config
from elivepatch.kernel.elf import ElfImage
from elivepatch.kernel.exports import exports_of_image, exports_of_module, module_owner, symvers
from elivepatch.process import Completed, ProgramError, run
from elivepatch.progress import Progress
from elivepatch.sources.trees import SourceTree
from elivepatch.toolchains.roots import Root
from elivepatch.toolchains.sandbox import TREE, Limits, Overlay, Sandbox, can_stand_at, give_to_sandbox

#: A whole kernel: its link takes much more than an object, and an allyesconfig hours.
_WHOLE = Limits(
    memory_bytes=12 * 1024**3,
    total_memory_bytes=16 * 1024**3,
    file_bytes=8 * 1024**3,
    written_bytes=64 * 1024**3,
    processes=1024,
    seconds=6 * 3600.0,
)
#: What `make` leaves that no later build for the kernel reads; the rest is generated source, and host tools.
_LEFT_BEHIND = re.compile(r"\.(o|a|ko|mod|mod\.c|order|symversions|dwo|gcno|su)$|^vmlinux|^\.tmp_|^modules\.builtin")
_HOST_DIRECTORIES = ("scripts", "tools")
#: What a build in a git tree or after other changes adds to the release by itself (scripts/setlocalversion).
_AUTOMATIC = re.compile(r"\+?(?:-\d{5})?(?:-g?[0-9a-f]{7,40})?(?:-dirty)?")
#: Every so many compiled objects the progress is told.
_OBJECTS_STEP = 200


@dataclass(frozen=True)
class OwnKernel:
    """A kernel as its host has it.

    ``base_patches`` are names and bytes, in the order in which they were applied. ``release`` is what the host calls
    it (``uname -r``), ``banner`` what its version text says, ``place`` the path at which its tree was built; None for
    what the host does not tell. ``image`` is its own image, where that is at hand.
    """

    tree: SourceTree
    config: bytes = field(repr=False)
    base_patches: Sequence[tuple[str, bytes]] = field(default=(), repr=False)
    release: str | None = None
    banner: Banner | None = None
    place: str | None = None
    image: HostImage | None = None

    @property
    def origin(self) -> str:
        """Where it comes from, for people."""
        count = len(self.base_patches)
        return self.tree.origin + (f" with {count} base patch{'es' if count > 1 else ''}" if count else "")

    def identity(self) -> Mapping[str, object]:
        """What decides the entry of the store, beside source, base patches and root."""
        banner = self.banner
        # what a host's version text says is for a whole build only
        told = None if self.image is not None or banner is None else [dict(banner.variables()), self.place]
        return {
            "config": parse_config(self.config).sha256,
            "release": self.release,
            "image": self.image.digest if self.image is not None else None,
            "built": told,
        }


def build(own: OwnKernel, root: Root, source: Path, parallel: int, progress: Progress, work: Path) -> None:
    """Build the whole kernel into an entry of its own: what comes after it can fail without losing the hours.

    ``source`` is the tree with its base patches. Raises ConfigurationMismatchError, CompilerMismatchError,
    DoesNotFitError, KernelUnavailableError where the kernel cannot be built as it is described.
    """
    config = parse_config(own.config)
    check_compiler(config, root, own.release or own.origin)
    require_rust(config, root, own.release or own.origin)
    place = own.place if own.place is not None and can_stand_at(own.place) else str(TREE)
    tree = _Tree(own, root, (source,), work, place, progress)
    tree.configure(config)
    release = tree.release()
    tree.build(release, config, parallel)
    (work / "release").write_text(release)


def make(own: OwnKernel, root: Root, source: Path, built: Path | None, progress: Progress, work: Path) -> None:
    """Fill an entry of the store, from what `build` has made or, without that, from the host's own image.

    Raises what `build` raises.
    """
    config = parse_config(own.config)
    scratch = Path(tempfile.mkdtemp(prefix=".build.", dir=work))
    scratch.chmod(0o755)
    try:
        if built is not None:
            release = (built / "release").read_text()
            tree = _Tree(own, root, (built / "upper", source), scratch, str(TREE), progress)
            image = images.of_build(tree.sandbox, built / "upper", work, progress)
            # a hard link for each file: what is pruned is gone from here only
            run(["cp", "-a", "-l", "--no-target-directory", built / "upper", work / "products"], timeout=600)
        elif own.image is not None:
            check_compiler(config, root, own.release or own.origin)
            require_rust(config, root, own.release or own.origin)
            tree = _Tree(own, root, (source,), scratch, str(TREE), progress)
            tree.configure(config)
            # makers may call their kernel as they like (KERNELRELEASE); whether the source fits, its image tells
            release = own.release or tree.release()
            tree.prepare(release)
            image = images.take(own.image, root, source, work, progress)
            (scratch / "upper").rename(work / "products")
            _write_symvers(own.image, work)
        else:
            raise InternalError("A kernel of a host has neither an image nor a build.")
    finally:
        remove_tree(scratch)
    _prune(work / "products")
    (work / "image/config").write_bytes(own.config)
    (work / "image/units.json").write_text(json.dumps(image.units))
    with ElfImage(work / "image/vmlinux") as vmlinux:
        build_id = vmlinux.build_id()
    if build_id is None:
        raise KernelUnavailableError(
            f"The image of {release} has no build ID.", hint="Link it with --build-id, as the kernel's makefile does."
        )
    kernel = PreparedKernel(
        path=work,
        source=source,
        root=root,
        release=release,
        origin=own.origin,
        image=own.image.kind if own.image is not None else "built",
        build_id=build_id,
        config_sha256=config.sha256,
        compiler=config.string("CC_VERSION_TEXT") or "",
        variables=_variables(config),
        environment={},
        sizes={},
        modules=unpack.module_names(work / "modules"),
    )
    finish(kernel, config, progress)


def _write_symvers(image: HostImage, work: Path) -> None:
    target = work / "products/Module.symvers"
    if image.symvers is not None:
        shutil.copyfile(image.symvers, target)
        return
    with ElfImage(work / "image/vmlinux") as vmlinux:
        found = exports_of_image(vmlinux)
    for name, path in unpack.module_names(work / "modules").items():
        with ElfImage(read_module(work / "modules" / path)) as module:
            found += exports_of_module(module, module_owner(path) or name)
    target.write_text(symvers(found))


def _variables(config: KernelConfig) -> dict[str, str]:
    """CROSS_COMPILE and CC by the name that the kernel's compiler was called by."""
    name = (config.string("CC_VERSION_TEXT") or "gcc").split()[0]
    match = re.fullmatch(r"([a-z0-9_]+(?:-[a-z0-9_]+)*-)?(gcc(?:-\d+)?)", name)
    prefix, compiler = (match[1] or "", match[2]) if match else ("", "gcc")
    return {"CROSS_COMPILE": prefix, "CC": f"{prefix}{compiler}"}


class _Tree:
    """The tree while it is configured and built: what make writes lies in a layer of its own."""

    def __init__(
        self,
        own: OwnKernel,
        root: Root,
        lower: Sequence[Path],
        work: Path,
        place: str,
        progress: Progress,
    ) -> None:
        self._own = own
        self._variables = _variables(parse_config(own.config))
        self._progress = progress
        self._upper = work / "upper"
        job = work / "job"
        overlay = Overlay(lower, self._upper, work / "work", work / "tree")
        for directory in (overlay.upper, overlay.work, overlay.mountpoint, job):
            directory.mkdir()
            give_to_sandbox(directory)
        self.sandbox = Sandbox(root.path, overlay, job, limits=_WHOLE, place=PurePosixPath(place))
        self._compiled = 0

    def _make(self, *words: str, check: bool = True) -> Completed:
        variables = [f"{name}={value}" for name, value in self._variables.items() if value]
        return self.sandbox.run(["make", *variables, *words], check=check, sink=self._tell)

    def _tell(self, line: str) -> None:
        self._progress.log(line)
        if line.startswith("  CC "):
            self._compiled += 1
            if self._compiled % _OBJECTS_STEP == 0:
                self._progress.step(f"{self._compiled} objects are compiled")

    def configure(self, wanted: KernelConfig) -> None:
        """Take the configuration as it is, or say what of it this tree would change."""
        file = self._upper / ".config"
        file.write_bytes(self._own.config)
        give_to_sandbox(file)
        self._progress.step("configuring the kernel")
        done = self._make("olddefconfig", check=False)
        if done.returncode != 0:
            raise InvalidInputError(
                f"The tree {self._own.origin} takes no configuration:\n{(done.stderr or done.stdout)[-2000:]}",
                hint="It must be a whole kernel source tree.",
            )
        unnamed = {name for name in SIGNING_OPTIONS if not re.search(rf"CONFIG_{name}\b".encode(), self._own.config)}
        used = parse_config(file.read_bytes())
        differences = [line for line in wanted.differences(used) if line.partition(":")[0] not in unnamed]
        if differences:
            raise ConfigurationMismatchError(
                f"With this configuration, {self._own.origin} and the compiler of the build root make another one: "
                f"{len(differences)} options differ: {'; '.join(differences[:5])}{'; …' if differences[5:] else ''}",
                hint="Give the configuration that the kernel was built with. An option that the tree does not know, or "
                "knows and the file does not name, means another source or other base patches; an option about a tool "
                "(pahole, rustc) means that the build root lacks it.",
                diagnosis=[
                    Diagnosis(rule="configuration-mismatch", message=f"CONFIG_{line} (asked for, used)")
                    for line in differences[:50]
                ],
            )

    def release(self) -> str:
        """The release that the tree and the configuration make; raises DoesNotFitError where it is not the host's."""
        computed = self._make("-s", "kernelrelease").stdout.strip().splitlines()[-1]
        wanted = self._own.release
        if wanted is None or wanted == computed:
            return computed
        if wanted.startswith(computed) and _AUTOMATIC.fullmatch(wanted.removeprefix(computed)):
            return wanted
        raise DoesNotFitError(
            f"The host runs {wanted}; {self._own.origin} with this configuration makes {computed}.",
            hint="Name the source that the host's kernel was built from, and all of its base patches: one of them may "
            "set EXTRAVERSION, or add a localversion file.",
        )

    def prepare(self, release: str) -> None:
        """What is needed to build against the tree: generated headers and host tools."""
        self._progress.step(f"preparing the tree of {release}")
        self._whole("modules_prepare", f"KERNELRELEASE={release}")

    def build(self, release: str, config: KernelConfig, parallel: int) -> None:
        """The whole kernel, as its host built it."""
        self._progress.step(f"building {release} in full, once: nobody has an image of it")
        told = self._own.banner.variables() if self._own.banner is not None else dict[str, str]()
        words = [f"{name}={value}" for name, value in told.items()]
        targets = ["bzImage", *(["modules"] if config.enabled("MODULES") else [])]
        self._whole(f"-j{parallel}", f"KERNELRELEASE={release}", *words, *targets)

    def _whole(self, *words: str) -> None:
        try:
            self._make(*words)
        except ProgramError as error:
            raise KernelUnavailableError(
                f"{self._own.origin} does not build with this configuration: {error.reason}\n{_errors(error)}",
                hint="The kernel must build as it is given here: check the source, its base patches and the "
                "configuration; the log of the build has all that make wrote (-d).",
            ) from error


def _prune(products: Path) -> None:
    """Leave of what was made the layer for builds: configuration, generated sources, host tools."""
    for path in sorted(products.rglob("*"), reverse=True):
        inside = path.relative_to(products)
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif inside.parts[0] not in _HOST_DIRECTORIES and _is_left_behind(path.name):
            path.unlink()
    # as with published products: what is there is the configuration, and nothing makes it anew
    unpack.settle_configuration(products)
    unpack.own(products)


def _is_left_behind(name: str) -> bool:
    return bool(_LEFT_BEHIND.search(name)) or (name.startswith(".") and name.endswith((".cmd", ".d")))


def _errors(error: ProgramError) -> str:
    """The lines of make's output that say what went wrong."""
    lines = f"{error.completed.stdout}\n{error.completed.stderr}".splitlines()
    telling = [line for line in lines if re.search(r"error|No rule|Error \d|undefined|not found", line)]
    return "\n".join((telling or lines)[-15:])
