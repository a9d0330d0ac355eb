"""Where an app's standard streams lead, and the host's side of them.

Each output of an app is read by one `_Source` of the monitor and given to sinks: the log, the caller of `rkpy run`,
clients that have attached. The app writes to pipes (or to a terminal) of its own, never to anything of the caller's, so
it can neither be stopped by the caller's terminal nor change its settings. docs/logs.md describes it for users.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import termios
from collections.abc import Callable, Sequence
from typing import Protocol

from common.errors import PodError
from common.records import NamedTuple
from common.syscalls import PIPEFS_MAGIC, filesystem_type
from stage1.loop import HANGUP, READ, Loop, Timer
from stage1.outlet import LIMIT, Outlet, own_description
from stage1.terminal import set_size

_CHUNK = 65536
_LINE = 16384
"""Bytes of a line that are held back for the rest of it to come, where only whole lines are shown."""
_CLIENT_LIMIT = 1 << 18
STUCK = 10.0
"""Seconds an attached client may hold up an app before it is sent away."""
_DRAIN = 1 << 20
"""Bytes read at most from a terminal whose app has ended."""


class Streams(NamedTuple):
    """Each one of the words rkt's annotations have."""

    stdin: str = "null"
    """"null", "stream" (an attached client, or the caller when interactive) or "tty"."""
    stdout: str = "log"
    """"log", "null", "stream" (attached clients only) or "tty"."""
    stderr: str = "log"


class Log(Protocol):
    """What keeps an app's output, such as `logs.LogFile`. It always takes everything; while it is `full` it should not
    be given more."""

    @property
    def full(self) -> bool: ...

    def when_room(self, callback: Callable[[], None]) -> None: ...

    def write(self, stream: str, data: bytes) -> None:
        """`stream` is "stdout" or "stderr"; `data` is cut anywhere."""
        ...

    def started(self, pid: int) -> None:
        """What follows is from this process (0: unknown), and does not belong to a line that was begun."""
        ...

    def ended(self) -> None:
        """The app's process has ended, and all that it wrote was given."""
        ...

    def close(self) -> None: ...


class Sink(Protocol):
    """Where output goes that may be slower than the app."""

    @property
    def full(self) -> bool: ...

    def write(self, data: bytes) -> None: ...

    def when_room(self, callback: Callable[[], None]) -> None: ...


class Foreground:
    """The standard output and error of the caller of `rkpy run`, shared by the apps of a pod."""

    def __init__(
        self, loop: Loop, *, prefixed: bool, fds: tuple[int, int] = (1, 2), silent: tuple[int, ...] = ()
    ) -> None:
        """`prefixed`: for a pod of several apps, show whole lines with the name of their app before each. `silent`: of
        1 and 2 those on which what the log has already is not to be shown."""
        self.prefixed = prefixed
        self._silent = silent
        self._out = Outlet(loop, fds[0], nonblocking=False)
        same = os.path.samestat(os.fstat(fds[0]), os.fstat(fds[1]))
        # One outlet for one pipe or terminal: two would write into the middle of each other's lines.
        self._err = self._out if same else Outlet(loop, fds[1], nonblocking=False)

    def shows(self, stream: str) -> bool:
        """Whether what is logged is to be shown there, too."""
        return (2 if stream == "stderr" else 1) not in self._silent

    def outlet(self, stream: str) -> Outlet:
        return self._err if stream == "stderr" else self._out

    def when_written(self, callback: Callable[[], None]) -> None:
        """Call once, when all that was given to it is written or cannot be. It waits for as long as a reader does not
        read, so whoever waits listens for signals as well."""
        self._out.when_empty(lambda: self._err.when_empty(callback))

    def close(self) -> None:
        self._out.close()
        self._err.close()


def _given_as_they_are() -> tuple[int, ...]:
    """Those of the caller's streams an app may have itself, to stand in a pipeline: pipes without a name, and sockets.

    What it gets of anything else goes through a pipe of its own. Of a file it could open more than it was given through
    /proc/self/fd, and change the mode; what is typed on a terminal it could read for as long as it lives."""
    return tuple(fd for fd in range(3) if _is_nameless(fd))


