# SPDX-License-Identifier: GPL-2.0-or-later
"""What /proc/version says about the build of a kernel."""

import pytest

from elivepatch.kernel.banner import Banner, parse_banner

OWN = (
    "Linux version 6.12.94 (me@builder) (gcc (Debian 14.2.0-19) 14.2.0, GNU ld (GNU Binutils for Debian) 2.44) "
    "#7 SMP PREEMPT_DYNAMIC Tue Nov 24 10:11:12 UTC 2026\n"
)
DEBIAN = (
    "Linux version 6.12.118+deb13-cloud-amd64 (debian-kernel@lists.debian.org) (x86_64-linux-gnu-gcc-14 (Debian "
    "14.2.0-19) 14.2.0, GNU ld (GNU Binutils for Debian) 2.44) #1 SMP PREEMPT_DYNAMIC Debian 6.12.118-1 (2026-11-01)\n"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (OWN, Banner("6.12.94", "me", "builder", "7", "Tue Nov 24 10:11:12 UTC 2026")),
        (
            DEBIAN,
            Banner(
                "6.12.118+deb13-cloud-amd64",
                "debian-kernel",
                "lists.debian.org",
                "1",
                "Debian 6.12.118-1 (2026-11-01)",
            ),
        ),
        (
            OWN.replace("SMP PREEMPT_DYNAMIC ", ""),
            Banner("6.12.94", "me", "builder", "7", "Tue Nov 24 10:11:12 UTC 2026"),
        ),
        (
            OWN.replace("PREEMPT_DYNAMIC", "PREEMPT_RT"),
            Banner("6.12.94", "me", "builder", "7", "Tue Nov 24 10:11:12 UTC 2026"),
        ),
        ("Linux version 6.1", None),
        ("", None),
        ("Linux version 6.1 (a@b) (gcc) #1 date\nmore", None),
        ("Linux version 6.1 (a@b) (gcc) #1 \x1b[31mdate", None),
    ],
)
def test_what_a_banner_says(text: str, expected: Banner | None) -> None:
    assert parse_banner(text) == expected


def test_kbuild_is_told_the_same() -> None:
    banner = parse_banner(OWN)
    assert banner is not None
    assert banner.variables() == {
        "KBUILD_BUILD_USER": "me",
        "KBUILD_BUILD_HOST": "builder",
        "KBUILD_BUILD_VERSION": "7",
        "KBUILD_BUILD_TIMESTAMP": "Tue Nov 24 10:11:12 UTC 2026",
    }
