# SPDX-License-Identifier: GPL-2.0-or-later
"""Prepared kernels: everything that patches of one kernel share, made once.

An entry of the store holds ``products`` (a layer for the tree: configuration, generated headers, host tools), ``image``
(vmlinux without DWARF, vmlinuz, symbol table, compile units), ``modules`` (the shipped modules), ``symbols`` (the
modules' full symbol tables) and ``kernel.json``. The source is an entry of its own, shared by all flavours and
configurations of a version. `published` fills an entry from what a distributor publishes, `own` for any other kernel.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from posixpath import normpath

from elivepatch.build import unpack
from elivepatch.build.kbuild import Kbuild, catch_environment
from elivepatch.build.store import remove_tree
from elivepatch.errors import CompilerMismatchError, ConfigurationMismatchError, InternalError, ToolUnavailableError
from elivepatch.kernel.config import KernelConfig, parse_config
from elivepatch.kernel.elf import ElfImage
from elivepatch.progress import Progress
from elivepatch.toolchains.roots import Root
from elivepatch.toolchains.sandbox import Limits, Overlay, Sandbox, give_to_sandbox

#: Raised when what an entry holds changes: entries made before are then made again.
FORMAT = 6
#: Options that Debian sets when a kernel is signed: neither its headers nor /boot/config name them, and no object that
#: can be patched depends on them.
SIGNING_OPTIONS = {"BUILD_SALT", "MODULE_SIG_ALL", "MODULE_SIG_KEY", "SYSTEM_TRUSTED_KEYS", "MODULE_SIG_HASH"}
#: CONFIG_CC_VERSION_TEXT of clang: what stands before it is the distributor's name.
_CLANG = re.compile(r"\bclang version (\d+)\.")
_RECORDED = (
    *("release", "origin", "image", "build_id", "config_sha256", "compiler"),
    *("variables", "environment", "sizes", "modules"),
)
_PROBE = """\
#include <linux/version.h>
#include <linux/kconfig.h>
#include <linux/types.h>
#include <linux/sched.h>
#include <linux/module.h>
#include <linux/bug.h>
#include <linux/jump_label.h>
#include <linux/printk.h>
#include <linux/static_call_types.h>
#include <asm/alternative.h>
#include <asm/extable.h>
#include <asm/orc_types.h>
#define SIZE(name, type) char elivepatch_##name[sizeof(type)]
SIZE(ALT, struct alt_instr);
#ifdef CONFIG_GENERIC_BUG
SIZE(BUG, struct bug_entry);
#endif
SIZE(EX, struct exception_table_entry);
#ifdef CONFIG_JUMP_LABEL
SIZE(JUMP, struct jump_entry);
#endif
#ifdef CONFIG_UNWINDER_ORC
SIZE(ORC, struct orc_entry);
#endif
SIZE(STATIC_CALL, struct static_call_site);
#ifdef CONFIG_PRINTK_INDEX
SIZE(PRINTK_INDEX, struct pi_entry);
#endif
#if defined(CONFIG_PARAVIRT) && LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)
#include <asm/paravirt_types.h>
SIZE(PARA, struct paravirt_patch_site);
#endif
"""


@dataclass(frozen=True)
class PreparedKernel:
    """A kernel that can be built for.

    ``path`` is its entry, ``source`` the tree it was built from. ``image`` is where its image comes from: ``published``
    by its distributor, ``debuginfod``, ``uploaded`` from its host, or ``built`` here. ``sizes`` are those of the
    kernel's special structures by the names of create-diff-object (``ALT`` for ``ALT_STRUCT_SIZE``), in bytes.
    """

    path: Path
    source: Path
    root: Root
    release: str
    origin: str
    build_id: str
    config_sha256: str
    compiler: str
    variables: Mapping[str, str]
    environment: Mapping[str, str]
    sizes: Mapping[str, int]
    modules: Mapping[str, str] = field(default_factory=dict[str, str])
    image: str = "published"

    @property
    def products(self) -> Path:
        """The layer with configuration, generated headers and host tools."""
        return self.path / "products"

    @property
    def vmlinux(self) -> Path:
        """The published image without DWARF."""
        return self.path / "image/vmlinux"

    @property
    def vmlinuz(self) -> Path:
        """The image that boots; vmlinux itself does where the kernel has an entry point for that (CONFIG_PVH)."""
        compressed = self.path / "image/vmlinuz"
        return compressed if compressed.exists() else self.vmlinux

    @property
    def modules_directory(self) -> Path:
        """The shipped modules, as below ``/lib/modules/RELEASE``."""
        return self.path / "modules"

    @property
    def symvers(self) -> Path:
        """The exported symbols and their versions."""
        return self.products / "Module.symvers"

    @property
    def kbuild(self) -> Kbuild:
        """How its objects are compiled."""
        return Kbuild(self.release, self.variables, self.environment)

    def config(self) -> KernelConfig:
        """Its configuration, as it is published and as the host has it in /boot."""
        return parse_config((self.path / "image/config").read_bytes())

    def compile_units(self) -> frozenset[str]:
        """The source files that vmlinux was made from."""
        return frozenset(map(normpath, self._units()))

    def unit_spellings(self) -> dict[str, str]:
        """Those of them that another directory's makefile compiles, each with the path that it gives the compiler."""
        return {path: unit for unit in self._units() if ".." in unit and (path := normpath(unit)) != unit}

    def _units(self) -> list[str]:
        found: list[str] = json.loads((self.path / "image/units.json").read_text())
        return found

    def module_path(self, name: str) -> Path:
        """The shipped file of a module, by its name with underscores."""
        return self.modules_directory / self.modules[name]

    def module_place(self, name: str) -> str:
        """The directory of the tree whose makefile makes a module: modules are shipped below the same path."""
        return str(PurePosixPath(self.modules[name]).parent).removeprefix("kernel/")

    def vmlinux_readelf(self) -> str:
        """The symbol table of the image in the form of readelf."""
        return gzip.decompress((self.path / "image/vmlinux.symtab.gz").read_bytes()).decode()

    def module_symbols(self, name: str) -> unpack.ModuleSymbols:
        """The full symbol table of a module."""
        return unpack.read_symbols(self.path / "symbols" / f"{name}.z")

    @contextmanager
    def sandbox(self, work: Path, *, job: Path | None = None, limits: Limits | None = None) -> Generator[Sandbox]:
        """A sandbox with this kernel's tree; ``work/upper`` is its writable layer and stays."""
        upper, overlay_work, mountpoint = work / "upper", work / "work", work / "tree"
        for directory in (upper, overlay_work, mountpoint):
            directory.mkdir(parents=True, exist_ok=True)
            give_to_sandbox(directory)
        try:
            yield Sandbox(
                self.root.path,
                Overlay((self.products, self.source), upper, overlay_work, mountpoint),
                job=job,
                limits=limits or Limits(),
            )
        finally:
            remove_tree(overlay_work)


