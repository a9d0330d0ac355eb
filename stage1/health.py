"""Whether an app is well, as a command beside it tells now and then: the supervisor's part.

A check that succeeds makes the app healthy, and several that fail one after the other (`Health.retries`) unhealthy. An
app that has just started is looked at more often than its interval says, so that its being ready is not noticed late;
what fails then counts only once an interval and the start period have passed, and once an interval at most.

It is loaded before the supervisor is in its empty root, by pods that have checks only.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from common.errors import reason
from stage1.loop import READ, Loop, Timer
from stage1.plan import Health

STARTING, WELL, UNWELL = "starting", "healthy", "unhealthy"
TAIL = 500
"""Bytes of a check's output that are kept, the last ones."""
_FIRST_PAUSE = 0.25
"""Seconds after the first look at an app that starts; doubled each time."""
_PIECE = 4096
_MOST = 1 << 20
"""Bytes of a check's output that are read; a check that writes more waits, until its time is up."""


class Check:
    """Of one app. `start` runs the command with a descriptor for its output, and returns its PID; `tell` gets every
    change of state, with the reason; `act` is called when the app becomes unhealthy."""

    def __init__(
        self,
        loop: Loop,
        health: Health,
        start: Callable[[int], int],
        tell: Callable[[str, str], None],
        act: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._health = health
        self._start = start
        self._tell = tell
        self._act = act
        self.pid = 0
        """The process that checks just now; 0 for none."""
        self._state = ""
        self._failures = 0
        self._due = 0.0
        """When a failure of an app that starts counts."""
        self._pause = 0.0
        self._timer: Timer | None = None
        self._late = False
        self._output = -1
        self._tail = b""
        self._read = 0

    def begin(self) -> None:
        """The app has started."""
        self._failures = 0
        self._pause = _FIRST_PAUSE
        self._due = time.monotonic() + max(self._health.interval, self._health.start_period)
        self._become(STARTING, "")
        self._later(0.0, self._look)

    def end(self) -> None:
        """The app has ended; a check that runs is killed."""
        self._cancel()
        self._kill()
        self.pid = 0  # Its end is of no interest any more.
        self._close()

    def _look(self) -> None:
        self._tail, self._read, self._late = b"", 0, False
        output = -1
        try:
            self._output, output = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            os.set_blocking(output, True)
            self.pid = self._start(output)
        except OSError as error:
            self._close()
            self._came_to(False, f"cannot run the check: {reason(error)}")
            return
        finally:
            if output >= 0:
                os.close(output)
        self._loop.add(self._output, READ, lambda _events: self._take())
        self._later(self._health.timeout, self._lose_patience)

    def _take(self) -> None:
        try:
            data = os.read(self._output, _PIECE)
        except BlockingIOError:
            return
        self._tail = (self._tail + data)[-TAIL:]
        self._read += len(data)
        if not data or self._read > _MOST:
            self._loop.remove(self._output)

    def _lose_patience(self) -> None:
        self._timer = None
        self._late = True
        self._kill()

    def _kill(self) -> None:
        """With all that is still in its session's first process group, where it did not come to make one without."""
        if self.pid:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def ended(self, status: int) -> None:
        """The process is gone, with this status as waitpid(2) gives it."""
        self.pid = 0
        self._cancel()
        while self._output >= 0 and self._read <= _MOST:
            before = self._read
            self._take()
            if self._read == before:
                break
        self._close()
        code = os.waitstatus_to_exitcode(status)
        how = f"took longer than {self._health.timeout:g} s" if self._late else _in_words(code)
        said = " ".join(self._tail.decode("utf-8", "replace").split())
        self._came_to(code == 0 and not self._late, f"{how}: {said}" if said else how)

    def _came_to(self, well: bool, text: str) -> None:
        now = time.monotonic()
        if well:
            self._failures = 0
            self._become(WELL, "")
        elif self._state != STARTING or now >= self._due:
            self._due = now + self._health.interval
            self._failures += 1
            if self._failures >= self._health.retries and self._state != UNWELL:
                self._become(UNWELL, text)
                self._act()
        self._later(self._until_next(now), self._look)

    def _until_next(self, now: float) -> float:
        if self._state != STARTING:
            return self._health.interval
        pause = min(self._pause, self._health.interval, max(self._due - now, 0.01))
        self._pause *= 2
        return pause

    def _become(self, state: str, text: str) -> None:
        if state != self._state:
            self._state = state
            self._tell(state, text)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._cancel()
        self._timer = self._loop.call_later(seconds, call)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        if self._output >= 0:
            self._loop.remove(self._output)
            os.close(self._output)
            self._output = -1


def _in_words(code: int) -> str:
    return f"exit status {code}" if code >= 0 else f"killed by signal {-code}"
