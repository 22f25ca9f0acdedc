# SPDX-License-Identifier: GPL-2.0-or-later
"""A small made-up Gentoo: a kernel of a few files, its patches, and an ebuild repository of the real form."""

from __future__ import annotations

import bz2
import difflib
import hashlib
import io
import lzma
import os
import re
import stat
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SOURCES_EBUILD = """\
# An ebuild of a made-up kernel

EAPI="8"
ETYPE="sources"
K_WANT_GENPATCHES="base extras experimental"
K_GENPATCHES_VER="4"

inherit check-reqs kernel-2
detect_version
detect_arch

DESCRIPTION="Made-up sources of ${KV_MAJOR}.${KV_MINOR}"
HOMEPAGE="https://gentoo.invalid/~someone/genpatches"
SRC_URI="${KERNEL_URI} ${GENPATCHES_URI} ${ARCH_URI}"
KEYWORDS="~amd64 ~x86"
IUSE="experimental"

pkg_pretend() {
\tCHECKREQS_DISK_BUILD="4G"
\tcheck-reqs_pkg_pretend
}

src_prepare() {
\tkernel-2_src_prepare
\trm "${S}/tools/testing/selftests/tc-testing/action-ebpf"
}

pkg_postinst() {
\tkernel-2_pkg_postinst
\teinfo "${HOMEPAGE}"
}
"""

_DIST_CONFIGURATION = """\
\tlocal biendian=false

\t# prepare the default config
\tcase ${ARCH} in
\t\tamd64)
\t\t\tcp "${DISTDIR}/kernel-x86_64.config.${CONFIG_VER}" .config || die
\t\t\t;;
\t\thppa | sparc)
\t\t\teapply "${FILESDIR}"/hppa.patch || die
\t\t\t> .config || die
\t\t;;
\t\t*)
\t\t\tdie "Unsupported arch ${ARCH}"
\t\t\t;;
\tesac

\tlocal myversion="-gentoo-dist"
\tuse hardened && myversion+="-hardened"
\techo "CONFIG_LOCALVERSION=\\"${myversion}\\"" > "${T}"/version.config || die

\tlocal merge_configs=(
\t\t"${T}"/version.config
\t)
\tkernel-build_merge_configs "${merge_configs[@]}"
}
"""

DIST_EBUILD = (
    """\
EAPI=8

KERNEL_IUSE_GENERIC_UKI=1

inherit kernel-build toolchain-funcs verify-sig

BASE_P=linux-${PV%.*}
PATCH_PV=${PV%_p*}
PATCHSET=linux-gentoo-patches-6.12.1
CONFIG_VER=6.12.1-gentoo
GENTOO_CONFIG_VER=g17

SRC_URI+="
\thttps://kernel.invalid/v$(ver_cut 1).x/${BASE_P}.tar.xz
\thttps://kernel.invalid/v$(ver_cut 1).x/patch-${PATCH_PV}.xz
\thttps://gentoo.invalid/~someone/dist/${PATCHSET}.tar.xz
\thttps://gentoo.invalid/config/archive/${GENTOO_CONFIG_VER}.tar.gz
\t\t-> gentoo-kernel-config-${GENTOO_CONFIG_VER}.tar.gz
\tverify-sig? (
\t\thttps://kernel.invalid/v$(ver_cut 1).x/sha256sums.asc
\t\t\t-> linux-$(ver_cut 1).x-sha256sums.asc
\t)
\tamd64? (
\t\thttps://gentoo.invalid/${CONFIG_VER}/kernel-x86_64.config
\t\t\t-> kernel-x86_64.config.${CONFIG_VER}
\t)
"
S=${WORKDIR}/${BASE_P}

IUSE="debug experimental hardened"
RDEPEND="
\t!sys-kernel/gentoo-kernel-bin:${SLOT}
"

src_unpack() {
\tif use verify-sig; then
\t\tcd "${DISTDIR}" || die
\tfi

\tdefault
}

src_prepare() {
\tlocal patch
\teapply "${WORKDIR}/patch-${PATCH_PV}"
\tfor patch in "${WORKDIR}/${PATCHSET}"/*.patch; do
\t\teapply "${patch}"
\t\t# the last one that is not experimental
\t\tif [[ ${patch} == *Add-Gentoo-Linux-support-config-settings* ]] &&
\t\t\t! use experimental
\t\tthen
\t\t\tbreak
\t\tfi
\tdone

\tdefault

\tlocal extraversion=${PV#${PATCH_PV}}
\tsed -i -e "s:^\\(EXTRAVERSION =\\).*:\\1 ${extraversion/_/-}:" Makefile || die

"""
    + _DIST_CONFIGURATION
)

#: The form of later dist kernels: all of the patch set.
WHOLE_SET_EBUILD = (
    DIST_EBUILD[: DIST_EBUILD.index("\tfor patch in")]
    + '\teapply "${WORKDIR}/${PATCHSET}"\n\n'
    + DIST_EBUILD[DIST_EBUILD.index("\tdefault\n\n\tlocal extra") :]
)