def load_kernel(path: Path, source: Path, root: Root) -> PreparedKernel:
    """The kernel that an entry of the store holds."""
    data = json.loads((path / "kernel.json").read_text())
    return PreparedKernel(path=path, source=source, root=root, **data)


def finish(kernel: PreparedKernel, config: KernelConfig, progress: Progress) -> PreparedKernel:
    """What every entry gets once its layers and its image are there: kbuild's environment, host tools, sizes."""
    progress.step(f"preparing {kernel.release}: kbuild")
    scratch = Path(tempfile.mkdtemp(prefix=".scratch.", dir=kernel.path))
    scratch.chmod(0o755)
    try:
        kernel = replace(kernel, environment=_enter_kbuild(kernel, scratch))
        _host_tools(kernel, config, scratch)
        kernel = replace(kernel, sizes=_sizes(kernel, scratch))
    finally:
        remove_tree(scratch)
    (kernel.path / "kernel.json").write_text(json.dumps({name: getattr(kernel, name) for name in _RECORDED}))
    return kernel


def require_gcc(config: KernelConfig, subject: str) -> None:
    """Raise ToolUnavailableError for a kernel that clang has built: no build root has it yet."""
    wanted = config.string("CC_VERSION_TEXT") or ""
    if match := _CLANG.search(wanted):
        tools = " ".join(f"{name}-{match[1]}" for name in ("clang", "lld", "llvm"))
        raise ToolUnavailableError(
            f"{subject} was built with '{wanted}'; build roots have gcc, and no clang {match[1]}.",
            hint=f"Only kernels built with gcc are built for so far: clang would take a root with {tools}, which "
            "'elivepatch-server root add' does not make. Rebuild the kernel with gcc (make CC=gcc, without LLVM=1).",
        )


