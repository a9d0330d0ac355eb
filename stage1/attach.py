"""Attaching to the streams of an app that runs: the client's side of `AppStreams.attach`."""

from __future__ import annotations

import _socket
import os
import signal
from collections.abc import Callable, Sequence

from common.errors import UsageError
from stage1.loop import READ, Loop
from stage1.outlet import LIMIT, Outlet
from stage1.streams import CallerInput

STREAMS = ("stdin", "stdout", "stderr")
TERMINAL = ("tty-in", "tty-out")
LIST, AUTO, TTY = "list", "auto", "tty"


def choose(mode: str, available: Sequence[str]) -> tuple[str, ...]:
    """The endpoints that `--mode` names, of those an app has (`AppStreams.endpoints`). Raises UsageError."""
    wanted = set(available if mode == AUTO else mode.split(","))
    wanted = (wanted - {TTY}) | set(TERMINAL) if TTY in wanted else wanted
    unknown = wanted - {*STREAMS, *TERMINAL}
    if unknown:
        words = ", ".join((AUTO, LIST, TTY, *TERMINAL, *STREAMS))
        raise UsageError(f'invalid --mode "{mode}"', hint=f"there is: {words}")
    if wanted & set(STREAMS) and wanted & set(TERMINAL):
        if mode != AUTO:
            raise UsageError("a terminal and single streams cannot be attached to at the same time")
        wanted &= set(TERMINAL)
    if not wanted or not wanted <= set(available):
        what = f"no {' and no '.join(sorted(wanted - set(available)))} " if wanted else "nothing "
        raise UsageError(f"the app has {what}to attach to", hint=f"there is: {', '.join(available) or 'nothing'}")
    if wanted == set(TERMINAL):
        return (TTY,)
    return tuple(name for name in (*STREAMS, *TERMINAL) if name in wanted)


def attach(
    names: Sequence[str],
    connect: Callable[[Sequence[str], Sequence[int]], None],
    *,
    resize: Callable[[int, int], None],
    fds: tuple[int, int, int] = (0, 1, 2),
) -> None:
    """Attach the caller's `fds` to the endpoints `names` (from `choose`), until the app's side ends, nobody reads our
    output any more, a terminal is left with its keys, or SIGTERM, SIGHUP or SIGINT comes.

    `connect` is to hand one socket for each name to the monitor, which calls `AppStreams.attach` with them; it does not
    close them. `resize` tells the monitor rows and columns of our terminal (`AppStreams.resize`)."""
    near, far = pairs(len(names))
    try:
        connect(names, far)
    finally:
        for fd in far:
            os.close(fd)
    session = Session(fds, resize)
    try:
        for name, fd in zip(names, near, strict=True):
            session.add(name, fd)
        session.loop.run()
    finally:
        session.close()


def pairs(count: int) -> tuple[list[int], list[int]]:
    """Descriptors of so many pairs of stream sockets: our ends, and the others."""
    near, far = [], []
    for _ in range(count):
        ours, theirs = _socket.socketpair()
        near.append(ours.detach())
        far.append(theirs.detach())
    return near, far


class Session:
    """The caller's streams, connected. `loop` is to be run, and stops when the streams have ended, unless it is to
    `stay`, or at a signal that ends."""

    def __init__(self, fds: tuple[int, int, int], resize: Callable[[int, int], None], *, stay: bool = False) -> None:
        self.loop = Loop()
        self.left = False
        """Whether the keys were pressed by which a terminal is left."""
        self._stay = stay
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            self.loop.on_signal(number, self.loop.stop)
        self._fds = fds
        self._resize = resize
        self._open: set[int] = set()
        self._close: list[Callable[[], None]] = []

    def close(self) -> None:
        for close in reversed(self._close):
            close()
        self.loop.close()

    def finish(self) -> None:
        """Show what is still to come on the streams, until they have ended."""
        self._stay = False
        if self._open:
            self.loop.run()

    def add(self, name: str, fd: int) -> None:
        """Connect one of the names that `choose` has with the socket `fd`, owned from now on."""
        self._close.append(lambda: os.close(fd))
        os.set_blocking(fd, False)
        if name in ("stdin", TTY, "tty-in"):
            self._send(name, fd)
        self._receive(fd, self._fds[2 if name == "stderr" else 1])

    def _receive(self, fd: int, to: int) -> None:
        """Show what comes, and notice the end. From an endpoint that is input only nothing comes but that."""
        outlet = Outlet(self.loop, to, nonblocking=False)
        outlet.on_gone = self._leave
        self._close.append(outlet.close)
        self._open.add(fd)

        def on_ready(_events: int = 0) -> None:
            try:
                data = os.read(fd, LIMIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            outlet.write(data)
            if not data:
                self.loop.remove(fd)
                outlet.when_empty(lambda: self._ended(fd))
            elif outlet.full:
                self.loop.remove(fd)
                outlet.when_room(lambda: self.loop.add(fd, READ, on_ready))

        self.loop.add(fd, READ, on_ready)

    def _ended(self, fd: int) -> None:
        self._open.discard(fd)
        if not self._open:
            self._leave()

    def _leave(self) -> None:
        if not self._stay:
            self.loop.stop()

    def _leave_by_key(self) -> None:
        self.left = True
        self.loop.stop()

    def _send(self, name: str, fd: int) -> None:
        writing = os.dup(fd)  # a number for each direction
        outlet = Outlet(self.loop, writing, nonblocking=True)
        self._close += [lambda: os.close(writing), outlet.close]
        if name == "stdin" or not os.isatty(self._fds[0]):
            # The end of our input is the end of the app's, but a terminal has none: its app may still have to answer.
            end = (lambda: outlet.when_empty(lambda: _end(writing))) if name == "stdin" else (lambda: None)
            self._close.append(CallerInput(self.loop, self._fds[0], outlet, end).close)
            return
        from stage1.terminal import Keyboard

        keyboard = Keyboard(self.loop, lambda: outlet, resize=self._resize, leave=self._leave_by_key, fd=self._fds[0])
        self._close.append(keyboard.close)


def _end(fd: int) -> None:
    """shutdown(2): no more comes from us."""
    socket = _socket.socket(fileno=os.dup(fd))
    try:
        socket.shutdown(_socket.SHUT_WR)
    except OSError:  # the other side has gone already
        pass
    finally:
        socket.close()
