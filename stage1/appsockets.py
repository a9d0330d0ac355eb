"""Sockets on which the monitor listens to an app, in place of the host's own: it hears every message first.

They are datagram sockets in `sockets/APP/` of the pod directory, which the app has as /run/systemd (`TARGET`). An app
that knows systemd finds there what it looks for (sd_notify(3), systemd-journald.service(8)), and nothing of the host's.
"""

from __future__ import annotations

import os
import select
import struct
from _socket import AF_UNIX, CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_DONTWAIT, SCM_RIGHTS, SOCK_DGRAM, SOL_SOCKET
from _socket import socket as Socket  # noqa: N812
from collections.abc import Callable

from common.errors import LaunchError, reason
from stage1.loop import Loop

TARGET = "/run/systemd"
"""Where an app has its directory of sockets."""
NOTIFY, JOURNAL, SYSLOG = "notify", "journal/socket", "journal/dev-log"
LARGEST = 1 << 18
"""Bytes of a message that are read; the rest is cut off."""
_MAX_FDS = 16
_AT_ONCE = 64
"""Messages that are taken before others have their turn."""

Receive = Callable[[bytes, list[int]], None]
"""Gets a message and its descriptors, which it takes out of the list when it keeps them."""


def directory(pod: str, app: str) -> str:
    """Of the sockets of an app, in the pod directory."""
    return f"{pod}/sockets/{app}"


class AppSocket:
    """One socket. Everybody in the app may write to it, and a message that is too much is never waited for."""

    def __init__(self, loop: Loop, pod: str, app: str, name: str, receive: Receive) -> None:
        """Raises LaunchError."""
        self._loop = loop
        self._receive = receive
        self._socket = Socket(AF_UNIX, SOCK_DGRAM, 0)
        path = f"{directory(pod, app)}/{name}"
        try:
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            if os.path.lexists(path):
                os.unlink(path)
            place = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
            try:
                # The address of a Unix socket has room for 107 bytes (unix(7)).
                self._socket.bind(f"/proc/self/fd/{place}/{os.path.basename(path)}")
            finally:
                os.close(place)
            os.chmod(path, 0o666)  # noqa: S103
        except OSError as error:
            self._socket.close()
            raise LaunchError(f"cannot listen on {path}: {reason(error)}") from error
        self._watched = False
        self.resume()

    def pause(self) -> None:
        """Take nothing for now: who writes waits."""
        if self._watched:
            self._loop.remove(self._socket.fileno())
            self._watched = False

    def resume(self) -> None:
        if not self._watched:
            self._loop.add(self._socket.fileno(), select.EPOLLIN, lambda _events: self.take())
            self._watched = True

    def take(self) -> None:
        """Receive what is waiting."""
        for _ in range(_AT_ONCE):
            try:
                data, extra, _, _ = self._socket.recvmsg(
                    LARGEST, CMSG_SPACE(_MAX_FDS * 4), MSG_CMSG_CLOEXEC | MSG_DONTWAIT
                )
            except OSError:
                return
            fds = [
                fd for level, kind, packed in extra if (level, kind) == (SOL_SOCKET, SCM_RIGHTS) for fd in _fds(packed)
            ]
            try:
                self._receive(data, fds)
            finally:
                for fd in fds:
                    os.close(fd)

    def close(self) -> None:
        self.pause()
        self._socket.close()


def _fds(packed: bytes) -> tuple[int, ...]:
    whole = len(packed) // 4
    return struct.unpack(f"{whole}i", packed[: whole * 4])
