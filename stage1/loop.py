"""A small event loop on epoll(7): descriptors, timers and signals, called back one after the other in one thread.

It serves the monitor and PID 1 of a pod. A process that forks makes a loop of its own and never touches its parent's:
an epoll instance is shared across fork(2).
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANGUP = select.EPOLLHUP | select.EPOLLERR
"""Reported whether it was asked for or not."""

_PIPE_SIZE = 65536


class _Watch:
    """A descriptor that is watched. An object, so that events of one that was removed (and whose number may already
    belong to another) are known to be stale."""

    __slots__ = ("active", "callback")

    def __init__(self, callback: Callable[[int], None]) -> None:
        self.callback = callback
        self.active = True


class Timer:
    """A call that is due at a time."""

    __slots__ = ("_timers", "callback", "due")

    def __init__(self, timers: list[Timer], due: float, callback: Callable[[], None]) -> None:
        self._timers = timers
        self.due = due
        self.callback = callback

    def cancel(self) -> None:
        """Never call. Harmless when it has been called, or cancelled before."""
        if self in self._timers:
            self._timers.remove(self)


class Loop:
    """One at a time in a process, in its main thread: signals have a single wakeup descriptor."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watches: dict[int, _Watch] = {}
        self._timers: list[Timer] = []
        self._stopped = False
        self._signals: set[int] = set()
        self._signal_callbacks: dict[int, Callable[[], None]] = {}
        self._old_handlers: dict[int, Any] = {}
        self._old_wakeup = -1
        self._wakeup = (-1, -1)

    def close(self) -> None:
        """Give signals back to whoever had them, and let go of everything watched; closes none of it."""
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        if self._wakeup[0] >= 0:
            signal.set_wakeup_fd(self._old_wakeup)
            os.close(self._wakeup[0])
            os.close(self._wakeup[1])
        self._epoll.close()

    def add(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call back with the events whenever there are some of `events` (READ, WRITE) on `fd`, or HANGUP.

        PermissionError for what cannot be waited for because it is always ready, such as a regular file."""
        self._epoll.register(fd, events)
        self._watches[fd] = _Watch(callback)

    def modify(self, fd: int, events: int) -> None:
        """Wait for these events from now on. HANGUP comes with no events as well: `remove` what shall be silent."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Must come before close(2): the kernel forgets a file only once its last copy, in any process, is closed.
        Harmless when it is not watched."""
        watch = self._watches.pop(fd, None)
        if watch is not None:
            watch.active = False
            self._epoll.unregister(fd)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(self._timers, time.monotonic() + seconds, callback)
        self._timers.append(timer)
        return timer

    def on_signal(self, number: int, callback: Callable[[], None]) -> None:
        """Call back between two other calls whenever signal `number` has come, once however often it came."""
        if self._wakeup[0] < 0:
            self._wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._old_wakeup = signal.set_wakeup_fd(self._wakeup[1], warn_on_full_buffer=False)
            self.add(self._wakeup[0], READ, self._drain_wakeup)
        self._signal_callbacks[number] = callback
        old = signal.signal(number, self._note_signal)
        self._old_handlers.setdefault(number, signal.SIG_DFL if old is None else old)

    def stop(self) -> None:
        """Make `run` return after the call that is being made."""
        self._stopped = True

    def run(self) -> None:
        """Wait and call back until `stop`. What a callback raises comes out here."""
        while not self._stopped:
            # A signal that came before this line is in the set; one that comes later makes the pipe readable.
            events = self._epoll.poll(0 if self._signals else self._patience())
            ready = [(self._watches.get(fd), what) for fd, what in events]
            for watch, what in ready:
                if watch is not None and watch.active and not self._stopped:
                    watch.callback(what)
            self._call_signals()
            self._call_timers()
        self._stopped = False

    def _patience(self) -> float:
        """Seconds until the next timer, -1 for ever (epoll_wait(2))."""
        if not self._timers:
            return -1
        return max(0.0, min(timer.due for timer in self._timers) - time.monotonic())

    def _note_signal(self, number: int, _frame: object) -> None:
        self._signals.add(number)

    def _drain_wakeup(self, _events: int) -> None:
        # What is in it does not matter: the interpreter notes a signal for its handler before it writes here.
        os.read(self._wakeup[0], _PIPE_SIZE)

    def _call_signals(self) -> None:
        while self._signals and not self._stopped:
            self._signal_callbacks[self._signals.pop()]()

    def _call_timers(self) -> None:
        now = time.monotonic()
        for timer in sorted((timer for timer in self._timers if timer.due <= now), key=lambda timer: timer.due):
            if timer in self._timers and not self._stopped:
                self._timers.remove(timer)
                timer.callback()
