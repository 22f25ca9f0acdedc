# SPDX-License-Identifier: GPL-2.0-or-later
"""A tree on the server, perhaps one that was built in place: its sources without what the build made.

What a build makes is told apart by git's own reading of the tree's .gitignore files, which the kernel's developers
keep complete, by a list for the top of the tree, and by what host programs are: ELF files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from elivepatch.errors import InputTooLargeError, InvalidInputError, SourceRejectedError
from elivepatch.process import Completed, ProgramError, run
from elivepatch.progress import Progress
from elivepatch.sources.archives import stays_inside
from elivepatch.sources.reference import tree_version
from elivepatch.sources.trees import SourceTree

#: What is a product or not whatever a tree's .gitignore files say, the last that matches deciding. The first takes
#: back what is said of the top of the tree: Debian's .gitignore ignores all of it. The top then follows the kernel's
#: own .gitignore and the CLEAN_FILES and MRPROPER_FILES of its Makefile; the rest is for trees without .gitignore.
_PATTERNS = (
    *("!/*", ".*", "!.gitignore", "!.gitattributes", "!.mailmap", "!.kunitconfig", "!.yamllint", "!.clang-format"),
    *("!.cocciconfig", "!.editorconfig", "!.get_maintainer.ignore", "!.clippy.toml", "!.rustfmt.toml", "!.pylintrc"),
    *("!.coveragerc", "!.shellcheckrc", "!.renames", "!.renamesConfig", "!.config.example"),
    *("*.o", "*.a", "*.ko", "*.ko.*", "*.so", "*.so.dbg", "*.mod", "*.mod.c", "*.i", "*.s", "*.ll", "*.lst", "*.su"),
    *("*.dtb", "*.dtbo", "*.dtb.S", "*.dtbo.S", "*.dt.yaml", "*.dwo", "*.gcno", "*.gcda", "*.symtypes", "*.rmeta"),
    *("*.rsi", "*.lex.c", "*.tab.[ch]", "*.asn1.[ch]", "*.c.[012]*.*", "*.elf", "*.bin", "*.o.*", "modules.order"),
    *("Module.symvers", "dtbs-list", "*.orig", "*.rej", "*~"),
    *("/vmlinux", "/vmlinux.*", "/vmlinux-gdb.py", "/vmlinuz", "/linux", "/System.map", "/Module.markers"),
    *("/modules.builtin", "/modules.builtin.*", "/modules.nsdeps", "/modules-only.symvers", "/compile_commands.json"),
    *("/rust-project.json", "/debian/", "/snap/", "/tar-install/", "/rpmbuild/", "/pacman/", "/PKGBUILD"),
    *("/patches", "/series", "/tags", "/TAGS", "/cscope.*", "/ncscope.*", "/GPATH", "/GRTAGS", "/GSYMS", "/GTAGS"),
    *("/*.tar", "/*.gz", "/*.xz", "/*.bz2", "/*.zst", "/*.patch", "/*.rpm", "/*.deb", "/*.config", "/defconfig"),
    *("/include/config/", "/include/generated/", "/include/ksym/", "/arch/*/include/generated/"),
    *("/certs/signing_key.*", "/certs/x509.genkey", "/certs/extra_certificates", "/scripts/module.lds"),
    # a directory that the pattern of tag files hits
    "!/tools/testing/selftests/arm64/tags/",
)
_MAGICS = (b"\x7fELF", b"!<arch>\n", b"!<thin>\n")
_HINT = "Name the directory with the kernel's Makefile and Kconfig, by its absolute path: dir:/usr/src/linux"
#: More than any kernel tree holds.
_FILES, _BYTES = 400_000, 8 * 1024**3
_FORMAT = "elivepatch-directory-1"


@dataclass(frozen=True)
class _Item:
    """A file or a link of the tree, by its path below the top."""

    name: str
    link: bool
    executable: bool
    size: int


def directory_tree(path: Path, progress: Progress) -> SourceTree:
    """The tree of a directory as it is now; reads all of it, since its identity is a digest of what it holds.

    In a git work tree of its own (``.git`` at its top) it is what git tracks, with the contents of the working files,
    and whatever else is there and is not ignored. Elsewhere all but the products of a build. Links that lead out of
    the tree are left out. Raises InvalidInputError for what is no kernel tree, InputTooLargeError. ``compose`` raises
    SourceRejectedError where the directory has changed since.
    """
    top = _checked(path)
    progress.step(f"reading {path}")
    items = _items(top)
    identity = _copy(top, items, None)
    version, extra = tree_version(top)

    def compose(target: Path, progress: Progress) -> None:
        progress.step(f"copying {path}, {len(items)} files")
        if _copy(top, _items(top), target) != identity:
            raise SourceRejectedError(
                f"{path} was changed while it was read.", hint="Let it rest, and start the build again."
            )

    return SourceTree(f"dir:{path} (Linux {version}{extra})", identity, lambda _progress: None, compose)


def _checked(path: Path) -> Path:
    if not path.is_absolute():
        raise InvalidInputError(f"{path} is not an absolute path.", hint=_HINT)
    try:
        top = path.resolve(strict=True)
        there = {entry.name for entry in os.scandir(top)}
    except OSError as error:
        raise InvalidInputError(
            f"There is no directory {path} that can be read: {error.strerror}.", hint=_HINT
        ) from error
    if "Kconfig" not in there or "Makefile" not in there:
        raise InvalidInputError(f"{path} is not a kernel tree: it has no Makefile or no Kconfig.", hint=_HINT)
    try:
        tree_version(top)
    except SourceRejectedError as error:
        raise InvalidInputError(error.message, hint=_HINT) from error
    return top


# -- what belongs to it


def _items(top: Path) -> list[_Item]:
    """The sources of a tree, in the order of their names."""
    excludes = [word for pattern in _PATTERNS for word in ("-x", pattern)]
    options = ["-c", "core.fsmonitor=false", "-c", f"safe.directory={top}", "-c", "core.quotePath=false"]
    others = ["ls-files", "-z", "--others", "--exclude-per-directory=.gitignore", *excludes]
    tracked: list[str] = []
    if (top / ".git").exists():
        tracked = _names(_git([*options, "-C", str(top), "ls-files", "-z"], top))
        loose = _names(_git([*options, "-C", str(top), *others], top))
    else:
        with tempfile.TemporaryDirectory(prefix="elivepatch-git.") as empty:
            _git(["init", "-q", "--bare", empty], top)
            place = ["-C", str(top), f"--git-dir={empty}", f"--work-tree={top}", "-c", "core.bare=false"]
            loose = _names(_git([*options, *place, *others], top))
    found = [*_looked_at(top, tracked, programs=True), *_looked_at(top, loose, programs=False)]
    if len(found) > _FILES or sum(item.size for item in found) > _BYTES:
        raise InputTooLargeError(f"{top} holds more than {_FILES} files or {_BYTES // 1024**3} GB.")
    return sorted(found, key=lambda item: os.fsencode(item.name))


def _git(words: Sequence[str], top: Path) -> Completed:
    environment = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        return run(["git", *words], env=environment, timeout=300)
    except ProgramError as error:
        raise InvalidInputError(
            f"git cannot read {top}:\n{error.message}", hint="Repair or remove its .git."
        ) from error


def _names(done: Completed) -> list[str]:
    return [name for name in done.stdout.split("\0") if name]


def _looked_at(top: Path, names: Sequence[str], *, programs: bool) -> Iterator[_Item]:
    """What is there of these names; ``programs``: also ELF files and archives of them."""
    for name in dict.fromkeys(names):
        path = top / name
        if "\N{REPLACEMENT CHARACTER}" in name:
            raise InvalidInputError(f"{top}: the name {name!r} is not UTF-8.", hint="Rename or remove the file.")
        try:
            info = path.lstat()
        except FileNotFoundError:  # tracked, and deleted in the work tree
            continue
        except OSError as error:
            raise InvalidInputError(f"{path} cannot be read: {error.strerror}.") from error
        if stat.S_ISDIR(info.st_mode):
            raise InvalidInputError(
                f"{path} is a git repository inside the tree, whose files are not known.",
                hint="Remove its .git, or add its files to the tree's own repository.",
            )
        if stat.S_ISLNK(info.st_mode):
            if stays_inside(path, str(top)):
                yield _Item(name, link=True, executable=False, size=0)
        elif stat.S_ISREG(info.st_mode) and (programs or not _is_program(path, info.st_size)):
            yield _Item(name, link=False, executable=bool(info.st_mode & stat.S_IXUSR), size=info.st_size)


def _is_program(path: Path, size: int) -> bool:
    if size < 8:
        return False
    with _opened(path) as stream:
        return stream.read(8).startswith(_MAGICS)


def _opened(path: Path):
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}.") from error


# -- its contents


def _copy(top: Path, items: Sequence[_Item], target: Path | None) -> str:
    """A digest over paths, kinds, x bits and contents, which are copied to ``target`` where one is given."""
    digest = hashlib.sha256(_FORMAT.encode())
    made: set[str] = {""}
    for item in items:
        name = os.fsencode(item.name)
        if target is not None and (parent := os.path.dirname(item.name)) not in made:  # noqa: PTH120
            (target / parent).mkdir(parents=True, exist_ok=True)
            made.add(parent)
        if item.link:
            text = os.readlink(top / item.name)  # noqa: PTH115  # the text as it stands
            if target is not None:
                (target / item.name).symlink_to(text)
            content = hashlib.sha256(os.fsencode(text)).digest()
        else:
            content = _copy_file(top / item.name, None if target is None else target / item.name, item)
        kind = b"link" if item.link else b"x" if item.executable else b"file"
        digest.update(b"%s %d %s %s" % (kind, len(name), name, content))
    return digest.hexdigest()


def _copy_file(path: Path, target: Path | None, item: _Item) -> bytes:
    with _opened(path) as stream:
        if target is None:
            return hashlib.file_digest(stream, "sha256").digest()
        shutil.copyfile(path, target)
    target.chmod(0o755 if item.executable else 0o644)
    with target.open("rb") as copied:
        return hashlib.file_digest(copied, "sha256").digest()
