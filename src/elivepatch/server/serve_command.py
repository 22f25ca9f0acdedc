# SPDX-License-Identifier: GPL-2.0-or-later
"""Serving over HTTP: ``elivepatch-server serve``, and the same without a subcommand."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click
import uvicorn

from elivepatch.errors import InvalidSettingError, UnavailableError
from elivepatch.job import request_key
from elivepatch.server import service
from elivepatch.server.app import create_app
from elivepatch.server.connections import bounded
from elivepatch.server.jobs.embedded import RUNNER
from elivepatch.server.self_signed import with_certificate
from elivepatch.server.settings import Settings, load

#: Seconds that open connections (event streams above all) get when the server is told to end.
_SHUTDOWN_SECONDS = 3

_log = logging.getLogger(__name__)


@click.command()
@click.option("-f", "--settings", type=click.Path(path_type=Path), metavar="FILE", help="Settings file.")
@click.option("-j", "--parallel", type=int, metavar="N", help="Programs that one build runs at once.")
@click.option("--jobs", type=int, metavar="N", help="Builds that run at once.")
@click.option("-H", "--host", metavar="HOST", help="Address to listen on; 127.0.0.1 by default.")
@click.option("-P", "--port", type=int, metavar="PORT", help="TCP port to listen on; 5000 by default.")
@click.option("-d", "--debug", is_flag=True, default=None, help="Log everything.")
@click.option(
    "-C",
    "--tls-certificate",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="PEM certificate chain, or 'adhoc': one is made.",
)
@click.option("-K", "--tls-key", type=click.Path(path_type=Path), metavar="FILE", help="PEM private key.")
@click.option("--v1/--no-v1", default=None, help="Answer clients of the first version too; off by default.")
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="Database, builds and artifacts.")
@click.pass_obj
def serve(before: dict[str, Any] | None, settings: Path | None, **given: Any) -> None:  # Any: checked by the settings
    """Serve the API over HTTP; the flags override the settings, which docs/operator.md lists."""
    flags = {**(before or {}), **{name: value for name, value in given.items() if value is not None}}
    run(settings, **flags)


def run(file: Path | None = None, **overrides: Any) -> None:  # Any: checked by the settings
    """Serve until a signal says to end. Raises what `settings.load` and `service.opened` raise."""
    settings = load(file, **overrides)
    logging.basicConfig(
        level=logging.DEBUG if settings.debug else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    serve_settings(settings)


def serve_settings(
    settings: Settings, *, runner: Sequence[str] = RUNNER, key: service.KeyFunction = request_key
) -> None:
    """Serve until SIGTERM or SIGINT. ``runner`` is the program of a build and ``key`` gives a request's key."""
    with _listen(settings) as listening, service.opened(settings, runner=runner, key=key) as opened:
        settings = with_certificate(settings)
        _check_certificate(settings)
        host, port = listening.getsockname()[:2]
        if not _loopback(host):
            _log.warning(
                "Listening on %s: whoever reaches it may ask for builds, see all builds and cancel them. "
                "Let only the hosts that need it through, or put a proxy that asks who they are in front of it.",
                host,
            )
        scheme = "https" if settings.tls_certificate else "http"
        shown = f"[{host}]" if ":" in host else host
        _log.info("Serving on %s://%s:%d, data in '%s'.", scheme, shown, port, settings.data)
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(opened),
                http=bounded(settings.upload_seconds),
                log_config=None,
                access_log=settings.debug,
                server_header=False,
                proxy_headers=False,
                lifespan="off",
                ssl_certfile=settings.tls_certificate,
                ssl_keyfile=settings.tls_key,
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
                h11_max_incomplete_event_size=32 * 1024,
            )
        )
        # uvicorn raises the signal again once it has ended; by then it has done its work.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _ignore)
        server.run(sockets=[listening])


def _check_certificate(settings: Settings) -> None:
    """Raise InvalidSettingError for a certificate and a key that HTTPS cannot be served with."""
    if settings.tls_certificate is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password=_no_passphrase)
    except OSError as error:  # SSLError is one
        raise InvalidSettingError(
            f"Settings 'tls_certificate' and 'tls_key' cannot be used: {error}",
            hint="Both are PEM files that the server's user may read; the key is that of the certificate.",
        ) from error


def _no_passphrase() -> str:
    """Asked for by OpenSSL, which would otherwise ask on the terminal, where a service has nobody."""
    raise InvalidSettingError(
        "The private key that 'tls_key' names is protected by a passphrase.",
        hint="Give the server one that is not, which only its user may read: openssl pkey -in KEY -out NEW",
    )


def _ignore(_signal: int, _frame: FrameType | None) -> None:
    return


def _listen(settings: Settings) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # Named as TCP: asyncio turns off Nagle's delay (40 ms on each answer) only for a socket that says what it is.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((str(address[0]), int(address[1])))
            listening.listen(1024)
        except BaseException:
            listening.close()
            raise
        return listening
    except (OSError, UnicodeError) as error:
        raise UnavailableError(
            f"Cannot listen on '{settings.host}', port {settings.port}: {error}.",
            hint="Settings 'host' and 'port' (-H, -P) say where; perhaps another server listens there already.",
        ) from error


def _loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
