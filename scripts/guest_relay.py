# SPDX-License-Identifier: GPL-2.0-or-later
"""Joins standard input and output, a socket that QEMU gives, with a port of this machine's loopback.

QEMU starts one for each connection that a guest makes. Standard library only, so that it starts in a moment; it is
silent, because its standard error is the guest's connection too.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys


def join(guest: socket.socket, server: socket.socket) -> None:
    """Pass on bytes both ways until the server has said all it has to say, or the guest is gone."""
    other = {guest: server, server: guest}
    with selectors.DefaultSelector() as selector:
        for side in other:
            selector.register(side, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                side = guest if key.fileobj is guest else server
                data = side.recv(65536)
                if data:
                    other[side].sendall(data)
                elif side is server:
                    return
                else:  # the guest may close its half and still listen
                    selector.unregister(guest)
                    server.shutdown(socket.SHUT_WR)


def main() -> None:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as server:
        join(socket.socket(fileno=0), server)


if __name__ == "__main__":
    main()
