# SPDX-License-Identifier: GPL-2.0-or-later
"""The address of a build server, and how far what comes from there can be relied on.

An address is taken apart here without the library that connects to it, which is slow to read in and not needed by most
commands. So only addresses are taken that leave nothing to interpret: whoever reads them finds the same host in them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from elivepatch.client.state import require_trusted
from elivepatch.errors import InvalidSettingError

if TYPE_CHECKING:
    import ssl
    from ipaddress import IPv4Address, IPv6Address

#: Scheme, host (a name, IPv4, or IPv6 in brackets), port, path: RFC 3986 without user, query, fragment and escapes in
#: the host. Names may have letters of any script.
_ADDRESS = re.compile(
    r"(?P<scheme>https?)://"
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]{2,45})\]|(?P<host>[^\W_](?:[\w.-]{0,252}\w)?\.?))"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?:/[\w.~!$&'()*+,;=:@%/-]*)?",
    re.IGNORECASE,
)
_PORTS = range(1, 65536)
_LABEL = 63  # RFC 1035, 2.3.4


def check_url(url: str) -> str:
    """The address of a server without a slash at its end. Raises InvalidSettingError where it is none."""
    found = _ADDRESS.fullmatch(url)
    try:
        if found is None or (found["port"] and int(found["port"]) not in _PORTS):
            raise ValueError(url)
        labels = (found["host"] or "x").removesuffix(".").split(".")
        if not all(0 < len(label) <= _LABEL for label in labels):
            raise ValueError(url)
        _number(found)
    except ValueError as error:
        raise InvalidSettingError(
            f"{url!r} is not the address of a server.",
            hint="Write http:// or https://, a host, and a port if need be: http://host:5000",
        ) from error
    return url.rstrip("/")


def _number(found: re.Match[str]) -> IPv4Address | IPv6Address | None:
    """The host as a number, None for a name. Raises ValueError for what looks like a number and is none."""
    name: str = found["host"] or ""
    if found["ipv6"] is None and not name.rstrip(".").rpartition(".")[2][:1].isdecimal():
        return None
    import ipaddress

    return ipaddress.IPv6Address(found["ipv6"]) if found["ipv6"] else ipaddress.IPv4Address(name)


def is_loopback(url: str) -> bool:
    """Whether the address is this machine's own. Raises ValueError for what `check_url` does not take."""
    found = _ADDRESS.fullmatch(url)
    if found is None:
        raise ValueError(url)
    number = _number(found)
    return number.is_loopback if number else found["host"].lower() == "localhost"


def is_protected(url: str) -> bool:
    """Whether nobody on the way can change what is transferred."""
    return url.lower().startswith("https://") or is_loopback(url)


def trust(ca_certificate: Path | None) -> ssl.SSLContext:
    """The certificates of the host's own store, or of the given file alone.

    Raises InvalidSettingError, also where somebody else could have written the file.
    """
    import ssl

    try:
        if ca_certificate and ca_certificate.exists() and not ca_certificate.is_file():
            raise OSError("not a file")  # a pipe would be waited for
        context = ssl.create_default_context(cafile=str(ca_certificate) if ca_certificate else None)
    except (OSError, ssl.SSLError) as error:
        raise InvalidSettingError(
            f"The certificates {ca_certificate} cannot be read: {error}.", hint="Name a file of PEM certificates."
        ) from error
    if ca_certificate:  # who can write there decides which server is believed, and what is loaded
        require_trusted(ca_certificate, os.geteuid())
    return context
