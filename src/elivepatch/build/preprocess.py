# SPDX-License-Identifier: GPL-2.0-or-later
"""Preprocessing many source files of the original and of the patched tree, and telling which of them may change.

kbuild's own rule for ``.i`` is used, with the flags that it gives to each file, so ``#if``, macros and search order are
the compiler's.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from elivepatch.build.collect import collect
from elivepatch.build.compiler import limits_of_patch, place_files
from elivepatch.build.kbuild import saved_parent
from elivepatch.build.prepared import PreparedKernel
from elivepatch.build.store import remove_tree
from elivepatch.build.usage import may_change

#: Files per run: the texts of one take some 5 MB each, in both trees, and a job may write 1 GiB.
_BATCH = 40
_SUFFIXES = {".c": ".i", ".S": ".s"}


@dataclass(frozen=True)
class Preprocessed:
    """What became of one source file. ``parent`` is what kbuild says it belongs to, None where it does not build it."""

    file: str
    parent: str | None
    changed: bool


def compare(
    kernel: PreparedKernel,
    files: Sequence[str],
    patched: Mapping[str, bytes],
    work: Path,
    parallel: int,
    spelled: Mapping[str, str] | None = None,
) -> Generator[Preprocessed]:
    """Preprocess source files with and without the patched ones in the tree; each comes as soon as it is known.

    ``spelled`` are the names of those that lie elsewhere than their makefile (see `elsewhere`).
    """
    work.mkdir()
    for at in range(0, len(files), _BATCH):
        batch = files[at : at + _BATCH]
        with ThreadPoolExecutor(2) as pool, _scratch(work) as before, _scratch(work) as after:
            share = max(1, parallel // 2)
            one = pool.submit(_run, kernel, batch, {}, before, share, spelled)
            other = pool.submit(_run, kernel, batch, patched, after, share, spelled)
            one.result()
            other.result()
            for file in batch:
                yield _compared(file, before, after)


def _compared(file: str, before: Path, after: Path) -> Preprocessed:
    target = _target(file)
    text, new_text = _text(before, target), _text(after, target)
    parent = saved_parent(before / "upper", target)
    if text is None or parent is None:
        return Preprocessed(file, None, changed=True)
    if new_text is None:  # the compiler will say what is wrong with it
        return Preprocessed(file, parent, changed=True)
    if file.endswith(".S"):
        return Preprocessed(file, parent, changed=_assembly(text) != _assembly(new_text))
    return Preprocessed(file, parent, changed=may_change(text, new_text))


def _assembly(text: bytes) -> list[bytes]:
    return [word for line in text.split(b"\n") if not line.startswith(b"#") for word in line.split()]


def _target(file: str) -> str:
    stem, dot, suffix = file.rpartition(".")
    return stem + _SUFFIXES[dot + suffix]


def _text(work: Path, target: str) -> bytes | None:
    taken = work / "text"
    if not collect(work / "upper", target, taken):
        return None
    data = taken.read_bytes()
    taken.unlink()
    return data


def _run(
    kernel: PreparedKernel,
    files: Sequence[str],
    placed: Mapping[str, bytes],
    work: Path,
    parallel: int,
    spelled: Mapping[str, str] | None,
) -> None:
    place_files(work / "upper", placed)
    with limits_of_patch() if placed else nullcontext(), kernel.sandbox(work) as sandbox:
        targets = [_target(file) for file in files]
        kernel.kbuild.objects(sandbox, targets, extra_flags="-P", parallel=parallel, spelled=spelled)


@contextmanager
def _scratch(work: Path) -> Generator[Path]:
    path = Path(mkdtemp(prefix="run.", dir=work))
    path.chmod(0o755)
    try:
        yield path
    finally:
        remove_tree(path)