def require_rust(config: KernelConfig, root: Root, subject: str) -> None:
    """Raise ToolUnavailableError for a tree that is to be configured with Rust in a root that has no rustc.

    kbuild would silently switch CONFIG_RUST off. What its distributor publishes is configured already and needs none.
    """
    if not config.enabled("RUST"):
        return
    lacking = [name for name in ("rustc", "bindgen") if not (root.path / "usr/bin" / name).exists()]
    if lacking:
        version = config.string("RUSTC_VERSION_TEXT") or "rustc"
        raise ToolUnavailableError(
            f"{subject} has CONFIG_RUST=y ('{version}'); the build root '{root.name}' lacks {' and '.join(lacking)}.",
            hint=f"Describe a root with {' '.join((*lacking, 'rust-src'))} in the server's settings (roots) and make "
            "it: elivepatch-server root add NAME.",
        )


def check_compiler(config: KernelConfig, root: Root, subject: str) -> None:
    """The compiler of a root must be the one of CONFIG_CC_VERSION_TEXT; the name it was called by may differ."""
    require_gcc(config, subject)
    wanted = config.string("CC_VERSION_TEXT") or ""
    match = re.fullmatch(r"(?:\S*-)?(gcc(?:-\d+)?) (.*)", wanted)
    if match is None:
        raise CompilerMismatchError(
            f"{subject} was built with '{wanted}', which no build root has.", hint="Only gcc is supported."
        )
    have = root.compiler_version(match[1])
    if have.partition(" ")[2] != match[2]:
        raise CompilerMismatchError(
            f"{subject} was built with '{wanted}'; the build root '{root.name}' has '{have}'.",
            hint=f"Remove the root ('elivepatch-server root remove {root.name}') and it is made again.",
        )


def _enter_kbuild(kernel: PreparedKernel, scratch: Path) -> dict[str, str]:
    job = scratch / "job"
    job.mkdir()
    give_to_sandbox(job)
    with kernel.sandbox(scratch / "enter", job=job) as sandbox:
        environment = catch_environment(sandbox, kernel.release, kernel.variables)
    rewritten = scratch / "enter/upper/include/config/auto.conf"
    if rewritten.exists():
        lines = _auto_conf_changes(kernel.products / "include/config/auto.conf", rewritten)
        raise ConfigurationMismatchError(
            f"kbuild would use another configuration than {kernel.release} publishes: {'; '.join(lines[:20])}",
            hint="The build root lacks a tool that the configuration asks for.",
        )
    return environment


def _auto_conf_changes(published: Path, rewritten: Path) -> list[str]:
    before, after = (set(path.read_text().splitlines()) for path in (published, rewritten))
    return [f"-{line}" for line in sorted(before - after)] + [f"+{line}" for line in sorted(after - before)]


def _host_tools(kernel: PreparedKernel, config: KernelConfig, scratch: Path) -> None:
    """Host programs that generate headers beside the objects, and that Debian's linux-kbuild does not carry."""
    wanted = {"scripts/selinux": "SECURITY_SELINUX", "scripts/ipe": "SECURITY_IPE"}
    directories = [
        name
        for name, option in wanted.items()
        if config.enabled(option) and (kernel.source / name / "Makefile").exists()
    ]
    targets = [(directory, f"{directory}/") for directory in directories]
    if config.enabled("ASN1"):
        targets.append(("scripts", "scripts/asn1_compiler"))
    for directory, target in targets:
        with kernel.sandbox(scratch / "tools") as sandbox:
            done = kernel.kbuild.objects(sandbox, [target], directory=directory)
        if done.returncode != 0:
            raise InternalError(f"The host program {target} cannot be built:\n{done.stderr[-3000:]}")
    built = scratch / "tools/upper/scripts"
    if built.is_dir():
        shutil.copytree(built, kernel.products / "scripts", symlinks=True, dirs_exist_ok=True)
        unpack.own(kernel.products / "scripts")


def _sizes(kernel: PreparedKernel, scratch: Path) -> dict[str, int]:
    """Sizes of the kernel's special structures, asked of the compiler: right for every version and configuration."""
    with kernel.sandbox(scratch / "probe") as sandbox:
        directory = scratch / "probe/upper/elivepatch"
        directory.mkdir()
        (directory / "Makefile").write_text("obj-y := probe.o\n")
        (directory / "probe.c").write_text(_PROBE)
        give_to_sandbox(directory)
        done = kernel.kbuild.objects(sandbox, ["elivepatch/probe.o"], directory="elivepatch")
        built = directory / "probe.o"
        if done.returncode != 0 or not built.exists():
            raise InternalError(f"The probe does not compile for {kernel.release}:\n{done.stderr[-3000:]}")
        with ElfImage(built) as image:
            prefix = "elivepatch_"
            sizes = {s.name.removeprefix(prefix): s.size for s in image.symbols() if s.name.startswith(prefix)}
    shutil.rmtree(scratch / "probe", ignore_errors=True)
    return sizes
