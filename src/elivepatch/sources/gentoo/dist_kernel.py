# SPDX-License-Identifier: GPL-2.0-or-later
"""gentoo-kernel and gentoo-kernel-bin: trees that the ebuilds of distribution kernels make.

Read from ebuilds of sys-kernel/gentoo-kernel, 5.10 to 7.2. Three forms are known: the patch of kernel.org and a patch
set of Gentoo's (all of it, or up to the patch of Gentoo's Kconfig), and before that, genpatches. src_prepare is
compared with these forms, statement by statement, up to where it turns to the configuration.

The ebuild writes EXTRAVERSION after the patches of /etc/portage/patches; here it is written before them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from elivepatch.errors import KernelUnavailableError, SourceRejectedError
from elivepatch.sources.gentoo import recipe
from elivepatch.sources.gentoo.distfiles import Distfile
from elivepatch.sources.gentoo.ebuild import Ebuild, Statement
from elivepatch.sources.gentoo.package import KernelPackage
from elivepatch.sources.gentoo.recipe import Host, Work
from elivepatch.sources.gentoo.repository import PackageFiles

#: The patch set's last patch that is not experimental.
_LAST = "Add-Gentoo-Linux-support-config-settings"
_EAPPLY = ("-p1", "-f", "-g0", "--no-backup-if-mismatch")
_FUNCTIONS = {"src_unpack", "src_prepare", "src_configure", "src_compile", "src_test", "src_install"}
_URL = re.compile(r"https?://[A-Za-z0-9.:-]{1,100}/[A-Za-z0-9._~/+%=-]{1,300}", re.ASCII)
#: What changes a tree; after the patches there must be none of it.
_CHANGES = re.compile(r"\b(eapply|eapply_user|patch|sed|rm|mv|default|tee|git)\b")

#: The beginning of src_prepare in its known forms: a form is a sequence of statements, each a name and a pattern.
_LOOP = (
    ("", r'for patch in "\$\{WORKDIR\}/\$\{PATCHSET\}"/\*\.patch; do'),
    ("", r'eapply "\$\{patch\}"'),
    ("", rf"if \[\[ \$\{{patch\}} == \*{_LAST}\* \]\](?P<unless> && ! use experimental)?(?: then|; then)"),
    ("", r"break"),
    ("", r"fi"),
    ("loop", r"done"),
)
_PATCH = ("patch", r'eapply "\$\{WORKDIR\}/patch-\$\{(?P<pv>PATCH_PV|PV)\}"')
_SET = ("set", r'eapply "\$\{WORKDIR\}/\$\{PATCHSET\}"')
_GENPATCHES = ("genpatches", r'local PATCHES=\( "\$\{WORKDIR\}"/\*\.patch \)')
_DEFAULT = ("", r"default")
_FORMS = ((_PATCH, *_LOOP, _DEFAULT), (_PATCH, _SET, _DEFAULT), (_GENPATCHES, _DEFAULT))
_EXTRAVERSION = (
    r"local extraversion=\$\{PV#\$\{PATCH_PV\}\}",
    r'sed -i -e "s:\^\\\(EXTRAVERSION =\\\)\.\*:\\1 \$\{extraversion/_/-\}:" Makefile \|\| die',
)


@dataclass(frozen=True)
class DistRecipe:
    """A tree of a distribution kernel.

    ``patch`` is kernel.org's from X.Y to X.Y.Z, ``sets`` are tarballs with patches. ``until_config`` ends with the
    patch of Gentoo's Kconfig; ``flat`` says that the tarballs have no directory. ``extraversion`` None leaves it
    untouched.
    """

    package: KernelPackage
    linux: Distfile
    patch: Distfile | None
    sets: tuple[Distfile, ...]
    until_config: bool
    flat: bool
    extraversion: str | None
    local_version: str

    @property
    def release(self) -> str:
        """See `Recipe`."""
        numbers, _, patchset = self.package.pv.partition("_p")
        numbers += ".0" * (2 - numbers.count("."))
        return numbers + (f"-p{patchset}" if patchset else "") + self.local_version

    @property
    def distfiles(self) -> Sequence[Distfile]:
        """See `Recipe`."""
        return [self.linux, *([self.patch] if self.patch else []), *self.sets]

    def inputs(self) -> Mapping[str, Any]:  # Any: goes into JSON
        """See `Recipe`."""
        return {
            "kind": "dist-kernel",
            "patch": self.patch.name if self.patch else None,
            "sets": [file.name for file in self.sets],
            "until_config": self.until_config,
            "flat": self.flat,
            "extraversion": self.extraversion,
        }

    def compose(self, work: Work) -> None:
        """See `Recipe`."""
        recipe.unpack_linux(work.files(self.linux), work)
        patches = self.patches(work)
        for number, path in enumerate(patches, start=1):
            work.progress.step(f"applying {path.name}", number / len(patches))
            done = recipe.run_patch(work.tree, path, _EAPPLY)
            if done.returncode != 0:
                raise recipe.does_not_apply(path.name, done, "with -p1")
        if self.extraversion is not None:
            recipe.set_extraversion(work.tree, self.extraversion)
        recipe.check_version(work.tree, self.release)
        recipe.settle_modes(work.tree)

    def patches(self, work: Work) -> Sequence[Path]:
        """See `Recipe`."""
        patches: list[Path] = []
        if self.patch:
            patches.append(work.scratch / self.patch.name.removesuffix(".xz"))
            recipe.decompress(work.files(self.patch), patches[0])
        top = work.scratch / "patches"
        top.mkdir()
        for file in self.sets:
            recipe.unpack(work.files(file), top)
        directory = top if self.flat else top / self.sets[0].name.removesuffix(".tar.xz")
        suffixes = (".patch",) if self.flat or self.until_config else (".patch", ".diff")
        found = sorted((path for path in directory.glob("[!.]*") if path.name.endswith(suffixes)), key=os.fsencode)
        if not found:
            raise SourceRejectedError(f"{', '.join(file.name for file in self.sets)}: there are no patches in it.")
        if self.until_config:
            last = next((number for number, path in enumerate(found) if _LAST in path.name), len(found))
            found = found[: last + 1]
        return [*patches, *found]


# -- from the ebuild to the recipe


def plan(files: PackageFiles, host: Host) -> DistRecipe:
    """The recipe of a distribution kernel. Raises KernelUnavailableError for what is not known here."""
    ebuild = files.ebuild
    if ebuild.value("EAPI") != "8":
        raise ebuild.error(ebuild.line("EAPI") or 1, "kernel-build.eclass takes EAPI 8 only")
    ebuild.refuse(("PATCHES",), "and what the ebuild does then is not known here")
    if unknown := sorted(name for name in ebuild.functions if name.startswith("src_") and name not in _FUNCTIONS):
        raise ebuild.error(ebuild.functions[unknown[0]][0].line, f"the function {unknown[0]} is not known")
    form = _Form(ebuild, host)
    uris = _uris(ebuild, host)
    base = form.base
    # what the tarballs are called is in the variables; where they are, in SRC_URI
    linux = _named(files, uris, f"{base}.tar.xz")
    pv = ebuild.package.pv.partition("_p")[0] if form.pv == "PATCH_PV" else ebuild.package.pv
    if form.pv == "PATCH_PV" and ebuild.value("PATCH_PV") != pv:
        raise ebuild.error(ebuild.line("PATCH_PV") or 1, f"PATCH_PV is {ebuild.value('PATCH_PV')!r}")
    if form.kind == "genpatches":
        sets = [_named(files, uris, name) for name in uris if re.fullmatch(r"genpatches-[\w.-]+\.tar\.xz", name)]
        if not sets:
            raise ebuild.error(ebuild.line("SRC_URI") or 1, "SRC_URI names no genpatches")
    else:
        sets = [_named(files, uris, f"{ebuild.value('PATCHSET')}.tar.xz")]
    suffix = ebuild.package.pv.removeprefix(ebuild.package.pv.partition("_p")[0]).replace("_", "-", 1)
    return DistRecipe(
        package=ebuild.package,
        linux=linux,
        patch=_named(files, uris, f"patch-{pv}.xz") if form.kind != "genpatches" else None,
        sets=tuple(sets),
        until_config=form.kind == "loop" and not (form.unless and "experimental" in host.use),
        flat=form.kind == "genpatches",
        extraversion=suffix if form.sets_extraversion else None,
        local_version="-gentoo-dist" + ("-hardened" if form.hardened and "hardened" in host.use else ""),
    )


class _Form:
    """Which of the known forms src_prepare has. ``kind`` is the way of its patch set."""

    def __init__(self, ebuild: Ebuild, host: Host) -> None:
        self._ebuild = ebuild
        self.kind = ""
        self.pv, self.unless = "PV", False
        statements = _joined(ebuild.functions.get("src_prepare", ()))
        if not statements:
            raise ebuild.error(1, "it has no src_prepare, and what the eclass does then is not known here")
        while statements and re.fullmatch(r'local patch|cd "\$\{BASE_P\}" \|\| die', statements[0].text):
            del statements[0]
        rest = self._match(statements)
        self.sets_extraversion = [statement.text for statement in rest[:2]] != [] and all(
            re.fullmatch(pattern, statement.text) for pattern, statement in zip(_EXTRAVERSION, rest, strict=False)
        )
        if self.sets_extraversion:
            rest = rest[2:]
        for statement in _of_arch(rest, host.arch):
            if _CHANGES.search(statement.text):
                raise ebuild.error(statement.line, f"src_prepare is not understood: {statement.text[:80]}")
        text = "\n".join(statement.text for statement in rest)
        self.hardened = 'use hardened && myversion+="-hardened"' in text
        local = 'local myversion="-gentoo-dist"' in text or ebuild.value("KV_LOCALVERSION") == "-gentoo-dist"
        if not local:
            raise ebuild.error(rest[0].line if rest else 1, "the local version is not -gentoo-dist")
        place = re.fullmatch(r"\$\{WORKDIR\}/(linux-[0-9.]+)", ebuild.value("S"), re.ASCII)
        self.base = place[1] if place else ebuild.value("BASE_P") or ebuild.value("MY_P")
        if not re.fullmatch(r"linux-\d+\.\d+", self.base, re.ASCII):
            raise ebuild.error(ebuild.line("S") or 1, f"the tree is {self.base!r}, which is none of kernel.org")

    def _match(self, statements: Sequence[Statement]) -> Sequence[Statement]:
        """Find the form; gives the statements behind it."""
        best = 0
        for form in _FORMS:
            matches = 0
            for (kind, pattern), statement in zip(form, statements, strict=False):
                match = re.fullmatch(pattern, statement.text)
                if match is None:
                    break
                matches += 1
                groups = match.groupdict()
                self.pv = groups.get("pv") or self.pv
                self.unless = self.unless or groups.get("unless") is not None
                if kind in {"loop", "set", "genpatches"}:
                    self.kind = kind
            if matches == len(form):
                return statements[matches:]
            best = max(best, matches)
        at = statements[min(best, len(statements) - 1)]
        raise self._ebuild.error(at.line, f"src_prepare is not understood: {at.text[:80]}")


def _joined(statements: Sequence[Statement]) -> list[Statement]:
    """Statements on one line each: conditions and arrays that go over several are joined, their comments left out."""
    found: list[Statement] = []
    for statement in statements:
        before = found[-1].text if found else ""
        goes_on = before.endswith("&&") or (before.startswith("if ") and statement.text == "then")
        goes_on = goes_on or (re.match(r"local \w+=\(", before) is not None and not before.endswith(")"))
        if goes_on:
            found[-1] = Statement(found[-1].line, f"{before} {statement.text}")
        else:
            found.append(statement)
    return found


def _of_arch(statements: Sequence[Statement], arch: str) -> list[Statement]:
    """The statements without those that ``case ${ARCH} in`` has for other machines."""
    found: list[Statement] = []
    state: Literal["out", "in", "other", "ours"] = "out"
    for statement in statements:
        if statement.text == "case ${ARCH} in":
            state = "in"
        elif statement.text == "esac":
            state = "out"
        elif state == "in":
            names = [name.strip() for name in statement.text.rstrip(")").split("|")]
            state = "ours" if arch in names else "other"
        elif statement.text == ";;":
            state = "in"
        elif state in {"out", "ours"}:
            found.append(statement)
    return found


def _uris(ebuild: Ebuild, host: Host) -> Mapping[str, str]:
    """The distfiles of SRC_URI by their names, for the flags that are on (Package Manager Specification, 8.2)."""
    words = ebuild.value("SRC_URI").split()
    found: dict[str, str] = {}
    enabled = [True]
    on = host.use | {host.arch}
    at = 0
    while at < len(words):
        word = words[at]
        if word.endswith("?") and words[at + 1 : at + 2] == ["("]:
            flag = word[:-1]
            enabled.append(enabled[-1] and ((flag[1:] not in on) if flag.startswith("!") else flag in on))
            at += 2
        elif word == ")" and len(enabled) > 1:
            enabled.pop()
            at += 1
        elif re.match(r"[a-z]+://", word):
            renamed = words[at + 1 : at + 2] == ["->"] and at + 2 < len(words)
            name = words[at + 2] if renamed else word.rpartition("/")[2]
            if enabled[-1]:
                found[name] = word
            at += 3 if renamed else 1
        else:
            raise ebuild.error(ebuild.line("SRC_URI"), f"SRC_URI has {word[:100]!r}, which is not understood")
    return found


def _named(files: PackageFiles, uris: Mapping[str, str], name: str) -> Distfile:
    if name not in uris:
        raise KernelUnavailableError(
            f"{files.ebuild.file} unpacks {name}, which its SRC_URI does not name.",
            hint="Renew the ebuild repository; if it stays so, this form of ebuild is not known here.",
        )
    if not _URL.fullmatch(uris[name]):
        raise files.ebuild.error(files.ebuild.line("SRC_URI"), f"{uris[name][:100]!r} is no address to download from")
    return Distfile(files.manifest.distfile(name), (uris[name],))
