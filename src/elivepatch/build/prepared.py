# SPDX-License-Identifier: GPL-2.0-or-later
"""Prepared kernels: everything that patches of one kernel share, made once from what its distributor publishes.

An entry of the store holds ``products`` (a layer for the tree: configuration, generated headers, host tools), ``image``
(vmlinux without DWARF, vmlinuz, symbol table, compile units), ``modules`` (the shipped modules), ``symbols`` (the
modules' full symbol tables, from their debug files) and ``kernel.json``. The source is an entry of its own, shared by
all flavours and configurations of a version.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from elivepatch.build import unpack
from elivepatch.build.kbuild import Kbuild, catch_environment
from elivepatch.build.store import Store, remove_tree
from elivepatch.errors import CompilerMismatchError, ConfigurationMismatchError, InternalError
from elivepatch.kernel.config import KernelConfig, parse_config
from elivepatch.kernel.elf import ElfImage
from elivepatch.progress import Progress
from elivepatch.sources.provider import KernelFiles
from elivepatch.toolchains.roots import Root
from elivepatch.toolchains.sandbox import Limits, Overlay, Sandbox, give_to_sandbox

#: Raised when what an entry holds changes: entries made before are then made again.
_FORMAT = 4
_RECORDED = (
    *("release", "origin", "build_id", "config_sha256", "compiler"),
    *("variables", "environment", "sizes", "modules"),
)
#: Options that Debian sets when the kernel is signed, after its headers were packaged; no object depends on them.
_SIGNING = {"BUILD_SALT", "MODULE_SIG_ALL", "MODULE_SIG_KEY", "SYSTEM_TRUSTED_KEYS", "MODULE_SIG_HASH"}
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
SIZE(BUG, struct bug_entry);
SIZE(EX, struct exception_table_entry);
SIZE(JUMP, struct jump_entry);
SIZE(ORC, struct orc_entry);
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

    ``path`` is its entry, ``source`` the pristine tree. ``sizes`` are those of the kernel's special structures by the
    names of create-diff-object (``ALT`` for ``ALT_STRUCT_SIZE``), in bytes.
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
        """The image that boots."""
        return self.path / "image/vmlinuz"

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
        return frozenset(json.loads((self.path / "image/units.json").read_text()))

    def module_path(self, name: str) -> Path:
        """The shipped file of a module, by its name with underscores."""
        return self.modules_directory / self.modules[name]

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


class Kernels:
    """The prepared kernels of a machine."""

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self._sources = Store(directory / "sources", limit_bytes)
        self._kernels = Store(directory / "prepared", limit_bytes)

    @property
    def store(self) -> Store:
        """The store of the prepared kernels, for listing and cleaning."""
        return self._kernels

    @property
    def sources(self) -> Store:
        """The store of the unpacked sources, for cleaning."""
        return self._sources

    @contextmanager
    def prepared(
        self, files: KernelFiles, root: Root, download: Callable[[], None], progress: Progress
    ) -> Generator[tuple[PreparedKernel, bool]]:
        """The prepared kernel, held while the block runs, and whether it was there.

        It is made if need be, and then ``download`` is called first, to have the files on disk.
        """
        digests = {package.file: package.sha256 for package in files.packages()}
        key = _key({"format": _FORMAT, "release": str(files.release), "files": digests, "root": root.digest})
        with ThreadPoolExecutor(1) as pool, ExitStack() as held:
            downloaded = Once(download)

            def source() -> Path:
                make = partial(_make_source, files, downloaded, progress)
                return held.enter_context(self._sources.use(f"{files.source.sha256[:32]}-1", make))[0]

            # the source is unpacked while the image is taken apart: two cores, two jobs
            unpacked = pool.submit(source)
            make = partial(_make, files, root, downloaded, unpacked, progress)
            path, was_there = held.enter_context(self._kernels.use(key, make))
            yield _load(path, unpacked.result(), root), was_there


class Once:
    """A call that is made once, whoever asks for it first; the others wait for it and share its failure."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._done = False

    def __call__(self) -> None:
        """Make the call, or wait for it."""
        with self._lock:
            if not self._done:
                self._call()
                self._done = True


