# SPDX-License-Identifier: GPL-2.0-or-later
"""The address of a build server, and how far what comes from there can be relied on."""

from __future__ import annotations

import ipaddress
import re
import ssl
from pathlib import Path

import httpx2

from elivepatch.errors import InvalidSettingError


def check_url(url: str) -> str:
    """The address of a server without a slash at its end. Raises InvalidSettingError where it is none."""
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError) as error:
        raise InvalidSettingError(
            f"{url!r} is not an address: {error}.", hint="For instance http://host:5000"
        ) from error
    if (
        re.search(r"\s", url)
        or parsed.scheme not in {"http", "https"}
        or not parsed.host
        or parsed.query
        or parsed.fragment
        or parsed.userinfo
    ):
        raise InvalidSettingError(
            f"{url!r} is not the address of a server.", hint="Write http:// or https://, a host, and a port if need be."
        )
    return url.rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether the address is this machine's own."""
    host = httpx2.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_protected(url: str) -> bool:
    """Whether nobody on the way can change what is transferred."""
    return httpx2.URL(url).scheme == "https" or is_loopback(url)


def trust(ca_certificate: Path | None) -> ssl.SSLContext:
    """The certificates of the host's own store, or of the given file alone. Raises InvalidSettingError."""
    try:
        return ssl.create_default_context(cafile=str(ca_certificate) if ca_certificate else None)
    except (OSError, ssl.SSLError) as error:
        raise InvalidSettingError(
            f"The certificates {ca_certificate} cannot be read: {error}.", hint="Name a file of PEM certificates."
        ) from error
