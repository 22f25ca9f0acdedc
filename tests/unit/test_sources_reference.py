# SPDX-License-Identifier: GPL-2.0-or-later
"""How kernels are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elivepatch.errors import InvalidInputError, SourceRejectedError
from elivepatch.kernel.release import parse_release
from elivepatch.sources.reference import (
    FORMS,
    DebianReference,
    DirectoryReference,
    GentooReference,
    GitReference,
    KernelOrgReference,
    Reference,
    ReleaseReference,
    parse_reference,
    tree_version,
)

STABLE = "https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6.12.117+deb13-cloud-amd64", ReleaseReference(parse_release("6.12.117+deb13-cloud-amd64"))),
        ("6.12.60-gentoo", ReleaseReference(parse_release("6.12.60-gentoo"))),
        ("kernel.org:6.12.60", KernelOrgReference("6.12.60")),
        ("kernel.org:6.12", KernelOrgReference("6.12")),
        ("kernel.org:6.12.0", KernelOrgReference("6.12")),
        (f"git:{STABLE}#v6.12.60", GitReference(STABLE, "v6.12.60")),
        ("git:ssh://git@host.example:22/~me/linux#refs/heads/my/branch", GitReference(
            "ssh://git@host.example:22/~me/linux", "refs/heads/my/branch")),
        ("git:git://[::1]:9418/linux.git#0123456789abcdef0123456789abcdef01234567", GitReference(
            "git://[::1]:9418/linux.git", "0123456789abcdef0123456789abcdef01234567")),
        ("dir:/usr/src/linux", DirectoryReference(Path("/usr/src/linux"))),
        ("dir:/srv/my trees/linux:1", DirectoryReference(Path("/srv/my trees/linux:1"))),
        ("debian:6.12", DebianReference("6.12")),
        ("debian:6.12.117-1", DebianReference("6.12.117-1")),
        ("debian:6.12.9-1~bpo12+1", DebianReference("6.12.9-1~bpo12+1")),
        ("gentoo:gentoo-sources-6.12.60", GentooReference("gentoo-sources", "6.12.60", 0)),
        ("gentoo:gentoo-sources-6.12.60-r1", GentooReference("gentoo-sources", "6.12.60", 1)),
        ("gentoo:sys-kernel/gentoo-kernel-6.12.60", GentooReference("gentoo-kernel", "6.12.60", 0)),
        ("gentoo:gentoo-sources-6.12", GentooReference("gentoo-sources", "6.12", 0)),
    ],
)  # fmt: skip
def test_what_can_be_named(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "linux", "-h", "../x", "6.12.1/../x", "x" * 5000, "6.12\n", "6.12.1 ", "kernel.org", "kernel.org:",
        "kernel.org:6", "kernel.org:6.12.60.1", "kernel.org:v6.12", "kernel.org:2.6.39", "kernel.org:6.12/..",
        "kernel.org:6.12-rc1", "kernel.org:6.\uff112", "svn:x", "http://x/y", "git:", "git:#v1", f"git:{STABLE}",
        f"git:{STABLE}#", f"git:{STABLE}#-x", f"git:{STABLE}#--upload-pack=x", f"git:{STABLE}#a..b",
        f"git:{STABLE}#a b", "git:ssh://-x/y#v1", "git:https:///x#v1",
        f"git:{STABLE}#a@{{1}}", f"git:{STABLE}#a:b", f"git:{STABLE}#+a", f"git:{STABLE}#a^", f"git:{STABLE}#a.lock",
        f"git:{STABLE}#a\\b", f"git:{STABLE}#a*", f"git:{STABLE}#@", f"git:{STABLE}#a/", f"git:{STABLE}#a//b",
        f"git:{STABLE}#a/.b", "git:ext::sh -c x#v1", "git:ext::x#v1", "git:-oProxyCommand=x#v1", "git:host:path#v1",
        "git:/srv/linux#v1", "git:ssh://-oProxyCommand=x/y#v1", "git:ssh://-x@host/y#v1", "git:http://host/x#v1",
        "git:https://user:secret@host/x#v1", "git:https://host/x y#v1", "git:https://host/$(x)#v1", "git:https://host#v1",
        "git:ftp://host/x#v1", "dir:", "dir:linux", "dir:/a/../b", "dir:..", "dir:/a\0b", "debian:", "debian:trixie",
        "debian:6", "debian:6.12.117-1/../x", "debian:-1", "debian:6.12 1", "gentoo:", "gentoo:gentoo-sources",
        "gentoo:6.12.60", "gentoo:gentoo-sources-6", "gentoo:x/gentoo-sources-6.12.60", "gentoo:../a-6.12.60",
        "gentoo:gentoo-sources-6.12.60-r", "gentoo:gentoo-sources-6.12.60_rc1", "gentoo:-6.12.60",
    ],
)  # fmt: skip
def test_what_names_no_kernel(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_reference(text)
    assert caught.value.hint


def test_the_hint_lists_the_forms_and_each_is_one() -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_reference("nonsense")
    for form in FORMS:
        assert form in (caught.value.hint or "")
        for example in form.rpartition("(")[2].rstrip(")").split(", "):
            parse_reference(example)


def test_a_series_is_not_taken_for_a_release() -> None:
    with pytest.raises(InvalidInputError, match=r"'6\.12' is a series") as caught:
        parse_reference("6.12")
    for name in ("debian:6.12", "kernel.org:6.12"):
        assert name in (caught.value.hint or "")
        parse_reference(name)
    parse_reference("6.12.60")  # what a kernel of one's own may be called


def test_a_release_candidate_is_told_where_it_is() -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_reference("kernel.org:6.13-rc4")
    hint = caught.value.hint or ""
    assert parse_reference(hint.removeprefix("Name ")) == GitReference(
        "https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git", "v6.13-rc4"
    )


@given(st.text(max_size=60))
def test_any_text_is_a_reference_or_a_clear_error(text: str) -> None:
    for prefix in ("", "kernel.org:", "git:https://h/", "git:https://h/x#", "dir:/", "debian:", "gentoo:"):
        try:
            found = parse_reference(prefix + text)
        except InvalidInputError:
            continue
        if isinstance(found, GitReference):
            assert not found.ref.startswith("-")
            assert found.url.startswith(("https://", "ssh://", "git://", "file://"))
        if isinstance(found, DirectoryReference):
            assert ".." not in found.path.parts


def test_parts_of_names() -> None:
    assert DebianReference("6.12.117-1").series == "6.12"
    assert GentooReference("gentoo-sources", "6.12.60", 1).full_version == "6.12.60-r1"
    assert GentooReference("gentoo-sources", "6.12.60", 0).full_version == "6.12.60"


MAKEFILE = """# SPDX-License-Identifier: GPL-2.0
VERSION = 6
PATCHLEVEL = 12
SUBLEVEL = 60
EXTRAVERSION ={}
NAME = Baby Opossum Posse
ifneq ($(x),)
VERSION = 9
endif
"""


@pytest.mark.parametrize(("extra", "expected"), [("", ""), (" -gentoo-r1", "-gentoo-r1"), (" -rc4  ", "-rc4")])
def test_the_version_of_a_tree(tmp_path: Path, extra: str, expected: str) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE.format(extra))
    assert tree_version(tmp_path) == ("6.12.60", expected)


@pytest.mark.parametrize("text", [None, "", "all:\n", "VERSION = 6\nPATCHLEVEL = 1\n", MAKEFILE.format(" $(shell x)")])
def test_what_is_no_tree(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "Makefile").write_text(text)
    with pytest.raises(SourceRejectedError, match=str(tmp_path)):
        tree_version(tmp_path)


def test_a_password_in_an_address_is_not_told_to_others() -> None:
    with pytest.raises(InvalidInputError, match="holds a name or a password") as caught:
        parse_reference("git:https://user:secretpw@example.org/x.git#main")
    assert "secretpw" not in f"{caught.value.message} {caught.value.hint}"
