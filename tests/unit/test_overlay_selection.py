# SPDX-License-Identifier: GPL-2.0-or-later
"""Which entries are for a kernel, and in which order."""

from __future__ import annotations

import pytest

from elivepatch.overlay.findings import OverlayRejectedError
from elivepatch.overlay.kernels import (
    Distribution,
    Fit,
    KernelIdentity,
    KernelSyntaxError,
    parse_distribution,
    parse_kernels,
    upstream_version,
)
from elivepatch.overlay.model import Entry, Overlay
from elivepatch.overlay.selection import Selection, find_cycle, ordered, select, with_required

DEBIAN_13 = KernelIdentity("6.12.117+deb13-cloud-amd64", (6, 12, 117), "debian", "13")


def kernel(release: str, proc_version: str = "") -> KernelIdentity:
    return KernelIdentity(release, upstream_version(release, proc_version))


@pytest.mark.parametrize(
    ("text", "release", "expected"),
    [
        (">=6.1.100 <6.1.175", "6.1.100", Fit.YES),
        (">=6.1.100 <6.1.175", "6.1.174-gentoo", Fit.YES),
        (">=6.1.100 <6.1.175", "6.1.175", Fit.NO),
        (">=6.1.100 <6.1.175", "6.1.99", Fit.NO),
        (">=6.1.100 <6.1.175", "6.2.120", Fit.NO),
        (">=6.1.100 <6.12", "6.6.1", Fit.YES),
        (">6.1.100", "6.1.100", Fit.NO),
        (">6.1.100", "6.1.101", Fit.YES),
        ("<=6.1.100", "6.1.100", Fit.YES),
        ("<6.2", "6.1.999", Fit.YES),
        ("<6.2", "6.2.0", Fit.NO),
        ("6.1.*", "6.1.9-x", Fit.YES),
        ("6.1.*", "6.10.9", Fit.NO),
        ("6.1.*", "6.1", Fit.YES),
        ("6.12", "6.12.0", Fit.YES),
        ("6.12", "6.12.1", Fit.NO),
        ("6.12.117", "6.12.117+deb13-cloud-amd64", Fit.YES),
        ("6.12.117+deb13-cloud-amd64", "6.12.117+deb13-cloud-amd64", Fit.YES),
        ("6.12.117+deb13-cloud-amd64", "6.12.117+deb13-amd64", Fit.NO),
        # where the upstream version is not told, only the series is
        ("6.1.*", "6.1.0-49-cloud-amd64", Fit.YES),
        ("6.12.*", "6.1.0-49-cloud-amd64", Fit.NO),
        (">=6.1.100", "6.1.0-49-cloud-amd64", Fit.UNDECIDED),
        (">=6.0.100 <6.2", "6.1.0-49-cloud-amd64", Fit.YES),
        (">=6.0.100 <6.1.5", "6.1.0-49-cloud-amd64", Fit.UNDECIDED),
        ("<6.1", "6.1.0-49-cloud-amd64", Fit.NO),
        ("<6.1.0", "6.0.9", Fit.YES),
        ("6.1.0-49-cloud-amd64", "6.1.0-49-cloud-amd64", Fit.YES),
        (">=6.12.5", "6.13.0-rc1", Fit.YES),
        (">=6.13", "6.13-rc1", Fit.YES),
        ("<=6.13.5", "6.13.0-rc1", Fit.UNDECIDED),
        ("5.14.0-427.el9.x86_64", "5.14.0-427.el9.x86_64", Fit.YES),
        (">=5.14.1", "5.14.0-427.el9.x86_64", Fit.UNDECIDED),
    ],
)
def test_ranges(text: str, release: str, expected: Fit) -> None:
    assert parse_kernels(text).fit(kernel(release)) is expected


@pytest.mark.parametrize(
    "text",
    [
        *["", "6", "6.x", "*", "6.*", "linux", "../6.1", "6.1;reboot", "6.1 6.2", ">=6.1.1234567", "=6.1", "!6.1"],
        *[">=", ">= 6.1", ">=6.1,<6.2", "~6.1", "6.1.* <6.2", ">=6.2 <6.2", ">6.1 <6.1.1"],
    ],
)
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(KernelSyntaxError):
        parse_kernels(text)


def test_the_version_of_debian_s_kernel_is_in_proc_version() -> None:
    release = "6.1.0-49-cloud-amd64"
    text = f"Linux version {release} (x@y) (gcc) #1 SMP PREEMPT_DYNAMIC Debian 6.1.174-1 (2026-05-01)"
    assert upstream_version(release, text) == (6, 1, 174)
    assert upstream_version(release, text.replace("6.1.174", "5.10.1")) is None
    assert upstream_version(release) is None
    assert upstream_version("6.12.60-gentoo-x86_64", text) == (6, 12, 60)
    assert upstream_version("strange") is None


def test_distributions() -> None:
    debian, trixie = parse_distribution("debian"), parse_distribution("debian:13")
    assert (debian, trixie) == (Distribution("debian"), Distribution("debian", "13"))
    assert [one.fit(DEBIAN_13) for one in (debian, trixie, parse_distribution("debian:12"))] == ["yes", "yes", "no"]
    assert debian.fit(kernel("6.1")) is Fit.UNDECIDED
    assert trixie.fit(KernelIdentity("6.1", None, "debian")) is Fit.UNDECIDED
    for text in ("Debian", "debian 13", "debian:", ":13", "-x"):
        with pytest.raises(KernelSyntaxError):
            parse_distribution(text)


