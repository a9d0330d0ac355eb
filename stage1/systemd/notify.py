"""Messages to a service manager, by the protocol of sd_notify(3). They never fail and never wait: whether anybody
listens is no concern of a pod's."""

from __future__ import annotations

import os
from _socket import AF_UNIX, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_DGRAM
from _socket import socket as Socket  # noqa: N812
from contextlib import suppress

_ADDRESS = 107
"""Bytes of an address (unix(7))."""


def send(address: str, text: str) -> None:
    """The lines `text` to `address`, a path or `@` and an abstract name; empty for nobody."""
    with Sender(address) as sender:
        sender.send(text)


class Sender:
    """Reaches `address` also where its path does not lead there any more."""

    def __init__(self, address: str) -> None:
        self._socket: Socket | None = None
        if address:
            with suppress(OSError):
                self._socket = Socket(AF_UNIX, SOCK_DGRAM, 0)
                _connect(self._socket, os.fsencode(address))

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()

    def send(self, text: str) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.send(text.encode("utf-8", "replace"), MSG_DONTWAIT | MSG_NOSIGNAL)


def _connect(socket: Socket, address: bytes) -> None:
    if address[:1] == b"@":
        socket.connect(b"\0" + address[1:])
    elif len(address) <= _ADDRESS:
        socket.connect(address)
    else:
        place = os.open(os.path.dirname(address), os.O_PATH | os.O_DIRECTORY)
        try:
            socket.connect(b"/proc/self/fd/%d/%s" % (place, os.path.basename(address)))
        finally:
            os.close(place)
