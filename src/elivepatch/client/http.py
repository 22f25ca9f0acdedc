# SPDX-License-Identifier: GPL-2.0-or-later
"""The library that speaks HTTP, set up as the client needs it; and what it meets, as errors of ours."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import httpx2

from elivepatch.client.address import is_loopback, trust
from elivepatch.errors import InvalidSettingError, ServerUnavailableError
from elivepatch.version import installed_version

HINT = "Check that elivepatch-server runs there, and the address (-u URL, ELIVEPATCH_URL, or url in client.toml)."
#: Where a proxy is named; the other way of writing each is in small letters.
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
# not to do without TLS: who is on the way could make anybody do that
_NO_TLS = "What answers there does not speak TLS: look at the port, and whether the server has a certificate (-C, -K)."
#: What OpenSSL says of a certificate or of what is no TLS, in part, and what to do.
_TLS_HINTS = (
    ("mismatch", "Its certificate is for another name: write the one that the certificate has into the address."),
    ("expired", "Its certificate is no longer valid by the clock of this host: renew it, or set the clock right."),
    ("not yet valid", "Its certificate is not valid yet by the clock of this host: set the clock right."),
    (
        "certificate",
        "Its certificate is not trusted here: name that of its authority with ca_certificate in client.toml.",
    ),
    ("wrong_version_number", _NO_TLS),
    ("record_layer", _NO_TLS),
)


def open_client(url: str, ca_certificate: Path | None, connect_timeout: float) -> httpx2.Client:
    """A client that follows no redirect and wants nothing compressed. Raises InvalidSettingError."""
    try:
        httpx2.URL(url)
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise InvalidSettingError(
            f"{url!r} is not the address of a server: {error}.", hint="Write the name as it is in the DNS."
        ) from error
    context = trust(ca_certificate)
    try:
        return httpx2.Client(
            timeout=httpx2.Timeout(60, connect=connect_timeout),
            verify=context,
            trust_env=not is_loopback(url),  # no proxy stands between a host and itself
            follow_redirects=False,
            headers={"User-Agent": f"elivepatch/{installed_version()}", "Accept-Encoding": "identity"},
        )
    except (httpx2.InvalidURL, ValueError, ImportError) as error:  # without its words: they may have a password in them
        names = _named_proxies() or "ALL_PROXY"
        raise InvalidSettingError(
            f"The proxy that the environment names ({names}) cannot be used.",
            hint="Write it as http://HOST:PORT (SOCKS is not spoken), or name the server in NO_PROXY.",
        ) from error


class Watch:
    """Cuts the line when an answer does not begin in time, however slowly its first bytes drip in.

    A timeout of the library counts from byte to byte. The line is known from what the library tells of its doings.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def trace(self, name: str, info: Mapping[str, Any]) -> None:  # Any: as the library has it
        """What the library calls (extension ``trace``)."""
        if name.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")

    @contextlib.contextmanager
    def within(self, seconds: float) -> Generator[None]:
        """Cut the line after so many seconds, unless the block has ended."""
        timer = threading.Timer(seconds, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _cut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


def unreachable(url: str, error: Exception) -> ServerUnavailableError:
    """The error for a connection that could not be made, or that broke."""
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx2.TimeoutException):
        reason = "it does not answer in time"
    hint = next((said for part, said in _TLS_HINTS if part in reason.lower()), HINT)
    proxies = "" if is_loopback(url) else _named_proxies()
    if proxies:
        hint += f" The environment names a proxy ({proxies}): look there too."
    return ServerUnavailableError(f"The build server {url} cannot be reached: {reason.rstrip('.')}.", hint=hint)


def _named_proxies() -> str:
    """The variables of the environment that name a proxy, without what is in them."""
    names = (name for known in _PROXIES for name in (known, known.lower()))
    return ", ".join(name for name in names if os.environ.get(name))
