# SPDX-License-Identifier: GPL-2.0-or-later
"""A certificate of the server's own, for ``-C adhoc``: nobody vouches for it, but it can be named to clients."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import logging
import os
import socket
import tempfile
from pathlib import Path

from elivepatch import process
from elivepatch.server.settings import ADHOC, Settings

_DAYS = 3650
_SECONDS = 120.0

_log = logging.getLogger(__name__)


def with_certificate(settings: Settings) -> Settings:
    """The settings with the files of a certificate where ``tls_certificate`` asks for one to be made.

    It is made once, in ``data/tls``, and made anew when it has expired or the server listens elsewhere. Raises
    ToolUnavailableError where openssl is not installed.
    """
    if settings.tls_certificate != ADHOC:
        return settings
    names = _names(settings.host)
    place = settings.data / "tls"
    place.mkdir(mode=0o700, exist_ok=True)
    stem = hashlib.sha256(",".join(names).encode()).hexdigest()[:16]
    certificate, key = place / f"{stem}.pem", place / f"{stem}.key"
    if not (certificate.is_file() and key.is_file() and _is_valid(certificate)):
        _make(certificate, key, names)
    _log.warning("The certificate is this server's own. Clients trust it with: ca_certificate = %s", certificate)
    return settings.model_copy(update={"tls_certificate": certificate, "tls_key": key})


def _names(host: str) -> list[str]:
    """What clients may call the server, as a certificate's alternative names."""
    found = ["DNS:localhost", "IP:127.0.0.1", "IP:::1", f"DNS:{socket.gethostname()}"]
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        return found if address.is_unspecified else list(dict.fromkeys([*found, f"IP:{address}"]))
    return list(dict.fromkeys([*found, f"DNS:{host}"]))


def _openssl() -> Path:
    return process.find_program("openssl", hint="Install openssl, or name files with -C and -K.")


def _is_valid(certificate: Path) -> bool:
    argv = [_openssl(), "x509", "-checkend", "86400", "-noout", "-in", certificate]
    return process.run(argv, timeout=_SECONDS, check=False).returncode == 0


def _make(certificate: Path, key: Path, names: list[str]) -> None:
    with tempfile.TemporaryDirectory(dir=certificate.parent, prefix=".making.") as aside:
        made, secret = Path(aside) / "pem", Path(aside) / "key"
        os.close(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        argv: list[str | Path] = [_openssl(), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        argv += ["-nodes", "-days", str(_DAYS), "-subj", "/CN=elivepatch-server", "-addext"]
        argv += [f"subjectAltName={','.join(names)}", "-keyout", secret, "-out", made]
        process.run(argv, timeout=_SECONDS)
        secret.replace(key)
        made.replace(certificate)