def _make_source(files: KernelFiles, download: Once, progress: Progress, work: Path) -> None:
    download()
    unpack.source(files.path(files.source), work, progress)


def list_kernels(store: Store) -> list[dict[str, object]]:
    """The prepared kernels as data: release, build_id, source, key, size (bytes), last_used (epoch seconds)."""
    found: list[dict[str, object]] = []
    for entry in store.entries():
        data = json.loads((entry.path / "kernel.json").read_text())
        found.append(
            {
                "key": entry.key,
                "release": data["release"],
                "build_id": data["build_id"],
                "source": data["origin"],
                "size": entry.size,
                "last_used": entry.last_used,
            }
        )
    return found


def _key(parts: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _load(path: Path, source: Path, root: Root) -> PreparedKernel:
    data = json.loads((path / "kernel.json").read_text())
    return PreparedKernel(path=path, source=source, root=root, **data)


def _make(files: KernelFiles, root: Root, download: Once, source: Future[Path], progress: Progress, work: Path) -> None:
    release = str(files.release)
    download()
    progress.step(f"preparing {release}: products and image")
    unpack.products(files.path(files.headers), files.path(files.kbuild), work / "products")
    image_name = unpack.image(files, work, root, progress)
    config = parse_config((work / "image/config").read_bytes())
    _check_configuration(config, parse_config((work / "products/.config").read_bytes()), files)
    _check_compiler(config, root, files)
    with ElfImage(work / "image/vmlinux") as image:
        build_id = image.build_id()
    if build_id is None:
        raise InternalError(f"The published image of {release} ({image_name}) has no build ID.")
    kernel = PreparedKernel(
        path=work,
        source=source.result(),
        root=root,
        release=release,
        origin=files.origin,
        build_id=build_id,
        config_sha256=config.sha256,
        compiler=config.string("CC_VERSION_TEXT") or "",
        variables=unpack.make_variables(work / "products"),
        environment={},
        sizes={},
        modules=unpack.module_names(work / "modules"),
    )
    progress.step(f"preparing {release}: kbuild")
    scratch = Path(tempfile.mkdtemp(prefix=".scratch.", dir=work))
    scratch.chmod(0o755)
    try:
        kernel = replace(kernel, environment=_enter_kbuild(kernel, scratch))
        _host_tools(kernel, config, scratch)
        kernel = replace(kernel, sizes=_sizes(kernel, scratch))
    finally:
        remove_tree(scratch)
    (work / "kernel.json").write_text(json.dumps({name: getattr(kernel, name) for name in _RECORDED}))


def _check_configuration(published: KernelConfig, used: KernelConfig, files: KernelFiles) -> None:
    """What is compiled with must be what the kernel was built with, but for the signing of its modules."""
    differences = [line for line in published.differences(used) if line.partition(":")[0] not in _SIGNING]
    if differences:
        raise ConfigurationMismatchError(
            f"The configuration of {files.headers.file} differs from that of the image: {'; '.join(differences[:20])}",
            hint="The packages do not belong together; take another release.",
        )


def _check_compiler(config: KernelConfig, root: Root, files: KernelFiles) -> None:
    """The compiler must be the one of CONFIG_CC_VERSION_TEXT; the name it was called by may differ."""
    wanted = config.string("CC_VERSION_TEXT") or ""
    match = re.fullmatch(r"(?:\S*-)?(gcc(?:-\d+)?) (.*)", wanted)
    if match is None:
        raise CompilerMismatchError(
            f"{files.release} was built with '{wanted}', which no build root has.", hint="Only gcc is supported."
        )
    have = root.compiler_version(match[1])
    if have.partition(" ")[2] != match[2]:
        raise CompilerMismatchError(
            f"{files.release} was built with '{wanted}'; the build root '{root.name}' has '{have}'.",
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
