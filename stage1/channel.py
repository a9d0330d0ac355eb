"""Messages of a line of text and descriptors, over a Unix socket that keeps their borders (unix(7), SOCK_SEQPACKET)."""

from __future__ import annotations

import fcntl
import os
import struct
from _socket import AF_UNIX, CMSG_SPACE, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET, socketpair
from _socket import socket as Socket  # noqa: N812
from collections.abc import Iterable

MAX_TEXT = 65536
"""Bytes of a message's text; what may be longer travels in a memory file."""
MAX_FDS = 253
"""Descriptors of one message: the kernel's SCM_MAX_FD."""


class Channel:
    """One end. Its descriptor is close-on-exec."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, text: str, fds: Iterable[int] = ()) -> None:
        """BrokenPipeError or ConnectionResetError when the other end is gone."""
        raw = text.encode("utf-8", "surrogateescape")[:MAX_TEXT]
        packed = b"".join(struct.pack("i", fd) for fd in fds)
        self._socket.sendmsg([raw], [(SOL_SOCKET, SCM_RIGHTS, packed)] if packed else [])

    def receive(self) -> tuple[str, list[int]]:
        """The next message; empty when the other end is gone. Descriptors are the caller's, and close-on-exec."""
        try:
            raw, extra, _, _ = self._received()
        except ConnectionResetError:
            # The other end has closed without reading all of ours. It is said once, before what it had to say itself.
            raw, extra, _, _ = self._received()
        fds = [fd for level, kind, data in extra if (level, kind) == (SOL_SOCKET, SCM_RIGHTS) for fd in _unpack(data)]
        return raw.decode("utf-8", "surrogateescape"), fds

    def _received(self) -> tuple[bytes, list[tuple[int, int, bytes]], int, object]:
        return self._socket.recvmsg(MAX_TEXT, CMSG_SPACE(MAX_FDS * 4), MSG_CMSG_CLOEXEC)

    def above(self, first: int) -> Channel:
        """The same end at a descriptor not below `first`; this one is closed."""
        moved = Channel(Socket(fileno=fcntl.fcntl(self.fileno(), fcntl.F_DUPFD_CLOEXEC, first)))
        self.close()
        return moved

    def close(self) -> None:
        self._socket.close()


def _unpack(data: bytes) -> tuple[int, ...]:
    whole = len(data) // 4
    return struct.unpack(f"{whole}i", data[: whole * 4])


def pair() -> tuple[Channel, Channel]:
    """Two connected ends."""
    one, other = socketpair(AF_UNIX, SOCK_SEQPACKET, 0)
    return Channel(one), Channel(other)


def memory_file(data: bytes) -> int:
    """A descriptor of a file in memory that holds `data` (memfd_create(2)), for what does not fit a message."""
    fd = os.memfd_create("rkpy")
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    return fd


def read_memory_file(fd: int) -> bytes:
    """The content of a `memory_file`; closes it."""
    with open(fd, "rb") as file:
        file.seek(0)
        return file.read()
