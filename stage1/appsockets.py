"""Sockets on which the monitor listens to an app, in place of the host's own: it hears every message first.

They are datagram sockets in `sockets/APP/` of the pod directory, which the app has as /run/systemd (`TARGET`). An app
that knows systemd finds there what it looks for (sd_notify(3), systemd-journald.service(8)), and nothing of the host's.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import struct
from _socket import AF_UNIX, CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_DONTWAIT, SCM_RIGHTS, SHUT_RD, SOCK_DGRAM, SOL_SOCKET
from _socket import socket as Socket  # noqa: N812
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from common import syscalls
from common.errors import LaunchError, reason
from stage1 import poddir
from stage1.loop import Loop

TARGET = "/run/systemd"
"""Where an app has its directory of sockets."""
NOTIFY, JOURNAL, SYSLOG = "notify", "journal/socket", "journal/dev-log"
LARGEST = 1 << 18
"""Bytes of a message that are read; the rest is cut off."""
_MAX_FDS = 253
"""As many as a message may have (SCM_MAX_FD, unix(7)): what there is no room for the kernel closes, in our name."""
_AT_ONCE = 64
"""Messages that are taken before others have their turn."""
_HELD = 64
"""Descriptors that are closed together."""
_PAUSE = 1.0
"""Seconds until the next attempt where there could be no process for that."""

_PENDING = 1 << 21
"""What of messages delivered is kept for a socket that is paused (`weight`)."""
_EACH = 256
"""Bytes that keeping a message takes beside it."""
_listening: dict[str, AppSocket] = {}
"""All there are, by their paths."""

Receive = Callable[[bytes, list[int]], None]
"""Gets a message and its descriptors, which it takes out of the list when it keeps them."""


def directory(pod: str, app: str) -> str:
    """Of the sockets of an app, in the pod directory."""
    return f"{pod}/sockets/{app}"


def weight(data: bytes) -> int:
    """What it takes to keep a message, in bytes."""
    return len(data) + _EACH


class AppSocket:
    """One socket. Everybody in the app may write to it, and a message that is too much is never waited for."""

    def __init__(self, loop: Loop, pod: str, app: str, name: str, receive: Receive) -> None:
        """Raises LaunchError."""
        self._loop = loop
        self._receive = receive
        self._held: list[int] = []
        """Descriptors that are still to be closed."""
        self._stuck = False
        """Whether nothing is taken because they cannot be."""
        self._socket = Socket(AF_UNIX, SOCK_DGRAM, 0)
        path = f"{directory(pod, app)}/{name}"
        try:
            poddir.make_place(directory(pod, app))
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
        self._delivered: list[tuple[bytes, Callable[[], None]]] = []
        self._kept = 0
        self._path = path
        _listening[path] = self
        self.resume()

    def deliver(self, data: bytes, done: Callable[[], None]) -> None:
        """Take a message that came another way. While this is paused it is kept, up to a limit. `done` is called when
        it is not kept any more."""
        if self._watched:
            self._receive(data, [])
            done()
        elif self._kept + weight(data) <= _PENDING:
            self._kept += weight(data)
            self._delivered.append((data, done))
        else:
            done()

    def pause(self) -> None:
        """Take nothing for now: who writes waits."""
        self._stuck = False
        if self._watched:
            self._loop.remove(self._socket.fileno())
            self._watched = False

    def resume(self) -> None:
        self._stuck = False
        if not self._watched:
            self._loop.add(self._socket.fileno(), select.EPOLLIN, lambda _events: self._serve())
            self._watched = True
        while self._watched and self._delivered:
            self._take_delivered()

    def _take_delivered(self) -> None:
        data, done = self._delivered.pop(0)
        self._kept -= weight(data)
        self._receive(data, [])
        done()

    def take(self) -> None:
        """Receive what is waiting."""
        while self._delivered:
            self._take_delivered()
        for _ in range(_AT_ONCE):
            if not self._take_one():
                break
        self._let_go()

    def _serve(self) -> None:
        """The same, until it is too much."""
        for _ in range(_AT_ONCE):
            if not (self._watched and self._take_one()):
                break
        if not self._let_go() and self._watched:
            self.pause()
            self._stuck = True
            self._loop.call_later(_PAUSE, self._try_again)

    def _try_again(self) -> None:
        if self._stuck:
            self.resume()
            self._serve()

    def _take_one(self) -> bool:
        """Whether there was a message, and may be another."""
        if len(self._held) >= _HELD and not self._let_go():
            return False
        try:
            data, extra, _, _ = self._socket.recvmsg(LARGEST, CMSG_SPACE(_MAX_FDS * 4), MSG_CMSG_CLOEXEC | MSG_DONTWAIT)
        except OSError:
            return False
        fds = [fd for level, kind, packed in extra if (level, kind) == (SOL_SOCKET, SCM_RIGHTS) for fd in _fds(packed)]
        try:
            self._receive(data, fds)
        finally:
            self._held += fds
        return True

    def _let_go(self) -> bool:
        """Whether the descriptors could be closed that nobody wants."""
        self._held = _close(self._held)
        return not self._held

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        self.pause()
        if _listening.get(self._path) is self:
            del _listening[self._path]
        # With the socket the kernel closes what is under way in it, and that is not to keep us either.
        self._receive = _ignore
        with suppress(OSError):
            self._socket.shutdown(SHUT_RD)
        while self._take_one():
            pass
        while self._delivered:
            self._take_delivered()
        self._let_go()
        self._socket.close()


def deliver(pod: str, app: str, name: str, data: bytes, done: Callable[[], None]) -> None:
    """What was written in a virtual machine to the socket `name` of an app; harmless when nobody listens. `done` is
    called once it has been dealt with."""
    socket = _listening.get(f"{directory(pod, app)}/{name}")
    if socket is None:
        done()
    else:
        socket.deliver(data, done)


def _ignore(_data: bytes, _fds: list[int]) -> None:
    pass


def _close(fds: list[int]) -> list[int]:
    """Close what an app has sent; those that are left are to be closed later.

    Closing the last copy of a descriptor may take as long as whoever made it likes (SO_LINGER in socket(7), also of
    what is under way in a Unix socket): hours in which nobody would serve the pod. It takes no time where a process
    exits, so one does for that."""
    slow = [fd for fd in fds if not _closes_at_once(fd)]
    for fd in fds:
        if fd not in slow:
            os.close(fd)
    if not slow:
        return []
    try:
        ours, theirs = os.pipe2(os.O_CLOEXEC)
    except OSError:
        return slow
    try:
        child = os.fork()
        if child == 0:
            _outlive(ours, slow)
        if os.waitpid(child, 0)[1]:
            return slow
    except OSError:
        return slow
    else:
        for fd in slow:
            os.close(fd)
    finally:
        os.close(ours)
        os.close(theirs)
    return []


def _outlive(ours: int, fds: list[int]) -> NoReturn:
    """A grandchild, whom init reaps, has the descriptors until our caller has closed them, and nothing else of ours."""
    status = 1
    try:
        if os.fork() == 0:
            syscalls.close_all_but((*fds, ours))
            os.read(ours, 1)
        status = 0
    finally:
        os._exit(status)


def _closes_at_once(fd: int) -> bool:
    """A pipe, as BARRIER=1 comes with, or a file in memory, as journal entries do."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    return True


def _fds(packed: bytes) -> tuple[int, ...]:
    whole = len(packed) // 4
    return struct.unpack(f"{whole}i", packed[: whole * 4])