#: The form of earlier ones: genpatches, as patches of WORKDIR.
GENPATCHES_EBUILD = (
    """\
EAPI=8
inherit kernel-build toolchain-funcs
MY_P=linux-${PV%.*}
GENPATCHES_P=genpatches-${PV%.*}-$(( ${PV##*.} + 2 ))
CONFIG_VER=6.12.1-gentoo
SRC_URI+="
\thttps://kernel.invalid/v$(ver_cut 1).x/${MY_P}.tar.xz
\thttps://gentoo.invalid/~someone/genpatches/${GENPATCHES_P}.base.tar.xz
\thttps://gentoo.invalid/~someone/genpatches/${GENPATCHES_P}.extras.tar.xz
\texperimental? (
\t\thttps://gentoo.invalid/~someone/genpatches/${GENPATCHES_P}.experimental.tar.xz
\t)
"
S=${WORKDIR}/${MY_P}
IUSE="debug experimental hardened"

src_prepare() {
\tlocal PATCHES=(
\t\t# they have no directory
\t\t"${WORKDIR}"/*.patch
\t)
\tdefault

"""
    + _DIST_CONFIGURATION
)

_LINES = [f"line {number}" for number in range(1, 41)]


def _text(**changes: str) -> str:
    """Forty lines; ``l7="x"`` changes the seventh."""
    lines = [changes.get(f"l{number}", line) for number, line in enumerate(_LINES, start=1)]
    return "\n".join(lines) + "\n"


def makefile(sublevel: int) -> str:
    """The head of a kernel's Makefile."""
    return (
        "# SPDX-License-Identifier: GPL-2.0\n"
        f"VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = {sublevel}\nEXTRAVERSION =\nNAME = Made-up\n\n"
        '# *DOCUMENTATION*\n# To see a list of typical targets execute "make help"\n\n'
        "KERNELVERSION = $(VERSION)$(if $(PATCHLEVEL),.$(PATCHLEVEL)$(if $(SUBLEVEL),.$(SUBLEVEL)))$(EXTRAVERSION)\n"
    )


def diff(path: str, old: str, new: str, *, prefixes: tuple[str, str] = ("a/", "b/")) -> str:
    """A unified diff of one file, as git writes it; an empty ``old`` is a file that is not there yet."""
    a, b = (f"{prefixes[0]}{path}" if old else "/dev/null"), f"{prefixes[1]}{path}"
    head = f"diff --git a/{path} b/{path}\n" + ("" if old else "new file mode 100755\n")
    lines = difflib.unified_diff(old.splitlines(True), new.splitlines(True), a, b)
    return head + "".join(lines)


#: What linux-6.12.tar.xz holds: text and mode; a name that ends in @ is a link.
LINUX: dict[str, tuple[str, int]] = {
    "Makefile": (makefile(0), 0o664),
    "Kconfig": (_text(l1="mainmenu"), 0o664),
    "fs/proc/meminfo.c": (_text(), 0o664),
    "kernel/sched.c": (_text(), 0o600),
    "scripts/run.sh": ("#!/bin/sh\nexit 0\n", 0o775),
    "scripts/left~": ("a backup\n", 0o664),
    "include/old.h": ("gone soon\n", 0o664),
    "tools/testing/selftests/tc-testing/action-ebpf": ("\x7fELF\0", 0o664),
    "arch/x86/link@": ("../../kernel/sched.c", 0o777),
}

STABLE_1 = diff("Makefile", makefile(0), makefile(1)) + diff("fs/proc/meminfo.c", _text(), _text(l5="6.12.1"))
STABLE_2 = (
    diff("Makefile", makefile(1), makefile(2))
    + diff("fs/proc/meminfo.c", _text(l5="6.12.1"), _text(l5="6.12.1", l8="6.12.2"))
    + "diff --git a/include/old.h b/include/old.h\ndeleted file mode 100644\n"
    "--- a/include/old.h\n+++ /dev/null\n@@ -1 +0,0 @@\n-gone soon\n"
)
#: The commit that a patch of the set says it was made from.
BACKPORTED = "5a" * 20
#: Its context is of another kernel: it goes in with fuzz only.
FUZZY = diff("kernel/sched.c", _text(l17="another", l18="kernel"), _text(l17="another", l18="kernel", l20="fuzzy"))
KCONFIG = diff("Kconfig", _text(l1="mainmenu"), _text(l1="mainmenu", l40='source "distro/Kconfig"'))

