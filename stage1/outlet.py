"""Writing from an event loop to descriptors that may not be ready, without ever waiting for them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from stage1.loop import WRITE, Loop

LIMIT = 65536
"""Bytes that may wait in an outlet before it counts as full."""
_SAFE = 4096
"""What a pipe or terminal that can be written to takes at once (PIPE_BUF of pipe(7); a page on Linux)."""


def own_description(fd: int, flags: int) -> int:
    """A copy of `fd` that does not wait, or -1 when there cannot be one.

    O_NONBLOCK belongs to the open file description, which the caller of rkpy shares with us: setting it there would
    break the shell and whatever else writes to the same terminal. Pipes and terminals can be opened a second time
    through proc(5), which makes a description of its own; of a regular file the position would not be shared then."""
    mode = os.fstat(fd).st_mode
    if not stat.S_ISFIFO(mode) and not os.isatty(fd):
        return -1
    try:
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return -1


class Outlet:
    """A descriptor and what still has to be written to it.

    `write` takes everything, so that nothing is lost; who writes a lot looks at `full` and goes on when `when_room`
    calls back. When nobody reads any more (EPIPE), or the device fails, what is written is dropped from then on."""

    def __init__(self, loop: Loop, fd: int, *, nonblocking: bool, limit: int = LIMIT) -> None:
        """`fd` stays the caller's. `nonblocking` says that O_NONBLOCK is set on it; if not, it is only written to when
        it is ready, and only what it surely takes."""
        self.gone = False
        """Whether writing has failed for good."""
        self.on_gone: Callable[[], None] | None = None
        self.full = False
        self._loop = loop
        self._limit = limit
        self._waiting = bytearray()
        self._watched = False
        self._room: list[Callable[[], None]] = []
        self._empty: list[Callable[[], None]] = []
        self._own = -1 if nonblocking else own_description(fd, os.O_WRONLY)
        self._fd = fd if self._own < 0 else self._own
        self._nonblocking = nonblocking or self._own >= 0

    @property
    def waiting(self) -> int:
        """Bytes that have not been written yet."""
        return len(self._waiting)

    def close(self) -> None:
        """Forget what has not been written."""
        self._stop_watching()
        self._waiting.clear()
        self.gone = True
        self.full = False
        if self._own >= 0:
            os.close(self._own)
            self._own = -1
        self._call_waiting()

    def write(self, data: bytes) -> None:
        if self.gone:
            return
        if self._nonblocking and not self._waiting:
            data = data[self._try(data) :]
        self._waiting += data
        if self.gone or not self._waiting:
            return
        self.full = self.full or len(self._waiting) >= self._limit
        self._watch()

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call once, when this is not full any more."""
        self._room.append(callback)

    def when_empty(self, callback: Callable[[], None]) -> None:
        """Call once, when everything is written or cannot be: at once if that is so."""
        self._empty.append(callback)
        self._call_waiting()

    def _watch(self) -> None:
        if self._watched:
            return
        try:
            self._loop.add(self._fd, WRITE, self._on_ready)
            self._watched = True
        except PermissionError:  # a regular file or the like: always ready
            while self._waiting and not self.gone:
                self._advance()

    def _stop_watching(self) -> None:
        if self._watched:
            self._loop.remove(self._fd)
            self._watched = False

    def _on_ready(self, _events: int) -> None:
        self._advance()
        if not self._waiting:
            self._stop_watching()
        self._call_waiting()

    def _advance(self) -> None:
        count = LIMIT if self._nonblocking else _SAFE
        written = self._try(bytes(self._waiting[:count]))
        del self._waiting[:written]
        if len(self._waiting) <= self._limit // 2:
            self.full = False

    def _try(self, data: bytes) -> int:
        """How much of `data` could be written, or must not be any more."""
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError:
            self._fail()
            return len(data)

    def _fail(self) -> None:
        self.gone = True
        self.full = False
        self._waiting.clear()
        self._stop_watching()
        if self.on_gone is not None:
            self.on_gone()

    def _call_waiting(self) -> None:
        if not self.full or self.gone:
            self._room, calls = [], self._room
            for call in calls:
                call()
        if not self._waiting:
            self._empty, calls = [], self._empty
            for call in calls:
                call()
