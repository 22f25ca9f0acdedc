# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses of servers: which are taken, and that nobody reads another host in them."""

from __future__ import annotations

import contextlib
import ipaddress

import httpx2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from elivepatch.client.address import check_url, is_loopback, is_protected
from elivepatch.errors import InvalidSettingError


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "host:5000",
            "http://",
            "ftp://x",
            "http://u:p@h",
            "http://h?x=1",
            "http://h#f",
            "http://[::1",
            "http:// x",
        ),
        *("http://h:0", "http://h:65536", "http://h:x", "http://-h", "http://h\n", "//h", "http:h", "http://h\\@x"),
        *(
            "http://127.1",
            "http://0x7f.0.0.1",
            "http://1.2.3.4.5",
            "http://local%68ost",
            "http://[1]",
            "http://[1.2.3.4]",
        ),
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidSettingError):
        check_url(url)


@given(st.from_regex(r"https?://[A-Za-z0-9.:/@\[\]%_-]{1,24}", fullmatch=True))
@example("http://[::1]:80/x")
@example("https://LocalHost")
def test_an_address_that_is_taken_has_the_same_host_for_the_library_that_connects(url: str) -> None:
    try:
        check_url(url)
        read = httpx2.URL(url)
    except (InvalidSettingError, httpx2.InvalidURL):
        return
    assert not read.userinfo
    assert is_protected(url) == (read.scheme == "https" or _is_loopback(read.host))


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def test_which_addresses_are_protected() -> None:
    assert check_url("https://h/prefix/") == "https://h/prefix"
    assert is_loopback("http://127.0.0.2:1")
    assert is_loopback("http://[::1]:1")
    assert is_loopback("http://localhost")
    assert is_loopback("HTTP://LocalHost:80/x")
    assert not is_loopback("http://localhost.example")
    assert is_protected("https://h")
    assert not is_protected("http://10.0.2.2:5000")