def _is_nameless(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISSOCK(mode) or (stat.S_ISFIFO(mode) and filesystem_type(fd) == PIPEFS_MAGIC)


class CallerInput:
    """The caller's standard input, read as it comes and as the outlet takes it."""

    def __init__(self, loop: Loop, fd: int, outlet: Outlet, end: Callable[[], None]) -> None:
        self._loop = loop
        self._own = own_description(fd, os.O_RDONLY)
        self._fd = fd if self._own < 0 else self._own
        self._outlet = outlet
        self._end = end
        self._open = True
        self._read_on()

    def close(self) -> None:
        self._open = False
        self._loop.remove(self._fd)
        if self._own >= 0:
            os.close(self._own)
            self._own = -1

    def _read_on(self) -> None:
        if not self._open:
            return
        try:
            self._loop.add(self._fd, READ, self._on_ready)
        except PermissionError:  # a regular file: always ready
            self._loop.call_later(0, self._on_ready)

    def _on_ready(self, _events: int = 0) -> None:
        try:
            data = os.read(self._fd, LIMIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._loop.remove(self._fd)
        if not data or self._outlet.gone:
            self._open = False
            self._end()
        else:
            self._outlet.write(data)
            self._outlet.when_room(self._read_on) if self._outlet.full else self._read_on()


class _Lines:
    """A sink that hands on whole lines with a prefix."""

    def __init__(self, outlet: Outlet, prefix: Callable[[], bytes]) -> None:
        self._outlet = outlet
        self._prefix = prefix
        self._rest = b""

    @property
    def full(self) -> bool:
        return self._outlet.full

    def when_room(self, callback: Callable[[], None]) -> None:
        self._outlet.when_room(callback)

    def write(self, data: bytes) -> None:
        whole, newline, rest = data.rpartition(b"\n")
        if newline:
            prefix = self._prefix()
            self._outlet.write(prefix + (self._rest + whole).replace(b"\n", b"\n" + prefix) + b"\n")
            self._rest = rest
        else:
            self._rest += data
        if len(self._rest) > _LINE:
            self.end_line()

    def end_line(self) -> None:
        """Show what there is of a line."""
        if self._rest:
            self._outlet.write(self._prefix() + self._rest + b"\n")
            self._rest = b""


class _Client:
    """A socket of somebody who has attached to a stream: output goes there, and what comes from there is input."""

    def __init__(
        self,
        loop: Loop,
        fd: int,
        *,
        to_app: Callable[[], Outlet | None],
        leave: Callable[[], None],
        end_input: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._fd = fd
        self._to_app = to_app
        self._leave = leave
        self._end_input = end_input
        self._patience: Timer | None = None
        self._farewell: Timer | None = None
        """Not the same: that one ends when there is room."""
        os.set_blocking(fd, False)
        self._out_fd = os.dup(fd)  # one number for each direction: a number is watched for one thing
        self._outlet = Outlet(loop, self._out_fd, nonblocking=True, limit=_CLIENT_LIMIT)
        self._outlet.on_gone = leave
        loop.add(fd, READ, self._on_ready)

    @property
    def full(self) -> bool:
        return self._outlet.full

    def when_room(self, callback: Callable[[], None]) -> None:
        self._outlet.when_room(callback)

    def write(self, data: bytes) -> None:
        self._outlet.write(data)
        if self._outlet.full and self._patience is None:
            self._patience = self._loop.call_later(STUCK, self._leave)
            self._outlet.when_room(self._be_patient_again)

    def finish(self) -> None:
        """Leave once everything is written, or it does not read on for too long."""
        self._be_patient_again()
        self._await_reading()
        self._outlet.when_empty(self._leave)

    def _await_reading(self) -> None:
        left = self._outlet.waiting

        def look() -> None:
            if self._outlet.waiting < left:
                self._await_reading()
            else:
                self._leave()

        self._farewell = self._loop.call_later(STUCK, look)

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._be_patient_again()
            if self._farewell is not None:
                self._farewell.cancel()
            self._outlet.on_gone = None
            self._outlet.close()
            os.close(self._out_fd)

    def _be_patient_again(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _on_ready(self, events: int) -> None:
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data, events = b"", HANGUP
        if not data:
            if not events & HANGUP:  # it said that there is no more input, and stays
                self._end_input()
            self._leave()
        elif (to_app := self._to_app()) is not None:
            to_app.write(data)
            if to_app.full:
                self._loop.remove(self._fd)
                to_app.when_room(self._read_on)

    def _read_on(self) -> None:
        if self._fd >= 0:
            self._loop.add(self._fd, READ, self._on_ready)


class _Source:
    """One output of an app, read and given to its sinks. While one of them is full it is not read, so that the app
    waits as it would if it wrote there itself."""

    def __init__(self, loop: Loop, stream: str, log: Log | None) -> None:
        self.stream = stream
        self.sinks: list[Sink] = []
        self.waiting = -1
        """What is read once the app has started: not before its process is known, whose number is shown."""
        self._fd = -1
        self._loop = loop
        self._log = log
        self._reading = False
        self._waits = False
        """Whether a sink is to say when it has room: said once, however often a machine's guest has a new terminal."""

    def open(self, fd: int) -> None:
        """Read from `fd`, which is owned from now on, instead of what was read from before."""
        self.close()
        os.set_blocking(fd, False)
        self._fd = fd
        self._flow()

    def begin(self) -> None:
        """Read what has been `waiting`."""
        if self.waiting >= 0:
            fd, self.waiting = self.waiting, -1
            self.open(fd)

    def close(self) -> None:
        if self.waiting >= 0:
            os.close(self.waiting)
            self.waiting = -1
        if self._fd >= 0:
            self._pause()
            os.close(self._fd)
            self._fd = -1

    def drain(self) -> None:
        """Read what is there now. Somebody may still hold the other end, and may go on writing, so neither its end nor
        silence is waited for."""
        if self._fd < 0:
            return
        count = _DRAIN
        if stat.S_ISFIFO(os.fstat(self._fd).st_mode):  # a terminal hands its output on a little later than it says
            count = struct.unpack("i", fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)))[0]
        while count > 0 and (data := self._read(min(count, _CHUNK))):
            self._give(data)
            count -= len(data)

    def _on_ready(self, _events: int) -> None:
        data = self._read(_CHUNK)
        if data:
            self._give(data)
            self._flow()
        elif data is not None:
            self.close()

    def _read(self, count: int) -> bytes | None:
        """What is there; None when nothing is, empty at the end. A terminal's end is EIO: every copy of its other side
        is closed."""
        try:
            return os.read(self._fd, count)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return b""

    def _give(self, data: bytes) -> None:
        if self._log is not None:
            self._log.write(self.stream, data)
        for sink in tuple(self.sinks):
            sink.write(data)

    def _flow(self) -> None:
        """Read on, or wait until the first full sink has room."""
        outlets: list[Sink | Log] = [*self.sinks] if self._log is None else [self._log, *self.sinks]
        full = next((outlet for outlet in outlets if outlet.full), None)
        if full is not None:
            self._pause()
            if not self._waits:
                self._waits = True
                full.when_room(self._has_room)
        elif self._fd >= 0 and not self._reading:
            self._loop.add(self._fd, READ, self._on_ready)
            self._reading = True

    def _has_room(self) -> None:
        self._waits = False
        self._flow()

    def _pause(self) -> None:
        if self._reading:
            self._loop.remove(self._fd)
            self._reading = False


class AppStreams:
    """The host's side of the streams of one app, over all its restarts."""

    def __init__(
        self,
        loop: Loop,
        name: str,
        streams: Streams,
        *,
        log: Log | None = None,
        foreground: Foreground | None = None,
        of_caller: bool = False,
        giving: bool = True,
    ) -> None:
        """`log` is owned from now on. `foreground` shows what is logged, and a terminal; leave it out to show nothing.
        `of_caller`: the streams are to be the caller's, `giving` its very own as far as these can be given away."""
        self.input: Outlet | None = None
        """Where the app's input is written to, when it has some."""
        self._loop = loop
        self._name = name
        self._modes = streams._asdict()
        self._log = log
        self._foreground = foreground
        self._prefix = f"{name}: ".encode()
        self._lines: list[_Lines] = []
        self._sources: dict[str, _Source] = {}
        self._clients: list[_Client] = []
        self._input_fd = -1
        self._done: list[Callable[[], None]] = []
        self._feed: CallerInput | None = None
        self._of_caller = of_caller
        self._inherited = _given_as_they_are() if of_caller and giving else ()
        self._child_fds = [-1, -1, -1]
        self._closed = False
        self._make()

    def _make(self) -> None:
        modes = self._modes
        if 0 in self._inherited:
            pass
        elif modes["stdin"] == "stream":
            self._child_fds[0], self._input_fd = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self._input_fd, False)
            self.input = Outlet(self._loop, self._input_fd, nonblocking=True)
        elif modes["stdin"] == "null":
            self._child_fds[0] = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        for number, stream in ((1, "stdout"), (2, "stderr")):
            if number in self._inherited:
                continue
            if modes[stream] == "null":
                self._child_fds[number] = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            elif modes[stream] != "tty":
                source = self._add_source(stream, logged=modes[stream] == "log")
                source.waiting, self._child_fds[number] = os.pipe2(os.O_CLOEXEC)
        if "tty" in modes.values():
            self._add_source("tty", logged=True)

    def _add_source(self, name: str, *, logged: bool) -> _Source:
        stream = "stderr" if name == "stderr" else "stdout"
        source = self._sources[name] = _Source(self._loop, stream, self._log if logged else None)
        if logged and self._foreground is not None and self._foreground.shows(stream):
            outlet = self._foreground.outlet(stream)
            if self._foreground.prefixed:
                self._lines.append(_Lines(outlet, lambda: self._prefix))
                source.sinks.append(self._lines[-1])
            else:
                source.sinks.append(outlet)
        return source

    # --- towards the app

    def child_fds(self) -> tuple[int, int, int]:
        """What the app gets as descriptors 0, 1 and 2; -1 where its terminal comes, which the supervisor makes.

        They are to be sent to the supervisor, which keeps them for restarts: there is no end of the output when one
        process of the app ends."""
        first, second, third = (fd if fd in self._inherited else self._child_fds[fd] for fd in range(3))
        return first, second, third

    def close_child_ends(self) -> None:
        """Once they have been sent. Never the caller's own."""
        for number, fd in enumerate(self._child_fds):
            if fd >= 0 and not (number == 0 and self._of_caller):  # that is needed by `_give_back`
                os.close(fd)
                self._child_fds[number] = -1

    def _give_back(self) -> None:
        """Leave the caller's file where the app stopped reading it: there may be others to read on."""
        fd = self._child_fds[0]
        if not self._of_caller or fd < 0:
            return
        if stat.S_ISREG(os.fstat(0).st_mode):
            left = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0]
            os.lseek(0, -left - (self.input.waiting if self.input is not None else 0), os.SEEK_CUR)
        os.close(fd)
        self._child_fds[0] = -1

    def set_terminal(self, master: int) -> None:
        """The terminal of the app that is being started, owned from now on. It is not that of one that is over, whose
        log is closed: who says so may be the guest of a virtual machine."""
        if self._closed:
            os.close(master)
            return
        self._close_input()
        self._input_fd = os.dup(master)  # a number for each direction, as in `_Client`
        os.set_blocking(master, False)
        self.input = Outlet(self._loop, self._input_fd, nonblocking=True)
        self._sources["tty"].open(master)

    def resize(self, rows: int, columns: int) -> None:
        """Tell the app the size of the terminal it is shown on."""
        if "tty" in self._sources and self.input is not None:
            try:
                set_size(self._input_fd, rows, columns)
            except OSError:
                pass  # the app is gone

    def started(self, pid: int) -> None:
        """The app runs as process `pid`, for the first time or again."""
        self._prefix = f"{self._name}[{pid}]: ".encode() if pid else f"{self._name}: ".encode()
        if self._log is not None:
            self._log.started(pid)
        for source in self._sources.values():
            source.begin()
        if self._of_caller and self.input is not None and self._feed is None:
            self._feed = CallerInput(self._loop, 0, self.input, self._end_input)

    def drain(self) -> None:
        """The app has ended: take what it has written and show lines it did not finish."""
        for source in self._sources.values():
            source.begin()
            source.drain()
        for lines in self._lines:
            lines.end_line()
        if self._log is not None:
            self._log.ended()

    # --- towards clients

    def endpoints(self) -> tuple[str, ...]:
        """What can be attached to: of "stdin", "stdout", "stderr", "tty-in" and "tty-out"."""
        found = []
        if self._modes["stdin"] != "null" and self.input is not None and not self.input.gone:
            found.append("tty-in" if self._modes["stdin"] == "tty" else "stdin")
        found += ["tty-out" if name == "tty" else name for name in self._sources]
        return tuple(found)

    def attach(self, names: Sequence[str], fds: Sequence[int]) -> None:
        """Connect a stream socket to each of the endpoints `names`; "tty" is both sides of a terminal by one socket.
        The descriptors are owned from now on, however this ends. Raises PodError.

        A client ends its input with shutdown(2), and leaves by closing its socket; one that does not read what it is
        sent holds the app up for STUCK seconds and is sent away."""
        wanted = {"tty-in", "tty-out"} if "tty" in names else set()
        missing = (wanted | set(names) - {"tty"}) - set(self.endpoints())
        if missing or len(names) != len(fds) or not all(stat.S_ISSOCK(os.fstat(fd).st_mode) for fd in fds):
            for fd in fds:
                os.close(fd)
            what = f"has no {' and no '.join(sorted(missing))} to attach to" if missing else "cannot be attached to"
            raise PodError(f'app "{self._name}" {what}', hint=f"there is: {', '.join(self.endpoints()) or 'nothing'}")
        left = list(fds)
        try:
            for name in names:
                self._add_client(name, left[0])
                left.pop(0)
        finally:
            for fd in left:
                os.close(fd)

    def _add_client(self, name: str, fd: int) -> None:
        source = self._sources.get({"tty": "tty", "tty-out": "tty"}.get(name, name))

        def leave() -> None:
            client.close()
            if client in self._clients:
                self._clients.remove(client)
            if source is not None and client in source.sinks:
                source.sinks.remove(client)
            self._call_done()

        client = _Client(
            self._loop,
            fd,
            to_app=lambda: self.input if name in ("stdin", "tty", "tty-in") else None,
            leave=leave,
            end_input=self._end_input if name == "stdin" else lambda: None,
        )
        self._clients.append(client)
        if source is not None:
            source.sinks.append(client)

    # --- the end

    def _end_input(self) -> None:
        """The app is to see the end of its input, after all that was written to it."""
        if self.input is not None:
            self.input.when_empty(self._close_input)

    def _close_input(self) -> None:
        if self.input is not None:
            closing = self.input
            self.input = None
            closing.close()
            os.close(self._input_fd)
            self._input_fd = -1

    def close(self) -> None:
        """The app will not be started again. What has not been drained is lost; clients are sent what they were to
        get, which takes the loop a while (`when_written`)."""
        self._closed = True
        self.close_child_ends()
        if self._feed is not None:
            self._feed.close()
            self._feed = None
        self._give_back()
        self._close_input()
        for source in self._sources.values():
            source.close()
        for client in tuple(self._clients):
            client.finish()
        if self._log is not None:
            self._log.close()
            self._log = None

    def when_written(self, callback: Callable[[], None]) -> None:
        """Call once, when no client is attached any more: soon after `close`, or when none has read on for STUCK
        seconds."""
        self._done.append(callback)
        self._call_done()

    def _call_done(self) -> None:
        if not self._clients:
            self._done, calls = [], self._done
            for call in calls:
                call()


class Writer(Protocol):
    def when_written(self, callback: Callable[[], None]) -> None: ...


def when_all_written(those: Sequence[Writer], callback: Callable[[], None]) -> None:
    """Call once, when everything that was given to these is written, or cannot be."""
    if those:
        those[0].when_written(lambda: when_all_written(those[1:], callback))
    else:
        callback()
