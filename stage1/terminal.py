"""Terminals: the caller's, which is made raw and put right again, and an app's own, a pseudo-terminal (pty(7))."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios
import time
from collections.abc import Callable
from typing import Any, Self

from common.errors import LaunchError, reason
from stage1.loop import HANGUP, READ, Loop
from stage1.outlet import LIMIT, Outlet, own_description

LEAVE_KEY = 0x1D
"""`^]`, three times within a second, leaves (systemd-nspawn(1))."""
LEAVE_COUNT = 3
LEAVE_SECONDS = 1.0
_RETRY = 0.2


class Escape:
    """Finds the keys that leave in what is typed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pressed: list[float] = []

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What of `data` is the app's, and whether to leave. The first two of the three keys are the app's as well:
        nobody knows yet what they will be."""
        if LEAVE_KEY not in data:
            self._pressed.clear()
            return data, False
        now = self._clock()
        for at, key in enumerate(data):
            if key != LEAVE_KEY:
                self._pressed.clear()
                continue
            self._pressed = [*(then for then in self._pressed if now - then <= LEAVE_SECONDS), now]
            if len(self._pressed) == LEAVE_COUNT:
                self._pressed.clear()
                return data[:at], True
        return data, False


class RawMode:
    """The terminal `fd` in raw mode, a context manager: every key is handed on as it is typed, `^C` and `^Z` too.

    SIGTTOU is ignored for as long as the terminal is touched, because it would stop a process in the background that
    puts a terminal right."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._saved: list[Any] = termios.tcgetattr(fd)

    def __enter__(self) -> Self:
        self.enter()
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def enter(self) -> None:
        """As cfmakeraw(3)."""
        mode = termios.tcgetattr(self.fd)
        mode[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
            | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
        )  # fmt: skip
        mode[1] &= ~termios.OPOST
        mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        self._set(mode)

    def restore(self) -> None:
        self._set(self._saved)

    def _set(self, mode: list[Any]) -> None:
        old = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        try:
            # Not TCSADRAIN: a terminal that was stopped with ^S never drains.
            termios.tcsetattr(self.fd, termios.TCSANOW, mode)
        except termios.error:
            pass  # it was hung up
        finally:
            signal.signal(signal.SIGTTOU, signal.SIG_DFL if old is None else old)


def get_size(fd: int) -> tuple[int, int]:
    """Rows and columns (tty_ioctl(4)); zeros for what is no terminal, or does not know."""
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return 0, 0
    return rows, columns


def set_size(fd: int, rows: int, columns: int) -> None:
    """Whoever uses the terminal gets SIGWINCH when this changes something. OSError when `fd` is no terminal."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0))


class Keyboard:
    """What is typed on the caller's terminal, on its way to an app. Makes the terminal raw; `close` puts it right.

    Whoever uses it calls `close` however things end. Signals SIGWINCH and SIGCONT are its own."""

    def __init__(
        self,
        loop: Loop,
        to_app: Callable[[], Outlet | None],
        *,
        resize: Callable[[int, int], None],
        leave: Callable[[], None],
        fd: int = 0,
    ) -> None:
        """`to_app` is asked each time, because an app that is started again has a new terminal; `resize` is told rows
        and columns, now and whenever they change; `leave` is called when the keys that leave were pressed, or the
        terminal is hung up."""
        self._loop = loop
        self._to_app = to_app
        self._resize = resize
        self._leave = leave
        self._terminal = fd
        self._escape = Escape()
        self._raw = RawMode(fd)
        self._own = own_description(fd, os.O_RDONLY)
        self._fd = fd if self._own < 0 else self._own
        self._open = True
        # A read or a change of mode from the background fails instead of stopping us, and with us every app.
        self._old_signals = [(number, signal.signal(number, signal.SIG_IGN)) for number in _BACKGROUND]
        loop.on_signal(signal.SIGWINCH, self.update_size)
        loop.on_signal(signal.SIGCONT, self._continue)
        loop.add(self._fd, READ, self._on_ready)
        if self._in_foreground():
            self._raw.enter()
        self.update_size()

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._loop.remove(self._fd)
        if self._in_foreground():  # else it is somebody else's now, who has put it as they want it
            self._raw.restore()
        for number, old in self._old_signals:
            signal.signal(number, signal.SIG_DFL if old is None else old)
        if self._own >= 0:
            os.close(self._own)

    def update_size(self) -> None:
        """Tell the app the terminal's size, again after it got a new terminal."""
        rows, columns = get_size(self._terminal)
        if rows and columns:
            self._resize(rows, columns)

    def _continue(self) -> None:
        """Shells set the mode of the terminal when they bring a job back."""
        if self._open and self._in_foreground():
            self._raw.enter()
            self.update_size()

    def _in_foreground(self) -> bool:
        """A terminal that is not our controlling one has no background."""
        try:
            return os.tcgetpgrp(self._terminal) == os.getpgrp()
        except OSError:
            return True

    def _on_ready(self, events: int) -> None:
        try:
            data = os.read(self._fd, LIMIT)
        except BlockingIOError:
            return
        except OSError:  # EIO: hung up, or we are in the background
            data = b""
        if not data:
            self._without_data(events)
            return
        text, leave = self._escape.feed(data)
        to_app = self._to_app()
        if to_app is not None and text:
            to_app.write(text)
            if to_app.full:
                self._pause()
                to_app.when_room(self._read_on)
        if leave:
            self._leave()

    def _without_data(self, events: int) -> None:
        self._pause()
        if events & HANGUP or self._in_foreground():
            self._leave()
        else:
            self._loop.call_later(_RETRY, self._read_on)

    def _pause(self) -> None:
        self._loop.remove(self._fd)

    def _read_on(self) -> None:
        if self._open:
            self._pause()
            self._loop.add(self._fd, READ, self._on_ready)