# -- the selection


def entry(
    name: str, *requires: str, after: tuple[str, ...] = (), by: str | None = None, kernels: str = "6.12.*"
) -> Entry:
    return Entry(id=name, kernels=(parse_kernels(kernels),), requires=requires, after=after, replaced_by=by)


def chosen(*entries: Entry) -> Selection:
    return select(Overlay(1, None, entries), DEBIAN_13)


def names(entries: tuple[Entry, ...]) -> str:
    return " ".join(one.id for one in entries)


def test_the_order_of_the_file_stays_where_nothing_orders() -> None:
    assert names(chosen(entry("c"), entry("a"), entry("b")).chosen) == "c a b"


def test_what_is_required_comes_first() -> None:
    assert names(chosen(entry("a", "c"), entry("b"), entry("c", "d"), entry("d")).chosen) == "b d c a"
    assert names(chosen(entry("a", after=("b",)), entry("b"), entry("c")).chosen) == "b a c"


def test_after_does_not_require() -> None:
    done = chosen(entry("a", after=("b",)), entry("b", kernels="5.10.*"))
    assert names(done.chosen) == "a"
    assert done.blocked == ()


def test_what_requires_something_that_is_not_for_the_kernel_is_left_out_with_all_that_requires_it() -> None:
    done = chosen(entry("a", "b"), entry("b", "c"), entry("c", kernels="5.10.*"), entry("d"))
    assert names(done.chosen) == "d"
    assert {(one.entry.id, one.reason) for one in done.blocked} == {
        ("b", "requires c, which is not for this kernel"),
        ("a", "requires b, which cannot be applied"),
    }


def test_what_is_replaced_is_left_out_and_its_replacement_stands_for_it() -> None:
    done = chosen(entry("a", by="b"), entry("b", by="c"), entry("c"), entry("d", "a"))
    assert names(done.chosen) == "c d"
    assert [(one.entry.id, one.reason) for one in done.replaced] == [("a", "replaced by c"), ("b", "replaced by c")]
    assert names(with_required(done.chosen[1], done)) == "c d"


def test_a_replacement_for_other_kernels_replaces_nothing() -> None:
    done = chosen(entry("a", by="b"), entry("b", kernels="6.13.*"))
    assert names(done.chosen) == "a"
    assert done.replaced == ()


def test_a_replacement_that_is_blocked_replaces_nothing() -> None:
    done = chosen(entry("a", by="b"), entry("b", "c"), entry("c", kernels="6.13.*"))
    assert names(done.chosen) == "a"
    assert [one.entry.id for one in done.blocked] == ["b"]


def test_a_replacement_satisfies_who_requires_what_is_not_for_the_kernel() -> None:
    assert names(chosen(entry("a", "old"), entry("old", by="new", kernels="6.1.*"), entry("new")).chosen) == "new a"


def test_what_cannot_be_told_is_undecided_and_never_dropped() -> None:
    overlay = Overlay(
        1, None, (entry("a", kernels=">=6.1.100"), entry("b", kernels="6.12.*"), entry("c", kernels="6.1.*"))
    )
    done = select(overlay, KernelIdentity("6.1.0-49-amd64", None, "debian", "12"))
    assert names(done.chosen) == "c"
    assert [(one.entry.id, one.reason) for one in done.undecided] == [
        ("a", "the upstream version of 6.1.0-49-amd64 is not known")
    ]
    somewhere = Entry(id="d", kernels=(parse_kernels("6.12.*"),), distributions=(Distribution("debian"),))
    done = select(Overlay(1, None, (somewhere,)), kernel("6.12.1"))
    assert [(one.entry.id, one.reason) for one in done.undecided] == [("d", "the distribution of 6.12.1 is not known")]


def test_a_circle_that_replacements_make_is_refused() -> None:
    with pytest.raises(OverlayRejectedError, match=r"a, c"):
        chosen(entry("a", "b"), entry("b", by="c"), entry("c", "a"))


def test_what_one_needs_is_itself_and_all_that_it_requires() -> None:
    done = chosen(entry("a"), entry("b", "a"), entry("c"), entry("d", "b", after=("c",)))
    assert names(with_required(done.chosen[-1], done)) == "a b d"


def test_circles() -> None:
    assert find_cycle({"a": ["b"], "b": ["c"], "c": []}) is None
    cycle = find_cycle({"a": ["b"], "b": ["c"], "c": ["b"]})
    assert cycle in {("b", "c", "b"), ("c", "b", "c")}
    assert ordered([entry("a", "a")])[0].id == "a"


def test_diamonds_in_any_number_end_soon() -> None:
    entries = [entry(f"e{n}", f"e{n + 1}", f"e{n + 2}") for n in range(1000)] + [entry("e1000"), entry("e1001")]
    assert names(chosen(*entries).chosen).startswith("e1000 e1001 e999 ")