BASE = {
    "0000_README": "what is in here\n",
    "1000_linux-6.12.1.patch": STABLE_1,
    "1001_linux-6.12.2.patch": STABLE_2,
    "1510_fs-links.patch": f"Subject: fs: links\n\ncommit {BACKPORTED} upstream.\n\n"
    + diff("fs/proc/meminfo.c", _text(l5="6.12.1", l8="6.12.2"), _text(l8="6.12.2", l5="1510")),
    "2000_fuzzy.patch": FUZZY,
    # files that are only made go in at depth 0, below the prefix
    "2920_new-files.patch": diff("scripts/new.sh", "", "#!/bin/sh\necho new\n"),
}
EXTRAS = {
    # a .diff begins at the depth of the patch before it: 0 here, and 1 for the next
    "4300_plain.diff": diff("kernel/sched.c", _text(l20="fuzzy"), _text(l20="fuzzy", l30="4300")),
    "4310_new.diff": diff("scripts/other.sh", "", "#!/bin/sh\necho other\n"),
    # the depth of this one begins at 2
    "4400_deep.patch2": diff(
        "kernel/sched.c",
        _text(l20="fuzzy", l30="4300"),
        _text(l20="fuzzy", l30="4400"),
        prefixes=("a/deep/", "b/deep/"),
    ).partition("\n")[2],
    "4567_distro-Gentoo-Kconfig.patch": KCONFIG,
}
EXPERIMENTAL = {
    "5010_enable-cpu-optimizations-universal.patch": diff(
        "Kconfig", _text(l1="mainmenu"), _text(l1="mainmenu", l3="5010")
    ),
    "5020_BMQ.patch": diff("kernel/sched.c", _text(l20="fuzzy", l30="4400"), _text(l20="BMQ", l30="4400")),
}
PATCHSET = {
    "0001-kernel-sched.patch": diff("kernel/sched.c", _text(), _text(l2="0001")),
    "0002-Add-Gentoo-Linux-support-config-settings.patch": KCONFIG,
    "0003-experimental.patch": diff("kernel/sched.c", _text(l2="0001"), _text(l2="0003")),
}
_STABLE_BOTH = (
    diff("Makefile", makefile(0), makefile(2))
    + diff("fs/proc/meminfo.c", _text(), _text(l5="6.12.1", l8="6.12.2"))
    + STABLE_2[STABLE_2.index("diff --git a/include") :]
)


def tarball(files: Mapping[str, tuple[str, int] | str], top: str = "") -> bytes:
    """A tar.xz of files below ``top``, made by another user."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=0) as archive:
        for name, value in files.items():
            text, mode = value if isinstance(value, tuple) else (value, 0o640)
            entry = tarfile.TarInfo(f"{top}{name.rstrip('@')}")
            entry.mode, entry.uid, entry.gid, entry.mtime = mode, 4711, 4711, 1_700_000_000
            if name.endswith("@"):
                entry.type, entry.linkname = tarfile.SYMTYPE, text
                archive.addfile(entry)
            else:
                entry.size = len(text.encode())
                archive.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def distfiles() -> dict[str, bytes]:
    """All that the made-up packages need, by name."""
    return {
        "linux-6.12.tar.xz": tarball(LINUX, "linux-6.12/"),
        "patch-6.12.2.xz": lzma.compress(_STABLE_BOTH.encode()),
        "genpatches-6.12-4.base.tar.xz": tarball(BASE),
        "genpatches-6.12-4.extras.tar.xz": tarball(EXTRAS),
        "genpatches-6.12-4.experimental.tar.xz": tarball(EXPERIMENTAL),
        "linux-gentoo-patches-6.12.1.tar.xz": tarball(PATCHSET, "linux-gentoo-patches-6.12.1/"),
        "notes.patch.bz2": bz2.compress(diff("Notes", "", "from a distfile\n").encode()),
    }


def manifest_line(name: str, data: bytes, *, kind: str = "DIST") -> str:
    """An entry of a Manifest."""
    blake2b, sha512 = hashlib.blake2b(data).hexdigest(), hashlib.sha512(data).hexdigest()
    return f"{kind} {name} {len(data)} BLAKE2B {blake2b} SHA512 {sha512}\n"


@dataclass
class Repository:
    """An ebuild repository; ``files`` are the distfiles that Manifests have entries of."""

    root: Path
    files: dict[str, bytes] = field(default_factory=distfiles)

    def add(self, package: str, text: str, *, manifest: str | None = None) -> Path:
        """Write an ebuild, and the Manifest of its package; gives the directory."""
        name = re.split(r"-\d", package)[0]
        directory = self.root / "sys-kernel" / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{package}.ebuild").write_text(text)
        entries = "".join(manifest_line(each, data) for each, data in self.files.items())
        (directory / "Manifest").write_text(entries if manifest is None else manifest)
        return directory


def listing(tree: Path) -> dict[str, tuple[str, str]]:
    """Everything in a tree: kind and mode, and content or where a link leads."""
    found: dict[str, tuple[str, str]] = {}
    for directory, names, files in os.walk(tree):
        for name in [*names, *files]:
            path = Path(directory, name)
            mode = stat.filemode(path.lstat().st_mode)
            if path.is_symlink():
                content = str(path.readlink())
            else:
                content = path.read_bytes().decode("latin-1") if path.is_file() else ""
            found[str(path.relative_to(tree))] = (mode, content)
    return found