_BACKGROUND = (signal.SIGTTIN, signal.SIGTTOU)


def proxy(master: int, *, terminal: int = 0, output: int = 1) -> None:
    """Connect the caller's terminal with the pseudo-terminal `master` until its other side is closed, the caller's
    terminal is hung up, the keys that leave are pressed, or SIGTERM, SIGHUP or SIGINT comes; `master` is closed then,
    and the caller's terminal as it was."""
    loop = Loop()
    screen = Outlet(loop, output, nonblocking=False)
    writing = os.dup(master)
    os.set_blocking(master, False)
    to_app = Outlet(loop, writing, nonblocking=True)
    keyboard = None

    def show(_events: int = 0) -> None:
        try:
            data = os.read(master, LIMIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        screen.write(data)
        if not data or screen.gone:
            loop.remove(master)
            screen.when_empty(loop.stop)
        elif screen.full:
            loop.remove(master)
            screen.when_room(lambda: loop.add(master, READ, show))

    try:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            loop.on_signal(number, loop.stop)
        if os.isatty(terminal):
            keyboard = Keyboard(
                loop,
                lambda: to_app,
                resize=lambda rows, columns: set_size(writing, rows, columns),
                leave=loop.stop,
                fd=terminal,
            )
        loop.add(master, READ, show)
        loop.run()
    finally:
        if keyboard is not None:
            keyboard.close()
        screen.close()
        to_app.close()
        loop.close()
        os.close(writing)
        os.close(master)


def open_pty(uid: int, gid: int = -1, *, multiplexer: str = "/dev/pts/ptmx") -> tuple[int, int]:
    """A new pseudo-terminal of the devpts whose multiplexer is named: master and slave, the slave the user's `uid`.

    The slave is opened through its master (TIOCGPTPEER, Linux 4.13) and not by a name, which may lead anywhere in an
    app's root. Raises LaunchError."""
    try:
        master = os.open(multiplexer, os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
            slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            os.fchown(slave, uid, gid)
            os.fchmod(slave, 0o620)
        except BaseException:
            os.close(master)
            raise
    except OSError as error:
        raise LaunchError(f"cannot make a terminal from {multiplexer}: {reason(error)}") from error
    return master, slave


# linux/tty.h and asm-generic/ioctls.h: the encoding that x86-64, arm64, riscv64 and s390x share.
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441


def take_terminal(slave: int, fds: tuple[int, ...] = (0, 1, 2)) -> None:
    """Make `slave` the controlling terminal of this process, which leads a session of its own from now on, and its
    descriptors `fds`; `slave` itself is closed. In the child that becomes the app. Raises LaunchError."""
    try:
        if os.getsid(0) != os.getpid():
            os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for fd in fds:
            os.dup2(slave, fd, inheritable=True)
    except OSError as error:
        raise LaunchError(f"cannot take a terminal: {reason(error)}") from error
    if slave not in fds:
        os.close(slave)
