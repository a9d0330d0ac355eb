"""Entries for the journal, in its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): what the apps write, and what
rkpy does. Without a journal nothing happens here."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
import termios
import time
from _socket import AF_UNIX, MSG_DONTWAIT, SCM_CREDENTIALS, SCM_RIGHTS, SOCK_DGRAM, SOL_SOCKET
from _socket import socket as Socket  # noqa: N812
from collections.abc import Iterable, Mapping

SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "rkpy"
"""SYSLOG_IDENTIFIER of what rkpy itself has to say."""

FETCHED = "e2a8d1fedb81f50236a95c48863fdd98"
VERIFIED = "2958799a452a2d7a383eed94e378387e"
REFUSED = "a854105f2fbe452e97e0b5093e05ddc8"
PREPARED = "f2edfb2bd7d78c15d0d6fcbc16bf8ffa"
STARTED = "30038c9677816aaea91a75170ece8dfc"
EXITED = "8f29c52d0f2cc869dcdef970550ee039"
OOM = "64194bfb7538baca63d2cc2b1bf49410"
COLLECTED = "0c591247bd671e1137c9087ab4f02468"
REMOVED = "2592646d77ad47b69c64f2a964dfccb2"
"""MESSAGE_ID of each kind of event."""
EVENTS = frozenset((FETCHED, VERIFIED, REFUSED, REMOVED, PREPARED, STARTED, EXITED, OOM, COLLECTED))
PATIENCE = 10.0
"""Seconds that the journal may take to look this process up."""
_ROOM = 1.0
"""Seconds that it may have no room for an event: its queue is that of all who write to it."""
_INTERVAL = 0.0005
WARNING, NOTICE, INFO = 4, 5, 6
"""Of the priorities of syslog(3)."""

_stuck = False
"""Whether the journal has just had no room for an event of this process for as long as it may."""
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
"""What the journal requires of a file in memory, so that it cannot change any more."""


def field(name: str, value: bytes) -> bytes:
    """One field, as a line of text or, with a line's end in its value, led by its length."""
    if b"\n" in value:
        return b"%b\n%b%b\n" % (name.encode("ascii"), struct.pack("<Q", len(value)), value)
    return b"%b=%b\n" % (name.encode("ascii"), value)


def entry(fields: Iterable[tuple[str, str]]) -> bytes:
    """An entry, or a part of one: parts are put together by concatenation. Fields without a value are left out."""
    return b"".join(field(name, value.encode("utf-8", "surrogateescape")) for name, value in fields if value)


def send(socket: Socket, data: bytes) -> None:
    """Send an entry by a connected socket, without waiting. Raises BlockingIOError while there is no room, any other
    OSError when there is nobody to send it to."""
    try:
        socket.send(data, MSG_DONTWAIT)
    except OSError as error:
        if error.errno != errno.EMSGSIZE:
            raise
        _send_file(socket, data)


def _send_file(socket: Socket, data: bytes) -> None:
    """What is larger than a datagram may be goes in a sealed file in memory (memfd_create(2))."""
    fd = os.memfd_create("rkpy-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        socket.sendmsg([b""], [(SOL_SOCKET, SCM_RIGHTS, struct.pack("i", fd))], MSG_DONTWAIT)
    finally:
        os.close(fd)


def connect(path: str = SOCKET) -> Socket:
    """A socket connected to the journal: one that is not connected cannot be waited for. Raises OSError."""
    socket = Socket(AF_UNIX, SOCK_DGRAM, 0)
    try:
        socket.connect(path)
    except OSError:
        socket.close()
        raise
    return socket


def forget_unit(socket: Socket) -> None:
    """Make the journal look this process up anew: what it knows of a process it believes for a second, and until now
    this one may have been in another unit. It does so when a sender's group is another; an entry without fields leaves
    no trace."""
    credentials = struct.pack("3i", os.getpid(), os.geteuid(), os.getegid() ^ 1)
    try:
        socket.sendmsg([b"\n"], [(SOL_SOCKET, SCM_CREDENTIALS, credentials)], MSG_DONTWAIT)
    except OSError:
        pass  # It is a matter of a second, and only root may.


def is_there(path: str = SOCKET) -> bool:
    """Whether somebody listens there."""
    try:
        connect(path).close()
    except OSError:
        return False
    return True


def event(
    message_id: str,
    message: str,
    fields: Mapping[str, str],
    *,
    priority: int = INFO,
    moved: bool = False,
    known: bool = False,
    path: str = SOCKET,
) -> None:
    """Record something rkpy did. Never fails. `moved`: this process may have been in another unit when it did so
    before. Waits briefly while the journal has no room, but for one that takes nothing only once; and, at most for
    PATIENCE, if this process has to be `known` when it says more: it may be over by the time the journal looks, which
    has no unit for it then."""
    global _stuck
    try:
        socket = connect(path)
    except OSError:
        return
    end = time.monotonic() + (PATIENCE if known else 0 if _stuck else _ROOM)
    try:
        if moved:
            _wait_until(end, socket)
            forget_unit(socket)
        _wait_until(end, socket)
        send(socket, event_entry(message_id, message, fields, priority))
        _stuck = False
        if known:
            # When it takes this, which leaves no trace, it is done with what came before.
            _wait_until(end, socket)
            socket.send(b"\n")
            _await_reader(socket, end)
    except (BlockingIOError, TimeoutError):
        _stuck = True
    except OSError:
        pass
    finally:
        socket.close()


def _wait_until(end: float, socket: Socket) -> None:
    """Have what is sent by `socket` wait for room."""
    socket.settimeout(max(0.0, end - time.monotonic()))


def _await_reader(socket: Socket, end: float) -> None:
    while unread(socket) and time.monotonic() < end:
        time.sleep(_INTERVAL)


def unread(socket: Socket) -> int:
    """Bytes that were sent and have not been received (SIOCOUTQ in unix(7)). Raises OSError."""
    return int.from_bytes(fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def how_ended(status: int, number: int) -> str:
    """How an app ended, in words: its exit status, or the signal `number` unless that is 0."""
    return f"was ended by signal {number}" if number else f"exited with status {status}"


def event_entry(message_id: str, message: str, fields: Mapping[str, str], priority: int = INFO) -> bytes:
    head = {"MESSAGE_ID": message_id, "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": IDENTIFIER, "MESSAGE": message}
    return entry((*head.items(), *fields.items()))
