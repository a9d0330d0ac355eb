"""One message to a service manager, by the protocol of sd_notify(3). It never fails and never waits: whether anybody
listens is no concern of a pod's."""

from __future__ import annotations

import os
from _socket import AF_UNIX, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_DGRAM
from _socket import socket as Socket  # noqa: N812

_ADDRESS = 107
"""Bytes of an address (unix(7))."""


def send(address: str, text: str) -> bool:
    """Send the lines `text` to `address`, a path or `@` and an abstract name; whether it was taken."""
    if not address:
        return False
    raw = os.fsencode(address)
    data = text.encode("utf-8", "replace")
    try:
        socket = Socket(AF_UNIX, SOCK_DGRAM, 0)
    except OSError:
        return False
    try:
        if raw[:1] == b"@":
            return _send(socket, data, b"\0" + raw[1:])
        if len(raw) <= _ADDRESS:
            return _send(socket, data, raw)
        place = os.open(os.path.dirname(raw), os.O_PATH | os.O_DIRECTORY)
        try:
            return _send(socket, data, b"/proc/self/fd/%d/%s" % (place, os.path.basename(raw)))
        finally:
            os.close(place)
    except OSError:
        return False
    finally:
        socket.close()


def _send(socket: Socket, data: bytes, address: bytes) -> bool:
    socket.sendto(data, MSG_DONTWAIT | MSG_NOSIGNAL, address)
    return True
