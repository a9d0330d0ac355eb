"""Messages to a service manager, by the protocol of sd_notify(3). They never fail, and wait no longer than they
are told to: whether anybody listens is no concern of a pod's."""

from __future__ import annotations

import os
from _socket import AF_UNIX, MSG_NOSIGNAL, SOCK_DGRAM
from _socket import socket as Socket  # noqa: N812
from contextlib import suppress

_ADDRESS = 107
"""Bytes of an address (unix(7))."""


def send(address: str, text: str, patience: float = 0) -> bool:
    """The lines `text` to `address`, a path or `@` and an abstract name; empty for nobody. As `Sender.send`."""
    with Sender(address) as sender:
        return sender.send(text, patience)


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

    def send(self, text: str, patience: float = 0) -> bool:
        """False where there is somebody who has not had room for it within `patience`, in seconds: of a datagram
        socket nobody reads the kernel keeps a few messages only. To say it again is the caller's."""
        if self._socket is None:
            return True
        self._socket.settimeout(patience)
        try:
            self._socket.send(text.encode("utf-8", "replace"), MSG_NOSIGNAL)
        except (BlockingIOError, TimeoutError):
            return False
        except OSError:
            pass
        return True


class Latest:
    """What somebody has to say to `address` who cannot wait: what there is no room for is said with what comes next, of
    each field the last value. A signal's handler may say something while something is being said."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.due: dict[str, str] = {}
        """Fields that were not taken yet."""

    def say(self, text: str = "", patience: float = 0) -> None:
        """`text`: one field a line. `patience` as in `Sender.send`."""
        self.due.update(line.partition("=")[::2] for line in text.splitlines())
        fields = dict(self.due)
        if fields and send(self._address, "\n".join(f"{key}={value}" for key, value in fields.items()), patience):
            for key, value in fields.items():
                if self.due.get(key) == value:
                    self.due.pop(key, None)


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
