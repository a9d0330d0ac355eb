"""One message to a service manager, by the protocol of sd_notify(3). It never fails and never waits: whether anybody
listens is no concern of a pod's."""

from __future__ import annotations

import os
import struct
from _socket import AF_UNIX, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_DGRAM, SOL_SOCKET
from _socket import socket as Socket  # noqa: N812

SCM_CREDENTIALS = 2
"""linux/socket.h."""
_ADDRESS = 107
"""Bytes of an address (unix(7))."""


def send(address: str, text: str, *, pid: int = 0) -> bool:
    """Send the lines `text` to `address`, a path or `@` and an abstract name; whether it was taken. `pid`: a process
    that sends it in name, which takes CAP_SYS_ADMIN (unix(7), SCM_CREDENTIALS); it is sent plainly where that fails."""
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
            return _send(socket, data, b"\0" + raw[1:], pid)
        if len(raw) <= _ADDRESS:
            return _send(socket, data, raw, pid)
        place = os.open(os.path.dirname(raw), os.O_PATH | os.O_DIRECTORY)
        try:
            return _send(socket, data, b"/proc/self/fd/%d/%s" % (place, os.path.basename(raw)), pid)
        finally:
            os.close(place)
    except OSError:
        return False
    finally:
        socket.close()


def _send(socket: Socket, data: bytes, address: bytes, pid: int) -> bool:
    flags = MSG_DONTWAIT | MSG_NOSIGNAL
    if pid and pid != os.getpid():
        credentials = struct.pack("3i", pid, os.geteuid(), os.getegid())
        try:
            socket.sendmsg([data], [(SOL_SOCKET, SCM_CREDENTIALS, credentials)], flags, address)
            return True
        except OSError:
            pass
    socket.sendto(data, flags, address)
    return True
